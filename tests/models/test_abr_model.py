"""The network for brainstem responses: sizes as specified, gradients, padding, conditions, precision, faults."""

import re
from dataclasses import replace

import abr_problem as problem
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain.errors import UserError
from jaxtrain.models import abr_blocks
from jaxtrain.models.abr import Config, Network, flops_per_example
from jaxtrain.models.abr_flops import forward_flops
from jaxtrain.nn.draws import Draws
from jaxtrain.nn.layers import Seeds

PARTS = {
    "condition": "condition and stem", "stem": "condition and stem", "stem_block": "condition and stem", "encoder": "encoder",
    "bottleneck": "bottleneck", "decoder": "decoder", "output_block": "output and heads", "output_norm": "output and heads",
    "heads": "output and heads",
}  # fmt: skip


def counts(config):
    """Parameters by part."""
    found = dict.fromkeys(PARTS.values(), 0)
    for path, leaf in nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: Network(config, nnx.Rngs(0))), nnx.Param)):
        found[PARTS[path[0]]] += leaf.get_value().size
    return tuple(found.values())


@pytest.mark.parametrize(
    ("config", "parts", "total", "generate"),
    [
        (problem.FULL, (92_928, 7_778_368, 8_635_904, 21_439_488, 122_703), 38_069_391, 38_037_889),
        (problem.BASE, (92_928, 1_695_744, 1_272_384, 4_179_456, 102_223), 7_342_735, 7_331_713),
        (problem.DEMO, None, 253_935, None),
        (problem.SMOKE, None, 38_959, None),
    ],
    ids=["full", "base", "demo", "smoke"],
)
def test_parameters(config, parts, total, generate):
    found = counts(config)
    assert sum(found) == total and parts in (None, found)
    assert generate in (None, sum(counts(replace(config, objective="generate"))))


@pytest.mark.parametrize(
    ("config", "parts", "train"),
    [(problem.FULL, (24, 427, 219, 1587, 27), 6850), (problem.BASE, (24, 124, 31, 497, 27), 2110), (problem.DEMO, None, 79)],
    ids=["full", "base", "demo"],
)
def test_arithmetic(config, parts, train):
    found = tuple(value / 1e6 for value in forward_flops(config).values())
    assert parts is None or tuple(map(round, found)) == parts
    assert flops_per_example(config) / 1e6 == pytest.approx(train, rel=5e-3)


OUTPUTS = {
    "signal": (200,), "existence": (), "latency_ms": (), "latency_ln_sd": (), "amplitude_z": (), "amplitude_ln_sd": (),
    "class_logits": (5,), "threshold_z": (), "threshold_ln_sd": (),
}  # fmt: skip


@pytest.fixture(scope="module")
def predict():
    """The smallest predicting network without dropout."""
    return problem.program(replace(problem.SMOKE, dropout=0.0, film_dropout=0.0))


def assert_all_train(gradients):
    for path, leaf in nnx.to_flat_state(gradients):
        value = np.asarray(leaf.get_value())
        assert np.isfinite(value).all() and np.abs(value).max() > 0, path


@pytest.mark.slow
def test_every_parameter_has_a_gradient_at_the_start(predict):
    outputs, gradients = predict[0](problem.inputs())
    assert_all_train(gradients)
    assert {name: value.shape for name, value in outputs.items()} == {name: (problem.BATCH, *shape) for name, shape in OUTPUTS.items()}


def test_examples_are_independent_and_the_flags_of_statics_are_read(predict):
    run = lambda x: predict[0](x)[0]  # noqa: E731
    x = problem.inputs()
    before = run(x)
    after = run(problem.replaced(x, "x", 2, x["x"][2] + 1))
    for name, value in before.items():
        np.testing.assert_allclose(np.delete(after[name], 2, axis=0), np.delete(value, 2, axis=0), atol=1e-6, err_msg=name)
    assert np.abs(after["signal"][2] - before["signal"][2]).max() > 1e-2
    hidden = run(problem.replaced(x, "statics", (0, 1), 9))
    np.testing.assert_array_equal(hidden["signal"], before["signal"], "a missing value is not read")
    average, missing = run(problem.replaced(x, "statics", (3, 2), 0)), run(problem.replaced(x, "statics_ok", (3, 2), False))
    assert np.abs(average["signal"][3] - missing["signal"][3]).max() > 0, "an average value is not a missing one"


def test_without_condition_statics_do_not_count_but_the_scale_does(predict):
    run = lambda x: predict[0](x)[0]["signal"]  # noqa: E731
    x = problem.inputs()
    before = run(x)
    changed = np.abs(run({**x, "statics": x["statics"] + 1}) - before).max(axis=1) > 0
    assert changed.tolist() == [True, False, *[True] * (problem.BATCH - 2)]
    assert np.abs(run({**x, "scale": x["scale"] + 1})[1] - before[1]).max() > 0


