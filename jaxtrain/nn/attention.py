"""Multi-head attention over the second-last axis, with one fused input map."""

import math

import jax
import jax.numpy as jnp
from flax import nnx


class MultiHeadAttention(nnx.Module):
    """Scaled dot-product attention, (..., Q, d) over (..., S, d) -> (..., Q, d); no mask.

    The input map is one kernel (d, 3 d), ordered query, key, value; its fan-in is d, as for three maps.
    """

    def __init__(self, width: int, heads: int, dropout: float, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.inputs = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x: jax.Array, memory: jax.Array | None = None, rngs: nnx.Rngs | None = None) -> jax.Array:
        """x (..., Q, d); memory (..., S, d), by default x itself."""
        width = x.shape[-1]
        if memory is None:
            parts = jnp.split(self.inputs(x), 3, axis=-1)
        else:
            kernel, bias = self.inputs.kernel[...], self.inputs.bias[...]
            dtype = self.inputs.dtype
            query = x.astype(dtype) @ kernel[:, :width].astype(dtype) + bias[:width].astype(dtype)
            both = memory.astype(dtype) @ kernel[:, width:].astype(dtype) + bias[width:].astype(dtype)
            parts = [query, *jnp.split(both, 2, axis=-1)]
        q, k, v = (part.reshape(*part.shape[:-1], self.heads, -1) for part in parts)
        scores = jnp.einsum("...qhc,...shc->...hqs", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores / math.sqrt(width // self.heads), axis=-1)
        weights = self.dropout(weights.astype(v.dtype), rngs=rngs)
        mixed = jnp.einsum("...hqs,...shc->...qhc", weights, v)
        return self.output(mixed.reshape(x.shape))
