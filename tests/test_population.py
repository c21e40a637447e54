"""`jaxtrain.population`: members trained together are the runs that their configs describe, whole or interrupted."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sixth_problem
from sixth_problem import assert_same, checkpoint, rows, summary

from jaxtrain import population as command_line
from jaxtrain.engine import population
from jaxtrain.engine.clock import Stop
from jaxtrain.engine.run import open_run
from jaxtrain.engine.train import train_and_test
from jaxtrain.errors import UserError

# Adam turns the rounding noise of a gradient that is zero (the bias before a batch norm) into full steps: sgd keeps it noise.
SHORT = {"train__duration": "40st", "optimizer__decay": "40st", "eval__every": "10st", "optimizer__name": "sgd", "optimizer__lr": 0.05}


@pytest.fixture(scope="module", params=["together", "in turn"])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A whole population; while its tests run, others go through their steps as it does."""
    folder = tmp_path_factory.mktemp("population")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in turn":
            patch.setattr(population.steps, "BUSY", -1.0)
        population.train_population(sixth_problem.values(**SHORT), 3, (), folder)
        yield folder


@pytest.mark.parametrize("seed", [0, 2])
def test_a_member_equals_the_lone_run_of_its_seed(together: Path, tmp_path: Path, seed: int) -> None:
    train_and_test(sixth_problem.values(**SHORT, train__seed=seed), tmp_path / "lone")
    member = together / f"seed-{seed}"
    ours, theirs = rows(member), rows(tmp_path / "lone")
    assert [r.keys() for r in ours] == [r.keys() for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name, value in a.items():
            assert value == (pytest.approx(b[name], rel=1e-5, abs=1e-6) if isinstance(value, float) else b[name]), (a["step"], name)
    assert_same(checkpoint(member / "checkpoints"), checkpoint(tmp_path / "lone" / "checkpoints"), 1e-5)
    assert json.loads((member / "config.json").read_text()) == json.loads((tmp_path / "lone" / "config.json").read_text())
    assert summary(member)["test"] == pytest.approx(summary(tmp_path / "lone")["test"], rel=1e-5)
    assert summary(member)["naive"] == summary(tmp_path / "lone")["naive"]


def test_members_differ_and_the_table_says_by_how_much(together: Path) -> None:
    found = json.loads((together / "population.json").read_text())
    values = [found["members"][f"seed-{i}"]["mae"] for i in range(3)]
    assert len(set(values)) == 3
    assert found["mean"]["mae"] == pytest.approx(np.mean(values))
    assert found["standard_deviation"]["mae"] == pytest.approx(np.std(values, ddof=1))
    lines = [line.split()[0] for line in population.render(found).splitlines()[1:7]]
    assert lines == ["seed-0", "seed-1", "seed-2", "mean", "standard", "last"]


def test_a_member_is_an_ordinary_run(together: Path) -> None:
    run = open_run(together / "seed-1")
    assert run.step == summary(together / "seed-1")["tested_step"]
    assert summary(together / "seed-1")["status"] == "finished"


def test_an_interrupted_population_ends_bit_for_bit_where_a_whole_one_ends(
    together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatches = iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "asked", lambda self: next(dispatches) >= 5)
        assert population.train_population(sixth_problem.values(**SHORT), 3, (), tmp_path / "run") is None
    assert 0 < summary(tmp_path / "run" / "seed-0")["steps"] < 40
    population.train_population(sixth_problem.values(**SHORT), 3, (), tmp_path / "run")
    for name in ("seed-0", "seed-1", "seed-2"):
        assert_same(checkpoint(tmp_path / "run" / name / "checkpoints"), checkpoint(together / name / "checkpoints"))
        assert rows(tmp_path / "run" / name) == rows(together / name)
        assert summary(tmp_path / "run" / name)["test"] == summary(together / name)["test"]


def newest(run: Path) -> int:
    return max(int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit())


def test_a_kill_between_two_saves_goes_back_to_the_step_that_all_have(
    together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = population.Checkpoints.save, iter(range(100))

    def killed(self: population.Checkpoints, *arguments: object) -> None:
        if next(calls) == 4:  # the second evaluation: the first member has saved it, the second has not
            raise KeyboardInterrupt
        save(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(population.Checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            population.train_population(sixth_problem.values(**SHORT), 3, (), tmp_path / "run")
    assert [newest(tmp_path / "run" / f"seed-{i}") for i in range(3)] == [20, 10, 10]
    population.train_population(sixth_problem.values(**SHORT), 3, (), tmp_path / "run")
    for name in ("seed-0", "seed-1", "seed-2"):
        assert_same(checkpoint(tmp_path / "run" / name / "checkpoints"), checkpoint(together / name / "checkpoints"))


def test_a_member_that_patience_stops_keeps_its_step(tmp_path: Path) -> None:
    more = {"train__patience": 2, "train__min_delta": 1e9}
    population.train_population(sixth_problem.values(**SHORT, **more), 2, (), tmp_path / "run")
    train_and_test(sixth_problem.values(**SHORT, **more), tmp_path / "lone")
    assert summary(tmp_path / "run" / "seed-0")["steps"] == summary(tmp_path / "lone")["steps"] < 40
    assert summary(tmp_path / "run" / "seed-0")["stopped_early"]


def test_learning_rates_share_the_seed(tmp_path: Path) -> None:
    short = {**SHORT, "optimizer__min_lr": 0.005}
    population.train_population(sixth_problem.values(**short), 2, (0.05, 0.01), tmp_path / "run")
    train_and_test(sixth_problem.values(**{**short, "optimizer__lr": 0.01, "optimizer__min_lr": 0.001}), tmp_path / "lone")
    assert_same(checkpoint(tmp_path / "run" / "lr-0.01" / "checkpoints"), checkpoint(tmp_path / "lone" / "checkpoints"), 1e-5)
    rates = [[r["train/lr"] for r in rows(tmp_path / "run" / name) if "train/lr" in r] for name in ("lr-0.05", "lr-0.01")]
    assert np.allclose(rates[0], 5 * np.asarray(rates[1]), rtol=1e-5)


def test_a_finished_population_trains_nothing_again(together: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "train_members", lambda *a, **k: pytest.fail("trained again"))
    found = population.train_population(sixth_problem.values(**SHORT), 3, (), together)
    assert found is not None and found["mean"] == json.loads((together / "population.json").read_text())["mean"]


def test_what_cannot_be_is_one_clear_line(together: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed-2, which is none of these 2 members"):
        population.train_population(sixth_problem.values(**SHORT), 2, (), together)
    with pytest.raises(UserError, match="a population trains configs of one phase, this one has 2"):
        population.train_population(sixth_problem.values("two"), 2, (), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    shutil.copytree(together, tmp_path / "other")
    with pytest.raises(UserError, match="belongs to a run with another config"):
        population.train_population(sixth_problem.values(**{**SHORT, "optimizer__lr": 0.1}), 3, (), tmp_path / "other")


@pytest.mark.parametrize("text, said", [("1e-3;2", "with commas"), ("0,1e-3", "above 0"), ("1e-3,0.001", "alike")])
def test_rates_that_are_none(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        command_line.parse_rates(text)


def test_the_command_wants_members_or_rates(command: sixth_problem.Command, tmp_path: Path) -> None:
    for more in ((), ("--members", "2", "--rates", "1e-3")):
        refused = command("population", "--config", "configs/tides.py", "--workdir", tmp_path / "run", *more, code=2)
        assert refused.err.splitlines() == ["error: name either --members N or --rates A,B,..."]
