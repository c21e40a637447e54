"""Weights of the earlier program -> the network's arrays and a run's statistics."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.models.cbh_import import NORM, PATHS, import_weights

Arrays = dict[str, np.ndarray]
CHANNELS, DENSE, HIDDEN = (3, 4, 6), (5, 2), 7


def earlier() -> Arrays:
    """Random weights under the earlier program's names, as torch.compile writes them."""
    shapes: dict[str, tuple[int, ...]] = {"spatial_attention.conv1": (1, 1, 3, 3), "spatial_attention.conv2": (1, 1, 1, 1)}
    shapes |= {"output": (1, 2), "temporal_attention.fc1": (3, 6), "temporal_attention.fc2": (1, 3)}
    shapes |= {"film_layers.0.film_mlp.0": (HIDDEN, 2), "film_layers.0.film_mlp.2": (6, HIDDEN)}
    shapes |= {f"cnn_layers.{5 * i}": (o, n, 3, 3) for i, (n, o) in enumerate(zip((1, *CHANNELS), CHANNELS, strict=False))}
    shapes |= {f"dense_layers.{4 * i}": (o, n) for i, (n, o) in enumerate(zip((6, *DENSE), DENSE, strict=False))}
    r, arrays = np.random.default_rng(0), {}
    for layer, shape in shapes.items():
        arrays |= {f"{layer}.weight": r.normal(size=shape), f"{layer}.bias": r.normal(size=shape[:1])}
    norms = {**{f"cnn_layers.{5 * i + 1}": c for i, c in enumerate(CHANNELS)}, "dense_layers.1": 5, "dense_layers.5": 2}
    arrays |= {f"{layer}.{part}": r.uniform(0.5, 1.5, count) for layer, count in norms.items() for part in NORM}
    arrays |= {f"{layer}.num_batches_tracked": np.asarray(3) for layer in norms}
    return {f"_orig_mod.{name}": np.asarray(value, np.float32) for name, value in arrays.items()}


def without(arrays: Arrays, part: str) -> Arrays:
    return {name: value for name, value in arrays.items() if part not in name}


def test_sizes_and_layouts_are_read_off() -> None:
    imported = import_weights(earlier())
    assert imported.model == {"channels": CHANNELS, "dense": DENSE, "film_hidden": HIDDEN, "film": "plain", "spatial_attention": True,
                              "temporal_attention": True}  # fmt: skip
    assert set(imported.params) | set(imported.model_state) == set(PATHS.values())
    old = earlier()
    kernel = imported.params["encoder/blocks/1/conv/kernel"]
    assert kernel.shape == (3, 3, 3, 4) and kernel[2, 0, 1, 3] == old["_orig_mod.cnn_layers.5.weight"][3, 1, 2, 0]
    assert imported.params["head/dense/0/kernel"][4, 1] == old["_orig_mod.dense_layers.0.weight"][1, 4]
    np.testing.assert_array_equal(imported.model_state["head/norms/1/var"], old["_orig_mod.dense_layers.5.running_var"])


@pytest.mark.parametrize("part, key, value", [
    ("film_layers", "film", "none"), ("spatial_attention", "spatial_attention", False), ("temporal_attention", "temporal_attention", False),
])  # fmt: skip
def test_parts_may_have_been_switched_off(part: str, key: str, value: object) -> None:
    assert import_weights(without(earlier(), part)).model[key] == value


@pytest.mark.parametrize("arrays, words", [
    (without(earlier(), "dense_layers.5.running_var"), "'dense_layers.5.running_var' .* is missing"),
    (without(earlier(), "film_mlp.2.bias"), "'film_layers.0.film_mlp.2.bias' .* is missing"),
    (earlier() | {"gnn.weight": np.zeros((2, 2), np.float32)}, "'gnn.weight' .* is left over"),
    (earlier() | {"_orig_mod.output.weight": np.zeros((1, 3), np.float32)}, r"is \(1, 3\), expected \(1, 2\)"),
    ({"a": np.zeros(3, np.float32)}, "is this the earlier network"),
])  # fmt: skip
def test_other_networks_are_refused(arrays: Arrays, words: str) -> None:
    with pytest.raises(UserError, match=words):
        import_weights(arrays)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    source = Path(__file__).resolve().parents[2] / "scripts" / "convert_cbh.py"
    spec = importlib.util.spec_from_file_location("convert_cbh", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCALERS = {"sza_scaler": (40.0, 9.0), "saa_scaler": (180.0, 30.0), "cbh_scaler": (0.83, 0.37)}


def test_scalers_become_statistics(script: ModuleType, tmp_path: Path) -> None:
    parts = {f"{name}/mean_": np.asarray([mean]) for name, (mean, _) in SCALERS.items()}
    parts |= {f"{name}/scale_": np.asarray([scale]) for name, (_, scale) in SCALERS.items()}
    np.savez(tmp_path / "weights.npz", **earlier(), **parts)
    found = script.read(tmp_path / "weights.npz")
    assert len(found.weights) == len(earlier())
    statistics = script.scaled(found.scalers)
    np.testing.assert_allclose(statistics["sun_mean"], [40, 180])
    np.testing.assert_allclose(statistics["sun_std"], [9, 30])
    np.testing.assert_allclose([statistics["height_mean"], statistics["height_std"]], [0.83, 0.37], rtol=1e-6)
    with pytest.raises(UserError, match="scaler 'other'"):
        script.by_role({"other": {"mean_": 0.0, "scale_": 1.0}})
    with pytest.raises(UserError, match="belong together"):
        script.scaled({"zenith": (0.0, 1.0)})


def test_a_checkpoint_is_read_without_its_code(script: ModuleType, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = {name: torch.from_numpy(value.copy()) for name, value in earlier().items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pt")
    assert script.read(tmp_path / "checkpoint.pt").weights.keys() == earlier().keys()


@pytest.mark.slow
def test_a_converted_run_is_a_run(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import jaxtrain

    np.savez(tmp_path / "weights.npz", **earlier())
    options = ["--set", "data.synthetic.label_factor=0.3"]
    assert script.main(["--weights", str(tmp_path / "weights.npz"), "--workdir", str(tmp_path / "run"), *options]) == 0
    assert "no scaler of zenith, azimuth, height" in capsys.readouterr().out
    run = jaxtrain.load(tmp_path / "run")
    imported = import_weights(earlier())
    for name, value in (imported.params | imported.model_state).items():
        np.testing.assert_array_equal(np.asarray((run.params | run.model_state)[name]), value, err_msg=name)
    settings = ["--set", "model.frames=together", "--set", "model.remat=False"]
    with pytest.raises(UserError, match="leave model.frames at each"):
        script.main(["--weights", str(tmp_path / "weights.npz"), "--workdir", str(tmp_path / "run2"), *settings])
