"""Quantiles shifted towards simple references as far as the validation split likes (combination of forecasts: Bates and Granger, 1969).

References: the last value and the value one season (a day) before. Where a target moves by regimes, its last value is hard to beat, and
a network trained before a new regime pulls back to the old one; where jobs run by the clock, yesterday knows more than either; where a
series is noise around a level, both are poor guides. Which of these a series is, is its own affair: every group has shares of its own,
drawn towards those of the whole fleet because its validation days are few. Every level has shares of its own too,
q' = q + s1 (last - q50) + s2 (day - q50): the middle of the fan may follow a reference while its ends stay.
Crossing levels are put in order by sorting (Chernozhukov, Fernandez-Val and Galichon, 2010).
Letters: B windows, k past steps, tau future steps, R targets, Q levels, C pairs of shares tried, G groups of the training data.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.dataset import Batch
from jaxtrain.tasks.task import Sums
from jaxtrain.tasks.tft_inputs import Units, ascending, known_past, newest
from jaxtrain.tasks.tft_scores import target_mask

# (C, 2) shares of the last value and of the day before, in fifths; what is left of 1 is the share of the network.
PAIRS = np.array([(a, b) for a in range(6) for b in range(6 - a)], np.float32) / 5
FLEET_WEIGHT = 1.0  # of the whole fleet's relative cost of a pair beside the group's own
LEAST = 0.01  # of the greatest loss: what a pair costs at least when costs are compared


def shift(quantiles: jax.Array, batch: Batch, share: np.ndarray, median: int, season: int, units: Units) -> jax.Array:
    """quantiles (B, tau, R, Q) in file units, moved by their group's shares (G + 1, R, Q, 2) of the ways from P50 to the references
    (`season`: steps); rising, within limits."""
    own = jnp.asarray(share)[jnp.asarray(batch["group"])][:, None]  # (B, 1, R, Q, 2)
    last, day = (way[..., None] for way in _ways(quantiles[..., median], batch, season))
    shifted = quantiles + own[..., 0] * last + own[..., 1] * day
    return ascending(jnp.clip(shifted, units.low[:, None], units.high[:, None, :, None]))


def share_sums(quantiles: jax.Array, batch: Batch, groups: int, levels: Sequence[float], median: int, season: int) -> Sums:
    """{"combine": (G + 1, R, Q, C)}: sum of the pinball loss of every level for every pair of PAIRS, before sorting, by group;
    place 0 is that of groups which training did not have."""
    mask = target_mask(batch)[..., None]
    error = jnp.asarray(batch["target"], jnp.float32)[..., None] - quantiles
    last, day = (way[..., None] for way in _ways(quantiles[..., median], batch, season))
    level = np.asarray(levels, np.float32)

    def loss(pair: jax.Array) -> jax.Array:
        e = error - pair[0] * last - pair[1] * day
        return jnp.where(mask > 0, mask * jnp.maximum(level * e, (level - 1) * e), 0.0).sum(1)

    tried = jnp.moveaxis(jax.lax.map(loss, jnp.asarray(PAIRS)), 0, -1)  # (B, R, Q, C)
    return {"combine": jax.ops.segment_sum(tried, jnp.asarray(batch["group"]), groups + 1)}


def fitted(
    sums: Mapping[str, np.ndarray], targets: Sequence[str], chosen: Sequence[str], alone: Sequence[str], median: int
) -> np.ndarray:
    """(G + 1, R, Q, 2) float32: for every level of the chosen targets the pair of least cost, 0 for the others.

    alone: targets whose P50 (place `median`) leaves the network no share; the fan around it stays the network's.

    The cost of a pair is its loss over the least loss of any pair, the group's own plus FLEET_WEIGHT times that of the whole fleet:
    both are ratios, so that idle and busy groups lean on the fleet alike. A group without windows takes the fleet's pair.
    """
    loss = np.asarray(sums["combine"], np.float64)
    fleet = _relative(loss.sum(0))
    cost = _relative(loss) + FLEET_WEIGHT * fleet
    cost[0] = fleet
    without = np.array([name in alone for name in targets])
    cost[:, without, median] += np.where(PAIRS.sum(1) < 1 - 1e-6, np.inf, 0)
    share = PAIRS[cost.argmin(-1)]
    return np.where(np.array([name in chosen for name in targets])[:, None, None], share, 0).astype(np.float32)


def _relative(loss: np.ndarray) -> np.ndarray:
    """Loss over its least value along the last axis, which a pair that is never wrong does not make infinite; 0 where all are 0."""
    least, greatest = loss.min(-1, keepdims=True), loss.max(-1, keepdims=True)
    return loss / np.where(greatest > 0, np.maximum(least, LEAST * greatest), 1)


def _ways(median: jax.Array, batch: Batch, season: int) -> tuple[jax.Array, jax.Array]:
    """(B, tau, R) each, from P50 to the last known value and to the value a season, or the least number of seasons that leads before
    the origin, earlier: to the last value where that one is unknown; 0 where nothing is known."""
    past, known = known_past(batch, median.shape[-1])
    ahead = np.arange(median.shape[1])
    place = past.shape[1] + ahead - (ahead // season + 1) * season  # of the step a season earlier
    assert place.min() >= 0, f"a season of {season} steps is longer than the past of {past.shape[1]}"
    last = newest(past, known)[:, None]
    day = jnp.where(known[:, place], past[:, place], last)
    some = known.any(1)[:, None]
    return jnp.where(some, last - median, 0.0), jnp.where(some, day - median, 0.0)
