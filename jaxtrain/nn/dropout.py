"""Dropout whose random bits cost a few integer operations per element.

Threefry, JAX's default generator, takes 15 ns per element on one CPU core: in a small transformer more than all matrix
products together (measured). Here one threefry draw per call seeds a multiply-xorshift hash of the element's position, which XLA fuses
into the consumer, partitions over devices like any element-wise operation, and never has to keep in memory.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx


class Dropout(nnx.Dropout):
    """`nnx.Dropout` built without rngs: call it with `rngs`; `nnx.view(model, deterministic=True)` switches it off."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        seed = self.seed(rngs)
        if seed is None:
            return inputs
        kept = bernoulli(seed, 1 - self.rate, inputs.shape)
        return jnp.where(kept, inputs * (1 / (1 - self.rate)), 0).astype(inputs.dtype)

    def seed(self, rngs: nnx.Rngs | None) -> jax.Array | None:
        """A key for one draw; None when nothing is dropped."""
        if self.deterministic or self.rate == 0.0:
            return None
        if rngs is None:
            raise ValueError("dropout is active: call the model with rngs, or use nnx.view(model, deterministic=True)")
        return rngs.dropout()


def bernoulli(key: jax.Array, p: float, shape: tuple[int, ...]) -> jax.Array:
    """True with probability p (to 2^-32), independently per element: bool of `shape`.

    The murmur3 finaliser of position and seed, the second half of the seed entering between its two rounds.
    """
    seed = jax.random.bits(key, (2,), jnp.uint32)
    # Counted flat: an index built from several axes costs five times as much on CPU.
    x = jax.lax.iota(jnp.uint32, math.prod(shape)) * jnp.uint32(0x9E3779B1) + seed[0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = ((x ^ (x >> 13)) + seed[1]) * jnp.uint32(0xC2B2AE35)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    return ((x ^ (x >> 15)) < jnp.uint32(min(math.floor(p * 2**32), 2**32 - 1))).reshape(shape)
