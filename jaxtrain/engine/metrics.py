"""Scores as masked sums: added over batches, shards and processes, divided once at the end.

The sum functions take jax or NumPy arrays and run inside jit; they return float32. A mask has the shape of the values
or of their leading axes, is 0 or 1 (any weight >= 0 works), and whatever stands under mask 0 (also NaN) is ignored.
`keep` names the axes that are not summed, for example (1,) for one sum per horizon of (B, P, N).
The score functions at the end run on the host in float64; a score whose count is 0 is left out, never NaN.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # jax.Array or np.ndarray


def total(values: Array, mask: Array, keep: tuple[int, ...] = ()) -> jax.Array:
    """Sum of mask x values over every axis but `keep`, float32."""
    values = jnp.asarray(values, jnp.float32)
    mask = _widen(mask, values.ndim)
    kept = {axis % values.ndim for axis in keep}
    summed = tuple(axis for axis in range(values.ndim) if axis not in kept)
    return jnp.where(mask > 0, values * mask, 0.0).sum(summed)


def _widen(mask: Array, ndim: int) -> jax.Array:
    mask = jnp.asarray(mask, jnp.float32)
    return mask.reshape(mask.shape + (1,) * (ndim - mask.ndim))


def count(mask: Array, shape: tuple[int, ...], keep: tuple[int, ...] = ()) -> jax.Array:
    """Sum of the mask over every axis but `keep` of values of this shape."""
    return total(jnp.ones(shape, jnp.float32), mask, keep)


def error_sums(forecast: Array, target: Array, mask: Array, keep: tuple[int, ...] = ()) -> dict[str, jax.Array]:
    """Moments of the error e = forecast - target: n, abs = sum |e|, sq = sum e^2, err = sum e."""
    error = jnp.asarray(forecast, jnp.float32) - jnp.asarray(target, jnp.float32)
    return {
        "n": count(mask, error.shape, keep),
        "abs": total(jnp.abs(error), mask, keep),
        "sq": total(error**2, mask, keep),
        "err": total(error, mask, keep),
    }


def target_sums(target: Array, mask: Array, center: Array = 0.0, keep: tuple[int, ...] = ()) -> dict[str, jax.Array]:
    """Moments of the target that R2 needs: y = sum (target - center), yy = sum (target - center)^2.

    center: one constant for everything that is later pooled. R2 does not depend on it; near the mean it keeps
    sum y^2 - (sum y)^2/n from cancelling in float32.
    """
    shifted = jnp.asarray(target, jnp.float32) - center
    return {"y": total(shifted, mask, keep), "yy": total(shifted**2, mask, keep)}


def percentage_sums(forecast: Array, target: Array, mask: Array, threshold: float, keep: tuple[int, ...] = ()) -> dict[str, jax.Array]:
    """Absolute percentage errors where abs(target) > threshold: ape = sum |e / target|, ape_n = their number."""
    forecast, target = jnp.asarray(forecast, jnp.float32), jnp.asarray(target, jnp.float32)
    large = jnp.abs(target) > threshold
    valid = jnp.where(large, _widen(mask, target.ndim), 0.0)
    relative = jnp.abs(forecast - target) / jnp.where(large, jnp.abs(target), 1.0)
    return {"ape": total(relative, valid, keep), "ape_n": count(valid, target.shape, keep)}


def pinball(quantiles: Array, target: Array, levels: Sequence[float]) -> jax.Array:
    """Quantile loss max(q (y - f), (q - 1)(y - f)) of quantiles (..., Q) for target (...); (..., Q), not summed."""
    level = jnp.asarray(levels, jnp.float32)
    error = jnp.asarray(target, jnp.float32)[..., None] - jnp.asarray(quantiles, jnp.float32)
    return jnp.maximum(level * error, (level - 1) * error)


def pinball_sums(quantiles: Array, target: Array, mask: Array, levels: Sequence[float], keep: tuple[int, ...] = ()) -> jax.Array:
    """Sum of the quantile loss per level, (*kept, Q). `keep` counts the axes of the target."""
    loss = pinball(quantiles, target, levels)
    axes = tuple(axis % (loss.ndim - 1) for axis in keep)
    return total(loss, mask, (*axes, loss.ndim - 1))


def sample_crps(samples: Array, target: Array, axis: int = 1) -> jax.Array:
    """CRPS of an ensemble, E|X - y| - E|X - X'|/2, its samples along `axis`; the target's shape, not summed.

    The second term divides by S (S - 1), so the mean over many targets is that of the distribution the samples
    come from (the "fair" CRPS, Ferro 2014), not that of the S-member ensemble.
    """
    ordered = jnp.sort(jnp.moveaxis(jnp.asarray(samples, jnp.float32), axis, 0), axis=0)
    size = ordered.shape[0]
    rank = jnp.arange(1, size + 1, dtype=jnp.float32) * 2 - size - 1  # |x_i - x_j| over pairs = sum of rank x order statistic
    spread = jnp.tensordot(rank, ordered, axes=1) / (size * max(size - 1.0, 1.0))
    return jnp.abs(ordered - jnp.asarray(target, jnp.float32)).mean(0) - spread


def sample_pit(samples: Array, target: Array, axis: int = 1) -> jax.Array:
    """Share of the samples below the target, ties counted half; the target's shape."""
    samples, target = jnp.asarray(samples, jnp.float32), jnp.expand_dims(jnp.asarray(target, jnp.float32), axis)
    return ((samples < target).mean(axis) + (samples <= target).mean(axis)) / 2


