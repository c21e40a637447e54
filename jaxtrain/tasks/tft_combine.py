"""Forecasts shifted towards the last value as far as the validation split likes (combination of forecasts: Bates and Granger, 1969).

Where a target moves by regimes, its last value is hard to beat, and a network trained before a new regime pulls back to the old one.
All quantiles of a target are shifted alike, q' = q + s (last - q50), so that the width of the fan stays.
Letters: B windows, tau future steps, R targets, Q levels.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.dataset import Batch
from jaxtrain.tasks.task import Sums
from jaxtrain.tasks.tft_inputs import Units, known_past, newest
from jaxtrain.tasks.tft_scores import target_mask

SHARES = np.linspace(0, 1, 11, dtype=np.float32)


def shift(quantiles: jax.Array, batch: Batch, share: np.ndarray, median: int, units: Units) -> jax.Array:
    """quantiles (B, tau, R, Q) in file units, shifted by share (R,) of the way to the last known value, within the limits."""
    way = _way(quantiles[..., median], batch)
    shifted = quantiles + (share * way)[..., None]
    return jnp.clip(shifted, units.low[:, None], units.high[:, None, :, None])


def share_sums(quantiles: jax.Array, batch: Batch, median: int) -> Sums:
    """{"combine": (R, S)}: sum of |error| of P50 for every share of SHARES."""
    center, mask = quantiles[..., median], target_mask(batch)
    error = center - jnp.asarray(batch["target"], jnp.float32)
    way = _way(center, batch)
    sums = [jnp.where(mask > 0, mask * jnp.abs(error + share * way), 0.0).sum((0, 1)) for share in SHARES]
    return {"combine": jnp.stack(sums, -1)}


def fitted(sums: Mapping[str, np.ndarray], targets: Sequence[str], chosen: Sequence[str]) -> np.ndarray:
    """(R,) float32: the best share of every chosen target, 0 for the others."""
    best = SHARES[np.asarray(sums["combine"]).argmin(-1)]
    return np.where([name in chosen for name in targets], best, 0).astype(np.float32)


def _way(median: jax.Array, batch: Batch) -> jax.Array:
    """(B, tau, R) from P50 to the last known value; 0 where nothing is known."""
    past, known = known_past(batch, median.shape[-1])
    last = newest(past, known)[:, None]
    return jnp.where(known.any(1)[:, None], last - median, 0.0)
