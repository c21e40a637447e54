"""The benchmark measures the program that the loop runs."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError

ROOT = Path(__file__).parents[1]


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    cached = jax.config.jax_enable_compilation_cache
    yield script("benchmark")
    jax.config.update("jax_enable_compilation_cache", cached)


@pytest.mark.parametrize("call, placement", [("1", "device"), ("3", "host")])
def test_a_row_holds_what_the_table_shows(benchmark, call: str, placement: str) -> None:
    overrides = {"train.steps_per_call": call, "train.placement": placement}
    row = benchmark.measure(configs.load(str(ROOT / "tests/sixth/configs/tides.py"), overrides), steps=3, infer=False)
    assert row["step_s"]["min"] <= row["step_s"]["median"] <= row["step_s"]["max"]
    assert 0 <= row["input_wait"] < 1 and row["samples_per_second"] > 0
    text = benchmark.render({"command": "x", "machine": benchmark.machine(), "rows": [row], "peers": [], "first": [9.5, 2.5]})
    assert f"float32, {placement}, {call} per call" in text
    assert "first step 9.500 s after the command, 2.500 s with a full compilation cache" in text
    assert row["copy_bytes_per_s"] > 1e8 and row["bytes_per_step"] > 0


@pytest.mark.slow
def test_members_trained_together_stand_beside_the_lone_run(benchmark) -> None:
    values = configs.load(str(ROOT / "tests/sixth/configs/tides.py"), {})
    rows = [benchmark.measure(values, steps=3, infer=False, members=members) for members in (1, 3)]
    assert rows[0]["parameters"] == rows[1]["parameters"] and rows[1]["samples_per_second"] > 0
    assert rows[1]["flops_per_step"] == rows[0]["flops_per_step"]
    rows[0]["step_s"]["median"], rows[1]["step_s"]["median"], rows[0]["cpu_s"], rows[1]["cpu_s"] = 0.1, 0.15, 0.2, 0.5
    text = benchmark.render({"command": "x", "machine": benchmark.machine(), "rows": rows, "peers": [], "first": []})
    assert "float32, device, 5 per call, 3 members cost 1.50 x one by the wall clock (0.50 x per member), 2.50 x CPU time" in text


def test_the_table_compares_with_our_fastest_float32_program(benchmark) -> None:
    row = {
        "precision": "float32", "placement": "device", "steps_per_call": 1, "members": 1, "batch": 4, "parameters": 5, "compile_s": 1.0,
        "step_s": {"median": 0.2, "min": 0.1, "max": 0.3}, "cpu_s": 0.4, "samples_per_second": 20.0, "input_wait": 0.0, "gather_ms": 0.1,
        "flops_per_step": None, "share_of_matmul": None, "mfu": None, "share_of_copy": None,
        "matmul_flops": 1e9, "copy_bytes_per_s": 1e9, "peak_memory_bytes": 1, "device": "1 x cpu", "jax": "0",
    }  # fmt: skip
    slower = {**row, "step_s": {"median": 0.5, "min": 0.5, "max": 0.5}}
    mixed = {**row, "precision": "mixed_bfloat16", "step_s": {"median": 0.01, "min": 0.01, "max": 0.01}}
    peer = {"program": "other", "mode": "train", "wall_s": {"median": 0.6, "min": 0.5, "max": 0.7}, "cpu_s": 1.0, "windows_per_s": 6.7}
    loader = {**peer, "program": "loader", "mode": "input"}
    result = {"command": "x", "machine": benchmark.machine(), "rows": [slower, row, mixed], "peers": [peer, loader], "first": []}
    lines = benchmark.render(result).splitlines()[-2:]
    assert lines[0].startswith("other, train") and lines[0].split()[-2:] == ["3.00", "2.50"]
    assert lines[1].startswith("loader, input") and lines[1].split()[-2:] == ["-", "-"]


def test_the_summary_takes_the_fastest_program_of_a_peer() -> None:
    module = script("benchmark_all")
    case = module.Case("x.py", (), "", {"trainer": 1.5, "loop": 2.0})
    ours = {"samples_per_second": 30.0, "cpu_s": 0.5, "batch": 4}
    peers = [
        {"program": "trainer, 0 workers", "mode": "train", "windows_per_s": 10.0, "cpu_s": 1.0},
        {"program": "trainer, 2 workers", "mode": "train", "windows_per_s": 20.0, "cpu_s": 1.25},
        {"program": "trainer, 2 workers", "mode": "infer", "windows_per_s": 90.0, "cpu_s": 0.1},
        {"program": "loop", "mode": "train", "windows_per_s": 60.0, "cpu_s": 0.25},
    ]
    rows = module.compare(case, {"rows": [ours], "peers": peers})
    assert rows[0] == ["x.py", "4", "30.00", "trainer, 2 workers", "20.00", "1.50", "2.50", "1.5"]
    assert rows[1][5:] == ["0.50", "0.50", "2"]
    with pytest.raises(UserError, match="no program 'loop'"):
        module.compare(case, {"rows": [ours], "peers": peers[:2]})


def test_the_summary_runs_shipped_configs() -> None:
    module = script("benchmark_all")
    for case in module.CASES:
        overrides = dict(option.removeprefix("--config.").split("=", 1) for option in case.options if option.startswith("--config."))
        configs.load(str(ROOT / "configs" / case.config), overrides)
    with pytest.raises(UserError, match="--only nothing: no case"):
        module.main(["--peers", "python", "--only", "nothing"])
