"""The shrunk presets from the command line: trained, scored, served."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from abr_case import CONFIG
from compiling import QUICK
from test_abr_serving import write

import jaxtrain

pytestmark = pytest.mark.slow
ROOT = CONFIG.parents[1]


def run(module: str, *arguments: str) -> str:
    line = [sys.executable, "-m", f"jaxtrain.{module}", *arguments]
    done = subprocess.run(line, cwd=ROOT, env={**os.environ, **QUICK}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_smoke_preset_from_data_to_table(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    run("main", "--config", f"{CONFIG}:smoke", "--workdir", str(workdir), "--config.train.duration=70st", "--config.loss.curriculum=true",
        "--config.data.augment=true")  # fmt: skip
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["parameters"] == 38_959
    assert set(summary["naive"]) == {"majority", "mean", "identity", "table", "wiener"}
    assert summary["best"]["metric"] == "valid/f1_macro" and summary["oracle"]["scores"]["latency_mae_ms"] < 0.12
    test = summary["test"]
    assert test["gain_db"] > 0 and test["gain_db/low"] < test["gain_db"] < test["gain_db/high"] and "patient_f1_macro" in test
    assert {p.stem for p in (workdir / "figures").glob("*.png")} == {
        "records", "series", "latency_level", "existence", "error_by_fmp", "confusion",
    }  # fmt: skip

    clicks = write(tmp_path / "clicks.parquet")
    said = run("evaluate", "--workdir", str(workdir), "--input", clicks, "--output", str(tmp_path / "scores.json"))
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert "gain_corrected_db" in said and scores["examples"] == 24 and "gain_corrected_db" in scores["scores"]["wiener"]
    out = tmp_path / "out.parquet"
    said = run("predict", "--workdir", str(workdir), "--input", clicks, "--output", str(out))
    table = pq.read_table(out)
    assert table.num_rows == 12 and len(table["denoised_uv"][0].as_py()) == 200 and "series beside it" in said
    assert pq.read_table(tmp_path / "out.series.parquet").num_rows == 2
    bare = tmp_path / "bare.csv"
    run("predict", "--workdir", str(workdir), "--input", clicks, "--output", str(bare), "--option", "statics=none")
    plain = np.load(tmp_path / "bare.npz")["denoised_uv"]
    assert np.abs(plain - np.array(table["denoised_uv"].to_pylist())).max() > 1e-4
    by_hand = jaxtrain.load(workdir).predict(np.array(pq.read_table(clicks)["signal"].to_pylist()))
    assert by_hand["denoised_uv"].shape == (12, 200)


@pytest.mark.long
def test_drawing_waveforms_from_training_to_file(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    run("main", "--config", f"{CONFIG}:generate+smoke", "--workdir", str(workdir))
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["test"]["v_mse"] < summary["naive"]["zero"]["v_mse"]
    assert "frechet" not in summary["test"] and summary["more"]["samples"]["test"]["frechet"] > 0
    assert {p.stem for p in (workdir / "figures").glob("*.png")} == {"mean_waves", "samples", "guidance"}
    ask = tmp_path / "ask.json"
    ask.write_text('[{"patient_id": "a", "static": [0, 60, null, 1.5], "class": "SNIK"}]')
    out = tmp_path / "out.parquet"
    run("predict", "--workdir", str(workdir), "--input", str(ask), "--output", str(out), "--option", "count=3", "--option", "guidance=1")
    assert pq.read_table(out).num_rows == 3
    assert "frechet_floor" in run("evaluate", "--workdir", str(workdir), "--split", "samples")
