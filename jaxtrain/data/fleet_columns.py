"""Cells of fleet files as NumPy columns: numbers, categories and groups, each checked, with faults that name the cell."""

from typing import Any

import numpy as np

from jaxtrain.data.fleet_config import DataConfig, roles
from jaxtrain.data.fleet_grid import Category, Columns, sorting, taken
from jaxtrain.data.fleet_tables import Piece, compute
from jaxtrain.data.fleet_time import check_stamps, first_true, read_time, snapped
from jaxtrain.data.traffic_time import Label, show
from jaxtrain.errors import UserError

MISSING = ("", "null", "NaN", "nan")  # texts that mean "missing"
LARGEST_VOCABULARY = 32_767  # codes of a row are int16


def read_columns(config: DataConfig, piece: Piece, phase: int | None) -> tuple[Columns, int]:
    """(the piece's columns sorted by group and time, the phase of its grid: seconds that stamps lie after multiples of the step).

    phase: of an earlier piece; None = the one that most stamps have
    Raises UserError naming row, column and value.
    """

    def label(row: int) -> str:
        return f"{piece.path}: row {piece.first_row + row + 1}"

    stamps = read_time(config, _plain(piece.table[config.time]), label)
    group, names = _groups(config, piece, label)
    order = sorting(group, stamps.micro)
    check_stamps(config, piece.path, taken(group, order), taken(stamps.micro, order))
    time, phase = snapped(config, stamps.micro, phase, label)

    def place(row: int) -> str:
        return f"{label(row)}, group {names[group[row]]}, {show(time[row])} UTC"

    role = roles(config)
    numbers = {}
    for name in config.targets + config.observed_real + config.known_real + config.static_real:
        values = read_numbers(piece.table[name], name, piece.path, label)
        numbers[name] = taken(checked(config, name, values, place), order)
    categories = {}
    for name in role.categorical + role.static_categorical:
        found = read_category(piece.table[name], name, piece.path, label)
        categories[name] = Category(taken(found.codes, order), found.texts)
    notes = (f"{config.time} carries no time zone and is read as UTC",) if stamps.naive else ()
    if piece.others:
        notes += (f"columns without a role are not read: {', '.join(piece.others)}",)

    rows = np.arange(len(time)) if order is None else order

    def sorted_label(row: int) -> str:
        return label(int(rows[row]))

    time, group = taken(time, order), taken(group, order)
    return Columns(piece.path, time, group, names, numbers, categories, sorted_label, notes, piece.first_row + rows), phase


def read_numbers(column: Any, name: str, path: str, label: Label) -> np.ndarray:
    """(n,) float32 or float64, NaN where empty. Raises UserError for text and for types that hold no numbers."""
    import pyarrow as pa

    pc = compute()
    column = _plain(column)
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if _is_text(kind):
        column = _without_missing(column)
        try:
            column = column.cast(pa.float64())
        except pa.ArrowInvalid:
            wrong = pc.fill_null(pc.is_in(column, pa.array([t for t in pc.unique(column).to_pylist() if not _is_number(t)], kind)), False)
            row = first_true(wrong)
            raise UserError(f"{label(row)}, {name}: {column[row].as_py()!r} is not a number ({pc.sum(wrong).as_py()} such rows); "
                            "leave missing values empty") from None  # fmt: skip
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise UserError(f"{path}: column {name} holds {kind}, numbers are expected; declare it in another role of config.data")
    if not pa.types.is_float32(column.type):
        column = column.cast(pa.float64(), safe=False)
    return column.to_numpy()


def _is_number(text: str | None) -> bool:
    import pyarrow as pa

    try:
        pa.array([text], pa.string()).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def checked(config: DataConfig, name: str, values: np.ndarray, place: Label) -> np.ndarray:
    """The values, clipped where asked for. Raises UserError for infinities, values outside `bounds` and negatives under log1p."""

    def refuse(wrong: np.ndarray, why: str) -> None:
        rows = np.flatnonzero(wrong)
        if len(rows):
            raise UserError(f"{place(int(rows[0]))}: {name} is {values[rows[0]]:g} ({len(rows)} such rows), {why}")

    refuse(np.isinf(values), "which is no measurement; leave missing values empty")
    low, high = config.bounds.get(name, (None, None))
    if config.clip and (low is not None or high is not None):
        values = np.clip(values, low, high)
    wrong = np.zeros(len(values), bool)
    if low is not None:
        wrong |= values < low
    if high is not None:
        wrong |= values > high
    refuse(wrong, f"outside data.bounds ({low} to {high}); set data.clip=True or fix the unit")
    if config.transform.get(name) == "log1p":
        refuse(values < 0, f"but its transform is log1p; correct the values, or set data.transform.{name}=identity")
    return values


