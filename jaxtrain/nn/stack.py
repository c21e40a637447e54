"""Layers of one kind and size under one `lax.scan`: one body to compile, however many there are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.draws import Dice
from jaxtrain.nn.layers import Seeds


class Stack(nnx.Module):
    """`n` layers that `make` builds, their parameters with a leading axis of n. Layers hold parameters and nothing else that changes."""

    def __init__(self, n: int, make: Callable[[Seeds], nnx.Module], seeds: Seeds):
        draws, graphs = seeds.params(), []

        def params(i: jax.Array) -> Any:
            graph, params = nnx.split(make(Seeds(draws.turn(i))), nnx.Param)
            graphs.append(graph)
            return params

        stacked = jax.vmap(params)(jnp.arange(n, dtype=jnp.uint32))
        self.n, self.layer = n, nnx.merge(graphs[0], stacked)

    def __call__(self, h: jax.Array, draws: Dice, apply: Callable[[Any, jax.Array, Dice], jax.Array] | None = None) -> jax.Array:
        """h through all layers in turn; apply(layer, h, draws of that layer) is by default layer(h, draws)."""
        graph, params = nnx.split(self.layer, nnx.Param)
        step = apply or (lambda layer, h, draws: layer(h, draws))
        if self.n == 1:  # a loop of one turn would only cost its compilation
            return step(nnx.merge(graph, jax.tree.map(lambda leaf: leaf[0], params)), h, draws)

        def body(h: jax.Array, one: tuple[Any, jax.Array]) -> tuple[jax.Array, None]:
            params, i = one
            return step(nnx.merge(graph, params), h, None if draws is None else draws.turn(i)), None

        return jax.lax.scan(body, h, (params, jnp.arange(self.n, dtype=jnp.uint32)))[0]
