"""Parameters and running statistics of batch norm and group norm; maps are normalised by `nn.norm_pool`."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.norm_pool import EPSILON, Moments

MOMENTUM = 0.9  # of running statistics: they move by a tenth


class BatchNorm(nnx.Module):
    """Ioffe and Szegedy (2015); running statistics hold the biased variance.

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

    def running(self) -> Moments:
        return Moments(self.mean[...], self.var[...])

    def move(self, moments: Moments) -> None:
        """Running statistics take a step towards the moments (C,) of a batch."""
        for running, value in ((self.mean, moments.mean), (self.var, moments.var)):
            running[...] = MOMENTUM * running[...] + (1 - MOMENTUM) * jax.lax.stop_gradient(value)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Rows (N, C), float32."""
        moments = self.running()
        if not self.use_running_average:
            moments = Moments(jnp.mean(x, 0), jnp.var(x, 0))
            self.move(moments)
        return (x - moments.mean) * jax.lax.rsqrt(moments.var + EPSILON) * self.scale[...] + self.bias[...]


class GroupNorm(nnx.Module):
    """Wu and He (2018): every example by itself, in `groups` runs of neighbouring channels, which must divide them."""

    def __init__(self, channels: int, groups: int):
        assert channels % groups == 0, f"{channels} channels in {groups} groups"
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.groups = groups
