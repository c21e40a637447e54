"""Layers of one kind and size under one `lax.scan`: one body to compile, however many there are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.draws import Dice


class Stack(nnx.Module):
    """`n` layers that `make` builds, their parameters with a leading axis of n. Layers hold parameters and nothing else that changes."""

    def __init__(self, n: int, make: Callable[[], nnx.Module]):
        graph, *_ = (parts := [nnx.split(make(), nnx.Param) for _ in range(n)])[0]
        self.n, self.layer = n, nnx.merge(graph, jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for _, params in parts)))

    def __call__(self, h: jax.Array, draws: Dice, apply: Callable[[Any, jax.Array, Dice], jax.Array] | None = None) -> jax.Array:
        """h through all layers in turn; apply(layer, h, draws of that layer) is by default layer(h, draws)."""
        graph, params = nnx.split(self.layer, nnx.Param)
        step = apply or (lambda layer, h, draws: layer(h, draws))

        def body(h: jax.Array, one: tuple[Any, jax.Array]) -> tuple[jax.Array, None]:
            params, i = one
            return step(nnx.merge(graph, params), h, None if draws is None else draws.at(i)), None

        if self.n == 1:  # a loop of one turn would only cost its compilation
            return body(h, (jax.tree.map(lambda leaf: leaf[0], params), jnp.uint32(0)))[0]
        return jax.lax.scan(body, h, (params, jnp.arange(self.n, dtype=jnp.uint32)))[0]
