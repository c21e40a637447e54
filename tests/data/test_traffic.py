"""Windows, splits, filling and statistics of the traffic data, against plain loops."""

import functools
import pickle
import timeit

import jax
import numpy as np
import pytest
from traffic_problem import config, readings, stamps, write_matrix

from jaxtrain.data import traffic
from jaxtrain.data.traffic_statistics import Calendar, damping, day_profile, fill_causally


@pytest.fixture(scope="module")
def embedded() -> traffic.Splits:
    return traffic.splits(config(), 0.5)


def test_gather_equals_a_plain_loop(embedded):
    data = embedded.train
    rows = np.random.default_rng(0).choice(data.index, 5)
    batch = data.gather(data.arrays, rows)
    a = data.arrays
    for b, t in enumerate(rows[:, 0]):
        for k in range(10):
            assert batch["slot"][b, k] == a["slot"][t + k] and batch["dow"][b, k] == a["dow"][t + k]
            if k < 6:
                np.testing.assert_array_equal(batch["speed"][b, k], a["speed"][t + k])
                np.testing.assert_array_equal(batch["observed"][b, k], a["observed"][t + k])
                np.testing.assert_array_equal(batch["weather"][b, k], a["weather"][t + k])
            else:
                for n in range(16):
                    seen = a["observed"][t + k, n]
                    assert batch["target"][b, k - 6, n] == (a["speed"][t + k, n] if seen else 0)
                    assert batch["target_mask"][b, k - 6, n] == seen
    shapes = {name: (array.shape[1:], array.dtype) for name, array in batch.items()}
    assert shapes == {
        "speed": ((6, 16), np.float32), "observed": ((6, 16), bool), "slot": ((10,), np.int32), "dow": ((10,), np.int32),
        "weather": ((6, 3), np.float32), "target": ((4, 16), np.float32), "target_mask": ((4, 16), np.float32),
    }  # fmt: skip


def test_gather_is_the_same_inside_jit(embedded):
    data = embedded.train
    rows = data.index[3:7]
    arrays = {name: array for name, array in data.arrays.items() if name != "time"}
    inside = jax.jit(data.gather)(arrays, rows)
    for name, value in data.gather(data.arrays, rows).items():
        assert inside[name].dtype == value.dtype
        np.testing.assert_array_equal(np.asarray(inside[name]), value)


def test_gather_is_picklable_and_quick():
    data = traffic.splits(config(in_steps=12, out_steps=12, synthetic=traffic.SyntheticConfig(64, 4, 0)), 0.5).train
    rows = np.random.default_rng(0).choice(data.index, 64)
    gather = pickle.loads(pickle.dumps(data.gather))
    np.testing.assert_array_equal(gather(data.arrays, rows)["target"], data.gather(data.arrays, rows)["target"])
    assert min(timeit.repeat(lambda: data.gather(data.arrays, rows), number=10, repeat=10)) / 10 < 1e-3


def test_arrays_are_shared_and_read_only(embedded):
    assert embedded.train.arrays is embedded.test.arrays
    for array in embedded.train.arrays.values():
        assert not array.flags.writeable and array.flags.c_contiguous


@pytest.mark.parametrize("gap", [None, 0, 2])
def test_time_split_keeps_targets_apart(gap):
    made = traffic.splits(config(gap_steps=gap), 0.5)
    cuts = [0, 806, 921, 1152]  # of 1,152 rows
    distance = 6 if gap is None else gap
    for k, data in enumerate((made.train, made.valid, made.test)):
        first, last = data.index[0, 0], data.index[-1, 0]
        assert first + 6 == max(cuts[k] + distance if k else 6, 6)
        assert last + 10 == cuts[k + 1]
        assert np.all(np.diff(data.index[:, 0]) == 1)


def test_statistics_ignore_everything_after_the_training_rows(tmp_path):
    values = readings(300)
    before = traffic.splits(config(path=write_matrix(tmp_path / "a.csv", values), start="2024-01-01"), 0.5).statistics
    values[210:] = 190
    after = traffic.splits(config(path=write_matrix(tmp_path / "b.csv", values), start="2024-01-01"), 0.5).statistics
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


