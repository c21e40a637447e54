"""What is kept from being computed twice is the same to the bit."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.nn.stored import stored


def test_same_to_the_bit_with_its_gradient() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)) * [1e-30, 1, 3, 1e5, 1e30], jnp.float32)
    np.testing.assert_array_equal(jax.jit(stored)(x), x)
    weights = jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: jnp.sum(weights * stored(x))))(x), weights)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a habit of the CPU compiler")
def test_xla_does_not_repeat_it() -> None:
    """Compiled for CPU, nothing in a loop over pixels draws the channel's number again."""

    def program(keep: Callable[[jax.Array], jax.Array]) -> str:
        def drawn(key: jax.Array, x: jax.Array) -> jax.Array:
            return keep(jax.random.normal(key, (8, 16)))[:, None] * x

        return jax.jit(drawn).lower(jax.random.key(0), jnp.ones((8, 1000, 16))).compile().as_text() or ""

    assert "erf_inv" in pixel_loop(program(lambda x: x))
    assert "erf_inv" not in pixel_loop(program(stored))


def pixel_loop(program: str) -> str:
    """The merged computations that make whole maps."""
    parts = program.split("\n\n")
    return "\n".join(part for part in parts if "ROOT" in part and "f32[8,1000,16]" in part.split("ROOT")[1] and "ENTRY" not in part)
