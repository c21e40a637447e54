"""The course of a run against hand-made curves."""

import json
from pathlib import Path

import pytest

from jaxtrain.engine.course import course


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps({"phase": "final", **row}) + "\n" for row in rows))
    return path


def test_where_a_run_was_best_and_what_came_after(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", [
        {"step": 5, "phase": "pretrain", "valid/loss": 0.1}, {"step": 110, "train/loss": 0.9}, {"step": 120, "valid/loss": 0.7},
        {"step": 130, "train/loss": 0.4}, {"step": 140, "valid/loss": 0.5}, {"step": 160, "valid/loss": 0.9},
        {"step": 180, "valid/loss": 0.6},
    ])  # fmt: skip
    assert course(path, "final", "valid/loss", "min", 100, 20.0) == pytest.approx({
        "best_epoch": 2.0, "stop_epoch": 4.0, "epochs_after_best": 2.0, "largest_setback": 0.4, "train_valid_gap": 0.1,
    })  # fmt: skip


def test_a_score_that_grows_and_one_without_evaluations(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.jsonl", [{"step": 10, "valid/r2": 0.2}, {"step": 20, "valid/r2": 0.5}, {"step": 30, "valid/r2": 0.3}])
    found = course(path, "final", "valid/r2", "max", 0, 10.0)
    assert (found["best_epoch"], found["epochs_after_best"], found["largest_setback"]) == (2.0, 1.0, pytest.approx(0.2))
    assert "train_valid_gap" not in found
    assert course(path, "final", "valid/loss", "min", 0, 10.0) == {} == course(path, "pretrain", "valid/r2", "max", 0, 10.0)
