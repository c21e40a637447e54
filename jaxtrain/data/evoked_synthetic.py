"""The embedded default: a seeded synthetic clinic of averaged responses, matched to the statistics of clinical archives.

Patients have a class, an age and a rate; ears a hidden threshold; each ear is tested by a level series that looks for it.
Letters: P patients, E ears, S stimuli (visited levels), R records, T samples. Times in ms, waveforms in uV, levels in dB nHL.
"""

from dataclasses import dataclass

import numpy as np

from jaxtrain.data import evoked_noise
from jaxtrain.data.evoked_config import SAMPLE_MS, SAMPLES
from jaxtrain.data.evoked_records import Records

# Per class: NORMAL, NOROPATI, SNIK, TOTAL, ITIK.
SHARE = np.array([1643, 19, 180, 104, 92]) / 2038
THRESHOLD = np.array([[14, 80, 47, 112, 39], [6, 26, 15, 9, 10], [-4, 15, 30, 84, 30], [27, 130, 95, 140, 70]], float)  # b, s, lo, hi
REPEATS = np.array([1.10, 1.9, 1.75, 2.1, 1.50])
KAPPA = np.array([1, 0.35, 0.8, 0.5, 1])
NEUROPATHY, SENSORINEURAL, PROFOUND = 1, 2, 3
RATES = ((11.1, 21.1, 27.7, 33.1, 37.1, 39.1, 49.1), (0.004, 0.012, 0.06, 0.77, 0.08, 0.05, 0.024))
STARTS = ((60, 70, 80, 90), (0.05, 0.15, 0.40, 0.40))
FLOORS = ((0, 10, 20), (0.45, 0.25, 0.30))
MOST_LEVELS = 14
HIGHEST_LEVEL = 100


@dataclass(frozen=True)
class Hidden:
    """(R,) what the generator knows and no batch shows: latency ms, P(reader marks a peak), amplitude, noise SD uV, threshold dB."""

    tau5: np.ndarray
    p_present: np.ndarray
    amplitude: np.ndarray
    sigma: np.ndarray
    theta: np.ndarray


@dataclass(frozen=True)
class Patients:
    """(P,) arrays; the z_* are standard normal."""

    label: np.ndarray
    age: np.ndarray
    age_recorded: np.ndarray  # NaN for 3 %
    rate: np.ndarray
    busyness: np.ndarray  # mu, scales the number of repeats
    z_threshold: np.ndarray
    z_latency: np.ndarray
    z_interval: np.ndarray
    z_amplitude: np.ndarray
    z_drift: np.ndarray  # (P, 2)
    z_noise: np.ndarray


@dataclass(frozen=True)
class Ears:
    """(E,) arrays; patient and side are codes, late_ms is 0 for all but late ears."""

    patient: np.ndarray
    side: np.ndarray
    theta: np.ndarray
    late_ms: np.ndarray
    z_latency: np.ndarray


@dataclass(frozen=True)
class Wave:
    """(R,) what the response of each record is made of, times in ms."""

    tau1: np.ndarray
    tau3: np.ndarray
    tau5: np.ndarray
    width: np.ndarray
    amplitude: np.ndarray
    r1: np.ndarray
    r3: np.ndarray
    drift: np.ndarray  # (R, 2) uV


def clinic(count: int, seed: int) -> tuple[Records, Hidden]:
    """Every record of `count` patients, in order of patient, ear and level, and what was hidden behind it."""
    rng = np.random.default_rng(seed)
    patients = draw_patients(rng, count)
    ears = draw_ears(rng, patients)
    ear, level = draw_levels(rng, patients, ears)
    wave, lam = draw_waves(rng, patients, ears, ear, level)
    clean = waveform(wave)
    patient = ears.patient[ear]
    label = patients.label[patient]

    sigma = 0.080 * np.exp(0.50 * patients.z_noise[patient] + 0.40 * rng.standard_normal(len(ear)))
    noise = (np.sqrt(2) * sigma).astype(np.float32)[:, None]
    half_a = clean + noise * evoked_noise.draw(rng, len(ear))
    half_b = clean + noise * evoked_noise.draw(rng, len(ear))
    signal = (half_a + half_b) / 2
    fmp = np.maximum(signal.var(1) / (sigma**2 * rng.chisquare(60, len(ear)) / 60) - 1, 0)
    fmp[rng.random(len(ear)) < 0.0003] = np.nan

    p_present = (lam > 0) / (1 + np.exp(-(wave.amplitude / sigma - 0.35) / 0.15))
    present = rng.random(len(ear)) < p_present
    latency, amplitude = read_peaks(rng, wave, sigma, signal, present)
    threshold = np.maximum(0, 5 * np.ceil(ears.theta / 5))
    threshold[threshold > 100] = np.nan

    statics = np.stack([patients.age_recorded[patient], level, patients.rate[patient], fmp], axis=1)
    records = Records(
        where="synthetic clinic", row=np.arange(len(ear)), signal=signal, half_a=half_a, half_b=half_b, clean=clean,
        statics=statics.astype(np.float32), label=label.astype(np.int32), present=present.astype(np.int8),
        latency_ms=latency.astype(np.float32), amplitude_uv=amplitude.astype(np.float32),
        threshold_db=threshold[ear].astype(np.float32), patient=patient.astype(np.int32),
        patients=np.array([f"p{i:04d}" for i in range(count)]), ear=ears.side[ear].astype(np.int32), ears=np.array(["L", "R"]),
        record=np.array([f"r{i:06d}" for i in range(len(ear))]), units="uV",
    )  # fmt: skip
    return records, Hidden(wave.tau5, p_present, wave.amplitude, sigma, ears.theta[ear])


