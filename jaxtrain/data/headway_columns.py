"""Columns of parquet and CSV tables as codes, instants and wall times; faults name the file, the row and the value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data.headway_time import wall_minutes
from jaxtrain.data.traffic_tables import existing_file
from jaxtrain.errors import UserError

KINDS = "a table .parquet, .csv or .csv.gz"


@dataclass(frozen=True)
class Columns:
    """A table whose columns answer to the names of this system; `names` maps them to those of the file."""

    path: str
    table: Any  # pyarrow.Table
    names: Mapping[str, str]
    found: Sequence[str]  # all columns of the file
    first_row: int  # what the first row is called: 0 in parquet, 2 (the line) in CSV

    def __len__(self) -> int:
        return self.table.num_rows

    def __contains__(self, name: str) -> bool:
        return self.names.get(name, name) in self.found

    def place(self, row: int, name: str) -> str:
        """'file.csv: line 7, station', as a person counts."""
        what = f"line {row + self.first_row}" if self.first_row else f"row {row}"
        return f"{self.path}: {what}, {self.names.get(name, name)}"

    def require(self, *names: str) -> None:
        """Raises UserError with the columns that are missing and those found."""
        missing = [self.names.get(name, name) for name in names if name not in self]
        if missing:
            raise UserError(f"{self.path}: columns missing: {', '.join(missing)}; found: {', '.join(self.found)}; "
                            "map with data.columns")  # fmt: skip

    def column(self, name: str) -> Any:
        """The pyarrow column."""
        return self.table[self.names.get(name, name)]

    def codes(self, name: str, optional: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """((n,) int32 code, (m,) unicode names in ascending order); an empty cell is -1 if optional, else a UserError."""
        import pyarrow as pa

        column = self.column(name)
        if pa.types.is_timestamp(column.type):  # midnights of a date column
            column = column.cast(pa.date32(), safe=False)
        encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
        names = np.array([text.strip() for text in encoded.dictionary.to_pylist()], np.str_)
        unique, code = np.unique(names, return_inverse=True)
        code = np.append(code, -1).astype(np.int32)  # the last one stands for null
        codes = code[encoded.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)]
        if "" in unique:
            codes, unique = np.where(codes > 0, codes - 1, -1).astype(np.int32), unique[1:]
        if not optional and (codes < 0).any():
            raise UserError(f"{self.place(int(np.argmax(codes < 0)), name)} is empty; every row needs one")
        return codes, unique

    def instants(self, name: str) -> np.ndarray:
        """(n,) float64 UTC epoch seconds; raises UserError for a time without zone."""
        import pyarrow as pa

        column = self.column(name)
        if column.null_count:
            raise UserError(f"{self.place(column.is_null().to_pylist().index(True), name)} is empty; every row needs a time")
        if pa.types.is_timestamp(column.type):
            if column.type.tz is None:
                raise UserError(f"{self.place(0, name)}: {column[0]} has no time zone; store UTC or add an offset")
        elif not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
            raise UserError(f"{self.place(0, name)}: {column[0]} is no time but {column.type}; store times with a zone")
        else:
            try:
                column = column.cast(pa.timestamp("us", tz="UTC"))
            except pa.ArrowInvalid:  # a fault, or a form that pyarrow does not know: cell by cell, which can say where
                return np.array([self._instant(text, row, name) for row, text in enumerate(column.to_pylist())])
        return column.cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.int64()).to_numpy() / 1e6

    def _instant(self, text: str, row: int, name: str) -> float:
        try:
            stamp = datetime.fromisoformat(text.strip().replace(" UTC", "Z"))  # as some databases write it
        except ValueError:
            raise UserError(f"{self.place(row, name)}: {text!r} is not a time; write it as 2025-10-06T07:30:00Z") from None
        if stamp.tzinfo is None:
            raise UserError(f"{self.place(row, name)}: {text} has no time zone; store UTC or add an offset")
        return stamp.astimezone(UTC).timestamp()

    def dates(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """((n,) int32 code, (m,) unicode YYYY-MM-DD, ascending); the file may also write 20251006, as timetables do."""
        codes, texts = self.codes(name)
        found = []
        for code, text in enumerate(texts):
            try:
                found.append(date.fromisoformat(text).isoformat())
            except ValueError:
                row = int(np.argmax(codes == code))
                raise UserError(f"{self.place(row, name)}: {str(text)!r} is not a date; write it as 2025-10-06") from None
        names, code = np.unique(np.array(found, np.str_), return_inverse=True)  # one day may be written in two ways
        return code.astype(np.int32)[codes], names

    def walls(self, name: str, optional: bool = False) -> np.ndarray:
        """(n,) float64 local minutes of `HH:MM[:SS]`, which may pass 24:00; NaN for an empty cell."""
        codes, texts = self.codes(name, optional)
        minutes = np.full(len(texts) + 1, np.nan)
        for code, text in enumerate(texts):
            try:
                minutes[code] = wall_minutes(str(text))
            except ValueError:
                row = int(np.argmax(codes == code))
                raise UserError(f"{self.place(row, name)}: {str(text)!r} is not a local time; write it as 09:24 or 25:10:30") from None
        return minutes[codes]


def read_columns(path: str, names: Mapping[str, str], wanted: Sequence[str]) -> Columns:
    """The wanted columns that the file has. Raises UserError for a file that is missing, damaged, empty or of another kind."""
    lower = existing_file(path).name.lower()
    if lower.endswith(".parquet"):
        table, found = _parquet(path, [names.get(name, name) for name in wanted])
    elif lower.endswith((".csv", ".csv.gz")):
        table, found = _csv(path)
    else:
        raise UserError(f"{path}: unknown suffix {Path(path).suffix!r}; expected {KINDS}")
    if not table.num_rows:
        raise UserError(f"{path}: the table has no rows; expected {KINDS} with a row per arrival, snapshot, station or departure")
    return Columns(path, table, names, found, 0 if lower.endswith(".parquet") else 2)


def _parquet(path: str, wanted: Sequence[str]) -> tuple[Any, list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            found = file.schema_arrow.names
            return file.read(columns=[name for name in found if name in wanted] or found[:1]), found
    except (pa.ArrowException, OSError, UnicodeDecodeError) as fault:
        raise UserError(f"{path}: not a readable parquet file ({_reason(fault)}); expected {KINDS}") from None


def _csv(path: str) -> tuple[Any, list[str]]:
    """Every cell as text: a trip 007 keeps its zeros. Columns may also be separated by semicolons or tabs."""
    import pyarrow as pa
    from pyarrow import csv

    try:
        with csv.open_csv(path) as file:
            found = file.schema.names
        separator = next((mark for mark in ";\t" if len(found) == 1 and mark in found[0]), ",")
        separated = csv.ParseOptions(delimiter=separator)
        if separator != ",":
            with csv.open_csv(path, parse_options=separated) as file:
                found = file.schema.names
        texts = csv.ConvertOptions(column_types={name: pa.string() for name in found})
        return csv.read_csv(path, parse_options=separated, convert_options=texts), found
    except (pa.ArrowException, OSError, UnicodeDecodeError) as fault:
        remedy = "save it as UTF-8" if "UTF8" in str(fault) else f"expected {KINDS}"
        raise UserError(f"{path}: not a readable CSV file ({_reason(fault)}); {remedy}") from None


def _reason(fault: Exception) -> str:
    return " ".join(str(fault).split()) or type(fault).__name__
