"""Fleet files of any kind as Arrow tables of the declared columns, whole or piece by piece."""

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jaxtrain.data.traffic_tables import existing_file
from jaxtrain.errors import UserError

KINDS = "parquet, csv, csv.gz, jsonl, json, a folder of parquet files or one that scripts/prepare_fleet.py wrote"
SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".csv.gz": "csv", ".jsonl": "jsonl", ".json": "json"}
RECORDS = ("records", "training_samples")  # keys of a JSON object that hold the list
PREPARED = "fleet.json"  # what marks a folder of scripts/prepare_fleet.py
BLOCK_BYTES = 1 << 24  # of CSV text per piece
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class File:
    """One file: its format, and the columns that the folder names `key=value` above it give."""

    path: str
    format: str
    partitions: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Rows of a file. table: pyarrow.Table of the wanted columns; first_row: number of its first row, from 0."""

    path: str
    table: Any
    first_row: int
    others: tuple[str, ...]  # columns of the file that nobody wants


def files(path: str | Sequence[str], format: str) -> list[File]:
    """The files that a path, or a list of them, stands for. Raises UserError where one is missing or of an unknown kind."""
    found = []
    for one in [path] if isinstance(path, str) else path:
        found += _folder(one) if Path(one).is_dir() else [_file(one, format)]
    return found


def compute() -> Any:
    """pyarrow.compute, whose functions are made when it is imported (a type checker cannot see them)."""
    import pyarrow.compute

    return pyarrow.compute


def is_prepared(path: str | Sequence[str]) -> bool:
    return isinstance(path, str) and (Path(path) / PREPARED).is_file()


def _file(path: str, format: str) -> File:
    name = existing_file(path).name.lower()
    if format == "prepared":
        raise UserError(f"{path}: is no folder that scripts/prepare_fleet.py wrote; set data.format=auto")
    kind = next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)
    if format != "auto":
        kind = format
    if kind is None:
        raise UserError(f"{path}: unknown suffix {Path(path).suffix!r}; known are {KINDS}")
    return File(path, kind)


def _folder(path: str) -> list[File]:
    """All parquet files below a folder, hidden ones left out, in the order of their names."""
    root = Path(path)
    found = []
    for file in sorted(root.rglob("*.parquet")):
        parts = file.relative_to(root).parts
        if file.is_file() and not any(part.startswith((".", "_")) for part in parts):
            pairs = (part.partition("=") for part in parts[:-1] if "=" in part)
            values = tuple((key, None if value == NO_PARTITION else unquote(value)) for key, _, value in pairs)
            found.append(File(str(file), "parquet", values))
    if not found:
        raise UserError(f"{path}: the folder holds no .parquet file; known are {KINDS}")
    return found


def pieces(file: File, wanted: Sequence[str], whole: bool) -> Iterator[Piece]:
    """The rows of a file at once, or in pieces that fit into memory (row groups; blocks of CSV; JSON is never cut).

    Raises UserError for a damaged file and for missing columns.
    """
    import pyarrow as pa

    read = {"parquet": _parquet, "csv": _csv, "jsonl": _json_lines, "json": _json}[file.format]
    inside = [name for name in wanted if name not in dict(file.partitions)]
    row = 0
    try:
        for names, table in read(file, inside, whole):
            for name, value in file.partitions:
                if name in wanted:
                    table = table.append_column(name, pa.array([value], pa.string()).take(pa.array([0] * len(table), pa.int64())))
            yield Piece(file.path, table, row, tuple(name for name in names if name not in wanted))
            row += len(table)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file.path}: not a readable {file.format} file ({' '.join(str(error).split())}); write it again") from None


def _check_columns(file: File, found: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        near = _near(missing[0], found)
        raise UserError(f"{file.path}: columns missing: {', '.join(missing)}{near}; found: {', '.join(found)}; declare the file's columns "
                        "in config.data")  # fmt: skip
    twice = [name for name in wanted if list(found).count(name) > 1]
    if twice:
        raise UserError(f"{file.path}: column {twice[0]} stands in the file twice; rename one")


def _near(name: str, found: Sequence[str]) -> str:
    lowered = {column.lower(): column for column in found}
    match = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.4)
    return f" (closest: {lowered[match[0]]})" if match else ""


Tables = Iterator[tuple[Sequence[str], Any]]  # (names in the file, table of the wanted columns)


def _parquet(file: File, wanted: Sequence[str], whole: bool) -> Tables:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file.path, page_checksum_verification=True) as source:
        names = source.schema_arrow.names
        _check_columns(file, names, wanted)
        if whole:
            yield names, source.read(columns=list(wanted))
        else:
            for group in range(source.metadata.num_row_groups):
                yield names, source.read_row_group(group, columns=list(wanted))


def _csv(file: File, wanted: Sequence[str], whole: bool) -> Tables:
    """Every column as text: only then can a fault name the cell."""
    import pyarrow as pa
    from pyarrow import csv

    if not Path(file.path).stat().st_size:
        raise UserError(f"{file.path}: the file is empty")
    try:
        with csv.open_csv(file.path) as opened:
            names = opened.schema.names
        _check_columns(file, names, wanted)
        convert = csv.ConvertOptions(include_columns=list(wanted), column_types={name: pa.string() for name in wanted})
        if whole:
            yield names, csv.read_csv(file.path, convert_options=convert)
        else:
            with csv.open_csv(file.path, csv.ReadOptions(block_size=BLOCK_BYTES), convert_options=convert) as opened:
                for batch in opened:
                    yield names, pa.Table.from_batches([batch])
    except pa.ArrowInvalid:
        csv.read_csv(file.path, csv.ReadOptions(use_threads=False))  # the message of this reader names the line
        raise


def _json_lines(file: File, wanted: Sequence[str], whole: bool) -> Tables:
    records = []
    with open(file.path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                records.append(_parsed(file, line, f"line {number}"))
    yield _records(file, records, wanted)


def _json(file: File, wanted: Sequence[str], whole: bool) -> Tables:
    content = _parsed(file, Path(file.path).read_text(encoding="utf-8-sig"), "")
    if isinstance(content, dict):
        content = next((content[key] for key in RECORDS if key in content), content)
    yield _records(file, content, wanted)


def _parsed(file: File, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        where = f" {place}:" if place else ""
        raise UserError(f"{file.path}:{where} not valid JSON ({error}); write it again") from None


def _records(file: File, content: Any, wanted: Sequence[str]) -> tuple[Sequence[str], Any]:
    import pyarrow as pa

    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        raise UserError(f"{file.path}: a list of records expected, or an object with one under {' or '.join(map(repr, RECORDS))}")
    if not content:
        raise UserError(f"{file.path}: the table has no rows")
    names = list(dict.fromkeys(name for record in content for name in record))
    _check_columns(file, names, wanted)
    return names, pa.table({name: _array([record.get(name) for record in content]) for name in wanted})


def _array(values: list[Any]) -> Any:
    """The values as Arrow reads them, as text where they are of several kinds."""
    import pyarrow as pa

    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        array = None
    if array is not None and not pa.types.is_nested(array.type):
        return array
    return pa.array([None if v is None else str(v) for v in values], pa.string())
