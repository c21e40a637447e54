"""Prediction at its edges: options, arrays that a caller gives by hand, intervals from a file's own labels, the table that is written.

Letters: B windows, T frames, H rows along track, W columns, G flights of the run and all others, L interval levels.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.clouds_config import DataConfig
from jaxtrain.data.dataset import Batch, Dataset, Statistics
from jaxtrain.errors import UserError
from jaxtrain.tasks import cbh_intervals as intervals
from jaxtrain.tasks.cbh_inputs import USED

OPTIONS = ("every", "nav", "lidar", "calibrate")
WRITTEN = (0.8, 0.9)  # interval levels of the table


def complete(data: DataConfig, statistics: Statistics, batch: Batch) -> Batch:
    """A batch of the network from arrays given by hand: frames (B, T, H, W) in sensor units, sun (B, 2) zenith and azimuth in degrees.

    The azimuth counts from the aircraft's heading, as in training. Raises UserError naming the array, the shape expected and the one given.
    """
    height, width = (int(size) for size in statistics["frame_shape"])
    if "frames" not in batch:
        raise UserError(f"predict: frames is missing; give an array (windows, {data.temporal_frames}, {height}, {width})")
    frames = np.asarray(batch["frames"])
    if frames.ndim != 4 or frames.shape[1:] != (data.temporal_frames, height, width):
        raise UserError(f"predict: frames has shape {frames.shape}, this run expects (windows, {data.temporal_frames}, {height}, {width})")
    if not np.isfinite(frames).all():
        raise UserError("predict: frames holds values that are not finite; give their frame's median instead")
    if unknown := sorted(batch.keys() - {"frames", "sun"}):
        raise UserError(f"predict: this run takes no {', '.join(unknown)}; it takes frames, sun")
    sun = np.asarray(batch.get("sun", np.full((len(frames), 2), np.nan)), np.float32)
    if sun.shape != (len(frames), 2):
        raise UserError(f"predict: sun has shape {sun.shape}, expected ({len(frames)}, 2): zenith and azimuth of each window, degrees")
    if not np.isfinite(sun[:, np.array(USED[data.angles])]).all():
        raise UserError(f"predict: sun is missing or not finite, and this run needs its angles (data.angles={data.angles!r})")
    return {"frames": frames.astype(np.float32), "sun": sun, "flight": np.full(len(frames), -1, np.int32)}


def with_interval(statistics: Statistics, height: jax.Array, flight: Any) -> dict[str, jax.Array]:
    """base_km (B,) and low80_km, high80_km, low90_km, high90_km (B,); NaN where the run has no calibration."""
    table = intervals.serving_widths(statistics).astype(np.float32)
    group = jnp.where((jnp.asarray(flight) >= 0) & (jnp.asarray(flight) < len(table)), flight, len(table) - 1)
    return bounds(height, jnp.asarray(table)[group])


def bounds(height: Any, half_widths: Any) -> dict[str, Any]:
    """Names and columns of heights (B,) km and half widths (B, L) km; no base lies below 0."""
    found = {"base_km": height}
    for level in WRITTEN:
        half = half_widths[:, intervals.LEVELS.index(level)]
        found |= {f"low{100 * level:.0f}_km": (height - half).clip(0), f"high{100 * level:.0f}_km": height + half}
    return found


def table(dataset: Dataset, forecast: Mapping[str, np.ndarray], options: Mapping[str, str]) -> dict[str, np.ndarray]:
    """One row per frame with a whole window, in order of time.

    flight (named after the file), frame (its number in the recording), time_utc (ISO), base_km, low80_km, high80_km, low90_km,
    high90_km, weight_1..weight_T (of the window's frames), cloud_base_km where the file has labels (NaN elsewhere). With the option
    calibrate=k the interval comes from the file's own first k labels.
    """
    frames, arrays = dataset.index[:, 0], dataset.arrays
    columns: dict[str, np.ndarray] = {
        "flight": np.repeat(arrays["flight_name"], len(frames)), "frame": np.asarray(arrays["frame_id"])[frames],
        "time_utc": np.array([utc(t) for t in np.asarray(arrays["time"])[frames]]),
    }  # fmt: skip
    columns |= {name: np.asarray(forecast[name]) for name in bounds(np.zeros(1), np.zeros((1, len(intervals.LEVELS))))}
    truth = np.asarray(forecast["height_km"])
    if "calibrate" in options:
        own = np.asarray(forecast["role"]) == intervals.CALIBRATION
        columns |= bounds(columns["base_km"], _own_widths((columns["base_km"] - truth)[own], len(frames)))
    weights = np.asarray(forecast["frame_weights"])
    if np.isfinite(weights).all():
        columns |= {f"weight_{i + 1}": weights[:, i] for i in range(weights.shape[1])}
    if np.isfinite(truth).any():
        columns["cloud_base_km"] = truth
    return columns


def _own_widths(errors: np.ndarray, windows: int) -> np.ndarray:
    """(B, L) half widths from the residuals of the labels asked for. Raises UserError for too few."""
    half = intervals.widths(intervals.histogram(errors))
    if np.isnan(half[intervals.LEVELS.index(WRITTEN[-1])]):
        raise UserError(f"--option calibrate: {len(errors)} of these labels have a whole window, a 90 % interval needs 9; ask for more")
    return np.broadcast_to(half, (windows, len(half)))


def utc(seconds: float) -> str:
    """ISO time to the millisecond: "2025-02-13T12:00:00.000Z"."""
    return f"{np.datetime64(round(seconds * 1000), 'ms')}Z"
