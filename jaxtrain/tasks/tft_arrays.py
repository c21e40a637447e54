"""Arrays that a caller gives by hand: checked, filled and completed to a batch of the network.

Letters as in `tft`: B windows, k past steps, tau future steps, T = k + tau, R targets, O observed and K known columns.
"""

import numpy as np

from jaxtrain.data import fleet_features
from jaxtrain.data.dataset import Batch, Statistics
from jaxtrain.data.fleet_config import DataConfig, Roles, roles
from jaxtrain.data.fleet_statistics import SHRINK_STEPS, Moments, group_values, transformed
from jaxtrain.errors import UserError

SIGNATURE = ("past", "time", "known", "group")
TEXTS = ("past_cat", "known_cat", "static_cat")


def complete(data: DataConfig, statistics: Statistics, batch: Batch) -> Batch:
    """A batch of the network.

    past (B, k, R+O) targets then observed columns, file units, NaN = missing; time (B,) origin: datetime64 or epoch seconds, UTC;
    known (B, T, K). Not needed: group (B,) texts, without them or unknown: a new group; past_cat (B, k, .), known_cat (B, T, .),
    static_cat (B, .) texts as in the file, unknown ones count as missing; static_real (B, .), NaN = missing; past_mask (B, k) bool,
    by default False before a window's first measured value. Raises UserError naming the array, the shape expected and what was given.
    """
    names, k = roles(data), data.context_steps
    shapes = _shapes(data, names, len(np.atleast_1d(batch["past"])) if "past" in batch else 1)
    required = {"past", *(["time"] if names.calendar else []), *(["known"] if names.known_real else [])}
    for name, (shape, columns) in shapes.items():
        text = f"{shape} ({', '.join(columns)})" if columns else f"{shape}"
        if name not in batch and name in required:
            raise UserError(f"predict: {name} is missing; give an array {text}")
        if name in batch and np.shape(batch[name]) != shape:
            raise UserError(f"predict: {name} has shape {np.shape(batch[name])}, this run expects {text}")
    unknown = sorted(batch.keys() - shapes.keys())
    if unknown:
        raise UserError(f"predict: this run takes no {', '.join(unknown)}; it takes {', '.join(shapes)}")

    past = np.asarray(batch["past"], np.float32)
    count, targets = len(past), past[..., : len(names.targets)]
    mask = np.asarray(batch["past_mask"], bool) if "past_mask" in batch else np.logical_or.accumulate(np.isfinite(past).any(2), 1)
    group = _coded(batch["group"], statistics["group_names"]) if "group" in batch else np.zeros(count, np.int32)
    found: Batch = {
        "past": fill(past, data.fill_steps),
        "past_mask": mask,
        "present": (np.isfinite(targets).mean(2) * mask).astype(np.float32),
        "group": group,
        **_group_values(data, statistics, targets, mask, group),
    }
    if names.known_real:
        found["known"] = np.asarray(batch["known"], np.float32)
    if names.static_real:
        found["static_real"] = np.asarray(batch.get("static_real", np.full(shapes["static_real"][0], np.nan)), np.float32)
    for name in TEXTS:
        if name in shapes:
            shape, columns = shapes[name]
            parts = [_coded(batch[name][..., i], statistics[f"vocabulary/{c}"]) for i, c in enumerate(columns)] if name in batch else []
            found[name] = np.stack(parts, -1) if parts else np.zeros(shape, np.int32)
    if names.calendar:
        seconds = np.asarray(batch["time"])
        seconds = seconds.astype("datetime64[s]").astype(np.int64) if seconds.dtype.kind == "M" else seconds.astype(np.int64)
        span = (data.step_seconds, k + data.horizon_steps, data.timezone)
        found["calendar"] = np.stack([fleet_features.calendar(names.calendar, int(s) - k * data.step_seconds, *span) for s in seconds])
    return found


def _shapes(data: DataConfig, names: Roles, count: int) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """name -> (shape, columns) of every array that this run takes."""
    k, steps = data.context_steps, data.context_steps + data.horizon_steps
    found: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {}
    for name, length, columns in (
        ("past", (k,), names.targets + names.observed_real), ("known", (steps,), names.known_real),
        ("past_cat", (k,), names.observed_categorical), ("known_cat", (steps,), names.known_categorical),
        ("static_real", (), names.static_real), ("static_cat", (), names.static_categorical),
    ):  # fmt: skip
        if columns:
            found[name] = ((count, *length, len(columns)), columns)
    if data.groups:
        found["group"] = ((count,), ())
    if names.calendar:
        found["time"] = ((count,), ())
    return found | {"past_mask": ((count, k), ())}


def _coded(texts: np.ndarray, vocabulary: np.ndarray) -> np.ndarray:
    """1 + place of every text in the vocabulary, 0 where it is not there."""
    place = {str(text): i for i, text in enumerate(vocabulary, 1)}
    flat = [place.get(str(text), 0) for text in np.asarray(texts).ravel()]
    return np.array(flat, np.int32).reshape(np.shape(texts))


def fill(values: np.ndarray, steps: int) -> np.ndarray:
    """Missing values of (B, k, F) replaced by the last one at most `steps` older, as in training."""
    place = np.arange(values.shape[1])[:, None]
    last = np.maximum.accumulate(np.where(np.isfinite(values), place, -steps - 1), axis=1)
    filled = np.take_along_axis(values, np.maximum(last, 0), axis=1)
    return np.where(place - last <= steps, filled, np.float32(np.nan))


def _group_values(data: DataConfig, statistics: Statistics, targets: np.ndarray, mask: np.ndarray, group: np.ndarray) -> Batch:
    """center, scale, level and cap: those of the training rows, or of a new group's own history, shrunk to the fleet's."""
    own = np.where(mask[..., None], targets, np.nan)
    log1p = np.asarray(statistics["log1p"][: targets.shape[-1]], bool)
    new = group_values(Moments.stack([Moments.of(transformed(window, log1p)) for window in own]), statistics, data, SHRINK_STEPS)
    known = (group > 0)[:, None]
    found = {name: np.where(known, statistics[name][group - 1], new[name]) for name in ("center", "scale", "level")}
    return {**found, "cap": np.where(known, statistics["cap"][group - 1], statistics["global_cap"])}