def draw_patients(rng: np.random.Generator, count: int) -> Patients:
    """Patients in random order of class."""
    per_class = np.maximum(np.round(count * SHARE).astype(int), 8 if count >= 300 else 3)
    per_class[0] = count - per_class[1:].sum()
    label = rng.permutation(np.repeat(np.arange(len(SHARE)), per_class))
    infant = rng.random(count) < 0.69
    age = np.where(infant, rng.random(count) ** 1.3, np.clip(5 * np.exp(1.03 * rng.standard_normal(count)), 1, 75))
    recorded = np.where(rng.random(count) < 0.03, np.nan, np.floor(age))
    rate = rng.choice(RATES[0], count, p=RATES[1])
    busyness = rng.gamma(2.5, 1 / 2.5, count)
    z = rng.standard_normal((count, 7))
    return Patients(label, age, recorded, rate, busyness, z[:, 0], z[:, 1], z[:, 2], z[:, 3], z[:, 4:6], z[:, 6])


def draw_ears(rng: np.random.Generator, patients: Patients) -> Ears:
    """One ear of every patient and the second of 93 %."""
    count = len(patients.label)
    first = rng.integers(0, 2, count)
    both = rng.random(count) < 0.93
    patient = np.repeat(np.arange(count), 1 + both)
    second = np.append(False, patient[1:] == patient[:-1])
    side = np.where(second, 1 - first[patient], first[patient])
    z = rng.standard_normal((len(patient), 3))
    base, spread, low, high = THRESHOLD[:, patients.label[patient]]
    theta = np.clip(base + spread * (0.8 * patients.z_threshold[patient] + 0.6 * z[:, 0]), low, high)
    late = rng.random(len(patient)) < 0.13
    return Ears(patient, side, theta, np.where(late, 4.0 * np.exp(0.28 * z[:, 1]), 0.0), z[:, 2])


def draw_levels(rng: np.random.Generator, patients: Patients, ears: Ears) -> tuple[np.ndarray, np.ndarray]:
    """((R,) ear, (R,) level dB) of every record: down until the response is lost, up until it is back, one step down."""
    count = len(ears.theta)
    label = patients.label[ears.patient]
    level = rng.choice(STARTS[0], count, p=STARTS[1])
    level = np.where((label == NEUROPATHY) | (label == PROFOUND), np.maximum(level, 80), level)
    floor = rng.choice(FLOORS[0], count, p=FLOORS[1])
    phase, going = np.zeros(count, int), np.ones(count, bool)
    visited_ear, visited_level = [], []
    for _ in range(MOST_LEVELS):
        visited_ear.append(np.flatnonzero(going))
        visited_level.append(level[going])
        heard = level > ears.theta
        down = np.where(phase == 1, 5, np.where((level > 40) | (rng.random(count) < 0.5), 20, 10))
        following = np.where(heard, level - down, level + 10)
        # Phase 1 looks upward for the response that was lost, phase 2 is one last level below the level where it came back.
        going &= (phase < 2) & (following <= HIGHEST_LEVEL) & (following >= floor)
        phase = np.where(heard, np.where(phase == 1, 2, phase), 1)
        level = following
    ear, level = np.concatenate(visited_ear), np.concatenate(visited_level)
    order = np.argsort(ear, kind="stable")
    ear, level = ear[order], level[order]
    repeats = 1 + rng.poisson(REPEATS[label[ear]] * patients.busyness[ears.patient[ear]])
    return np.repeat(ear, repeats), np.repeat(level, repeats)


