"""Multi-head attention whose heads share their values, so that one averaged matrix of weights explains it (arXiv 1912.09363, 4.4)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.dropout import Dropout, Source
from jaxtrain.nn.linear import Linear
from jaxtrain.nn.parts import over_examples

MASKED = -1e30  # finite: a softmax over masked steps must not become nan


class InterpretableAttention(nnx.Module):
    """A = mean over heads of softmax(q_h k_h' / sqrt(d)); out = Dropout((A v) Wo), v shared by the heads."""

    def __init__(self, width: int, heads: int, dropout: float, *, dtype: Any, rngs: nnx.Rngs):
        self.heads, d = heads, width // heads
        init = nnx.initializers.glorot_uniform()
        self.query = Linear(width, heads * d, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        self.key = Linear(width, heads * d, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        self.value = Linear(width, d, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        self.output = Linear(d, width, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(dropout)

    def __call__(self, queries: jax.Array, memory: jax.Array, mask: jax.Array, rngs: Source | None = None) -> jax.Array:
        """queries (B, Q, H), memory (B, S, H), mask (B, Q, S) bool -> (B, Q, H)."""
        q, k = self._heads(queries, memory)
        return self.dropout(self.output(attend(q, k, self.value(memory), mask)), rngs=rngs)

    def weights(self, queries: jax.Array, memory: jax.Array, mask: jax.Array) -> jax.Array:
        """A (B, Q, S) float32: every row sums to 1."""
        q, k = self._heads(queries, memory)
        return jax.nn.softmax(_scores(q, k, mask), axis=-1).mean(axis=1)

    def _heads(self, queries: jax.Array, memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(B, n, Q, d) divided by sqrt(d), and (B, n, S, d)."""
        q, k = (x.reshape(*x.shape[:2], self.heads, -1).swapaxes(1, 2) for x in (self.query(queries), self.key(memory)))
        return q * (1 / math.sqrt(q.shape[-1])), k


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """mean_h softmax(q_h k_h') v: q (B, n, Q, d), k (B, n, S, d), v (B, S, d), mask (B, Q, S) bool -> (B, Q, d).

    Forward and backward go through the (n, Q, S) numbers of an example as rarely as they can: sums over S are products with v or
    with ones, and the backward pass computes the weights again from their row sums.
    """
    return _forward(q, k, v, mask)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> tuple[jax.Array, Any]:
    def part(inputs: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v, mask = inputs
        b, n, rows, _ = q.shape
        scores = _scores(q, k, mask)
        top = scores.max(axis=-1, keepdims=True)
        e = jnp.exp(scores - top).astype(v.dtype).reshape(b, n * rows, -1)
        sums = _product(e, jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)).reshape(b, n, rows, -1)
        each, total = sums[..., :-1] / sums[..., -1:], sums[..., -1:]
        return each.mean(axis=1).astype(v.dtype), each, top + jnp.log(total)

    out, each, log_sum = over_examples(part, (q, k, v, mask), q.shape[1] * mask[0].size, recompute=False)
    return out, (q, k, v, mask, each, log_sum)


def _backward(saved: Any, g: jax.Array) -> tuple[jax.Array | None, ...]:
    def part(inputs: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v, mask, each, log_sum, g = inputs
        b, n, rows, d = q.shape
        g = g * (1 / n)
        p = jnp.exp(_scores(q, k, mask) - log_sum)
        d_p = jnp.einsum("bqc,bsc->bqs", g, v, preferred_element_type=jnp.float32)[:, None]
        # Its mean under p, sum_s p d_p = g . (p v), without going through p.
        mean = jnp.sum(g.astype(jnp.float32)[:, None] * each, axis=-1, keepdims=True)
        d_scores = (p * (d_p - mean)).astype(q.dtype)
        per_head = jnp.broadcast_to(g[:, None], (b, n, rows, d)).reshape(b, n * rows, d)
        # With S last the numbers lie in memory as the product wants them: two to three times faster on CPU.
        d_v = jnp.einsum("brc,brs->bcs", per_head, p.astype(v.dtype).reshape(b, n * rows, -1)).swapaxes(1, 2)
        d_k = jnp.einsum("bnqc,bnqs->bncs", q, d_scores).swapaxes(2, 3)
        return jnp.einsum("bnqs,bnsc->bnqc", d_scores, k), d_k, d_v

    q, mask = saved[0], saved[3]
    return (*over_examples(part, (*saved, g), q.shape[1] * mask[0].size, recompute=False), None)


attend.defvjp(_forward, _backward)


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
    """(B, n, Q, S) float32."""
    scores = jnp.einsum("bnqc,bnsc->bnqs", q, k, preferred_element_type=jnp.float32)
    return jnp.where(mask[:, None], scores, MASKED)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum("brs,bsc->brc", x, y, preferred_element_type=jnp.float32)
