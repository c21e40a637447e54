"""A small line's arrivals as rows of text, and files of them, for tests."""

import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from headway_lines import config

HEADER = ("arrival_time", "trip", "station", "direction", "service_date", "scheduled_origin_departure", "origin")
STATIONS = ("Abbey", "Bridge", "Court", "Dock")
RUN_MINUTES = 3.0  # between neighbours
LAG_MINUTES = 2.0  # from the scheduled departure to the first station

Row = dict[str, str]


def stamp(minutes: float, day: str = "2025-01-06") -> str:
    """UTC text of minutes after midnight of a date."""
    return (datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(minutes=minutes)).isoformat()


def wall(minutes: float) -> str:
    return f"{int(minutes) // 60:02d}:{int(minutes) % 60:02d}"


def train(
    departure: float, direction: str = "north", day: str = "2025-01-06", stations: tuple[str, ...] = STATIONS, late: float = 0.0
) -> list[Row]:
    """The stops of one train that leaves the first of `stations` (reversed for south) at `departure` minutes."""
    path = stations if direction == "north" else stations[::-1]
    return [
        {
            "arrival_time": stamp(departure + LAG_MINUTES + late + RUN_MINUTES * i, day), "trip": f"{direction}{departure:g}",
            "station": place, "direction": direction, "service_date": day,
            "scheduled_origin_departure": wall(departure), "origin": path[0],
        }
        for i, place in enumerate(path)
    ]  # fmt: skip


def days(number: int, first: str = "2025-01-06") -> list[str]:
    """Dates from a Monday on."""
    return [(datetime.fromisoformat(first) + timedelta(days=i)).date().isoformat() for i in range(number)]


def service(number: int = 1, every: float = 10, between: tuple[float, float] = (360, 540)) -> list[Row]:
    """Trains of `number` days, every so many minutes."""
    rows: list[Row] = []
    for day in days(number):
        for direction in ("north", "south"):
            minute = between[0]
            while minute < between[1]:
                rows += train(minute, direction, day)
                minute += every
    return rows


def write(path: Path, rows: list[Row], header: tuple[str, ...] = HEADER) -> str:
    """A .csv, .csv.gz or .parquet file of these columns."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in header}
        if "arrival_time" in columns and rows:
            columns["arrival_time"] = pa.array([datetime.fromisoformat(t) for t in columns["arrival_time"]], pa.timestamp("us", tz="UTC"))
        pq.write_table(pa.table(columns), path)
    else:
        text = "\n".join([",".join(header), *(",".join(row[name] for name in header) for row in rows)]) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def tables(folder: Path, rows: list[Row], **changes: Any):
    """(config, tables) of arrivals written to a CSV file."""
    from jaxtrain.data.headway_files import read

    changed = config(path=write(folder / "arrivals.csv", rows), **changes)
    return changed, read(changed)
