"""Early stopping and the best step, from sequences of scores."""

import math
from dataclasses import replace
from typing import Any

import pytest

from jaxtrain.engine.config import ENGINE_SECTIONS, Engine
from jaxtrain.engine.standing import Standing, observe


def after(values: list[float], mode: str = "min", optimizer: dict[str, Any] | None = None, **train: Any) -> Standing:
    """The standing after evaluations at steps 10, 20, ...; it stops where patience ends."""
    sections: dict[str, Any] = {name: cls() for name, cls in ENGINE_SECTIONS.items()}
    sections["train"] = replace(sections["train"], **train)
    sections["optimizer"] = replace(sections["optimizer"], **(optimizer or {}))
    standing = Standing(0)
    for number, value in enumerate(values):
        standing = observe(standing, Engine(**sections), 10 * (number + 1), value, mode)
        if standing.stopped:
            break
    return standing


def test_patience_counts_evaluations_without_gain() -> None:
    values = [3.0, 2.0, 2.5, 2.1, 1.0, 2.0, 2.0, 2.0, 0.5]
    found = after(values, patience=3)
    assert (found.stopped, found.best_step, found.best_value, found.waited) == (True, 50, 1.0, 3)
    assert after(values, patience=4).best_step == 90
    assert not after([1.0] + [2.0] * 50).stopped  # 0 = never


def test_nothing_counts_against_a_rate_that_still_rises() -> None:
    sections: dict[str, Any] = {name: cls() for name, cls in ENGINE_SECTIONS.items()}
    sections["train"] = replace(sections["train"], patience=2)
    sections["optimizer"] = replace(sections["optimizer"], schedule="plateau", plateau_patience=0)
    standing = Standing(0)
    for step in range(1, 9):
        standing = observe(standing, Engine(**sections), step, 1.0 + step, "min", warming=step <= 6)
        assert standing.stopped == (step == 8) and (standing.plateau[0] == 1.0) == (step <= 7)
    assert standing.best_step == 1


def test_max_mode() -> None:
    found = after([0.1, 0.5, 0.4, 0.3, 0.9], mode="max", patience=2)
    assert (found.stopped, found.best_step, found.best_value) == (True, 20, 0.5)
    found = after([-3.0, -2.0, -1.0, -1.5], mode="max")
    assert (found.best_step, found.best_value) == (30, -1.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_small_gains_count_once_they_add_up_to_min_delta(sign: float) -> None:
    mode = "min" if sign > 0 else "max"
    creeping = [sign * (10 - 0.04 * i) for i in range(30)]  # 0.12 below the last gain at every third evaluation
    found = after(creeping, mode=mode, patience=3, min_delta=0.1)
    assert (found.stopped, found.best_step) == (False, 300)
    flat = [sign * (10 - 0.02 * i) for i in range(30)]  # 0.1 takes five evaluations
    found = after(flat, mode=mode, patience=3, min_delta=0.1)
    assert (found.stopped, found.best_step, found.waited) == (True, 40, 3)  # the best is the best all the same


def test_a_nan_is_never_a_gain() -> None:
    found = after([math.nan, math.nan, 4.0, math.nan, 5.0])
    assert (found.best_step, found.best_value, found.waited) == (30, 4.0, 2)
    found = after([math.nan] * 3, patience=3)
    assert (found.stopped, found.best_step) == (True, None)


def test_the_plateau_schedule_sees_the_same_scores_turned_to_lower_is_better() -> None:
    found = after([1.0, 2.0, 1.5, 1.5, 1.5], mode="max", optimizer={"schedule": "plateau", "plateau_patience": 2, "plateau_factor": 0.1})
    assert found.plateau == (0.1, -2.0, 0)
