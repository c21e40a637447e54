"""Plain scores of forecasts, for tests: by definition, one record at a time or one pair at a time."""

import numpy as np


def centred(wave: np.ndarray) -> np.ndarray:
    """(B, 200) without the window's mean."""
    return wave - wave.mean(1, keepdims=True)


def gain_db(forecast: np.ndarray, target: np.ndarray, signal: np.ndarray, noise: float = 0.0) -> float:
    """How much less than the signal's the excess error is; noise: mean square of the target's own."""
    identity, excess = (((centred(wave) - centred(target)) ** 2).mean() - noise for wave in (signal, forecast))
    return float(10 * np.log10(identity / excess))


def mean_r(forecast: np.ndarray, target: np.ndarray) -> float:
    a, b = centred(forecast), centred(target)
    return float(((a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))).mean())


def auc(score: np.ndarray, truth: np.ndarray) -> float:
    """Share of pairs (yes, no) that the score orders, ties half."""
    yes, no = np.sort(score[truth]), np.sort(score[~truth])
    below = np.searchsorted(no, yes, "left") + np.searchsorted(no, yes, "right")
    return float(below.sum() / 2 / len(yes) / len(no))


def macro_f1(forecast: np.ndarray, truth: np.ndarray) -> float:
    both = [((forecast == c) & (truth == c)).sum() for c in range(5)]
    either = [(forecast == c).sum() + (truth == c).sum() for c in range(5)]
    return float(np.mean([2 * b / max(e, 1) for b, e in zip(both, either, strict=True)]))