def draw_waves(rng: np.random.Generator, patients: Patients, ears: Ears, ear: np.ndarray, level: np.ndarray) -> tuple[Wave, np.ndarray]:
    """The response to every record's stimulus, and (R,) lambda = level - theta dB."""
    patient, theta = ears.patient[ear], ears.theta[ear]
    label, rate = patients.label[patient], patients.rate[patient]
    nu = label == NEUROPATHY
    lam = level - theta
    above = np.maximum(lam, 0)
    # Recruitment: behind a cochlear loss, loudness and latency grow faster above threshold.
    recruited = 10 + 70 * above / np.maximum(92 - theta, 20)
    ell = np.where((label == SENSORINEURAL) | (label == PROFOUND), recruited, np.maximum(lam + 15, 0))
    maturation = 0.75 * np.exp(-patients.age[patient] / 0.6)
    z = rng.standard_normal((len(ear), 6))
    delta = 0.18 * patients.z_latency[patient] + 0.10 * ears.z_latency[ear] + 0.05 * z[:, 0]
    iota = 0.10 * patients.z_interval[patient]
    late = ears.late_ms[ear] > 0
    tau5 = 4.4 + 4.8 * np.exp(-ell / 60) + maturation + 0.006 * (rate - 33.1) + delta + ears.late_ms[ear] + 0.7 * nu
    tau3 = tau5 - 2.05 - 0.35 * maturation - iota / 2 - 0.3 * nu
    tau1 = tau5 - 4.05 - 0.75 * maturation - iota - 0.6 * nu
    amplitude = 0.34 * KAPPA[label] * np.exp(0.30 * patients.z_amplitude[patient] + 0.12 * z[:, 1])
    amplitude *= np.where(lam > 0, 1 - np.exp(-(above + 4) / 25), 0) * np.where(late, 0.7, 1)
    r3 = np.maximum(0.62 + 0.15 * z[:, 2], 0.1) * (1 - np.exp(-above / 25)) * np.where(nu, 0.3, 1)
    r1 = np.maximum(0.50 + 0.15 * z[:, 3], 0.05) * (1 - np.exp(-np.maximum(lam - 20, 0) / 25))
    r1 *= np.where(label == SENSORINEURAL, 0.5, np.where(nu, 0.2, 1))
    width = (0.30 + 0.002 * np.maximum(60 - ell, 0)) * np.where(late, 1.7, 1)
    drift = 0.030 * patients.z_drift[patient] + 0.010 * z[:, 4:6]
    return Wave(tau1, tau3, tau5, width, amplitude, np.where(late, 0, r1), np.where(late, 0, r3), drift), lam


def waveform(wave: Wave) -> np.ndarray:
    """(R, 200) float32 uV: waves I, III and V with the troughs behind them, on a slow drift."""
    t = (SAMPLE_MS * np.arange(SAMPLES)).astype(np.float32)

    def bump(rows: np.ndarray, height: np.ndarray, centre: np.ndarray, width: np.ndarray) -> np.ndarray:
        c, w, h = (v[rows, None].astype(np.float32) for v in (centre, width, height))
        return h * np.exp(-np.square((t - c) / w) / 2)

    a, w = wave.amplitude, wave.width
    # height, centre and width of every bump; most rows have no waves I and III.
    bumps = (
        (a, wave.tau5, w), (-0.75 * a, wave.tau5 + 1.15, 1.45 * w),
        (a * wave.r3, wave.tau3, 0.85 * w), (-0.45 * a * wave.r3, wave.tau3 + 0.75, w), (0.5 * a * wave.r3, wave.tau5 - 0.65, 0.8 * w),
        (a * wave.r1, wave.tau1, 0.7 * w), (-0.45 * a * wave.r1, wave.tau1 + 0.6, 0.8 * w), (0.45 * a * wave.r1, wave.tau1 + 1, 0.7 * w),
    )  # fmt: skip
    angle = np.pi * t / 10
    clean = wave.drift.astype(np.float32) @ np.stack([np.cos(angle), np.cos(2 * angle)])
    for height, centre, width in bumps:
        rows = np.flatnonzero(height)
        clean[rows] += bump(rows, height, centre, width)
    return clean


def read_peaks(
    rng: np.random.Generator, wave: Wave, sigma: np.ndarray, signal: np.ndarray, present: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """((R,) latency ms to 0.05 ms, (R,) amplitude uV) as the reader notes them; NaN where no peak is marked."""
    with np.errstate(divide="ignore"):
        spread = 0.04 + 0.16 * np.minimum(1, sigma / wave.amplitude)
    latency = np.round((wave.tau5 + spread * rng.standard_normal(len(spread))) / SAMPLE_MS) * SAMPLE_MS
    sample = np.round(latency / SAMPLE_MS).astype(int)
    beyond = wave.amplitude + sigma * rng.standard_normal(len(sigma))
    seen = signal[np.arange(len(signal)), np.clip(sample, 0, SAMPLES - 1)]
    amplitude = np.where(sample < SAMPLES, seen, beyond)
    return np.where(present, latency, np.nan), np.where(present, amplitude, np.nan)
