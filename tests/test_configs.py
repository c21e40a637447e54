"""Every shipped config, shrunk: it builds, trains, saves, goes on bit for bit, and padding changes no score."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from compiling import unoptimised
from sixth_problem import ROOT, assert_same, checkpoint, rows, summary

from jaxtrain.data.dataset import Dataset
from jaxtrain.engine import config as configs
from jaxtrain.engine import steps
from jaxtrain.engine.run import Run, open_run
from jaxtrain.engine.train import train_and_test

pytestmark = pytest.mark.slow
SYSTEMS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
FOUR_STEPS = {
    "train.duration": "4st", "train.steps_per_call": "1", "checkpoint.every": "2st",
    "checkpoint.keep_best": "2", "eval.every": "4st", "report.log_every": "1st", "report.figures": "false",
    "report.tensorboard": "false", "phases": "()",
}  # fmt: skip


def values(system: str) -> dict[str, Any]:
    return configs.load(f"{ROOT / 'configs' / system}.py:smoke", FOUR_STEPS)


@pytest.fixture(scope="module", params=SYSTEMS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    train_and_test(values(request.param), workdir)
    return request.param, workdir


@pytest.fixture(scope="module")
def opened(run: tuple[str, Path]) -> Run:
    """Where it was trained."""
    return open_run(run[1])


def test_a_short_run_is_scored_beside_naive_forecasts(run: tuple[str, Path]) -> None:
    done = summary(run[1])
    assert (done["status"], done["steps"], done["skipped_steps"]) == ("finished", 4, 0)
    losses = [row["train/loss"] for row in rows(run[1]) if "train/loss" in row]
    assert len(losses) == 4 and np.isfinite(losses).all()
    for name in done["headline"][:1]:
        assert np.isfinite(done["test"][name]) and any(name in scores for scores in done["naive"].values()), name


def test_a_run_cut_after_two_steps_ends_as_the_whole_one(run: tuple[str, Path], tmp_path: Path) -> None:
    system, whole = run
    cut = shutil.copytree(whole, tmp_path / "cut")
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "checkpoints" / "4")
    assert [p.name for p in (cut / "checkpoints").iterdir() if p.name.isdigit()] == ["2"]
    train_and_test(values(system), cut)
    assert_same(checkpoint(cut / "checkpoints"), checkpoint(whole / "checkpoints"))
    assert rows(cut) == rows(whole)
    assert json.dumps(summary(cut)["test"]) == json.dumps(summary(whole)["test"])


def test_padding_changes_no_score(opened: Run) -> None:
    task, valid = opened.task, opened.task.splits().valid
    call = steps.score_call(task, opened.template, None)
    some = valid.index[: min(4, len(valid))]
    padded = np.concatenate([some, valid.index[-3:]])
    sums = []
    for index, count in ((some, len(some)), (padded, len(some))):
        mask = (np.arange(len(index)) < count).astype(np.float32)
        batch = {**valid.gather(valid.arrays, index), "mask": mask}
        with unoptimised():
            sums.append(jax.device_get(call(opened.params, opened.model_state, None, batch)))
    assert sums[0].keys() == sums[1].keys()
    for name, value in sums[0].items():
        np.testing.assert_allclose(value, sums[1][name], rtol=2e-4, atol=1e-4, err_msg=name)
    assert task.summarize(sums[0])


def test_a_run_forecasts_alike_from_wherever_it_lies(run: tuple[str, Path], opened: Run, tmp_path: Path) -> None:
    there = shutil.copytree(run[1], tmp_path / "else" / "where")
    moved = open_run(there)
    test = opened.task.splits().test
    some = Dataset(test.arrays, test.index[:3], test.gather)
    a, b = opened.forecast(some), moved.forecast(some)
    assert a.keys() == b.keys() and any(value.dtype.kind == "f" and np.ptp(value) > 0 for value in a.values())
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)
