"""The PyTorch network computes the function of ours from the same weights, and reports what it timed."""

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import abr_weights
import numpy as np
import pytest

from jaxtrain.engine import config as configs

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "peers" / "abr_torch.py"
SIZES = ["--channels", "8", "16", "--res-blocks", "2", "--s4-layers", "1", "--s4-state", "8", "--transformer-layers", "2"]
SIZES += ["--bottleneck-layers", "1", "--head-width", "8", "--ffn-factor", "2", "--cond-width", "16"]
TINY = [*SIZES, "--batch", "2", "--rows", "4", "--steps", "2", "--warmup", "1", "--threads", "1", "--allocator", "default"]


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("torch")
    sys.path.insert(0, str(SCRIPT.parent))
    yield importlib.import_module("abr_torch")
    sys.path.remove(str(SCRIPT.parent))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["predict", "generate"])
def test_both_programs_compute_our_function(peer, tmp_path, capsys, objective):
    weights, io = abr_weights.write(tmp_path, objective)
    command = ["--check", str(weights), str(io), "--objective", objective, *SIZES]
    assert peer.main(command) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["program"] for result in results] == ["fft", "toeplitz"]
    assert len(results[0]) == (11 if objective == "predict" else 3)
    changed = dict(np.load(weights))
    changed["decoder/1/layers/layer/cross/query/kernel"][1] *= -1
    np.savez(weights, **changed)
    assert peer.main(command) == 1


def test_parameters_are_ours(peer):
    assert sum(p.numel() for p in peer.Network(peer.Sizes()).parameters()) == 38_069_391
    base = peer.Sizes(channels=(64, 96, 128, 192))
    assert sum(p.numel() for p in peer.Network(base).parameters()) == 7_342_735
    assert sum(p.numel() for p in peer.Network(replace(base, objective="generate")).parameters()) == 7_331_713


def test_bench_prints_one_line_per_measurement(peer, capsys):
    assert peer.main(["--bench", *TINY]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    modes = [(line["program"], line["mode"]) for line in lines]
    assert modes == [("fft", "train"), ("fft", "infer"), ("toeplitz", "train"), ("toeplitz", "infer")]
    for line in lines:
        assert (line["batch"], line["steps"], line["threads"], line["channels"]) == (2, 2, 1, [8, 16])
        wall = line["wall_s"]
        assert 0 < line["input_wait_s"] < wall["min"] <= wall["median"] <= wall["max"] and line["cpu_s"] > 0
        assert line["windows_per_s"] == pytest.approx(2 / wall["median"])


def test_every_parameter_trains(peer):
    for objective in ("predict", "generate"):
        options = peer.parse(["--bench", "--objective", objective, "--film-dropout", "0", *TINY])
        network = peer.Network(peer.sizes_of(options, "fft"))
        inputs, targets = next(peer.batches(options))
        inputs["null"][0] = True
        peer.loss(network(inputs), targets).backward()
        silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
        assert silent == []


def test_the_benchmark_asks_for_the_sizes_of_the_config(peer, monkeypatch, tmp_path):
    root = SCRIPT.parents[2]
    monkeypatch.syspath_prepend(str(root / "scripts"))
    asked = importlib.import_module("benchmark_peers").PEERS["abr"].sizes
    for preset, parameters in (("lean", 7_342_735), ("generate", 7_331_713), ("demo", 253_935)):
        options = asked(configs.load(f"{root}/configs/abr.py:{preset}", {}), {}, tmp_path) | {"batch": 8, "steps": 1}
        given = {name: value if isinstance(value, list | tuple) else (value,) for name, value in options.items()}
        words = [word for name, values in given.items() for word in (f"--{name}", *values)]
        sizes = peer.sizes_of(peer.parse([str(word) for word in words]), "fft")
        assert sum(p.numel() for p in peer.Network(sizes).parameters()) == parameters


def test_a_missing_package_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    finished = subprocess.run([sys.executable, str(SCRIPT), "--bench"], env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 2 and finished.stdout == ""
    assert len(finished.stderr.splitlines()) == 1 and "lacks torch;" in finished.stderr
