"""Norm, LeakyReLU, FiLM and 2 x 2 max-pool of a convolution's output, as one function with a gradient of its own.

All of it rises or falls monotonically in each channel of each example. So pooling comes first, maximum or minimum by the sign of the
slope, the same result to the bit, and everything else is done on a quarter of the values. The gradient keeps the convolution's output
and the pooled map, takes its sums over the latter, and subtracts means before it multiplies, which float32 needs where sums nearly cancel.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

EPSILON = 1e-5
PARTS = 16  # that sums over places are cut into on CPU, at most


class Modulation(NamedTuple):
    """What is done to every channel, float32: conv_bias, scale, bias (C,) of convolution and norm; gain, offset (N, C) of FiLM."""

    conv_bias: jax.Array
    scale: jax.Array
    bias: jax.Array
    gain: jax.Array
    offset: jax.Array


class Moments(NamedTuple):
    """Mean and biased variance, (C,) of batch norm or (N, C) of group norm, float32."""

    mean: jax.Array
    var: jax.Array


def norm_pool(x: jax.Array, m: Modulation, groups: int, slope: float) -> tuple[jax.Array, Moments]:
    """max_pool(gain * leaky_relu(norm(x + conv_bias)) + offset) of x (N, H, W, C), and the norm's moments.

    groups: of group norm; 0 is batch norm over N, H and W. An odd last row or column counts in the norm and is left out of the pool.
    The moments have no gradient.
    """
    return _norm_pool(x, m, groups, slope)


def pool_known(x: jax.Array, m: Modulation, moments: Moments, slope: float) -> jax.Array:
    """As `norm_pool`, with known moments (batch norm while evaluating)."""
    rate = jax.lax.rsqrt(moments.var + EPSILON)
    factor, shift = rate * m.scale, (m.conv_bias - moments.mean) * rate * m.scale + m.bias
    picked = _picked(x, factor * m.gain).astype(jnp.float32)
    y = _wide(m.gain) * _leaky(factor * picked + shift, slope) + _wide(m.offset)
    return y.astype(x.dtype)


class _Kept(NamedTuple):
    """Of the forward pass: x (N, H, W, C), its pooled values, normalised, (N, h, w, C), and what was subtracted and divided by."""

    x: jax.Array
    u: jax.Array  # float32
    center: jax.Array  # subtracted from x: (N, C), or (1, C) of batch norm
    sigma: jax.Array  # as `center`
    mean: jax.Array  # of x over places (N, C)
    m: Modulation


def _forward(x: jax.Array, m: Modulation, groups: int, slope: float) -> tuple[tuple[jax.Array, Moments], _Kept]:
    mean, square = _mean_and_square(x)
    center = _pooled_over(mean + m.conv_bias, groups)
    second = _pooled_over(square + (2 * mean + m.conv_bias) * m.conv_bias, groups)
    var = jnp.maximum(second - center**2, 0)
    sigma = jnp.sqrt(var + EPSILON)
    u = (_picked(x, m.scale * m.gain).astype(jnp.float32) - _wide(center - m.conv_bias)) / _wide(sigma)
    kept = _Kept(x, u, center - m.conv_bias, sigma, mean, m)
    v = _wide(m.scale) * u + _wide(m.bias)
    # A choice between two maps comes last, for the reason given in `_spread`.
    y = jnp.where(v >= 0, _wide(m.gain) * v + _wide(m.offset), _wide(slope * m.gain) * v + _wide(m.offset)).astype(x.dtype)
    moments = Moments(center, var) if groups else Moments(center[0], var[0])
    return (y, moments), kept


def _backward(groups: int, slope: float, kept: _Kept, cotangents: tuple[jax.Array, Moments]) -> tuple[jax.Array, Modulation]:
    x, m = kept.x, kept.m
    dy, places, rate = cotangents[0], x.shape[1] * x.shape[2], 1 / kept.sigma

    def before_gain(dy: jax.Array, u: jax.Array) -> jax.Array:
        return jnp.where(_wide(m.scale) * u + _wide(m.bias) >= 0, dy, slope * dy)

    # Three sums give all gradients: of dy, of dy behind LeakyReLU's slope, and of that times u.
    plain = _over_places(lambda dy, u: dy, dy, kept.u)
    sloped = _over_places(before_gain, dy, kept.u)
    tilted = _over_places(lambda dy, u: before_gain(dy, u) * u, dy, kept.u)
    dgain, dbias, dscale = m.scale * tilted + m.bias * sloped, m.gain * sloped, m.gain * tilted
    along, across = (_pooled_over(m.scale * part, groups) / places for part in (dbias, dscale))
    du = _wide(rate * m.scale * m.gain) * before_gain(dy.astype(jnp.float32), kept.u)
    picked = _picked(x, m.scale * m.gain)
    dx = _spread(du / _ties(x, picked), kept, picked, rate * along, rate**2 * across)
    away = (kept.mean - kept.center) * rate  # mean of the normalised map over places
    dconv = rate * (m.scale * dbias - places * (along + away * across))
    dconv, dscale, dbias = (jnp.sum(part, 0) for part in (dconv, dscale, dbias))
    return dx.astype(x.dtype), Modulation(dconv, dscale, dbias, _like(dgain, m.gain), _like(plain, m.offset))


def _primal(x: jax.Array, m: Modulation, groups: int, slope: float) -> tuple[jax.Array, Moments]:
    return _forward(x, m, groups, slope)[0]


_norm_pool = jax.custom_vjp(_primal, nondiff_argnums=(2, 3))
_norm_pool.defvjp(_forward, _backward)


def _pooled_over(moment: jax.Array, groups: int) -> jax.Array:
    """The mean of (N, C) over what is normalised together, as (1, C) for batch norm or (N, C)."""
    if not groups:
        return jnp.mean(moment, 0, keepdims=True)
    size = moment.shape[1] // groups
    # As a product: on CPU a repetition would be worked out again at every pixel.
    share = jnp.repeat(jnp.repeat(jnp.eye(groups), size, 0), size, 1) / size
    return jnp.matmul(moment, share, precision=jax.lax.Precision.HIGHEST)


def _wide(per_channel: jax.Array) -> jax.Array:
    """(C,) or (N, C) -> against maps."""
    return per_channel if per_channel.ndim == 1 else per_channel[:, None, None]


def _like(sums: jax.Array, part: jax.Array) -> jax.Array:
    return sums if len(part) == len(sums) else jnp.sum(sums, 0, keepdims=True)


def _leaky(v: jax.Array, slope: float) -> jax.Array:
    return jnp.where(v >= 0, v, slope * v)


def _mean_and_square(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and mean square over places: (N, H, W, C) -> two (N, C), float32."""
    places = x.shape[1] * x.shape[2]
    return _over_places(lambda x: x, x) / places, _over_places(lambda x: x**2, x) / places


