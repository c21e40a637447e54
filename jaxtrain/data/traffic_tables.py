"""CSV and parquet tables as named columns, with faults that name the line, the column and the value."""

import csv
import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data.traffic_time import localize, parse_stamps
from jaxtrain.errors import UserError


def existing_file(path: str) -> Path:
    """The file, or a UserError that names what lies near it."""
    file = Path(path)
    if file.is_file():
        return file
    if file.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it")
    if not file.parent.is_dir():
        raise UserError(f"{path}: not found; the folder {file.parent} does not exist")
    names = sorted(p.name for p in file.parent.iterdir() if p.is_file())
    near = difflib.get_close_matches(file.name, names, n=3, cutoff=0.3) or names[:3]
    raise UserError(f"{path}: not found; {file.parent} holds {', '.join(near) or 'no files'}")


def csv_lines(path: str) -> list[str]:
    """The lines of a text file without trailing empty ones."""
    try:
        lines = existing_file(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8; save the table as CSV") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{path}: the file is empty")
    return lines


def number(text: str) -> float:
    """A float; NaN for an empty cell. Raises ValueError."""
    return float(text) if text.strip() else math.nan


@dataclass(frozen=True)
class Table:
    """Columns of a file; a column is text (list) or an array."""

    path: str
    columns: dict[str, Any]
    first_line: int | None  # of row 0; None: rows have no lines (parquet)

    def label(self, row: int) -> str:
        return f"row {row}" if self.first_line is None else f"line {row + self.first_line}"

    def numbers(self, name: str) -> np.ndarray:
        """(rows,) float64, NaN where empty."""
        column = self.columns[name]
        if isinstance(column, np.ndarray):
            return column.astype(np.float64)
        values = np.empty(len(column))
        for row, text in enumerate(column):
            try:
                values[row] = number("" if text is None else text)
            except ValueError:
                raise UserError(f"{self.path}: {self.label(row)}, {name}: {text!r} is not a number") from None
        return values

    def texts(self, name: str) -> np.ndarray:
        """(rows,) unicode, never empty."""
        column = self.columns[name]
        texts = ["" if text is None else str(text).strip() for text in column]
        if "" in texts:
            raise UserError(f"{self.path}: {self.label(texts.index(''))}, {name} is empty")
        return np.array(texts, str)

    def stamps(self, name: str, timezone: str) -> np.ndarray:
        """(rows,) int64 local epoch seconds."""
        column = self.columns[name]
        if isinstance(column, np.ndarray):
            if np.issubdtype(column.dtype, np.datetime64):
                return column.astype("datetime64[s]").astype(np.int64)
            raise UserError(f"{self.path}: {self.label(0)}, {name}: {column[0]} is not a time; write datetimes or ISO text")
        return parse_stamps(["" if text is None else text for text in column], timezone, self.path, self.label)


def read_table(path: str, wanted: Iterable[str], required: Sequence[str], timezone: str) -> Table:
    """The wanted columns that are there. Raises UserError where a required one is missing or the table has no rows."""
    suffix = Path(path).suffix.lower()
    table = _parquet(path, wanted, required, timezone) if suffix == ".parquet" else _csv(path, wanted, required)
    if not len(table.columns[required[0]]):
        raise UserError(f"{path}: the table has no rows")
    return table


def _check_columns(path: str, found: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in found]
    if missing:
        raise UserError(f"{path}: columns missing: {', '.join(missing)}; found: {', '.join(found)}")


def _csv(path: str, wanted: Iterable[str], required: Sequence[str]) -> Table:
    reader = csv.reader(csv_lines(path))
    header = [name.strip() for name in next(reader)]
    _check_columns(path, header, required)
    keep = {name: header.index(name) for name in wanted if name in header}
    columns: dict[str, list[str]] = {name: [] for name in keep}
    for line, cells in enumerate(reader, start=2):
        if len(cells) != len(header):
            raise UserError(f"{path}: line {line}: {len(header)} columns expected, {len(cells)} found")
        for name, position in keep.items():
            columns[name].append(cells[position])
    return Table(path, columns, first_line=2)


def _parquet(path: str, wanted: Iterable[str], required: Sequence[str], timezone: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(existing_file(path), page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            _check_columns(path, names, required)
            table = file.read(columns=[name for name in wanted if name in names])
        columns = _parquet_columns(path, table, timezone)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable parquet file ({' '.join(str(error).split())}); write it again") from None
    _check_columns(path, list(columns), required)
    return Table(path, columns, first_line=None)


def _parquet_columns(path: str, table: Any, timezone: str) -> dict[str, Any]:
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name]
        kind = column.type
        if pa.types.is_null(kind):
            continue
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            if column.null_count:
                row = column.is_null().to_pylist().index(True)
                raise UserError(f"{path}: row {row}, {name} is empty; every row needs a time")
            seconds = column.cast(pa.timestamp("s", getattr(kind, "tz", None)), safe=False).cast(pa.int64()).to_numpy()
            local = localize(seconds, timezone, path) if getattr(kind, "tz", None) else seconds
            columns[name] = local.astype("datetime64[s]")
        elif pa.types.is_floating(kind) or (pa.types.is_integer(kind) and not column.null_count):
            columns[name] = column.to_numpy()
        else:
            columns[name] = [v.isoformat() if isinstance(v, datetime) else None if v is None else str(v) for v in column.to_pylist()]
    return columns
