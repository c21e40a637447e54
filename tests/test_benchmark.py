"""The benchmark measures the program that the loop runs."""

import importlib.util
from pathlib import Path

import jax
import pytest

from jaxtrain.engine import config as configs

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "scripts" / "benchmark.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cached = jax.config.jax_enable_compilation_cache
    yield module
    jax.config.update("jax_enable_compilation_cache", cached)


@pytest.mark.parametrize("call, placement", [("1", "device"), ("3", "host")])
def test_a_row_holds_what_the_table_shows(benchmark, call: str, placement: str) -> None:
    overrides = {"train.steps_per_call": call, "train.placement": placement}
    row = benchmark.measure(configs.load(str(ROOT / "tests/sixth/configs/tides.py"), overrides), steps=3, infer=False)
    assert row["step_s"]["min"] <= row["step_s"]["median"] <= row["step_s"]["max"]
    assert 0 <= row["input_wait"] < 1 and row["samples_per_second"] > 0
    text = benchmark.render({"command": "x", "machine": benchmark.machine(), "rows": [row], "peers": []})
    assert f"float32, {placement}, {call} per call" in text
