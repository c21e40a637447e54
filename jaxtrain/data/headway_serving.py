"""What a finished run reads to forecast from: a file of its line under the run's own stations and plan, and when to issue."""

from dataclasses import dataclass, replace

import numpy as np

from jaxtrain.data import headway_prepared
from jaxtrain.data.dataset import Statistics
from jaxtrain.data.headway_config import DAY_MINUTES, DataConfig, check_config
from jaxtrain.data.headway_field import rasterise
from jaxtrain.data.headway_files import read
from jaxtrain.data.headway_statistics import saved_plan
from jaxtrain.data.headway_tables import Facts, Line, Plan, Tables, Timetable
from jaxtrain.data.headway_time import instant, show_local
from jaxtrain.errors import UserError

MAX_NAMED = 3  # stations shown in a message
LEAST_STATIONS = 0.5  # of the run's stations that a file of the same line must name


@dataclass(frozen=True)
class Served:
    """The fields of a file, and which of its rows the feed covered completely: `first` to `last`, both included."""

    line: Line
    first: int
    last: int


def reading(config: DataConfig, path: str, timetable: str, snapshots: str, start: str) -> DataConfig:
    """The config under which a file is read. The run's own snapshots, schedule and start belong to its own file alone.

    Raises UserError for options that do not go with this kind of file.
    """
    own = path == config.path
    keys = {"path": path, "stations": ""}
    if replace(config, path=path).prepared:
        keys |= {"schedule": timetable or (config.schedule if own else ""), "start": start or (config.start if own else "")}
        keys |= {"timetable": "", "snapshots": snapshots}
        if config.clock and not keys["start"]:
            raise UserError(f"{path}: the run uses the time of day and the array has none; give --option start=TIME of its first row")
    else:
        keys |= {"schedule": "", "start": start, "timetable": timetable}
        keys |= {"snapshots": snapshots or (config.snapshots if own else "")}
    changed = replace(config, **keys)
    check_config(changed)
    return changed


def served(config: DataConfig, statistics: Statistics) -> Served:
    """The fields of `config.path` on the run's grid. Raises UserError for another line, or a file that knows nothing."""
    return _prepared(config, statistics) if config.prepared else _tabled(config, statistics)


def _tabled(config: DataConfig, statistics: Statistics) -> Served:
    if "plan_minute" not in statistics:
        raise UserError(f"{config.path}: the run was trained on a prepared array and knows no names; give a prepared array (.npy)")
    tables = read(config)
    _check_names(tables, statistics, config.path)
    plan = saved_plan(statistics)
    if tables.timetable is not None:
        plan = _replaced(plan, tables.timetable, config.timetable)
    line = rasterise(config, tables, Facts(statistics["directions"], statistics["stations"], plan))
    seen = tables.time if tables.snapshots is None else np.concatenate([tables.time, tables.snapshots])
    first = int(np.searchsorted(line.time, seen.min(), side="right")) - 1
    last = int(np.searchsorted(line.time + config.step_seconds, seen.max(), side="right")) - 1
    return Served(line, max(first, 0), last)


def _prepared(config: DataConfig, statistics: Statistics) -> Served:
    """Rows after the last known one are still to come: their place in the schedule is the plan of the forecast."""
    line = headway_prepared.read(config)
    directions, stations = statistics["stations"].shape
    if line.stations.shape != (directions, stations):
        raise UserError(f"{config.path}: {line.stations.shape[1]} stations and {len(line.directions)} directions, the run expects "
                        f"{stations} and {directions}; give an array of the run's line")  # fmt: skip
    rows = np.flatnonzero(np.isfinite(getattr(line, config.target)).any((1, 2)))
    if not len(rows):
        raise UserError(f"{config.path}: nothing is known in any row; check data.zero_run and the array")
    return Served(replace(line, directions=statistics["directions"], stations=statistics["stations"]), 0, int(rows[-1]))


def _check_names(tables: Tables, statistics: Statistics, path: str) -> None:
    """Directions must be the run's; of its stations at least half, for a short file may lack some."""
    unknown = sorted(set(tables.directions.tolist()) - set(statistics["directions"].tolist()))
    if unknown:
        raise UserError(f"{path}: directions the run does not know: {', '.join(unknown)}; it has {', '.join(statistics['directions'])}")
    stations = statistics["stations"][0].tolist()
    absent = [name for name in stations if name not in set(tables.stations.tolist())]
    if len(absent) > (1 - LEAST_STATIONS) * len(stations):
        raise UserError(f"{path}: {len(absent)} of the run's {len(stations)} stations are absent: {_some(absent)}; the file has "
                        f"{_some(tables.stations.tolist())}; give arrivals of the run's line")  # fmt: skip


