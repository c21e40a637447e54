"""Reference forecasts: their definitions, and their scores on the synthetic clinic within the published ranges."""

import jax.numpy as jnp
import numpy as np
import pytest
from evoked_problem import config
from evoked_scores import auc, gain_db, macro_f1, mean_r

from jaxtrain.data import evoked, evoked_noise
from jaxtrain.data import evoked_naive as naive
from jaxtrain.data.dataset import Batch, Statistics
from jaxtrain.data.evoked_oracle import oracle
from jaxtrain.data.evoked_serving import series_threshold


@pytest.fixture(scope="module")
def default() -> tuple[Statistics, Batch, Batch]:
    """Statistics, training batch and test batch of the default clinic."""
    found = evoked.splits(config())
    train, test = (d.gather(d.arrays, d.index) for d in (found.train, found.test))
    return found.statistics, train, test


def near(value: float, low: float, high: float) -> None:
    assert low <= value <= high, value


def test_waveform_scores_are_the_published_ones(default: tuple[Statistics, Batch, Batch]) -> None:
    s, _, b = default
    x, y = b["signal"], b["target"]
    level = s["level_wave"][naive.cells(b["statics"], b["statics_ok"])[0]]
    filtered = naive.wiener(s, x, b["statics"], b["statics_ok"])
    near(gain_db(0 * x, y, x), 3.0, 4.9)
    near(gain_db(level, y, x), 4.2, 6.1)
    near(gain_db(filtered, y, x), 9.5, 11.2)
    near(mean_r(filtered, y), 0.68, 0.74)


def test_label_scores_are_the_published_ones(default: tuple[Statistics, Batch, Batch]) -> None:
    s, train, b = default
    cell = naive.cells(b["statics"], b["statics_ok"])
    ok, latency = b["peak_ok"], b["latency_ms"]
    filtered = naive.wiener(s, b["signal"], b["statics"], b["statics_ok"])

    def error(forecast: np.ndarray) -> np.ndarray:
        return np.abs(forecast - latency)[ok]

    near(error(s["latency_mean"]).mean(), 0.83, 0.89)
    near(error(s["table_latency_ms"][cell]).mean(), 0.42, 0.51)
    near(error(naive.peak_ms(b["signal"])).mean(), 0.56, 0.70)
    near(error(naive.peak_ms(filtered)).mean(), 0.31, 0.42)
    near((error(naive.peak_ms(filtered)) <= 0.5).mean(), 0.84, 0.89)
    near(np.abs(s["table_amplitude_uv"][cell] - b["amplitude_uv"])[ok].mean(), 0.099, 0.110)

    seen, present = b["present_ok"], b["present"][b["present_ok"]]
    share = s["table_present"][cell][seen]
    near(auc(b["statics"][seen, 3], present), 0.71, 0.77)
    near(auc(share, present), 0.82, 0.86)
    near(((share - present) ** 2).mean(), 0.125, 0.146)

    classes = s["table_class"][cell]
    near(macro_f1(0 * b["label"], b["label"]), 0.17, 0.19)
    near(macro_f1(classes.argmax(1), b["label"]), 0.28, 0.34)
    near(macro_f1((classes / np.sqrt(s["class_share"])).argmax(1), b["label"]), 0.34, 0.42)

    known = b["threshold_ok"]
    db = b["threshold_db"][known]
    near(np.abs(db - s["threshold_mean"]).mean(), 9.0, 11.4)
    near(np.abs(db - np.median(train["threshold_db"][train["threshold_ok"]])).mean(), 8.4, 10.6)
    near(np.abs(db - s["table_threshold_db"][cell][known]).mean(), 7.7, 10.0)


def test_the_oracle_beats_every_naive_forecast(default: tuple[Statistics, Batch, Batch]) -> None:
    b = default[2]
    said = oracle(config(), b["row"][:, None])
    ok = b["peak_ok"]
    near(np.abs(said["latency_ms"] - b["latency_ms"])[ok].mean(), 0.09, 0.105)
    near(np.abs(said["amplitude_uv"] - b["amplitude_uv"])[ok].mean(), 0.030, 0.038)
    seen = b["present_ok"]
    near(auc(said["probability"][seen], b["present"][seen]), 0.99, 1.0)


def test_cells_are_levels_qualities_and_ages() -> None:
    statics = np.array([[0, -20, 33, 0.05], [0.9, 42, 33, 0.1], [1, 43, 33, 0.99], [70, 130, 33, 5.0], [0, 0, 0, 0]], np.float32)
    ok = np.ones((5, 4), bool)
    ok[4] = False
    expected = ([0, 12, 13, 30, 31], [0, 1, 2, 5, 6], [0, 0, 1, 1, 2])
    for array in (np.asarray, jnp.asarray):
        for found, wanted in zip(naive.cells(array(statics), array(ok)), expected, strict=True):
            assert found.tolist() == wanted and found.dtype == np.int32
        assert naive.groups(array(statics), array(ok)).tolist() == [0, 6, 6, 14, 15]