def test_filling_is_causal_and_bounded(tmp_path):
    speed = readings(60, 2).astype(np.float32)
    speed[20:40, 0] = np.nan
    time = 300 * np.arange(60)
    settings = config(max_fill_minutes=30.0)
    profile = np.full((2, 288, 2), 7.0, np.float32)
    filled = fill_causally(speed, time, settings, {"profile": profile})
    np.testing.assert_array_equal(filled[20:26, 0], speed[19, 0])  # up to 30 minutes old
    np.testing.assert_array_equal(filled[26:40, 0], 7.0)
    np.testing.assert_array_equal(filled[np.isfinite(speed)], speed[np.isfinite(speed)])
    cut = speed.copy()
    cut[30:] = 99
    np.testing.assert_array_equal(fill_causally(cut, time, settings, {"profile": profile})[:30], filled[:30])
    assert fill_causally(speed, time, config(fill="profile"), {"profile": profile})[20, 0] == 7
    assert fill_causally(speed, time, config(fill="zero"), {"profile": profile})[20, 0] == 0


def test_profile_is_the_circular_mean_with_fallbacks():
    step, slots, reach = 1800, 48, 2
    time = np.arange(5 * slots, dtype=np.int64) * step + 3 * 86_400  # Sunday 1970-01-04 and the week after
    time = np.concatenate([time, time[:slots] + 6 * 86_400])  # a Saturday
    speed = readings(len(time), 2)
    speed[slots : 5 * slots : 3, 0] = np.nan
    speed[10:20, :] = np.nan
    speed[-slots:][10:20, :] = np.nan  # no weekend reading from slot 10 to 19
    days = Calendar.of(time, step)
    profile = day_profile(speed, days, slots, reach, np.array([1.0, 2.0]))
    for kind in range(2):
        for slot in range(slots):
            near = np.array([(slot + k) % slots for k in range(-reach, reach + 1)])
            own = speed[(days.kind == kind) & np.isin(days.slot, near)]
            both = speed[np.isin(days.slot, near)]
            for node in range(2):
                chosen = own if np.isfinite(own[:, node]).any() else both
                np.testing.assert_allclose(profile[kind, slot, node], np.nanmean(chosen[:, node]), rtol=1e-12)


def test_damping_leaves_the_day_out():
    settings = config(step_minutes=30.0, out_steps=3)
    slots = 48
    time = np.arange(16 * slots, dtype=np.int64) * 1800
    rng = np.random.default_rng(1)
    noise = np.zeros((len(time), 2))
    for t in range(1, len(time)):
        noise[t] = 0.8 * noise[t - 1] + rng.normal(0, 1, 2)
    speed = 40 + 10 * np.sin(2 * np.pi * time / 86_400)[:, None] + noise
    speed[rng.random(speed.shape) < 0.1] = np.nan
    days = Calendar.of(time, 1800)
    mean = np.nanmean(speed, axis=0)
    deviation = np.empty_like(speed)
    for day in np.unique(days.day):
        other = days.day != day
        rest = Calendar(days.slot[other], days.kind[other], days.day[other])
        profile = day_profile(speed[other], rest, slots, 2, mean)
        own = ~other
        deviation[own] = speed[own] - profile[days.kind[own], days.slot[own]]
    rho = damping(speed, days, settings, mean)
    for h in (1, 2, 3):
        a, b = deviation[:-h].ravel(), deviation[h:].ravel()
        both = np.isfinite(a) & np.isfinite(b)
        np.testing.assert_allclose(rho[h - 1], a[both] @ b[both] / (a[both] @ a[both]), rtol=1e-12)
    assert 0.7 < rho[0] < 0.85 and rho[0] > rho[1] > rho[2]


def test_scale_per_node_falls_back_to_all_nodes(tmp_path):
    values = readings(200)
    values[:, 1] = 30
    made = traffic.splits(config(path=write_matrix(tmp_path / "a.csv", values), start="2024-01-01", scale="node"), 0.5).statistics
    train = values[:140].astype(np.float32)
    np.testing.assert_allclose(made["speed_mean"], [train[:, 0].mean(), train.mean(), train[:, 2].mean()], rtol=1e-6)
    np.testing.assert_allclose(made["speed_std"], [train[:, 0].std(), train.std(), train[:, 2].std()], rtol=1e-5)


