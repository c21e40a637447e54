"""Gated residual layers of the Temporal Fusion Transformer (Lim et al., arXiv 1912.09363, section 4.1)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.dropout import Dropout, Source
from jaxtrain.nn.linear import Linear

EPSILON = 1e-3  # of every layer norm, as published

glorot = nnx.initializers.glorot_uniform()


def elu(x: jax.Array) -> jax.Array:
    """exp(x) - 1 below 0. `jax.nn.elu` takes expm1, several times slower on CPU and no better beside the 1 of the slope."""
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


class GateNorm(nnx.Module):
    """LN(r + GLU(Dense(y))): (..., width) and (..., outputs) -> (..., outputs); the first half is the value, the second the gate."""

    def __init__(self, width: int, outputs: int, *, dtype: Any, rngs: nnx.Rngs):
        self.gate = Linear(width, 2 * outputs, kernel_init=glorot, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(outputs, epsilon=EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, y: jax.Array, r: jax.Array) -> jax.Array:
        value, gate = jnp.split(self.gate(y), 2, axis=-1)
        return self.norm(r + value * jax.nn.sigmoid(gate))


class GatedResidual(nnx.Module):
    """GRN(a, c) = LN(skip(a) + GLU(Dropout(W2 ELU(W1 a + b1 + W3 c) + b2))): (..., inputs) -> (..., outputs).

    skip is the identity unless `outputs` is given; context: the width of c, 0 without.
    """

    def __init__(
        self, inputs: int, width: int, outputs: int | None = None, *, context: int = 0, dropout: float, dtype: Any, rngs: nnx.Rngs
    ):
        self.inner = Linear(inputs, width, kernel_init=glorot, dtype=dtype, rngs=rngs)
        self.context = Linear(context, width, use_bias=False, kernel_init=glorot, dtype=dtype, rngs=rngs) if context else None
        self.outer = Linear(width, width, kernel_init=glorot, dtype=dtype, rngs=rngs)
        self.finish = GateNorm(width, outputs or width, dtype=dtype, rngs=rngs)
        self.skip = Linear(inputs, outputs, kernel_init=glorot, dtype=dtype, rngs=rngs) if outputs else None
        self.dropout = Dropout(dropout)

    def __call__(self, a: jax.Array, c: jax.Array | None = None, rngs: Source | None = None) -> jax.Array:
        """c must broadcast against a but for its last axis."""
        return self.from_inner(self.inner(a), a if self.skip is None else self.skip(a), c, rngs)

    def from_inner(self, u: jax.Array, skip: jax.Array, c: jax.Array | None, rngs: Source | None) -> jax.Array:
        """The rest of the GRN after W1 a + b1, for callers that know a shorter way to it."""
        if self.context is not None and c is not None:
            u = u + self.context(c)
        return self.finish(self.dropout(self.outer(elu(u)), rngs=rngs), skip)