def check_unit(config: DataConfig, path: str, largest: dict[str, float]) -> None:
    """Raises UserError for a percentage that never passes 1."""
    for name, value in largest.items():
        if config.bounds.get(name) == (0, 100) and 0 < value <= 1:
            raise UserError(f"{path}: {name} never passes {value:g} although data.bounds says 0 to 100; are these fractions? multiply them "
                            f"by 100, or set data.bounds.{name} to (0, 1)")  # fmt: skip


def read_category(column: Any, name: str, path: str, label: Label) -> Category:
    """Codes of text, whole numbers or categories; texts in alphabetical order. Raises UserError for other types."""
    import pyarrow as pa

    encoded = column.unify_dictionaries().combine_chunks()
    encoded = encoded if pa.types.is_dictionary(encoded.type) else encoded.dictionary_encode()
    index = encoded.indices.cast(pa.int64()).fill_null(-1).to_numpy()
    used = np.bincount(index + 1, minlength=len(encoded.dictionary) + 1)[1:] > 0
    texts = _texts(encoded.dictionary, name, path, lambda entry: label(int(np.flatnonzero(index == entry)[0])))
    vocabulary = sorted({text for text, there in zip(texts, used, strict=True) if there and text is not None})
    if len(vocabulary) > LARGEST_VOCABULARY:
        raise UserError(f"{path}: column {name} has {len(vocabulary)} categories, more than {LARGEST_VOCABULARY}; is it a number?")
    code = dict.fromkeys(texts, 0) | {text: 1 + number for number, text in enumerate(vocabulary)}
    return Category(np.array([*(code[text] for text in texts), 0], np.int32)[index], tuple(vocabulary))  # index -1 = the last, 0


def _texts(values: Any, name: str, path: str, label: Label) -> list[str | None]:
    """Distinct values as trimmed text, None where missing."""
    import pyarrow as pa

    pc = compute()
    kind = values.type
    if pa.types.is_floating(kind):  # whole numbers with gaps arrive as floats
        values = pc.if_else(pc.is_nan(values), None, values)
        try:
            values = values.cast(pa.int64())
        except pa.ArrowInvalid:
            entry = first_true(pc.not_equal(values, pc.floor(values)))
            raise UserError(f"{label(entry)}, {name}: {values[entry].as_py()} is no category; use text or whole numbers") from None
    elif not (pa.types.is_null(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind)):
        raise UserError(f"{path}: column {name} holds {kind}; categories are text or whole numbers")
    return _without_missing(values.cast(pa.string())).to_pylist()


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _groups(config: DataConfig, piece: Piece, label: Label) -> tuple[np.ndarray, tuple[str, ...]]:
    """((n,) codes, names in alphabetical order), several columns joined by "/"."""
    if not config.groups:
        return np.zeros(len(piece.table), np.int64), ("all",)
    found = [read_category(piece.table[name], name, piece.path, label) for name in config.groups]
    code = np.zeros(len(piece.table), np.int64)
    for name, category in zip(config.groups, found, strict=True):
        empty = np.flatnonzero(category.codes == 0)
        if len(empty):
            raise UserError(f"{label(int(empty[0]))}, {name} is empty ({len(empty)} such rows); every row needs its group")
        code = code * len(category.texts) + category.codes - 1
    if len(found) == 1:
        return code, found[0].texts
    used, index = np.unique(code, return_inverse=True)
    parts = []
    for category in reversed(found):
        parts.append([category.texts[i] for i in used % len(category.texts)])
        used = used // len(category.texts)
    names = ["/".join(texts) for texts in zip(*reversed(parts), strict=True)]
    order = np.argsort(np.array(names, str), kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[index], tuple(names[i] for i in order)


def _plain(column: Any) -> Any:
    """A column of values where it was one of dictionary codes."""
    import pyarrow as pa

    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _without_missing(column: Any) -> Any:
    import pyarrow as pa

    pc = compute()
    column = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.is_in(column, pa.array(MISSING, column.type)), None, column)
