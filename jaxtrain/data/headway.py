"""Train headways on a rail line: windows over shared fields, split by service day, with statistics of the training days.

Letters: B batch, L lookback rows, F horizon rows, S stations, D directions, K terminal channels, R rows. A batch holds, for
every field of `data.inputs` and the target, `headway` and `age` (B, L, S, D) float32 minutes (0 where unknown) with
`headway_known`, `age_known` bool; planned (B, F, D, K) minutes with planned_known: the plan of the target rows, never an
observed departure; target (B, F, S, D) minutes with target_known; when (B, 2) int32, day type and minute of the service day
of the first target row; with data.clock also clock (B, L, 4), sine and cosine of the local time of day and of the week.
"""

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from jaxtrain.data import headway_prepared
from jaxtrain.data import headway_serving as serving
from jaxtrain.data.dataset import Arrays, Batch, Dataset, Splits, Statistics
from jaxtrain.data.headway_config import DAY_MINUTES, FIELDS, DataConfig, check_config
from jaxtrain.data.headway_field import raster
from jaxtrain.data.headway_files import read
from jaxtrain.data.headway_plan import check_clock
from jaxtrain.data.headway_splits import cut, training_dates, windows
from jaxtrain.data.headway_statistics import check_known, link_minutes, plan_statistics, training_statistics, travel_minutes
from jaxtrain.data.headway_synthetic import tables as embedded_tables
from jaxtrain.data.headway_tables import Line
from jaxtrain.errors import UserError

WEEK_MINUTES = 7 * DAY_MINUTES
CLOCK_DAYS = 2  # a shorter array correlates with a shifted schedule by chance


def splits(config: DataConfig) -> Splits:
    """Train, valid and test windows of `config.path`, or of the embedded line when it is unset.

    Raises UserError for every fault of the input.
    """
    check_config(config)
    where = config.path or "embedded line"
    if config.prepared:
        line = headway_prepared.read(config)
        found = cut(config, line, where)
        links = headway_prepared.link_minutes(config, line, found.training)
        days = len(line.time[found.training]) * config.step_minutes / DAY_MINUTES
        if config.schedule and config.check_clock and config.target == "headway" and days >= CLOCK_DAYS:
            clock = check_clock(config, config.schedule, line.planned[..., 0], line.headway, found.training, line.directions)
            line = replace(line, notes=line.notes + clock)
    else:
        tables = read(config) if config.path else embedded_tables(config)
        dates = training_dates(config, tables.service_dates)
        line = raster(config, tables, dates)
        found = cut(config, line, where)
        links = link_minutes(config, tables, line, dates)
    notes = line.notes + check_known(getattr(line, config.target)[found.training], line.stations, where)
    if config.split == "blocked":
        notes += ('split="blocked": training uses later days than the test block; for choosing between models only',)
    statistics = training_statistics(config, line, found.training) | plan_statistics(line.plan)
    statistics["travel_minutes"] = travel_minutes(config, links)
    arrays = shared_arrays(config, line)
    train, valid, test = (_dataset(config, arrays, starts) for starts in found.starts)
    return Splits(train, valid, test, statistics, notes=notes)


def inputs(
    config: DataConfig, statistics: Statistics, path: str, *, at: str = "", every: int = 0, timetable: str = "", snapshots: str = "",
    start: str = "", labelled: bool = False,
) -> Dataset:  # fmt: skip
    """What a finished run reads: its config and statistics, and a file with at least L rows of its line.

    Forecasts are issued at the end of the last complete row; or at the ISO time `at`; or every so many minutes, from `at`
    on where both are given. timetable: planned departures in place of the run's own (what-if); for a prepared array its
    schedule. snapshots: when the feed of this file was read; start: time of row 0 of a prepared array. labelled: instead
    every window that training would take. Stations and directions are matched by name. The arrays go F rows beyond the
    file, unknown. Raises UserError where the file does not fit the run.
    """
    read_by = serving.reading(config, path, timetable, snapshots, start)
    served = serving.served(read_by, statistics)
    if labelled:
        starts = windows(config, served.line)
        if not len(starts):
            raise UserError(f"{path}: no window of {config.window} rows inside one service day has {config.min_known:.0%} of its cells "
                            "known; give a longer file")  # fmt: skip
        return _dataset(config, shared_arrays(config, served.line), starts)
    starts = serving.issue_rows(read_by, served, at, every) - config.lookback + 1
    return _dataset(config, shared_arrays(config, serving.extended(config, served.line)), starts)


def gather(arrays: Arrays, rows: Any, *, lookback: int, horizon: int, inputs: tuple[str, ...], target: str) -> Batch:
    """The windows that start at rows (B, 1): see the module's docstring. Works on NumPy and on jax arrays alike."""
    steps = rows + np.arange(lookback + horizon, dtype=np.int32)
    past, future, first = steps[:, :lookback], steps[:, lookback:], steps[:, lookback]
    batch = {}
    for name in FIELDS:
        known = f"{name}_known"
        if name == target:
            values, mask = arrays[name][steps], arrays[known][steps]
            batch |= {name: values[:, :lookback], known: mask[:, :lookback]}
            batch |= {"target": values[:, lookback:], "target_known": mask[:, lookback:]}
        elif name in inputs:
            batch |= {name: arrays[name][past], known: arrays[known][past]}
    batch["planned"], batch["planned_known"] = arrays["planned"][future], arrays["planned_known"][future]
    batch["when"] = arrays["when"][first]
    if "clock" in arrays:
        batch["clock"] = arrays["clock"][past]
    return batch


def shared_arrays(config: DataConfig, line: Line) -> dict[str, np.ndarray]:
    """The shared arrays: headway, age, planned float32 minutes (0 where unknown), headway_known, age_known, planned_known bool,
    day_type, minute (R,), when (R, 2) int32 (both of them), time (R,) int64, with data.clock also clock (R, 4) float32.
    A field that is neither an input nor the target is left out."""
    arrays: dict[str, np.ndarray] = {}
    for name in (*{*config.inputs, config.target}, "planned"):
        values = getattr(line, name)
        known = np.isfinite(values)
        arrays |= {name: np.where(known, values, np.float32(0)), f"{name}_known": known}
    arrays |= {"day_type": line.day_type, "minute": line.minute, "when": np.stack([line.day_type, line.minute], axis=1), "time": line.time}
    if config.clock:
        arrays["clock"] = _clock(config, line)
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _clock(config: DataConfig, line: Line) -> np.ndarray:
    """(R, 4): sine and cosine of the local minute of the day, then of the week."""
    weekday = (line.service_dates.astype("datetime64[D]").astype(int) + 3) % 7  # Monday 0
    minute = weekday[line.day] * DAY_MINUTES + config.day_start_minutes + line.minute
    angle = 2 * np.pi * np.stack([minute / DAY_MINUTES, minute / WEEK_MINUTES], axis=1)
    return np.stack([np.sin(angle[:, 0]), np.cos(angle[:, 0]), np.sin(angle[:, 1]), np.cos(angle[:, 1])], axis=1).astype(np.float32)


def _dataset(config: DataConfig, arrays: dict[str, np.ndarray], starts: np.ndarray) -> Dataset:
    """Windows that start at these rows (n,)."""
    bound = functools.partial(gather, lookback=config.lookback, horizon=config.horizon, inputs=config.inputs, target=config.target)
    return Dataset(arrays, starts[:, None].astype(np.int32), bound)
