"""Readers of a line's tables: arrivals, snapshots, stations and timetable, checked, with faults in one line."""

from dataclasses import replace

import numpy as np

from jaxtrain.data.headway_columns import Columns, read_columns
from jaxtrain.data.headway_config import DataConfig
from jaxtrain.data.headway_field import Tables, Timetable
from jaxtrain.data.headway_time import local_dates, midnights, show_local
from jaxtrain.errors import UserError

ARRIVALS = (
    "arrival_time", "trip", "station", "direction", "service_date", "scheduled_origin_departure", "origin", "event", "route",
)  # fmt: skip
DAY_TYPES = ("weekday", "saturday", "sunday")
OUTSIDE_HOURS = 6  # an arrival further outside its service day has a wrong date or zone
REPEAT_MINUTES = 30  # a trip that stops twice at a station within so much time is one stop


def read(config: DataConfig) -> Tables:
    """The tables of `config.path` and of the files beside it, checked. Raises UserError with one line."""
    tables = read_arrivals(config)
    if config.snapshots:
        tables = replace(tables, snapshots=read_snapshots(config))
    if config.stations:
        tables = replace(tables, order=read_stations(config))
    if config.timetable:
        timetable = read_timetable(config)
        unknown = sorted(set(timetable.direction.tolist()) - set(tables.directions.tolist()))
        if unknown:
            raise UserError(f"{config.timetable}: direction {', '.join(unknown)} is not one of {', '.join(tables.directions)} in "
                            f"{config.path}; give both the same names")  # fmt: skip
        tables = replace(tables, timetable=timetable)
    return tables


def read_arrivals(config: DataConfig) -> Tables:
    """One row per observed stop of a train; without order and timetable."""
    columns = read_columns(config.path, config.columns, ARRIVALS)
    columns.require("arrival_time", "trip", "station", "direction")
    rows = _chosen(columns, config)
    time = columns.instants("arrival_time")[rows]
    station, stations = _used(*columns.codes("station"), rows)
    direction, directions = _used(*columns.codes("direction"), rows)
    if len(directions) > 2:
        counts = ", ".join(f"{name} {n}" for name, n in zip(directions, np.bincount(direction), strict=True))
        raise UserError(f"{config.path}: a line has at most 2 directions, found {len(directions)} ({counts} rows); "
                        "filter with data.routes, or keep one line's rows")  # fmt: skip
    if "service_date" in columns:
        day, dates = _used(*columns.dates("service_date"), rows)
        _check_days(columns, config, rows, time, dates, day)
    else:
        names, day = np.unique(local_dates(time, config.timezone, config.day_start_minutes), return_inverse=True)
        day, dates = day.astype(np.int32), names.astype(np.str_)
    trip, trips = _used(*columns.codes("trip"), rows)
    trip = np.unique((day.astype(np.int64) * len(trips) + trip) * len(directions) + direction, return_inverse=True)[1].astype(np.int32)
    note = _check_repeats(columns, rows, time, trip, station)
    departure, origin, origins = np.full(len(rows), np.nan), np.full(len(rows), -1, np.int32), np.array([], np.str_)
    if "scheduled_origin_departure" in columns and "origin" in columns:
        departure = columns.walls("scheduled_origin_departure", optional=True)[rows]
        departure = departure + 1440 * (departure < config.day_start_minutes)  # past midnight in a service day
        origin, origins = _used(*columns.codes("origin", optional=True), rows)
    return Tables(config.path, dates, directions, stations, origins, time, day, trip, station, direction, departure, origin, notes=note)


def _chosen(columns: Columns, config: DataConfig) -> np.ndarray:
    """(n,) int64 rows that the filters of events and routes keep."""
    keep = np.ones(len(columns), bool)
    for name, wanted in (("event", config.events), ("route", config.routes)):
        if wanted:
            columns.require(name)
            codes, found = columns.codes(name, optional=True)
            kept = np.append(np.isin(found, wanted), False)[codes]
            if not kept.any():
                raise UserError(f"{columns.path}: no {name} is one of data.{name}s {wanted}; found: {', '.join(found[:10])}")
            keep &= kept
    if not keep.any():
        raise UserError(f"{columns.path}: no row is left by data.events and data.routes together; loosen one of them")
    return np.flatnonzero(keep)


