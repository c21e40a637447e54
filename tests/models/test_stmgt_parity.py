"""The recorded run of the earlier program, reproduced from its weights: outputs, activations, losses, gradients."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import built
from flax import nnx
from stmgt_problem import lists

from jaxtrain.errors import UserError
from jaxtrain.models.stmgt import STMGT
from jaxtrain.models.stmgt_import import Imported, import_weights
from jaxtrain.nn import mixture as mixtures

Arrays = dict[str, np.ndarray]


def load(path: Path) -> Arrays:
    with np.load(path) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def weights(shared: Path) -> Arrays:
    return load(shared / "golden" / "stmgt_baseline_1month_weights.npz")


@pytest.fixture(scope="module")
def recorded(shared: Path) -> Arrays:
    return load(shared / "golden" / "stmgt_baseline_1month_io.npz")


def restore(imported: Imported, edge_index: np.ndarray, nodes: int, out_steps: int) -> STMGT:
    unused = {"step_minutes": np.float32(30), "profile": np.zeros((2, 48, nodes), np.float32), "damping": np.zeros(out_steps, np.float32)}
    statistics = {**imported.statistics, **lists(edge_index.T, nodes), **unused}
    model = built(lambda: STMGT(imported.config, statistics, 12, out_steps, nnx.Rngs(0)))
    state = nnx.state(model, nnx.Param)
    flat = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    assert {name: leaf.shape for name, leaf in flat.items()} == {name: value.shape for name, value in imported.params.items()}
    for name, leaf in flat.items():
        leaf[...] = jnp.asarray(imported.params[name])
    nnx.update(model, state)
    return nnx.view(model, deterministic=True)


def as_batch(recorded: Arrays) -> dict[str, Any]:
    speed = recorded["x_traffic"][..., 0].transpose(0, 2, 1)
    pad = ((0, 0), (0, 12))  # the calendar of the output steps: no part of this network
    return {
        "speed": speed, "observed": np.ones(speed.shape, bool), "weather": recorded["x_weather"],
        "slot": np.pad(2 * recorded["hour"], pad).astype(np.int32), "dow": np.pad(recorded["dow"], pad).astype(np.int32),
    }  # fmt: skip


@pytest.fixture(scope="module")
def model(weights: Arrays, recorded: Arrays) -> STMGT:
    return restore(import_weights(weights), recorded["edge_index"], len(recorded["node_list"]), 12)


def test_outputs(model: STMGT, recorded: Arrays) -> None:
    found = jax.jit(lambda batch: model(batch))(as_batch(recorded))
    want_log_weights = jax.nn.log_softmax(recorded["logits_f64"], axis=-1)
    for ours, theirs in ((found.means, recorded["means_f64"]), (found.stds, recorded["stds_f64"]), (found.log_weights, want_log_weights)):
        np.testing.assert_allclose(ours, np.swapaxes(theirs, 1, 2), rtol=0, atol=1e-4)


def test_block_activations(model: STMGT, recorded: Arrays) -> None:
    batch = {name: value[:1] for name, value in as_batch(recorded).items()}
    activations = model.inspect(batch)["activations"]
    for block in range(3):
        np.testing.assert_allclose(activations[block, 0], recorded[f"act_block{block}_window0"], rtol=0, atol=1e-5)


def losses(model: STMGT, recorded: Arrays) -> tuple[jax.Array, jax.Array]:
    y = model.normalize(jnp.asarray(recorded["y_target"].transpose(0, 2, 1)))
    mixture = model(as_batch(recorded))
    nll = mixtures.nll(mixture, y, 1e-8) - 0.01 * mixtures.spread(mixture) + 0.001 * mixtures.negative_entropy(mixture, 1e-8)
    return nll.mean(), jnp.square(mixtures.mean(mixture) - y).mean()


def test_losses_and_gradient_norms(model: STMGT, weights: Arrays, recorded: Arrays) -> None:
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def total(params: Any) -> tuple[jax.Array, Any]:
        nll, mse = losses(nnx.merge(graph, params, rest), recorded)
        return nll + 0.35 * mse, (nll, mse)

    (loss, (nll, mse)), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    assert abs(nll - recorded["loss_nll"]) < 1e-5 and abs(mse - recorded["loss_mse"]) < 1e-5 and abs(loss - recorded["loss_total"]) < 1e-5
    ours = {"/".join(map(str, path)): np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(grads)}
    # Push the recorded names through the importer as marks, to learn which column of which leaf each of them fills.
    trained = [name.removeprefix("gradnorm/") for name in recorded if name.startswith("gradnorm/")]
    assert len(trained) == 92
    marked = import_weights({name: np.full_like(value, trained.index(name) if name in trained else -1) for name, value in weights.items()})
    for number, name in enumerate(trained):
        squares = sum(float((ours[leaf].astype(np.float64) ** 2)[marks == number].sum()) for leaf, marks in marked.params.items())
        assert np.sqrt(squares) == pytest.approx(float(recorded[f"gradnorm/{name}"]), rel=1e-4, abs=1e-7), name


def earlier_state(width: int, heads: int, blocks: int, outputs: int) -> Arrays:
    """A state dict of the earlier program with other sizes."""
    rng, d = np.random.default_rng(0), width
    shapes: dict[str, tuple[int, ...]] = {
        "speed_normalizer.mean": (1,), "speed_normalizer.std": (1,), "weather_normalizer.mean": (3,), "weather_normalizer.std": (3,),
        "temporal_encoder.dow_embedding.weight": (7, d // 2), "temporal_encoder.weekend_embedding.weight": (2, d // 4),
        "weather_cross_attn.cross_attn.in_proj_weight": (3 * d, d), "weather_cross_attn.cross_attn.in_proj_bias": (3 * d,),
    }  # fmt: skip
    maps = {"traffic_encoder": (d, 1), "temporal_encoder.proj": (d, 2 + d // 2 + d // 4), "weather_cross_attn.weather_proj": (d, 3),
            "weather_cross_attn.cross_attn.out_proj": (d, d)}  # fmt: skip
    norms = ["weather_cross_attn.norm"]
    for i in range(blocks):
        block = f"st_blocks.{i}"
        shapes |= {f"{block}.gat.att": (1, heads, d), f"{block}.gat.bias": (d,), f"{block}.temporal_attn.in_proj_weight": (3 * d, d),
                   f"{block}.temporal_attn.in_proj_bias": (3 * d,)}  # fmt: skip
        maps |= {f"{block}.gat.lin_l": (heads * d, d), f"{block}.gat.lin_r": (heads * d, d), f"{block}.temporal_attn.out_proj": (d, d),
                 f"{block}.temporal_ffn.0": (2 * d, d), f"{block}.temporal_ffn.3": (d, 2 * d),
                 f"{block}.fusion_gate": (d, 2 * d)}  # fmt: skip
        norms += [f"{block}.ln_{name}" for name in ("spatial", "temporal1", "temporal2", "fusion")]
    maps |= {f"output_head.{part}_head": (outputs, d) for part in ("mu", "sigma", "pi")}
    for name, shape in maps.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    return {name: rng.uniform(0.1, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.slow
def test_other_sizes_are_read_off_the_shapes() -> None:
    imported = import_weights(earlier_state(width=16, heads=2, blocks=2, outputs=24), out_steps=8)
    c = imported.config
    assert (c.width, c.heads, c.blocks, c.components, c.ffn) == (16, 2, 2, 3, 2)
    ring = np.stack([np.arange(5), (np.arange(5) + 1) % 5])
    model = restore(imported, ring, nodes=5, out_steps=8)
    found = jax.jit(lambda batch: model.physical(model(batch)))({
        "speed": np.full((1, 12, 5), 0.3, np.float32), "observed": np.ones((1, 12, 5), bool), "slot": np.zeros((1, 20), np.int32),
        "dow": np.zeros((1, 20), np.int32), "weather": np.zeros((1, 12, 3), np.float32),
    })  # fmt: skip
    assert found.means.shape == (1, 8, 5, 3)


def test_every_misfit_is_named() -> None:
    arrays = earlier_state(16, 2, 2, 24)
    arrays["st_blocks.1.fusion_gate.weight"] = np.zeros((16, 31))
    arrays["extra.weight"] = np.zeros(2)
    del arrays["weather_cross_attn.norm.bias"]
    with pytest.raises(UserError) as fault:
        import_weights(arrays, out_steps=8)
    line = str(fault.value)
    for part in ("st_blocks.1.fusion_gate.weight' is (16, 31), expected (16, 32)", "extra.weight", "weather_cross_attn.norm.bias"):
        assert part in line
    assert "\n" not in line
    with pytest.raises(UserError, match="24 rows"):
        import_weights(earlier_state(16, 2, 2, 24), out_steps=7)
    with pytest.raises(UserError, match="traffic_encoder.weight"):
        import_weights({"a": np.zeros(1)})
