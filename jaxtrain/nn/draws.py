"""Dropout of many layers from one draw: a key per layer would be a generator's program per layer, most of a small network's compilation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain.nn.dropout import STRIDE
from jaxtrain.nn.dropout import _finalise as finalise


class Draws(NamedTuple):
    """What random masks start from: two hashed words (); cheap to split, so that every layer has its own."""

    first: jax.Array
    second: jax.Array

    @classmethod
    def of(cls, key: jax.Array) -> "Draws":
        return cls(*jax.random.bits(key, (2,), jnp.uint32))

    def at(self, place: int | jax.Array) -> "Draws":
        """The draws of one place among many, for example of one layer of a scan."""
        return Draws(finalise((jnp.uint32(place) + 1) * STRIDE + self.first, self.second), self.second)

    def bernoulli(self, p: float, shape: tuple[int, ...]) -> jax.Array:
        """True with probability p (to 2^-32), independently per element: bool of `shape`."""
        size = 1
        for n in shape:
            size *= n
        x = jax.lax.iota(jnp.uint32, size) * STRIDE + self.first
        return (finalise(x, self.second) < jnp.uint32(min(int(p * 2**32), 2**32 - 1))).reshape(shape)


Dice = Draws | None  # None: nothing is dropped


def split(draws: Dice, n: int) -> list[Dice]:
    """n draws that have nothing in common."""
    return [None if draws is None else draws.at(i) for i in range(n)]


def dropped(x: jax.Array, rate: float, draws: Dice) -> jax.Array:
    """x with each element 0 with probability `rate`, else x / (1 - rate)."""
    if draws is None or rate == 0:
        return x
    return jnp.where(draws.bernoulli(1 - rate, x.shape), x * (1 / (1 - rate)), 0).astype(x.dtype)
