"""Multi-head attention over the second-last axis, with one fused input map."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.dropout import Dropout, Source
from jaxtrain.nn.linear import Linear


class MultiHeadAttention(nnx.Module):
    """Scaled dot-product attention, (..., Q, d) over (..., S, d) -> (..., Q, d); no mask.

    The input map is one kernel (d, 3 d), ordered query, key, value; its fan-in is d, as for three maps.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.inputs = Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.output = Linear(width, width, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout)

    def __call__(self, x: jax.Array, memory: jax.Array | None = None, rngs: Source | None = None) -> jax.Array:
        """x (..., Q, d); memory (..., S, d), by default x itself."""
        width = x.shape[-1]
        if memory is None:
            parts = jnp.split(self.inputs(x), 3, axis=-1)
        else:
            parts = [self._map(x, 0, width), *jnp.split(self._map(memory, width, 3 * width), 2, axis=-1)]
        q, k, v = (part.reshape(*part.shape[:-1], self.heads, -1) for part in parts)
        scores = jnp.einsum("...qhc,...shc->...hqs", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores / math.sqrt(width // self.heads), axis=-1)
        weights = self.dropout(weights.astype(v.dtype), rngs=rngs)
        mixed = jnp.einsum("...hqs,...shc->...qhc", weights, v)
        return self.output(mixed.reshape(x.shape))

    def _map(self, x: jax.Array, first: int, last: int) -> jax.Array:
        """Columns first..last of the input map."""
        assert self.inputs.bias is not None
        dtype = self.inputs.dtype
        kernel, bias = self.inputs.kernel[:, first:last], self.inputs.bias[first:last]
        return x.astype(dtype) @ kernel.astype(dtype) + bias.astype(dtype)
