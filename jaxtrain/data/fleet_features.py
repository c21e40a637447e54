"""Engineered columns and the calendar. Every value at step t comes from steps up to t (a shifted one from earlier ones)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from jaxtrain.data.fleet_config import Feature
from jaxtrain.data.traffic_time import zone

DAY_SECONDS = 86_400
ZONE_SECONDS = 900  # clocks change at multiples of this
State = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Totals:
    """Sum and number of the measured values of each class at each step, (classes * steps,) float64."""

    sum: np.ndarray
    count: np.ndarray


def add(
    features: Sequence[Feature],
    filled: Mapping[str, np.ndarray],
    measured: Mapping[str, np.ndarray],
    row0: np.ndarray,
    step0: np.ndarray,
    classes: Mapping[str, np.ndarray],
    steps: int,
    totals: Mapping[str, Totals] | None = None,
) -> dict[str, np.ndarray]:
    """{name: (N,) float32} of each feature, NaN where it is unknown.

    filled:   column -> (N,) causally filled values: what a lag and a product take
    measured: column -> (N,) values, NaN where nothing was measured: what statistics and peers take
    classes:  static column of a peers feature -> (G,) class of each group, -1 = unknown (no peers)
    steps:    length of the common axis
    totals:   peers feature -> sums over all groups, where the rows given are only some of them
    """
    position = positions(row0)
    made = {}
    for feature in features:
        column = feature.columns[0]
        if feature.kind == "lag":
            values = shifted(np.asarray(filled[column], np.float64), position, feature.steps, np.nan)
        elif feature.kind == "rolling":
            values = shifted(rolling(measured[column], position, feature.width, feature.statistic), position, feature.steps, np.nan)
        elif feature.kind == "interaction":
            values = np.asarray(filled[column], np.float64) * filled[feature.columns[1]]
        else:
            cell = peer_cells(classes[feature.static], row0, step0, steps)
            known = totals[feature.name] if totals else peer_totals(measured[column], cell, classes[feature.static], steps)
            values = peers(measured[column], cell, known)
        made[feature.name] = values.astype(np.float32)
    return made


def positions(row0: np.ndarray) -> np.ndarray:
    """(N,) number of a row inside its group."""
    return np.arange(row0[-1]) - np.repeat(row0[:-1], np.diff(row0))


def shifted(values: np.ndarray, position: np.ndarray, steps: int, empty: float) -> np.ndarray:
    """(N,) the value `steps` rows earlier in the same group, `empty` where there is none."""
    if steps == 0:
        return values
    moved = np.full_like(values, empty)
    moved[steps:] = values[:-steps]
    moved[position < steps] = empty
    return moved


def rolling(values: np.ndarray, position: np.ndarray, width: int, statistic: str) -> np.ndarray:
    """(N,) float64 statistic over the last `width` rows of the group; NaN where fewer than half of them were measured.

    Windows are joined from windows half as long, so that a value depends on the cells of its own window alone: running
    sums would lose digits and carry the rounding of earlier cells and groups along.
    """
    values = np.asarray(values, np.float64)
    there = ~np.isnan(values)
    count = there.astype(np.float64)
    if statistic in ("min", "max"):
        pick = np.fmin if statistic == "min" else np.fmax
        count, value = _joined((count, values), (0.0, np.nan), position, width, lambda a, b: (a[0] + b[0], pick(a[1], b[1])))
    else:
        start = (count, np.where(there, values, 0.0), np.zeros(len(values)))
        count, mean, squares = _joined(start, (0.0, 0.0, 0.0), position, width, _join_moments)
        value = mean if statistic == "mean" else np.sqrt(squares / np.maximum(count, 1))
    return np.where((count > 0) & (2 * count >= width), value, np.nan)


def _joined(state: State, empty: tuple[float, ...], position: np.ndarray, width: int, join: Callable[[State, State], State]) -> State:
    """The state of the last `width` rows from that of single rows; join(older, newer)."""
    total: State | None = None
    covered, span = 0, 1
    while True:
        if width & span:
            part = _shifted_state(state, empty, position, covered)
            total = part if total is None else join(part, total)
            covered += span
        if covered == width:
            assert total is not None
            return total
        state = join(_shifted_state(state, empty, position, span), state)
        span *= 2


def _shifted_state(state: State, empty: tuple[float, ...], position: np.ndarray, steps: int) -> State:
    return tuple(shifted(part, position, steps, value) for part, value in zip(state, empty, strict=True))


def _join_moments(a: State, b: State) -> State:
    """Count, mean and squared deviations of two disjoint sets together (Chan, Golub, LeVeque 1979)."""
    count = a[0] + b[0]
    whole = np.maximum(count, 1)
    apart = b[1] - a[1]
    return count, a[1] + apart * (b[0] / whole), a[2] + b[2] + apart * apart * (a[0] * b[0] / whole)


def peer_cells(classes: np.ndarray, row0: np.ndarray, step0: np.ndarray, steps: int) -> np.ndarray:
    """(N,) cell of the (class, step) table that a row belongs to; -1 without a class."""
    lengths = np.diff(row0)
    step = positions(row0) + np.repeat(step0, lengths)
    kind = np.repeat(np.asarray(classes, np.int64), lengths)
    return np.where(kind >= 0, kind * steps + step, -1)


def peer_totals(values: np.ndarray, cell: np.ndarray, classes: np.ndarray, steps: int) -> Totals:
    """Sums over the groups given, of all classes."""
    used = (cell >= 0) & ~np.isnan(values)
    size = (int(classes.max(initial=-1)) + 1) * steps
    index = cell[used]
    return Totals(np.bincount(index, np.asarray(values[used], np.float64), size), np.bincount(index, minlength=size).astype(np.float64))


def peers(values: np.ndarray, cell: np.ndarray, totals: Totals) -> np.ndarray:
    """(N,) float64 mean of the other groups of the class at the same step; NaN where none was measured."""
    absent = np.isnan(values)
    if not len(totals.sum):
        return np.full(len(values), np.nan)
    others = totals.count[cell] - ~absent
    rest = totals.sum[cell] - np.where(absent, 0.0, values)
    return np.where((cell >= 0) & (others > 0), rest / np.maximum(others, 1), np.nan)


def calendar(names: Sequence[str], start: int, step_seconds: int, steps: int, timezone: str) -> np.ndarray:
    """(steps, len(names), 2) float32: sine and cosine of the place in the cycle, in local time; is_weekend = (value, 0).

    The place moves on through the hour, the day of the week and so on; Monday 0:00 is where the week begins.
    """
    stamps = start + step_seconds * np.arange(steps, dtype=np.int64)
    local = stamps + _utc_offset(stamps, timezone)
    days = local // DAY_SECONDS
    part = (local % DAY_SECONDS) / DAY_SECONDS
    weekday = (days + 3) % 7  # 1970-01-01 was a Thursday
    date = days.astype("datetime64[D]")
    month, year = date.astype("datetime64[M]"), date.astype("datetime64[Y]")
    month_days = ((month + 1).astype("datetime64[D]") - month.astype("datetime64[D]")).astype(np.int64)
    year_days = ((year + 1).astype("datetime64[D]") - year.astype("datetime64[D]")).astype(np.int64)
    in_month = ((date - month.astype("datetime64[D]")).astype(np.int64) + part) / month_days
    places = {
        "hour_of_day": part,
        "day_of_week": (weekday + part) / 7,
        "day_of_month": in_month,
        "month": ((month - year.astype("datetime64[M]")).astype(np.int64) + in_month) / 12,
        "day_of_year": ((date - year.astype("datetime64[D]")).astype(np.int64) + part) / year_days,
    }
    made = np.zeros((steps, len(names), 2), np.float32)
    for column, name in enumerate(names):
        if name == "is_weekend":
            made[:, column, 0] = weekday >= 5
        else:
            made[:, column, 0] = np.sin(2 * np.pi * places[name])
            made[:, column, 1] = np.cos(2 * np.pi * places[name])
    return made


def _utc_offset(stamps: np.ndarray, timezone: str) -> np.ndarray:
    """(L,) int64 seconds that local time is ahead of UTC."""
    where = zone(timezone)
    moments, index = np.unique(stamps // ZONE_SECONDS, return_inverse=True)
    offsets = [datetime.fromtimestamp(int(m) * ZONE_SECONDS, UTC).astimezone(where).utcoffset() for m in moments]
    return np.array([0 if o is None else int(o.total_seconds()) for o in offsets], np.int64)[index]
