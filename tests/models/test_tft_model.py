"""The network: what it may see, what padding may change, textbook blocks in NumPy float64, gradients of every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain.models.tft import TFT, Config, Variable, Variables
from jaxtrain.nn.gated import GatedResidual
from jaxtrain.nn.interpretable import InterpretableAttention

K, TAU, BATCH = 6, 4, 3
VARIABLES = Variables(
    static=(Variable("server", categories=3), Variable("level", width=2)),
    observed=(Variable("status", categories=2), Variable("upstream")),
    known=(Variable("hour", width=2), Variable("maintenance")),
    targets=(Variable("cpu"), Variable("memory")),
)
SMALL = Config(hidden=8, heads=2, dropout=0.0, unknown_dropout=0.0, quantiles=(0.1, 0.5, 0.9), attention="causal", anchor="none",
               lstm="auto", vsn="collapsed", remat="none", head="independent")  # fmt: skip


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    real = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "static_cat": rng.integers(0, 4, (BATCH, 1)), "static_real": real(BATCH, 2), "observed_cat": rng.integers(0, 3, (BATCH, K, 1)),
        "observed_real": real(BATCH, K, 1), "known_real": real(BATCH, K + TAU, 3), "targets": real(BATCH, K, 2),
        "past_mask": np.ones((BATCH, K), bool),
    }  # fmt: skip


@pytest.fixture(scope="module")
def apply():
    model = TFT(SMALL, VARIABLES, K, TAU, nnx.Rngs(0))
    graph, state = nnx.split(model)
    forward = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    return lambda x: np.asarray(forward(state, x))


def test_a_later_known_value_changes_no_earlier_output(apply):
    x = inputs()
    before = apply(x)
    for step in range(TAU):
        known = x["known_real"].copy()
        known[:, K + step] += 3
        after = apply({**x, "known_real": known})
        np.testing.assert_array_equal(before[:, :step], after[:, :step])
        assert np.abs(before[:, step] - after[:, step]).max() > 1e-4, "the step itself does look"


def test_what_stands_in_the_padding_changes_nothing(apply):
    x = inputs()
    x["past_mask"][1, :4] = False
    other = {k: v.copy() for k, v in x.items()}
    for name in ("observed_real", "targets"):
        other[name][1, :4] = 99
    other["observed_cat"][1, :4] = 2
    other["known_real"][1, :4] = -99
    np.testing.assert_array_equal(apply(x), apply(other))
    other["targets"][1, 4] += 1
    assert np.abs(apply(x) - apply(other))[1].max() > 1e-4


def test_every_parameter_has_a_finite_gradient_and_none_is_idle():
    model, x = TFT(SMALL, VARIABLES, K, TAU, nnx.Rngs(0)), inputs()
    x["static_cat"] = np.arange(BATCH)[:, None] % 4
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, TAU, 2, 3)), jnp.float32)
    gradients = nnx.jit(nnx.grad(lambda m: (m(x) * weight).sum()))(model)
    for path, leaf in nnx.to_flat_state(gradients):
        value = np.asarray(leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf)
        assert np.isfinite(value).all() and np.abs(value).max() > 0, path


def test_gated_residual_network_of_the_paper():
    block = GatedResidual(5, 5, context=3, dropout=0.0, dtype=jnp.float32, rngs=nnx.Rngs(2))
    rng = np.random.default_rng(0)
    a, c = rng.normal(size=(7, 5)), rng.normal(size=(7, 3))
    leaves = nnx.to_flat_state(nnx.state(block, nnx.Param))
    w = {"/".join(map(str, path)): np.asarray(leaf.get_value(), np.float64) for path, leaf in leaves}
    u = a @ w["inner/kernel"] + w["inner/bias"] + c @ w["context/kernel"]
    v = np.where(u > 0, u, np.expm1(u)) @ w["outer/kernel"] + w["outer/bias"]
    gate = v @ w["finish/gate/kernel"] + w["finish/gate/bias"]
    y = a + gate[:, :5] / (1 + np.exp(-gate[:, 5:]))
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-3) * w["finish/norm/scale"] + w["finish/norm/bias"]
    np.testing.assert_allclose(block(jnp.asarray(a, jnp.float32), jnp.asarray(c, jnp.float32)), y, atol=2e-6)


def test_interpretable_attention_of_the_paper():
    layer = InterpretableAttention(8, 2, 0.0, dtype=jnp.float32, rngs=nnx.Rngs(3))
    rng = np.random.default_rng(0)
    memory, mask = rng.normal(size=(2, 5, 8)), np.tril(np.ones((3, 5), bool), 2)[None]
    q, k, v, o = (np.asarray(part.kernel[...], np.float64) for part in (layer.query, layer.key, layer.value, layer.output))
    mean = np.zeros((2, 3, 5))
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        s = (memory[:, 2:] @ q[:, part]) @ np.swapaxes(memory @ k[:, part], 1, 2) / 2
        e = np.exp(np.where(mask, s, -np.inf))
        mean += e / e.sum(-1, keepdims=True) / 2
    x = jnp.asarray(memory, jnp.float32)
    seen = jnp.asarray(np.broadcast_to(mask, (2, 3, 5)))
    np.testing.assert_allclose(layer.weights(x[:, 2:], x, seen), mean, atol=1e-6)
    np.testing.assert_allclose(layer(x[:, 2:], x, seen), mean @ (memory @ v) @ o, atol=2e-6)
