"""Convolutions against XLA's own, in value and gradient, and their speed inside a loop."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.nn import conv


def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=conv.LAYOUT)


def all_of(function, x: jax.Array, kernel: jax.Array, weights: jax.Array):
    """Value and both gradients of a sum that weighs every output."""

    def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(function(x, kernel).astype(jnp.float32)) * weights)

    return jax.value_and_grad(total, (0, 1))(x, kernel)


def drawn(members: tuple[int, ...], height: int, width: int, inputs: int, dtype: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    r = np.random.default_rng(0)
    shapes = ((4, height, width, inputs), (3, 3, inputs, 4), (4, height, width, 4))
    x, kernel, weights = (jnp.asarray(r.normal(size=members + shape), jnp.float32) for shape in shapes)
    return x.astype(dtype), kernel.astype(dtype), weights


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 4e-2)])
@pytest.mark.parametrize("height, width, inputs, strip", [
    (4, 6, 1, 60_000),
    (4, 6, 2, 60_000),
    (4, 6, 3, 60_000),  # all examples in one strip
    (5, 7, 3, 2 * 5 * 7 * 7),  # two examples each
    (6, 5, 3, 2 * 5 * 7),  # two rows each
    (7, 4, 3, 2 * 4 * 7),  # rows that two do not divide: single ones
    (3, 14, 3, 1),  # a row longer than a strip
    (1, 1, 3, 60_000),
])  # fmt: skip
def test_value_and_gradients(
    height: int, width: int, inputs: int, strip: int, dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv, "STRIP", strip)
    x, kernel, weights = drawn((), height, width, inputs, dtype)
    found = jax.jit(lambda *a: all_of(conv.convolve, *a))(x, kernel, weights)
    expected = jax.jit(lambda *a: all_of(plain, *a))(*(a.astype(jnp.float32) for a in (x, kernel, weights)))
    assert found[1][0].dtype == found[1][1].dtype == x.dtype
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        theirs = np.asarray(theirs)
        scale = 1.0 if dtype == "float32" else np.abs(theirs).max()
        np.testing.assert_allclose(np.asarray(ours, np.float32), theirs, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("strip", [60_000, 2 * 5 * 7])
def test_members_with_a_kernel_each(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "STRIP", strip)
    x, kernel, weights = drawn((2,), 4, 5, 3, "float32")
    found = jax.jit(jax.vmap(lambda *a: all_of(conv.convolve, *a)))(x, kernel, weights)
    each = [all_of(plain, *(a[i] for a in (x, kernel, weights))) for i in range(2)]
    expected = jax.tree.map(lambda *a: jnp.stack(a), *each)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(16, 24, 16, 32), (7, 9, 32, 64)])
def test_rounding_errors_are_those_of_float32(size: tuple[int, int, int, int]) -> None:
    """In channels as they are trained, against double precision."""
    height, width, inputs, outputs = size
    r = np.random.default_rng(1)
    x, kernel = r.normal(size=(4, height, width, inputs)), r.normal(size=(3, 3, inputs, outputs))
    dy = r.normal(size=(4, height, width, outputs))
    near = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2))
    value, back = jax.vjp(jax.jit(conv.convolve), *(jnp.asarray(a, jnp.float32) for a in (x, kernel)))
    expected = np.einsum("nhwcij,ijco->nhwo", near, kernel), np.einsum("nhwcij,nhwo->ijco", near, dy)
    for ours, theirs in zip((value, back(jnp.asarray(dy, jnp.float32))[1]), expected, strict=True):
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


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
