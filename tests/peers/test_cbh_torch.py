"""The PyTorch yardstick computes the recorded function and ours, in the shape it claims, and reports what it timed."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "peers" / "cbh_torch.py"
TINY = ["--batch", "2", "--height", "9", "--width", "10", "--channels", "8", "8", "16", "--dense", "16", "8", "--film-hidden", "4"]
TINY += ["--temporal-frames", "3", "--rows", "4", "--steps", "2", "--warmup", "1", "--allocator", "default"]


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("torch")
    sys.path.insert(0, str(SCRIPT.parent))
    yield importlib.import_module("cbh_torch")
    sys.path.remove(str(SCRIPT.parent))


def test_it_repeats_the_recorded_run(peer, shared, capsys):
    assert peer.main(["--check", str(shared / "golden" / "cbh_small.npz")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 4 and max(found.values()) < 1e-4


def test_a_wrong_weight_fails_the_check(peer, shared, tmp_path):
    recorded = dict(np.load(shared / "golden" / "cbh_small.npz"))
    recorded["w/output.bias"] = recorded["w/output.bias"] + 0.1
    np.savez(tmp_path / "recorded.npz", **recorded)
    assert peer.main(["--check", str(tmp_path / "recorded.npz")]) == 1


@pytest.mark.parametrize("sizes, count", [
    ([], 41_876), (["--channels", "32", "64", "128", "--dense", "128", "64"], 145_188),
    (["REFERENCE", "--channels", "64", "128", "256", "--dense", "256", "128"], 536_846),
])  # fmt: skip
def test_parameters(peer, sizes, count):
    words = [word for size in sizes for word in (peer.REFERENCE if size == "REFERENCE" else [size])]
    network = peer.Network(peer.parse(["--bench", *words]))
    assert sum(value.numel() for value in network.parameters()) == count


def test_frames_each_equal_together(peer):
    options = peer.parse(["--bench", *TINY, "--dropout", "0", "0", "0"])
    together = peer.Network(options)
    options.frames, options.remat = "each", 1
    each = peer.Network(options)
    each.load_state_dict(together.state_dict())
    frames, sun = peer.torch.randn(2, 3, 2, 9, 10), peer.torch.randn(2, 3)
    peer.torch.testing.assert_close(each(frames, sun), together(frames, sun))


def test_bench_prints_one_line_per_mode_and_number_of_threads(peer, capsys):
    assert peer.main(["--bench", *TINY, "--threads", "2", "1"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["mode"], line["threads"]) for line in lines] == [("train", 2), ("train", 1), ("infer", 2), ("infer", 1)]
    assert [line["program"].split(", ")[-1] for line in lines] == ["2 threads", "1 thread"] * 2
    for line in lines:
        wall = line["wall_s"]
        assert 0 < wall["min"] <= wall["median"] <= wall["max"] and line["cpu_s"] > 0
        assert line["windows_per_s"] == pytest.approx(2 / wall["median"])


def test_a_missing_package_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), "--bench"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 2 and finished.stdout == ""
    assert len(finished.stderr.splitlines()) == 1 and "lacks torch;" in finished.stderr
