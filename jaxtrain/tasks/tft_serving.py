"""Prediction at its edges: options, the tables that are written, and what they say about each window.

Letters as in `tft`: B windows, k past steps, tau future steps, T = k + tau, R targets, Q quantile levels.
"""

import sys
from collections.abc import Mapping

import numpy as np

from jaxtrain.data.dataset import Dataset
from jaxtrain.data.fleet_config import DataConfig, roles
from jaxtrain.errors import UserError
from jaxtrain.tasks.options import check

RECENT_STEPS = 12  # of the past, whose weights are also written on their own


def origins(options: Mapping[str, str], known: tuple[str, ...]) -> tuple[str, int]:
    """(`at`, `every`) of the options; "" and 0 where they are not given. Raises UserError for an unknown option or both at once."""
    check(options, known)
    at, every = options.get("at", ""), options.get("every", "0")
    if not every.isdecimal() or ("every" in options and int(every) < 1):
        raise UserError(f"--option every={every}: expected a number of steps from 1")
    if at and int(every):
        raise UserError("--option at: names one origin, every names many; give one of the two")
    return at, int(every)


def announced(dataset: Dataset) -> Dataset:
    """The dataset, after saying on stderr what its file holds that the run does not know."""
    for note in np.asarray(dataset.arrays["notes"]):
        print(f"note: {note}", file=sys.stderr)
    return dataset


def table(data: DataConfig, levels: tuple[float, ...], dataset: Dataset, forecast: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One row per window, target and step, in this order.

    Group columns (texts), origin and timestamp (datetime64[s], UTC), step (from 1), target, the quantiles q02 ... q98 in units of the
    target, p_above_<threshold> (NaN for other targets), history_steps before the origin (at most k), note.
    """
    windows, shape = Windows(data, dataset, forecast), (len(forecast["when"]), len(data.targets), data.horizon_steps)

    def along(axis: int, values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.expand_dims(values, [a for a in range(3) if a != axis]), shape).ravel()

    step = np.arange(1, data.horizon_steps + 1)
    time = windows.origin[:, None] + (step - 1) * np.timedelta64(data.step_seconds, "s")
    columns = {name: along(0, values) for name, values in windows.groups.items()}
    columns |= {"origin": along(0, windows.origin), "timestamp": np.broadcast_to(time[:, None], shape).ravel()}
    columns |= {"step": along(2, step), "target": along(1, np.array(data.targets))}
    quantiles = np.moveaxis(np.asarray(forecast["quantiles"]), 2, 1)  # (B, R, tau, Q)
    columns |= {quantile_name(level): quantiles[..., q].ravel() for q, level in enumerate(levels)}
    for a, (name, threshold) in enumerate(data.alerts.items()):
        # Two targets may share a threshold, and then a column.
        column = columns.setdefault(f"p_above_{threshold:g}", np.full(np.prod(shape), np.nan, np.float32)).reshape(shape)
        column[:, data.targets.index(name)] = forecast["p_above"][..., a]
    return {**columns, "history_steps": along(0, forecast["when"][:, 2]), "note": along(0, windows.notes())}


def quantile_name(level: float) -> str:
    """q02, q98; q02.5 for levels between whole percents."""
    whole, point, rest = f"{100 * level:g}".partition(".")
    return f"q{whole.zfill(2)}{point}{rest}"


class Windows:
    """What the tables say of each window: its group's columns, its origin (B,) datetime64[s] UTC, and notes."""

    def __init__(self, data: DataConfig, dataset: Dataset, forecast: Mapping[str, np.ndarray]):
        self.data, self.forecast = data, forecast
        when = np.asarray(forecast["when"])
        names = np.asarray(dataset.arrays["group_names"])[when[:, 0]]
        parts = [str(name).split("/", max(0, len(data.groups) - 1)) for name in names]
        self.groups = {column: np.array([part[i] for part in parts]) for i, column in enumerate(data.groups)}
        seconds = int(dataset.arrays["start"]) + when[:, 1].astype(np.int64) * data.step_seconds
        self.origin = seconds.astype("datetime64[s]")

    def notes(self) -> np.ndarray:
        """(B,) texts, empty where there is nothing to say."""
        data, forecast = self.data, self.forecast
        said = [(forecast["when"][:, 2] < data.min_history_steps, f"history below {data.min_history_steps} steps")]
        if data.groups:
            said.append((forecast["group"] == 0, "new group"))
        for i, name in enumerate(roles(data).static_categorical):
            said.append((forecast["static_cat"][:, i] == 0, f"{name} unknown"))
        flags = zip(*(flag for flag, _ in said), strict=True)
        return np.array(["; ".join(text for set_, (_, text) in zip(row, said, strict=True) if set_) for row in flags])


def weights_table(
    data: DataConfig, names: Mapping[str, tuple[str, ...]], dataset: Dataset, forecast: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What each variable counted for: group columns, origin, part (static, past, future), variable, weight (mean over the steps that
    exist), recent_weight (over the last 12 of the past; NaN elsewhere). Each part sums to 1. They show what is read, not causes."""
    windows = Windows(data, dataset, forecast)
    past = np.asarray(forecast["past_mask"], bool)[..., None]
    rows: list[tuple[str, str, np.ndarray, np.ndarray]] = []
    for part, labels in names.items():
        if not labels:
            continue
        weights = np.asarray(forecast[f"{part}_weights"], np.float64)
        recent = np.full((len(weights), len(labels)), np.nan)
        if part == "past":
            recent = _mean_where(weights[:, -RECENT_STEPS:], past[:, -RECENT_STEPS:])
            weights = _mean_where(weights, past)
        elif part == "future":
            weights = weights.mean(1)
        rows += [(part, label, weights[:, i], recent[:, i]) for i, label in enumerate(labels)]
    return {
        **{column: np.repeat(values, len(rows)) for column, values in windows.groups.items()},
        "origin": np.repeat(windows.origin, len(rows)),
        "part": np.tile([part for part, *_ in rows], len(windows.origin)),
        "variable": np.tile([label for _, label, *_ in rows], len(windows.origin)),
        "weight": np.stack([weight for *_, weight, _ in rows], 1).ravel(),
        "recent_weight": np.stack([recent for *_, recent in rows], 1).ravel(),
    }


def _mean_where(weights: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over axis 1 under the mask; NaN without any."""
    count = mask.sum(1)
    return np.where(count > 0, np.where(mask, weights, 0).sum(1) / np.maximum(count, 1), np.nan)


def attention_steps(horizon: int) -> tuple[int, ...]:
    """The horizon steps, from 1, whose attention is shown: the first, a quarter, a half, the last."""
    return tuple(sorted({1, max(1, horizon // 4), max(1, horizon // 2), horizon}))


def attention_table(data: DataConfig, dataset: Dataset, forecast: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Where four horizon steps looked: group columns, origin, step (from 1), position (steps from the origin, negative = past), weight."""
    windows, steps = Windows(data, dataset, forecast), np.array(attention_steps(data.horizon_steps))
    position = np.arange(-data.context_steps, data.horizon_steps)
    each = len(steps) * len(position)
    return {
        **{column: np.repeat(values, each) for column, values in windows.groups.items()},
        "origin": np.repeat(windows.origin, each),
        "step": np.tile(np.repeat(steps, len(position)), len(windows.origin)),
        "position": np.tile(position, len(windows.origin) * len(steps)),
        "weight": np.asarray(forecast["attention"])[:, steps - 1].ravel(),
    }