def _used(codes: np.ndarray, names: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the rows kept, and only the names among them; -1 stays."""
    codes = codes[rows]
    used = np.zeros(len(names), bool)
    used[codes[codes >= 0]] = True
    return np.append(np.cumsum(used) - 1, -1)[codes].astype(np.int32), names[used]


def _check_days(columns: Columns, config: DataConfig, rows: np.ndarray, time: np.ndarray, dates: np.ndarray, day: np.ndarray) -> None:
    begin = (midnights(dates, config.timezone) + config.day_start_minutes * 60)[day]
    limit = OUTSIDE_HOURS * 3600
    wrong = (time < begin - limit) | (time > begin + 86_400 + limit)
    if wrong.any():
        at = int(np.argmax(wrong))
        found = local_dates(time[at : at + 1], config.timezone, config.day_start_minutes)[0]
        raise UserError(f"{columns.place(int(rows[at]), 'arrival_time')}: {show_local(time[at], config.timezone)} belongs to {found}, but "
                        f"service_date is {dates[day[at]]}; zone or service_date wrong?")  # fmt: skip


def _check_repeats(columns: Columns, rows: np.ndarray, time: np.ndarray, trip: np.ndarray, station: np.ndarray) -> tuple[str, ...]:
    """Notes on stops reported twice; raises UserError when they lie more than half an hour apart."""
    order = np.lexsort((time, station, trip))
    same = (np.diff(trip[order]) == 0) & (np.diff(station[order]) == 0)
    apart = same & (np.diff(time[order]) > REPEAT_MINUTES * 60)
    if apart.any():
        at = int(np.argmax(apart))
        first, second = sorted(int(rows[order[i]]) for i in (at, at + 1))
        minutes = (time[order[at + 1]] - time[order[at]]) / 60
        also = columns.place(second, "trip").removeprefix(f"{columns.path}: ")
        raise UserError(f"{columns.place(first, 'trip')} and {also}: the same trip stops "
                        f"twice at one station on one day, {minutes:.0f} min apart; give every run its own name")  # fmt: skip
    repeats = int(same.sum())
    return (f"{repeats} stops are reported twice; the earliest of each is kept",) if repeats else ()


def read_snapshots(config: DataConfig) -> np.ndarray:
    """(m,) float64 epoch s, ascending."""
    columns = read_columns(config.snapshots, config.columns, ("snapshot_time",))
    columns.require("snapshot_time")
    return np.unique(columns.instants("snapshot_time"))


def read_stations(config: DataConfig) -> np.ndarray:
    """(S,) unicode in line order. Rows of another branch than the first row's are left out."""
    columns = read_columns(config.stations, config.columns, ("station", "branch"))
    columns.require("station")
    codes, names = columns.codes("station")
    if "branch" in columns:
        branches = columns.codes("branch", optional=True)[0]
        codes = codes[branches == branches[0]]
    twice = np.bincount(codes) > 1
    if twice.any():
        raise UserError(f"{config.stations}: {', '.join(names[: len(twice)][twice])}: listed twice; keep each station once")
    if len(codes) < 2:
        raise UserError(f"{config.stations}: a line needs at least 2 stations, found {len(codes)}")
    return names[codes]


def read_timetable(config: DataConfig) -> Timetable:
    """Planned departures by service date or by day type."""
    columns = read_columns(config.timetable, config.columns, ("direction", "origin", "departure", "service_date", "day_type"))
    columns.require("direction", "origin", "departure")
    texts = [names[codes] for codes, names in (columns.codes("direction"), columns.codes("origin"))]
    minute = columns.walls("departure")
    minute = minute + 1440 * (minute < config.day_start_minutes)
    if "service_date" in columns:
        codes, dates = columns.dates("service_date")
        return Timetable(texts[0], texts[1], minute, np.full(len(minute), -1, np.int32), dates[codes])
    if "day_type" not in columns:
        raise UserError(f"{config.timetable}: needs service_date or day_type; found: {', '.join(columns.found)}; map with data.columns")
    codes, kinds = columns.codes("day_type")
    for code, kind in enumerate(kinds):
        if kind.lower() not in DAY_TYPES:
            row = int(np.argmax(codes == code))
            raise UserError(f"{columns.place(row, 'day_type')}: {str(kind)!r} is not supported (known: {', '.join(DAY_TYPES)})")
    day_type = np.array([DAY_TYPES.index(kind.lower()) for kind in kinds], np.int32)[codes]
    return Timetable(texts[0], texts[1], minute, day_type, np.full(len(minute), "", np.str_))
