"""Readers of `graph_path`: matrices, edge lists and the pickles of METR-LA's kind, without running foreign code."""

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data.array_files import read_npy, read_npz
from jaxtrain.data.traffic_config import DataConfig
from jaxtrain.data.traffic_tables import csv_lines, existing_file, number
from jaxtrain.errors import UserError

ALLOWED = {
    *((module, name) for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("_reconstruct", "scalar")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
COSTS = ("cost", "distance")


class RestrictedUnpickler(pickle.Unpickler):
    """Builds lists, dicts, numbers, text and plain arrays; refuses every other global before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(f"it asks for {module}.{name}, which is refused; convert the matrix to CSV")
        return super().find_class(module, name)


def read_graph(config: DataConfig, ids: np.ndarray, named: bool) -> np.ndarray:
    """Weights (N, N) float32 of `config.graph_path` in the order of ids (N,), matched by id where both sides have ids."""
    path = config.graph_path
    suffix = existing_file(path).suffix.lower()
    kind = config.graph_kind
    if suffix == ".csv" and _is_edge_list(path):
        values = _edge_list(path, ids, named)
        kind = "distance" if kind == "auto" else kind
    elif suffix == ".pkl":
        values = _pickled(path, ids, named)
    elif suffix in (".csv", ".npy", ".npz"):
        values = _square(path, _csv_matrix(path) if suffix == ".csv" else _numpy_matrix(path), ids)
    else:
        raise UserError(f"{path}: unknown suffix {suffix!r}; a graph is .csv (matrix or from,to,cost), .npy, .npz or .pkl")
    _check_values(path, values, ids)
    return _from_distances(values, config.threshold) if kind == "distance" else np.nan_to_num(values, nan=0).astype(np.float32)


def _from_distances(distance: np.ndarray, threshold: float) -> np.ndarray:
    """exp(-(x / s)^2), s the standard deviation of the finite distances; smaller than threshold -> 0 (DCRNN).

    NaN and infinite distances, and a zero off the diagonal, mean that there is no edge.
    """
    known = np.isfinite(distance) & ((distance > 0) | np.eye(len(distance), dtype=bool))
    scale = np.std(distance[known]) or 1.0
    kernel = np.where(known, np.exp(-((np.where(known, distance, 0) / scale) ** 2)), 0)
    return np.where(kernel < threshold, 0, kernel).astype(np.float32)


def _check_values(path: str, values: np.ndarray, ids: np.ndarray) -> None:
    wrong = np.argwhere(values < 0)
    if len(wrong):
        i, j = wrong[0]
        raise UserError(f"{path}: {values[i, j]:g} from node {ids[i]} to node {ids[j]} is negative; weights and distances are not")


def _square(path: str, values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    nodes = len(ids)
    if values.shape != (nodes, nodes):
        raise UserError(f"{path}: shape {values.shape}, expected ({nodes}, {nodes}) for the {nodes} nodes of the data")
    if np.isnan(values).any():
        i, j = np.argwhere(np.isnan(values))[0]
        raise UserError(f"{path}: NaN at row {i}, column {j} (node {ids[i]} to {ids[j]}); write 0 where there is no edge")
    return values.astype(np.float64)


def _csv_matrix(path: str) -> np.ndarray:
    lines = csv_lines(path)
    expected = lines[0].count(",") + 1
    values = np.empty((len(lines), expected))
    for line, text in enumerate(lines, start=1):
        cells = text.split(",")
        if len(cells) != expected:
            raise UserError(f"{path}: line {line}: {expected} columns expected, {len(cells)} found")
        try:
            values[line - 1] = [number(cell) for cell in cells]
        except ValueError:
            bad = next(c for c in cells if not _is_number(c))
            raise UserError(f"{path}: line {line}, column {cells.index(bad) + 1}: {bad!r} is not a number") from None
    return values


def _is_number(text: str) -> bool:
    try:
        number(text)
    except ValueError:
        return False
    return True


def _numpy_matrix(path: str) -> np.ndarray:
    arrays = {"": read_npy(path)} if Path(path).suffix.lower() == ".npy" else read_npz(path)
    if len(arrays) != 1:
        raise UserError(f"{path}: one array expected, found {', '.join(arrays) or 'none'}")
    array = next(iter(arrays.values()))
    if array is None or not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise UserError(f"{path}: holds an array of {'objects' if array is None else array.dtype}, numbers were expected; "
                        "convert the matrix to CSV")  # fmt: skip
    return array


def _is_edge_list(path: str) -> bool:
    header = [cell.strip().lower() for cell in csv_lines(path)[0].split(",")]
    return header[:2] == ["from", "to"]


def _edge_list(path: str, ids: np.ndarray, named: bool) -> np.ndarray:
    """(N, N) from lines from,to,cost (or distance), ids or positions; NaN where there is no edge."""
    reader = csv.reader(csv_lines(path))
    header = [cell.strip().lower() for cell in next(reader)]
    if len(header) != 3 or header[2] not in COSTS:
        raise UserError(f"{path}: columns missing: from, to and cost or distance; found: {', '.join(header)}")
    lines = list(reader)
    for line, cells in enumerate(lines, start=2):
        if len(cells) != 3:
            raise UserError(f"{path}: line {line}: 3 columns expected, {len(cells)} found")
        if not _is_number(cells[2]) or np.isnan(number(cells[2])):
            raise UserError(f"{path}: line {line}, {header[2]}: {cells[2]!r} is not a number")
    place = {str(i): position for position, i in enumerate(ids)}
    ends = [cell.strip() for cells in lines for cell in cells[:2]]
    unknown = list(dict.fromkeys(end for end in ends if end not in place))
    if unknown and named and len(unknown) == len(set(ends)):  # not one id is known: the list counts positions
        place = {str(position): position for position in range(len(ids))}
        unknown = [end for end in dict.fromkeys(ends) if end not in place]
    if unknown:
        raise UserError(f"{path}: nodes unknown to the data: {_few(unknown)}; the data's nodes begin {', '.join(ids[:3])}")
    values = np.full((len(ids), len(ids)), np.nan)
    for start, end, cost in lines:
        values[place[start.strip()], place[end.strip()]] = float(cost)
    return values


def _pickled(path: str, ids: np.ndarray, named: bool) -> np.ndarray:
    """(N, N) from a pickle [ids, id -> position, matrix]."""
    try:
        with Path(path).open("rb") as file:
            content = RestrictedUnpickler(file, encoding="latin1").load()
        own, position, matrix = content
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a broken pickle may raise anything
        raise UserError(f"{path}: no pickle of [ids, id -> position, matrix] ({type(error).__name__}: {error}); "
                        "convert the matrix to CSV") from None  # fmt: skip
    if not isinstance(matrix, np.ndarray) or not np.issubdtype(matrix.dtype, np.number):
        raise UserError(f"{path}: its third entry is {type(matrix).__name__}, a numeric array was expected; convert the matrix to CSV")
    values = _square(path, matrix, ids)
    if not named:
        return values
    where = {_text(i): int(p) for i, p in position.items()} if isinstance(position, dict) else {_text(i): p for p, i in enumerate(own)}
    absent = [str(i) for i in ids if str(i) not in where]
    if absent:
        extra = [i for i in where if i not in set(ids.tolist())]
        raise UserError(f"{path}: nodes of the data that the graph lacks: {_few(absent)}; nodes only in the graph: {_few(extra)}")
    order = [where[str(i)] for i in ids]
    return values[np.ix_(order, order)]


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
