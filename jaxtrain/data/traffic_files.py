"""Readers of the traffic layouts matrix, npz and h5, of weather and of locations; `read_series` picks the layout."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxtrain.data.array_files import read_npy, read_npz
from jaxtrain.data.traffic_config import DataConfig
from jaxtrain.data.traffic_edges import REQUIRED, WEATHER, read_edges
from jaxtrain.data.traffic_frame import read_frame
from jaxtrain.data.traffic_series import Series, check_speeds
from jaxtrain.data.traffic_tables import csv_lines, existing_file, number, read_table
from jaxtrain.data.traffic_time import Label, looks_like_stamp, on_grid, parse_stamp, parse_stamps
from jaxtrain.errors import UserError

LAYOUTS = "edges (.parquet, .csv), matrix (.csv, .npy), npz (.npz), h5 (.h5, .hdf5)"
BY_SUFFIX = {".parquet": "edges", ".npy": "matrix", ".npz": "npz", ".h5": "h5", ".hdf5": "h5", ".hdf": "h5"}


def read_series(config: DataConfig, path: str, weather_path: str = "") -> Series:
    """The readings of a file, on the grid of `config`; weather from `weather_path` where given. Graphs are not read."""
    layout = find_layout(config.layout, path)
    series = read_edges(config, path) if layout == "edges" else _read_matrix_layout(config, path, layout)
    if weather_path:
        series = replace(series, weather=read_weather(weather_path, series.time, config.timezone))
    if config.locations_path:
        series = replace(series, positions=read_locations(config.locations_path, series.ids))
    return series


def find_layout(layout: str, path: str) -> str:
    """The layout named, or for `auto` the one that suffix and header tell."""
    file = existing_file(path)
    if layout != "auto":
        return layout
    suffix = file.suffix.lower()
    if suffix == ".csv":
        header = [cell.strip() for cell in csv_lines(path)[0].split(",")]
        return "edges" if sum(name in header for name in REQUIRED) >= 2 else "matrix"
    if suffix not in BY_SUFFIX:
        raise UserError(f"{path}: unknown suffix {suffix!r}; the layouts are {LAYOUTS}")
    return BY_SUFFIX[suffix]


def _read_matrix_layout(config: DataConfig, path: str, layout: str) -> Series:
    """Series of an (R, N) array: placeholder readings become NaN, speeds are checked, rows placed on the grid."""
    first_line = 0
    time: np.ndarray | None = None
    if layout == "h5":
        ids, time, speed = read_frame(path, config.key, config.timezone)
    elif layout == "npz":
        ids, speed = None, _npz_array(path, config.key or "data", config.feature)
    elif Path(path).suffix.lower() == ".npy":
        ids, speed = None, _npy_array(path)
    else:
        ids, time, speed, first_line = _csv_matrix(config, path)

    def label(row: int) -> str:
        return f"line {row + first_line}" if first_line else f"row {row}"

    named = ids is not None
    names = np.arange(speed.shape[1]).astype(str) if ids is None else ids
    speed = speed.astype(np.float32)
    speed[speed == (0 if config.null_value is None else config.null_value)] = np.nan
    check_speeds(path, speed, config.max_value, label, lambda column: f"node {names[column]}")
    time, speed = _place(config, path, time, speed, label)
    return Series(time, speed, names, named)


def _place(config: DataConfig, path: str, time: np.ndarray | None, speed: np.ndarray, label: Label) -> tuple[np.ndarray, np.ndarray]:
    if time is None:
        if not config.start:
            hint = "set data.start, for example 2012-03-01T00:00 (predict, evaluate: --option start=...)"
            raise UserError(f"{path}: the file has no times; {hint}")
        first = parse_stamp(config.start, config.timezone, "config.data.start")
        return first + config.step_seconds * np.arange(len(speed), dtype=np.int64), speed
    if config.grid == "runs":
        return time, speed
    return on_grid(time, speed, config.step_seconds, path, label)


def _csv_matrix(config: DataConfig, path: str) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray, int]:
    """(node ids or None, times or None, values (R, N) float64, line of the first row)."""
    lines = csv_lines(path)
    expected = lines[0].count(",") + 1
    for line, text in enumerate(lines, start=1):
        if text.count(",") + 1 != expected:
            raise UserError(f"{path}: line {line}: {expected} columns expected, {text.count(',') + 1} found")
    header = [cell.strip().strip('"') for cell in lines[0].split(",")]
    first_line = 2 if _is_header(header, config.max_value) else 1
    rows = lines[first_line - 1 :]
    if not rows:
        raise UserError(f"{path}: a line of node ids and no readings")
    timed = looks_like_stamp(rows[0].split(",", 1)[0])
    time = None
    if timed:
        stamps = [row.split(",", 1)[0] for row in rows]
        time = parse_stamps(stamps, config.timezone, path, lambda row: f"line {row + first_line}")
    names = header[1:] if timed else header
    ids = _checked_ids(path, names) if first_line == 2 else None
    return ids, time, _csv_values(path, rows, 1 if timed else 0, expected, first_line, names if ids is not None else None), first_line


def _csv_values(path: str, rows: list[str], skip: int, columns: int, first_line: int, names: list[str] | None) -> np.ndarray:
    try:
        return np.loadtxt(rows, delimiter=",", usecols=range(skip, columns), ndmin=2, comments=None)
    except ValueError:
        pass  # an empty cell or a fault: read cell by cell, which can say where
    values = np.empty((len(rows), columns - skip))
    for row, text in enumerate(rows):
        for column, cell in enumerate(text.split(",")[skip:]):
            try:
                values[row, column] = number(cell.strip('" '))
            except ValueError:
                name = f"node {names[column]}" if names else f"column {column + 1 + skip}"
                raise UserError(f"{path}: line {row + first_line}, {name}: {cell!r} is not a number") from None
    return values


def _is_header(cells: list[str], max_value: float) -> bool:
    """Node ids are text, or distinct integers that cannot be speeds."""
    body = cells[1:] if looks_like_stamp(cells[0]) else cells
    numbers = [c for c in body if _is_number(c)]
    if any(float(c) != int(float(c)) for c in numbers if np.isfinite(float(c))):
        return False
    if len(numbers) < sum(c != "" for c in body):
        return True
    return bool(numbers) and len(set(numbers)) == len(numbers) and min(float(c) for c in numbers) > max_value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _checked_ids(path: str, names: list[str]) -> np.ndarray:
    ids = np.array(names, str)
    unique, count = np.unique(ids, return_counts=True)
    if count.max() > 1 or "" in unique:
        what = "is empty" if "" in unique else f"{unique[count > 1][0]} stands twice"
        raise UserError(f"{path}: line 1: every column needs its own node id, but one {what}")
    return ids


def _npy_array(path: str) -> np.ndarray:
    return _two_dimensional(path, read_npy(existing_file(path)))


def _npz_array(path: str, key: str, feature: int) -> np.ndarray:
    arrays = read_npz(existing_file(path))
    array = arrays.get(key)
    if array is None:
        listing = ", ".join(f"{name} {'object array' if found is None else found.shape}" for name, found in arrays.items())
        what = "is an object array, which is refused; save it as float32" if key in arrays else "is not there; set data.key"
        raise UserError(f"{path}: array {key!r} {what} (found: {listing})")
    if array.ndim == 3:
        if feature >= array.shape[2]:
            raise UserError(f"{path}: data.feature={feature}, but array {key!r} {array.shape} has features 0-{array.shape[2] - 1}")
        array = array[:, :, feature]
    return _two_dimensional(path, array)


def _two_dimensional(path: str, array: np.ndarray) -> np.ndarray:
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise UserError(f"{path}: numbers of shape (rows, nodes) expected, found {array.dtype} {array.shape}")
    return array


def read_weather(path: str, time: np.ndarray, timezone: str) -> np.ndarray:
    """(R, 3) float32 degC, km/h, mm/h: the latest record at or before each row, NaN before the first.

    The CSV holds a time and any of the three columns; a column it lacks is 0.
    """
    header = [name.strip() for name in csv_lines(path)[0].split(",")]
    stamp = next((name for name in ("time", "timestamp") if name in header), None)
    if stamp is None or not any(name in header for name in WEATHER):
        raise UserError(f"{path}: columns missing: time and at least one of {', '.join(WEATHER)}; found: {', '.join(header)}")
    table = read_table(path, (stamp, *WEATHER), (stamp,), timezone)
    stamps = table.stamps(stamp, timezone)
    order = np.argsort(stamps, kind="stable")
    latest = np.searchsorted(stamps[order], time, side="right") - 1
    weather = np.zeros((len(time), len(WEATHER)), np.float32)
    for column, name in enumerate(WEATHER):
        if name in table.columns:
            values = table.numbers(name)[order]
            weather[:, column] = np.where(latest >= 0, values[np.maximum(latest, 0)], np.nan)
    return weather


def read_locations(path: str, ids: np.ndarray) -> np.ndarray:
    """(N, 2) float32 lat, lon in degrees from a CSV node,lat,lon; NaN for a node it lacks."""
    table = read_table(path, ("node", "lat", "lon"), ("node", "lat", "lon"), "")
    places = np.stack([table.numbers("lat"), table.numbers("lon")], axis=1)
    known = {str(i): place for i, place in zip(table.texts("node"), places, strict=True)}
    if not any(str(i) in known for i in ids):
        raise UserError(f"{path}: none of its nodes ({', '.join(list(known)[:3])}) is among the data's ({', '.join(ids[:3])})")
    return np.array([known.get(str(i), np.full(2, np.nan)) for i in ids], np.float32)