def coverage_sums(pit: Array, mask: Array, levels: Sequence[float], keep: tuple[int, ...] = ()) -> jax.Array:
    """How many targets lie in the central interval of each level, (*kept, L).

    pit: F(y), the forecast's distribution function at the target. F(y) in [(1-c)/2, (1+c)/2] means that y lies between
    these two quantiles, so that no quantile need be computed.
    """
    level = jnp.asarray(levels, jnp.float32)
    inside = jnp.abs(jnp.asarray(pit, jnp.float32) - 0.5)[..., None] <= level / 2
    axes = tuple(axis % (inside.ndim - 1) for axis in keep)
    return total(inside, mask, (*axes, inside.ndim - 1))


def interval_sums(lower: Array, upper: Array, target: Array, mask: Array, keep: tuple[int, ...] = ()) -> dict[str, jax.Array]:
    """inside = number of targets in [lower, upper], width = sum of upper - lower."""
    lower, upper, target = (jnp.asarray(x, jnp.float32) for x in (lower, upper, target))
    inside = (lower <= target) & (target <= upper)
    return {"inside": total(inside, mask, keep), "width": total(upper - lower, mask, keep)}


def histogram(values: Array, mask: Array, bins: int, low: float = 0.0, high: float = 1.0, keep: tuple[int, ...] = ()) -> jax.Array:
    """Counts in `bins` equal bins of [low, high], (*kept, bins); values outside fall into the outer bins."""
    values = jnp.asarray(values, jnp.float32)
    which = jnp.clip(jnp.floor((values - low) / (high - low) * bins), 0, bins - 1)  # NaN is masked, its bin is never counted
    axes = tuple(axis % values.ndim for axis in keep)
    return total(which[..., None] == jnp.arange(bins), mask, (*axes, values.ndim))


def by_group(values: Array, mask: Array, group: Array, groups: int) -> jax.Array:
    """Sum of mask x values per group, (groups,). group: int of the values' shape; outside 0..groups-1 counts nowhere."""
    values = jnp.asarray(values, jnp.float32)[..., None]
    member = jnp.asarray(group)[..., None] == jnp.arange(groups)
    return total(jnp.where(member, values, 0.0), mask, (values.ndim - 1,))


def confusion(label: Array, predicted: Array, mask: Array, classes: int) -> jax.Array:
    """(classes, classes) counts, rows = actual class, columns = predicted class."""
    actual = jax.nn.one_hot(jnp.asarray(label), classes).reshape(-1, classes)
    guess = jax.nn.one_hot(jnp.asarray(predicted), classes).reshape(-1, classes)
    weight = jnp.broadcast_to(_widen(mask, jnp.ndim(label)), jnp.shape(label)).reshape(-1, 1)
    return jnp.matmul((actual * weight).T, guess, precision=jax.lax.Precision.HIGHEST)


def brier_sums(probability: Array, event: Array, mask: Array, keep: tuple[int, ...] = ()) -> jax.Array:
    """Sum of (p - event)^2 for event in {0, 1}."""
    return total((jnp.asarray(probability, jnp.float32) - jnp.asarray(event, jnp.float32)) ** 2, mask, keep)


def reliability_sums(probability: Array, event: Array, mask: Array, bins: int) -> dict[str, jax.Array]:
    """Per bin of forecast probability, (bins,): n, p = sum of probabilities, event = number of events."""
    probability = jnp.asarray(probability, jnp.float32)
    which = jnp.clip(jnp.floor(probability * bins), 0, bins - 1)
    return {
        "n": by_group(jnp.ones_like(probability), mask, which, bins),
        "p": by_group(probability, mask, which, bins),
        "event": by_group(jnp.asarray(event, jnp.float32), mask, which, bins),
    }


# On the host --------------------------------------------------------------------------------------------


def divide(numerator: Any, denominator: Any) -> float | None:
    """The ratio in float64, or None when nothing was counted."""
    numerator, denominator = _pooled(numerator), _pooled(denominator)
    return numerator / denominator if denominator > 0 else None


def _pooled(value: Any) -> float:
    """The sum in float64; a number is its own, which thousands of bootstrap draws ask for."""
    return float(value) if isinstance(value, float) else float(np.sum(value, dtype=np.float64))


def present(scores: Mapping[str, float | None]) -> dict[str, float]:
    """The scores that exist."""
    return {name: float(value) for name, value in scores.items() if value is not None}


def error_scores(sums: Mapping[str, Any]) -> dict[str, float]:
    """mae, rmse, bias, r2, mape (percent): those that the sums of this module's names allow.

    Array sums (per horizon, per node) are pooled first.
    """
    pooled = {name: _pooled(value) for name, value in sums.items()}
    n = pooled.get("n", 0.0)
    scores: dict[str, float | None] = {}
    if "abs" in pooled:
        scores["mae"] = divide(pooled["abs"], n)
    if "sq" in pooled and n > 0:
        scores["rmse"] = float(np.sqrt(pooled["sq"] / n))
    if "err" in pooled:
        scores["bias"] = divide(pooled["err"], n)
    if {"sq", "y", "yy"} <= pooled.keys() and n > 0:
        variation = pooled["yy"] - pooled["y"] ** 2 / n
        scores["r2"] = 1 - pooled["sq"] / variation if variation > 0 else None
    if "ape" in pooled:
        ratio = divide(pooled["ape"], pooled["ape_n"])
        scores["mape"] = None if ratio is None else 100 * ratio
    return present(scores)
