"""Quantiles shifted towards the last value as far as the validation split likes (combination of forecasts: Bates and Granger, 1969).

Where a target moves by regimes, its last value is hard to beat, and a network trained before a new regime pulls back to the old one;
where it is noise around a level, the last value is a poor guide. Which of the two a series is, is its own affair: every group has
shares of its own, drawn towards those of the whole fleet because its validation days are few. Every level has its own share too,
q' = q + s (last - q50): the middle of the fan may follow the last value while its ends stay.
Crossing levels are put in order by sorting (Chernozhukov, Fernandez-Val and Galichon, 2010).
Letters: B windows, tau future steps, R targets, Q levels, S shares tried, G groups of the training data.
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
FLEET_WEIGHT = 1.0  # of the whole fleet's relative cost of a share beside the group's own
LEAST = 0.01  # of the greatest loss: what a share costs at least when costs are compared


def shift(quantiles: jax.Array, batch: Batch, share: np.ndarray, median: int, units: Units) -> jax.Array:
    """quantiles (B, tau, R, Q) in file units, moved by their group's share (G + 1, R, Q) of the way from P50 to the last known value;
    rising, within limits."""
    own = jnp.asarray(share)[jnp.asarray(batch["group"])][:, None]
    shifted = quantiles + own * _way(quantiles[..., median], batch)[..., None]
    return ascending(jnp.clip(shifted, units.low[:, None], units.high[:, None, :, None]))


def share_sums(quantiles: jax.Array, batch: Batch, groups: int, levels: Sequence[float], median: int) -> Sums:
    """{"combine": (G + 1, R, Q, S)}: sum of the pinball loss of every level for every share of SHARES, before sorting, by group;
    place 0 is that of groups which training did not have."""
    mask = target_mask(batch)[..., None]
    error = jnp.asarray(batch["target"], jnp.float32)[..., None] - quantiles
    way = _way(quantiles[..., median], batch)[..., None]
    level = np.asarray(levels, np.float32)
    sums = []
    for share in SHARES:
        e = error - share * way
        sums.append(jnp.where(mask > 0, mask * jnp.maximum(level * e, (level - 1) * e), 0.0).sum(1))
    return {"combine": jax.ops.segment_sum(jnp.stack(sums, -1), jnp.asarray(batch["group"]), groups + 1)}


def fitted(sums: Mapping[str, np.ndarray], targets: Sequence[str], chosen: Sequence[str]) -> np.ndarray:
    """(G + 1, R, Q) float32: for every level of the chosen targets the share of least cost, 0 for the others.

    The cost of a share is its loss over the least loss of any share, the group's own plus FLEET_WEIGHT times that of the whole fleet:
    both are ratios, so that idle and busy groups lean on the fleet alike. A group without windows takes the fleet's share.
    """
    loss = np.asarray(sums["combine"], np.float64)
    cost = _relative(loss) + FLEET_WEIGHT * _relative(loss.sum(0))
    cost[0] = _relative(loss.sum(0))
    share = SHARES[cost.argmin(-1)]
    return np.where(np.array([name in chosen for name in targets])[:, None], share, 0).astype(np.float32)


def _relative(loss: np.ndarray) -> np.ndarray:
    """Loss over its least value along the last axis, which a share that is never wrong does not make infinite; 0 where all are 0."""
    least, greatest = loss.min(-1, keepdims=True), loss.max(-1, keepdims=True)
    return loss / np.where(greatest > 0, np.maximum(least, LEAST * greatest), 1)


def _way(median: jax.Array, batch: Batch) -> jax.Array:
    """(B, tau, R) from P50 to the last known value; 0 where nothing is known."""
    past, known = known_past(batch, median.shape[-1])
    last = newest(past, known)[:, None]
    return jnp.where(known.any(1)[:, None], last - median, 0.0)
