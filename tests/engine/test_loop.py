"""Whole small runs in this process: early stopping, weights from another run, bad data, profile, frozen parameters."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sixth_problem
from sixth_problem import assert_same, checkpoint, rows, summary

import jaxtrain
from jaxtrain.engine.run import save_statistics
from jaxtrain.engine.train import check_statistics, train_and_test
from jaxtrain.errors import UserError


def run(workdir: Path, preset: str = "default", **overrides: Any) -> dict[str, Any]:
    return train_and_test(sixth_problem.values(preset, **overrides), workdir)


STILL = {"optimizer__lr": 0.0, "optimizer__weight_decay": 0.0, "model__norm": False, "model__dropout": 0.0}


def test_a_run_without_gain_stops_after_patience(tmp_path: Path) -> None:
    found = run(tmp_path / "run", **STILL, eval__every="5st", train__patience=2)
    assert (found["status"], found["stopped_early"], found["steps"]) == ("finished", True, 15)
    assert found["best"]["metric"] == "valid/mae" and [r["step"] for r in rows(tmp_path / "run") if "valid/mae" in r] == [5, 10, 15]
    assert run(tmp_path / "run", **STILL, eval__every="5st", train__patience=2)["steps"] == 15  # finished, not to be gone on with


def test_the_monitor_may_be_another_score_and_grow(tmp_path: Path) -> None:
    found = run(tmp_path / "run", train__monitor="valid/bias", train__monitor_mode="max", eval__every="10st")
    values = {r["step"]: r["valid/bias"] for r in rows(tmp_path / "run") if "valid/bias" in r}
    assert len(values) == 6 and found["best"]["metric"] == "valid/bias"
    assert found["best"]["value"] == max(values.values()) and values[found["best"]["step"]] == max(values.values())
    assert jaxtrain.load(tmp_path / "run").step == found["best"]["step"]


def test_the_last_weights_are_tested_and_served_on_request(tmp_path: Path) -> None:
    # The error falls while training: asked to grow, its best is an early one.
    changes = {"train__monitor": "valid/mae", "train__monitor_mode": "max", "eval__every": "10st"}
    best = run(tmp_path / "best", **changes)
    last = run(tmp_path / "last", train__select="last", **changes)
    assert best["tested_step"] == best["best"]["step"] == last["best"]["step"] < last["steps"] == last["tested_step"]
    assert jaxtrain.load(tmp_path / "last").step == last["steps"] and last["test"]["mae"] < best["test"]["mae"]


def test_init_from_starts_with_the_other_runs_weights(tmp_path: Path) -> None:
    run(tmp_path / "first")
    first = jaxtrain.load(tmp_path / "first")
    still = {"optimizer__lr": 0.0, "optimizer__weight_decay": 0.0, "train__duration": "1st", "init_from": tmp_path / "first"}
    (tmp_path / "second" / "checkpoints").mkdir(parents=True)  # killed once before it had saved anything
    (tmp_path / "second" / "config.json").write_text(json.dumps(sixth_problem.values(**still)))
    run(tmp_path / "second", **still)
    second = jaxtrain.load(tmp_path / "second")
    assert_same({k: np.asarray(v) for k, v in first.params.items()}, {k: np.asarray(v) for k, v in second.params.items()})
    # One batch on from the first run's averages, not from 1.
    np.testing.assert_allclose(np.asarray(second.model_state["norm/var"]), np.asarray(first.model_state["norm/var"]), rtol=0.1)
    assert np.abs(np.asarray(first.model_state["norm/var"]) - 1).max() > 0.5
    with pytest.raises(UserError, match=r"init_from .*inputs/kernel is \(24, 16\), expected \(24, 8\)"):
        run(tmp_path / "third", **still, model__width=8)
    assert not (tmp_path / "third").exists()


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """Levels with one infinite reading in the training part."""
    level = np.sin(np.arange(400)[:, None] / np.array([2.0, 3.0, 4.0]))
    level[150, 1] = np.inf
    np.savez(tmp_path / "levels.npz", level=level)
    return tmp_path / "levels.npz"


def test_bad_batches_are_skipped_and_counted(tmp_path: Path, spoiled: Path) -> None:
    values = sixth_problem.values(data__path=spoiled, train__batch=4, eval__batch=4)
    with np.errstate(invalid="ignore"):
        found = train_and_test(values, tmp_path / "run")
    assert 0 < found["skipped_steps"] < 30 and np.isfinite(found["test"]["mae"])
    assert max(r["train/skipped"] for r in rows(tmp_path / "run") if "train/skipped" in r) == found["skipped_steps"]
    assert all(np.isfinite(v).all() for v in checkpoint(tmp_path / "run" / "checkpoints").values())


def test_a_frozen_group_stays_and_the_rest_moves(tmp_path: Path) -> None:
    run(tmp_path / "start", optimizer__lr=0.0, optimizer__weight_decay=0.0, train__duration="1st")
    run(tmp_path / "run", groups__freeze="^inputs/", train__duration="10st")
    start, end = (jaxtrain.load(tmp_path / name).params for name in ("start", "run"))
    for name in start:
        assert (np.asarray(start[name]) == np.asarray(end[name])).all() == name.startswith("inputs/"), name


def test_the_profile_window_is_written(tmp_path: Path) -> None:
    found = run(tmp_path / "run", profile__start=10, profile__steps=5, train__duration="20st")
    traces = list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1 and traces[0].stat().st_size > 1000 and found["status"] == "finished"


def test_statistics_of_the_run_and_calibration_are_saved(tmp_path: Path) -> None:
    run(tmp_path / "run", train__duration="20st")
    with np.load(tmp_path / "run" / "statistics.npz") as saved:
        assert set(saved.files) == {"mean", "std", "spread"}
        assert saved["spread"] == pytest.approx(summary(tmp_path / "run")["valid"]["rmse"], rel=1e-6)


def test_weighted_sampling_trains_on_other_batches(tmp_path: Path) -> None:
    run(tmp_path / "even", train__duration="10st")
    run(tmp_path / "recent", "weighted", train__duration="10st")
    even, recent = ([r["train/loss"] for r in rows(tmp_path / name) if "train/loss" in r] for name in ("even", "recent"))
    assert len(even) == len(recent) == 2 and all(a != b for a, b in zip(even, recent, strict=True))


def test_statistics_of_a_run_may_differ_by_rounding_alone(tmp_path: Path) -> None:
    """Sums over the data are rounded otherwise on another number of cores; another number is other data."""
    first = {"mean": np.float32([0.1, -300.0, np.nan]), "names": np.array(["a", "b"])}
    save_statistics(tmp_path, first)
    check_statistics(tmp_path, {**first, "mean": np.float32([0.1, -300.0 * (1 + 2e-7), np.nan])}, True)
    for changed in (
        {"mean": np.float32([0.1, -300.01, np.nan])},
        {"mean": np.float32([0.101, -300.0, np.nan])},
        {"mean": np.float32([0.1, -300.0, 0.0])},
        {"mean": np.float32([0.1, -300.0])},
        {"names": np.array(["a", "c"])},
    ):
        with pytest.raises(UserError, match="the data changed"):
            check_statistics(tmp_path, first | changed, True)
