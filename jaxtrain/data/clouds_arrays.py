"""The shared arrays of flights and the windows gathered from them. NumPy only; `gather` also runs on jax arrays."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxtrain.data import clouds_frames
from jaxtrain.data import clouds_splits as parts
from jaxtrain.data.clouds_config import DataConfig
from jaxtrain.data.clouds_flight import Flight
from jaxtrain.data.dataset import Arrays, Batch, Dataset

TRACK = ("heading", "lat", "lon")


def shared_arrays(config: DataConfig, flights: Sequence[Flight], fills: Sequence[np.ndarray]) -> dict[str, Any]:
    """Everything but the references, one row per frame.

    frames (N, H, W) stored type, in memory or mapped; sza, saa (N,) and sun (N, 2), both of them, float32 degrees (an angle
    that the config does not use is 0 where unknown); height_km (N,) float32, NaN without a usable label; time (N,) float64 epoch
    s; frame_id (N,) int32 number of the frame in its recording; heading, lat, lon (N,) float32 degrees where every flight has them.
    """
    sza, saa = (np.concatenate([getattr(flight, name) for flight in flights]) for name in ("sza", "saa"))
    sza = sza if "sza" in config.needed_angles else np.nan_to_num(sza)
    saa = saa if "saa" in config.needed_angles else np.nan_to_num(saa)
    heights = [np.where(parts.labelled_frames(config, flight), flight.height_km, np.float32(np.nan)) for flight in flights]
    arrays = {
        "frames": clouds_frames.join([flight.frames for flight in flights], fills, config.max_gib),
        "sza": sza,
        "saa": saa,
        "sun": np.stack([sza, saa], axis=1),
        "height_km": np.concatenate(heights),
        "time": np.concatenate([flight.time for flight in flights]),
        "frame_id": np.concatenate([flight.frame_id for flight in flights]).astype(np.int32),
    }
    for name in TRACK:
        track = [getattr(flight, name) for flight in flights]
        if all(values is not None for values in track):
            arrays[name] = np.concatenate(track)
    return arrays


def gather(arrays: Arrays, rows: Any, *, frames: int) -> Batch:
    """The windows of `frames` frames around the centre frames of rows (B, 3) int32 = (frame, flight, role).

    frames (B, T, H, W) float32 sensor unit, sun (B, 2) degrees, height_km (B,), reference_km (B, 5), flight, role (B,) int32.
    """
    centre = rows[:, 0]
    steps = centre[:, None] + (np.arange(frames, dtype=np.int32) - frames // 2)
    return {
        "frames": arrays["frames"][steps].astype(np.float32),
        "sun": arrays["sun"][centre],
        "height_km": arrays["height_km"][centre],
        "reference_km": arrays["reference_km"][centre],
        "flight": rows[:, 1],
        "role": rows[:, 2],
    }


def dataset(config: DataConfig, arrays: dict[str, Any], index: np.ndarray, weights: np.ndarray | None = None) -> Dataset:
    """Windows of the index (n, 3) over shared arrays, which become read-only."""
    for array in arrays.values():
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return Dataset(arrays, index, functools.partial(gather, frames=config.temporal_frames), weights)
