"""The network: sizes, gradients, precision, padding, options, naive forecasts, FLOPs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import UNOPTIMISED
from flax import nnx
from stmgt_problem import TINY, V1, batch, config, statistics

from jaxtrain.errors import UserError
from jaxtrain.models.stmgt import STMGT, flops_per_window, naive_forecasts
from jaxtrain.nn import mixture as mixtures

STRONG: dict[str, Any] = dict(spatial="dot", reach="all", slot_embedding=True, adaptive_dim=32)
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "earlier": V1,
    "strong": {**STRONG, "adaptive_dim": 4, "edge_bias": True},
    "dot": dict(spatial="dot", edge_bias=True, adaptive_dim=4, adaptive_per_step=False, anchor="last", remat=True),
}


def build(nodes: int = 6, dtype: Any = jnp.float32, weather: bool = True, extra_slots: int = 0, **overrides: Any) -> STMGT:
    known = statistics(nodes, weather=weather, extra_slots=extra_slots)
    return STMGT(config(**{**TINY, **overrides}), known, 5, 4, nnx.Rngs(0), dtype)


def parameters(model: STMGT) -> dict[str, Any]:
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def stir(model: STMGT) -> STMGT:
    """Parameters that start at zero or nearly so get values: otherwise half of the network would go untested."""
    for number, leaf in enumerate(parameters(model).values()):
        leaf[...] = leaf[...] + 0.2 * np.random.default_rng(number).normal(size=leaf.shape).astype(np.float32)
    return model


@pytest.mark.parametrize(
    ("overrides", "nodes", "in_steps", "out_steps", "count"),
    [
        ({}, 64, 12, 12, 871_728),
        (V1, 64, 12, 12, 680_244),
        ({**V1, "width": 64, "components": 3}, 64, 12, 12, 303_980),
        ({**V1, "width": 128}, 64, 12, 12, 1_196_724),
        (STRONG, 207, 12, 12, 868_848),
        (dict(width=32, blocks=2, components=3, spatial="dot"), 64, 12, 12, 85_812),
        (dict(width=16, heads=2, blocks=1, components=2), 16, 6, 4, 8_994),
    ],
)
def test_parameter_counts(overrides: dict[str, Any], nodes: int, in_steps: int, out_steps: int, count: int) -> None:
    known = statistics(nodes, out_steps, slots=288)
    model = nnx.eval_shape(lambda: STMGT(config(**overrides), known, in_steps, out_steps, nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == count


SLOW = {"dot", "strong"}


@pytest.mark.parametrize(
    "overrides", [pytest.param(v, id=k, marks=[pytest.mark.slow] if k in SLOW else []) for k, v in VARIANTS.items()]
)
def test_every_parameter_has_a_finite_gradient_and_none_is_idle(overrides: dict[str, Any]) -> None:
    model = stir(build(**{**overrides, "dropout": 0.1}))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    given = batch()

    def loss(params: Any) -> jax.Array:
        network = nnx.merge(graph, params, rest, copy=True)
        return mixtures.crps(network(given, nnx.Rngs(0)), network.normalize(jnp.asarray(given["target"]))).mean()

    grads = jax.jit(jax.grad(loss), compiler_options=UNOPTIMISED)(params)
    for path, leaf in nnx.to_flat_state(grads):
        value = np.asarray(leaf.get_value())
        assert np.isfinite(value).all(), path
        assert np.abs(value).max() > 0, path


def test_only_matrices_are_called_kernel() -> None:
    for overrides in VARIANTS.values():
        for name, leaf in parameters(build(**overrides)).items():
            constant = {"bias", "scale", "attention", "relation", "edge", "weekday", "weekend", "position", "slot", "adaptive"}
            assert (name.split("/")[-1] == "kernel") == (leaf.ndim == 2 and name.split("/")[-1] not in constant), name


def test_start_is_the_anchor() -> None:
    """Head kernel x 0.1: at the start the mixture's mean is the damped forecast, within a fraction of a std."""
    given, model = batch(), nnx.view(build(), deterministic=True)
    forecast = naive_forecasts(given, model.constants["profile"][...], model.constants["damping"][...])["damped"]
    off = mixtures.mean(model.physical(model(given))) - forecast
    assert float(jnp.abs(off).max()) < 0.6 * 9


def test_shapes_normalisation_and_weights() -> None:
    given, model = batch(), nnx.view(stir(build()), deterministic=True)
    mixture = model(given)
    assert all(part.shape == (3, 4, 6, 3) and part.dtype == jnp.float32 for part in mixture)
    np.testing.assert_allclose(jnp.exp(mixture.log_weights).sum(-1), 1, atol=1e-6)
    assert float(mixture.stds.min()) >= 0.02
    np.testing.assert_allclose(model.physical(mixture).means, mixture.means * 9 + 40, rtol=1e-6)
    raw = nnx.view(build(output_space="raw", anchor="none"), deterministic=True)
    assert raw.physical(mixture) is mixture
    with pytest.raises(AssertionError, match="expected"):
        model({**given, "speed": given["speed"][:, 1:]})


