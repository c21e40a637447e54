"""Every sum against a plain loop over the elements that the mask leaves."""

import math

import jax
import numpy as np
import pytest

from jaxtrain.engine import metrics

RNG = np.random.default_rng(0)
SHAPE = (5, 3, 4)
TARGET = RNG.normal(50, 10, SHAPE).astype(np.float32)
FORECAST = TARGET + RNG.normal(1, 3, SHAPE).astype(np.float32)
MASK = (RNG.random(SHAPE) < 0.7).astype(np.float32)


def where_masked():
    return [index for index in np.ndindex(*SHAPE) if MASK[index] > 0]


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=tolerance, atol=1e-6)


def test_error_sums_per_horizon_equal_a_loop():
    sums = jax.jit(lambda f, t, m: metrics.error_sums(f, t, m, keep=(1,)))(FORECAST, TARGET, MASK)
    expected = {"n": np.zeros(3), "abs": np.zeros(3), "sq": np.zeros(3), "err": np.zeros(3)}
    for index in where_masked():
        error = float(FORECAST[index]) - float(TARGET[index])
        for name, value in {"n": 1, "abs": abs(error), "sq": error**2, "err": error}.items():
            expected[name][index[1]] += value
    for name, value in expected.items():
        assert sums[name].shape == (3,) and sums[name].dtype == np.float32
        close(sums[name], value)


def test_negative_axes_and_masks_of_leading_axes():
    rows = np.array([1, 0, 1, 1, 0], np.float32)
    close(metrics.total(TARGET, rows, keep=(-1,)), TARGET[rows > 0].sum((0, 1)))
    close(metrics.count(rows, SHAPE, keep=(1,)), [12, 12, 12])


def test_nan_under_mask_zero_is_ignored_and_elsewhere_is_not():
    hidden = np.where(MASK > 0, FORECAST, np.nan)
    close(metrics.error_sums(hidden, TARGET, MASK)["sq"], metrics.error_sums(FORECAST, TARGET, MASK)["sq"])
    hidden[where_masked()[0]] = np.nan
    assert np.isnan(metrics.error_sums(hidden, TARGET, MASK)["sq"])


def test_batches_add_up_to_the_whole():
    whole = metrics.error_sums(FORECAST, TARGET, MASK)
    parts = [metrics.error_sums(FORECAST[s], TARGET[s], MASK[s]) for s in (slice(0, 2), slice(2, 5))]
    for name, value in whole.items():
        close(float(parts[0][name]) + float(parts[1][name]), value)


def test_error_scores_equal_their_definitions():
    sums = {
        **metrics.error_sums(FORECAST, TARGET, MASK, keep=(1,)),
        **metrics.target_sums(TARGET, MASK, 50.0, keep=(1,)),
        **metrics.percentage_sums(FORECAST, TARGET, MASK, 45.0, keep=(1,)),
    }
    y = TARGET[MASK > 0].astype(np.float64)
    e = FORECAST[MASK > 0].astype(np.float64) - y
    scores = metrics.error_scores({name: np.asarray(value) for name, value in sums.items()})
    assert set(scores) == {"mae", "rmse", "bias", "r2", "mape"}
    close(scores["mae"], np.abs(e).mean())
    close(scores["rmse"], math.sqrt((e**2).mean()))
    close(scores["bias"], e.mean())
    close(scores["r2"], 1 - (e**2).sum() / ((y - y.mean()) ** 2).sum(), 1e-4)
    large = np.abs(y) > 45
    close(scores["mape"], 100 * np.abs(e[large] / y[large]).mean())


def test_r2_does_not_depend_on_the_center_and_survives_a_large_offset():
    y = (1e4 + TARGET).astype(np.float32)
    f = y + 1
    expected = 1 - 1 / y.astype(np.float64).var()
    sums = {**metrics.error_sums(f, y, np.ones(SHAPE)), **metrics.target_sums(y, np.ones(SHAPE), 1e4)}
    close(metrics.error_scores(sums)["r2"], expected, 1e-4)


def test_scores_without_anything_counted_are_absent():
    empty = np.zeros(SHAPE, np.float32)
    sums = {**metrics.error_sums(FORECAST, TARGET, empty), **metrics.target_sums(TARGET, empty),
            **metrics.percentage_sums(FORECAST, TARGET, empty, 0.0)}
    assert metrics.error_scores(sums) == {}
    assert metrics.divide(1.0, 0.0) is None and metrics.divide(1.0, 4.0) == 0.25
    assert metrics.present({"a": 1.0, "b": None}) == {"a": 1.0}


def test_percentage_sums_leave_out_small_targets():
    sums = metrics.percentage_sums(np.array([1.0, 3.0]), np.array([0.0, 2.0]), np.ones(2), 1e-3)
    assert (float(sums["ape"]), float(sums["ape_n"])) == (0.5, 1.0)


