"""Batches of a rail line: what gather hands over, what is masked, and what the training days alone may teach."""

import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from headway_lines import config, line

from jaxtrain.data import headway
from jaxtrain.data.headway_statistics import check_known, saved_plan, training_statistics, travel_minutes
from jaxtrain.data.headway_synthetic import embedded_stations, tables, world
from jaxtrain.errors import UserError

SMALL = config(synthetic=(8, 6, 3), cuts=(0.5, 0.7))


@pytest.fixture(scope="module")
def found():
    return headway.splits(SMALL)


def test_a_batch_holds_the_rows_of_its_windows(found):
    arrays, rows = found.test.arrays, found.test.index[[0, 40, -1]]
    batch = found.test.gather(arrays, rows)
    assert {name: (value.shape, str(value.dtype)) for name, value in batch.items()} == {
        "headway": ((3, 30, 8, 2), "float32"), "headway_known": ((3, 30, 8, 2), "bool"),
        "age": ((3, 30, 8, 2), "float32"), "age_known": ((3, 30, 8, 2), "bool"),
        "planned": ((3, 15, 2, 1), "float32"), "planned_known": ((3, 15, 2, 1), "bool"),
        "target": ((3, 15, 8, 2), "float32"), "target_known": ((3, 15, 8, 2), "bool"), "when": ((3, 2), "int32"),
    }  # fmt: skip
    for example, (start,) in enumerate(rows):
        past, future = slice(start, start + 30), slice(start + 30, start + 45)
        for name in ("headway", "headway_known", "age", "age_known"):
            np.testing.assert_array_equal(batch[name][example], arrays[name][past])
        for name in ("planned", "planned_known"):
            np.testing.assert_array_equal(batch[name][example], arrays[name][future])
        np.testing.assert_array_equal(batch["target"][example], arrays["headway"][future])
        np.testing.assert_array_equal(batch["target_known"][example], arrays["headway_known"][future])
        assert batch["when"][example].tolist() == [arrays["day_type"][start + 30], arrays["minute"][start + 30]]


def test_only_inputs_and_target_are_handed_over(found):
    only = headway.splits(replace(SMALL, inputs=("headway",), target="age"))
    batch = only.test.gather(only.test.arrays, only.test.index[:2])
    np.testing.assert_array_equal(batch["target"][0], only.test.arrays["age"][only.test.index[0, 0] + 30 :][:15])
    assert {"headway", "age"} <= set(batch), "the target's history is needed for what is copied from it"
    alone = headway.splits(replace(SMALL, inputs=("headway",)))
    assert "age" not in alone.train.arrays and "age" not in alone.train.gather(alone.train.arrays, alone.train.index[:1])


def test_numpy_and_jax_gather_the_same_batch(found):
    rows = found.train.index[::777]
    arrays = {name: jnp.asarray(value) for name, value in found.train.arrays.items()}
    inside = jax.jit(found.train.gather)(arrays, rows)
    for name, value in found.train.gather(found.train.arrays, rows).items():
        np.testing.assert_array_equal(value, inside[name], err_msg=name)


def test_a_batch_of_the_full_line_gathers_quickly():
    made = line(2, stations=66)
    arrays = headway.shared_arrays(config(), made)
    rows = np.random.default_rng(0).integers(0, 2 * 1440 - 45, (64, 1)).astype(np.int32)
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        headway.gather(arrays, rows, lookback=30, horizon=15, inputs=("headway", "age"), target="headway")
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 2e-3


def test_unobserved_minutes_are_masked_and_count_as_nothing(found):
    known = world(SMALL.synthetic)
    day = int(np.flatnonzero((known.outage[:, 1] > 0) & (np.arange(6) < 3))[0])
    row = day * 1440 + known.outage[day, 0] - 240
    arrays = found.train.arrays
    assert arrays["age_known"][row - 1].all() and not arrays["age_known"][row].any() and not arrays["headway_known"][row].any()
    assert (arrays["age"][~arrays["age_known"]] == 0).all() and (arrays["headway"][~arrays["headway_known"]] == 0).all()
    starts = found.train.index[:, 0]
    near = [int(s) for s in starts if s + 30 <= row < s + 45]
    assert near, "a window keeps its known targets"
    batch = found.train.gather(arrays, np.array([[near[0]]], np.int32))
    assert not batch["target_known"][0, row - near[0] - 30].any()
    # The mean of the training days is that of their known cells alone.
    rows = slice(0, 3 * 1440)
    mean = arrays["headway"][rows].astype(np.float64).sum() / arrays["headway_known"][rows].sum()
    assert found.statistics["mean"] == pytest.approx(mean, rel=1e-5)


