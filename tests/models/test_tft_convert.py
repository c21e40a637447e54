"""Weights of the published implementation -> run folder: forecasts of its network, categories that keep their rows, faults in one line."""

import importlib.util
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tft_problem import parameters

import jaxtrain
from jaxtrain import evaluate
from jaxtrain.engine.run import open_run
from jaxtrain.errors import UserError
from jaxtrain.models.tft import TFT
from jaxtrain.models.tft_import import import_weights
from jaxtrain.tasks.tft import Task

ROOT = Path(__file__).resolve().parents[2]
K, TAU, WIDTH, HEADS = 12, 4, 8, 2
IDS = ("2", "10", "33")
STEPS = 24 * 8
SMALL = {
    "data.context_steps": K, "data.horizon_steps": TAU, "data.min_history_steps": K, "data.season_steps": "(24,48)", "data.block_steps": 24,
    "score.steps": "(1,4)", "eval.batch": 16,
}  # fmt: skip
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def script() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("convert_tft", ROOT / "scripts" / "convert_tft.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(groups: int = len(IDS), known: int = 3) -> Arrays:
    """A state dict as the published program has it for one static category, real known columns, one target and three levels."""
    h, d, rng = WIDTH, WIDTH // HEADS, np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.s_cat_embed.0.weight": (groups, h), "embedding.t_cont_k_embedding_vectors": (known, h),
        "embedding.t_cont_k_embedding_bias": (known, h), "embedding.t_tgt_embedding_vectors": (1, h),
        "embedding.t_tgt_embedding_bias": (1, h), "TFTpart2.attention.qkv_linears.weight": (2 * h + d, h),
        "TFTpart2.attention.out_proj.weight": (h, d), "TFTpart2.quantile_proj.weight": (3, h), "TFTpart2.quantile_proj.bias": (3,),
    }  # fmt: skip

    def linear(name: str, out: int, inside: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, inside)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (h,), (h,)

    def residual(name: str, inside: int = h, out: int = h, context: bool = False) -> None:
        linear(f"{name}.lin_a", h, inside)
        linear(f"{name}.lin_i", h, h)
        linear(f"{name}.glu.lin", 2 * out, h)
        shapes[f"{name}.layer_norm.ln.weight"], shapes[f"{name}.layer_norm.ln.bias"] = (out,), (out,)
        if context:
            linear(f"{name}.lin_c", h, h, bias=False)
        if inside != h or out != h:
            linear(f"{name}.out_proj", out, inside)

    for name, m in (("static_encoder.vsn", 1), ("TFTpart2.history_vsn", known + 1), ("TFTpart2.future_vsn", known)):
        residual(f"{name}.joint_grn", m * h, m, context=True)
        for i in range(m):
            residual(f"{name}.var_grns.{i}")
    for i in range(4):
        residual(f"static_encoder.context_grns.{i}")
    for name in ("history", "future"):
        for part in ("ih", "hh"):
            shapes[f"TFTpart2.{name}_encoder.weight_{part}_l0"], shapes[f"TFTpart2.{name}_encoder.bias_{part}_l0"] = (4 * h, h), (4 * h,)
    for name in ("input_gate", "attention_gate", "decoder_gate"):
        linear(f"TFTpart2.{name}.lin", 2 * h, h)
    for name in ("input_gate_ln", "attention_ln", "decoder_ln"):
        norm(f"TFTpart2.{name}")
    residual("TFTpart2.enrichment_grn", context=True)
    residual("TFTpart2.positionwise_grn")
    return {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert")
    rng = np.random.default_rng(1)
    lines = ["timestamp,id,power_usage,hour,day_of_week,hours_from_start"]
    for place, name in enumerate(IDS):
        for step in range(STEPS):
            stamp = np.datetime64("2014-01-06T00:00:00") + np.timedelta64(step, "h")
            value = 10 * (place + 1) + 3 * np.sin(step / 4) + rng.normal()
            lines.append(f"{stamp}Z,{name},{value:.4f},{step % 24},{step // 24 % 7},{step}")
    (folder / "electricity.csv").write_text("\n".join(lines) + "\n")
    np.savez(folder / "weights.npz", **published())  # type: ignore[arg-type]
    return folder


def command(files: Path, workdir: Path, weights: str = "weights.npz", **more: Any) -> list[str]:
    settings = [part for key, value in {**SMALL, **more}.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
    return ["--weights", str(files / weights), "--data", str(files / "electricity.csv"), "--workdir", str(workdir), *settings]


@pytest.mark.slow
def test_a_converted_run_forecasts_as_the_network_does(files: Path, script: types.ModuleType, tmp_path: Path, capsys: Any) -> None:
    assert script.main(command(files, tmp_path / "run")) == 0
    assert "hidden 8, 2 heads, 1 static, 0 observed, 3 known, 1 targets" in capsys.readouterr().out
    run = open_run(tmp_path / "run")
    dataset = run.task.splits().test
    rows = dataset.index[np.linspace(0, len(dataset) - 1, 6).astype(int)]
    batch = {**dataset.gather(dataset.arrays, rows), "mask": np.ones(len(rows), np.float32)}
    assert {str(name) for name in run.task.statistics["group_names"]} == set(IDS)

    imported = import_weights(published())
    network = nnx.eval_shape(lambda: TFT(imported.config, imported.variables, K, TAU, nnx.Rngs(0)))
    for name, leaf in parameters(network).items():
        leaf.set_value(jnp.asarray(imported.params[name]))
    assert isinstance(run.task, Task)
    _, inputs = run.task._inputs(batch)
    names = [IDS[int(g)] for g in _members(dataset, rows)]
    assert len(set(names)) == len(IDS)
    # The published program numbers whole numbers by size: 2, 10, 33.
    inputs["static_cat"] = jnp.array([[1 + IDS.index(name)] for name in names])
    center, scale = (np.asarray(batch[name])[:, None, :, None] for name in ("center", "scale"))
    expected = np.sort(np.asarray(jax.jit(nnx.view(network, deterministic=True))(inputs)) * scale + center, axis=-1)
    found = jaxtrain.load(tmp_path / "run").predict(past=batch["past"], known=batch["known"], group=np.array(names))["quantiles"]
    limit = np.maximum(np.asarray(batch["cap"]), np.asarray(batch["past"])[..., :1].max(1))[:, None, :, None]
    np.testing.assert_allclose(found, np.minimum(expected, limit), rtol=1e-5, atol=1e-4)


def _members(dataset: Any, rows: np.ndarray) -> list[int]:
    """Place in IDS of each row's group; files order groups by their texts."""
    texts = sorted(IDS)
    return [IDS.index(texts[group]) for group in rows[:, 1]]


def test_evaluate_scores_a_converted_run(files: Path, script: types.ModuleType, tmp_path: Path, capsys: Any) -> None:
    arguments = command(files, tmp_path / "run")
    assert script.main(arguments) == 0
    assert evaluate.main(["--workdir", str(tmp_path / "run"), "--output", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["examples"] > 0 and np.isfinite(scores["scores"]["model"]["qrisk_50"])
    with pytest.raises(UserError, match="not empty"):
        script.main(arguments)


@pytest.mark.parametrize(
    ("weights", "more", "said"),
    [
        ("weights.npz", {"data__known_real": "('hour','day_of_week')"}, "known variables: the weights have known_0 (a number) + known_1"),
        ("weights.npz", {"data__calendar": "('hour_of_day',)"}, "the config has hour_of_day (2 columns) + hour (a number)"),
        ("groups.npz", {}, "static variables: the weights have static_cat_0 (5 categories); the config has id (3 categories)"),
        ("library.npz", {}, "another library's"),
        ("none.npz", {}, "none.npz: not found"),
        ("weights.npz", {"model__quantiles": "(0.1,0.25,0.5,0.9)"}, "quantile_proj has 3 rows, 4 levels were given"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(
    files: Path, script: types.ModuleType, tmp_path: Path, weights: str, more: dict[str, Any], said: str
) -> None:
    np.savez(files / "groups.npz", **published(groups=5))  # type: ignore[arg-type]
    np.savez(files / "library.npz", **{"multi_horizon_attn.v.weight": np.zeros((2, 2))})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=re.escape(said)) as error:
        script.main(command(files, tmp_path / "run", weights, **more))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_setting_without_a_value_is_one_line(files: Path, tmp_path: Path) -> None:
    """Of the whole command: exit code and what it prints."""
    words = [sys.executable, str(ROOT / "scripts" / "convert_tft.py"), *command(files, tmp_path / "run"), "--set", "data.time"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: --set data.time: write it as --set key=value, for example data.time=timestamp\n"
