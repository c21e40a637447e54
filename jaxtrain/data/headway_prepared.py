"""Prepared arrays: a headway or age matrix (T, S, 2) and its schedule (T, 2), minutes, in .npy files."""

import numpy as np

from jaxtrain.data.headway_config import DAY_MINUTES, DataConfig
from jaxtrain.data.headway_files import read_stations
from jaxtrain.data.headway_tables import Line
from jaxtrain.data.headway_time import day_types, local_dates, midnights, zoned_instant
from jaxtrain.data.traffic_tables import existing_file
from jaxtrain.errors import UserError

BLOCK = 65_536  # rows cast at a time
SAMPLE = 20_000  # rows of which the median is taken
MAX_MEDIAN = 60  # minutes; more means another unit
MAX_LAG = 10  # rows between the arrivals of neighbouring stations


def read(config: DataConfig) -> Line:
    """The line of `config.path`, which holds the field `config.target`, and of `config.schedule`.

    Stations stand in line order; `align: travel` reverses those of direction 1. Raises UserError for arrays of another
    shape, type or unit, and for infinite or negative values.
    """
    source = _open(config.path, "(T, S, 2) or (T, S, 2, 1)", 3, 2)
    rows, stations, directions = source.shape[:3]
    field = _minutes(config, config.path, source.reshape(rows, stations, directions))
    planned = np.full((rows, directions, 1), np.nan, np.float32)
    if config.schedule:
        plan = _open(config.schedule, "(T, 2) or (T, 2, 1)", 2, 1)
        if len(plan) != rows:
            raise UserError(f"{config.schedule}: {plan.shape} has another number of rows than {config.path} {source.shape}; both must "
                            "start and end together")  # fmt: skip
        planned = _minutes(config, config.schedule, plan.reshape(rows, 1, directions)).transpose(0, 2, 1)
    order = _names(config, stations)
    names = np.stack([order, order])
    if config.align == "travel":
        field = np.stack([field[:, :, 0], field[:, ::-1, 1]], axis=2)
        names = np.stack([order, order[::-1]])
    time, day, day_type, minute, dates, beyond = _clock(config, rows)
    field[beyond] = np.nan
    unknown = np.broadcast_to(np.float32(np.nan), field.shape)
    headway, age = (field, unknown) if config.target == "headway" else (unknown, field)
    share = float(np.isnan(field).mean())
    notes = (f"{share:.0%} of the cells are unknown" + (f" (NaN, or {config.zero_run} zeros in a row)" if config.zero_run else ""),)
    return Line(np.array(["0", "1"]), names, headway, age, planned, time, day, day_type, minute, dates, notes=notes)