def test_notes_name_what_was_left_out(tmp_path):
    values = readings(200)
    values[:150, 1] = 0
    path = write_matrix(tmp_path / "a.csv", values, "east,west,north")
    made = traffic.splits(config(path=path, start="2024-01-01", split="windows"), 0.5)
    assert any("unobserved in training: west" in note for note in made.notes)
    assert any("no graph" in note for note in made.notes)
    assert any("share target rows" in note for note in made.notes)
    assert made.statistics["trained"].tolist() == [True, False, True]


def test_congestion_frequency_counts_readings_below_the_fraction(tmp_path):
    values = np.full((288 * 4, 1), 60.0)
    values[np.arange(288 * 4) % 288 < 12] = 20  # jammed in the first hour of every day
    made = traffic.splits(config(path=write_matrix(tmp_path / "a.csv", values), start="2024-01-01", fractions=(0.5, 0.25, 0.25)), 0.5)
    frequency = made.statistics["congestion_frequency"]
    assert made.statistics["free_flow"] == 60
    assert frequency[0, 5, 0] == 1 and frequency[0, 100, 0] == 0
    np.testing.assert_allclose(frequency[0, 12, 0], 3 / 7, rtol=1e-6)  # three of the seven slots around it


# What a finished run reads


@pytest.fixture
def run(tmp_path):
    """A finished run on named nodes: config, statistics, and the values it saw."""
    values = readings(200)
    path = write_matrix(tmp_path / "train.csv", values, "time,east,west,north", stamps(200))
    settings = config(path=path)
    return settings, traffic.splits(settings, 0.5).statistics


def test_inputs_reorder_nodes_and_reach_beyond_the_file(run, tmp_path):
    settings, statistics = run
    values = readings(8, seed=5)
    path = write_matrix(tmp_path / "new.csv", values, "time,north,east,west", stamps(8, start="2024-02-03T23:30"))
    data = traffic.inputs(settings, statistics, path)
    batch = data.gather(data.arrays, data.index)
    np.testing.assert_allclose(batch["speed"][0], values[2:, [1, 2, 0]], rtol=1e-6)
    assert data.index.tolist() == [[2]] and not batch["target_mask"].any() and not batch["target"].any()
    assert batch["slot"][0].tolist() == [284, 285, 286, 287, 0, 1, 2, 3, 4, 5]
    assert batch["dow"][0].tolist() == [5] * 4 + [6] * 6  # Saturday, Sunday
    times = data.arrays["time"][data.index[0, 0] + settings.in_steps - 1 :]
    assert [str(np.datetime64(int(t), "s")) for t in times[:2]] == ["2024-02-04T00:05:00", "2024-02-04T00:10:00"]


def test_inputs_take_named_origins(run, tmp_path):
    settings, statistics = run
    values = readings(20, seed=5)
    path = write_matrix(tmp_path / "new.csv", values, "time,east,west,north", stamps(20))
    data = traffic.inputs(settings, statistics, path, origins=("2024-01-01T00:25", "2024-01-01 01:00:00"))
    assert data.index.tolist() == [[0], [7]]
    inside = data.gather(data.arrays, data.index)
    np.testing.assert_allclose(inside["target"][1, 0], values[13], rtol=1e-6)


def test_labelled_inputs_are_every_window_of_the_file(run, tmp_path):
    settings, statistics = run
    path = write_matrix(tmp_path / "new.csv", readings(15), "time,east,west,north", stamps(15))
    data = traffic.inputs(settings, statistics, path, labelled=True)
    assert data.index[:, 0].tolist() == list(range(6))
    assert data.gather(data.arrays, data.index)["target_mask"].all()


def test_absent_nodes_can_be_masked(run, tmp_path):
    settings, statistics = run
    path = write_matrix(tmp_path / "new.csv", readings(8, 2), "time,north,east", stamps(8))
    data = traffic.inputs(settings, statistics, path, allow_missing=True)
    batch = data.gather(data.arrays, data.index)
    assert batch["observed"][0].all(axis=0).tolist() == [True, False, True]
    np.testing.assert_array_equal(batch["speed"][0, :, 1], statistics["profile"][0, batch["slot"][0, :6], 1])


def test_inputs_equal_the_windows_of_training(run):
    settings, statistics = run
    made = traffic.splits(settings, 0.5)
    data = traffic.inputs(settings, statistics, settings.path, labelled=True)
    for name, value in made.test.gather(made.test.arrays, made.test.index).items():
        np.testing.assert_array_equal(data.gather(data.arrays, made.test.index)[name], value)
    assert isinstance(data.gather, functools.partial)
