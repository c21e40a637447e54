"""Feature-wise linear modulation (Perez et al. 2018): a condition decides gain and offset of every channel."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.linear import Linear

NEARLY_ZERO = 0.01  # standard deviation of the last layer's weights around the identity


class FiLM(nnx.Module):
    """Condition (B, S) -> Linear(S -> hidden), ReLU, Linear(hidden -> 2 C): gain and offset (B, C), float32.

    identity: the gain is 1 + gamma and the last layer starts near 0, so that the network starts unmodulated; else it is gamma.
    """

    def __init__(self, condition: int, hidden: int, channels: int, identity: bool, *, dtype: Any, rngs: nnx.Rngs):
        last = nnx.initializers.normal(NEARLY_ZERO) if identity else nnx.initializers.glorot_normal()
        first = nnx.initializers.glorot_normal()
        self.first = Linear(condition, hidden, kernel_init=first, dtype=dtype, rngs=rngs)
        self.last = Linear(hidden, 2 * channels, kernel_init=last, dtype=dtype, rngs=rngs)
        self.identity = identity

    def __call__(self, condition: jax.Array) -> tuple[jax.Array, jax.Array]:
        gamma, beta = jnp.split(self.last(jax.nn.relu(self.first(condition))).astype(jnp.float32), 2, axis=-1)
        return (1 + gamma if self.identity else gamma), beta
