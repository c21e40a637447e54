"""Random numbers for many layers from one key.

A key per layer is a generator's program per layer: more than half of a small network's compilation, in dropout and in initial values
alike (measured). Here one key gives two words, and each place in the network hashes them with constants of its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from jaxtrain.nn.dropout import STRIDE
from jaxtrain.nn.dropout import _finalise as finalise


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Draws:
    """What the random numbers of one place start from. first, second: words (); place: constants, known while tracing.

    Every place draws once: a second call gives the same numbers.
    """

    first: jax.Array
    second: jax.Array
    place: tuple[int, int] = field(default=(0, 0), metadata={"static": True})

    @classmethod
    def of(cls, key: jax.Array) -> "Draws":
        return cls(*jax.random.bits(key, (2,), jnp.uint32))

    def part(self, i: int) -> "Draws":
        """The i-th of any number of parts that have nothing in common: other constants, no arithmetic."""
        a, b = self.place
        return replace(self, place=(_mixed(a, 2 * i + 1), _mixed(b, 2 * i + 2)))

    def turn(self, i: jax.Array) -> "Draws":
        """The draws of turn i of a loop, i uint32 ()."""
        first = finalise(i * STRIDE + self.first, self.second)
        return replace(self, first=first, second=finalise(first, self.second))

    def bits(self, shape: Sequence[int]) -> jax.Array:
        """uint32 of `shape`."""
        first, second = self.first + jnp.uint32(self.place[0]), self.second + jnp.uint32(self.place[1])
        return finalise(jax.lax.iota(jnp.uint32, math.prod(shape)) * STRIDE + first, second).reshape(shape)

    def bernoulli(self, p: float, shape: Sequence[int]) -> jax.Array:
        """True with probability p (to 2^-32): bool of `shape`."""
        return self.bits(shape) < jnp.uint32(min(int(p * 2**32), 2**32 - 1))

    def uniform(self, shape: Sequence[int]) -> jax.Array:
        """In (0, 1), float32 of `shape`."""
        return (self.bits(shape) >> 8).astype(jnp.float32) * 2.0**-24 + 2.0**-25

    def normal(self, shape: Sequence[int], cut: float = math.inf) -> jax.Array:
        """Standard normal, cut at +-`cut`, float32 of `shape`."""
        return math.sqrt(2) * jax.lax.erf_inv((2 * self.uniform(shape) - 1) * math.erf(cut / math.sqrt(2)))


def _mixed(word: int, i: int) -> int:
    """A step of SplitMix, 32 bits."""
    word = (word * 0x9E3779B1 + i * 0x85EBCA6B + 0x7F4A7C15) % 2**32
    word = (word ^ (word >> 16)) * 0x21F0AAAD % 2**32
    return (word ^ (word >> 15)) * 0x735A2D97 % 2**32


Dice = Draws | None  # None: nothing is dropped


def split(draws: Dice, n: int) -> list[Dice]:
    """n draws that have nothing in common."""
    return [None if draws is None else draws.part(i) for i in range(n)]


def dropped(x: jax.Array, rate: float, draws: Dice) -> jax.Array:
    """x with each element 0 with probability `rate`, else x / (1 - rate)."""
    if draws is None or rate == 0:
        return x
    return jnp.where(draws.bernoulli(1 - rate, x.shape), x * (1 / (1 - rate)), 0).astype(x.dtype)
