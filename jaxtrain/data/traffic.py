"""Traffic speeds on a road graph: windows over one shared series, split in time, with statistics of the training rows.

Letters: B batch, T input steps, P output steps, N nodes, R rows, S slots per day. A batch holds
speed (B, T, N) float32 filled causally, observed (B, T, N) bool, slot and dow (B, T+P) int32 (Monday 0),
weather (B, T, 3) float32 degC, km/h, mm/h where there is any, target (B, P, N) float32 (0 where unobserved) and
target_mask (B, P, N) float32. Speeds are in the unit of the input.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxtrain.data.dataset import Arrays, Batch, Dataset, Splits, Statistics
from jaxtrain.data.traffic_config import DataConfig, SyntheticConfig, check_config
from jaxtrain.data.traffic_files import read_series
from jaxtrain.data.traffic_graph import edge_weights, neighbor_lists
from jaxtrain.data.traffic_graph_files import read_graph
from jaxtrain.data.traffic_series import Series
from jaxtrain.data.traffic_splits import NAMES, Cut, cut
from jaxtrain.data.traffic_statistics import calendar, fill_causally, hold, training_statistics, weather_statistics
from jaxtrain.data.traffic_synthetic import oracle, positions, world
from jaxtrain.data.traffic_time import parse_stamp, show
from jaxtrain.errors import UserError

__all__ = ["DataConfig", "SyntheticConfig", "embedded_ids", "gather", "inputs", "oracle", "splits"]
MAX_NAMED = 3  # ids shown in a message


def splits(config: DataConfig, congestion_fraction: float) -> Splits:
    """Train, valid and test windows of `config.path`, or of the embedded network when it is unset.

    congestion_fraction: of the free-flow speed, below which a reading counts as jammed (`congestion_frequency`).
    Raises UserError for every fault of the input.
    """
    check_config(config)
    series = _embedded(config) if not config.path else _with_graph(read_series(config, config.path, config.weather_path), config)
    where = config.path or "embedded network"
    found = cut(config, len(series.time), where)
    taught = found.training_rows(len(series.time))
    _check_observed(series, taught, found, config, where)

    end = found.training[-1][1]
    learned = np.where(taught[:end, None], series.speed[:end], np.nan)
    statistics = training_statistics(learned, series.time[:end], config, congestion_fraction)
    statistics["node_ids"] = series.ids
    notes = []
    if series.weather is not None:
        statistics |= weather_statistics(series.weather[taught])
    if series.pairs is not None:
        statistics["node_pairs"] = series.pairs
    if series.positions is not None:
        statistics["positions"] = series.positions
    weights = series.weights
    if weights is None:
        weights = np.zeros((len(series.ids), len(series.ids)), np.float32)
        notes.append("no graph: nodes exchange no messages; set data.graph_path")
    lists, dropped = neighbor_lists(weights, config.directed, config.max_neighbors)
    statistics |= lists
    if dropped:
        notes.append(f"{dropped} neighbours beyond data.max_neighbors={config.max_neighbors} dropped (smallest weights)")
    unseen = series.ids[~statistics["trained"]]
    if len(unseen):
        notes.append(f"{len(unseen)} of {len(series.ids)} nodes are unobserved in training: {_some(unseen)}")
    if config.split == "windows":
        notes.append('split="windows": neighbouring splits share target rows; for comparison with published figures only')

    if config.split == "blocked":
        notes.append('split="blocked": training uses later data than the test block; for choosing between models only')

    arrays = _arrays(series, config, statistics)
    train, valid, test = (_dataset(arrays, starts, config) for starts in found.starts)
    return Splits(train, valid, test, statistics, notes=tuple(notes))


def inputs(
    config: DataConfig,
    statistics: Statistics,
    path: str,
    weather_path: str = "",
    origins: Sequence[str] = (),
    allow_missing: bool = False,
    labelled: bool = False,
) -> Dataset:
    """What a finished run reads: its config and statistics, and a file with at least T rows of its nodes.

    origins: ISO times of the last input rows; the last row of the file by default. labelled: instead every window
    whose targets lie in the file. allow_missing: nodes (and weather) that the file lacks count as unobserved. The
    arrays go P rows beyond the end of the file, unobserved: the calendar of the forecast, target_mask 0 there; `time`
    (R + P,) int64 holds local epoch seconds, an example starting at row t has its origin at row t + T - 1.
    Files without times begin at `config.start`. Raises UserError where the file does not fit the run.
    """
    check_config(config)
    series = _matched(read_series(replace(config, locations_path=""), path, weather_path), statistics, path, allow_missing)
    rows, needed = len(series.time), config.window if labelled else config.in_steps
    if rows < needed:
        raise UserError(f"{path}: {rows} rows of {config.step_minutes:g} minutes, the run needs at least {needed}"
                        f" ({config.in_steps} input steps{f' and {config.out_steps} targets' if labelled else ''})")  # fmt: skip
    if labelled:
        starts = np.arange(rows - config.window + 1)
    else:
        ends = [_origin_row(text, series.time, config, path) for text in origins] or [rows - 1]
        starts = np.array(ends) - config.in_steps + 1
    for start in starts if not labelled else ():
        if not np.isfinite(series.speed[start : start + config.in_steps]).any():
            raise UserError(f"{path}: no reading in the {config.in_steps} rows up to {show(series.time[start + config.in_steps - 1])}; "
                            "choose another origin")  # fmt: skip
    return _dataset(_arrays(_extended(series, config), config, statistics), starts, config)


def gather(arrays: Arrays, rows: Any, *, in_steps: int, out_steps: int) -> Batch:
    """The windows that start at rows (B, 1): see the module's docstring. Works on NumPy and on jax arrays alike."""
    steps = rows + np.arange(in_steps + out_steps, dtype=np.int32)
    past, future = steps[:, :in_steps], steps[:, in_steps:]
    observed = arrays["observed"][future]
    batch = {
        "speed": arrays["speed"][past],
        "observed": arrays["observed"][past],
        "slot": arrays["slot"][steps],
        "dow": arrays["dow"][steps],
        "target": arrays["speed"][future] * observed,
        "target_mask": observed.astype(np.float32),
    }
    if "weather" in arrays:
        batch["weather"] = arrays["weather"][past]
    return batch


