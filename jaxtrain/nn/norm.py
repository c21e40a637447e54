"""Batch norm and group norm of maps (N, H, W, C), from per-channel sums.

Both come down to one gain and one offset per example and channel, so whoever uses them fuses the normalising with what follows.
Sums per channel first, groups afterwards: a reduction over a grouped view of the map costs several times as much on CPU (measured).
"""

import jax
import jax.numpy as jnp
from flax import nnx

EPSILON = 1e-5
MOMENTUM = 0.9  # of running statistics: they move by a tenth


def channel_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and mean square over all axes between the first and the last: (N, ..., C) -> two (N, C), float32."""
    between = tuple(range(1, x.ndim - 1))
    wide = x.astype(jnp.float32)
    return jnp.mean(wide, between), jnp.mean(wide * wide, between)


class BatchNorm(nnx.Module):
    """Ioffe and Szegedy (2015) over batch and places; running statistics hold the biased variance.

    While training it moves its running statistics; `nnx.view(model, use_running_average=True)` reads them instead. Under jit on a
    sharded batch the statistics are those of the whole batch.
    """

    def __init__(self, channels: int):
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(channels)), nnx.BatchStat(jnp.ones(channels))
        self.use_running_average = False

    def set_view(self, use_running_average: bool | None = None) -> None:
        """What `nnx.view` may change."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def affine(self, mean: jax.Array, square: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Moments (N, C) -> gain and offset (1, C): gain x + offset is the normalised, scaled map."""
        if self.use_running_average:
            center, variance = self.mean[...], self.var[...]
        else:
            center = jnp.mean(mean, 0)
            variance = jnp.maximum(jnp.mean(square, 0) - center**2, 0)
            self.mean[...] = MOMENTUM * self.mean[...] + (1 - MOMENTUM) * jax.lax.stop_gradient(center)
            self.var[...] = MOMENTUM * self.var[...] + (1 - MOMENTUM) * jax.lax.stop_gradient(variance)
        return _affine(center[None], variance[None], self.scale[...], self.bias[...])


class GroupNorm(nnx.Module):
    """Wu and He (2018): every example by itself, `groups` runs of neighbouring channels. Raises ValueError where they do not divide."""

    def __init__(self, channels: int, groups: int):
        if channels % groups:
            raise ValueError(f"{channels} channels in {groups} groups")
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.groups = groups

    def affine(self, mean: jax.Array, square: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Moments (N, C) -> gain and offset (N, C)."""
        shape, size = (len(mean), self.groups, -1), mean.shape[1] // self.groups
        center, second = (jnp.mean(moment.reshape(shape), -1) for moment in (mean, square))
        variance = jnp.maximum(second - center**2, 0)
        return _affine(jnp.repeat(center, size, 1), jnp.repeat(variance, size, 1), self.scale[...], self.bias[...])


def _affine(center: jax.Array, variance: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    gain = scale.astype(jnp.float32) * jax.lax.rsqrt(variance + EPSILON)
    return gain, bias.astype(jnp.float32) - center * gain