def test_pinball_equals_a_loop():
    levels = (0.1, 0.5, 0.9)
    quantiles = FORECAST[..., None] + np.array([-4.0, 0.0, 4.0], np.float32)
    expected = np.zeros((4, 3))
    for index in where_masked():
        for k, q in enumerate(levels):
            error = float(TARGET[index]) - float(quantiles[index][k])
            expected[index[2], k] += q * error if error > 0 else (q - 1) * error
    close(metrics.pinball_sums(quantiles, TARGET, MASK, levels, keep=(-1,)), expected)


def test_sample_crps_equals_all_pairs_and_approaches_the_gaussian():
    samples = RNG.normal(size=(2, 9, 3)).astype(np.float32)
    y = RNG.normal(size=(2, 3)).astype(np.float32)
    crps = metrics.sample_crps(samples, y)
    for b, p in np.ndindex(2, 3):
        x = samples[b, :, p]
        pairs = sum(abs(float(u) - float(v)) for u in x for v in x) / (9 * 8)
        close(crps[b, p], np.abs(x - y[b, p]).mean() - pairs / 2)
    many = RNG.normal(size=(1, 100_000)).astype(np.float32)
    assert abs(float(metrics.sample_crps(many, np.zeros(1, np.float32))[0]) - (2 / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi))) < 5e-3


def test_sample_pit_counts_ties_half():
    samples = np.array([[1.0, 2.0, 2.0, 3.0]])
    close(metrics.sample_pit(samples, np.array([2.0])), [0.5])
    close(metrics.sample_pit(samples, np.array([2.5])), [0.75])


def test_coverage_equals_quantile_intervals():
    pit = RNG.random(SHAPE).astype(np.float32)
    levels = (0.5, 0.8, 0.95)
    expected = np.zeros((3, 3))
    for index in where_masked():
        for k, c in enumerate(levels):
            expected[index[1], k] += (1 - c) / 2 <= pit[index] <= (1 + c) / 2
    close(metrics.coverage_sums(pit, MASK, levels, keep=(1,)), expected)


def test_interval_sums_equal_a_loop():
    lower, upper = TARGET - 1 + RNG.normal(0, 1, SHAPE), TARGET + 2
    sums = metrics.interval_sums(lower, upper, TARGET, MASK)
    close(sums["inside"], sum(lower[i] <= TARGET[i] <= upper[i] for i in where_masked()))
    close(sums["width"], sum(upper[i] - lower[i] for i in where_masked()))


def test_histogram_equals_numpy_and_takes_outliers_in():
    values = RNG.random(SHAPE).astype(np.float32)
    counts = metrics.histogram(values, MASK, 20, keep=(1,))
    for p in range(3):
        close(counts[p], np.histogram(values[:, p][MASK[:, p] > 0], 20, (0, 1))[0])
    close(metrics.histogram(np.array([-1.0, 1.0, 2.0, np.nan]), np.array([1, 1, 1, 0]), 4), [1, 0, 0, 2])


def test_by_group_equals_a_loop():
    group = RNG.integers(-1, 3, SHAPE)
    expected = [sum(float(TARGET[i]) for i in where_masked() if group[i] == g) for g in range(3)]
    close(metrics.by_group(TARGET, MASK, group, 3), expected)


def test_confusion_equals_a_loop():
    label, guess = RNG.integers(0, 3, SHAPE), RNG.integers(0, 3, SHAPE)
    expected = np.zeros((3, 3))
    for index in where_masked():
        expected[label[index], guess[index]] += 1
    close(metrics.confusion(label, guess, MASK, 3), expected)


def test_brier_and_reliability_equal_a_loop():
    p = RNG.random(SHAPE).astype(np.float32)
    event = (RNG.random(SHAPE) < p).astype(np.float32)
    close(metrics.brier_sums(p, event, MASK), sum((float(p[i]) - event[i]) ** 2 for i in where_masked()))
    expected = {"n": np.zeros(5), "p": np.zeros(5), "event": np.zeros(5)}
    for index in where_masked():
        k = min(int(p[index] * 5), 4)
        expected["n"][k] += 1
        expected["p"][k] += p[index]
        expected["event"][k] += event[index]
    sums = metrics.reliability_sums(p, event, MASK, 5)
    for name, value in expected.items():
        close(sums[name], value)


@pytest.mark.parametrize("function", [metrics.error_sums, metrics.interval_sums])
def test_padded_examples_count_nothing(function):
    rows = np.array([1, 1, 1, 0, 0], np.float32)
    arguments = [FORECAST, TARGET] if function is metrics.error_sums else [FORECAST - 1, FORECAST + 1, TARGET]
    padded = function(*arguments, rows[:, None, None] * MASK)
    short = function(*[a[:3] for a in arguments], MASK[:3])
    for name, value in short.items():
        close(padded[name], value)