def test_amplitude_and_latency_are_means_under_one_distribution(predict):
    run, params = predict
    silent = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if re.search(r"'(latency|amplitude|place)'", jax.tree_util.keystr(path)) else leaf, params
    )
    x = problem.inputs()
    found = run(x, silent)[0]  # a flat distribution and no correction
    np.testing.assert_allclose(found["latency_ms"], 0.05 * 99.5, rtol=1e-5)
    np.testing.assert_allclose(found["amplitude_z"], 0.5 * x["x"].mean(1) + 0.5 * found["signal"].mean(1), atol=1e-5)


@pytest.mark.slow
def test_generation_trains_every_parameter_and_repeats_its_draws():
    run, _ = problem.program(replace(problem.SMOKE, objective="generate"))
    x = problem.inputs("generate")
    one, gradients = run(x)
    assert_all_train(gradients)
    assert {name: value.shape for name, value in one.items()} == {"v": (problem.BATCH, 200)}
    same, other = run(x)[0], run(x, seed=1)[0]
    np.testing.assert_array_equal(one["v"], same["v"])
    assert np.abs(one["v"] - other["v"]).max() > 1e-2
    unknown = run(problem.replaced(x, "label", 0, 5))[0]
    np.testing.assert_array_equal(one["v"], unknown["v"], "-1 and 5 are both the unknown class")


def test_dropout_needs_keys_but_for_a_deterministic_view():
    def run(deterministic):
        model = Network(replace(problem.SMOKE, objective="generate"), nnx.Rngs(0))
        return (nnx.view(model, deterministic=True) if deterministic else model)(problem.inputs("generate"))

    assert jax.eval_shape(lambda: run(True))["v"].shape == (problem.BATCH, 200)
    with pytest.raises(ValueError, match="call the model with rngs"):
        jax.eval_shape(lambda: run(False))


@pytest.mark.long
def test_recomputing_levels_changes_no_mask():
    config = replace(problem.SMOKE, objective="generate", s4_layers=2)
    found = [problem.program(replace(config, remat=remat))[0](problem.inputs("generate"))[1] for remat in ("none", "levels")]
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max(), rtol=1e-4)


@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (7, 1), (4, 2)])
def test_products_are_the_convolution(taps, stride):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 12, 3)).astype(np.float32), rng.normal(size=(taps, 3, 5)).astype(np.float32)
    runs = abr_blocks.convolve_products, abr_blocks.convolve
    one, other = jax.jit(lambda x, kernel: [run(x, kernel, stride) for run in runs])(x, kernel)
    assert one.shape == (2, 12 // stride, 5)
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_doubling_keeps_straight_lines():
    found = np.asarray(jax.jit(abr_blocks.doubled)(np.arange(6, dtype=np.float32)[None, :, None]))[0, :, 0]
    np.testing.assert_allclose(found[1:-1], np.arange(0.25, 5, 0.5), atol=1e-6)
    np.testing.assert_array_equal(found[[0, -1]], [0, 5])


def test_two_byte_networks_keep_float32_heads_and_static_shapes():
    def run():
        model = nnx.view(Network(problem.DEMO, nnx.Rngs(0), jnp.bfloat16), deterministic=True)
        return model.encoder[0](jnp.zeros((2, 208, 16), jnp.bfloat16), jnp.zeros((2, 32), jnp.bfloat16))[1], model(problem.inputs())

    memory, outputs = jax.eval_shape(run)
    assert {value.dtype for value in outputs.values()} == {jnp.dtype("float32")}
    assert (memory.shape, memory.dtype) == ((2, 104, 16), jnp.bfloat16)
    assert [problem.FULL.length(i) for i in range(5)] == [208, 104, 52, 26, 13]
    assert [problem.SMOKE.length(i) for i in range(3)] == [200, 100, 50]


def test_initial_kernels_have_the_right_scale():
    block = abr_blocks.ResBlock(64, 7, 0.0, Seeds(Draws.of(jax.random.key(0))), dtype=jnp.float32)
    for conv, scale in ((block.conv_in, 1.0), (block.conv_out, 0.1)):
        kernel = np.asarray(conv.kernel[...])
        assert kernel.std() == pytest.approx(scale / np.sqrt(7 * 64), rel=0.03) and abs(kernel.mean()) < 0.02 * kernel.std()
        assert np.abs(kernel).max() == pytest.approx(2 / 0.8796 * scale / np.sqrt(7 * 64), rel=0.01)
    assert abs(np.corrcoef(block.conv_in.kernel[...].ravel(), block.conv_out.kernel[...].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"s4_init": "leg"}, "did you mean 'legs'"),
        ({"heads": ("peak",)}, "signal"),
        ({"heads": ("signal", "peaks")}, "did you mean 'peak'"),
        ({"channels": (64, 100)}, "multiples of model.head_width"),
        ({"s4_state": 7}, "model.s4_state is 7"),
        ({"dropout": 1.0}, "probability"),
        ({"dt_range": (0.1, 0.01)}, "ascending"),
        ({"transformer_layers": 0}, "1 or more"),
    ],
)
def test_faults_name_key_and_remedy(changes, message):
    with pytest.raises(UserError, match=message):
        replace(problem.FULL, **changes)
    assert isinstance(problem.FULL, Config)
