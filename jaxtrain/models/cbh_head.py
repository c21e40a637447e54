"""From the frames' vectors to one height: attention over frames, a GRU or state spaces, then a dense head."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.errors import UserError
from jaxtrain.models.cbh_encoder import SLOPE
from jaxtrain.nn.draws import Draws
from jaxtrain.nn.dropout import Dropout, Source
from jaxtrain.nn.layers import Seeds
from jaxtrain.nn.linear import Linear
from jaxtrain.nn.norm import BatchNorm
from jaxtrain.nn.norm_pool import EPSILON
from jaxtrain.nn.s4d import S4DLayer

STATES = 16  # of a state space per feature
STEPS = (0.05, 1.0)  # its time step, in frames: windows are short
XAVIER = nnx.initializers.glorot_normal()


class FrameAttention(nnx.Module):
    """Weights (B, T) of the frames f (B, T, D): softmax over t of w2 . relu(W1 (f_t + p_t) + b1) + b2; p is in the score alone."""

    def __init__(self, features: int, frames: int, position: bool, *, dtype: Any, rngs: nnx.Rngs):
        self.first = Linear(features, features // 2, kernel_init=XAVIER, dtype=dtype, rngs=rngs)
        self.last = Linear(features // 2, 1, kernel_init=XAVIER, dtype=dtype, rngs=rngs)
        self.position = nnx.Param(jnp.zeros((frames, features))) if position else None

    def __call__(self, f: jax.Array) -> jax.Array:
        placed = f if self.position is None else f + self.position[...].astype(f.dtype)
        score = self.last(jax.nn.relu(self.first(placed)))[..., 0]
        return jax.nn.softmax(score.astype(jnp.float32), axis=1)


class FrameGRU(nnx.Module):
    """The last state (B, D) of a GRU over f (B, T, D); gates reset, update, candidate side by side, one bias, on the input."""

    def __init__(self, features: int, *, dtype: Any, rngs: nnx.Rngs):
        self.inputs = Linear(features, 3 * features, kernel_init=XAVIER, dtype=dtype, rngs=rngs)
        self.recurrent = Linear(features, 3 * features, use_bias=False, kernel_init=XAVIER, dtype=dtype, rngs=rngs)

    def __call__(self, f: jax.Array) -> jax.Array:
        def step(state: jax.Array, ahead: jax.Array) -> tuple[jax.Array, None]:
            reset, update, new = jnp.split(ahead, 3, axis=-1)
            past_reset, past_update, past_new = jnp.split(self.recurrent(state).astype(jnp.float32), 3, axis=-1)
            kept = jax.nn.sigmoid(update + past_update)
            candidate = jnp.tanh(new + jax.nn.sigmoid(reset + past_reset) * past_new)
            return kept * state + (1 - kept) * candidate, None

        ahead = jnp.moveaxis(self.inputs(f).astype(jnp.float32), 1, 0)
        return jax.lax.scan(step, jnp.zeros_like(f[:, 0]), ahead)[0]


class FrameStates(nnx.Module):
    """The mean over t of a layer of diagonal state spaces, one per feature, both ways over f (B, T, D): (B, D) float32."""

    def __init__(self, features: int, *, dtype: Any, rngs: nnx.Rngs):
        self.layer = S4DLayer(
            features, STATES, 0.0, Seeds(Draws.of(rngs.params())), dtype=dtype, init="lin", bidirectional=True, conv="toeplitz",
            dt_range=STEPS,
        )  # fmt: skip

    def __call__(self, f: jax.Array) -> jax.Array:
        return self.layer(f).astype(jnp.float32).mean(1)


class Head(nnx.Module):
    """Two dense layers with norm, LeakyReLU and dropout, then one output: (B, D) -> (B,) float32."""

    def __init__(self, config: Any, features: int, *, dtype: Any, rngs: nnx.Rngs):
        widths = (features, *config.dense)
        pairs = list(zip(widths, widths[1:], strict=False))
        self.dense = nnx.List([Linear(*sizes, kernel_init=XAVIER, dtype=dtype, rngs=rngs) for sizes in pairs])
        self.norms = nnx.List([_norm(config.norm, width, rngs) for width in config.dense])
        self.dropouts = nnx.List([Dropout(rate) for rate in config.dropout[1:]])
        self.output = output(config, widths[-1], rngs)

    def __call__(self, x: jax.Array, rngs: Source | None) -> jax.Array:
        """Raises UserError for batch norm over one row while training."""
        for dense, norm, dropout in zip(self.dense, self.norms, self.dropouts, strict=True):
            x = jax.nn.leaky_relu(_normed(norm, dense(x).astype(jnp.float32)), SLOPE)
            x = dropout(x, rngs=rngs)
        return self.output(x)[..., 0]


def output(config: Any, features: int, rngs: nnx.Rngs) -> Linear:
    """The last layer, float32."""
    std, start = config.output_init
    normal, constant = nnx.initializers.normal(std), nnx.initializers.constant(start)
    return Linear(features, 1, kernel_init=normal, bias_init=constant, dtype=jnp.float32, rngs=rngs)


def _norm(kind: str, width: int, rngs: nnx.Rngs) -> BatchNorm | nnx.LayerNorm:
    return BatchNorm(width) if kind == "batch" else nnx.LayerNorm(width, epsilon=EPSILON, dtype=jnp.float32, rngs=rngs)


def _normed(norm: BatchNorm | nnx.LayerNorm, x: jax.Array) -> jax.Array:
    if isinstance(norm, BatchNorm) and len(x) < 2 and not norm.use_running_average:
        raise UserError("config.train.batch: batch norm of the dense layers needs 2 windows or more at a time, got 1; use model.norm=group")
    return norm(x)
