"""The LSTM against its equations in NumPy float64, its own backward pass against finite differences of them, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain.nn.lstm import LSTM

BATCH, STEPS, INPUTS, H = 3, 5, 4, 6


def made(hoisted: bool = False) -> LSTM:
    return LSTM(INPUTS, H, hoisted=hoisted, dtype=jnp.float32, rngs=nnx.Rngs(2))


def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.ones((BATCH, STEPS), bool)
    mask[0, :2] = False
    mask[1, 2] = False
    return rng.normal(size=(BATCH, STEPS, INPUTS)), rng.normal(size=(BATCH, H)), rng.normal(size=(BATCH, H)), mask


def textbook(w: list[np.ndarray], x: np.ndarray, h: np.ndarray, c: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """c = f c + i g, h = o tanh c; outputs, then the last h and c, (B, T + 2, H)."""
    wx, wh, b = w
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    out = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ wx + h @ wh + b, 4, axis=-1)
        new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        new_h = sigmoid(o) * np.tanh(new_c)
        kept = mask[:, t, None]
        h, c = np.where(kept, new_h, h), np.where(kept, new_c, c)
        out.append(h)
    return np.stack([*out, h, c], axis=1)


def weights(layer: LSTM) -> list[np.ndarray]:
    assert layer.inputs.bias is not None
    return [np.asarray(p[...], np.float64) for p in (layer.inputs.kernel, layer.recurrent.kernel, layer.inputs.bias)]


def run(layer: LSTM, x: jax.Array, h: jax.Array, c: jax.Array, mask: np.ndarray) -> jax.Array:
    out, (last_h, last_c) = layer(x, (h, c), jnp.asarray(mask))
    return jnp.concatenate([out, last_h[:, None], last_c[:, None]], axis=1)


@pytest.mark.parametrize("hoisted", [False, True])
def test_equations_and_held_states(hoisted: bool) -> None:
    layer, (x, h, c, mask) = made(hoisted), problem()
    found = run(layer, jnp.asarray(x, jnp.float32), jnp.asarray(h, jnp.float32), jnp.asarray(c, jnp.float32), mask)
    np.testing.assert_allclose(found, textbook(weights(layer), x, h, c, mask), atol=1e-6)
    np.testing.assert_allclose(found[0, 1], h[0], atol=1e-7)  # nothing known yet: the state waits


@pytest.mark.parametrize("hoisted", [False, True])
def test_the_written_backward_pass_is_the_slope(hoisted: bool) -> None:
    layer, (x, h, c, mask) = made(hoisted), problem()
    probe = np.random.default_rng(1).normal(size=(BATCH, STEPS + 2, H))
    graph, params = nnx.split(layer)

    def value(params: nnx.State, x: jax.Array, h: jax.Array, c: jax.Array) -> jax.Array:
        return (run(nnx.merge(graph, params), x, h, c, mask) * probe).sum()

    arguments = [jnp.asarray(a, jnp.float32) for a in (x, h, c)]
    slopes = jax.grad(value, argnums=(0, 1, 2, 3))(params, *arguments)
    rng, step, w = np.random.default_rng(2), 1e-5, weights(layer)
    start = (*w, x, h, c)
    own = made(hoisted)
    nnx.update(own, slopes[0])
    found = [*weights(own), *(np.asarray(s, np.float64) for s in slopes[1:])]
    for number, slope in enumerate(found):
        direction = rng.normal(size=slope.shape)
        ends = []
        for sign in (1, -1):
            wx, wh, b, *rest = (a + sign * step * direction if i == number else a for i, a in enumerate(start))
            ends.append((textbook([wx, wh, b], rest[0], rest[1], rest[2], mask) * probe).sum())
        np.testing.assert_allclose((slope * direction).sum(), (ends[0] - ends[1]) / (2 * step), rtol=2e-5, atol=1e-5)
