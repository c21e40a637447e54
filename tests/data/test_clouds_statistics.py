"""Statistics see the training windows alone; references are what they say they are."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from clouds_problem import config

from jaxtrain.data import clouds
from jaxtrain.data import clouds_references as reference
from jaxtrain.data.clouds_synthetic import flights


@functools.cache
def default():
    return clouds.splits(config())


# What describes labels for the report, and the choice among three fits, may see held-out labels.
REPORT = ("label_lag1", "flight_labels")


def with_noise(monkeypatch, what):
    """The splits after every held-out frame, label or both became noise."""
    splits, rng = default(), np.random.default_rng(0)
    train = splits.train.index[:, :1] - 2 + np.arange(5)
    made = flights(config().synthetic)
    first = np.cumsum([0, *(len(flight) for flight in made)])
    noisy = []
    for flight, start in zip(made, first, strict=False):
        kept = np.isin(start + np.arange(len(flight)), train)
        labelled = np.isfinite(flight.height_km) & ~np.isin(start + np.arange(len(flight)), splits.train.index[:, 0])
        frames, height = flight.frames.copy(), flight.height_km.copy()
        if what == "frames":
            frames[~kept] = rng.normal(1000, 300, frames[~kept].shape)
        else:
            height[labelled] = rng.uniform(0.12, 1.95, labelled.sum())
        noisy.append(replace(flight, frames=frames, height_km=height))
    monkeypatch.setattr(clouds, "embedded_flights", lambda _: noisy)
    return clouds.splits(config())


@pytest.mark.parametrize("what", ["frames", "labels"])
def test_held_out_noise_changes_no_statistic(monkeypatch, what):
    before, after = default(), with_noise(monkeypatch, what)
    np.testing.assert_array_equal(before.train.index, after.train.index)
    for name, value in before.statistics.items():
        if name not in (*REPORT, "ridge_penalty"):
            np.testing.assert_array_equal(value, after.statistics[name], err_msg=name)
    rows = before.test.index[:, 0]
    column = reference.RIDGE if what == "frames" else reference.LAST
    assert not np.array_equal(before.test.arrays["reference_km"][rows, column], after.test.arrays["reference_km"][rows, column])


def test_training_noise_does_change_them(monkeypatch):
    made = [replace(flight, frames=flight.frames + 1, height_km=flight.height_km * 0.9) for flight in flights(config().synthetic)]
    monkeypatch.setattr(clouds, "embedded_flights", lambda _: made)
    before, after = default().statistics, clouds.splits(config(base_km=(0.05, 2.0))).statistics
    assert after["pixel_mean"] == pytest.approx(before["pixel_mean"] + 1, abs=1e-3)
    assert after["height_mean"] == pytest.approx(0.9 * before["height_mean"], rel=1e-5)
    assert not np.array_equal(after["ridge_coef"], before["ridge_coef"])


def test_values():
    splits = default()
    arrays, rows, found = splits.train.arrays, splits.train.index, splits.statistics
    frames = arrays["frames"][np.unique(rows[:, :1] - 2 + np.arange(5))].astype(np.float64)
    height, sun = arrays["height_km"][rows[:, 0]].astype(np.float64), arrays["sun"][rows[:, 0]].astype(np.float64)
    assert found["pixel_mean"] == pytest.approx(frames.mean()) and found["pixel_std"] == pytest.approx(frames.std())
    assert found["height_mean"] == pytest.approx(height.mean()) and found["height_std"] == pytest.approx(height.std())
    np.testing.assert_allclose(found["sun_mean"], sun.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found["sun_std"], sun.std(0), rtol=1e-12)
    assert np.isfinite(found["flight_pixel_mean"]).tolist() == [True, True, False, False, True]
    here = arrays["frames"][np.unique(rows[rows[:, 1] == 1, :1] - 2 + np.arange(5))].astype(np.float64)
    assert found["flight_pixel_mean"][1] == pytest.approx(here.mean()) and found["flight_pixel_std"][1] == pytest.approx(here.std())
    assert found["frame_shape"].tolist() == [16, 24] and found["flight_labels"].tolist() == [150, 49, 43, 30, 7]
    y = flights(config().synthetic)[0].height_km
    y = y[np.isfinite(y)].astype(np.float64)
    assert found["label_lag1"][0] == pytest.approx(np.corrcoef(y[1:], y[:-1])[0, 1])
    assert all(isinstance(value, np.ndarray) and value.dtype != object for value in found.values())


def test_near_is_the_nearest_other_training_label():
    time = np.array([0.0, 5, 10, 30, 33, 60])
    height = np.array([1.0, 2, 3, 4, 5, 6])
    train = np.array([True, False, True, False, True, False])
    assert reference.nearest_training(time, height, train, 0.5).tolist() == [3, 1, 1, 5, 3, 5]
    assert reference.nearest_training(time, height, np.zeros(6, bool), 0.5).tolist() == [0.5] * 6
    lonely = reference.nearest_training(time, height, time == 10, 0.5)
    assert lonely.tolist() == [3, 3, 0.5, 3, 3, 3]


def test_last_is_the_label_before_even_without_a_whole_window():
    c = config()
    flight = flights(c.synthetic)[1]
    labelled = np.flatnonzero(np.isfinite(flight.height_km))
    found = reference.previous_label(c, flight, labelled[[0, 1, 7]], 0.5)
    np.testing.assert_array_equal(found, [0.5, flight.height_km[labelled[0]], flight.height_km[labelled[6]]])


def test_references_of_the_rows():
    splits = default()
    arrays = splits.test.arrays
    ref = arrays["reference_km"]
    flight_rows = splits.test.index[splits.test.index[:, 2] >= 3, 0]
    assert (ref[flight_rows, reference.NEAR] == np.float32(splits.statistics["height_mean"])).all()
    blocked = splits.test.index[splits.test.index[:, 2] == 2, 0]
    near = ref[blocked, reference.NEAR]
    train = splits.train.index[splits.train.index[:, 1] == 0, 0]
    nearest = train[np.abs(arrays["time"][train][:, None] - arrays["time"][blocked]).argmin(0)]
    np.testing.assert_array_equal(near, arrays["height_km"][nearest])
    rows = splits.test.index[:, 0]
    oracle = np.abs(ref[rows, reference.ORACLE] - arrays["height_km"][rows])
    assert 0.01 < oracle.mean() < 0.04 and np.isnan(ref[rows, reference.BOOST]).all()
    rest = np.setdiff1d(np.arange(len(ref)), np.concatenate([splits.train.index, splits.valid.index, splits.test.index])[:, 0])
    assert np.isnan(ref[rest][:, reference.RIDGE]).all()


def test_window_statistics_by_hand():
    rng = np.random.default_rng(0)
    frames = rng.normal(5, 2, (3, 12, 14)).astype(np.float32)
    arrays = {"frames": frames, "sun": np.array([[0, 0], [60, 30], [0, 0]], np.float32)}
    found = reference.window_statistics(config(temporal_frames=3), arrays, np.array([1]))[0]
    x = frames[1].astype(np.float64)
    lap = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
    rough = [np.abs(np.diff(x, axis=0)).mean(), np.abs(np.diff(x, axis=1)).mean(), lap.std()]
    middle = x[2:10, 3:11]
    expected = [x.mean(), x.std()], rough, np.divide(rough, x.std()), [np.abs(frames[2] - frames[0]).mean()]
    tail = [middle.mean(), middle.std(), middle.min(), 0.5, np.sqrt(0.75) * np.cos(np.pi / 6), np.sqrt(0.75) * 0.5]
    assert found.shape == (22,)
    np.testing.assert_allclose(found[[0, 1, *range(9, 22)]], np.concatenate([*expected, tail]), rtol=1e-5)
    np.testing.assert_allclose(found[2:9], np.quantile(x, reference.LEVELS, method="nearest"), atol=0.1)
    alone = reference.window_statistics(config(temporal_frames=1), arrays, np.array([1]))[0]
    assert alone[15] == 0 and np.array_equal(np.delete(alone, 15), np.delete(found, 15))


def test_large_frames_are_averaged_first():
    image = np.arange(2 * 300 * 420, dtype=np.float32).reshape(2, 300, 420)
    small = reference.small(image)
    assert small.shape == (2, 75, 105)
    assert small[0, 0, 0] == pytest.approx(image[0, :4, :4].mean())
    assert reference.small(image[:, :8]).shape == (2, 8, 420)


def test_ridge_is_the_closed_form():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(3, 2, (60, 4)), rng.normal(0, 0.1, 60)
    y = x @ np.array([0.3, -0.2, 0, 0.1]) + 0.5 + noise
    train = np.arange(60) < 40
    fitted = reference.fit_ridge(x, y, train, ~train)
    z = (x[train] - x[train].mean(0)) / x[train].std(0)
    for k, penalty in enumerate(reference.PENALTIES):
        # The gradient of |z w + c - y|^2 + penalty |w|^2 is 0.
        rest = z @ fitted["ridge_coef"][k] + fitted["ridge_intercept"] - y[train]
        np.testing.assert_allclose(z.T @ rest + penalty * fitted["ridge_coef"][k], 0, atol=1e-9)
        assert abs(rest.sum()) < 1e-9
    errors = [np.abs(reference.predict_ridge({**fitted, "ridge_penalty": np.array(k)}, x[~train]) - y[~train]).mean() for k in range(3)]
    assert int(fitted["ridge_penalty"]) == int(np.argmin(errors))


def test_boost_says_what_to_install_or_forecasts():
    splits = clouds.splits(config(boost=True))
    rows = splits.test.index[:, 0]
    found = splits.test.arrays["reference_km"][rows, reference.BOOST]
    try:
        import sklearn  # noqa: F401
    except ImportError:
        assert np.isnan(found).all() and any("pip install scikit-learn" in note for note in splits.notes)
    else:
        assert np.isfinite(found).all() and found.std() > 0.01


@pytest.mark.slow
def test_reference_scores_of_five_seeds():
    """Mean absolute errors, km, in the order of the documented table; near is no better than the constant."""
    errors = {"blocked": [], "flight": []}
    for seed in range(5):
        splits = clouds.splits(config(seed=seed, size=(32, 48), factor=1.0, cycle_s=1200.0, gap_s=60.0))
        for question, roles in (("blocked", (2,)), ("flight", (4, 5, 6))):
            rows = splits.test.index[np.isin(splits.test.index[:, 2], roles), 0]
            known = splits.test.arrays["height_km"][rows][:, None]
            forecasts = splits.test.arrays["reference_km"][rows]
            forecasts = np.column_stack([np.full(len(rows), splits.statistics["height_mean"]), forecasts[:, [0, 1, 2, 4]]])
            errors[question].append(np.abs(forecasts - known).mean(0))
    blocked, flight = (np.mean(values, axis=0) for values in errors.values())
    np.testing.assert_allclose(blocked, [0.277, 0.302, 0.085, 0.142, 0.024], atol=0.003)
    np.testing.assert_allclose(flight, [0.347, 0.347, 0.103, 0.350, 0.024], atol=0.003)
    assert blocked[1] > blocked[0] and abs(flight[1] - flight[0]) < 1e-6
