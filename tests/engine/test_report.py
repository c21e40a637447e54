"""What TensorBoard is given: curves, learning rate, constant lines of the naive forecasts, figures."""

import struct
from collections import defaultdict
from pathlib import Path

import pytest
import sixth_problem
from sixth_problem import summary

from jaxtrain.engine.testing import render
from jaxtrain.engine.train import train_and_test


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """tag -> (step, value) of the event files directly in a folder; the value of an image is 0."""
    from tensorboardX.proto.event_pb2 import Event

    found = defaultdict(list)
    for path in sorted(folder.glob("events*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
            for value in event.summary.value:
                found[value.tag].append((event.step, value.simple_value))
    return dict(found)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    train_and_test(sixth_problem.values(report__tensorboard=True, report__figures=True), folder)
    return folder


def test_curves_and_the_learning_rate(workdir: Path) -> None:
    found = events(workdir / "tensorboard")
    steps = summary(workdir)["steps"]
    for tag in ("train/loss", "train/grad_norm", "train/lr", "valid/mae"):
        assert found[tag][-1][0] == steps, (tag, sorted(found))
    assert found["valid/mae"][-1][1] < found["valid/mae"][0][1]


def test_naive_scores_are_constant_lines_beside_the_models(workdir: Path) -> None:
    done = summary(workdir)
    for name in done["naive"]:
        lines = events(workdir / "tensorboard" / name)
        (first, low), (last, high) = lines["valid/mae"]
        assert (first, last) == (0, done["steps"]) and low == high > 0
    assert set(done["naive"]) == {p.name for p in (workdir / "tensorboard").iterdir() if p.is_dir()}


def test_further_splits_have_a_table_of_their_own() -> None:
    half = {"test": {"mae": 1.0}, "naive": {"worse": {"mae": 3.0}, "better": {"mae": 2.0}}}
    text = render({**half, "headline": ["mae", "r2"], "examples": {"test": 5, "rollout": 4}, "notes": ["so"], "more": {"rollout": half}})
    rows = [line.split() for line in text.splitlines()]
    assert [row[0] for row in rows] == ["test,", "model", "better", "worse", "rollout,", "model", "better", "worse", "note:"]
    assert rows[4][1] == "4" and "r2" not in text