def test_a_table_holds_medians_and_falls_back() -> None:
    """Ten rows of one cell, nine of another."""
    count = np.repeat([0, 1], [10, 9])
    value = np.arange(19, dtype=np.float32)
    batch = {
        "statics": np.stack([0 * value, 20.0 + 20 * count, 33 + 0 * value, 0 * value], axis=1), "statics_ok": np.ones((19, 4), bool),
        "present": value > 4, "present_ok": np.ones(19, bool), "latency_ms": value, "amplitude_uv": value, "threshold_db": value,
        "peak_ok": np.ones(19, bool), "threshold_ok": np.zeros(19, bool), "label": np.where(count, 4, np.arange(19) % 2),
    }  # fmt: skip
    found = naive.table_statistics(batch, np.full(5, 0.2))
    assert found["table_latency_ms"][8, 0, 0] == 4.5 and found["table_latency_ms"][12, 0, 0] == 9 == found["table_latency_ms"][0, 0, 0]
    assert found["table_present"][8, 0, 0] == 0.5 and not found["table_threshold_db"].any()
    np.testing.assert_allclose(found["table_class"][8, 0, 0], [0.5, 0.5, 0, 0, 0])
    np.testing.assert_allclose(found["table_class"][0, 0, 0], [5 / 19, 5 / 19, 0, 0, 9 / 19], rtol=1e-6)


def test_the_filter_is_wieners(default: tuple[Statistics, Batch, Batch]) -> None:
    """mean + S (S + v K)^-1 (x - mean), written out."""
    s, train, b = default
    k = evoked_noise.covariance() + 1e-6 * np.eye(200)
    rows = naive.groups(b["statics"], b["statics_ok"]) == 8  # 60-69 dB
    clean = train["target"][naive.groups(train["statics"], train["statics_ok"]) == 8].astype(np.float64)
    cov = np.cov(clean.T, ddof=0)
    x, fmp = b["signal"][rows][:20].astype(np.float64), b["statics"][rows][:20, 3]
    assert b["statics_ok"][rows][:20, 3].all()
    made = naive.wiener(s, b["signal"][rows][:20], b["statics"][rows][:20], b["statics_ok"][rows][:20])
    for i in range(20):
        v = x[i].var() / (fmp[i] + 1)
        expected = clean.mean(0) + cov @ np.linalg.solve(cov + v * k, x[i] - clean.mean(0))
        np.testing.assert_allclose(made[i], expected, atol=2e-4)


def test_the_variance_of_noise_comes_from_quality_or_the_median(default: tuple[Statistics, Batch, Batch]) -> None:
    s, train, b = default
    x, statics, ok = b["signal"][:5], b["statics"][:5], b["statics_ok"][:5].copy()
    np.testing.assert_allclose(naive.noise_variance(s, x, statics, ok), x.var(1) / (statics[:, 3] + 1), rtol=1e-5)
    ok[:, 3] = False
    v = (train["signal"].var(1) / (train["statics"][:, 3] + 1))[train["statics_ok"][:, 3]]
    np.testing.assert_allclose(naive.noise_variance(s, x, statics, ok), np.full(5, np.median(v)), rtol=1e-5)
    corrupt = evoked.splits(config(patients=30, target="corrupt")).statistics
    square = np.mean(np.linspace(0.3, 1.0, 10_001) ** 2)
    np.testing.assert_allclose(naive.noise_variance(corrupt, x, statics, ok), x.var(1) * square / (1 + square), rtol=1e-3)


def test_noise_is_learned_from_halves() -> None:
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.1, 1, (800, 1)).astype(np.float32)
    a, b = (scale * evoked_noise.draw(rng, 800) for _ in range(2))
    found = naive.noise_covariance(a, b)
    # By lag over a window of 200: an estimate that shrinks with the lag.
    shrink = 1 - np.abs(np.subtract.outer(np.arange(200), np.arange(200))) / 200
    np.testing.assert_allclose(found, evoked_noise.covariance() * shrink, atol=0.06)
    assert np.linalg.eigvalsh(found).min() > -1e-9
    np.testing.assert_array_equal(naive.noise_covariance(None, None), evoked_noise.covariance())


def test_peaks_are_looked_for_where_wave_v_may_be() -> None:
    wave = np.zeros((2, 200), np.float32)
    wave[0, [60, 120]] = [2, 1]
    wave[1, [96, 195, 199]] = [0.5, 0.6, 3]
    np.testing.assert_allclose(naive.peak_ms(wave), [6.0, 9.75])


def test_the_threshold_of_a_series() -> None:
    level = np.repeat(np.arange(0, 100, 10), 2).astype(float)
    assert series_threshold(level, 1 / (1 + np.exp(-(level - 37) / 5))) == 37
    assert series_threshold(level, (level > 50).astype(float)) == 55
    assert series_threshold(level, np.ones(20)) == -10 and series_threshold(level, np.zeros(20)) == 110
    assert np.isnan(series_threshold(level[:6], np.ones(6)))
    assert series_threshold(np.append(level, np.nan), np.append(level > 50, 1.0)) == 55