def _replaced(plan: Plan, timetable: Timetable, path: str) -> Plan:
    """The run's running times with other departures; origins that the run has no running time for add no terminal gap."""
    known = list(zip(plan.lag_direction.tolist(), plan.lag_origin.tolist(), strict=True))
    pairs = zip(timetable.direction.tolist(), timetable.origin.tolist(), strict=True)
    keep = np.array([pair in known for pair in pairs], bool)
    if not keep.any():
        names = ", ".join(f"{origin} ({direction})" for direction, origin in known) or "none"
        raise UserError(f"{path}: no departure from an origin of the run's plan ({names}); name direction and origin as there")
    return replace(plan, timetable=Timetable(**{name: column[keep] for name, column in vars(timetable).items()}))


def issue_rows(config: DataConfig, found: Served, at: str, every: int) -> np.ndarray:
    """(n,) last input rows. Raises UserError where there is too little history, or nothing is known in the row."""
    path, line, ends = config.path, found.line, found.line.time + config.step_seconds
    if every < 0:
        raise UserError(f"--option every={every}: minutes between forecasts must be at least 1")
    if at and not len(line.service_dates):
        raise UserError(f"{path}: --option at={at} needs the time of the array's first row; give --option start=TIME")
    usable = _usable(config, found)
    rows = np.flatnonzero(usable)
    if found.last - found.first + 1 < config.lookback:
        raise UserError(f"{path}: {max(found.last - found.first + 1, 0)} complete rows of {config.step_minutes} min, the run needs "
                        f"{config.lookback}; give more history")  # fmt: skip
    if not len(rows):
        raise UserError(f"{path}: no row with something known and {config.lookback} rows of one service day up to it; give more history")
    asked = found.last
    if at:
        asked = int(np.searchsorted(ends, instant(at, config.timezone, "--option at"), side="right")) - 1
    if every:
        minute = line.minute + config.step_minutes
        first = asked if at else 0
        rows = rows[(rows >= first) & (minute[rows] % every == 0)]
        if not len(rows):
            raise UserError(f"{path}: no forecast can be issued every {every} min{f' from {at} on' if at else ''}; "
                            f"{_last_usable(config, usable, ends)}")  # fmt: skip
        return rows
    if not 0 <= asked < len(usable) or not usable[asked] or asked > found.last:
        when = f"--option at={at}" if at else show_local(float(ends[asked]), config.timezone)
        raise UserError(f"{path}: no forecast at {when}: {_reason(config, found, asked)}; {_last_usable(config, usable, ends)}")
    return np.array([asked])


def _usable(config: DataConfig, found: Served) -> np.ndarray:
    """(R,) bool: complete rows with L rows of the same service day up to them, in which something is known."""
    line, row = found.line, np.arange(len(found.line.time))
    oldest = row - config.lookback + 1
    history = (oldest >= found.first) & (row <= found.last)
    history &= line.day[np.maximum(oldest, 0)] == line.day
    return history & np.isfinite(getattr(line, config.target)).any((1, 2))


def _reason(config: DataConfig, found: Served, row: int) -> str:
    if row > found.last:
        return "the file ends before it"
    if row < found.first + config.lookback - 1:
        return f"{max(row - found.first + 1, 0)} rows up to it, the run needs {config.lookback}"
    if found.line.day[row] != found.line.day[row - config.lookback + 1]:
        return f"its service day is younger than {config.lookback} rows"
    return "no station's value is known then"


def _last_usable(config: DataConfig, usable: np.ndarray, ends: np.ndarray) -> str:
    return f"the last usable time is {show_local(float(ends[usable][-1]), config.timezone)}"


def extended(config: DataConfig, line: Line) -> Line:
    """The line and F unknown rows after it, for a forecast that goes beyond the file."""
    more = np.arange(1, config.horizon + 1)

    def unknown(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.full((len(more), *values.shape[1:]), np.nan, values.dtype)])

    return replace(
        line,
        headway=unknown(line.headway),
        age=unknown(line.age),
        planned=unknown(line.planned),
        time=np.concatenate([line.time, line.time[-1] + config.step_seconds * more]),
        day=np.concatenate([line.day, np.repeat(line.day[-1:], len(more))]),
        day_type=np.concatenate([line.day_type, np.repeat(line.day_type[-1:], len(more))]),
        minute=np.concatenate([line.minute, (line.minute[-1] + config.step_minutes * more) % DAY_MINUTES]).astype(np.int32),
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
