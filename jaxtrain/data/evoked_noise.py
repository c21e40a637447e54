"""Averaged background activity: a unit-variance Gaussian of power density f^2/(f^2+150^2) / (1 + (f/165)^2.25), f in Hz.

The shape was fitted to differences of half averages of adults. A record is made by an inverse FFT of 256 points, of which
the first 200 are kept: about 15 independent values.
"""

import numpy as np

from jaxtrain.data.evoked_config import SAMPLE_RATE_HZ, SAMPLES

POINTS = 256


def spectrum() -> np.ndarray:
    """(129,) share of the variance in each frequency of a real FFT of 256 points; sums to 1."""
    f = np.fft.rfftfreq(POINTS, 1 / SAMPLE_RATE_HZ)
    density = f**2 / (f**2 + 150.0**2) / (1 + (f / 165.0) ** 2.25)
    density[1:-1] *= 2  # the frequencies below zero
    return density / density.sum()


def covariance() -> np.ndarray:
    """(200, 200) float64 covariance of the noise; its diagonal is 1."""
    share = spectrum()
    lag = np.arange(SAMPLES)
    by_lag = np.cos(2 * np.pi * lag[:, None] * np.arange(len(share)) / POINTS) @ share
    return by_lag[np.abs(lag[:, None] - lag)]


def draw(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 200) float32 draws of the noise."""
    share = spectrum()
    # irfft divides by POINTS and counts every frequency but the first and last twice.
    scale = POINTS * np.sqrt(share / 4)
    scale[[0, -1]] = POINTS * np.sqrt(share[[0, -1]])
    parts = rng.standard_normal((count, len(share), 2), np.float32) * scale[:, None].astype(np.float32)
    return np.fft.irfft(parts.view(np.complex64)[..., 0], POINTS)[:, :SAMPLES].astype(np.float32, copy=False)
