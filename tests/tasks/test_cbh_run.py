"""The shrunk preset from the command line: two phases, trained, scored, killed, served from a prepared flight."""

import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cbh_case import CONFIG
from sixth_problem import ROOT, Command, after_line, assert_same, checkpoint, rows, summary

from jaxtrain.data import clouds
from jaxtrain.engine import config as configs
from jaxtrain.engine.run import make_task

pytestmark = pytest.mark.slow
SMOKE = ("--config", f"{CONFIG}:smoke", "--config.train.steps_per_call=1")  # the program of tests/test_configs.py: it may lie compiled
PHASES = ("checkpoints/0-pretrain", "checkpoints/1-final")


@pytest.fixture(scope="module")
def command() -> Command:
    return Command(ROOT)


@pytest.fixture(scope="module")
def finished(command: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(run folder, what was printed) of a run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "smoke"
    said = command("main", *SMOKE, "--workdir", workdir)
    return workdir, said.out + said.err


def test_both_questions_are_answered_beside_the_references(finished):
    workdir, said = finished
    found = summary(workdir)
    assert (found["status"], found["steps"], found["tested_step"]) == ("finished", 4, 4)
    assert {"mean", "near", "last*", "ridge", "oracle"} <= set(found["naive"]) and "independent ones" in said
    assert found["best"]["metric"] == "valid/loss" and "mae_km/blocked" in said and "mae_km/flight/C" in said
    for scores in (found["test"], *found["naive"].values()):
        assert {"mae_km/blocked", "mae_km/flight", "r2/flight", "tier/flight"} <= set(scores)
    assert {"coverage_90/blocked", "coverage_90/transfer", "coverage_90/few"} <= set(found["test"])
    assert found["naive"]["mean"]["skill/flight"] == pytest.approx(0, abs=1e-5)
    assert {p.stem for p in (workdir / "figures").glob("*.png")} == {
        "truth", "flights", "residuals", "references", "windows", "heights", "frame_weights",
    }  # fmt: skip


def test_each_phase_counts_its_own_schedule_and_stop(finished):
    workdir, _ = finished
    lines = rows(workdir)
    rate = {line["step"]: line["train/lr"] for line in lines if "train/lr" in line}
    assert set(rate) == {2, 4} and rate[2] == pytest.approx(rate[4])  # of two steps each, the second after the warm-up
    assert {line["phase"] for line in lines if line["step"] <= 2} == {"pretrain"}
    metas = [json.loads((folder / str(step) / "meta" / "metadata").read_text()) for folder, step in _latest(workdir)]
    assert [meta["standing"]["first_step"] for meta in metas] == [0, 2]


def _latest(workdir: Path) -> list[tuple[Path, int]]:
    return [(workdir / phase, max(int(p.name) for p in (workdir / phase).iterdir() if p.name.isdigit())) for phase in PHASES]


@pytest.mark.parametrize("marker", ["pretrain step 1", "final step 3"])
def test_a_kill_inside_either_phase_changes_no_bit(command, finished, tmp_path, marker):
    process = command.start("main", *SMOKE, "--workdir", tmp_path / "run")
    assert after_line(process, marker)
    time.sleep(0.02)
    process.kill()
    process.communicate()
    assert_ends_the_same(command, finished[0], tmp_path / "run")


def test_a_kill_between_the_phases_changes_no_bit(command, finished, tmp_path):
    first, second = (tmp_path / "run" / phase for phase in PHASES)
    process = command.start("main", *SMOKE, "--workdir", tmp_path / "run")
    assert after_line(process, "pretrain step 2")
    while not (first / "2").exists() and process.poll() is None:  # renamed once it is complete
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert (first / "2").exists() and not (second / "3").exists()
    assert_ends_the_same(command, finished[0], tmp_path / "run")


def assert_ends_the_same(command: Command, finished: Path, workdir: Path) -> None:
    """The same command again ends where the run ended that was never interrupted."""
    command("main", *SMOKE, "--workdir", workdir, "--config.report.figures=false")
    for phase in PHASES:
        assert_same(checkpoint(workdir / phase), checkpoint(finished / phase))
    assert rows(workdir) == rows(finished)
    assert summary(workdir)["test"] == summary(finished)["test"]


def test_a_flight_is_served_and_scored(command, finished, tmp_path):
    workdir, _ = finished
    task = make_task("cbh", configs.phases(configs.load(SMOKE[1], {}))[-1].task)
    flight = next(f for f in clouds.read_flights(task.config.data) if f.name == "B")
    path = tmp_path / "new.npz"
    label = np.isfinite(flight.height_km)
    north = np.mod(flight.saa + flight.heading, 360)
    np.savez(path, frames=flight.frames, time=flight.time, sza=flight.sza, saa=north, heading=flight.heading,
             cloud_base_km=flight.height_km, mask=label)  # fmt: skip
    command("predict", "--workdir", workdir, "--input", path, "--output", tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert len(table["base_km"]) == len(flight) - 2 and set(table["flight"]) == {"new"}
    assert np.all(np.diff([table[f"{name}_km"] for name in ("low90", "low80", "base", "high80", "high90")], axis=0) >= 0)
    np.testing.assert_allclose(sum(np.array(table[f"weight_{t}"]) for t in (1, 2, 3)), 1, rtol=1e-5)
    command("predict", "--workdir", workdir, "--input", path, "--output", tmp_path / "own.csv", "--option", "calibrate=20",
            "--option", "every=7")  # fmt: skip
    assert len((tmp_path / "own.csv").read_text().splitlines()) < len(flight) // 2
    said = command("evaluate", "--workdir", workdir, "--input", path)
    assert "mae_km/flight" in said.out and "ridge" in said.out
    assert "mae_km/blocked" in command("evaluate", "--workdir", workdir).out


@pytest.mark.long
def test_every_flight_is_held_out_once(command, tmp_path):
    command("validate", "--config", f"{CONFIG}:smoke+honest", "--config.train.duration=2st", "--config.optimizer.decay=2st",
            "--config.report.figures=false", "--config.data.synthetic.label_factor=1.0", "--folds", "leave_one_out:2",
            "--workdir", tmp_path / "flights")  # fmt: skip
    found = json.loads((tmp_path / "flights" / "validation.json").read_text())
    assert [fold["name"] for fold in found["folds"]] == ["fold-A", "fold-B"]
    assert {"mae_km/blocked", "mae_km/flight"} <= set(found["mean"]["model"])
