"""Multi-head attention whose heads share their values, so that one averaged matrix of weights explains it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.dropout import Dropout, Source
from jaxtrain.nn.linear import Linear

MASKED = -1e30  # finite: a fully masked row must not become nan


class InterpretableAttention(nnx.Module):
    """A = mean over heads of softmax(q_h k_h' / sqrt(d)); out = Dropout((A v) Wo), v shared by the heads (arXiv 1912.09363, 4.4)."""

    def __init__(self, width: int, heads: int, dropout: float, *, dtype: Any, rngs: nnx.Rngs):
        self.heads, d = heads, width // heads
        init = nnx.initializers.glorot_uniform()
        self.query = Linear(width, heads * d, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        self.key = Linear(width, heads * d, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        self.value = Linear(width, d, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        self.output = Linear(d, width, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout)

    def __call__(self, queries: jax.Array, memory: jax.Array, mask: jax.Array, rngs: Source | None = None) -> tuple[jax.Array, jax.Array]:
        """queries (B, Q, H), memory (B, S, H), mask (B or 1, Q, S) bool -> (B, Q, H) and the mean weights (B, Q, S) float32."""
        q, k = self.query(queries), self.key(memory)
        q, k = (x.reshape(*x.shape[:-1], self.heads, -1) for x in (q, k))
        scores = jnp.einsum("bqhc,bshc->bhqs", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, MASKED), axis=-1).mean(axis=1)
        mixed = jnp.einsum("bqs,bsc->bqc", weights.astype(memory.dtype), self.value(memory))
        return self.dropout(self.output(mixed), rngs=rngs), weights