def _with_graph(series: Series, config: DataConfig) -> Series:
    if not config.graph_path:
        return series
    return replace(series, weights=read_graph(config, series.ids, series.named))


def _dataset(arrays: dict[str, np.ndarray], starts: np.ndarray, config: DataConfig) -> Dataset:
    bound = functools.partial(gather, in_steps=config.in_steps, out_steps=config.out_steps)
    return Dataset(arrays, starts[:, None].astype(np.int32), bound)


def embedded_ids(config: DataConfig) -> np.ndarray:
    """(N,) unicode: the nodes of the embedded network, without drawing it."""
    nodes = config.synthetic.nodes
    return np.array([f"n{i:0{len(str(nodes - 1))}d}" for i in range(nodes)])


def _embedded(config: DataConfig) -> Series:
    drawn = world(config.synthetic, config.step_minutes)
    nodes = config.synthetic.nodes
    weights = edge_weights(drawn.network.edges, nodes)
    return Series(drawn.time, drawn.speed, embedded_ids(config), True, weights, drawn.weather, positions(nodes))


def _matched(series: Series, statistics: Statistics, path: str, allow_missing: bool) -> Series:
    """The series in the run's node order (by id, or by position where one side has none), with weather if the run has it."""
    known = [str(i) for i in statistics["node_ids"]]
    if series.named and known != [str(i) for i in range(len(known))]:
        place = {str(i): position for position, i in enumerate(series.ids)}
        unknown = [i for i in place if i not in set(known)]
        absent = [i for i in known if i not in place]
        if unknown:
            raise UserError(f"{path}: nodes the run has never seen: {_some(unknown)}; it expects {len(known)} nodes: {_some(known)}")
        if absent and not allow_missing:
            raise UserError(f"{path}: nodes of the run are absent: {_some(absent)}; add them, or mask them with "
                            "--option allow_missing=yes")  # fmt: skip
        speed = np.full((len(series.time), len(known)), np.nan, np.float32)
        speed[:, [known.index(i) for i in place]] = series.speed
    elif series.speed.shape[1] != len(known):
        raise UserError(f"{path}: {series.speed.shape[1]} nodes, the run expects {len(known)}: {_some(known)}")
    else:
        speed = series.speed
    weather = series.weather if "weather_mean" in statistics else None
    if weather is None and "weather_mean" in statistics:
        if not allow_missing:
            raise UserError(f"{path}: the run uses weather and the file has none; give --option weather=FILE, or go without: "
                            "--option allow_missing=yes")  # fmt: skip
        weather = np.full((len(speed), len(statistics["weather_mean"])), np.nan, np.float32)
    return Series(series.time, speed, statistics["node_ids"], series.named, weather=weather)