def _over_places(of: Callable[..., jax.Array], *maps: jax.Array) -> jax.Array:
    """of(*maps), element by element, summed over places: maps (N, H, W, C) -> (N, C), float32.

    On CPU a plain sum is five times slower (measured): XLA reduces one row after the other what it has stored first. It adds pieces of
    maps, up to sixteen neighbouring places, in the loop that computes them, and merges nothing into a product with ones.
    """
    examples, height, width, channels = maps[0].shape
    parts = max(count for count in range(1, PARTS + 1) if height * width % count == 0) if jax.default_backend() == "cpu" else 1
    pieces = [jnp.split(a.reshape(examples, -1, parts, channels).astype(jnp.float32), parts, 2) for a in maps]
    total = functools.reduce(jnp.add, [of(*piece) for piece in zip(*pieces, strict=True)])
    if parts == 1:
        return jnp.sum(total, (1, 2))
    ones = jnp.ones((examples, 1, height * width // parts))
    return jnp.matmul(ones, total[:, :, 0], precision=jax.lax.Precision.HIGHEST)[:, 0]


def _corners(x: jax.Array) -> list[jax.Array]:
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return [x[:, i:height:2, j:width:2] for i in range(2) for j in range(2)]


def _picked(x: jax.Array, sign: jax.Array) -> jax.Array:
    """Maximum of 2 x 2 blocks where sign >= 0, else minimum."""
    a, b, c, d = _corners(x)
    high, low = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d)), jnp.minimum(jnp.minimum(a, b), jnp.minimum(c, d))
    return jnp.where(_wide(sign) >= 0, high, low)


def _ties(x: jax.Array, picked: jax.Array) -> jax.Array:
    """How many of a block's values are the picked one: they share its gradient."""
    return sum((corner == picked).astype(jnp.float32) for corner in _corners(x))  # pyright: ignore[reportReturnType]


def _spread(du: jax.Array, kept: _Kept, picked: jax.Array, level: jax.Array, tilt: jax.Array) -> jax.Array:
    """du (N, h, w, C) at the picked values of x, 0 elsewhere, less level + tilt (x - center): (N, H, W, C).

    The difference of two whole maps comes last: XLA does it once, whereas it repeats, in every use, what reads one map alone.
    """
    x = kept.x
    examples, height, width, channels = picked.shape
    even = x[:, : 2 * height, : 2 * width].reshape(examples, height, 2, width, 2, channels)
    spread = jnp.where(even == picked[:, :, None, :, None], du[:, :, None, :, None], 0)
    if even.size == x.size:
        level, tilt, center = (part[:, None, None, None, None] for part in (level, tilt, kept.center))
        return (spread - (level + tilt * (even.astype(jnp.float32) - center))).reshape(x.shape)
    spread = jnp.pad(spread.reshape(examples, 2 * height, 2 * width, channels), _edge(x.shape[1:3], height, width))
    return spread - (_wide(level) + _wide(tilt) * (x.astype(jnp.float32) - _wide(kept.center)))


def _edge(size: tuple[int, ...], height: int, width: int) -> tuple[tuple[int, int], ...]:
    """What pads maps of 2 height x 2 width to `size`."""
    return (0, 0), (0, size[0] - 2 * height), (0, size[1] - 2 * width), (0, 0)
