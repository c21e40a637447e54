"""Attention over all pairs against its plain formula, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.nn.dropout import bernoulli
from jaxtrain.nn.pairwise import attend_pairs


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_value_and_gradients_are_those_of_the_formula(rate: float) -> None:
    keys = jax.random.split(jax.random.key(0), 7)
    query, key, value, g = (2 * jax.random.normal(k, (3, 7, 2, 4)) for k in keys[:4])
    open_pair = jax.random.bernoulli(keys[5], 0.7, (2, 7, 7)) | jnp.eye(7, dtype=bool)
    bias = jnp.where(open_pair, jax.random.normal(keys[4], (2, 7, 7)), -1e30)
    seed = keys[6] if rate else None

    def formula(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(jnp.einsum("bnhc,bmhc->bhnm", query, key) + bias, axis=-1)
        if seed is not None:
            weights = jnp.where(bernoulli(seed, 1 - rate, weights.shape), weights / (1 - rate), 0)
        return jnp.einsum("bhnm,bmhc->bnhc", weights, value)

    def ours(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array) -> jax.Array:
        return jnp.asarray(attend_pairs(query, key, value, bias, seed, rate))

    found, back = jax.vjp(ours, query, key, value, bias)
    wanted, formula_back = jax.vjp(formula, query, key, value, bias)
    np.testing.assert_allclose(found, wanted, atol=5e-6)
    for grad, formula_grad in zip(back(g), formula_back(g), strict=True):
        np.testing.assert_allclose(grad, formula_grad, atol=2e-5)


def test_half_precision_stays_near_the_formula() -> None:
    query, key, value = (jax.random.normal(k, (2, 9, 2, 8)).astype(jnp.bfloat16) for k in jax.random.split(jax.random.key(1), 3))
    bias = jnp.zeros((2, 9, 9))
    exact = [part.astype(jnp.float32) for part in (query, key, value)]
    found = jnp.asarray(attend_pairs(query, key, value, bias, None, 0.0))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), jnp.asarray(attend_pairs(*exact, bias, None, 0.0)), atol=0.03)
