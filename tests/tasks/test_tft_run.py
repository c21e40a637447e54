"""The shrunk preset from the command line: trained, scored, served, explained; every picture saved."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tft_case import CONFIG, TARGETS, task

from jaxtrain.data import fleet_synthetic
from jaxtrain.data.dataset import padded_rows
from jaxtrain.engine import config as configs
from jaxtrain.tasks import tft

ROOT = CONFIG.parents[1]
HORIZON_HOURS = 2


def run(module: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", f"jaxtrain.{module}", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def write(path: Path, *, future: bool) -> None:
    """The embedded servers as a file; with `future` the targets of the last two hours are still to come, and one server has a new name."""
    columns = fleet_synthetic.columns(task().config.data)
    late = columns.time > columns.time.max() - HORIZON_HOURS * 3600
    found = {"timestamp": columns.time.astype("datetime64[s]"), "server": np.array(columns.names)[columns.group].astype(object)}
    for name, values in columns.numbers.items():
        hidden = late if future and name in (*TARGETS, "upstream_cpu_percent") else np.zeros(len(late), bool)
        found[name] = pa.array(np.where(hidden, np.nan, values), from_pandas=True)
    for name, category in columns.categories.items():
        found[name] = pa.array([None if code == 0 else category.texts[code - 1] for code in category.codes])
    if future:
        found["server"][found["server"] == "generic_001"] = "joined_yesterday"
    pq.write_table(pa.table(found), path)


@pytest.mark.slow
def test_the_smoke_preset_from_data_to_table(tmp_path):
    workdir = tmp_path / "run"
    # With one step per call the training program is that of tests/test_configs.py: it may lie compiled.
    said = run("main", "--config", f"{CONFIG}:smoke", "--workdir", str(workdir), "--config.data.alerts={'cpu_percent': 50.0}",
               "--config.train.steps_per_call=1")  # fmt: skip
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["status"] == "finished" and "qrisk_50/cpu_percent" in said
    assert {"last", "day", "48h", "window", "train"} == set(summary["naive"])
    assert 0 < summary["skill"]["oracle"] < summary["skill"]["naive"]
    assert summary["best"]["metric"] == "valid/qrisk_mean" and "brier/cpu_percent" in summary["test"]
    assert {p.stem for p in (workdir / "figures").glob("*.png")} == {
        "forecasts", "qrisk_by_step", "reliability", "importance", "attention", "qrisk_by_place", "alerts",
    }  # fmt: skip

    write(tmp_path / "now.parquet", future=True)
    said = run("predict", "--workdir", str(workdir), "--input", str(tmp_path / "now.parquet"), "--output", str(tmp_path / "out.parquet"),
               "--option", "explain=true")  # fmt: skip
    assert "joined_yesterday" in said
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert len(table["q50"]) == 8 * 4 * 8 and set(table["note"]) == {"", "new group"}
    assert len(set(table["origin"])) == 1 and min(table["timestamp"]) == table["origin"][0]
    assert (np.diff([table[name] for name in ("q02", "q10", "q25", "q50", "q75", "q90", "q98")], axis=0) >= 0).all()
    weights = pq.read_table(tmp_path / "out.weights.parquet").to_pydict()
    assert np.sum(weights["weight"]) == pytest.approx(8 * 3, rel=1e-3)
    assert pq.read_table(tmp_path / "out.attention.parquet").num_rows == 8 * 4 * 32

    write(tmp_path / "full.parquet", future=False)
    said = run("evaluate", "--workdir", str(workdir), "--input", str(tmp_path / "full.parquet"), "--output", str(tmp_path / "scores.json"))
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert set(scores) == {"model", "last", "day", "48h", "window", "train"} and scores["model"]["qrisk_50"] > 0


@pytest.mark.slow
def test_naive_scores_of_the_real_machines_are_the_known_ones(shared):
    """Means of 900 s over August 2013, 32 steps ahead: the figures that the machines' page prints."""
    path = shared / "data" / "servers" / "bitbrains_2013_08.parquet"
    made = tft.make_task(configs.task_sections(configs.load(f"{CONFIG}:bitbrains15", {"data.path": str(path)})))
    found = made.splits()
    made = made.with_statistics(found.statistics)
    score = jax.jit(lambda b: {name: made.score_forecast(forecast, b) for name, forecast in made.naive(b).items()})
    test, sums = found.test, {}
    for rows, mask in padded_rows(test.index, 1024):
        for name, part in score({**test.gather(test.arrays, rows), "mask": mask}).items():
            for key, value in part.items():
                sums.setdefault(name, {})[key] = sums.get(name, {}).get(key, 0.0) + np.asarray(value, np.float64)
    known = {"last": (0.362, 0.396, 0.937, 1.036), "window": (0.474, 0.375, 0.718, 0.818), "week": (0.726, 0.547, 0.626, 0.984)}
    for name, expected in known.items():
        scores = made.summarize(sums[name])
        np.testing.assert_allclose([scores[f"qrisk_50/{target}"] for target in made.config.data.targets], expected, atol=6e-4, err_msg=name)
