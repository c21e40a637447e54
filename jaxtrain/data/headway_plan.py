"""Planned headways at the ends of a line: from a timetable, or from the departures that training days have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxtrain.data.headway_config import DAY_MINUTES, DataConfig
from jaxtrain.data.headway_tables import Plan, Tables, Timetable
from jaxtrain.data.headway_time import day_types, midnights
from jaxtrain.errors import UserError

LEAST_PAIRS = 20  # training trips that an origin's lag needs: fewer are short workings from mid-line
COMMON_SHARE = 0.5  # of the training days of its day type on which a planned departure ran
MAX_SHIFT_HOURS, SHIFT_MINUTES, SHIFT_GAIN = 12, 30, 0.1  # of the clock check
MAX_LATE_MINUTES, MAX_EARLY_MINUTES = 20, 5  # of most trains: zones differ by 30 minutes and more


@dataclass(frozen=True)
class _Trips:
    """Training trips with a scheduled departure. All (n,); minutes are local, of the service date."""

    direction: np.ndarray  # code
    origin: np.ndarray  # code
    day: np.ndarray  # position in service_dates
    departure: np.ndarray  # scheduled, minutes
    entry: np.ndarray  # observed at the first station on the grid, minutes; NaN: not seen there


def learn_plan(config: DataConfig, tables: Tables, training: Sequence[str], entries: dict[str, str]) -> tuple[Plan, tuple[str, ...]]:
    """(plan, notes) of the service dates in `training`; entries: direction -> its first station on the grid."""
    trips = _training_trips(config, tables, training, entries)
    table = tables.timetable or _rebuilt(config, tables, training, trips)
    lags = _lags(tables, trips)
    if config.check_clock:
        _check_zone(config, tables, training, lags)
    departures = list(zip(table.direction.tolist(), table.origin.tolist(), strict=True))
    for direction, origin in sorted(set(departures) - set(lags)):
        if entries.get(direction) == origin:
            lags[direction, origin] = 0.0  # it leaves from the grid's first station
    keep = np.array([departure in lags for departure in departures], bool)
    left_out = sorted({f"{origin} ({direction})" for direction, origin in set(departures) - set(lags)})
    notes = [f"no terminal gap is planned from {', '.join(left_out)}: too few training trips"] if left_out else []
    if not keep.any():
        notes.append("no planned departures are known")
    kept = Timetable(*(column[keep] for column in (table.direction, table.origin, table.minute, table.day_type, table.date)))
    directions, origins = np.array(list(lags), np.str_).reshape(-1, 2).T
    return Plan(kept, directions, origins, np.array(list(lags.values()), np.float64)), tuple(notes)


def _training_trips(config: DataConfig, tables: Tables, training: Sequence[str], entries: dict[str, str]) -> _Trips:
    rows = np.flatnonzero(np.isin(tables.service_dates, training)[tables.day] & np.isfinite(tables.departure) & (tables.origin >= 0))
    rows = rows[np.lexsort((tables.time[rows], tables.trip[rows]))]
    trip, first = np.unique(tables.trip[rows], return_index=True)
    rows, first = rows, rows[first]
    entry_station = np.array([_code(tables.stations, entries[name]) for name in tables.directions])
    seen = rows[tables.station[rows] == entry_station[tables.direction[rows]]][::-1]  # backwards: the earliest stays
    entry = np.full(len(trip), np.nan)
    minutes = (tables.time - midnights(tables.service_dates, config.timezone)[tables.day]) / 60
    entry[np.searchsorted(trip, tables.trip[seen])] = minutes[seen]
    return _Trips(tables.direction[first], tables.origin[first], tables.day[first], tables.departure[first], entry)


def _code(names: np.ndarray, name: str) -> int:
    return int(np.argmax(names == name))


def _lags(tables: Tables, trips: _Trips) -> dict[tuple[str, str], float]:
    """(direction, origin) -> median minutes from the scheduled departure to the first station on the grid."""
    lags = {}
    for d, direction in enumerate(tables.directions.tolist()):
        for o, origin in enumerate(tables.origins.tolist()):
            pairs = (trips.direction == d) & (trips.origin == o) & np.isfinite(trips.entry)
            if pairs.sum() >= LEAST_PAIRS:
                lags[direction, origin] = float(np.median(trips.entry[pairs] - trips.departure[pairs]))
    return lags


def _check_zone(config: DataConfig, tables: Tables, training: Sequence[str], lags: dict[tuple[str, str], float]) -> None:
    """Raises UserError where scheduled departures and observed trains are hours apart, which a lag would hide from `check_clock`."""
    remedy = "check data.timezone, or set data.check_clock=False"
    names = np.append(tables.origins, "")[tables.origin]  # "" for an unknown origin
    taught = np.isin(tables.service_dates, training)[tables.day]
    rows = np.flatnonzero(taught & np.isfinite(tables.departure) & (tables.stations[tables.station] == names))
    if len(rows) >= LEAST_PAIRS:
        begin = midnights(tables.service_dates, config.timezone)[tables.day[rows]]
        late = float(np.median((tables.time[rows] - begin) / 60 - tables.departure[rows]))
        if abs(late) > MAX_LATE_MINUTES:
            raise UserError(f"{tables.source}: trains are seen at their origin {abs(late):.0f} min {'after' if late > 0 else 'before'} the "
                            f"scheduled departure (median of {len(rows)}); {remedy}")  # fmt: skip
    for (direction, origin), lag in lags.items():
        if lag < -MAX_EARLY_MINUTES:
            raise UserError(f"{tables.source}: {direction} trains from {origin} reach the line {-lag:.0f} min before the scheduled "
                            f"departure (median); {remedy}")  # fmt: skip


def _rebuilt(config: DataConfig, tables: Tables, training: Sequence[str], trips: _Trips) -> Timetable:
    """The departures that ran on at least half of the training days of their day type."""
    kinds = day_types(tables.service_dates, config.sunday_dates)
    days = np.bincount(kinds[np.isin(tables.service_dates, training)], minlength=3)
    seconds = np.round(trips.departure * 60).astype(np.int64)
    ran = np.unique(np.stack([kinds[trips.day], trips.direction, trips.origin, seconds, trips.day]), axis=1)
    kinds_of = ran[:4]
    departures, count = np.unique(kinds_of, axis=1, return_counts=True)
    kind, direction, origin, second = departures[:, count >= COMMON_SHARE * days[departures[0]]]
    return Timetable(
        tables.directions[direction], tables.origins[origin], second / 60, kind.astype(np.int32), np.full(len(kind), "", np.str_)
    )


def planned_minutes(
    config: DataConfig, plan: Plan, service_dates: np.ndarray, directions: np.ndarray, field: str, terminal: str
) -> np.ndarray:
    """(R, D, K) float32 minutes at the end of every row, NaN = unknown.

    The gap between the last two planned entries (field headway), or the minutes since the last one (age). terminal
    `merged`: K = 1; `per_origin`: one channel for every origin of the direction that has most, in the order of their names.
    """
    channels = _channels(plan, directions, terminal)
    kinds = day_types(service_dates, config.sunday_dates)
    end = config.day_start_minutes + config.step_minutes * np.arange(1, config.day_rows + 1, dtype=np.float64)
    width = max(1, *(len(found) for found in channels))
    planned = np.full((len(service_dates), config.day_rows, len(directions), width), np.nan, np.float32)
    lag = dict(zip(zip(plan.lag_direction.tolist(), plan.lag_origin.tolist(), strict=True), plan.lag_minutes.tolist(), strict=True))
    table = plan.timetable
    entry = table.minute + np.array([lag[p] for p in zip(table.direction.tolist(), table.origin.tolist(), strict=True)], np.float64)
    for d, found in enumerate(channels):
        for k, origins in enumerate(found):
            own = (table.direction == directions[d]) & np.isin(table.origin, origins)
            for n, day in enumerate(service_dates):
                today = own & ((table.date == day) | ((table.date == "") & (table.day_type == kinds[n])))
                planned[n, :, d, k] = _held(np.unique(entry[today]), end, config, field)
    return planned.reshape(-1, len(directions), width)


def _channels(plan: Plan, directions: np.ndarray, terminal: str) -> list[list[list[str]]]:
    """Origins of each channel of each direction."""
    origins = [sorted(plan.lag_origin[plan.lag_direction == name].tolist()) for name in directions]
    return [[found] for found in origins] if terminal == "merged" else [[[origin] for origin in found] for found in origins]


def _held(entry: np.ndarray, end: np.ndarray, config: DataConfig, field: str) -> np.ndarray:
    """(rows,) minutes of one day from its planned entries (n,), ascending."""
    entry = entry[entry > config.day_start_minutes]
    last = np.searchsorted(entry, end, side="right") - 1
    padded = np.concatenate([[np.nan, np.nan], entry])  # the row before the first train and the first train itself have no gap
    age = end - padded[last + 2]
    value = padded[last + 2] - padded[last + 1] if field == "headway" else age
    return np.where(age <= config.max_age_minutes, np.minimum(value, config.cap_minutes), np.nan)


def check_clock(
    config: DataConfig, source: str, planned: np.ndarray, field: np.ndarray, rows: np.ndarray, directions: np.ndarray
) -> tuple[str, ...]:
    """Notes on the correlation of planned (R, D) and observed headway at the entries of field (R, S, D), minutes, NaN = unknown.

    rows: (R,) bool, those of training. Raises UserError where some other shift of the plan, up to 12 hours either way, fits
    better by more than 0.1.
    """
    observed = np.stack([field[rows, 0 if config.align == "travel" else -d, d] for d in range(len(directions))], axis=1)
    planned = planned[rows]
    hours = np.arange(-MAX_SHIFT_HOURS * 60, MAX_SHIFT_HOURS * 60 + 1, max(SHIFT_MINUTES, config.step_minutes)) / 60
    texts = []
    for d, name in enumerate(directions):
        moved = [_shifted(planned[:, d], round(h * 60 / config.step_minutes)) for h in hours]
        fit = np.array([_correlation(m, observed[:, d], DAY_MINUTES // config.step_minutes // 10) for m in moved])
        best, unmoved = int(np.argmax(fit)), float(fit[np.argmin(np.abs(hours))])
        if fit[best] > unmoved + SHIFT_GAIN:
            raise UserError(f"{source}: planned and observed headways of {name} trains fit best with the plan moved by "
                            f"{hours[best]:+g} h (correlation {fit[best]:.2f}, unmoved {unmoved:.2f}); check data.timezone, or set "
                            "data.check_clock=False")  # fmt: skip
        if unmoved > -1:
            texts.append(f"{name} {unmoved:.2f}")
    return (f"clock check: planned and observed headways correlate by {', '.join(texts)}",) if texts else ()


def _shifted(series: np.ndarray, rows: int) -> np.ndarray:
    moved = np.full_like(series, np.nan)
    if abs(rows) < len(series):
        moved[max(rows, 0) : len(series) + min(rows, 0)] = series[max(-rows, 0) : len(series) - max(rows, 0)]
    return moved


def _correlation(a: np.ndarray, b: np.ndarray, least: int) -> float:
    """Over the rows where both are known; -1 where there are fewer than `least` or one does not vary."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < least:
        return -1.0
    a, b = a[both].astype(np.float64), b[both].astype(np.float64)
    spread = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread > 0 else -1.0
