"""The recorded run of the published implementation, reproduced from its weights: activations, outputs, loss, gradients."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tft_problem import parameters

from jaxtrain.models.tft import TFT
from jaxtrain.models.tft_import import LEVELS, Imported, import_weights

Arrays = dict[str, np.ndarray]
PAST, FUTURE = 24, 8
UNUSED = ("gradnorm/static_encoder.vsn.joint_grn.lin_c.weight",)  # created by the published program, never used


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Arrays:
    with np.load(shared / "golden" / "tft_reference.npz") as archive:
        return dict(archive)


def weights(recorded: Arrays) -> Arrays:
    return {name.removeprefix("w/"): value for name, value in recorded.items() if name.startswith("w/")}


def restore(imported: Imported, vsn: str) -> TFT:
    model = nnx.eval_shape(lambda: TFT(dataclasses.replace(imported.config, vsn=vsn), imported.variables, PAST, FUTURE, nnx.Rngs(0)))
    flat = parameters(model)
    assert {name: leaf.shape for name, leaf in flat.items()} == {name: value.shape for name, value in imported.params.items()}
    for name, leaf in flat.items():
        leaf.set_value(jnp.asarray(imported.params[name]))
    return nnx.view(model, deterministic=True)


def as_inputs(recorded: Arrays) -> dict[str, Any]:
    """Categories count from 1 here; static columns are repeated over the steps there."""
    return {
        "static_cat": recorded["in/s_cat"][:, 0] + 1, "static_real": recorded["in/s_cont"][:, 0],
        "observed_cat": recorded["in/o_cat"][:, :PAST] + 1, "observed_real": recorded["in/o_cont"][:, :PAST],
        "known_cat": recorded["in/k_cat"] + 1, "known_real": recorded["in/k_cont"], "targets": recorded["in/target"][:, :PAST],
    }  # fmt: skip


@pytest.mark.parametrize("vsn", [pytest.param("plain", marks=pytest.mark.slow), "collapsed"])
def test_activations_loss_and_gradient_norms(recorded: Arrays, vsn: str) -> None:
    model = restore(import_weights(weights(recorded)), vsn)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        found = nnx.merge(graph, params, rest).activations(as_inputs(recorded))
        error = recorded["in/target"][:, PAST:] - found["quantiles"][:, :, 0]
        levels = jnp.asarray(LEVELS)
        pinball = jnp.maximum(levels * error, (levels - 1) * error).mean(axis=(0, 1))
        return pinball.sum(), (pinball, found)

    with jax.default_matmul_precision("highest"):
        (total, (pinball, found)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    found = {name: np.asarray(value) for name, value in found.items()}
    theirs = {name.removeprefix("act/"): value for name, value in recorded.items() if name.startswith("act/")}
    pairs = {
        "static": "static_vsn/0", "static_weights": "static_vsn/1", "past_weights": "history_vsn/1", "future_weights": "future_vsn/1",
        "context_select": "static_contexts/0", "context_enrich": "static_contexts/1", "context_h": "static_contexts/2",
        "context_c": "static_contexts/3", "phi": "input_gate_norm/0", "theta": "enriched/0", "delta": "attention_norm/0",
        "psi": "positionwise/0", "trunk": "decoder_norm/0",
    }  # fmt: skip
    for ours, name in pairs.items():
        np.testing.assert_allclose(found[ours], theirs[name], rtol=0, atol=1e-5, err_msg=name)
    for ours, name in (("selected", "vsn"), ("recurrent", "lstm")):
        want = np.concatenate([theirs[f"history_{name}/0"], theirs[f"future_{name}/0"]], axis=1)
        np.testing.assert_allclose(found[ours], want, rtol=0, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(found["attention"], theirs["attention/1"].mean(axis=1)[:, PAST:], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["quantiles"][:, :, 0], recorded["out/quantiles"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(pinball, recorded["loss/pinball"], rtol=0, atol=1e-6)
    assert abs(float(total) - float(recorded["loss/total"])) < 1e-6
    compare_norms(recorded, {name: np.asarray(leaf[...]) for name, leaf in _flat(grads).items()})


def _flat(state: Any) -> dict[str, Any]:
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}


def compare_norms(recorded: Arrays, ours: Arrays) -> None:
    """Push the recorded names through the importer as marks, to learn which entries of which leaf each of them fills."""
    trained = [name.removeprefix("gradnorm/") for name in recorded if name.startswith("gradnorm/") and name not in UNUSED]
    names = list(weights(recorded))
    assert len(trained) > 200
    marked = import_weights({name: np.full_like(value, 1 + names.index(name)) for name, value in weights(recorded).items()})
    compared = 0
    for name in trained:
        number = 1 + names.index(name)
        if name.endswith("bias_hh_l0"):
            continue  # summed with bias_ih_l0, whose norm is the same
        if name.endswith("bias_ih_l0"):
            number += 1 + names.index(name.replace("_ih_", "_hh_"))
        squares = 0.0
        for leaf, marks in marked.params.items():
            mine = marks == number if "/inputs/bias" in leaf or not name.endswith("bias_ih_l0") else np.zeros_like(marks, bool)
            if "/tables/" in leaf:
                mine[0] = False
            squares += float((ours[leaf].astype(np.float64)[mine] ** 2).sum())
        assert np.sqrt(squares) == pytest.approx(float(recorded[f"gradnorm/{name}"]), rel=2e-4, abs=1e-7), name
        compared += 1
    assert compared == len(trained) - 2
