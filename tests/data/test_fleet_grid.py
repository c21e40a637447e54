"""The regular grid: holes, averages, causal filling, rows past the end of a file."""

import numpy as np
import pytest
from fleet_problem import START, config

from jaxtrain.data.fleet_grid import Category, Columns, build
from jaxtrain.errors import UserError

NAN = np.nan


def columns(steps, groups=None, numbers=None, status=None, names=("a", "b")):
    """One row per entry; status: codes of ("x", "y")."""
    group = np.zeros(len(steps), int) if groups is None else np.array(groups)
    categories = {"status": Category(np.array(status), ("x", "y"))} if status else {}
    values = {name: np.array(column, float) for name, column in (numbers or {}).items()}
    time = START + 300 * np.array(steps, np.int64)
    return Columns("rows", time, group, names[: group.max() + 1], values, categories, lambda row: f"row {row + 1}")


def test_holes_are_filled_from_the_past_for_some_steps_only():
    made = build(config(fill_steps=2), columns([0, 1, 5, 7], numbers={"cpu": [1, 2, 3, 4]}))
    np.testing.assert_array_equal(made.real[:, 0], [1, 2, 2, 2, NAN, 3, 3, 4])
    assert made.seen[:, 0].tolist() == [1, 1, 0, 0, 0, 1, 0, 1]
    assert made.row0.tolist() == [0, 8] and made.steps == 8


def test_nothing_is_filled_across_groups():
    made = build(config(), columns([3, 4, 0, 1], [0, 0, 1, 1], {"cpu": [1, 2, NAN, 3]}))
    np.testing.assert_array_equal(made.real[:, 0], [1, 2, NAN, 3])
    assert made.row0.tolist() == [0, 2, 4] and made.step0.tolist() == [3, 0] and made.start == START


def test_categories_are_filled_too():
    made = build(config(observed_categorical=("status",), fill_steps=1),
                 columns([0, 1, 2, 4], numbers={"cpu": [1, 1, 1, 1]}, status=[2, 0, 0, 1]))  # fmt: skip
    assert made.cat[:, 0].tolist() == [2, 2, 0, 0, 1] and made.vocabularies == {"status": ("x", "y")}


def test_averages_maxima_and_last_categories():
    settings = config(step_seconds=900, fill_steps=0, known_real=("plan",), observed_categorical=("status",))
    rows = columns([1, 2, 3, 4, 5, 6, 11, 12], numbers={"cpu": [1, 2, 3, NAN, 5, 6, 7, 8], "plan": [0, 1, NAN, NAN, 2, 0, 0, 1]},
                   status=[1, 2, 1, 0, 0, 0, 2, 1])  # fmt: skip
    made = build(settings, rows)
    # Bins of steps 0-2, 3-5, 6-8, 9-11, 12-14.
    np.testing.assert_array_equal(made.real[:, 0], [1.5, 4, 6, 7, 8])
    np.testing.assert_array_equal(made.real[:, 1], [1, 2, 0, 0, 1])
    assert made.seen[:, 0].tolist() == [1] * 5 and made.cat[:, 0].tolist() == [2, 1, 0, 2, 1]
    assert made.start == START and made.step_seconds == 900


def test_averages_stand_on_a_common_axis():
    rows = columns([4, 5, 6, 7, 8, 0, 1, 2, 3], [0] * 5 + [1] * 4, {"cpu": [1, 3, 5, 7, 9, 10, 20, 30, 40]})
    made = build(config(step_seconds=600), rows)
    np.testing.assert_array_equal(made.real[:, 0], [2, 6, 9, 15, 35])
    assert made.step0.tolist() == [2, 0] and made.row0.tolist() == [0, 3, 5] and made.steps == 5


