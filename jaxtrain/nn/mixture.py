"""Gaussian mixtures: likelihood, CRPS, distribution function, quantiles, moments.

Every function takes a `Mixture` whose arrays are (..., K) and works in the unit those arrays have; float32 throughout.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import erf

BISECTIONS = 30  # halves the bracket to 1e-9 of its width: below float32 resolution


class Mixture(NamedTuple):
    """log_weights (..., K), normalised; means (..., K); stds (..., K) > 0; all float32."""

    log_weights: jax.Array
    means: jax.Array
    stds: jax.Array


def affine(mixture: Mixture, shift: jax.Array, scale: jax.Array) -> Mixture:
    """The distribution of shift + scale * y; shift and scale broadcast against (...,), scale > 0."""
    shift, scale = jnp.asarray(shift)[..., None], jnp.asarray(scale)[..., None]
    return Mixture(mixture.log_weights, mixture.means * scale + shift, mixture.stds * scale)


def mean(mixture: Mixture) -> jax.Array:
    """Mean (...,)."""
    return jnp.sum(jnp.exp(mixture.log_weights) * mixture.means, axis=-1)


def std(mixture: Mixture) -> jax.Array:
    """Standard deviation (...,): within plus between components."""
    weights = jnp.exp(mixture.log_weights)
    between = jnp.square(mixture.means - mean(mixture)[..., None])
    return jnp.sqrt(jnp.sum(weights * (jnp.square(mixture.stds) + between), axis=-1))


def nll(mixture: Mixture, y: jax.Array, weight_floor: float = 0.0) -> jax.Array:
    """Negative log-likelihood of y (...,). weight_floor is added to the weights inside the logarithm."""
    log_weights = _floored(mixture.log_weights, weight_floor)
    z = (y[..., None] - mixture.means) / mixture.stds
    log_density = -0.5 * jnp.square(z) - jnp.log(mixture.stds) - 0.5 * math.log(2 * math.pi)
    return -jax.scipy.special.logsumexp(log_weights + log_density, axis=-1)


def negative_entropy(mixture: Mixture, weight_floor: float = 0.0) -> jax.Array:
    """Sum of pi ln pi (...,): 0 when one component has all the weight, -ln K when all are equal."""
    return jnp.sum(jnp.exp(mixture.log_weights) * _floored(mixture.log_weights, weight_floor), axis=-1)


def spread(mixture: Mixture) -> jax.Array:
    """Standard deviation over the component means (...,), divisor K - 1; 0 for a single component."""
    components = mixture.means.shape[-1]
    if components == 1:
        return jnp.zeros_like(mixture.means[..., 0])
    variance = jnp.var(mixture.means, axis=-1, ddof=1)
    return jnp.sqrt(jnp.maximum(variance, 1e-12))  # the root's gradient is infinite at 0


def crps(mixture: Mixture, y: jax.Array) -> jax.Array:
    """Continuous ranked probability score of y (...,), closed form (Grimit et al. 2006), in the unit of y."""
    weights, means, stds = jnp.exp(mixture.log_weights), mixture.means, mixture.stds
    accuracy = jnp.sum(weights * _expected_distance(y[..., None] - means, stds), axis=-1)
    # Pairs k < l once and twice their weight, k = l in closed form: A(0, sqrt(2) s) = 2 s / sqrt(pi).
    first, second = _pairs(means.shape[-1])
    same = jnp.sum(jnp.square(weights) * stds, axis=-1) * (2 / math.sqrt(math.pi))
    if not first:
        return accuracy - 0.5 * same
    distance = _expected_distance(
        _take(means, first) - _take(means, second),
        jnp.sqrt(jnp.square(_take(stds, first)) + jnp.square(_take(stds, second))),
    )
    different = jnp.sum(_take(weights, first) * _take(weights, second) * distance, axis=-1)
    return accuracy - 0.5 * same - different


def gaussian_crps(mixture: Mixture, y: jax.Array) -> jax.Array:
    """CRPS of y (...,) under the Gaussian with the mixture's mean and standard deviation."""
    return normal_crps(mean(mixture), std(mixture), y)


def normal_crps(center: jax.Array, scale: jax.Array, y: jax.Array) -> jax.Array:
    """CRPS of y under Normal(center, scale), shapes broadcast (Gneiting and Raftery 2007)."""
    return _expected_distance(y - center, scale) - scale / math.sqrt(math.pi)


def cdf(mixture: Mixture, y: jax.Array) -> jax.Array:
    """Probability of a value at or below y (...,), in [0, 1]."""
    z = (y[..., None] - mixture.means) / mixture.stds
    return jnp.sum(jnp.exp(mixture.log_weights) * _normal_cdf(z), axis=-1)


def quantile(mixture: Mixture, levels: Sequence[float]) -> jax.Array:
    """Quantiles (..., Q) at `levels` in (0, 1), by bisecting the distribution function.

    The root lies between the smallest and the largest quantile of the components.
    """
    # Levels and components lead: with them last, vectors of K numbers would make this six times slower on CPU.
    q = jnp.asarray(levels, jnp.float32).reshape(-1, *(1 for _ in mixture.means.shape[:-1]))  # (Q, 1...)
    weights, means, stds = (jnp.moveaxis(part, -1, 0) for part in (jnp.exp(mixture.log_weights), mixture.means, mixture.stds))
    components = range(len(means))
    z = jax.scipy.special.ndtri(q)
    candidates = [means[k] + stds[k] * z for k in components]  # each (Q, ...)

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = 0.5 * (low + high)
        below = sum((weights[k] * _normal_cdf((middle - means[k]) / stds[k]) for k in components), jnp.zeros(())) < q
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    bracket = functools.reduce(jnp.minimum, candidates), functools.reduce(jnp.maximum, candidates)
    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, bracket)
    return jnp.moveaxis(0.5 * (low + high), 0, -1)


def _expected_distance(m: jax.Array, s: jax.Array) -> jax.Array:
    """E|X| for X ~ Normal(m, s)."""
    z = m / s
    density = jnp.exp(-0.5 * jnp.square(z)) / math.sqrt(2 * math.pi)
    return 2 * s * density + m * erf(z / math.sqrt(2))


def _normal_cdf(z: jax.Array) -> jax.Array:
    return 0.5 * (1 + erf(z / math.sqrt(2)))


def _floored(log_weights: jax.Array, floor: float) -> jax.Array:
    return jnp.log(jnp.exp(log_weights) + floor) if floor else log_weights


def _pairs(components: int) -> tuple[list[int], list[int]]:
    pairs = [(k, other) for k in range(components) for other in range(k + 1, components)]
    return [k for k, _ in pairs], [other for _, other in pairs]


def _take(x: jax.Array, columns: list[int]) -> jax.Array:
    # Static slices: their gradient is a pad, an index array's would be a scatter.
    return jnp.stack([x[..., k] for k in columns], axis=-1)
