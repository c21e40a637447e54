"""Weight files -> run folder: the three formats, the restricted unpickler, a forecast from a converted run."""

import importlib.util
import json
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_stmgt_parity import earlier_state

import jaxtrain
from jaxtrain import evaluate
from jaxtrain.data.weights_file import read_weights
from jaxtrain.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("convert_stmgt", ROOT / "scripts" / "convert_stmgt.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    ring = np.arange(5)
    np.savez(tmp_path / "graph.npz", edge_index=np.stack([ring, (ring + 1) % 5]), node_list=np.array([f"n{i}" for i in ring]))
    return tmp_path / "graph.npz"


class Marker:
    """Stands for a tensor while a .pt file is written without PyTorch."""

    def __init__(self, array: np.ndarray, transposed: bool):
        self.array, self.transposed = array, transposed


def write_torch(path: Path, content: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch.save writes: a pickle that names storages, and one raw file per storage."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    storage = type("FloatStorage", (), {"__module__": "torch"})

    def _rebuild_tensor_v2() -> None: ...

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    torch.FloatStorage, utils._rebuild_tensor_v2 = storage, _rebuild_tensor_v2  # type: ignore[attr-defined]
    stored: list[np.ndarray] = []

    class Key:
        def __init__(self, number: int):
            self.number = number

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", storage, str(obj.number), "cpu", stored[obj.number].size) if isinstance(obj, Key) else None

        def reducer_override(self, obj: Any) -> Any:
            if not isinstance(obj, Marker):
                return NotImplemented
            held = np.ascontiguousarray(obj.array.T if obj.transposed else obj.array, np.float32)
            stored.append(held)
            strides = tuple(step // 4 for step in (held.T if obj.transposed else held).strides)
            return _rebuild_tensor_v2, (Key(len(stored) - 1), 0, obj.array.shape, strides, False, OrderedDict())

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("model/data.pkl", "w") as file:
                Pickler(file, protocol=2).dump(content)
            for number, array in enumerate(stored):
                archive.writestr(f"model/data/{number}", array.tobytes())


def test_three_formats_hold_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = earlier_state(8, 2, 1, 4)
    np.savez(tmp_path / "w.npz", **state)  # type: ignore[arg-type]
    marked = OrderedDict((f"module.{name}", Marker(value, transposed=value.ndim == 2)) for name, value in state.items())
    write_torch(tmp_path / "w.pt", {"epoch": 3, "model_state_dict": marked}, monkeypatch)
    paths = [tmp_path / "w.npz", tmp_path / "w.pt"]
    numpy_format = pytest.importorskip("safetensors.numpy")
    numpy_format.save_file(state, tmp_path / "w.safetensors")
    for path in [*paths, tmp_path / "w.safetensors"]:
        found = read_weights(path)
        assert found.keys() == state.keys()
        for name, value in state.items():
            np.testing.assert_array_equal(found[name], value)


def test_a_pickle_cannot_run_code(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return subprocess.getoutput, (f"touch {tmp_path / 'ran'}",)

    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"a": Attack()}))
    with pytest.raises(UserError, match="subprocess.getoutput"):
        read_weights(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [("w.pt", b"junk", "zip"), ("w.npz", b"junk", "npz"), ("w.h5", b"", "suffix"), ("w.safetensors", b"junk", "safetensors")],
)
def test_broken_files_are_one_line(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=part) as fault:
        read_weights(tmp_path / name)
    assert name in str(fault.value) and "\n" not in str(fault.value)


@pytest.mark.slow
def test_a_converted_run_forecasts(tmp_path: Path, graph: Path, script: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "w.npz", **earlier_state(8, 2, 1, 8))  # type: ignore[arg-type]
    arguments = ["--weights", str(tmp_path / "w.npz"), "--data", str(graph), "--workdir", str(tmp_path / "run"), "--out-steps", "4"]
    assert script.main(arguments) == 0
    assert "width 8, 2 heads, 1 blocks, 2 components, 5 nodes" in capsys.readouterr().out
    forecast = jaxtrain.load(tmp_path / "run").predict(
        speed=np.full((2, 12, 5), 0.3, np.float32), slot=np.tile(np.arange(16, dtype=np.int32), (2, 1)),
        dow=np.zeros((2, 16), np.int32), weather=np.ones((2, 12, 3), np.float32),
    )  # fmt: skip
    assert forecast["median"].shape == (2, 4, 5) and np.isfinite(forecast["median"]).all()
    with pytest.raises(UserError, match="not empty"):
        script.main(arguments)


@pytest.mark.slow
def test_evaluate_of_a_converted_run_reads_the_table_again(
    tmp_path: Path, script: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, times = np.random.default_rng(0), np.datetime64("2024-01-01T00:00") + 30 * np.arange(200).astype("timedelta64[m]")
    lines = [f"{time},n{i},n{(i + 1) % 5},{rng.uniform(20, 60):.2f},25" for time in times for i in range(5)]
    (tmp_path / "speed.csv").write_text("\n".join(["timestamp,node_a_id,node_b_id,speed_kmh,temperature_c", *lines]) + "\n")
    np.savez(tmp_path / "w.npz", **earlier_state(8, 2, 1, 8))  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    arguments = ["--weights", "w.npz", "--data", "speed.csv", "--workdir", str(tmp_path / "run"), "--out-steps", "4"]
    assert script.main(arguments) == 0
    monkeypatch.chdir(ROOT)
    assert evaluate.main(["--workdir", str(tmp_path / "run"), "--output", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["examples"] == round(0.2 * (200 - 16 + 1)) and scores["scores"]["model"]["targets"] == scores["examples"] * 4 * 5


def test_evaluate_of_a_run_with_a_graph_alone_asks_for_a_file(tmp_path: Path, graph: Path, script: types.ModuleType) -> None:
    np.savez(tmp_path / "w.npz", **earlier_state(8, 2, 1, 8))  # type: ignore[arg-type]
    arguments = ["--weights", str(tmp_path / "w.npz"), "--data", str(graph), "--workdir", str(tmp_path / "run"), "--out-steps", "4"]
    assert script.main(arguments) == 0
    with pytest.raises(UserError, match="data.path is unset .* give labelled readings with --input FILE") as fault:
        evaluate.main(["--workdir", str(tmp_path / "run")])
    assert "\n" not in str(fault.value)


def test_raw_scale_weights_are_found_out(tmp_path: Path, graph: Path, script: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    state = earlier_state(8, 2, 1, 8)
    state["output_head.mu_head.bias"] = np.full(8, 18.0, np.float32)
    np.savez(tmp_path / "w.npz", **state)  # type: ignore[arg-type]
    common = ["--weights", str(tmp_path / "w.npz"), "--data", str(graph), "--out-steps", "4"]
    assert script.main([*common, "--workdir", str(tmp_path / "auto")]) == 0
    assert "output raw" in capsys.readouterr().out
    assert script.main([*common, "--workdir", str(tmp_path / "forced"), "--output-space", "normalized"]) == 0
    assert "--output-space raw" in capsys.readouterr().err
