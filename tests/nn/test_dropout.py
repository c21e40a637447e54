"""How a batch is cut into parts, by memory or by devices, changes no dropout mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain.nn import graph
from jaxtrain.nn.dropout import Dropout, Seed, bernoulli


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_numbered_examples_drop_at_the_rate_and_differ(rate: float) -> None:
    seed = Seed(jax.random.key(0), jnp.arange(64, dtype=jnp.uint32))
    kept = np.asarray(bernoulli(seed, 1 - rate, (64, 40, 25)))
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)
    by_example = kept.reshape(64, -1)
    agree = np.mean(by_example[:, None] == by_example[None], axis=-1)[~np.eye(64, dtype=bool)]
    expected = rate**2 + (1 - rate) ** 2
    assert np.abs(agree - expected).max() < 6 * np.sqrt(expected * (1 - expected) / 1000)


def test_parts_of_any_size_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, drop = jnp.ones((8, 3, 5)), Dropout(0.5)

    def run(limit: int) -> np.ndarray:
        monkeypatch.setattr(graph, "CACHE_FLOATS", limit)
        return np.asarray(graph.over_batch(lambda part, rngs: drop(part, rngs=rngs), x, nnx.Rngs(dropout=7), floats=1))

    whole = run(100)
    assert 0 < (whole == 0).mean() < 1
    for limit in (1, 2, 4):
        np.testing.assert_array_equal(run(limit), whole)


def test_parts_within_parts_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, drop = jnp.ones((8, 3, 5)), Dropout(0.5)

    def inner(part: jax.Array, rngs: graph.Source | None) -> jax.Array:
        rows = graph.over_batch(lambda row, rngs: drop(row, rngs=rngs), part.reshape(-1, 5), rngs, floats=1)
        return rows.reshape(part.shape)

    def run(limit: int) -> np.ndarray:
        monkeypatch.setattr(graph, "CACHE_FLOATS", limit)
        return np.asarray(graph.over_batch(inner, x, nnx.Rngs(dropout=7), floats=1))

    np.testing.assert_array_equal(run(2), run(100))
