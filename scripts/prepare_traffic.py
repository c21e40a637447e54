"""Turn raw snapshot folders into one `edges` parquet file.

    python scripts/prepare_traffic.py --runs data/runs --output data/traffic.parquet

A snapshot is a folder `run_YYYYMMDD_HHMMSS` with `traffic_edges.json`, a list of records with node_a_id, node_b_id,
speed_kmh and optionally timestamp, distance_km, duration_min, lat_a, lon_a, lat_b, lon_b; and optionally
`weather_snapshot.json`, a record or a list of records with temperature_c, wind_speed_kmh, precipitation_mm (their
mean is the snapshot's weather). Where a record has no timestamp, the folder's name gives the local time.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jaxtrain.errors import UserError

KEYS = ("node_a_id", "node_b_id")
NUMBERS = ("speed_kmh", "distance_km", "duration_min", "lat_a", "lon_a", "lat_b", "lon_b")
WEATHER = ("temperature_c", "wind_speed_kmh", "precipitation_mm")
EDGES_FILE, WEATHER_FILE = "traffic_edges.json", "weather_snapshot.json"


def snapshot_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of one snapshot; speeds that are null stay null. Raises UserError naming file and record."""
    started = folder_time(folder)
    path = folder / EDGES_FILE
    weather = mean_weather(records(folder / WEATHER_FILE)) if (folder / WEATHER_FILE).is_file() else dict.fromkeys(WEATHER)
    rows = []
    for number, record in enumerate(records(path)):
        missing = [key for key in (*KEYS, "speed_kmh") if key not in record]
        if missing:
            raise UserError(f"{path}: record {number}: keys missing: {', '.join(missing)}; found: {', '.join(record)}")
        row: dict[str, Any] = {"run_id": folder.name, "timestamp": record.get("timestamp") or started}
        row |= {key: str(record[key]) for key in KEYS}
        row |= {key: as_number(record.get(key), f"{path}: record {number}, {key}") for key in NUMBERS}
        rows.append(row | weather)
    return rows


def folder_time(folder: Path) -> str:
    """ISO local time of a folder `run_YYYYMMDD_HHMMSS`."""
    try:
        return datetime.strptime(folder.name, "run_%Y%m%d_%H%M%S").isoformat()
    except ValueError:
        raise UserError(f"{folder}: not a snapshot; name the folder run_YYYYMMDD_HHMMSS") from None


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON file: a list of them, or one alone."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; every snapshot folder needs it") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); collect the snapshot again or remove its folder") from None
    content = [content] if isinstance(content, dict) else content
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        raise UserError(f"{path}: a list of records expected")
    return content


def mean_weather(found: Iterable[dict[str, Any]]) -> dict[str, float | None]:
    """Mean of the records that hold a value, by column; None without any."""
    found = list(found)
    means: dict[str, float | None] = {}
    for name in WEATHER:
        values = [v for v in (as_number(record.get(name), f"{WEATHER_FILE}: {name}") for record in found) if v is not None]
        means[name] = math.fsum(values) / len(values) if values else None
    return means


def as_number(value: Any, place: str) -> float | None:
    """A float; None for null and NaN."""
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"{place}: {value!r} is not a number") from None
    return None if math.isnan(number) else number


def write(rows: Sequence[dict[str, Any]], output: Path) -> None:
    """Whole or not at all: a temporary file beside it, then a rename."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [(name, pa.string()) for name in ("run_id", "timestamp", *KEYS)]
    schema = pa.schema(texts + [(name, pa.float64()) for name in (*NUMBERS, *WEATHER)])
    table = pa.Table.from_pylist(list(rows), schema=schema)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        pq.write_table(table, temporary)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Turn raw snapshot folders into one `edges` parquet file.")
    parser.add_argument("--runs", type=Path, required=True, help="folder that holds run_YYYYMMDD_HHMMSS folders")
    parser.add_argument("--output", type=Path, required=True, help="parquet file to write")
    options = parser.parse_args(arguments)
    try:
        folders = sorted(options.runs.glob("run_*"))
        if not folders:
            raise UserError(f"{options.runs}: holds no folder run_YYYYMMDD_HHMMSS")
        rows = [row for folder in folders for row in snapshot_rows(folder)]
        write(rows, options.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename2 or error.filename or options.output}: {error.strerror or error}; nothing was written", file=sys.stderr)
        return 2
    edges = len({(row["node_a_id"], row["node_b_id"]) for row in rows})
    print(f"{options.output}: {len(rows)} rows, {len(folders)} snapshots, {edges} directed edges")
    return 0


if __name__ == "__main__":
    sys.exit(main())
