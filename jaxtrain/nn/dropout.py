"""Dropout whose random bits cost a few integer operations per element.

Threefry, JAX's default generator, takes 15 ns per element on one CPU core: in a small transformer more than all matrix
products together (measured). Here one threefry draw per call seeds a multiply-xorshift hash of the element's position, which XLA fuses
into the consumer, partitions over devices like any element-wise operation, and never has to keep in memory.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Seed(NamedTuple):
    """A key for one draw over part of a batch: every example draws by its number in the whole batch."""

    key: jax.Array
    examples: jax.Array  # (B,) uint32


class PartRngs:
    """The keys of one part of a batch, so that how a batch is cut (by memory, by devices) changes no mask."""

    def __init__(self, key: jax.Array, examples: jax.Array):
        self._rngs, self._examples = nnx.Rngs(dropout=key), examples

    def dropout(self) -> Seed:
        return Seed(self._rngs.dropout(), self._examples)


Source = nnx.Rngs | PartRngs  # where dropout keys come from


STRIDE = np.uint32(0x9E3779B1)


class Dropout(nnx.Dropout):
    """`nnx.Dropout` built without rngs: call it with `rngs`; `nnx.view(model, deterministic=True)` switches it off."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: jax.Array, *, rngs: Source | None = None
    ) -> jax.Array:
        seed = self.seed(rngs)
        if seed is None:
            return inputs
        kept = bernoulli(seed, 1 - self.rate, inputs.shape)
        return jnp.where(kept, inputs * (1 / (1 - self.rate)), 0).astype(inputs.dtype)

    def seed(self, rngs: Source | None) -> jax.Array | Seed | None:
        """What one draw starts from; None when nothing is dropped."""
        if self.deterministic or self.rate == 0.0:
            return None
        if rngs is None:
            raise ValueError("dropout is active: call the model with rngs, or use nnx.view(model, deterministic=True)")
        return rngs.dropout()


def bernoulli(seed: jax.Array | Seed, p: float, shape: tuple[int, ...]) -> jax.Array:
    """True with probability p (to 2^-32), independently per element: bool of `shape`.

    The murmur3 finaliser of position and seed, the second half of the seed entering between its two rounds. With a `Seed`
    the position is counted within each example, which has hashed its own number into the first half.
    """
    key, examples = seed if isinstance(seed, Seed) else (seed, None)
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    # Counted flat: an index built from several axes costs five times as much on CPU.
    if examples is None:
        x = jax.lax.iota(jnp.uint32, math.prod(shape)) * STRIDE + first
    else:
        assert examples.shape == shape[:1], f"{examples.shape[0]} examples, shape {shape}"
        start = _finalise((examples * STRIDE + first), second)
        x = jax.lax.iota(jnp.uint32, math.prod(shape[1:])) * STRIDE + start[:, None]
    return (_finalise(x, second) < jnp.uint32(min(math.floor(p * 2**32), 2**32 - 1))).reshape(shape)


def _finalise(x: jax.Array, second: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = ((x ^ (x >> 13)) + second) * jnp.uint32(0xC2B2AE35)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    return x ^ (x >> 15)
