"""Keep XLA's CPU compiler from computing small arrays again at every use."""

import jax
import jax.numpy as jnp


def stored(x: jax.Array) -> jax.Array:
    """x (..., C) float32 itself, to the bit, in memory once it is known.

    On CPU cheap element-wise work is repeated in every loop that uses it: what was drawn for a channel, at each of its pixels. An
    optimization barrier is gone before loops are merged; a product is never merged, so x is multiplied by ones on a diagonal.
    """
    if jax.default_backend() != "cpu":
        return x
    return jnp.matmul(x.reshape(-1, x.shape[-1]), jnp.eye(x.shape[-1], dtype=x.dtype), precision=jax.lax.Precision.HIGHEST).reshape(x.shape)
