"""The recorded run of the earlier Keras program, reproduced from its weights: outputs, activations, loss, gradients, norms."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convlstm_problem import BASELINE, evaluating, network, sizes
from flax import nnx

from jaxtrain.models.convlstm import Network
from jaxtrain.models.convlstm_import import PATHS, import_weights
from jaxtrain.models.convlstm_variants import Baseline
from jaxtrain.nn.conv_lstm import rows_of

Arrays = dict[str, np.ndarray]
pytestmark = pytest.mark.slow  # the network at its full size, compiled three times


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Arrays:
    with np.load(shared / "golden" / "convlstm.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def model(recorded: Arrays) -> Network:
    return restore({name.removeprefix("w/"): value for name, value in recorded.items() if name.startswith("w/")})


def restore(weights: Arrays) -> Network:
    imported = import_weights(weights)
    model = nnx.eval_shape(lambda: network(sizes(fields=1), **BASELINE))
    state = nnx.state(model)
    named = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    arrays = imported.params | imported.model_state
    assert {name: leaf.shape for name, leaf in named.items()} == {name: value.shape for name, value in arrays.items()}
    for name, leaf in named.items():
        leaf.set_value(jnp.asarray(arrays[name]))
    nnx.update(model, state)
    return model


def as_inputs(recorded: Arrays) -> dict[str, jax.Array]:
    headway, planned = recorded["in/headway"], recorded["in/schedule"][..., None]
    known = np.ones(headway.shape[:-1], bool)
    arrays = {
        "fields": np.concatenate([headway, known[..., None]], axis=-1), "target_history": headway[..., 0], "target_known": known,
        "planned": planned.reshape(*planned.shape[:3], 1), "planned_known": np.ones((*planned.shape[:3], 1), bool),
        "fallback": np.zeros(headway.shape[2:4], np.float32),
    }  # fmt: skip
    return {name: jnp.asarray(value) for name, value in arrays.items()}


def worst(found: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found) - expected).max())


def test_inference(model: Network, recorded: Arrays) -> None:
    with jax.default_matmul_precision("highest"):
        found = jax.jit(evaluating(model))(as_inputs(recorded))["y"]
    assert worst(found, recorded["out/infer"][..., 0]) < 5e-6


def test_activations(model: Network, recorded: Arrays) -> None:
    @jax.jit
    def encode(body: Baseline, headway: jax.Array) -> dict[str, jax.Array]:
        first, second = body.encoder
        h, _ = first(rows_of(headway, folded=True))
        normed = body.between[0](h, None)
        last = second(normed)[0][-1:]
        return {"encoder_1": h, "encoder_bn_1": normed, "encoder_2": last, "encoder_bn_2": body.between[1](last, None)}

    for name, value in encode(evaluating(model).body, recorded["in/headway"][:1]).items():
        expected = recorded[f"act/{name}"]
        assert worst(value.reshape(-1, *expected.shape[-3:]), expected.reshape(-1, *expected.shape[-3:])) < 5e-5, name


def test_training_mode_loss_gradients_and_running_statistics(model: Network, recorded: Arrays) -> None:
    inputs, target = as_inputs(recorded), jnp.asarray(recorded["in/target"][..., 0])
    graph, params, others = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def step(params: Any) -> Any:
        def loss(params: Any) -> Any:
            twin = nnx.merge(graph, params, others, copy=True)
            y = twin(inputs)["y"]
            return jnp.mean((y - target) ** 2), (y, nnx.state(twin, nnx.BatchStat))

        return jax.value_and_grad(loss, has_aux=True)(params)

    with jax.default_matmul_precision("highest"):
        (loss, (y, running)), gradients = step(params)
    assert worst(y, recorded["out/train_mode"][..., 0]) < 1e-4
    assert float(loss) == pytest.approx(float(recorded["loss/train_mode_mse"]), rel=1e-5)
    paths = {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(gradients)}
    checked = 0
    for name, expected in recorded.items():
        if name.startswith("gradnorm/"):
            path = PATHS[name.removeprefix("gradnorm/")]
            assert float(jnp.linalg.norm(paths[path].ravel())) == pytest.approx(float(expected), rel=2e-4), name
            checked += 1
    assert checked == len(paths)
    means = {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(running)}
    for name, expected in recorded.items():
        if name.startswith("bn_after"):
            assert worst(means[PATHS[name.split("/", 1)[1]]], expected) < 1e-6, name
