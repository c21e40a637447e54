"""Weight files of Keras -> the network's arrays -> a run folder."""

import importlib.util
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

import jaxtrain
from jaxtrain.data.keras_file import read_keras
from jaxtrain.errors import UserError
from jaxtrain.models.convlstm_import import PATHS, import_weights

Arrays = dict[str, np.ndarray]
HIDDEN = 3
CELL = ("kernel", "recurrent_kernel", "bias")
NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def earlier() -> Arrays:
    """Random weights under the earlier program's names."""
    r, arrays = np.random.default_rng(0), {}
    for layer, inputs in (("encoder_1", 1), ("encoder_2", HIDDEN), ("decoder", HIDDEN + 1)):
        shapes = ((3, 3, inputs, 4 * HIDDEN), (3, 3, HIDDEN, 4 * HIDDEN), (4 * HIDDEN,))
        arrays |= {f"{layer}/conv_lstm_cell/{part}": r.normal(size=shape) for part, shape in zip(CELL, shapes, strict=True)}
    for layer in ("encoder_bn_1", "encoder_bn_2", "decoder_bn"):
        arrays |= {f"{layer}/{part}": r.uniform(0.5, 1.5, HIDDEN) for part in NORM}
    arrays |= {"output/kernel": r.normal(size=(1, 1, 1, HIDDEN, 1)), "output/bias": r.normal(size=1)}
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def keras3(arrays: Arrays) -> Arrays:
    """Names as Keras 3 writes them: layers by class and number, variables by number, and what Adam keeps."""
    layers = {"encoder_1": "conv_lstm2d/cell", "encoder_2": "conv_lstm2d_1/cell", "decoder": "conv_lstm2d_10/cell",
              "encoder_bn_1": "batch_normalization_2", "encoder_bn_2": "batch_normalization_9",
              "decoder_bn": "batch_normalization_11", "output": "conv3d"}  # fmt: skip
    found = {"optimizer/vars/0": np.zeros(3, np.float32), "optimizer/vars/1": np.zeros((), np.int64)}
    for name, value in arrays.items():
        layer, part = name.split("/")[0], name.split("/")[-1]
        parts = CELL if layer in ("encoder_1", "encoder_2", "decoder") else ("kernel", "bias") if layer == "output" else NORM
        found[f"layers/{layers[layer]}/vars/{parts.index(part)}"] = value
    return found


def keras2(arrays: Arrays) -> Arrays:
    """As whole models in HDF5: named layers, twice, with named variables."""
    return {f"model_weights/{name.split('/')[0]}/{name}:0": value for name, value in arrays.items()}


def write(path: Path, arrays: Arrays) -> Path:
    inner = path.with_suffix(".h5")
    with h5py.File(inner, "w") as file:
        for name, value in arrays.items():
            file[name] = value
    if path.suffix == ".keras":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(inner, "model.weights.h5")
    return path


@pytest.mark.parametrize("suffix, layout", [(".keras", keras3), (".h5", keras3), (".h5", keras2)])
def test_files_of_keras_hold_the_network(tmp_path: Path, suffix: str, layout) -> None:
    imported = import_weights(read_keras(write(tmp_path / f"model{suffix}", layout(earlier()))))
    assert (imported.hidden, imported.kernel, imported.terminal) == (HIDDEN, (3, 3), 1)
    arrays = imported.params | imported.model_state
    for name, value in earlier().items():
        np.testing.assert_array_equal(arrays[PATHS[name]], value.reshape(arrays[PATHS[name]].shape), err_msg=name)
    assert set(imported.model_state) == {path for path in PATHS.values() if path.endswith(("/mean", "/var"))}


def without(arrays: Arrays, name: str) -> Arrays:
    return {key: value for key, value in arrays.items() if key != name}


@pytest.mark.parametrize("arrays, words", [
    (without(earlier(), "decoder_bn/beta"), "'decoder_bn/beta' .* is missing"),
    (earlier() | {"encoder_2/conv_lstm_cell/kernel": np.zeros((3, 3, 1, 12), np.float32)}, r"is \(3, 3, 1, 12\), expected \(3, 3, 3, 12\)"),
    (earlier() | {"dense/kernel": np.zeros((2, 2), np.float32)}, "'dense/kernel' .* is unknown"),
    (keras3(earlier()) | {"layers/dense/vars/0": np.zeros((2, 2), np.float32)}, "3 cells, 3 norms .* left over: dense"),
    (without(keras3(earlier()), "layers/conv_lstm2d/cell/vars/1"), r"2 cells.*left over: conv_lstm2d"),
    ({"a": np.zeros(3, np.float32)}, "0 cells"),
])  # fmt: skip
def test_other_networks_are_refused(arrays: Arrays, words: str) -> None:
    with pytest.raises(UserError, match=words):
        import_weights(arrays)


def test_broken_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no weights")
    (tmp_path / "text.keras").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    faults = {"text.h5": "not a readable", "text.keras": "not a readable", "empty.keras": "model.weights.h5", "no.h5": "not found"}
    for name, words in faults.items():
        with pytest.raises(UserError, match=f"{name}: .*{words}") as fault:
            read_keras(tmp_path / name)
        assert "\n" not in str(fault.value)


@pytest.mark.slow
def test_a_converted_run_forecasts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Path(__file__).resolve().parents[2] / "scripts" / "convert_convlstm.py"
    spec = importlib.util.spec_from_file_location("convert_convlstm", source)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    weights = write(tmp_path / "model.keras", keras3(earlier()))
    small = ["data.synthetic.stations=6", "data.synthetic.days=5", "data.lookback=6", "data.horizon=4", "score.minutes=(1,)"]
    options = [part for setting in small for part in ("--set", setting)]
    assert script.main(["--weights", str(weights), "--workdir", str(tmp_path / "run"), *options]) == 0
    assert "hidden 3, kernel 3 x 3, 6 stations" in capsys.readouterr().out
    run = jaxtrain.load(tmp_path / "run")
    kept = {name: np.asarray(value) for name, value in (run.params | run.model_state).items()}
    for name, value in earlier().items():
        np.testing.assert_array_equal(kept[PATHS[name]].ravel(), value.ravel(), err_msg=name)
    with pytest.raises(UserError, match="not empty"):
        script.main(["--weights", str(weights), "--workdir", str(tmp_path / "run"), *options])
