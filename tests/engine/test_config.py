"""Config faults are one line that names key, value and remedy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sixth_problem
from sixth_problem import CONFIG

from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.bacth": "3"}, "--config.train.bacth: unknown key (did you mean 'batch'?)"),
        ({"trian.batch": "3"}, "--config.trian.batch: unknown key (did you mean"),
        ({"train": "3"}, "--config.train: is a section; set one of its keys"),
        ({"train.batch": "many"}, "--config.train.batch: expected int, got 'many'"),
        ({"train.batch": "3.5"}, "--config.train.batch: expected int"),
        ({"train.batch": "true"}, "--config.train.batch: expected int"),
        ({"optimizer.lr": "fast"}, "--config.optimizer.lr: expected float"),
        ({"optimizer.lr": "1e999"}, "config.optimizer.lr: expected float, got inf"),
        ({"report.figures": "1"}, "--config.report.figures: expected bool"),
        ({"train.batch": "0"}, "config.train.batch: must be at least 1, got 0"),
        ({"optimizer.lr": "-1"}, "config.optimizer.lr: must be at least 0"),
        ({"train.duration": "10"}, "config.train.duration: '10' is not a duration; write epochs as \"10ep\" or steps as \"500st\""),
        ({"train.duration": "10 epochs"}, "is not a duration"),
        ({"train.duration": "-1ep"}, "is not a duration"),
        ({"train.duration": "0st"}, "config.train.duration: must be more than nothing"),
        ({"eval.every": "0ep"}, "config.eval.every: must be more than nothing"),
        ({"optimizer.warmup": "1e3st"}, "config.optimizer.warmup: '1e3st' is not a duration"),
        ({"train.precision": "float16"}, "'float16' is not supported (float16 would need loss scaling and gains nothing over bfloat16)"),
        ({"train.precision": "bfloat"}, "(did you mean 'bfloat16'?)"),
        ({"train.placement": "gpu"}, "config.train.placement: 'gpu' is not supported (known: device, host)"),
        ({"train.accumulate": "5"}, "5 micro-batches do not divide train.batch 16"),
        ({"train.workers": "some"}, "config.train.workers: 'some' is neither"),
        ({"train.ema": "1.0"}, "config.train.ema: must lie in [0, 1), got 1.0"),
        ({"train.monitor": "mae"}, "write it as \"valid/mae\""),
        ({"optimizer.betas": "(0.9,)"}, "config.optimizer.betas: expected two numbers in [0, 1)"),
        ({"optimizer.betas": "(0.9, 1.0)"}, "config.optimizer.betas"),
        ({"optimizer.schedule": "cosin"}, "(did you mean 'cosine'?)"),
        ({"optimizer.restart_mult": "0.5"}, "config.optimizer.restart_mult: must be at least 1"),
    ],
)
def test_a_wrong_value_is_named(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        configs.load(str(CONFIG), overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_overrides_take_the_type_of_the_default() -> None:
    texts = {"optimizer.lr": "1", "optimizer.betas": "(0.8, 0.9)", "report.figures": "True", "data.path": "12", "train.workers": "3"}
    found = configs.load(str(CONFIG), texts)
    assert found["optimizer"]["lr"] == 1 and found["optimizer"]["betas"] == [0.8, 0.9]
    assert found["report"]["figures"] is True and found["data"]["path"] == "12"
    engine = configs.phases(found)[0].engine
    assert engine.train.workers == "3" and isinstance(engine.optimizer.lr, float) and engine.optimizer.betas == (0.8, 0.9)


def test_presets_join_and_overrides_come_last() -> None:
    found = sixth_problem.values("accumulate+host", train__accumulate=2)
    assert (found["train"]["accumulate"], found["train"]["placement"], found["preset"]) == (2, "host", "accumulate+host")
    with pytest.raises(UserError, match="unknown preset 'acumulate' .did you mean 'accumulate'"):
        sixth_problem.values("host+acumulate")


def phases(*parts: Any) -> list[configs.Phase]:
    return configs.phases({**sixth_problem.values(), "phases": list(parts)})


def test_a_phase_overrides_and_the_next_starts_from_the_base_again() -> None:
    first, second = phases(
        {"name": "a", "train": {"batch": 8}, "data": {"noise": 0.5}}, {"name": "b", "carry": "last", "optimizer": {"lr": 5.0}}
    )
    assert (first.engine.train.batch, first.task["data"]["noise"], first.carry) == (8, 0.5, "best")
    assert (second.engine.train.batch, second.engine.optimizer.lr, second.task["data"]["noise"], second.carry) == (16, 5.0, 0.1, "last")
    assert phases()[0].name == "train"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (({"train": {"batch": 8}},), "config.phases[0]: expected a section with a name"),
        (({"name": "a"}, {"name": "a"}), "every phase needs a name of its own, got a, a"),
        (({"name": "a", "model": {"width": 3}},), "config.phases[0].model: a phase carries the weights over"),
        (({"name": "a", "trian": {"batch": 8}},), "config.phases[0].trian: unknown section (did you mean 'train'?)"),
        (({"name": "a", "train": {"bach": 8}},), "config.phases[0].train.bach: unknown key (did you mean 'batch'?)"),
        (({"name": "a", "train": {"batch": "8"}},), "config.train.batch: expected int, got '8'"),
        (({"name": "a"}, {"name": "b", "carry": "all"}), "config.phases[1].carry: 'all' is not supported"),
        (({"name": "a/b"},), "config.phases[0].name"),
    ],
)
def test_a_wrong_phase_is_named(parts: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        phases(*parts)
    assert message in str(caught.value)


def test_durations() -> None:
    assert [configs.duration(t, 16.8, "x") for t in ("10ep", "0.5ep", "7st", "0st")] == [168, 8, 7, 0]


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Section:
    rate: float
    names: tuple[str, ...]
    pair: tuple[int, float]
    limit: float | None
    inner: Inner
    table: dict[str, int]


GOOD: dict[str, Any] = {"rate": 1, "names": ["a"], "pair": [1, 2], "limit": None, "inner": {"size": 3}, "table": {"x": 1}}


def test_a_section_becomes_its_dataclass() -> None:
    assert configs.section(Section, GOOD, "s") == Section(1.0, ("a",), (1, 2.0), None, Inner(3), {"x": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratee": 1}, "config.s.ratee: unknown key (did you mean 'rate'?)"),
        ({"rate": "1"}, "config.s.rate: expected float, got '1'"),
        ({"rate": float("nan")}, "config.s.rate: expected float, got nan"),
        ({"names": "abc"}, "config.s.names"),
        ({"pair": [1, 2, 3]}, "config.s.pair"),
        ({"limit": "no"}, "config.s.limit"),
        ({"inner": 3}, "config.s.inner: expected a section of keys, got 3"),
        ({"inner": {"size": True}}, "config.s.inner.size: expected int, got True"),
        ({"inner": {}}, "config.s.inner.size: missing"),
        ({"table": {"x": "1"}}, "config.s.table.x: expected int"),
    ],
)
def test_a_wrong_section_names_key_type_and_value(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        configs.section(Section, {**GOOD, **change}, "s")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("no.py", None, "not found"),
        ("a.py", "x = 1", "defines no get_config"),
        ("a.py", "raise ValueError('sic')", "cannot be read (ValueError: sic)"),
        ("a.txt", "x", "ends in .py or .json"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "{}", "not a resolved config (missing checkpoint, "),
        ("a.py", "from jaxtrain.engine.config import engine_defaults as get\ndef get_config(preset): return get()", "must set config.task"),
    ],
)
def test_a_wrong_config_file_is_named(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        configs.load(str(tmp_path / name), {})
    assert message in str(caught.value) and name in str(caught.value)


def test_differences_name_keys_by_their_whole_path() -> None:
    a, b = sixth_problem.values(), sixth_problem.values(train__batch=8, data__noise=0.3)
    assert configs.differences(a, b) == ["data.noise", "train.batch"]
    assert configs.differences(a, {**a, "more": 1}) == ["more"]
