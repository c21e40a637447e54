"""Reference forecasts that need the training records only: medians of like records, and a linear filter.

Letters: R records, V cells by level (31 steps of 5 dB, 32nd missing), F by recording quality (6 bins, 7th missing),
A by age (0, older, missing), G groups of levels (15 of 10 dB, 16th for all), M modes of the filter.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxtrain.data import evoked_noise
from jaxtrain.data.dataset import Statistics

LEVELS, LEVEL_STEP_DB, LOWEST_DB = 31, 5, -20
FMP_EDGES = (0.1, 0.5, 1.0, 2.0, 5.0)
CELLS = (LEVELS + 1, len(FMP_EDGES) + 2, 3)
LEAST_ROWS = 10  # of a cell; else the value of all records
GROUPS, GROUP_STEP_DB = 15, 10
MODES = 40  # kept of 200: the others pass less than a thousandth
LEAST_GROUP = 100  # records of a level group; else the filter of all
PEAK_MS = (4.8, 9.75)
Covariance = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (signal, target), each (n, 200) -> (200, 200) of what is wanted


def cells(statics: Any, ok: Any) -> tuple[Any, Any, Any]:
    """Cell numbers (level, quality, age), each (B,) int32, of statics (B, 4) raw with their ok (B, 4) bool. NumPy or jax arrays."""
    age, level, _, fmp = (statics[:, i] for i in range(4))
    age_ok, level_ok, _, fmp_ok = (ok[:, i].astype("int32") for i in range(4))
    step = ((level - LOWEST_DB + LEVEL_STEP_DB / 2) // LEVEL_STEP_DB).astype("int32").clip(0, LEVELS - 1)
    quality = sum((fmp >= edge).astype("int32") for edge in FMP_EDGES)
    older = (age >= 1).astype("int32")
    return (
        step * level_ok + LEVELS * (1 - level_ok),
        quality * fmp_ok + (len(FMP_EDGES) + 1) * (1 - fmp_ok),
        older * age_ok + 2 * (1 - age_ok),
    )


def groups(statics: Any, ok: Any) -> Any:
    """(B,) int32 level group of 10 dB, the last where the level is missing. NumPy or jax arrays."""
    known = ok[:, 1].astype("int32")
    group = ((statics[:, 1] - LOWEST_DB) // GROUP_STEP_DB).astype("int32").clip(0, GROUPS - 1)
    return group * known + GROUPS * (1 - known)


def table_statistics(batch: dict[str, np.ndarray], class_share: np.ndarray) -> Statistics:
    """table_present, table_latency_ms, table_amplitude_uv, table_threshold_db (V, F, A) and table_class (V, F, A, 5), float32.

    Medians, and shares of present and class, over the training records of a gathered batch.
    """
    cell = np.asarray(np.ravel_multi_index(cells(batch["statics"], batch["statics_ok"]), CELLS))
    one_hot = np.eye(len(class_share))[batch["label"]]  # row -1 belongs to records that do not count
    parts = {
        "present": (batch["present"].astype(float), batch["present_ok"], np.mean, 0.5),
        "latency_ms": (batch["latency_ms"], batch["peak_ok"], np.median, 0.0),
        "amplitude_uv": (batch["amplitude_uv"], batch["peak_ok"], np.median, 0.0),
        "threshold_db": (batch["threshold_db"], batch["threshold_ok"], np.median, 0.0),
        "class": (one_hot, batch["label"] >= 0, np.mean, class_share),
    }
    return {f"table_{name}": _by_cell(values, ok, cell, how, default) for name, (values, ok, how, default) in parts.items()}


def _by_cell(values: np.ndarray, ok: np.ndarray, cell: np.ndarray, how: Callable[..., Any], default: Any) -> np.ndarray:
    values, cell = values[ok], cell[ok]
    table = np.empty((int(np.prod(CELLS)), *values.shape[1:]), np.float32)
    table[:] = how(values, axis=0) if len(values) else default
    for number in np.flatnonzero(np.bincount(cell) >= LEAST_ROWS):
        table[number] = how(values[cell == number], axis=0)
    return table.reshape(*CELLS, *values.shape[1:])


def wiener_statistics(
    signal: np.ndarray, target: np.ndarray, statics: np.ndarray, ok: np.ndarray, k: np.ndarray, s_of: Covariance
) -> Statistics:
    """Filters S (S + v K)^-1 by level group, in the eigenbasis of (S, K): K = L L', L^-1 S L'^-1 = U diag(d) U'.

    wiener_mean (G, 200), wiener_in (G, M, 200) = U' L^-1, wiener_out (G, M, 200) = (L U)', wiener_d (G, M), float32:
    forecast = mean + sum_m d/(d+v) (in_m . (x - mean)) out_m. s_of: (signal, target) of a group -> covariance of what is wanted.
    """
    low = np.linalg.cholesky(k + 1e-6 * np.eye(len(k)))
    inverse = np.linalg.inv(low)
    of_row = groups(statics, ok)
    whole = _filter(signal, target, low, inverse, s_of)
    parts = [whole] * (GROUPS + 1)
    for group in range(GROUPS):
        rows = of_row == group
        if rows.sum() >= LEAST_GROUP:
            parts[group] = _filter(signal[rows], target[rows], low, inverse, s_of)
    names = ("wiener_mean", "wiener_in", "wiener_out", "wiener_d")
    return {name: np.stack(column).astype(np.float32) for name, column in zip(names, zip(*parts, strict=True), strict=True)}


def _filter(signal: np.ndarray, target: np.ndarray, low: np.ndarray, inverse: np.ndarray, s_of: Covariance) -> tuple:
    d, u = np.linalg.eigh(inverse @ s_of(signal, target) @ inverse.T)
    d, u = np.maximum(d[: -MODES - 1 : -1], 0), u[:, : -MODES - 1 : -1]
    return target.mean(0, dtype=np.float64), u.T @ inverse, (low @ u).T, d


def signal_covariance(signal: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(200, 200) covariance of the target: what a filter is to bring out."""
    return np.cov(target.T.astype(np.float64), ddof=0)