def test_clipped_sigma_and_missing_weather() -> None:
    model = nnx.view(stir(build(sigma="clip", weather=False)), deterministic=True)
    model.head.bias[...] = model.head.bias[...] * 1000
    stds = model(batch(weather=False)).stds
    assert float(stds.min()) == pytest.approx(0.1) and float(stds.max()) <= 10.001
    assert not any("weather" in name for name in parameters(model))


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS)
def test_bfloat16_compute_stays_near_float32(overrides: dict[str, Any]) -> None:
    given = batch()
    exact = nnx.view(build(**overrides), deterministic=True)(given)
    coarse = nnx.view(build(dtype=jnp.bfloat16, **overrides), deterministic=True)(given)
    for ours, theirs in zip(coarse, exact, strict=True):
        assert ours.dtype == jnp.float32
        assert 0 < float(jnp.abs(ours - theirs).max()) < 0.05


@pytest.mark.parametrize("spatial", ["gatv2", "dot"])
def test_padded_slots_do_not_matter(spatial: str) -> None:
    given = batch()
    found = [nnx.view(stir(build(spatial=spatial, extra_slots=extra)), deterministic=True)(given) for extra in (0, 3)]
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_unobserved_targets_and_future_do_not_enter() -> None:
    given, model = batch(), nnx.view(stir(build()), deterministic=True)
    bare = {name: value for name, value in given.items() if not name.startswith("target")}
    np.testing.assert_array_equal(model(given).means, model(bare).means)


@pytest.mark.long
def test_remat_changes_nothing() -> None:
    given = batch()
    found = []
    for remat in (False, True):
        graph, params, rest = nnx.split(stir(build(remat=remat)), nnx.Param, ...)

        def loss(params: Any, graph: Any = graph, rest: Any = rest) -> jax.Array:
            network = nnx.view(nnx.merge(graph, params, rest, copy=True), deterministic=True)
            return mixtures.crps(network(given), jnp.zeros((3, 4, 6))).mean()

        found.append(jax.grad(loss)(params))
    for ours, theirs in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_only_arrays_are_left_after_a_split() -> None:
    _, params, rest = nnx.split(build(), nnx.Param, ...)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((params, rest)))
    assert {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(rest)} >= {"graph/source", "constants/profile"}


def test_inspect() -> None:
    model = nnx.view(stir(build(nodes=6)), deterministic=True)
    given = batch()
    seen = model.inspect(given, node=2)
    slots = int(model.graph["mask"].shape[1])
    assert seen["activations"].shape == (2, 3, 6, 5, 8) and seen["attention"].shape == (2, 3, 5, slots, 2)
    np.testing.assert_allclose(seen["attention"].sum(axis=3), 1, atol=1e-6)
    assert seen["gate"].shape == (2,) and bool(((seen["gate"] > 0) & (seen["gate"] < 1)).all())


def test_whole_hours_and_fractions() -> None:
    given = batch()
    earlier = {**given, "slot": given["slot"] // 2 * 2}  # the same hour, its first half
    for hour, same in (("integer", True), ("fraction", False)):
        model = nnx.view(build(hour=hour, anchor="none", inputs=("speed",)), deterministic=True)
        assert bool(jnp.all(model(given).means == model(earlier).means)) is same


def test_naive_forecasts_by_hand() -> None:
    given, known = batch(), statistics()
    found = naive_forecasts(given, jnp.asarray(known["profile"]), jnp.asarray(known["damping"]))
    for b, h, n in np.ndindex(3, 4, 6):
        usual = [known["profile"][int(given["dow"][b, t] >= 5), given["slot"][b, t], n] for t in (4, 5 + h)]
        last = given["speed"][b, 4, n]
        assert float(found["last"][b, h, n]) == last
        assert float(found["tod"][b, h, n]) == usual[1]
        assert float(found["damped"][b, h, n]) == pytest.approx(usual[1] + known["damping"][h] * (last - usual[0]), rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "nodes", "slots", "giga"),
    [
        (V1, 62, 206, 0.93),
        ({}, 64, 224, 1.02),
        (dict(width=32, blocks=2, components=3, spatial="dot"), 64, 224, 0.070),
        ({}, 207, 2833, 3.40),
        (STRONG, 207, 2833, 3.31),
    ],
)
def test_flops(overrides: dict[str, Any], nodes: int, slots: int, giga: float) -> None:
    assert flops_per_window(config(**overrides), nodes, 12, 12, slots) / 1e9 == pytest.approx(giga, rel=0.012)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (dict(width=10, heads=4), "width 10"),
        (dict(width=6, heads=3), "by 4"),
        (dict(spatial="gat"), "'gatv2'"),
        (dict(inputs=("speed", "observd")), "'observed'"),
        (dict(inputs=("observed",)), "speed always"),
        (dict(dropout=1.0), "dropout"),
        (dict(components=0), "components"),
        (dict(adaptive_dim=-1), "adaptive_dim"),
        (dict(spatial="gatv2", reach="all"), "reach"),
        (dict(output_space="raw"), "anchor 'none'"),
    ],
)
def test_config_faults_are_one_line(overrides: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as fault:
        config(**overrides)
    assert part in str(fault.value) and "\n" not in str(fault.value)
