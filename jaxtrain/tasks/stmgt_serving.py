"""Prediction at its edges: how a file is read, arrays that a caller gives by hand, and the table that is written.

Letters as in `stmgt`: B windows, T input steps, P output steps, N nodes.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxtrain.data.dataset import Batch, Dataset, Statistics
from jaxtrain.data.traffic_config import CHOICES, DAY_SECONDS, DataConfig
from jaxtrain.data.traffic_statistics import fill_causally
from jaxtrain.engine.config import nearest
from jaxtrain.errors import UserError

READING = ("weather", "start", "allow_missing", "layout", "key", "feature")  # options of every file that a run reads


def reading(trained: DataConfig, path: str, options: Mapping[str, str]) -> DataConfig:
    """How a finished run reads the file `path`: as its training file, but for what belongs to that file alone.

    `start` is where the training file begins: another file would silently get its weekdays and hours. Layout and key
    belong to its format: a file of another suffix is recognized by itself. Options name all of them, and `feature`.
    """
    same = bool(trained.path) and Path(path).resolve() == Path(trained.path).resolve()
    alike = Path(path).suffix.lower() == Path(trained.path).suffix.lower()
    layout, feature = options.get("layout", trained.layout if alike else "auto"), options.get("feature", str(trained.feature))
    if layout not in CHOICES["layout"]:
        raise UserError(f"--option layout={layout}: unknown layout{nearest(layout, CHOICES['layout'])}")
    if not feature.isdecimal():
        raise UserError(f"--option feature={feature}: expected a whole number from 0")
    start, key = options.get("start", trained.start if same else ""), options.get("key", trained.key if alike else "")
    return replace(trained, start=start, layout=layout, key=key, feature=int(feature))


def complete(data: DataConfig, statistics: Statistics, batch: Batch) -> Batch:
    """A batch of the network from arrays given by hand.

    speed (B, T, N) in the run's unit, NaN where nothing was read; slot (step of the day from 0) and dow (Monday 0),
    (B, T + P), past and future; weather (B, T, 3) degC, km/h, mm/h if the run was trained with it. Readings are filled as in
    training. Raises UserError naming the array, the shape or range expected and what was given.
    """
    nodes, slots = len(statistics["node_ids"]), data.slots
    windows = max(1, *np.shape(batch.get("speed", ()))[:1], 1)
    shapes = {"speed": (windows, data.in_steps, nodes), "slot": (windows, data.window), "dow": (windows, data.window)}
    if "weather_mean" in statistics:
        shapes["weather"] = (windows, data.in_steps, 3)
    for name, shape in shapes.items():
        if name not in batch:
            raise UserError(f"predict: {name} is missing; give an array {_text(shape)}")
        if np.shape(batch[name]) != shape:
            raise UserError(f"predict: {name} has shape {_text(np.shape(batch[name]))}, this run expects {_text(shape)}")
    unknown = sorted(batch.keys() - shapes.keys())
    if unknown:
        why = ", it was trained without" if unknown == ["weather"] else ""
        raise UserError(f"predict: this run takes no {', '.join(unknown)}{why}; it takes {', '.join(shapes)}")
    calendar = {name: np.asarray(batch[name]).astype(np.int32) for name in ("slot", "dow")}
    for name, count in (("slot", slots), ("dow", 7)):
        if calendar[name].min(initial=0) < 0 or calendar[name].max(initial=0) >= count:
            raise UserError(f"predict: {name} must lie in 0..{count - 1}, got {calendar[name].min()}..{calendar[name].max()}")
    speed = np.asarray(batch["speed"], np.float32)
    if np.nanmin(speed, initial=0) < 0 or np.nanmax(speed, initial=0) > data.max_value:
        raise UserError(f"predict: speed must lie in 0..{data.max_value:g} {data.unit}, got {np.nanmin(speed):g}..{np.nanmax(speed):g}")
    filled = [_fill(data, statistics, *window) for window in zip(speed, calendar["slot"], calendar["dow"], strict=True)]
    found: Batch = {"speed": np.stack(filled), "observed": np.isfinite(speed), **calendar}
    if "weather" in shapes:
        weather = np.asarray(batch["weather"], np.float32)
        found["weather"] = np.where(np.isfinite(weather), weather, statistics["weather_mean"]).astype(np.float32)
    return found


def _fill(data: DataConfig, statistics: Statistics, speed: np.ndarray, slot: np.ndarray, dow: np.ndarray) -> np.ndarray:
    """One window (T, N) without holes."""
    # Epoch seconds of some week in which the first step has this slot and weekday (day 0 of the epoch is a Thursday).
    first = ((int(dow[0]) - 3) % 7) * DAY_SECONDS + int(slot[0]) * data.step_seconds
    return fill_causally(speed, first + data.step_seconds * np.arange(len(speed)), data, statistics)


def _text(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"


def table(data: DataConfig, levels: tuple[float, ...], statistics: Statistics, dataset: Dataset, forecast: Mapping[str, np.ndarray], *,
          components: bool) -> dict[str, np.ndarray]:  # fmt: skip
    """One row per origin, horizon and node, in this order; nodes without any reading in training are left out.

    origin, time (datetime64[s], local), horizon_minutes, node (or node_a_id, node_b_id), median, mean, std, q05 ... (the
    levels but the median), p_congested, last, damped; with `components` also weight_k, mean_k, std_k; unit = that of the speeds.
    """
    origin = np.asarray(dataset.arrays["time"])[dataset.index[:, 0] + data.in_steps - 1]  # (B,) epoch seconds
    trained = np.flatnonzero(statistics["trained"])
    shape = (len(origin), data.out_steps, len(trained))
    ahead = np.arange(1, data.out_steps + 1) * data.step_minutes

    def along(axis: int, values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.expand_dims(values, [a for a in range(3) if a != axis]), shape).ravel()

    def cells(values: np.ndarray) -> np.ndarray:
        return np.asarray(values)[:, :, trained].ravel()

    time = (origin[:, None] + np.round(ahead * 60).astype(np.int64)).astype("datetime64[s]")
    columns = {
        "origin": along(0, origin.astype("datetime64[s]")),
        "time": np.broadcast_to(time[:, :, None], shape).ravel(),
        "horizon_minutes": along(1, ahead.astype(np.int64) if np.all(ahead % 1 == 0) else ahead),
    }
    if "node_pairs" in statistics:
        pairs = statistics["node_pairs"][trained]
        columns |= {"node_a_id": along(2, pairs[:, 0]), "node_b_id": along(2, pairs[:, 1])}
    else:
        columns["node"] = along(2, statistics["node_ids"][trained])
    columns |= {name: cells(forecast[name]) for name in ("median", "mean", "std")}
    columns |= {_quantile_name(q): cells(forecast["quantiles"][..., k]) for k, q in enumerate(levels) if q != 0.5}
    columns |= {name: cells(forecast[name]) for name in ("p_congested", "last", "damped")}
    if components:
        for k in range(forecast["component_mean"].shape[-1]):
            columns |= {f"{name}_{k}": cells(forecast[f"component_{name}"][..., k]) for name in ("weight", "mean", "std")}
    columns["unit"] = np.full(columns["median"].shape, data.unit)
    return columns


def _quantile_name(level: float) -> str:
    """q05, q95; q02.5 for levels between whole percents."""
    whole, point, rest = f"{100 * level:g}".partition(".")
    return f"q{whole.zfill(2)}{point}{rest}"
