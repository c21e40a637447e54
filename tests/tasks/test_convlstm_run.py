"""The shrunk preset from the command line: trained, scored, rolled out, served under two plans; every variant once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from compiling import QUICK
from convlstm_case import CONFIG, task

import jaxtrain
from jaxtrain.data.headway_synthetic import tables

pytestmark = pytest.mark.slow
ROOT = CONFIG.parents[1]
DAY = "2025-01-06"  # the test day, a Monday


def run(module: str, *arguments: str) -> str:
    line = [sys.executable, "-m", f"jaxtrain.{module}", *arguments]
    done = subprocess.run(line, cwd=ROOT, env={**os.environ, **QUICK}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def write_arrivals(path: Path, until: str) -> str:
    found = tables(task().config.data)
    begin, end = (np.datetime64(f"{DAY}T{clock}", "s").astype(np.int64) for clock in ("04:00", until))
    lines = ["arrival_time,trip,station,direction,service_date"]
    for row in np.flatnonzero((found.time >= begin) & (found.time < end)):
        stamp = np.datetime64(round(found.time[row] * 1e6), "us")
        lines.append(f"{stamp}Z,t{found.trip[row]},{found.stations[found.station[row]]},{found.directions[found.direction[row]]},{DAY}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_the_smoke_preset_from_data_to_table(tmp_path):
    workdir = tmp_path / "run"
    said = run("main", "--config", f"{CONFIG}:quantile+smoke", "--workdir", str(workdir), "--config.score.rollout_minutes=(5, 10)",
               "--config.loss.auxiliary=0.3")  # fmt: skip
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["status"] == "finished" and "rmse_s/outbound" in said and "lines to pass" in said
    assert set(summary["naive"]) == {"mean", "clock", "hold", "advected", "advected_planned"}
    assert summary["best"]["metric"] == "valid/rmse_s" and 0 < summary["skill"]["oracle"] < summary["skill"]["naive"]
    rollout = summary["more"]["rollout"]
    assert rollout["test"]["rmse_s/block_5"] < rollout["test"]["rmse_s/block_10"] < rollout["naive"]["hold"]["rmse_s/block_10"]
    assert {p.stem for p in (workdir / "figures").glob("*.png")} == {
        "maps", "error_by_minute", "error_by_station", "density", "coverage", "entry", "copy_weights",
    }  # fmt: skip
    said = run("evaluate", "--workdir", str(workdir), "--split", "rollout")
    assert "rmse_s/block_10" in said

    arrivals = write_arrivals(tmp_path / "now.csv", "12:00")
    out = str(tmp_path / "out.parquet")
    said = run("predict", "--workdir", str(workdir), "--input", arrivals, "--output", out)
    table = pq.read_table(out).to_pydict()
    assert len(table["headway_minutes"]) == 5 * 6 * 2 and set(table["service_date"]) == {DAY}
    assert (np.diff([table[f"{name}_minutes"] for name in ("lower", "headway", "upper")], axis=0) >= 0).all()
    assert "own_plan_minutes" not in table

    statistics = jaxtrain.load(workdir).task.statistics
    lines = ["direction,origin,departure,day_type"]
    for direction, origin in zip(statistics["plan_lag_direction"], statistics["plan_lag_origin"], strict=True):
        lines += [f"{direction},{origin},{hour:02d}:{minute:02d},weekday" for hour in range(5, 24) for minute in range(0, 60, 20)]
    (tmp_path / "plan.csv").write_text("\n".join(lines) + "\n")
    run("predict", "--workdir", str(workdir), "--input", arrivals, "--output", out, "--option", f"timetable={tmp_path / 'plan.csv'}",
        "--option", "every=30", "--option", f"at={DAY}T10:00")  # fmt: skip
    table = {name: np.array(column) for name, column in pq.read_table(out).to_pydict().items()}
    assert sorted(set(table["issued_at"])) == [f"{DAY}T{clock}:00+00:00" for clock in ("10:00", "10:30", "11:00", "11:30")]
    np.testing.assert_allclose(table["change_minutes"], table["headway_minutes"] - table["own_plan_minutes"], atol=1e-5)
    assert set(table["planned_minutes"]) == {20.0} and table["change_minutes"].mean() > 0.1  # fewer trains: longer gaps

    scores = tmp_path / "scores.json"
    run("evaluate", "--workdir", str(workdir), "--input", arrivals, "--output", str(scores))
    assert json.loads(scores.read_text())["scores"]["model"]["rmse_s"] > 0


@pytest.mark.parametrize("preset", ["baseline", "track1", "paper", "conv3d", "attention", "gaussian", "age"])
def test_every_variant_trains_from_the_command_line(tmp_path, preset):
    run("main", "--config", f"{CONFIG}:{preset}+smoke", "--workdir", str(tmp_path / "run"), "--config.report.figures=false",
        "--config.train.duration=8st")  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["test"]["rmse_s"] < summary["naive"]["mean"]["rmse_s"] * 3
