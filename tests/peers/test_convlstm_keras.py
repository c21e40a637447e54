"""The earlier Keras network as a yardstick: it computes the recorded function, and its clock counts what it says."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "peers" / "convlstm_keras.py"
TINY = "--lookback 3 --horizon 2 --stations 4 --hidden 2 --batch 2 --steps 2 --warmup 1 --threads 1".split()


@pytest.fixture
def peer(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("convlstm_keras")


@pytest.fixture
def backend(peer) -> str:
    """Without importing any: that takes seconds, and a process has but one."""
    installed = [name for name in peer.BACKENDS if importlib.util.find_spec(name)]
    if not installed or importlib.util.find_spec("keras") is None:
        pytest.skip("no Keras with a backend")
    return installed[0]


def finished(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """The script in a process of its own, which alone can choose a backend and its threads."""
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_the_network_is_the_recorded_one(peer, backend, shared):
    done = finished("--check", str(shared / "golden" / "convlstm.npz"), "--backend", backend)
    result = json.loads(done.stdout)
    assert done.returncode == 0 and result["gradient_norms"] == 17
    assert all(result[name] <= tolerance for name, tolerance in peer.TOLERANCES.items())


@pytest.mark.slow
def test_other_weights_fail_the_check(peer, backend, shared, tmp_path):
    with np.load(shared / "golden" / "convlstm.npz") as file:
        arrays = dict(file)
    arrays["gradnorm/output/kernel"] = arrays["gradnorm/output/kernel"] * np.float32(1.001)
    np.savez(tmp_path / "other.npz", **arrays)
    done = finished("--check", str(tmp_path / "other.npz"), "--backend", backend)
    assert done.returncode == 1 and json.loads(done.stdout)["gradient_norm_relative"] > 5e-4


@pytest.mark.slow
def test_bench_prints_one_line_per_measurement(backend):
    done = finished(*TINY, "--backend", backend, "--kernel", "3", "1")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["program"], line["mode"]) for line in lines] == [
        (f"fit, {backend}, 1 thread", "train"), (f"step, {backend}, 1 thread", "train"), (f"forward, {backend}, 1 thread", "infer"),
    ]  # fmt: skip
    cells = sum(3 * 8 * (inputs + 2) + 8 for inputs in (1, 2, 3))
    for line in lines:
        assert line["parameters"] == cells + 3 * 8 + 3 and line["batch"] == 2 and line["kernel"] == [3, 1]
        wall = line["wall_s"]
        assert 0 < wall["min"] <= wall["median"] <= wall["max"]
        assert 2 / wall["max"] <= line["windows_per_s"] <= 2 / wall["min"]


def test_every_backend_and_thread_count_gets_a_process(peer, monkeypatch):
    started = []
    monkeypatch.setattr(peer, "find_spec", lambda name: name)
    monkeypatch.setattr(peer.subprocess, "run", lambda command, check: started.append(command) or SimpleNamespace(returncode=len(started)))
    assert peer.main(["--batch", "8", "--backend", "tensorflow", "torch", "--threads", "2", "1"]) == 4
    chosen = [peer.parse(command[2:]) for command in started]
    assert [(options.backend, options.threads) for options in chosen] == [
        (["tensorflow"], [2]), (["tensorflow"], [1]), (["torch"], [2]), (["torch"], [1]),
    ]  # fmt: skip
    assert {options.batch for options in chosen} == {8}


def test_the_first_installed_backend_is_taken(peer, monkeypatch):
    started = []
    monkeypatch.setattr(peer, "find_spec", lambda name: name if name in ("keras", "jax", "torch") else None)
    monkeypatch.setattr(peer.subprocess, "run", lambda command, check: started.append(command) or SimpleNamespace(returncode=0))
    assert peer.main([]) == 0
    assert [peer.parse(command[2:]).backend for command in started] == [["jax"], ["jax"]]


def test_times_leave_the_warm_up_out(peer):
    clock = peer.Clock()
    clock.stamps = [(90.0, 40.0), (100.0, 50.0), (101.0, 51.0), (103.0, 51.5), (109.0, 54.0)]
    assert clock.times(warmup=1) == {"median": 2.0, "min": 1.0, "max": 6.0, "mean": 3.0, "cpu": 1.0}


@pytest.mark.parametrize("installed, words, lacks", [
    ((), (), "lacks tensorflow and jax and torch;"),
    (("jax",), (), "lacks keras;"),
    (("keras", "jax"), ("--backend", "jax", "torch"), "lacks torch;"),
])  # fmt: skip
def test_a_missing_package_is_one_line_and_exit_code_2(peer, monkeypatch, capsys, installed, words, lacks):
    monkeypatch.setattr(peer, "find_spec", lambda name: name if name in installed else None)
    assert peer.main([*words]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1 and lacks in printed.err


@pytest.mark.parametrize("words, message", [
    (["--steps", "0"], "0 is not at least 1"),
    (["--check", "/nowhere.npz"], "no file /nowhere.npz"),
])  # fmt: skip
def test_wrong_options_are_one_line_and_exit_code_2(peer, capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        peer.parse(words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
