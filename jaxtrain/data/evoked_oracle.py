"""The forecaster that knows the generator of the synthetic clinic: only the reader's noise is hidden from it."""

import functools

import numpy as np

from jaxtrain.data.evoked_config import SAMPLE_MS, DataConfig
from jaxtrain.data.evoked_synthetic import Hidden, clinic


def oracle(config: DataConfig, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Forecasts for index rows (B, 1) or (B, 2), float32: probability (B,) that the reader marks a wave V, latency_ms (B,) where
    he does, with latency_sd_ms, his own spread, and amplitude_uv (B,), the record at the true latency."""
    hidden, amplitude = _hidden(config.patients, config.seed)
    record = rows[:, 0]
    with np.errstate(divide="ignore"):
        spread = 0.04 + 0.16 * np.minimum(1, hidden.sigma / hidden.amplitude)
    found = {"probability": hidden.p_present, "latency_ms": hidden.tau5, "latency_sd_ms": spread, "amplitude_uv": amplitude}
    return {name: values[record].astype(np.float32) for name, values in found.items()}


@functools.lru_cache(maxsize=1)
def _hidden(patients: int, seed: int) -> tuple[Hidden, np.ndarray]:
    """What the generator knows, and (R,) uV of the record at the true latency; the bare amplitude where that lies beyond it."""
    records, hidden = clinic(patients, seed)
    signal = records.signal
    sample = np.round(hidden.tau5 / SAMPLE_MS).astype(int)
    inside = signal[np.arange(len(signal)), np.minimum(sample, signal.shape[1] - 1)]
    return hidden, np.where(sample < signal.shape[1], inside, hidden.amplitude)
