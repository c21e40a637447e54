"""Quantiles shifted towards the last value as far as the validation split likes (combination of forecasts: Bates and Granger, 1969).

Where a target moves by regimes, its last value is hard to beat, and a network trained before a new regime pulls back to the old one.
Every level has a share of its own, q' = q + s (last - q50): the middle of the fan may follow the last value while its ends stay.
Crossing levels are put in order by sorting (Chernozhukov, Fernandez-Val and Galichon, 2010).
Letters: B windows, tau future steps, R targets, Q levels, S shares tried.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.dataset import Batch
from jaxtrain.tasks.task import Sums
from jaxtrain.tasks.tft_inputs import Units, ascending, known_past, newest
from jaxtrain.tasks.tft_scores import target_mask

SHARES = np.linspace(0, 1, 11, dtype=np.float32)
TOLERANCE = 0.01  # a share nearer to the last value is taken when it costs no more: validation days are few, and it needs no model


def shift(quantiles: jax.Array, batch: Batch, share: np.ndarray, median: int, units: Units) -> jax.Array:
    """quantiles (B, tau, R, Q) in file units, moved by share (R, Q) of the way from P50 to the last known value; rising, within limits."""
    shifted = quantiles + share * _way(quantiles[..., median], batch)[..., None]
    return ascending(jnp.clip(shifted, units.low[:, None], units.high[:, None, :, None]))


def share_sums(quantiles: jax.Array, batch: Batch, levels: Sequence[float], median: int) -> Sums:
    """{"combine": (R, Q, S)}: sum of the pinball loss of every level for every share of SHARES, before sorting."""
    mask = target_mask(batch)[..., None]
    error = jnp.asarray(batch["target"], jnp.float32)[..., None] - quantiles
    way = _way(quantiles[..., median], batch)[..., None]
    level = np.asarray(levels, np.float32)
    sums = []
    for share in SHARES:
        e = error - share * way
        sums.append(jnp.where(mask > 0, mask * jnp.maximum(level * e, (level - 1) * e), 0.0).sum((0, 1)))
    return {"combine": jnp.stack(sums, -1)}


def fitted(sums: Mapping[str, np.ndarray], targets: Sequence[str], chosen: Sequence[str]) -> np.ndarray:
    """(R, Q) float32: for every level of the chosen targets the largest share within TOLERANCE of the best, 0 for the others."""
    loss = np.asarray(sums["combine"])
    good = loss <= (1 + TOLERANCE) * loss.min(-1, keepdims=True)
    largest = SHARES[len(SHARES) - 1 - good[..., ::-1].argmax(-1)]
    return np.where(np.array([name in chosen for name in targets])[:, None], largest, 0).astype(np.float32)


def _way(median: jax.Array, batch: Batch) -> jax.Array:
    """(B, tau, R) from P50 to the last known value; 0 where nothing is known."""
    past, known = known_past(batch, median.shape[-1])
    last = newest(past, known)[:, None]
    return jnp.where(known.any(1)[:, None], last - median, 0.0)