def test_the_averages_of_random_rows():
    rng = np.random.default_rng(0)
    values = np.where(rng.random(60) < 0.5, NAN, rng.normal(size=60))
    made = build(config(step_seconds=1200, fill_steps=0), columns(range(60), numbers={"cpu": values}))
    bins = values.reshape(15, 4)
    enough = (~np.isnan(bins)).sum(axis=1) >= 2
    expected = [np.nanmean(b) if e else NAN for b, e in zip(bins, enough, strict=True)]
    np.testing.assert_allclose(made.real[:, 0], expected, rtol=1e-6)
    assert not enough.all() and enough.any()


def test_rows_in_any_order():
    rng = np.random.default_rng(1)
    steps, groups = np.tile(np.arange(9), 2), np.repeat([0, 1], 9)
    numbers = {"cpu": rng.normal(size=18)}
    expected = build(config(), columns(steps, groups, numbers))
    order = rng.permutation(18)
    made = build(config(), columns(steps[order], groups[order], {"cpu": numbers["cpu"][order]}))
    np.testing.assert_array_equal(made.real, expected.real)


KNOWN = {"known_real": ("plan",), "known_categorical": ("status",), "lags": (("cpu", 4),), "fill_steps": 1}


def test_a_fleet_is_extended_past_its_end():
    rows = columns([0, 1, 2, 3, 4, 0, 1], [0] * 5 + [1] * 2, {"cpu": [1, 2, 3, 4, NAN, 7, 8], "plan": [0, 0, 0, 0, 5, 1, 1]},
                   status=[1, 1, 1, 1, 2, 1, 1])  # fmt: skip
    made = build(config(**KNOWN), rows, extend=3)
    assert made.row0.tolist() == [0, 8, 13] and made.steps == 8
    np.testing.assert_array_equal(made.real[:8, 0], [1, 2, 3, 4, 4, NAN, NAN, NAN])
    np.testing.assert_array_equal(made.real[:8, 1], [0, 0, 0, 0, 5, NAN, NAN, NAN])
    np.testing.assert_array_equal(made.real[:8, 2], [NAN, NAN, NAN, NAN, 1, 2, 3, 4])
    assert made.seen[:, 0].tolist() == [1] * 4 + [0] * 4 + [1, 1, 0, 0, 0]
    assert made.cat[:, 0].tolist() == [1, 1, 1, 1, 2, 0, 0, 0, 1, 1, 0, 0, 0]


def test_known_defaults_stand_in_future_rows_the_file_lacks():
    rows = columns([0, 1, 2, 3, 4], numbers={"cpu": [1, NAN, 3, NAN, NAN], "plan": [0, NAN, 0, 9, NAN]}, status=[1, 0, 1, 2, 0])
    made = build(config(**KNOWN, known_default={"plan": 5.0, "status": "z"}), rows, extend=2)
    np.testing.assert_array_equal(made.real[:, 1], [0, 0, 0, 9, 5, 5, 5])
    assert made.vocabularies["status"] == ("x", "y", "z") and made.cat[:, 0].tolist() == [1, 1, 1, 2, 3, 3, 3]


def test_extending_an_averaged_fleet():
    made = build(config(step_seconds=600), columns(range(5), numbers={"cpu": [1, 3, 5, 7, 9]}), extend=2)
    np.testing.assert_array_equal(made.real[:, 0], [2, 6, 9, NAN, NAN])


def test_two_rows_that_differ_are_refused():
    with pytest.raises(UserError, match="row 2 and row 3 both give group a at 2025-01-06T00:05:00 UTC"):
        build(config(), columns([0, 1, 1], numbers={"cpu": [1, 2, 3]}))


def test_missing_values_of_copies_agree():
    rows = columns([0, 1, 1, 3], numbers={"cpu": [1, 2, 2, 4], "up": [0, NAN, NAN, 3]})
    made = build(config(fill_steps=0, observed_real=("up",)), rows)
    np.testing.assert_array_equal(made.real, [[1, 0], [2, NAN], [NAN, NAN], [4, 3]])
    assert made.row0.tolist() == [0, 4] and "1 rows that repeat another" in made.notes[0]
