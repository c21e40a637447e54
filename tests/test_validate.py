"""`jaxtrain.validate`: every fold an ordinary run, one table beside the naive forecasts, and the same command goes on."""

import json

import pytest
import sixth_problem

from jaxtrain import validate as command_line
from jaxtrain.engine import config as configs
from jaxtrain.engine import folds
from jaxtrain.engine.run import make_task, open_run
from jaxtrain.errors import UserError

SHORT = {"train__duration": "10st", "optimizer__decay": "10st", "eval__every": "10st"}


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    return folder, folds.validate(sixth_problem.values(**SHORT), "walk_forward", 2, folder)


def test_every_fold_stands_beside_the_naive_forecasts(validated, capsys):
    folder, found = validated
    summaries = [sixth_problem.summary(folder / name) for name in ("fold-1", "fold-2")]
    for fold, summary in zip(found["folds"], summaries, strict=True):
        assert fold["scores"] == {"model": summary["test"], "last": summary["naive"]["last"]}
    values = [s["test"]["mae"] for s in summaries]
    assert values[0] != values[1]
    assert found["mean"]["model"]["mae"] == pytest.approx(sum(values) / 2)
    assert found["standard_deviation"]["model"]["mae"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert json.loads((folder / "validation.json").read_text())["mean"] == found["mean"]
    text = folds.render(found)
    assert [line.split()[0] for line in text.splitlines()[1:5]] == ["fold-1", "fold-1", "fold-2", "fold-2"]
    assert "mean  last" in text


def test_later_folds_learn_from_more(validated):
    folder, _ = validated
    sizes = [sixth_problem.summary(folder / name)["examples"]["train"] for name in ("fold-1", "fold-2")]
    assert sizes[0] < sizes[1]
    first, second = (open_run(folder / name) for name in ("fold-1", "fold-2"))
    assert (first.task.statistics["mean"] != second.task.statistics["mean"]).all(), "statistics anew in every fold"


def test_the_same_command_trains_nothing_again(validated, monkeypatch):
    folder, found = validated
    monkeypatch.setattr("jaxtrain.engine.train.train_phase", lambda *a, **k: pytest.fail("trained again"))
    assert folds.validate(sixth_problem.values(**SHORT), "walk_forward", 2, folder)["mean"] == found["mean"]


def test_other_folds_in_the_same_folder_are_refused(validated):
    folder, _ = validated
    with pytest.raises(UserError, match="fold-2.*belongs to a run with another config|another config"):
        folds.validate(sixth_problem.values(**SHORT), "walk_forward", 3, folder)
    (folder / "fold-3").mkdir()
    with pytest.raises(UserError, match="holds fold-3, which is none of these 2 folds"):
        folds.validate(sixth_problem.values(**SHORT), "walk_forward", 2, folder)
    (folder / "fold-3").rmdir()


@pytest.mark.parametrize("text, said", [
    ("rolling:3", "unknown kind"), ("blocked:1", "at least 2"), ("blocked:x", "at least 2"),
    ("walk_forwards", "did you mean 'walk_forward'"),
])  # fmt: skip
def test_a_wrong_kind_is_one_clear_line(text, said):
    with pytest.raises(UserError, match=said):
        command_line.parse_folds(text)


def test_kinds_that_a_system_lacks_are_named():
    values = sixth_problem.values()
    with pytest.raises(UserError, match="--folds leave_one_out: this system has walk_forward"):
        make_task(values["task"], configs.phases(values)[-1].task).folds("leave_one_out", None)


def test_the_command_parses_kind_and_number(command, tmp_path):
    finished = command("validate", "--config", "configs/tides.py", "--folds", "leave_one_out:3", code=2)
    assert finished.err.splitlines() == ["error: --folds leave_one_out: this system has walk_forward"]
