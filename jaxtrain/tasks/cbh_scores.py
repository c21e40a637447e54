"""Scores of heights: masked sums by role and flight inside jit, scores in km on the host.

Letters: B windows, R roles of an index row (7), F flights of the run, G = F + 1: the last group is every other flight.
A split holds either validation rows (roles 1, 3) or test rows (2; 4 to 6), so that one name serves both: `blocked` are rows between
a training flight's own blocks, `flight` those of a flight that was held out whole.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.dataset import Batch, Statistics
from jaxtrain.tasks.cbh_intervals import BIN_KM, BINS
from jaxtrain.tasks.task import Sums

ROLES = 7
PARTS = {"train": (0,), "blocked": (1, 2), "flight": (3, 4, 5, 6)}
EDGES_KM = (0.3, 0.6, 1.0, 1.5)  # of the height classes
CLASSES = ("0-0.3", "0.3-0.6", "0.6-1", "1-1.5", ">1.5")
PERCENTILES = (25, 50, 75, 90, 95)
KINDS = ("n", "y", "yy", "f", "ff", "fy", "err", "abs", "sq", "loss")
CLASS_KINDS = ("n", "err", "abs")
TIERS = {  # what a user asks of the test flight: least R2, largest MAE and RMSE in km
    "minimum": (0.0, 0.35, math.inf),
    "good": (0.3, 0.30, 0.45),
    "excellent": (0.5, 0.25, math.inf),
}


@dataclass(frozen=True)
class Layout:
    """What scores are named and grouped by.

    center: km, the training rows' mean height: the constant forecast that skill is measured from
    lag1:   (F,) correlation of neighbouring labels of a flight, NaN where unknown
    """

    flights: tuple[str, ...]
    center: float
    lag1: np.ndarray

    @property
    def groups(self) -> int:
        return len(self.flights) + 1


def layout(statistics: Statistics) -> Layout:
    """Of a run's statistics."""
    return Layout(tuple(str(name) for name in statistics["flights"]), float(statistics["height_mean"]), statistics["label_lag1"])


def window_sums(layout: Layout, height: Any, loss: Any, batch: Batch) -> Sums:
    """Sums of a forecast height (B,) km and its loss (B,) over the labelled, unmasked windows of a batch.

    moments (R, G, K) of KINDS: n, truth y and forecast f about the training mean, yy, ff, fy, error f - y as err, abs and sq, loss;
    classes (R, G, 5, 3): CLASS_KINDS in classes of the true height; histogram (R, G, BINS + 1) of |error| in 5 m bins.
    """
    truth = jnp.asarray(batch["height_km"], jnp.float32)
    weight = jnp.asarray(batch["mask"], jnp.float32) * jnp.isfinite(truth)
    height, flight = jnp.asarray(height, jnp.float32), jnp.asarray(batch["flight"])
    group = jnp.where((flight >= 0) & (flight < len(layout.flights)), flight, len(layout.flights))
    cell = jnp.asarray(batch["role"]) * layout.groups + group
    y, f, error = truth - layout.center, height - layout.center, height - truth
    size = jnp.abs(error)
    values = jnp.stack([jnp.ones_like(y), y, y**2, f, f**2, f * y, error, size, error**2, jnp.asarray(loss, jnp.float32)], 1)
    values = jnp.where(weight[:, None] > 0, weight[:, None] * values, 0.0)
    of_class = cell * len(CLASSES) + jnp.searchsorted(jnp.asarray(EDGES_KM, jnp.float32), truth, side="right")
    bins = jnp.clip(jnp.floor(size / BIN_KM), 0, BINS).astype(jnp.int32)
    cells = ROLES * layout.groups
    return {
        "moments": _added(cell, values, cells).reshape(ROLES, layout.groups, -1),
        "classes": _added(of_class, values[:, jnp.array([KINDS.index(kind) for kind in CLASS_KINDS])], cells * len(CLASSES)).reshape(
            ROLES, layout.groups, len(CLASSES), -1
        ),
        "histogram": jnp.zeros(cells * (BINS + 1)).at[cell * (BINS + 1) + bins].add(weight).reshape(ROLES, layout.groups, -1),
    }


def _added(cell: jax.Array, values: jax.Array, cells: int) -> jax.Array:
    """(cells, K) sums of values (B, K) by cell (B,)."""
    return jnp.zeros((cells, values.shape[1])).at[cell].add(values)


# On the host --------------------------------------------------------------------------------------------