def test_no_target_minute_is_in_two_splits_and_no_window_crosses_a_day(found):
    minutes = []
    for split in (found.train, found.valid, found.test):
        starts = split.index[:, 0]
        assert (starts // 1440 == (starts + 44) // 1440).all()
        minutes.append(set((starts[:, None] + 30 + np.arange(15)).ravel().tolist()))
    assert not (minutes[0] & minutes[1] or minutes[0] & minutes[2] or minutes[1] & minutes[2])


def test_statistics_come_from_the_training_days_alone(found, monkeypatch):
    whole = tables(SMALL)
    later = whole.day >= 3

    def disturbed(_):
        # Trains of valid and test days run slower and slower, and none runs at night.
        return replace(whole, time=whole.time + later * (whole.time % 3600) * 0.5)

    monkeypatch.setattr(headway, "embedded_tables", disturbed)
    changed = headway.splits(replace(SMALL, check_clock=False))
    assert not np.array_equal(changed.test.arrays["headway"], found.test.arrays["headway"])
    assert set(changed.statistics) == set(found.statistics)
    for name, value in found.statistics.items():
        np.testing.assert_array_equal(value, changed.statistics[name], err_msg=name)


def test_statistics_are_plain_arrays_with_the_run_in_them(found):
    statistics = found.statistics
    assert {name: np.shape(value) for name, value in statistics.items() if not name.startswith("plan_")} == {
        "mean": (), "place_mean": (8, 2), "clock_mean": (3, 24, 8, 2), "travel_minutes": (2, 8), "stations": (2, 8), "directions": (2,),
        "cap_minutes": (), "step_minutes": (),
    }  # fmt: skip
    assert all(np.asarray(value).dtype.kind in "fiUb" for value in statistics.values())
    plan = saved_plan(statistics)
    assert len(plan.timetable.minute) == 163 + 163 + 101 + 100 + 79 + 78 and plan.timetable.day_type.max() == 2
    assert plan.lag_origin.tolist() == ["s0", "s7"]


def test_means_by_place_and_hour():
    made = line(4, stations=2)
    training = made.day < 3  # Thursday, Friday, Saturday
    made.headway[made.day == 2] = np.nan
    found = training_statistics(config(), made, training)
    rows = (made.day < 2) & (made.minute // 60 == 5)
    np.testing.assert_allclose(found["clock_mean"][0, 5], made.headway[rows].mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["place_mean"], made.headway[made.day < 2].mean(0), rtol=1e-5)
    np.testing.assert_array_equal(found["clock_mean"][1, 5], found["place_mean"])  # a Saturday without values
    np.testing.assert_array_equal(found["clock_mean"][2], np.broadcast_to(found["place_mean"], (24, 2, 2)))


def test_travel_minutes_are_those_of_the_trains(found):
    known = world(SMALL.synthetic)
    ran = np.diff(known.arrival[:, :, :3], axis=1)  # three training days
    expected = np.nanmean(np.clip(ran, 0, 15), axis=(0, 2)).cumsum(0).T
    np.testing.assert_allclose(found.statistics["travel_minutes"][:, 1:], expected, rtol=1e-3)
    assert (found.statistics["travel_minutes"][:, 0] == 0).all()
    on_line = headway.splits(replace(SMALL, align="line")).statistics
    np.testing.assert_array_equal(on_line["travel_minutes"][1], found.statistics["travel_minutes"][1, ::-1])
    np.testing.assert_array_equal(on_line["stations"], np.stack([embedded_stations(SMALL.synthetic)] * 2))


def test_an_unknown_link_takes_the_usual_time():
    np.testing.assert_allclose(travel_minutes(config(), np.array([[2.0, np.nan, 4.0], [20.0, 0, 1]])), [[0, 2, 5, 9], [0, 15, 15, 16]])


def test_the_clock_channels_are_local_day_and_week():
    changed = replace(SMALL, clock=True)
    made = headway.splits(changed).train
    batch = made.gather(made.arrays, made.index[:1])
    minute = made.arrays["minute"][made.index[0, 0]] + 240
    day, week = 2 * np.pi * minute / 1440, 2 * np.pi * (3 * 1440 + minute) / 10080  # a Thursday
    np.testing.assert_allclose(batch["clock"][0, 0], [np.sin(day), np.cos(day), np.sin(week), np.cos(week)], atol=1e-5)


def test_dead_stations_are_named():
    field = np.random.default_rng(0).uniform(2, 9, (100, 3, 2))
    names = np.array([["a", "b", "c"], ["c", "b", "a"]])
    assert check_known(field, names, "x") == ()
    field[:95, 0, 1] = np.nan  # "c" of the other direction
    field[:, 1] = 5.0
    assert check_known(field, names, "x") == ("2 stations are constant or more than 90% unknown in training: b, c",)
    with pytest.raises(UserError, match="x: every station is constant or more than 90% unknown"):
        check_known(np.full((100, 3, 2), 5.0), names, "x")


def test_a_prepared_array_is_split_by_rows(tmp_path):
    whole = line(1, day_rows=900, stations=4, dated=False)
    np.save(tmp_path / "x.npy", whole.headway)
    np.save(tmp_path / "y.npy", whole.planned[..., 0])
    changed = config(path=str(tmp_path / "x.npy"), schedule=str(tmp_path / "y.npy"), inputs=("headway",))
    made = headway.splits(changed)
    assert [len(split) for split in (made.train, made.valid, made.test)] == [630 - 44, 135 - 44, 135 - 44]
    batch = made.test.gather(made.test.arrays, made.test.index[-1:])
    np.testing.assert_array_equal(batch["target"][0, :, :, 0], whole.headway[-15:, :, 0])
    np.testing.assert_array_equal(batch["target"][0, :, :, 1], whole.headway[-15:, ::-1, 1])
    np.testing.assert_array_equal(batch["planned"][0], whole.planned[-15:])
    assert made.statistics["travel_minutes"].shape == (2, 4) and "plan_minute" not in made.statistics


def test_folds_note_what_they_are_for():
    changed = replace(SMALL, split="blocked", folds=3, fold=1)
    assert any("later days" in note for note in headway.splits(changed).notes)
