"""Layer norm and its two ways, random numbers of many places, stacks of layers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain.nn.draws import Draws, dropped, split
from jaxtrain.nn.layers import Seeds, dense, normalize, normalize_products
from jaxtrain.nn.stack import Stack


@pytest.mark.parametrize("run", [normalize, normalize_products])
def test_layer_norm_and_its_gradient(run):
    rng = np.random.default_rng(0)
    x, weight, scale, bias = rng.normal(3, 2, (2, 5, 8)), rng.normal(size=(2, 5, 8)), rng.normal(size=8), rng.normal(size=8)
    single = [value.astype(np.float32) for value in (x, scale, bias)]
    centred = x - x.mean(-1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    n, h = centred * inverse, weight * scale
    value, gradients = jax.jit(
        lambda *a: (run(*a), jax.grad(lambda *a: (run(*a) * weight.astype(np.float32)).sum(), argnums=(0, 1, 2))(*a))
    )(*single)
    np.testing.assert_allclose(value, n * scale + bias, atol=1e-5)
    d_x = inverse * (h - h.mean(-1, keepdims=True) - n * (h * n).mean(-1, keepdims=True))
    for found, expected in zip(gradients, (d_x, (weight * n).sum((0, 1)), weight.sum((0, 1))), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_places_and_turns_draw_apart_and_again_the_same():
    n, p = 4096, 0.7

    @jax.jit
    def masks(key):
        draws = Draws.of(key)
        places = [draws, *split(draws, 3), draws.part(1).part(0), draws.turn(jnp.uint32(0)), draws.turn(jnp.uint32(1))]
        return [place.bernoulli(p, (n,)) for place in places], draws.normal((n,)), draws.part(9).normal((n,), cut=2.0)

    found, plain, cut = masks(jax.random.key(0))
    for mask in found:
        assert abs(np.mean(mask) - p) < 5 * np.sqrt(p * (1 - p) / n)
    for one, other in itertools.combinations(np.asarray(found), 2):
        shifted = [np.mean(one == np.roll(other, k)) for k in (-1, 0, 1)]
        assert np.abs(np.array(shifted) - (p**2 + (1 - p) ** 2)).max() < 0.05
    np.testing.assert_array_equal(found, masks(jax.random.key(0))[0])
    assert np.mean(found[0] == masks(jax.random.key(1))[0][0]) < 0.7
    assert abs(np.mean(plain)) < 0.08 and abs(np.std(plain) - 1) < 0.05 and np.abs(plain).max() > 3
    assert np.abs(cut).max() < 2 and abs(np.std(cut) - 0.8796) < 0.05
    np.testing.assert_array_equal(dropped(np.ones(4, np.float32), 0.5, None), 1)


class Affine(nnx.Module):
    def __init__(self, seeds):
        self.map = dense(4, 4, seeds)

    def __call__(self, h, draws):
        return dropped(jnp.tanh(self.map(h)), 0.5, draws)


@pytest.mark.parametrize("n", [1, 3])
def test_a_stack_is_its_layers_in_turn(n):
    stack = Stack(n, Affine, Seeds(Draws.of(jax.random.key(0))))
    kernel, bias = np.asarray(stack.layer.map.kernel[...]), np.asarray(stack.layer.map.bias[...])
    assert kernel.shape == (n, 4, 4) and len(np.unique(kernel)) == n * 16
    h = x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    for one, shift in zip(kernel, bias, strict=True):
        h = np.tanh(h @ one + shift)
    run = jax.jit(lambda x, key: (stack(x, None), stack(x, Draws.of(key))))
    plain, masked = run(x, jax.random.key(1))
    np.testing.assert_allclose(plain, h, atol=1e-5)
    assert 0.35 < np.mean(np.asarray(masked) == 0) < 0.65