def scores(moments: np.ndarray) -> dict[str, float]:
    """Scores in km of moments (G, K), flight by flight; those that the sums allow.

    mae_km, rmse_km, bias_km (forecast less truth), r2 about each flight's own mean and r2_pooled about the mean of all, skill over the
    training mean, spread: standard deviation of the forecasts over that of the truths, again about each flight's own mean, loss, n.
    """
    s = {kind: moments[:, i] for i, kind in enumerate(KINDS)}
    n = s["n"].sum()
    if n <= 0:
        return {}
    own = np.where(s["n"] > 0, s["n"], 1)
    truths, forecasts = (s[kind * 2] - s[kind] ** 2 / own for kind in "yf")
    sq = s["sq"].sum()
    found = {
        "mae_km": s["abs"].sum() / n, "rmse_km": math.sqrt(max(sq, 0.0) / n), "bias_km": s["err"].sum() / n, "loss": s["loss"].sum() / n,
        "n": n,
    }  # fmt: skip
    pooled = s["yy"].sum() - s["y"].sum() ** 2 / n
    # Of equal truths float32 leaves some 1e-7 of their square: that is no variance.
    if truths.sum() > 1e-6 * n:
        found["r2"] = 1 - sq / truths.sum()
        found["spread"] = math.sqrt(max(forecasts.sum(), 0.0) / truths.sum())
    if pooled > 1e-6 * n:
        found["r2_pooled"] = 1 - sq / pooled
    if s["yy"].sum() > 0:
        found["skill"] = 1 - sq / s["yy"].sum()
    return {name: float(value) for name, value in found.items()}


def percentiles(histogram: np.ndarray) -> dict[str, float]:
    """Percentiles in km of |error| from its histogram (BINS + 1,), linear within a bin; those beyond the last bin are left out."""
    total = np.cumsum(histogram)
    found = {}
    for percent in PERCENTILES:
        wanted = percent / 100 * total[-1]
        bin_ = int(np.searchsorted(total, wanted))
        if total[-1] > 0 and bin_ < BINS:
            below = total[bin_ - 1] if bin_ else 0.0
            found[f"error_km_p{percent}"] = float(BIN_KM * (bin_ + (wanted - below) / histogram[bin_]))
    return found


def effective(layout: Layout, counts: np.ndarray) -> float:
    """How many independent labels (G,) labels amount to: n (1 - r) / (1 + r), r their correlation at lag one; unknown r: the mean."""
    r = np.append(np.asarray(layout.lag1, np.float64), np.nan)
    r = np.clip(np.where(np.isfinite(r), r, np.nanmean(r) if np.isfinite(r).any() else 0.0), 0.0, 0.999)
    return float((counts * (1 - r) / (1 + r)).sum())


def tier(found: Mapping[str, float]) -> float | None:
    """How many of the user's TIERS the scores of a flight reach, from 0 to 3."""
    if "r2" not in found:
        return None
    reached = 0
    for number, (r2, mae, rmse) in enumerate(TIERS.values(), 1):
        if found["r2"] > r2 and found["mae_km"] < mae and found["rmse_km"] < rmse:
            reached = number
    return float(reached)


def summarize(layout: Layout, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Scores in km: loss over all rows, then those of `scores` by part ("mae_km/flight") and flight ("mae_km/flight/C").

    Of a part also percentiles of |error| ("error_km_p90/blocked"), mae_km and bias_km by class of the true height
    ("mae_km/blocked/0.6-1_km"), n_eff and r2_margin = 1/sqrt(n_eff): R2 differences below it are not distinguishable; tier/flight: 0 none,
    1 minimum, 2 good, 3 excellent.
    """
    moments, classes, histogram = (np.asarray(sums[name], np.float64) for name in ("moments", "classes", "histogram"))
    total = moments.sum((0, 1))
    found = {"loss": float(total[KINDS.index("loss")] / total[0])} if total[0] > 0 else {}
    for part, roles in PARTS.items():
        rows = list(roles)
        by_flight = moments[rows].sum(0)
        pooled = scores(by_flight)
        if not pooled:
            continue
        n_eff = effective(layout, by_flight[:, 0])
        pooled |= percentiles(histogram[rows].sum((0, 1))) | {"n_eff": n_eff, "r2_margin": 1 / math.sqrt(n_eff)}
        found |= {f"{name}/{part}": value for name, value in pooled.items()}
        for name, (n, error, size) in zip(CLASSES, classes[rows].sum((0, 1)), strict=True):
            if n > 0:
                found |= {f"mae_km/{part}/{name}_km": size / n, f"bias_km/{part}/{name}_km": error / n}
        for flight, own in zip((*layout.flights, "other"), by_flight, strict=True):
            found |= {f"{name}/{part}/{flight}": value for name, value in scores(own[None]).items() if name not in ("loss", "r2_pooled")}
        if part == "flight" and (reached := tier(pooled)) is not None:
            found["tier/flight"] = reached
    return found
