"""Reference forecasts of the same windows: what autocorrelation, a lidar on board and plain image statistics give.

Columns of `reference_km`: near, last, ridge, boost, oracle; NaN = not available.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxtrain.data.clouds_config import DataConfig
from jaxtrain.data.clouds_flight import Flight
from jaxtrain.data.clouds_frames import blocks
from jaxtrain.data.clouds_splits import TRAIN, VALID_ROLES, labelled_frames
from jaxtrain.data.dataset import Statistics

NAMES = ("near", "last", "ridge", "boost", "oracle")
NEAR, LAST, RIDGE, BOOST, ORACLE = range(5)
PENALTIES = (1.0, 10.0, 100.0)
LEVELS = (0.02, 0.05, 0.25, 0.5, 0.75, 0.95, 0.98)
MAX_PIXELS = 128  # larger frames are block-averaged
CENTRE = 8  # side of the patch under the lidar
FEATURES = 22


def nearest_training(time: np.ndarray, height_km: np.ndarray, train: np.ndarray, mean_km: float) -> np.ndarray:
    """(n,) label of the nearest other training window in time; the mean where there is none.

    time, height_km, train (bool): (n,) windows of one flight in order of time.
    """
    result = np.full(len(time), mean_km)
    known = np.flatnonzero(train)
    for side in (-1, 1):
        # The neighbour on this side; a training window does not count as its own.
        place = np.searchsorted(known, np.arange(len(time)), side="left" if side < 0 else "right") + (-1 if side < 0 else 0)
        there = (place >= 0) & (place < len(known))
        found = known[place[there]]
        away = np.full(len(time), np.inf)
        away[there] = np.abs(time[found] - time[there])
        value = np.full(len(time), mean_km)
        value[there] = height_km[found]
        if side < 0:
            best, result = away, value
        else:
            result = np.where(away < best, value, result)
    return result


def previous_label(config: DataConfig, flight: Flight, centres: np.ndarray, first: float = np.nan) -> np.ndarray:
    """(n,) the label before a window's own, whether or not that one has a whole window; `first` before the first.

    flight: with all of its frames.
    """
    labelled = np.flatnonzero(labelled_frames(config, flight))
    if not len(labelled):
        return np.full(len(centres), first)
    before = np.searchsorted(labelled, centres) - 1
    return np.where(before >= 0, flight.height_km[labelled[np.maximum(before, 0)]], first)


def window_statistics(config: DataConfig, arrays: Any, frames: np.ndarray) -> np.ndarray:
    """(n, 22) float64 of the windows with these centre frames (n,).

    Mean, std, seven quantiles, mean |row step|, mean |column step|, std of the 4-neighbour Laplacian, these three over the
    std, mean |next - previous frame|, mean, std and minimum of the central 8 x 8, the sun's unit vector.
    """
    before, after = min(1, config.lead), min(1, config.temporal_frames - 1 - config.lead)
    rows = [_image_statistics(arrays["frames"], some, before, after) for some in blocks(frames, arrays["frames"])]
    zenith, azimuth = np.radians(arrays["sun"][frames].astype(np.float64)).T
    sun = np.stack([np.cos(zenith), np.sin(zenith) * np.cos(azimuth), np.sin(zenith) * np.sin(azimuth)], axis=1)
    return np.concatenate([np.concatenate(rows) if rows else np.zeros((0, FEATURES - 3)), sun], axis=1)


def _image_statistics(frames: Any, centre: np.ndarray, before: int, after: int) -> np.ndarray:
    """(n, 19)."""
    image = small(np.asarray(frames[centre], np.float32))
    flat = np.sort(image.reshape(len(image), -1), axis=1)
    mean, std = flat.mean(1, dtype=np.float64), flat.std(1, dtype=np.float64)
    levels = flat[:, [round(level * (flat.shape[1] - 1)) for level in LEVELS]]
    row_step = np.abs(np.diff(image, axis=1)).mean((1, 2), dtype=np.float64)
    column_step = np.abs(np.diff(image, axis=2)).mean((1, 2), dtype=np.float64)
    inner = image[:, 1:-1, 1:-1]
    laplacian = image[:, :-2, 1:-1] + image[:, 2:, 1:-1] + image[:, 1:-1, :-2] + image[:, 1:-1, 2:] - 4 * inner
    rough = np.stack([row_step, column_step, laplacian.std((1, 2), dtype=np.float64)], axis=1)
    if before + after:
        motion = np.abs(small(np.asarray(frames[centre + after], np.float32)) - small(np.asarray(frames[centre - before], np.float32)))
        moved = motion.mean((1, 2), dtype=np.float64)
    else:
        moved = np.zeros(len(image))
    top, left = (image.shape[1] - CENTRE) // 2, (image.shape[2] - CENTRE) // 2
    patch = image[:, top : top + CENTRE, left : left + CENTRE].reshape(len(image), -1)
    relative = rough / np.where(std > 0, std, 1)[:, None]
    columns = [mean, std, levels, rough, relative, moved, patch.mean(1), patch.std(1), patch.min(1)]
    return np.column_stack(columns).astype(np.float64)


def small(image: np.ndarray) -> np.ndarray:
    """Frames (n, H, W) of at most 128 pixels a side: block means, the remainder cut off."""
    height, width = image.shape[1:]
    factor = min(-(-max(height, width) // MAX_PIXELS), min(height, width) // CENTRE)
    if factor <= 1:
        return image
    height, width = height // factor, width // factor
    cut = image[:, : height * factor, : width * factor]
    return cut.reshape(len(image), height, factor, width, factor).mean((2, 4))


def fit_ridge(features: np.ndarray, height_km: np.ndarray, train: np.ndarray, valid: np.ndarray) -> Statistics:
    """Ridge regression of the training windows, in closed form, for every penalty; the choice by the mean error of `valid`.

    ridge_mean, ridge_std (22,) of the features; ridge_coef (3, 22) km per standard deviation; ridge_intercept () km;
    ridge_penalty () row of ridge_coef that was chosen. All but the last come from the training windows alone.
    """
    x, y = features[train], height_km[train].astype(np.float64)
    mean, std = x.mean(0), x.std(0)
    # A feature that hardly varies (a constant angle, up to rounding) says nothing.
    std = np.where(std > 1e-9 * (1 + np.abs(mean)), std, 1)
    scaled = (x - mean) / std
    product, target = scaled.T @ scaled, scaled.T @ (y - y.mean())
    coef = np.stack([np.linalg.solve(product + penalty * np.eye(len(product)), target) for penalty in PENALTIES])
    fitted: Statistics = {
        "ridge_mean": mean, "ridge_std": std, "ridge_coef": coef, "ridge_intercept": np.array(y.mean()), "ridge_penalty": np.array(0),
    }  # fmt: skip
    errors = [
        np.abs(predict_ridge({**fitted, "ridge_penalty": np.array(k)}, features[valid]) - height_km[valid]).mean()
        for k in range(len(PENALTIES))
    ]
    return {**fitted, "ridge_penalty": np.array(np.argmin(errors))}


def predict_ridge(statistics: Statistics, features: np.ndarray) -> np.ndarray:
    """(n,) km of window statistics (n, 22)."""
    scaled = (features - statistics["ridge_mean"]) / statistics["ridge_std"]
    return scaled @ statistics["ridge_coef"][int(statistics["ridge_penalty"])] + statistics["ridge_intercept"]


def fit_boost(features: np.ndarray, height_km: np.ndarray, train: np.ndarray) -> np.ndarray | None:
    """(n,) km of boosted trees on the same statistics, or None without scikit-learn."""
    try:
        from sklearn.ensemble import GradientBoostingRegressor  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    trees = GradientBoostingRegressor(n_estimators=100, max_depth=5, learning_rate=0.1, subsample=0.7, random_state=0)
    return trees.fit(features[train], height_km[train]).predict(features)


def references(
    config: DataConfig, flights: Sequence[Flight], centres: Sequence[np.ndarray], previous: Sequence[np.ndarray],
    roles: Sequence[np.ndarray], arrays: dict[str, Any], index: np.ndarray, mean_km: float,
) -> tuple[np.ndarray, Statistics, tuple[str, ...]]:  # fmt: skip
    """((N, 5) float32 km of every frame, the ridge's statistics, notes).

    Frames without a window of the index have NaN in all but the oracle. index: rows of all roles, as `centres` joined. previous: the
    label before each of the centres, NaN for the first.
    """
    result = np.full((len(arrays["height_km"]), len(NAMES)), np.nan, np.float32)
    result[:, ORACLE] = np.concatenate([flight.oracle_km for flight in flights])
    first = 0
    for flight, mine, before, role in zip(flights, centres, previous, roles, strict=True):
        time, height = flight.time[mine], flight.height_km[mine]
        result[first + mine, NEAR] = nearest_training(time, height, role == TRAIN, mean_km)
        result[first + mine, LAST] = np.where(np.isnan(before), mean_km, before)
        first += len(flight)
    rows, height = index[:, 0], arrays["height_km"][index[:, 0]]
    train, valid = index[:, 2] == TRAIN, np.isin(index[:, 2], VALID_ROLES[config.valid_rows])
    features = window_statistics(config, arrays, rows)
    ridge = fit_ridge(features, height, train, valid)
    result[rows, RIDGE] = predict_ridge(ridge, features)
    if not config.boost:
        return result, ridge, ()
    boosted = fit_boost(features, height, train)
    if boosted is None:
        return result, ridge, ("boost: needs scikit-learn (pip install scikit-learn), or set data.boost=False",)
    result[rows, BOOST] = boosted
    return result, ridge, ()