def _origin_row(text: str, time: np.ndarray, config: DataConfig, path: str) -> int:
    seconds = parse_stamp(text, config.timezone, "--option origin")
    row = int(np.searchsorted(time, seconds))
    if row == len(time) or time[row] != seconds:
        raise UserError(f"{path}: no row at --option origin={text}; rows go from {show(time[0])} to {show(time[-1])} "
                        f"in steps of {config.step_minutes:g} minutes")  # fmt: skip
    if row < config.in_steps - 1:
        raise UserError(f"{path}: --option origin={text} has {row + 1} rows up to it, the run needs {config.in_steps}")
    return row


def _extended(series: Series, config: DataConfig) -> Series:
    """The series and P unobserved rows after it."""
    more = config.out_steps
    time = series.time[-1] + config.step_seconds * np.arange(1, more + 1)
    speed = np.full((more, series.speed.shape[1]), np.nan, np.float32)
    weather = series.weather
    if weather is not None:
        weather = np.concatenate([weather, np.full((more, weather.shape[1]), np.nan, np.float32)])
    return replace(series, time=np.concatenate([series.time, time]), speed=np.concatenate([series.speed, speed]), weather=weather)


def _arrays(series: Series, config: DataConfig, statistics: Statistics) -> dict[str, np.ndarray]:
    """The shared arrays: speed (R, N) filled, observed (R, N), slot, dow (R,), time (R,), weather (R, 3)."""
    slot, dow = calendar(series.time, config.step_seconds)
    arrays = {
        "speed": fill_causally(series.speed, series.time, config, statistics),
        "observed": np.isfinite(series.speed),
        "slot": slot,
        "dow": dow,
        "time": series.time,
    }
    if series.weather is not None:
        arrays["weather"] = hold(series.weather, statistics["weather_mean"])
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _check_observed(series: Series, taught: np.ndarray, found: Cut, config: DataConfig, where: str) -> None:
    """Nothing to learn from, or nothing to score, is a fault of the input. taught: (R,) bool."""
    observed = np.isfinite(series.speed)
    train = series.speed[taught][observed[taught]]
    if not len(train) or np.ptp(train) == 0:
        values = "no reading" if not len(train) else f"{len(train)} readings, all {train[0]:g}"
        rows = " and ".join(f"{first}-{end - 1}" for first, end in found.training)
        raise UserError(f"{where}: training rows {rows} hold {values}; check data.null_value, data.start and data.fractions")
    unseen = ~np.any(observed[taught], axis=0)
    if np.mean(unseen) > 0.5:
        raise UserError(f"{where}: {unseen.sum()} of {len(series.ids)} nodes are unobserved in the {taught.sum()} training rows "
                        f"({_some(series.ids[unseen])}); check data.null_value")  # fmt: skip
    for name, starts in zip(NAMES, found.starts, strict=True):
        targets = np.zeros(len(observed), bool)
        for step in range(config.in_steps, config.window):
            targets[starts + step] = True
        if not observed[targets].any():
            first, last = np.flatnonzero(targets)[[0, -1]]
            raise UserError(f"{where}: no reading among the targets of {name} (rows {first}-{last}); change data.fractions")


def _some(ids: Any) -> str:
    """Up to three ids, and how many more."""
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return ", ".join(str(i) for i in list(ids)[:MAX_NAMED]) + more
