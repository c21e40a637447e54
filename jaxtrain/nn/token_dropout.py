"""Dropout of arrays whose last axis runs over the steps of several examples, (..., b T)."""

import math

import jax
import jax.numpy as jnp

from jaxtrain.nn.dropout import STRIDE, _finalise as finalise


def example_seeds(key: jax.Array, examples: int) -> tuple[jax.Array, jax.Array]:
    """What every example's draw starts from (B,), and what all share (); an example's mask depends on its number alone."""
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    return finalise(jnp.arange(examples, dtype=jnp.uint32) * STRIDE + first, second), second


def drop_tokens(x: jax.Array, start: jax.Array, second: jax.Array, steps: int, rate: float) -> jax.Array:
    """x (..., b steps) of the b examples that begin at start (b,): each element to 0 with probability `rate`, the others / (1 - rate).

    The element's place within its example is hashed as in `dropout.bernoulli`.
    """
    rows = math.prod(x.shape[:-1])
    row = jnp.arange(rows, dtype=jnp.uint32) * jnp.uint32(steps) * STRIDE
    token = (start[:, None] + jnp.arange(steps, dtype=jnp.uint32) * STRIDE).reshape(-1)
    # Kept as two vectors: fused into the loop over all elements, their indices would cost more than the hash.
    row, token = jax.lax.optimization_barrier((row, token))
    kept = finalise(row[:, None] + token, second) < jnp.uint32(min(math.floor((1 - rate) * 2**32), 2**32 - 1))
    return jnp.where(kept.reshape(x.shape), x * (1 / (1 - rate)), 0).astype(x.dtype)
