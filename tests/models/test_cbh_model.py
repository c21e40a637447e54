"""The network for cloud base height: counts, options, frames one by one or together, memory against time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cbh_problem import (
    DEFAULT,
    DEMO,
    NO_DROPOUT,
    REFERENCE,
    SMALL,
    TINY,
    abstract,
    batch,
    evaluating,
    inputs_of,
    network,
    parameters,
    paths,
)
from flax import nnx

from jaxtrain.errors import UserError
from jaxtrain.models.cbh import Config, Network, flops_per_window
from jaxtrain.models.cbh_encoder import NadirPool

SAME = {**REFERENCE, **TINY, "remat": False}


@pytest.mark.parametrize("base, changes, count", [
    (REFERENCE, {}, 536_846), (REFERENCE, SMALL, 143_886), (DEFAULT, {}, 145_188), (DEFAULT, DEMO, 41_876),
    (REFERENCE, {"variant": "cnn"}, 468_481), (REFERENCE, {**SMALL, "variant": "cnn"}, 117_505), (REFERENCE, {"variant": "gru"}, 897_805),
    (REFERENCE, {"variant": "ssm"}, 536_846 - 33_025 + 54 * 256 + 2 * 256**2),
])  # fmt: skip
def test_parameters(base: dict[str, Any], changes: dict[str, Any], count: int) -> None:
    assert parameters(abstract(base, window=5, **changes)) == count


def step(model: Any, inputs: Any) -> Any:
    """Loss, its gradients and the running statistics after one training step; the key is always the same."""
    graph, params, others = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def run(params: Any, key: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            twin = nnx.merge(graph, params, others, copy=True)
            y = twin(inputs, nnx.Rngs(dropout=key))["y"]
            return jnp.sum(jnp.sin(y)), nnx.state(twin, nnx.BatchStat)

        (value, running), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return value, paths(gradients), paths(running)

    return run(params, jax.random.key(3))


def close(found: Any, expected: Any, tolerance: float) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(jnp.abs(other).max()))
        np.testing.assert_allclose(one, other, atol=tolerance * scale)


@pytest.mark.slow
def test_remat_changes_nothing_and_statistics_move_once_per_frame() -> None:
    plain, again = (network(SAME, remat=remat) for remat in (False, True))
    inputs = batch(plain)
    expected = step(plain, inputs)
    close(step(again, inputs), expected, 2e-6)
    encoder, running = plain.encoder, np.asarray(plain.encoder.blocks[0].norm.mean[...])

    @jax.jit
    def means(x: jax.Array) -> jax.Array:
        flat = x.reshape(-1, *x.shape[2:])
        return encoder.blocks[0].conv(flat * encoder.gate(flat)).reshape(*x.shape[:-1], -1).mean((0, 2, 3))

    for mean in np.asarray(means(inputs["frames"])):
        running = 0.9 * running + 0.1 * mean
    np.testing.assert_allclose(expected[2]["encoder/blocks/0/norm/mean"], running, atol=1e-6)


@pytest.mark.slow
def test_frames_together_equal_each_with_group_norm() -> None:
    together, each = (network(DEFAULT, **{**TINY, "channels": (16, 16, 16)}, frames=frames) for frames in ("together", "each"))
    inputs = batch(together, height=16, width=17)
    one, other = step(together, inputs), step(each, inputs)
    close(one, other, 3e-6)
    silent = {name for name, value in one[1].items() if float(jnp.abs(value).max()) < 1e-6}
    assert silent == {"attention/last/bias"}, "a softmax does not hear a constant; all else takes part"


@pytest.mark.parametrize("changes", [
    {"variant": "cnn"}, pytest.param({"variant": "gru", "pool": "nadir"}, marks=pytest.mark.slow),
    pytest.param({"variant": "ssm"}, marks=pytest.mark.slow),
    pytest.param({"temporal_attention": False, "film": "none"}, marks=pytest.mark.slow),
    pytest.param({"spatial_attention": False, "norm": "group", "frames": "together"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_any_mix_runs(changes: dict[str, Any]) -> None:
    model = evaluating(network(SAME, **changes))
    inputs = batch(model)
    found = jax.jit(lambda inputs: model(inputs, explain=True))(inputs)
    assert found["y"].shape == (3,) and found["y"].dtype == jnp.float32 and bool(jnp.isfinite(found["y"]).all())
    weights = found["frame_weights"]
    assert weights.shape == (3, 3)
    assert bool(jnp.isnan(weights).all()) if changes.get("variant") in ("gru", "ssm") else np.allclose(weights.sum(1), 1)
    expected = (3, 3, 1, 1) if changes.get("pool") == "nadir" else (3, 3, 9, 10)
    has = changes.get("variant") != "cnn" and changes.get("spatial_attention", True)
    assert found["map"].shape == expected if has else "map" not in found


def test_dropout_needs_a_key_and_masks_whole_channels() -> None:
    model = network(SAME, dropout=(0.5, 0.0, 0.0), spatial_attention=False)
    inputs = batch(model)
    with pytest.raises(ValueError, match="rngs"):
        jax.eval_shape(lambda: nnx.merge(*nnx.split(model), copy=True)(inputs))

    @jax.jit
    def encode(key: jax.Array) -> jax.Array:
        return nnx.merge(*nnx.split(model), copy=True).encode(inputs["frames"], inputs["sun"], nnx.Rngs(dropout=key)).features

    features = encode(jax.random.key(0))
    dropped = np.asarray(features == 0).mean()
    assert 0.3 < dropped < 0.7


@pytest.mark.slow
def test_a_new_network_starts_near_the_mean_unmodulated() -> None:
    config = Config(**{**DEFAULT, **TINY})
    model = Network(config, 3, *inputs_of(config), nnx.Rngs(0))
    gain, offset = model.film(jnp.ones((2, 3)))
    assert float(jnp.abs(gain - 1).max()) < 0.1 and float(jnp.abs(offset).max()) < 0.1
    weights = model.attention(jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16)), jnp.float32))
    assert float(weights.std()) > 0
    assert 0.005 < float(model.head.output.kernel[...].std()) < 0.02
    first = model.encoder.blocks[0].conv
    assert float(first.kernel[...].std()) == pytest.approx((2 / 72) ** 0.5, rel=0.2)
    assert 0.1 < float(jnp.abs(first.bias[...]).max()) <= 1 / 18**0.5


def test_frame_order_is_seen_through_the_position_alone() -> None:
    for position, seen in ((True, True), (False, False)):
        model = evaluating(network(DEFAULT, **TINY, position=position, pool="mean"))
        features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16)), jnp.float32)
        moved = float(jnp.abs(model.combine(features)[0] - model.combine(features[:, ::-1])[0]).max())
        assert (moved > 1e-3) == seen


@pytest.mark.parametrize("variant", ["gru", "ssm"])
def test_recurrent_variants_hear_the_order_of_frames(variant: str) -> None:
    model = evaluating(network(SAME, variant=variant))
    features = jax.random.normal(jax.random.key(1), (3, 3, TINY["channels"][-1]))
    forward, reversed_ = (model.combine(f)[0] for f in (features, features[:, ::-1]))
    assert forward.shape == features[:, 0].shape and float(jnp.abs(forward - reversed_).max()) > 1e-3


def test_the_nadir_moves_through_the_frames() -> None:
    pool = NadirPool(2)
    pool.drift[...] = jnp.asarray(0.25)
    weights = pool(jnp.zeros((3, 8, 8, 2)), jnp.asarray([-1.0, 0.0, 1.0])).map
    r = (np.arange(8) + 0.5) / 8 - 0.5
    for j, found in zip((-1, 0, 1), np.asarray(weights), strict=True):
        expected = np.exp(-4 * np.log(2) * ((r[:, None] + 0.25 * j) ** 2 + r**2))
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-4)


def test_batch_norm_of_one_window_is_refused() -> None:
    model = network({**SAME, **NO_DROPOUT})
    with pytest.raises(UserError, match="2 windows or more"):
        jax.eval_shape(lambda: nnx.merge(*nnx.split(model), copy=True)(batch(model, windows=1)))


@pytest.mark.slow
def test_bfloat16_keeps_the_output_float32() -> None:
    model = evaluating(network(DEFAULT, dtype=jnp.bfloat16, **TINY))
    inputs = batch(model)
    found = jax.jit(lambda inputs: model(inputs)["y"])(inputs)
    assert found.dtype == jnp.float32
    exact = evaluating(network(DEFAULT, **TINY))
    np.testing.assert_allclose(found, jax.jit(lambda inputs: exact(inputs)["y"])(inputs), atol=0.05)


def test_flops() -> None:
    full, small = Config(**REFERENCE), Config(**{**REFERENCE, **SMALL})
    assert flops_per_window(full, 5, 440, 640, 1) == pytest.approx(422e9, rel=0.01)
    assert flops_per_window(small, 5, 440, 640, 1) == pytest.approx(107e9, rel=0.01)
    assert flops_per_window(Config(**DEFAULT), 5, 32, 48, 2) == pytest.approx(452e6, rel=0.01)
    assert flops_per_window(Config(**{**DEFAULT, **DEMO}), 5, 32, 48, 2) == pytest.approx(120e6, rel=0.01)


@pytest.mark.parametrize("changes, words", [
    ({"variant": "cnnn"}, "did you mean 'cnn'"), ({"channels": (8, 8)}, "3 numbers"), ({"channels": (8, 8, 12)}, "multiples of 8"),
    ({"dropout": (0.1, 1.0, 0.1)}, "probabilities"), ({"remat": True}, "frames to each"), ({"output_init": (-1.0, 0.0)}, "deviation"),
    ({"dense": (16, 0)}, "1 or more"),
])  # fmt: skip
def test_faults_of_the_config(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Config(**{**DEFAULT, **TINY, **changes})
