"""The synthetic clinic against the statistics of clinical archives, its noise, and what the oracle knows of it."""

import math
import time
from typing import Any

import numpy as np
import pytest
from evoked_problem import config

from jaxtrain.data import evoked_noise
from jaxtrain.data.evoked_oracle import oracle
from jaxtrain.data.evoked_records import Records
from jaxtrain.data.evoked_synthetic import Ears, Hidden, Patients, Wave, clinic, draw_waves, waveform


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


def test_records_belong_together() -> None:
    found, hidden = clinic(400, 42)
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


class Means:
    """A generator that always draws the mean."""

    def standard_normal(self, shape: Any) -> np.ndarray:
        return np.zeros(shape)


def one_of_each(label: list[int], age: list[float], theta: list[float], late_ms: list[float], **z: float) -> tuple[Patients, Ears]:
    count = len(label)
    shifts = {name: np.full(count, z.get(name, 0.0)) for name in ("z_threshold", "z_latency", "z_interval", "z_amplitude", "z_noise")}
    patients = Patients(
        label=np.array(label), age=np.array(age), age_recorded=np.floor(age), rate=np.full(count, 43.1), busyness=np.ones(count),
        z_drift=np.full((count, 2), z.get("z_drift", 0.0)), **shifts,
    )  # fmt: skip
    ears = np.arange(count)
    return patients, Ears(ears, ears * 0, np.array(theta), np.array(late_ms), np.full(count, z.get("z_ear", 0.0)))


def test_responses_are_the_formulas() -> None:
    """Each formula of the generator written out for six ears at 80 dB: one of each class, of which the fifth is late, and one unheard."""
    label, age = [0, 1, 2, 3, 4, 0], [0.3, 20.0, 4.0, 1.0, 0.1, 9.0]
    theta, late = [10.0, 60.0, 50.0, 90.0, 35.0, 85.0], [0.0, 0.0, 0.0, 0.0, 4.2, 0.0]
    z = {"z_latency": 1.0, "z_interval": -0.5, "z_amplitude": 0.4, "z_drift": 2.0, "z_ear": 0.5}
    patients, ears = one_of_each(label, age, theta, late, **z)
    wave, lam = draw_waves(Means(), patients, ears, np.arange(6), np.full(6, 80))  # type: ignore[arg-type]
    kappa = (1, 0.35, 0.8, 0.5, 1)
    for i, c in enumerate(label):
        above = max(80 - theta[i], 0)
        assert lam[i] == 80 - theta[i]
        ell = 10 + 70 * above / max(92 - theta[i], 20) if c in (2, 3) else max(lam[i] + 15, 0)
        m, nu = 0.75 * math.exp(-age[i] / 0.6), float(c == 1)
        tau5 = 4.4 + 4.8 * math.exp(-ell / 60) + m + 0.006 * (43.1 - 33.1) + 0.18 * 1.0 + 0.10 * 0.5 + late[i] + 0.7 * nu
        tau3 = tau5 - 2.05 - 0.35 * m + 0.05 / 2 - 0.3 * nu
        tau1 = tau5 - 4.05 - 0.75 * m + 0.05 - 0.6 * nu
        a = 0.34 * kappa[c] * math.exp(0.30 * 0.4) * (1 - math.exp(-(lam[i] + 4) / 25)) * (lam[i] > 0) * (0.7 if late[i] else 1)
        r3 = 0.62 * (1 - math.exp(-above / 25)) * (0.3 if c == 1 else 1) * (not late[i])
        r1 = 0.50 * (1 - math.exp(-max(lam[i] - 20, 0) / 25)) * {2: 0.5, 1: 0.2}.get(c, 1) * (not late[i])
        w = (0.30 + 0.002 * max(60 - ell, 0)) * (1.7 if late[i] else 1)
        found = [v[i] for v in (wave.tau5, wave.tau3, wave.tau1, wave.amplitude, wave.r3, wave.r1, wave.width)]
        np.testing.assert_allclose(found, [tau5, tau3, tau1, a, r3, r1, w], rtol=1e-12)
        np.testing.assert_allclose(wave.drift[i], [0.06, 0.06])


def test_waveforms_are_the_formula() -> None:
    wave = Wave(*(np.array([x]) for x in (1.8, 3.9, 6.1, 0.35, 0.3, 0.4, 0.5)), drift=np.array([[0.02, -0.01]]))
    t = 0.05 * np.arange(200)

    def g(tau: float, w: float) -> np.ndarray:
        return np.exp(-(((t - tau) / w) ** 2) / 2)

    w, t1, t3, t5 = 0.35, 1.8, 3.9, 6.1
    shape = g(t5, w) - 0.75 * g(t5 + 1.15, 1.45 * w)
    shape += 0.5 * (g(t3, 0.85 * w) - 0.45 * g(t3 + 0.75, w) + 0.5 * g(t5 - 0.65, 0.8 * w))
    shape += 0.4 * (g(t1, 0.7 * w) - 0.45 * g(t1 + 0.6, 0.8 * w) + 0.45 * g(t1 + 1, 0.7 * w))
    expected = 0.3 * shape + 0.02 * np.cos(np.pi * t / 10) - 0.01 * np.cos(2 * np.pi * t / 10)
    np.testing.assert_allclose(waveform(wave)[0], expected, atol=2e-7)


def test_the_reader_marks_what_stands_out(drawn: tuple[Records, Hidden]) -> None:
    found, hidden = drawn
    heard = found.statics[:, 1] > hidden.theta
    logistic = 1 / (1 + np.exp(-(hidden.amplitude / hidden.sigma - 0.35) / 0.15))
    np.testing.assert_allclose(hidden.p_present, np.where(heard, logistic, 0), rtol=1e-12)
    assert abs((found.present == 1).mean() - hidden.p_present.mean()) < 0.005


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
    hidden = clinic(300, 42)[1]
    beyond = np.flatnonzero(hidden.tau5 > 9.98).astype(np.int32)  # after the last sample
    outside = oracle(config(patients=300), beyond[:, None])["amplitude_uv"]
    np.testing.assert_array_equal(outside, hidden.amplitude[beyond].astype(np.float32))
    assert len(beyond) > 100
    everyone = np.arange(len(found), dtype=np.int32)[:, None]
    brier = ((oracle(config(patients=300), everyone)["probability"] - (found.present == 1)) ** 2).mean()
    assert brier < 0.03
