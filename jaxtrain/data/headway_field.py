"""The headway and age fields of a line: tables of arrivals become rows of minutes by stations by directions."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxtrain.data.headway_config import DataConfig
from jaxtrain.data.headway_plan import check_clock, learn_plan, planned_minutes
from jaxtrain.data.headway_stations import left_out, line_order
from jaxtrain.data.headway_tables import Facts, Line, Plan, Tables, Timetable
from jaxtrain.data.headway_time import day_types, midnights
from jaxtrain.errors import UserError

__all__ = ["Facts", "Line", "Plan", "Tables", "Timetable", "learn", "raster", "rasterise"]

QUIET_MINUTES = 15  # without snapshots, a longer stretch without any arrival counts as unobserved


def raster(config: DataConfig, tables: Tables, training: Sequence[str]) -> Line:
    """The fields of all service days; station order, lags and a rebuilt timetable come from the dates in `training`.

    Raises UserError where the order cannot be derived or the clock check fails.
    """
    facts = learn(config, tables, training)
    line = rasterise(config, tables, facts)
    if config.check_clock:
        line = replace(line, notes=line.notes + _clock_notes(config, tables, facts, line, training))
    return line


def learn(config: DataConfig, tables: Tables, training: Sequence[str]) -> Facts:
    """Station order, timetable and lags from the service dates in `training`."""
    directions, order = line_order(config, tables, training)
    travel = np.stack([order, order[::-1]][: len(directions)])
    stations = travel if config.align == "travel" else np.stack([order] * len(directions))
    plan, notes = learn_plan(config, tables, training, dict(zip(directions.tolist(), travel[:, 0].tolist(), strict=True)))
    return Facts(directions, stations, plan, notes + left_out(tables, config, order))


def rasterise(config: DataConfig, tables: Tables, facts: Facts) -> Line:
    """The fields of all service days under facts learned before. Raises UserError for names that the facts do not have."""
    _check_names(tables, facts)
    begin = midnights(tables.service_dates, config.timezone) + config.day_start_minutes * 60
    time = (begin[:, None] + config.step_seconds * np.arange(config.day_rows)).astype(np.int64)  # (days, rows)
    unobserved = unobserved_rows(config, tables, time)
    headway, age = _fields(config, tables, facts, begin, unobserved)
    return Line(
        directions=facts.directions,
        stations=facts.stations,
        headway=headway,
        age=age,
        planned=planned_minutes(config, facts.plan, tables.service_dates, facts.directions, config.target, config.terminal),
        time=time.reshape(-1),
        day=np.repeat(np.arange(len(begin), dtype=np.int32), config.day_rows),
        day_type=np.repeat(day_types(tables.service_dates, config.sunday_dates), config.day_rows),
        minute=np.tile(config.step_minutes * np.arange(config.day_rows, dtype=np.int32), len(begin)),
        service_dates=tables.service_dates,
        plan=facts.plan,
        notes=(*tables.notes, *facts.notes, *_row_notes(config, tables, begin, unobserved)),
    )


def _row_notes(config: DataConfig, tables: Tables, begin: np.ndarray, unobserved: np.ndarray) -> tuple[str, ...]:
    since = tables.time - begin[tables.day]
    outside = int(((since < 0) | (since >= config.day_rows * config.step_seconds)).sum())
    notes = (f"{outside} arrivals outside their service day are left out",) if outside else ()
    return (*notes, f"{unobserved.size - int(unobserved.sum())} of {unobserved.size} rows were observed")


def _check_names(tables: Tables, facts: Facts) -> None:
    unknown = [name for name in tables.directions if name not in facts.directions]
    if unknown:
        counts = ", ".join(f"{name} {n}" for name, n in zip(tables.directions, np.bincount(tables.direction), strict=False))
        raise UserError(f"{tables.source}: direction {', '.join(unknown)} is not one of {', '.join(facts.directions)} "
                        f"(found: {counts} rows); filter the rows, or give the directions their old names")  # fmt: skip
    if not np.isin(facts.stations[0], tables.stations).any():
        raise UserError(f"{tables.source}: none of its stations ({', '.join(tables.stations[:3])}) is on the line "
                        f"({', '.join(facts.stations[0, :3])}); is it another line's file?")  # fmt: skip


def unobserved_rows(config: DataConfig, tables: Tables, time: np.ndarray) -> np.ndarray:
    """(days, rows) bool: rows at whose end the feed had not been seen for `stale_minutes`, or that belong to the next service day.

    time: (days, rows) epoch s of the rows' starts.
    """
    end = time + config.step_seconds
    if tables.unobserved is not None:
        unobserved = np.isin(time, tables.unobserved)
    elif tables.snapshots is not None:
        last = np.searchsorted(tables.snapshots, end, side="right") - 1
        since = end - tables.snapshots[np.maximum(last, 0)]
        unobserved = (last < 0) | (since > config.stale_minutes * 60)
    else:
        unobserved = _quiet(config, tables, time)
    tomorrow = midnights((tables.service_dates.astype("datetime64[D]") + 1).astype(str), config.timezone) + config.day_start_minutes * 60
    return unobserved | (end > tomorrow[:, None])  # where clocks go forward, a service day ends early


def _quiet(config: DataConfig, tables: Tables, time: np.ndarray) -> np.ndarray:
    """(days, rows) bool: rows of a stretch of more than 15 minutes without an arrival anywhere."""
    row = np.floor((tables.time - time[tables.day, 0]) / config.step_seconds).astype(np.int64)
    inside = (row >= 0) & (row < config.day_rows)
    busy = np.zeros(time.shape, bool)
    busy[tables.day[inside], row[inside]] = True
    quiet = np.zeros(time.shape, bool)
    for day, rows in enumerate(busy):
        edges = np.concatenate([[-1], np.flatnonzero(rows), [len(rows)]])
        lengths = np.diff(edges) - 1
        long = lengths * config.step_minutes > QUIET_MINUTES
        for first, length in zip(edges[:-1][long] + 1, lengths[long], strict=True):
            quiet[day, first : first + length] = True
    return quiet


def _fields(config: DataConfig, tables: Tables, facts: Facts, begin: np.ndarray, unobserved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(headway, age), each (R, S, D) float32, from stops sorted by cell and time: every value holds for a run of rows."""
    stop_cell, stop_day, minute = _stops(config, tables, facts, begin)
    if not len(minute):
        raise UserError(f"{tables.source}: no arrival lies on the line's stations within a service day; check data.timezone, "
                        "data.service_day_start and the station names")  # fmt: skip
    step, rows = config.step_minutes, config.day_rows
    row = np.floor(minute / step).astype(np.int64)
    follows = np.concatenate([[False], (np.diff(stop_cell) == 0) & (np.diff(stop_day) == 0)])
    gap = np.where(follows, np.diff(minute, prepend=np.nan), np.nan)

    blind = _next_unobserved(unobserved)  # (days, rows) first unobserved row at or after each
    until = np.minimum(np.append(np.where(follows[1:], row[1:], rows), rows), blind[stop_day, row])
    fresh = np.floor((config.max_age_minutes + minute) / step + 1e-9).astype(np.int64)  # rows whose end is within the limit
    length = np.clip(np.minimum(until, fresh) - row, 0, None)
    seen = np.concatenate([[False], blind[stop_day, row][:-1] > row[1:]])  # nothing was missed between the two trains
    gap[~seen | (gap > config.max_gap_minutes)] = np.nan

    # One run of known rows per stop, a run of unknown ones before each and after the last, cell by cell and day by day.
    cells, days = facts.stations.size, len(begin)
    first = (stop_cell * days + stop_day) * rows + row
    bounds = np.concatenate([[0], np.stack([first, first + length], axis=1).reshape(-1), [cells * days * rows]])
    gap_runs, minute_runs = np.full(2 * len(row) + 1, np.nan, np.float32), np.full(2 * len(row) + 1, np.nan)
    gap_runs[1::2], minute_runs[1::2] = np.minimum(gap, config.cap_minutes), minute
    headway = np.repeat(gap_runs, np.diff(bounds))
    ends = step * np.arange(1, rows + 1)
    age = np.minimum(ends - np.repeat(minute_runs, np.diff(bounds)).reshape(-1, rows), config.cap_minutes, dtype=np.float32)
    shape = (days * rows, facts.stations.shape[1], len(facts.directions))
    return _by_row(headway, shape), _by_row(age, shape)


