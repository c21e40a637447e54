"""Sizes of every variant, gradients that reach every weight, the plain port as reference, faults of the configuration."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import built
from convlstm_plain import earlier_names, forward
from convlstm_problem import BASELINE, DEFAULT, SMALL, batch, evaluating, network, sizes, small_sizes
from flax import nnx

from jaxtrain.errors import UserError
from jaxtrain.models.convlstm import Config, Sizes, flops_per_window
from jaxtrain.models.convlstm_import import PATHS

PAPER = dict(variant="paper", readout="plain", activation="relu", place=0)
MINUTES = dict(variant="attention", attention_over="minutes", readout="add", place=0)


@pytest.mark.parametrize("changes, of, parameters, megaflops", [
    (BASELINE, {"fields": 1}, 187_425, 697.0), ({**BASELINE, "kernel": (3, 1)}, {"fields": 1}, 63_009, None),
    (PAPER, {"fields": 1}, 8_462_404, 311.9), (PAPER, {"fields": 1, "stations": 64}, 7_961_344, None),
    ({}, {}, 84_589, 458.1), ({}, {"stations": 24}, 83_917, None), ({"variant": "conv3d"}, {}, 102_499, 188.4),
    ({"variant": "attention"}, {}, 459_459, 144.1), (MINUTES, {}, 488_580, 43.1),
])  # fmt: skip
def test_parameters_and_operations(changes: dict[str, Any], of: dict[str, Any], parameters: int, megaflops: float | None) -> None:
    model = nnx.eval_shape(lambda: network(sizes(**of), **changes))
    found = sum(leaf.size for kind in (nnx.Param, nnx.BatchStat) for leaf in jax.tree.leaves(nnx.state(model, kind)))
    assert found == parameters
    if megaflops is not None:
        assert flops_per_window(Config(**{**DEFAULT, **changes}), sizes(**of)) / 1e6 == pytest.approx(megaflops, abs=0.06)


@pytest.mark.parametrize("changes", [
    {"norm": "layer", "head": "quantile", "dropout": 0.2}, {"variant": "conv3d", "head": "gaussian", "dropout": 0.2},
    {"variant": "attention", "dropout": 0.2}, pytest.param(MINUTES, marks=pytest.mark.slow), pytest.param(PAPER, marks=pytest.mark.slow),
], ids=["seq2seq", "conv3d", "cells", "minutes", "paper"])  # fmt: skip
def test_every_weight_learns_and_directions_stay_apart(changes: dict[str, Any]) -> None:
    of = small_sizes(auxiliary=True, horizon=3)
    inputs = batch(of)
    model = nnx.eval_shape(lambda: network(of, **{**SMALL, **changes}))
    graph, params, others = nnx.split(model, nnx.Param, ...)
    r = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.5 * r.normal(size=x.shape), x.dtype), params)

    @jax.jit
    def run(params: Any, fields: Any) -> Any:
        def loss(params: Any, fields: Any) -> Any:
            out = nnx.merge(graph, params, others)({**inputs, "fields": fields}, nnx.Rngs(dropout=0))
            return sum(jnp.sum(jnp.square(value[:, :, :, 0] - 0.3)) for value in out.values()), out  # of the first direction

        return jax.grad(loss, (0, 1), has_aux=True)(params, fields)

    (gradients, heard), out = run(params, inputs["fields"])
    assert out["y"].shape == out["other"].shape == (2, 3, 5, 2) and out["y"].dtype == jnp.float32
    assert {"gaussian": "sigma", "quantile": "quantiles"}.get(changes.get("head", ""), "y") in out
    for path, leaf in nnx.to_flat_state(gradients):
        assert np.isfinite(leaf[...]).all() and np.abs(leaf[...]).max() > 0, path
    apart = changes.get("variant", "seq2seq") in ("seq2seq", "conv3d")  # the others look at both
    first, second = np.moveaxis(np.asarray(heard), 3, 0)
    assert (second == 0).all() == apart and (first != 0).any()


@pytest.mark.slow
def test_baseline_is_the_plain_port() -> None:
    of = small_sizes(fields=1, lookback=3, horizon=2)
    model = nnx.eval_shape(lambda: network(of, **{**SMALL, **BASELINE}))
    inputs, r = batch(of), np.random.default_rng(0)
    graph, params, others = nnx.split(model, nnx.Param, ...)
    params, others = jax.tree.map(lambda x: jnp.asarray(0.5 * r.normal(size=x.shape), x.dtype), (params, others))
    weights = earlier_names(nnx.merge(graph, params, others))

    @jax.jit
    def run(params: Any, weights: Any) -> Any:
        def ours(params: Any) -> Any:
            y = nnx.merge(graph, params, others, copy=True)(inputs)["y"]
            return jnp.sum(jnp.sin(9 * y)), y

        def plain(weights: Any) -> Any:
            y = forward(weights, inputs["fields"][..., :1], inputs["planned"], True)
            return jnp.sum(jnp.sin(9 * y)), y

        return jax.grad(ours, has_aux=True)(params), jax.grad(plain, has_aux=True)(weights)

    with jax.default_matmul_precision("highest"):
        (gradients, y), (expected_gradients, expected_y) = run(params, weights)
    np.testing.assert_allclose(y, expected_y, atol=1e-5)
    found = {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradients)}
    for name, path in PATHS.items():
        if path in found:
            reference = np.asarray(expected_gradients[name]).reshape(found[path].shape)
            np.testing.assert_allclose(found[path], reference, atol=2e-4 * np.abs(reference).max(), err_msg=name)


def test_dropout_takes_whole_channels_of_an_example() -> None:
    from jaxtrain.models.convlstm_variants import Between

    between = Between(Config(**{**DEFAULT, "hidden": 32, "dropout": 0.5}), rngs=nnx.Rngs(0))
    x = np.asarray(between(jnp.ones((3, 4, 2, 5, 32)), nnx.Rngs(dropout=0)))
    assert set(np.unique(x)) == {0.0, 2.0}
    assert (x == x[:1, :, :1, :1]).all() and len(np.unique(x[0, :, 0, 0], axis=0)) == 4
    assert bool((evaluating(between)(jnp.ones((3, 4, 2, 5, 32)), None) == 1).all())


@pytest.mark.parametrize("changes, words", [
    ({"variant": "seq2sec"}, "did you mean 'seq2seq'"), ({"kernel": (2, 1)}, "odd"), ({"levels": (0.1, 0.9)}, "0.5 in the middle"),
    ({"variant": "paper"}, "model.place to 0"), ({"variant": "conv3d", "norm": "batch"}, "model.norm"), ({"hidden": 0}, "model.hidden"),
    ({"width": 10}, "model.heads"), ({"dropout": 1.0}, "model.dropout"), ({"upstream": -1}, "model.upstream"),
    ({**MINUTES, "place": 8}, "model.place to 0"),
])  # fmt: skip
def test_faults_of_the_configuration(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Config(**{**DEFAULT, **changes})


def test_upstream_stays_on_the_line() -> None:
    with pytest.raises(UserError, match="model.upstream 5 .* 5 stations"):
        nnx.eval_shape(lambda: network(small_sizes(), **{**SMALL, "upstream": 5}))


def cpu_seconds(step: Any, *args: Any) -> float:
    jax.block_until_ready(step(*args))
    began = time.process_time()
    jax.block_until_ready(step(*args))
    return time.process_time() - began


@pytest.mark.slow
def test_a_training_step_is_twice_as_fast_as_the_plain_port() -> None:
    of: Sizes = sizes(fields=1)
    model, inputs = built(lambda: network(of, **BASELINE)), batch(of, examples=4)
    graph, params, others = nnx.split(model, nnx.Param, ...)
    ours = jax.jit(jax.grad(lambda params: nnx.merge(graph, params, others, copy=True)(inputs)["y"].sum()))
    plain = jax.jit(jax.grad(lambda weights: forward(weights, inputs["fields"][..., :1], inputs["planned"], True).sum()))
    assert 2 * cpu_seconds(ours, params) < cpu_seconds(plain, earlier_names(model))