def common_covariance(signal: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(200, 200) symmetric covariance between two halves: what they have in common, without the noise of either."""
    a, b = (x.astype(np.float64) - x.mean(0, dtype=np.float64) for x in (signal, target))
    cross = a.T @ b / len(a)
    return (cross + cross.T) / 2


def noise_covariance(half_a: np.ndarray | None, half_b: np.ndarray | None) -> np.ndarray:
    """(200, 200) covariance of the noise, diagonal 1: by lag from differences of halves, or the shape of `evoked_noise`."""
    if half_a is None or half_b is None:
        return evoked_noise.covariance()
    difference = half_a.astype(np.float64) - half_b
    # By the power spectrum of zero-padded records, which is never negative: a covariance whatever the number of records.
    samples = difference.shape[1]
    power = (np.abs(np.fft.rfft(difference / difference.std(1, keepdims=True), 2 * samples)) ** 2).mean(0)
    by_lag = np.fft.irfft(power)[:samples]
    lag = np.arange(samples)
    return (by_lag / by_lag[0])[np.abs(lag[:, None] - lag)]


def wiener(statistics: Statistics, signal: np.ndarray, statics: np.ndarray, ok: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
    """(B, 200) filtered signals. noise: (B,) variance v of each, in place of `noise_variance`."""
    v = noise_variance(statistics, signal, statics, ok) if noise is None else noise
    g = groups(statics, ok)
    mean, d = statistics["wiener_mean"][g], statistics["wiener_d"][g]
    # By group: a filter per record would be gathered 200 x 40 times.
    result = mean.copy()
    for group in np.unique(g):
        rows = g == group
        weight = (signal[rows] - mean[rows]) @ statistics["wiener_in"][group].T * (d[rows] / (d[rows] + v[rows, None]))
        result[rows] += weight @ statistics["wiener_out"][group]
    return result


def noise_variance(statistics: Statistics, signal: np.ndarray, statics: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """(B,) v: var(signal) x wiener_share where that is above 0, else var(signal) / (fmp + 1), or the training median `wiener_v`."""
    variance = signal.var(1)
    if statistics["wiener_share"] > 0:
        return variance * statistics["wiener_share"]
    return np.where(ok[:, 3], variance / (statics[:, 3] + 1), statistics["wiener_v"])


def peak_ms(wave: np.ndarray) -> np.ndarray:
    """(B,) ms of the largest sample in 4.8-9.75 ms of (B, 200)."""
    first, last = (round(ms / 0.05) for ms in PEAK_MS)
    return (first + wave[:, first : last + 1].argmax(1)) * np.float32(0.05)
