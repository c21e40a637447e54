"""Windows, cycles and roles: nothing of one part reaches another."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from clouds_problem import config

from jaxtrain.data import clouds
from jaxtrain.data import clouds_splits as parts
from jaxtrain.data.clouds_synthetic import flights
from jaxtrain.errors import UserError

LABELS = (150, 49, 43, 30, 7)  # of the five flights at label_factor 0.3


@functools.cache
def default():
    return clouds.splits(config())


def windows(index, T):
    return index[:, :1] - T // 2 + np.arange(T)


@pytest.mark.parametrize("T", [5, 4, 3])
def test_parts_share_no_frame_and_keep_their_distance(T):
    c = config(temporal_frames=T)
    splits = clouds.splits(c) if T != 5 else default()
    rows = np.concatenate([splits.train.index, splits.valid.index, splits.test.index])
    time = splits.train.arrays["time"]
    assert sorted(set(rows[:, 2].tolist())) == [0, 1, 2, 3, 4, 5, 6]
    assert len(np.unique(rows[:, 0])) == len(rows)
    groups = [(0,), (1,), (2,), (3,), (4, 5, 6)]
    for a, b in itertools.combinations(groups, 2):
        one, other = (rows[np.isin(rows[:, 2], group)] for group in (a, b))
        assert not np.intersect1d(windows(one, T), windows(other, T)).size
        assert np.abs(time[one[:, 0]][:, None] - time[other[:, 0]]).min() > c.gap_s
    few, rest = (rows[rows[:, 2] == role, 0] for role in (parts.CALIBRATION, parts.TEST_FLIGHT))
    assert time[rest].min() - time[few].max() >= c.gap_s


def test_roles_follow_flights():
    splits = default()
    names = splits.statistics["flights"].tolist()
    assert names == list("ABCDE")
    rows = np.concatenate([splits.train.index, splits.valid.index, splits.test.index])
    roles = {name: set(rows[rows[:, 1] == k, 2].tolist()) for k, name in enumerate(names)}
    assert roles == {"A": {0, 1, 2}, "B": {0}, "C": {4, 5, 6}, "D": {3}, "E": {0}}  # B and E are shorter than 600 s
    assert (rows[:, 1] == 2).sum() == LABELS[2] and (rows[:, 2] == parts.CALIBRATION).sum() == LABELS[2] // 3
    assert (splits.train.index[:, 2] == 0).all() and set(splits.valid.index[:, 2].tolist()) == {1, 3}
    assert splits.train.weights is None


def test_cycles_are_cut_as_documented():
    c = config(cycle_s=1000.0, gap_s=50.0)
    time = np.arange(0, 2400.0)  # two cycles of 1200
    role = parts.cycle_roles(c, time, (0.0, 2400.0))
    expected = np.full(1200, parts.UNUSED)
    expected[:690], expected[740:920], expected[970:1150] = 0, 1, 2
    np.testing.assert_array_equal(role, np.tile(expected, 2))
    assert (parts.cycle_roles(c, time[:590], (0.0, 590.0)) == 0).all()
    assert parts.cycle_roles(c, np.array([2400.0]), (0.0, 2400.0)) == parts.UNUSED


def test_the_first_labels_of_a_test_flight_calibrate():
    time = 10.0 * np.arange(60)
    role = parts.held_out_roles(5, 25.0, time)
    assert role.tolist() == [5] * 5 + [6] * 2 + [4] * 53
    assert (parts.held_out_roles(30, 25.0, time) == 5).sum() == 20  # at most a third
    assert (parts.held_out_roles(0, 25.0, time) == 4).all()


def test_windows_that_leave_cross_a_gap_or_lack_an_angle_are_dropped():
    c = config()
    flight = flights(c.synthetic)[1]
    labelled = np.flatnonzero(np.isfinite(flight.height_km))
    time, sza, saa = flight.time.copy(), flight.sza.copy(), flight.saa.copy()
    time[labelled[4] :] += 1  # between its frame before and itself
    sza[labelled[8]] = np.nan
    saa[labelled[9]] = np.nan
    height = flight.height_km.copy()
    height[[0, 1, len(flight) - 1]] = 0.5
    broken = replace(flight, time=time, sza=sza, saa=saa, height_km=height)
    found = parts.whole_windows(c, broken, parts.labelled_frames(c, broken))
    lost = {*labelled[[4, 8, 9]], 0, 1, len(flight) - 1}
    near_gap = {frame for frame in labelled if frame - 2 < labelled[4] <= frame + 2}
    assert set(found.centres) == set(labelled) - lost - near_gap
    assert found.dropped == {"leave the file": 3, "cross a gap": len(near_gap), "lack an angle": 2}
    only_zenith = parts.whole_windows(replace(c, angles="sza_only"), broken, parts.labelled_frames(c, broken))
    assert set(only_zenith.centres) - set(found.centres) == {labelled[9]}
    blind = parts.whole_windows(replace(c, angles="none"), broken, parts.labelled_frames(c, broken))
    assert set(blind.centres) - set(found.centres) == {labelled[8], labelled[9]}


def test_labels_outside_the_range_are_not_used():
    kept = clouds.splits(config(base_km=(0.5, 1.2), valid_rows="flight"))
    heights = np.concatenate([kept.train.arrays["height_km"][s.index[:, 0]] for s in (kept.train, kept.valid, kept.test)])
    assert 0.5 <= heights.min() and heights.max() <= 1.2 and len(heights) < sum(LABELS)


def test_valid_rows_and_train_flights_choose():
    blocked = clouds.splits(config(valid_rows="blocked", train_flights=("A",)))
    assert set(blocked.valid.index[:, 2].tolist()) == {1} and set(blocked.train.index[:, 1].tolist()) == {0}
    assert set(blocked.test.index[:, 1].tolist()) == {0, 2}  # B and E have no role at all
    flight = clouds.splits(config(valid_rows="flight"))
    assert set(flight.valid.index[:, 2].tolist()) == {3}


def test_overweighting_is_a_sampler():
    splits = clouds.splits(config(overweight_flight="A", overweight_factor=3.5))
    weights, flight = splits.train.weights, splits.train.index[:, 1]
    assert (weights[flight == 0] == 3.5).all() and (weights[flight != 0] == 1).all() and splits.valid.weights is None
    share = weights[flight == 0].sum() / weights.sum()
    assert f"flight A x 3.5: {share:.0%} of the training draws" in splits.notes


def test_an_even_window_has_one_more_frame_before_its_centre():
    splits = clouds.splits(config(temporal_frames=4, valid_rows="flight"))
    row = splits.test.index[5]
    frames = splits.test.gather(splits.test.arrays, row[None])["frames"][0]
    np.testing.assert_array_equal(frames, splits.test.arrays["frames"][row[0] - 2 : row[0] + 2])


def test_gather_is_the_window_on_numpy_and_on_jax():
    import jax

    splits = default()
    arrays, index = splits.train.arrays, splits.test.index[3:8]
    batch = splits.test.gather(arrays, index)
    for k, (frame, flight, role) in enumerate(index):
        np.testing.assert_array_equal(batch["frames"][k], arrays["frames"][frame - 2 : frame + 3])
        assert batch["sun"][k].tolist() == [arrays["sza"][frame], arrays["saa"][frame]]
        assert batch["height_km"][k] == arrays["height_km"][frame] and np.isfinite(batch["height_km"][k])
        assert (batch["flight"][k], batch["role"][k]) == (flight, role)
        np.testing.assert_array_equal(batch["reference_km"][k], arrays["reference_km"][frame])
    kinds = {"frames": (5, 16, 24), "sun": (2,), "height_km": (), "reference_km": (5,), "flight": (), "role": ()}
    assert {name: values.shape[1:] for name, values in batch.items()} == kinds
    again = jax.jit(splits.test.gather)({k: v for k, v in arrays.items() if k != "time"}, index)
    for name, values in batch.items():
        np.testing.assert_array_equal(again[name], values)
        assert again[name].dtype == values.dtype


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"valid_flight": "Z"}, "data.valid_flight: no flight is called 'Z' (known: A, B, C, D, E)"),
        ({"train_flights": ("A", "G")}, "data.train_flights: no flight is called 'G'"),
        ({"overweight_flight": "Z"}, "data.overweight_flight: no flight is called 'Z'"),
        ({"overweight_flight": "C"}, "overweight_flight: 'C' is held out"),
        ({"overweight_flight": "B", "train_flights": ("A",)}, "overweight_flight: 'B' is not among data.train_flights (A)"),
        ({"test_flight": "D"}, "valid_flight: 'D' is also data.test_flight"),
        ({"train_flights": ("A", "C")}, "train_flights: 'C' is held out by data.test_flight"),
        ({"train_flights": ("E",), "valid_rows": "flight"}, "7 training windows are fewer than 20"),
        ({"train_flights": ("B",)}, "no window is valid-blocked or test-blocked"),
        ({"gap_s": 4.0}, "parts would share frames"),
        ({"base_km": (2.0, 0.1)}, "holds no height"),
        ({"base_km": (100.0, 2000.0)}, "looks like metres"),
        ({"valid_rows": "all"}, "config.data.valid_rows: 'all' is not supported"),
        ({"reduce": 0}, "config.data.reduce: must be at least 1"),
        ({"cycle_s": 0.0}, "config.data.cycle_s: must be more than 0"),
        ({"rows": (40, 30)}, "config.data.rows"),
        ({"size": (4, 24)}, "synthetic.height: must be at least 8"),
        ({"extra": 22}, "synthetic.extra_flights"),
        ({"factor": 0.0}, "synthetic.label_factor"),
    ],
)
def test_faults_of_the_config(changes, says):
    with pytest.raises(UserError) as fault:
        clouds.splits(config(**changes))
    assert says in str(fault.value) and "\n" not in str(fault.value)
    if "windows are fewer" in says or "no window" in says:
        assert "data.cycle_s" in str(fault.value) and "data.gap_s" in str(fault.value)


def test_flight_names_give_the_spread_of_the_labels():
    names = clouds.flight_names(config())
    heights = {flight.name: flight.height_km[np.isfinite(flight.height_km)] for flight in flights(config().synthetic)}
    assert list(names) == list("ABCDE")
    for name, spread in names.items():
        assert spread == pytest.approx(heights[name].std(), rel=1e-5)
