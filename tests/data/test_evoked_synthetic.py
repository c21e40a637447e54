"""The synthetic clinic against the statistics of clinical archives, its noise, and what the oracle knows of it."""

import time

import numpy as np
import pytest
from evoked_problem import config

from jaxtrain.data import evoked_noise
from jaxtrain.data.evoked_oracle import oracle
from jaxtrain.data.evoked_records import Records
from jaxtrain.data.evoked_synthetic import Hidden, clinic


@pytest.fixture(scope="module")
def drawn() -> tuple[Records, Hidden]:
    return clinic(2038, 42)


def test_it_matches_the_archive(drawn: tuple[Records, Hidden]) -> None:
    found = drawn[0]
    level, age, rate, fmp = found.statics[:, 1], found.statics[:, 0], found.statics[:, 2], found.statics[:, 3]
    present = found.present == 1

    def near(value: float, published: float, tolerance: float) -> None:
        assert abs(value - published) <= tolerance, (value, published)

    near(len(found) / 2038, 24.7, 0.7)
    shares = 100 * np.bincount(found.label) / len(found)
    np.testing.assert_allclose(shares, [80.5, 0.8, 10.2, 3.3, 5.1], atol=1.0)
    near(100 * present.mean(), 75.6, 1.5)
    by_class = [100 * present[found.label == c].mean() for c in range(5)]
    assert (np.abs(np.array(by_class) - [81.4, 31.5, 61.1, 2.6, 67.0]) < [1.5, 8, 4, 1.5, 4]).all()
    near(level.mean(), 44.0, 0.7)
    near(level.std(), 26.4, 0.7)
    assert np.median(level) == 40
    near(float(np.nanmean(age)), 2.3, 0.4)
    near(float(np.nanstd(age)), 6.4, 1.0)
    assert np.nanmedian(age) == 0
    near(rate.mean(), 33.8, 0.5)
    near(rate.std(), 3.9, 0.5)
    near(float(np.nanmean(fmp)), 2.10, 0.4)
    near(float(np.nanmedian(fmp)), 0.54, 0.04)
    near(100 * float((fmp > 3).mean()), 15, 2)
    near(100 * present[fmp > 3].mean(), 97.4, 1.5)
    near(float(np.nanmean(found.latency_ms)), 7.62, 0.1)
    near(float(np.nanstd(found.latency_ms)), 1.71, 0.15)
    near(float(np.nanmean(found.amplitude_uv)), 0.199, 0.01)
    near(float(np.nanstd(found.amplitude_uv)), 0.169, 0.01)
    near(found.signal.std(), 0.145, 0.008)


def test_records_belong_together(drawn: tuple[Records, Hidden]) -> None:
    found, hidden = drawn
    assert found.half_a is not None and found.half_b is not None and found.clean is not None
    np.testing.assert_allclose((found.half_a + found.half_b) / 2, found.signal, atol=1e-6)
    noise = (found.signal - found.clean) / hidden.sigma[:, None]
    assert abs(noise.std() - 1) < 0.01  # sigma is the SD in the full average
    marked = found.present == 1
    assert np.array_equal(np.isfinite(found.latency_ms), marked) and np.array_equal(np.isfinite(found.amplitude_uv), marked)
    steps = found.latency_ms[marked] / 0.05
    np.testing.assert_allclose(steps, np.round(steps), atol=2e-4)
    assert not (marked & (found.statics[:, 1] <= hidden.theta)).any()  # nothing is heard below the threshold
    ear = found.patient * 2 + found.ear
    for values in (found.threshold_db, hidden.theta):  # one threshold an ear
        low, high = np.full(ear.max() + 1, np.inf), np.full(ear.max() + 1, -np.inf)
        np.minimum.at(low, ear, np.nan_to_num(values, nan=999))
        np.maximum.at(high, ear, np.nan_to_num(values, nan=999))
        assert (low[ear] == high[ear]).all()
    assert np.nanmax(found.threshold_db) <= 100 and np.nanmin(found.threshold_db) == 0


def test_series_look_for_the_threshold(drawn: tuple[Records, Hidden]) -> None:
    """The lowest heard and the highest unheard level of most ears lie 5 or 10 dB apart."""
    found, hidden = drawn
    level, heard = found.statics[:, 1], found.statics[:, 1] > hidden.theta
    ear = found.patient * 2 + found.ear
    lowest, highest = np.full(ear.max() + 1, np.inf), np.full(ear.max() + 1, -np.inf)
    np.minimum.at(lowest, ear[heard], level[heard])
    np.maximum.at(highest, ear[~heard], level[~heard])
    gap = (lowest - highest)[np.isfinite(lowest - highest)]
    assert len(gap) > 1000 and set(np.unique(gap)) <= {5, 10} and (gap == 5).mean() > 0.3
    assert level.max() <= 100 and level.min() >= 0


def test_it_is_a_function_of_its_seed() -> None:
    first, again, other = clinic(60, 7)[0], clinic(60, 7)[0], clinic(60, 8)[0]
    assert np.array_equal(first.signal, again.signal) and first.signal.tobytes() != other.signal.tobytes()
    patient_class = first.label[np.unique(first.patient, return_index=True)[1]]
    assert np.bincount(patient_class, minlength=5).tolist() == [46, 3, 5, 3, 3]


def test_twenty_thousand_records_take_less_than_two_seconds() -> None:
    started = time.process_time()
    count = len(clinic(800, 42)[0])
    seconds = time.process_time() - started
    assert 19_000 < count < 21_000 and seconds < 2 * count / 20_000


def test_noise_has_its_covariance() -> None:
    noise = evoked_noise.draw(np.random.default_rng(0), 20_000)
    k = evoked_noise.covariance()
    assert noise.dtype == np.float32 and noise.shape == (20_000, 200)
    np.testing.assert_allclose(np.diag(k), 1)
    np.testing.assert_allclose(noise.T @ noise / len(noise), k, atol=0.04)
    independent = np.trace(k) ** 2 / (k**2).sum()
    assert 4 < independent < 16


def test_noise_has_the_published_density() -> None:
    """Power at 300 Hz against 1 kHz as f^2/(f^2+150^2) / (1 + (f/165)^2.25) says; nothing at 0 Hz."""
    share, f = evoked_noise.spectrum(), np.fft.rfftfreq(256, 1 / 20_000)

    def density(hz: float) -> float:
        return hz**2 / (hz**2 + 150**2) / (1 + (hz / 165) ** 2.25)

    assert share[0] == 0 and abs(share.sum() - 1) < 1e-12
    assert share[4] / share[13] == pytest.approx(density(f[4]) / density(f[13]))


def test_the_oracle_knows_all_but_the_reader() -> None:
    found = clinic(300, 42)[0]
    rows = np.flatnonzero((found.present == 1) & (found.latency_ms <= 9.75)).astype(np.int32)
    said = oracle(config(patients=300), rows[:, None])
    error = np.abs(said["latency_ms"] - found.latency_ms[rows])
    assert 0.085 < error.mean() < 0.105 and (error <= 0.5).mean() > 0.99
    assert abs((error <= 1.2816 * said["latency_sd_ms"]).mean() - 0.80) < 0.02  # its spread is the reader's
    assert 0.030 < np.abs(said["amplitude_uv"] - found.amplitude_uv[rows]).mean() < 0.040
    everyone = np.arange(len(found), dtype=np.int32)[:, None]
    brier = ((oracle(config(patients=300), everyone)["probability"] - (found.present == 1)) ** 2).mean()
    assert brier < 0.03
