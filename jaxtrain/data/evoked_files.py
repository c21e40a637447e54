"""Readers of record tables: Parquet, HDF5 and JSON as plain columns, with faults in one line."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data.evoked_config import LAYOUT, SAMPLE_RATE_HZ, SAMPLES, STATICS, UNITS
from jaxtrain.data.traffic_tables import existing_file
from jaxtrain.errors import UserError

WAVES = ("signal", "half_a", "half_b", "clean")
LABELS = ("class", "v_present", "v_latency_ms", "v_amplitude_uv", "threshold_db")
NAMES = ("patient_id", "ear", "record")
COLUMNS = (*WAVES, *STATICS, *LABELS, *NAMES)
SUFFIXES = (".parquet", ".h5")
CROP = "resample or crop to 10 ms at 20 kHz"


@dataclass(frozen=True)
class Table:
    """R rows by column name: waves (R, 200) float32, numbers (R,) float64 with NaN, texts (R,) unicode with ""."""

    path: str
    columns: Mapping[str, np.ndarray]
    found: tuple[str, ...]  # all names in the file
    attributes: Mapping[str, str]
    rows: int

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def place(self, row: int, name: str) -> str:
        return f"{self.path}: row {row}, {name}"

    def require(self, *names: str) -> None:
        """Raises UserError with the columns that are missing and those found."""
        missing = [name for name in names if name not in self]
        if missing:
            raise UserError(f"{self.path}: columns missing: {', '.join(missing)}; found: {', '.join(self.found)}; add them to the file")

    def numbers(self, name: str) -> np.ndarray:
        """(R,) float64; NaN everywhere without the column. Raises UserError for text."""
        column = self.columns.get(name)
        if column is None:
            return np.full(self.rows, np.nan)
        if column.dtype.kind == "U":
            row = int(np.argmax(column != ""))
            raise UserError(f"{self.place(row, name)}: {str(column[row])!r} is text; store numbers, with NaN or null where missing")
        return column

    def texts(self, name: str) -> np.ndarray:
        """(R,) unicode, whole numbers written without a point; "" where missing or without the column."""
        column = self.columns.get(name)
        if column is None:
            return np.full(self.rows, "")
        if column.dtype.kind == "U":
            return np.char.strip(column)
        return np.array([f"{value:.15g}" if value == value else "" for value in column])


def read_table(path: str, *, served: bool = False) -> Table:
    """The known columns of a file. served: JSON is read as well, which has no attributes. Raises UserError with one line."""
    file = existing_file(path)
    readers: dict[str, Callable[[str], Table]] = {".parquet": _read_parquet, ".h5": _read_hdf5}
    if served:
        readers[".json"] = _read_json
    if file.suffix in (".pkl", ".pickle", ".joblib"):
        raise UserError(f"{path}: pickles are not read; convert it with python scripts/convert_abr_pickle.py --input {path} --output "
                        f"{file.with_suffix('.parquet').name}")  # fmt: skip
    if file.suffix not in readers:
        raise UserError(f"{path}: unknown suffix '{file.suffix}'; expected {', '.join(readers)}")
    table = readers[file.suffix](path)
    if not table.rows:
        raise UserError(f"{path}: the table has no rows; give a file with records")
    if file.suffix != ".json":
        _check_attributes(table)
    return table


def _check_attributes(table: Table) -> None:
    rate, units, layout = (table.attributes.get(name) for name in ("sample_rate_hz", "units", "layout"))
    if rate is None or not _is_number(rate, SAMPLE_RATE_HZ):
        raise UserError(f"{table.path}: sample_rate_hz is {rate or 'absent from the file attributes'}, expected {SAMPLE_RATE_HZ}; {CROP}"
                        " and store the attribute")  # fmt: skip
    if units not in UNITS:
        raise UserError(f"{table.path}: units is {units or 'absent from the file attributes'}, expected {' or '.join(UNITS)}; store it")
    if layout not in (None, LAYOUT):
        raise UserError(f"{table.path}: layout is {layout}, expected {LAYOUT}; write the file again in this layout")


def _is_number(text: str, value: float) -> bool:
    try:
        return float(text) == value
    except ValueError:
        return False


def _check_length(path: str, name: str, lengths: np.ndarray) -> None:
    wrong = lengths != SAMPLES
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(f"{path}: row {row}, {name}: {lengths[row]} samples, expected {SAMPLES} (so in {wrong.sum()} rows); {CROP}")


def _read_parquet(path: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            twice = sorted({name for name in schema.names if name in COLUMNS and schema.names.count(name) > 1})
            if twice:
                raise UserError(f"{path}: columns that stand twice: {', '.join(twice)}; keep one of each")
            table = file.read([name for name in schema.names if name in COLUMNS])
    except (pa.ArrowException, OSError) as fault:
        raise UserError(f"{path}: not a readable Parquet file ({_line(fault)}); write it again") from None
    attributes = {k.decode(errors="replace"): v.decode(errors="replace") for k, v in (schema.metadata or {}).items()}
    columns = {name: _arrow_column(path, name, table[name]) for name in table.column_names}
    return Table(path, columns, tuple(schema.names), attributes, table.num_rows)


def _arrow_column(path: str, name: str, column: Any) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    call = pc.call_function
    kind = column.type
    try:
        if name in WAVES:
            if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
                raise UserError(f"{path}: row 0, {name}: holds {kind}, expected a list of {SAMPLES} float32; {CROP}")
            _check_length(path, name, pc.fill_null(call("list_value_length", [column]), 0).to_numpy())
            return call("list_flatten", [column]).cast(pa.float32()).to_numpy().reshape(-1, SAMPLES)
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            return np.array(pc.fill_null(column, "").to_pylist(), np.str_)
        if pa.types.is_null(column.type):
            return np.full(len(column), np.nan)
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)
    except pa.ArrowException as fault:
        raise UserError(f"{path}: {name}: {kind} cannot be read ({_line(fault)}); store numbers or text") from None


def _read_hdf5(path: str) -> Table:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            found = tuple(file)
            attributes = {name: _text(value) for name, value in file.attrs.items()}
            items = {name: file[name] for name in found if name in COLUMNS}
            arrays = {name: np.asarray(item[()]) for name, item in items.items() if isinstance(item, h5py.Dataset)}
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as fault:
        raise UserError(f"{path}: not a readable HDF5 file ({_line(fault)}); write it again") from None
    rows = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise UserError(f"{path}: datasets of different length: {', '.join(f'{k} {n}' for k, n in rows.items())}; give one row a record")
    columns = {name: _plain_column(path, name, array) for name, array in arrays.items()}
    return Table(path, columns, found, attributes, next(iter(rows.values()), 0))


def _plain_column(path: str, name: str, array: np.ndarray) -> np.ndarray:
    if name in WAVES:
        lengths = np.full(len(array), array.shape[1] if array.ndim == 2 else 0)
        if array.dtype.kind not in "fiu" or array.ndim != 2:
            raise UserError(f"{path}: row 0, {name}: holds {array.dtype} of shape {array.shape}, expected (records, {SAMPLES}); {CROP}")
        _check_length(path, name, lengths)
        return array.astype(np.float32, copy=False)
    if array.ndim != 1:
        raise UserError(f"{path}: {name}: shape {array.shape}, expected one value a record")
    if array.dtype.kind in "SO":
        return np.array([_text(value) for value in array], np.str_)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: {name}: {array.dtype} cannot be read; store numbers or text")
    values = array.astype(np.float64)
    if name in LABELS[:2] and array.dtype.kind == "i":
        values[values == -1] = np.nan  # how integers say null
    return values


def _read_json(path: str) -> Table:
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise UserError(f"{path}: not valid JSON ({_line(fault)}); expected a list of records") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f'{path}: expected a list of records {{"patient_id", "static": [age, level, rate, fmp], "signal": [{SAMPLES}]}}')
    entries = [_with_statics(path, row, entry) for row, entry in enumerate(entries)]
    found = tuple(dict.fromkeys(name for entry in entries for name in entry))
    columns = {name: _json_column(path, name, [entry.get(name) for entry in entries]) for name in found if name in COLUMNS}
    return Table(path, columns, found, {}, len(entries))


def _with_statics(path: str, row: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    static = entry.get("static", [None] * len(STATICS))
    if not isinstance(static, list) or len(static) != len(STATICS):
        raise UserError(f"{path}: row {row}, static: expected [age, level, rate, fmp] with null where missing, got {static!r:.60}")
    return {**{key: value for key, value in entry.items() if key != "static"}, **dict(zip(STATICS, static, strict=True))}


def _json_column(path: str, name: str, values: list[Any]) -> np.ndarray:
    if name in WAVES:
        _check_length(path, name, np.array([len(v) if isinstance(v, list) else 0 for v in values]))
        for row, wave in enumerate(values):
            if not all(v is None or (isinstance(v, (int, float)) and not isinstance(v, bool)) for v in wave):
                raise UserError(f"{path}: row {row}, {name}: holds what is no number; give {SAMPLES} numbers")
        return np.array([[_float(v) for v in wave] for wave in values]).astype(np.float32)
    if any(isinstance(value, str) for value in values):
        texts = ["" if value is None else str(value) for value in values]
        strange = [row for row, text in enumerate(texts) if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text)]
        if strange:
            raise UserError(f"{path}: row {strange[0]}, {name}: {texts[strange[0]]!r:.60} holds characters that are no text")
        return np.array(texts, np.str_)
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, (bool, int, float)):
            raise UserError(f"{path}: row {row}, {name}: {value!r:.60} is neither a number nor text")
    return np.array([_float(value) for value in values], np.float64)


def _float(value: Any) -> float:
    """NaN of null; a whole number too large for a float is infinite, which the checks refuse."""
    try:
        return np.nan if value is None else float(value)
    except OverflowError:
        return np.inf


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _line(fault: BaseException) -> str:
    return " ".join(str(fault).split())[:200] or type(fault).__name__