def _by_row(field: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(R, S, D), contiguous, from a field that stands cell by cell."""
    return np.ascontiguousarray(field.reshape(-1, shape[0]).T).reshape(shape)


def _stops(config: DataConfig, tables: Tables, facts: Facts, begin: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cell s * D + d, day, minute of the service day) of every stop on the grid, sorted by cell, day and time."""
    cell = np.full((len(tables.stations), len(tables.directions)), -1, np.int64)
    for d, name in enumerate(tables.directions):
        column = int(np.argmax(facts.directions == name))
        for s, station in enumerate(facts.stations[column]):
            cell[tables.stations == station, d] = s * len(facts.directions) + column
    cells = cell[tables.station, tables.direction]
    minute = (tables.time - begin[tables.day]) / 60
    rows = np.flatnonzero((cells >= 0) & (minute >= 0) & (minute < config.day_rows * config.step_minutes))
    rows = rows[np.argsort(minute[rows], kind="stable")]
    trips = int(tables.trip.max(initial=0)) + 1
    rows = rows[np.unique(cells[rows] * trips + tables.trip[rows], return_index=True)[1]]  # a trip's earliest stop
    rows = rows[np.lexsort((minute[rows], tables.day[rows], cells[rows]))]
    cells, day, minute = cells[rows], tables.day[rows].astype(np.int64), minute[rows]
    twice = (np.diff(cells) == 0) & (np.diff(day) == 0) & (np.diff(minute) == 0)  # two trips at one instant are one
    keep = np.concatenate([np.ones(min(len(rows), 1), bool), ~twice])
    return cells[keep], day[keep], minute[keep]


def _next_unobserved(unobserved: np.ndarray) -> np.ndarray:
    """(days, rows) int64: the first unobserved row at or after each, the number of rows where there is none."""
    rows = unobserved.shape[1]
    marked = np.where(unobserved, np.arange(rows), rows)
    return np.minimum.accumulate(marked[:, ::-1], axis=1)[:, ::-1]


def _clock_notes(config: DataConfig, tables: Tables, facts: Facts, line: Line, training: Sequence[str]) -> tuple[str, ...]:
    planned = planned_minutes(config, facts.plan, tables.service_dates, facts.directions, "headway", "merged")[:, :, 0]
    taught = np.isin(tables.service_dates, training)[line.day]
    return check_clock(config, tables.source, planned, line.headway, taught, facts.directions)
