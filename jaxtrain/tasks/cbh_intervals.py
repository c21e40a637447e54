"""Honest intervals around a height: split conformal prediction from residuals that the training never saw.

Residuals are kept as histograms of |error| in 5 m bins: additive over batches and runs, and a quantile at most one bin too wide.
"""

import math
from collections.abc import Mapping

import numpy as np

from jaxtrain.data.dataset import Statistics

LEVELS = (0.8, 0.9, 0.95)  # shares of truths that an interval shall hold
BIN_KM, BINS = 0.005, 400  # up to 2 km, and one bin for all beyond
FEW = 20  # fewer residuals of a flight than this, and its blocks are pooled with those of the other flights
STEP = 0.05  # of the adaptive update
VALID_BLOCKED, TEST_BLOCKED, VALID_FLIGHT, TEST_FLIGHT, CALIBRATION = range(1, 6)  # roles of an index row; 6 is the gap after the last


def conformal(histogram: np.ndarray, level: float) -> float | None:
    """Half width in km of the interval that holds `level` of exchangeable truths; None where there are too few residuals.

    The ceil((m + 1) level)-th smallest of m residuals (Vovk et al. 2005), read as the upper edge of its bin. histogram: (BINS + 1,).
    """
    m = float(histogram.sum())
    rank = math.ceil(round((m + 1) * level, 9))  # 10 x 0.9 is nine, not nine and a rounding error
    bin_ = int(np.searchsorted(np.cumsum(histogram), rank))
    return BIN_KM * (bin_ + 1) if m and rank <= m and bin_ < BINS else None


def covered(histogram: np.ndarray, half_width: float) -> float:
    """How many of the residuals lie inside; half_width: a bin's edge, as `conformal` gives it."""
    return float(histogram[: round(half_width / BIN_KM)].sum())


def widths(histogram: np.ndarray) -> np.ndarray:
    """(L,) half widths in km of LEVELS, NaN where there are too few residuals."""
    return np.array([math.nan if (width := conformal(histogram, level)) is None else width for level in LEVELS])


def calibrate(histograms: np.ndarray) -> Statistics:
    """Half widths from the validation split's histograms (7 roles, G flights and all others, BINS + 1).

    blocked_km (G, L): of each flight from its own validation blocks, where it has FEW of them, else from those of all;
    transfer_km (L,): from the flight that was held out for validation. NaN where there are too few residuals.
    """
    own = np.asarray(histograms, np.float64)[VALID_BLOCKED]
    pooled = own.sum(0)
    return {
        "blocked_km": np.stack([widths(flight if flight.sum() >= FEW else pooled) for flight in own]),
        "transfer_km": widths(np.asarray(histograms, np.float64)[VALID_FLIGHT].sum(0)),
    }


def scores(histograms: np.ndarray, statistics: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Coverage, full width in km and number of truths of three kinds of interval, by level: "coverage_90/blocked", "width_km_90/few".

    blocked: flights between their own blocks; transfer: the validation flight's residuals on the test flight, which nothing entitles
    to hold; few: the test flight's first lidar labels on its rest. Only those that the sums and the calibration allow.
    """
    h = np.asarray(histograms, np.float64)
    few = widths(h[CALIBRATION].sum(0))
    found: dict[str, float] = {}
    for i, level in enumerate(LEVELS):
        parts = {"few": [(h[TEST_FLIGHT].sum(0), few[i])]}
        if "blocked_km" in statistics:
            parts["blocked"] = list(zip(h[TEST_BLOCKED], statistics["blocked_km"][:, i], strict=True))
            parts["transfer"] = [(h[TEST_FLIGHT:].sum((0, 1)), statistics["transfer_km"][i])]
        for name, pairs in parts.items():
            known = [(part, float(width)) for part, width in pairs if math.isfinite(width) and part.sum()]
            n = sum(float(part.sum()) for part, _ in known)
            if n:
                percent = f"{100 * level:.4g}"
                found[f"coverage_{percent}/{name}"] = sum(covered(part, width) for part, width in known) / n
                found[f"width_km_{percent}/{name}"] = sum(2 * width * float(part.sum()) for part, width in known) / n
                found[f"interval_n/{name}"] = n
    return found


def serving_widths(statistics: Mapping[str, np.ndarray]) -> np.ndarray:
    """(G, L) half widths in km for predictions by flight: one that was trained on has the widths of its own blocks, any other those of
    the flight held out for validation, or of all blocks together where there is none. NaN where none is known (weights from elsewhere).
    """
    groups = len(statistics["flights"]) + 1
    if "blocked_km" not in statistics:
        return np.full((groups, len(LEVELS)), math.nan)
    own, transfer = statistics["blocked_km"], statistics["transfer_km"]
    trained = np.append(np.isfinite(statistics["flight_pixel_mean"]), False)  # the last group is every other flight
    return np.where(trained[:, None], own, np.where(np.isfinite(transfer), transfer, own[-1]))


def histogram(errors: np.ndarray) -> np.ndarray:
    """(BINS + 1,) counts of |errors|, km."""
    bins = np.minimum(np.floor(np.abs(errors) / BIN_KM).astype(int), BINS)
    return np.bincount(bins, minlength=BINS + 1).astype(np.float64)


def adapted(half_width: float, inside: bool, level: float) -> float:
    """The half width after one more label: q exp(0.05 (miss - (1 - level))). A miss widens, a hit narrows a little
    (adaptive conformal inference, Gibbs and Candes 2021, on a logarithmic scale)."""
    return half_width * math.exp(STEP * (float(not inside) - (1 - level)))