def _open(path: str, expected: str, dimensions: int, axis: int) -> np.ndarray:
    """A memory-mapped array whose `axis` has the two directions."""
    try:
        array = np.load(existing_file(path), mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as fault:
        reason = " ".join(str(fault).split())
        raise UserError(f"{path}: not a readable .npy ({reason}); expected a float array {expected}, saved with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: holds an archive of arrays; expected a float array {expected}, saved with numpy.save")
    shape = array.shape[:-1] if array.ndim == dimensions + 1 and array.shape[-1] == 1 else array.shape
    if len(shape) != dimensions or shape[axis] != 2 or 0 in shape:
        raise UserError(f"{path}: expected minutes of shape {expected}, found {array.shape}")
    if array.dtype not in (np.float32, np.float64):
        raise UserError(f"{path}: expected float32 or float64 minutes, found {array.dtype} {array.shape}; cast it and save again")
    return array


def _minutes(config: DataConfig, path: str, source: np.ndarray) -> np.ndarray:
    """(T, S, D) float32, NaN = unknown, checked and clipped to the cap."""
    values = np.empty(source.shape, np.float32)
    for first in range(0, len(source), BLOCK):
        block = source[first : first + BLOCK]
        wrong = np.isinf(block) | (block < 0)
        if wrong.any():
            row, *rest = (int(i) for i in np.argwhere(wrong)[0])
            index = ", ".join(str(i) for i in (first + row, *rest))
            raise UserError(f"{path}: [{index}] is {block[row, *rest]:g}; minutes are finite and not negative, NaN where unknown")
        values[first : first + BLOCK] = block
    if config.zero_run:
        values[_zero_runs(values, config.zero_run)] = np.nan
    sample = values[:: len(values) // SAMPLE + 1]
    known = sample[np.isfinite(sample)]
    if len(known) and np.median(known) > MAX_MEDIAN:
        raise UserError(f"{path}: the median of the known values is {np.median(known):g} minutes; seconds? divide by 60")
    return np.minimum(values, np.float32(config.cap_minutes), out=values)


def _zero_runs(values: np.ndarray, run: int) -> np.ndarray:
    """(T, ...) bool: zeros that stand in a stretch of at least `run` zeros along the rows."""
    zero = values == 0
    marked = np.zeros_like(zero)
    if len(zero) < run:
        return marked
    begins = zero[: len(zero) - run + 1].copy()
    for k in range(1, run):
        begins &= zero[k : len(zero) - run + 1 + k]
    for k in range(run):
        marked[k : len(zero) - run + 1 + k] |= begins
    return marked


def _names(config: DataConfig, stations: int) -> np.ndarray:
    if not config.stations:
        return np.arange(stations).astype(np.str_)
    order = read_stations(config)
    if len(order) != stations:
        raise UserError(f"{config.stations}: lists {len(order)} stations, but {config.path} has {stations}; give one per column")
    return order


def _clock(config: DataConfig, rows: int) -> tuple[np.ndarray, ...]:
    """(time, day, day_type, minute, service_dates, rows beyond the end of a service day)."""
    seconds = config.step_seconds * np.arange(rows, dtype=np.int64)
    none = np.zeros(rows, np.int32)
    if not config.start:
        minute = (seconds // 60 % DAY_MINUTES).astype(np.int32)
        return seconds, none, none, minute, np.array([], np.str_), np.zeros(rows, bool)
    time = seconds + zoned_instant(config.start, "config.data.start")
    dates, day = np.unique(local_dates(time, config.timezone, config.day_start_minutes), return_inverse=True)
    dates = dates.astype(np.str_)
    begin = midnights(dates, config.timezone) + config.day_start_minutes * 60
    minute = (time - begin[day]) // 60
    beyond = (minute < 0) | (minute >= DAY_MINUTES)  # the hour that a day gains when clocks go back
    kinds = day_types(dates, config.sunday_dates)[day]
    return time, day.astype(np.int32), kinds, np.clip(minute, 0, DAY_MINUTES - 1).astype(np.int32), dates, beyond


def link_minutes(config: DataConfig, line: Line, training: np.ndarray) -> np.ndarray:
    """(D, S-1) minutes between neighbouring stations in travel order, from the training rows (R,) bool.

    The lag of 0..10 rows at which the arrivals of both correlate best, refined by the parabola through its neighbours;
    NaN where a station has no arrivals.
    """
    arrived = _arrivals(getattr(line, config.target), config.target) & training[1:, None, None]
    links = []
    for d in range(len(line.directions)):
        own = arrived[:, :, d]
        if config.align == "line" and d == 1:
            own = own[:, ::-1]
        links.append(_lags(np.ascontiguousarray(own)) * config.step_minutes)
    return np.stack(links)


def _arrivals(field: np.ndarray, kind: str) -> np.ndarray:
    """(R-1, S, D) bool: rows in which a train came. An age then falls; a headway, which stands still between trains, changes."""
    change = np.diff(field, axis=0)
    return change < 0 if kind == "age" else np.abs(change) > 0


def _lags(arrived: np.ndarray) -> np.ndarray:
    """(S-1,) rows by which the arrivals (R, S) of every station precede those of the next."""
    span = len(arrived) - MAX_LAG
    if span < 2:
        return np.full(arrived.shape[1] - 1, np.nan)
    here, mean = arrived[:span, :-1], arrived.mean(0)
    fit = np.stack([(here & arrived[k : k + span, 1:]).mean(0) for k in range(MAX_LAG + 1)]) - mean[:-1] * mean[1:]
    best = fit.argmax(0)
    inner = np.clip(best, 1, MAX_LAG - 1)
    left, middle, right = (np.take_along_axis(fit, inner[None] + k, axis=0)[0] for k in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.where((best == inner) & (bend < 0), 0.5 * (left - right) / np.where(bend < 0, bend, -1), 0)
    return np.where(mean[:-1] * mean[1:] > 0, best + shift, np.nan)
