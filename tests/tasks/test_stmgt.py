"""The traffic task by hand, on the shrunk embedded network: configuration, a graph too large, operations per example."""

import dataclasses

import numpy as np
import pytest
from flax import nnx
from stmgt_case import sections, task

from jaxtrain.errors import UserError
from jaxtrain.tasks.stmgt import SECTIONS, make_task

PRESETS = ("default", "normalized_v1", "seed64", "seed128", "v3", "strong", "metr_la", "los", "hcmc", "demo", "smoke")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_a_task(preset):
    made = make_task(sections(preset))
    assert {f.name for f in dataclasses.fields(made.config)} == set(SECTIONS)
    assert made.headline[-4:] == ("rmse", "mape", "crps", "coverage_80") and made.headline[0].startswith("mae/")


def test_presets_join_left_to_right_and_unknown_ones_name_the_nearest():
    joined = sections("seed64+smoke")
    assert joined["model"]["width"] == 16 and joined["model"]["readout"] == "mean"
    with pytest.raises(UserError, match="did you mean 'hcmc'"):
        sections("hmcm")


@pytest.mark.parametrize(("key", "value", "message"), [
    ("score__horizons_minutes", "(10, 12)", "12 is no output step; possible are 5, 10, 15, 20"),
    ("score__horizons_minutes", "(25,)", "25 is no output step"),
    ("score__horizons_minutes", "()", "horizons_minutes: empty"),
    ("score__congestion_fraction", "1.5", "congestion_fraction"),
    ("score__quantiles", "(.5, .1)", "quantiles"),
    ("data__synthetic__seed", "-1", "synthetic.seed"),
    ("data__step_minutes", "0", "whole number of steps"),
    ("loss__crps", "0", "nothing ties the forecast"),
    ("loss__spread", "-1", "loss.spread"),
    ("augment__mask_nodes", "1", "mask_nodes"),
    ("augment__noise_std", "-.1", "noise_std"),
])  # fmt: skip
def test_faulty_values_are_one_line(key, value, message):
    with pytest.raises(UserError, match=message) as error:
        make_task(sections(**{key: value}))
    assert "\n" not in str(error.value)


def test_unknown_and_missing_sections_are_named():
    with pytest.raises(UserError, match="'scor'|config.scor"):
        make_task({**sections(), "scor": {}})
    with pytest.raises(UserError, match="config.loss: missing"):
        make_task({k: v for k, v in sections().items() if k != "loss"})


def test_attention_over_all_of_a_large_graph_is_refused():
    crowd = {"neighbors": np.zeros((1025, 2), np.int32)}
    with pytest.raises(UserError, match="'all' serves up to 1,024 nodes, the data has 1,025; set model.reach='neighbours' .*max_neighbors"):
        make_task(sections(model__spatial="dot", model__reach="all"), {**task().statistics, **crowd}).build(nnx.Rngs(0))
    assert make_task(sections(model__spatial="dot", model__reach="all"), task().statistics).build(nnx.Rngs(0)).nodes == 16


def test_flops_are_known_with_the_graph_only():
    assert make_task(sections()).flops_per_example() is None
    assert task().flops_per_example() == pytest.approx(3.5e6, rel=0.3)
