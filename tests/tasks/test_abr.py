"""The evoked-response task: presets, parameter groups, what the splits teach, faults."""

import re
from typing import Any

import numpy as np
import pytest
from abr_case import CONFIG, sections, splits, task
from flax import nnx

from jaxtrain.engine import config as configs
from jaxtrain.engine.optimizer import rules
from jaxtrain.engine.state import split
from jaxtrain.errors import UserError
from jaxtrain.tasks.abr import make_task

FULL, BASE = (64, 128, 256, 512), (64, 96, 128, 192)
# preset: channels, patients, valid share, batch, micro-batches, duration, rate, betas, schedule, warm-up, loss, average
PRESETS: dict[str, tuple[Any, ...]] = {
    "default": (FULL, 800, 0.20, 32, 1, "100ep", 1e-4, (0.9, 0.999), "warm_restarts", "0st", "mse", 0),
    "fast": (FULL, 800, 0.15, 128, 2, "50ep", 2e-4, (0.9, 0.95), "warm_restarts", "2ep", "huber", 0),
    "ultra_fast": (FULL, 800, 0.10, 512, 4, "25ep", 2e-4, (0.9, 0.95), "warm_restarts", "2ep", "huber", 0),
    "benchmark": (FULL, 2038, 0.15, 128, 2, "1ep", 2e-4, (0.9, 0.95), "warm_restarts", "2ep", "huber", 0),
    "full": (FULL, 2038, 0.20, 32, 1, "100ep", 1e-4, (0.9, 0.999), "warm_restarts", "0st", "mse", 0),
    "lean": (BASE, 800, 0.15, 64, 1, "40ep", 5e-4, (0.9, 0.98), "cosine", "2ep", "huber", 0.999),
    "generate": (BASE, 800, 0.15, 64, 1, "100ep", 2e-4, (0.9, 0.99), "cosine", "1000st", "mse", 0.999),
    "cpu": ((16, 24, 32, 48), 800, 0.15, 16, 1, "8ep", 2.5e-3, (0.9, 0.98), "cosine", "100st", "huber", 0.999),
    "demo": ((16, 24, 32, 48), 400, 0.15, 16, 1, "2ep", 2.5e-3, (0.9, 0.98), "cosine", "40st", "huber", 0.99),
    "smoke": ((8, 16), 60, 0.15, 16, 2, "1ep", 1e-3, (0.9, 0.95), "warm_restarts", "2st", "huber", 0),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_published_ones(preset):
    values = configs.load(f"{CONFIG}:{preset}", {})
    train, optimizer = values["train"], values["optimizer"]
    found = (
        tuple(values["model"]["channels"]), values["data"]["patients"], values["data"]["valid_fraction"], train["batch"],
        train["accumulate"], train["duration"], optimizer["lr"], tuple(optimizer["betas"]), optimizer["schedule"], optimizer["warmup"],
        values["loss"]["kind"], train["ema"],
    )  # fmt: skip
    assert found == PRESETS[preset]
    configs.phases(values)
    assert make_task(configs.task_sections(values)).generates == (preset == "generate")


def test_restarts_fall_where_they_were():
    for preset, wanted in (("default", (10, 30, 70)), ("fast", (7, 14.5, 25.75, 42.625)), ("ultra_fast", (7, 14.5))):
        optimizer = configs.load(f"{CONFIG}:{preset}", {})["optimizer"]
        period, at = float(optimizer["restart_period"][:-2]), float(re.sub("ep|st", "", optimizer["warmup"]))
        found = []
        for _ in wanted:
            at += period
            period *= optimizer["restart_mult"]
            found.append(at)
        assert tuple(found) == wanted


def test_patience_counts_the_epochs_that_it_should():
    for preset, epochs in (("default", 15), ("fast", 8), ("ultra_fast", 6), ("lean", 8), ("generate", 20), ("benchmark", 8), ("demo", 0)):
        values = configs.load(f"{CONFIG}:{preset}", {})
        assert values["train"]["patience"] * float(values["eval"]["every"][:-2]) == epochs, preset


def test_state_spaces_have_a_rate_of_their_own_and_no_decay():
    made = task(rates__s4="0.25")
    _, params, _ = split(nnx.eval_shape(lambda: made.build(nnx.Rngs(0))))
    found = rules(params, made.groups())
    slow = {path for path, rule in found.items() if rule.learning_rate == 0.25}
    assert slow == {path for path in params if path.endswith(("/ssm/log_dt", "/ssm/log_a", "/ssm/b"))} and len(slow) == 9
    decayed = {path for path, rule in found.items() if rule.weight_decay}
    assert decayed == {path for path in params if path.endswith(("/kernel", "/ssm/c"))}
    for preset in ("demo", "cpu"):
        values = configs.load(f"{CONFIG}:{preset}", {})
        assert values["rates"]["s4"] * values["optimizer"]["lr"] == pytest.approx(1e-3)


def test_what_is_monitored_follows_from_what_is_learned():
    assert task().monitor == ("valid/f1_macro", "max")
    assert task(loss__classes="0").monitor == ("valid/rmse_uv", "min")
    assert make_task(sections("generate+smoke")).monitor == ("valid/v_mse", "min")


def test_statistics_know_the_epoch_and_the_share_of_peaks():
    found = splits()
    known, record = found.statistics, found.train.index[:, 0]
    present, ok = (found.train.arrays[name][record] for name in ("present", "present_ok"))
    assert known["train_records"] == len(found.train) and known["present_share"] == pytest.approx(present[ok].mean(), rel=1e-5)


def test_one_class_cannot_be_told_apart(monkeypatch):
    made, found = task(), splits()
    monkeypatch.setattr("jaxtrain.data.evoked.splits", lambda data: found)
    monkeypatch.setitem(found.statistics, "class_share", np.array([1.0, 0, 0, 0, 0], np.float32))
    with pytest.raises(UserError, match="one class in the training records"):
        made.splits()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("rates"), "config.rates: missing"),
        (lambda s: s.update(more={}), "config.more: unknown section"),
        (lambda s: s["data"].update(patient=3), r"config.data.patient: unknown key \(did you mean 'patients'"),
        (lambda s: s["rates"].update(s4=0.0), "config.rates.s4"),
        (lambda s: s["score"].update(bootstraps=-1), "config.score.bootstraps"),
        (lambda s: s["model"].update(attention="flash"), "attention"),
    ],
)
def test_faults_of_the_config_are_one_line(change, says):
    values = sections()
    change(values)
    with pytest.raises(UserError, match=says):
        make_task(values)
