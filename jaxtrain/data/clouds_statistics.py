"""What the training windows teach a run about pixels, heights and angles. NumPy only."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxtrain.data.clouds_config import DataConfig
from jaxtrain.data.clouds_frames import blocks
from jaxtrain.data.clouds_splits import TRAIN, used_frames
from jaxtrain.data.dataset import Statistics


def training_statistics(config: DataConfig, arrays: dict[str, Any], index: np.ndarray, names: Sequence[str]) -> Statistics:
    """Scalars unless said otherwise, from the rows of role 0 alone.

    pixel_mean, pixel_std: sensor unit, over the windows' frames, each once; height_mean, height_std: km;
    sun_mean, sun_std (2,): degrees, zenith and azimuth; flights (F,) names; flight_pixel_mean, flight_pixel_std (F,),
    NaN for a flight that does not train; frame_shape (2,). A spread of 0 is given as 1.
    """
    train = index[index[:, 2] == TRAIN]
    flights = len(names)
    moments = [pixel_moments(arrays["frames"], used_frames(config, train[train[:, 1] == k, 0])) for k in range(flights)]
    count, mean, square = (np.array(values) for values in zip(*moments, strict=True))
    total = count.sum()
    pixel_mean = float((count * mean).sum() / total)
    variance = float((square + count * (mean - pixel_mean) ** 2).sum() / total)
    here = count > 0
    height, sun = arrays["height_km"][train[:, 0]].astype(np.float64), arrays["sun"][train[:, 0]].astype(np.float64)
    return {
        "pixel_mean": np.array(pixel_mean),
        "pixel_std": _spread(np.sqrt(variance)),
        "height_mean": np.array(height.mean()),
        "height_std": _spread(height.std()),
        "sun_mean": sun.mean(0),
        "sun_std": _spread(sun.std(0)),
        "flights": np.array(list(names), np.str_),
        "flight_pixel_mean": np.where(here, mean, np.nan),
        "flight_pixel_std": np.where(here, np.sqrt(square / np.maximum(count, 1)), np.nan),
        "frame_shape": np.array(arrays["frames"].shape[1:]),
    }


def label_facts(heights: Sequence[np.ndarray]) -> Statistics:
    """label_lag1 (F,): correlation between neighbouring labels of a flight, NaN below 3 labels; flight_labels (F,): how many.

    For the report's effective numbers of labels, held-out flights included; nothing is trained or predicted with them.
    heights: per flight the labels in order of time, km.
    """
    return {
        "label_lag1": np.array([_lag1(values.astype(np.float64)) for values in heights]),
        "flight_labels": np.array([len(values) for values in heights]),
    }


def pixel_moments(frames: Any, rows: np.ndarray) -> tuple[float, float, float]:
    """(pixels, their mean, their summed square deviation from it), in blocks."""
    count, mean, square = 0, 0.0, 0.0
    for some in blocks(rows, frames):
        block = np.asarray(frames[some], np.float64)
        here = float(block.mean())
        block -= here
        step = here - mean
        both = count + block.size
        square += float(np.vdot(block, block)) + step**2 * count * block.size / both
        mean += step * block.size / both
        count = both
    return count, mean, square


def _lag1(values: np.ndarray) -> float:
    if len(values) < 3 or values[1:].std() == 0 or values[:-1].std() == 0:
        return float("nan")
    return float(np.corrcoef(values[1:], values[:-1])[0, 1])


def _spread(value: Any) -> np.ndarray:
    return np.where(value > 0, value, 1.0)
