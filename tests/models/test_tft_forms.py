"""Sizes of the shipped networks, and forms of one function: queries, anchor, remat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tft_problem import ELECTRICITY, FLEET, NO_STATIC, TAU, K, build, config, inputs, stir

from jaxtrain.models.tft import TFT, Config, Variable, Variables, flops_per_window
from jaxtrain.nn.interpretable import InterpretableAttention

FIVE_TARGETS = Variables((*FLEET.static[:-1], Variable("level", 10)), FLEET.observed, FLEET.known, (*FLEET.targets, Variable("swap")))
PUBLISHED = config(hidden=128, quantiles=(0.1, 0.5, 0.9))


def count(variables: Variables, one: Config, k: int, tau: int) -> int:
    model = nnx.eval_shape(lambda: TFT(one, variables, k, tau, nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    ("variables", "one", "expected"),
    [
        (FLEET, config(), 180_869),
        (NO_STATIC, config(), 135_345),
        (FIVE_TARGETS, config(), 180_869 + 6_540),
        (ELECTRICITY, PUBLISHED, 1_583_142),
    ],
    ids=["fleet", "no static", "a fifth target", "electricity"],
)
def test_parameters(variables: Variables, one: Config, expected: int) -> None:
    assert count(variables, one, 288, 96) == expected


@pytest.mark.parametrize(
    ("variables", "one", "steps", "expected"),
    [(FLEET, config(), (288, 96), 43.6e6), (ELECTRICITY, PUBLISHED, (168, 24), 186.0e6)],
    ids=["fleet", "electricity"],
)
def test_operations_of_a_forward_pass(variables: Variables, one: Config, steps: tuple[int, int], expected: float) -> None:
    assert flops_per_window(one, variables, *steps) == pytest.approx(expected, rel=0.01)


def test_queries_of_the_horizon_are_those_of_all_steps() -> None:
    layer = InterpretableAttention(8, 2, 0.0, dtype=jnp.float32, rngs=nnx.Rngs(3))
    rng = np.random.default_rng(0)
    memory, probe = (jnp.asarray(rng.normal(size=(2, 7, 8)), jnp.float32) for _ in range(2))
    visible = jnp.broadcast_to(np.tril(np.ones((7, 7), bool)), (2, 7, 7))

    def every(memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = layer(memory, memory, visible)[:, 4:]
        return (out * probe[:, 4:]).sum(), out

    def ahead(memory: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = layer(memory[:, 4:], memory, visible[:, 4:])
        return (out * probe[:, 4:]).sum(), out

    (_, a), slope_a = jax.value_and_grad(every, has_aux=True)(memory)
    (_, b), slope_b = jax.value_and_grad(ahead, has_aux=True)(memory)
    np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(slope_a, slope_b, atol=1e-5)


def test_the_anchor_is_the_last_known_value() -> None:
    model = build(anchor="last", dropout=0.0, unknown_dropout=0.0)
    graph, state = nnx.split(model)
    forward = jax.jit(lambda x: nnx.merge(graph, state)(x))
    x, last = inputs(padded=False), np.arange(12, dtype=np.float32).reshape(3, 4)
    plain = forward({**x, "last": 0 * last})
    np.testing.assert_allclose(forward({**x, "last": last}), plain + last[:, None, :, None], atol=2e-6)


@pytest.mark.long
def test_remat_changes_no_slope() -> None:
    x, slopes = inputs(), []
    for remat in ("none", "vsn"):
        model = stir(build(remat=remat, dropout=0.0, unknown_dropout=0.0))
        slopes.append(nnx.jit(nnx.grad(lambda m: (m(x) ** 2).sum()))(model))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *slopes)
    assert len(jax.tree.leaves(slopes[0])) > 50 and K + TAU == 10


@pytest.mark.long
def test_masks_hold_in_bfloat16() -> None:
    x, found = inputs(), []
    x["past_mask"][0] = False  # a history of which nothing is known
    for dtype in (jnp.float32, jnp.bfloat16):
        graph, state = nnx.split(stir(build(dtype=dtype, dropout=0.0, unknown_dropout=0.0)))

        def value(state: nnx.State, x: dict[str, jax.Array], graph: nnx.GraphDef = graph) -> tuple[jax.Array, jax.Array]:
            out = nnx.merge(graph, state)(x)
            return (out**2).sum(), out

        call = jax.jit(jax.value_and_grad(value, has_aux=True))
        (_, out), slopes = call(state, x)
        other = {**x, "targets": np.where(x["past_mask"][..., None], x["targets"], 1e4)}
        np.testing.assert_array_equal(out, call(state, other)[0][1])
        assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(slopes))
        found.append(np.asarray(out))
    np.testing.assert_allclose(found[0], found[1], atol=0.15)
