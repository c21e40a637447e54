"""Convolutions against XLA's own, in value and gradient, and their speed inside a loop."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.nn import conv


def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=conv.LAYOUT)


@pytest.mark.parametrize("width, inputs, large", [(6, 1, 4096), (6, 2, 4096), (5, 3, 4096), (5, 3, 0), (14, 3, 0)])
def test_value_and_gradients(width: int, inputs: int, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few channels and more; the kernel's gradient in one, by strips of two rows, and by single rows."""
    monkeypatch.setattr(conv, "LARGE", large)
    monkeypatch.setattr(conv, "STRIP", 12)
    r = np.random.default_rng(0)
    x, kernel = (jnp.asarray(r.normal(size=shape), jnp.float32) for shape in ((2, 4, width, inputs), (3, 3, inputs, 4)))
    weights = jnp.asarray(r.normal(size=(2, 4, width, 4)), jnp.float32)

    def all_of(function):
        return jax.jit(lambda x, k: jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(function(x, k)) * weights), (0, 1))(x, k))(x, kernel)

    for found, expected in zip(jax.tree.leaves(all_of(conv.convolve)), jax.tree.leaves(all_of(plain)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_max_pool_leaves_an_odd_edge_out() -> None:
    x = jnp.arange(2 * 3 * 5, dtype=jnp.float32).reshape(1, 3, 5, 2)
    np.testing.assert_array_equal(conv.max_pool(x)[0, ..., 0], [[12, 16]])


@pytest.mark.slow
def test_a_loop_keeps_the_gradient_fast() -> None:
    """Measured: 1 s against 6 ms per turn. The bound is far above what a busy machine adds."""
    x, kernel = jnp.ones((50, 16, 24, 16)), jnp.ones((3, 3, 16, 32))

    @jax.jit
    def looped(x: jax.Array, kernel: jax.Array) -> jax.Array:
        def turn(total, _):
            dx, dk = jax.grad(lambda x, k: jnp.sum(conv.convolve(x, k) ** 2), (0, 1))(x + total, kernel + total)
            return total + 1e-9 * (dx.sum() + dk.sum()), None

        return jax.lax.scan(turn, jnp.zeros(()), None, length=4)[0]

    looped(x, kernel).block_until_ready()
    started = time.process_time()
    looped(x, kernel).block_until_ready()
    assert time.process_time() - started < 0.4
