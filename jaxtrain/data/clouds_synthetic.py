"""The embedded default: a flight simulator with real label counts, thermal physics and a camera unknown per flight.

One long strip of 0.1 km pixels per flight is seen at 200 m/s and one frame per second, so frame m is the strip's rows
[2m, 2m + H). Cells widen with the height of the cloud base whatever the camera's gain; that is what carries over to an
unseen flight. Heights in km, temperatures in K, angles in degrees.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxtrain.data.clouds_config import SyntheticConfig
from jaxtrain.data.clouds_flight import Flight

PIXEL_KM = 0.1
ROWS_PER_FRAME = 2  # 200 m/s, one frame per second
FRAMES_PER_LABEL = 5  # 1 km
EDGE = 2  # frames before the first and after the last label, so that their windows of five are whole
LOWEST_KM, HIGHEST_KM = 0.12, 1.95
LABEL_STEP_KM = 0.03
CLOUDY = 0.3  # emissivity at nadir from which on the lidar sees a base
COVER = 0.5  # share of cloudy frames that a first strip is long enough for; below the usual 0.6, as redrawn strips are the cloudier ones
SCALES_KM = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the cloud pattern
FIRST_TIME = 1_730_304_000.0  # 2024-10-30 16:00 UTC, the first flight; one every DAYS_BETWEEN days
DAYS_BETWEEN = 7
EXTRA_LABELS = 187  # of an extra flight: the mean of the five


@dataclass(frozen=True)
class Mixture:
    """Labels of a flight and the normal mixture of its bases: (weight, mean km, sd km)."""

    labels: int
    parts: tuple[tuple[float, float, float], ...]


CAMPAIGN = (
    Mixture(501, ((0.08, 0.25, 0.10), (0.92, 0.95, 0.28))),
    Mixture(163, ((1.0, 0.72, 0.13),)),
    Mixture(144, ((0.8, 0.68, 0.17), (0.2, 1.85, 0.07))),
    Mixture(101, ((0.35, 0.14, 0.02), (0.65, 1.02, 0.14))),
    Mixture(24, ((1.0, 0.27, 0.15),)),
)
POOL = tuple(part[1:] for mixture in CAMPAIGN for part in mixture.parts)


def flights(config: SyntheticConfig) -> list[Flight]:
    """The campaign's five flights A-E and the extra ones F, G, ..., each from a generator of its own."""
    count = len(CAMPAIGN) + config.extra_flights
    return [_flight(config, number) for number in range(count)]


def _flight(config: SyntheticConfig, number: int) -> Flight:
    """The strip grows until it holds the flight's labels; it is then drawn anew, so that ranks stay exact over all of it."""
    usual = CAMPAIGN[number].labels if number < len(CAMPAIGN) else EXTRA_LABELS
    labels = max(1, round(usual * config.label_factor))
    rows = _good_length(config.height + ROWS_PER_FRAME * FRAMES_PER_LABEL * labels / COVER)
    while True:
        found = _draw(config, number, labels, rows)
        if found is not None:
            return found
        rows = _good_length(rows * 1.15)


def _good_length(rows: float) -> int:
    """A multiple of 64: short prime factors make transforms fast."""
    return math.ceil(rows / 64) * 64


def _mixture(rng: np.random.Generator, number: int) -> tuple[tuple[float, float, float], ...]:
    """The bases of a flight of the campaign, or two components of the pool with a random weight."""
    if number < len(CAMPAIGN):
        return CAMPAIGN[number].parts
    first, second = rng.choice(len(POOL), 2, replace=False)
    weight = float(rng.uniform(0.2, 0.8))
    return (weight, *POOL[first]), (1 - weight, *POOL[second])


def _draw(config: SyntheticConfig, number: int, labels: int, rows: int) -> Flight | None:
    """A flight with just so many labels, or None when the strip of `rows` rows holds fewer."""
    rng = np.random.default_rng([config.seed, number])
    height, width = config.height, config.width
    base = strip_base(rng, _mixture(rng, number), rows)
    thick = thickness(rng, base, width)
    emissivity = 1 - np.exp(-((thick / 0.15) ** (5 / 3)))
    frames = (rows - height) // ROWS_PER_FRAME + 1
    nadir = ROWS_PER_FRAME * np.arange(frames) + height // 2  # strip row under the middle of every frame
    candidates = np.arange(EDGE, frames - EDGE, FRAMES_PER_LABEL)
    labelled = candidates[emissivity[nadir[candidates], width // 2] > CLOUDY][:labels]
    if len(labelled) < labels:
        return None
    frames = int(labelled[-1]) + EDGE + 1
    nadir = nadir[:frames]
    # Angles of every strip row as it passes under the aircraft.
    hours = (np.arange(rows) - height // 2) / ROWS_PER_FRAME / 3600
    zenith = rng.uniform(25, 65) + 8 * hours
    azimuth = rng.uniform(120, 240) + 15 * hours
    heading = rng.uniform(0, 360)
    scene = brightness(rng, base, thick, emissivity)
    scene += 6 * emissivity * sunlit(thick, zenith[:, None], (azimuth - heading)[:, None])
    truth = base[nadir].astype(np.float32)
    height_km = np.full(frames, np.nan, np.float32)
    measured = truth[labelled] + 0.03 * rng.standard_normal(labels)
    height_km[labelled] = np.clip(np.round(measured / LABEL_STEP_KM) * LABEL_STEP_KM, LOWEST_KM, HIGHEST_KM)
    return Flight(
        name=chr(ord("A") + number),
        source="embedded flights",
        frames=camera(rng, scene, frames, height),
        time=FIRST_TIME + 86_400.0 * DAYS_BETWEEN * number + np.arange(frames),
        sza=zenith[nadir].astype(np.float32),
        saa=np.mod(azimuth[nadir] - heading, 360).astype(np.float32),
        height_km=height_km,
        oracle_km=truth,
        frame_id=np.arange(frames),
        span=(FIRST_TIME + 86_400.0 * DAYS_BETWEEN * number, FIRST_TIME + 86_400.0 * DAYS_BETWEEN * number + frames - 1),
        step_s=1.0,
        heading=np.full(frames, heading, np.float32),
    )


def strip_base(rng: np.random.Generator, parts: Sequence[tuple[float, float, float]], rows: int) -> np.ndarray:
    """(rows,) cloud base, km: the ranks of a slow process through the inverse distribution of a normal mixture."""
    rank = np.argsort(np.argsort(slow(rng, rows, 20)))
    grid = np.linspace(-1, 4, 5001)
    share = sum(w * np.array([0.5 * (1 + math.erf((x - m) / (s * math.sqrt(2)))) for x in grid]) for w, m, s in parts)
    base = np.clip(np.interp((rank + 0.5) / rows, share, grid), LOWEST_KM, HIGHEST_KM)
    return np.convolve(np.pad(base, 5, mode="edge"), np.full(11, 1 / 11), mode="valid")


def slow(rng: np.random.Generator, rows: int, length_km: float) -> np.ndarray:
    """(rows,) AR(1) of variance 1 along the strip with this e-folding length."""
    keep = math.exp(-PIXEL_KM / length_km)
    draws = rng.standard_normal(rows)
    draws[1:] *= math.sqrt(1 - keep**2)
    return np.array(list(itertools.accumulate(draws.tolist(), lambda before, new: keep * before + new)))


def thickness(rng: np.random.Generator, base: np.ndarray, width: int) -> np.ndarray:
    """(rows, width) cloud thickness, km: patterns of five scales, mixed so that cells are about twice as wide as the base is high."""
    rows = len(base)
    squared = wave_numbers(rows, width) ** 2
    white = np.fft.rfft2(rng.standard_normal((rows, width)))
    scale = np.log2(2 * base * np.exp(0.1 * slow(rng, rows, 20)) / SCALES_KM[0])
    position = np.clip(scale, 0, len(SCALES_KM) - 1)[:, None]
    weight = np.maximum(0, 1 - np.abs(position - np.arange(len(SCALES_KM))))
    weight /= np.sqrt((weight**2).sum(1, keepdims=True))
    pattern = np.zeros((rows, width))
    for k, length in enumerate(SCALES_KM):
        pattern += weight[:, k, None] * field(white, np.sqrt(squared) * (squared + length**-2) ** (-4 / 3), width)
    level = np.exp(0.2 * rng.standard_normal() + 0.4 * slow(rng, rows, 20))
    cover = 0.6 + 0.35 * slow(rng, rows, 10)
    return 0.35 * level[:, None] * np.maximum(0, cover[:, None] + pattern)


def wave_numbers(rows: int, width: int) -> np.ndarray:
    """(rows, width // 2 + 1) cycles/km of a real transform."""
    return np.hypot(np.fft.fftfreq(rows, PIXEL_KM)[:, None], np.fft.rfftfreq(width, PIXEL_KM))


def field(white: np.ndarray, amplitude: np.ndarray, width: int) -> np.ndarray:
    """(rows, width) periodic field of variance 1 from the transform of white noise."""
    values = np.fft.irfft2(white * amplitude, (len(white), width))
    return values / values.std()


def brightness(rng: np.random.Generator, base: np.ndarray, thick: np.ndarray, emissivity: np.ndarray) -> np.ndarray:
    """(rows, width) brightness temperature, K: sea, clouds under an unknown lapse rate, thin cirrus above."""
    rows, width = thick.shape
    sea = 290 + 6 * rng.standard_normal() + 0.5 * slow(rng, rows, 50)
    lapse = 6.5 + 0.7 * rng.standard_normal()
    scene = sea[:, None] - emissivity * (1 + lapse * (base[:, None] + thick))
    white = np.fft.rfft2(rng.standard_normal((rows, width)))
    wisps = field(white, (wave_numbers(rows, width) ** 2 + 1 / 36) ** (-11 / 6), width)
    cirrus = 1 - np.exp(-0.04 * np.exp(0.8 * wisps + 0.8 * slow(rng, rows, 50)[:, None]))
    return scene + cirrus * (225 - scene)


def sunlit(thick: np.ndarray, zenith: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """(rows, width) cosine between the sun and the cloud top's normal, 0 in its own shade.

    zenith, azimuth: degrees, broadcast against thick (rows, width) km; the azimuth counts from the direction of flight,
    so that the slope along the rows meets its cosine and the slope along the columns its sine.
    """
    along, across = np.gradient(thick, PIXEL_KM)
    zenith, azimuth = np.radians(zenith), np.radians(azimuth)
    facing = np.cos(zenith) - np.sin(zenith) * (along * np.cos(azimuth) + across * np.sin(azimuth))
    return np.maximum(0, facing / np.sqrt(1 + along**2 + across**2))


def camera(rng: np.random.Generator, scene: np.ndarray, frames: int, height: int) -> np.ndarray:
    """(frames, height, width) float32: what a camera of unknown gain and offset makes of the scene, with noise."""
    seen = 290 + (1 + 0.08 * rng.standard_normal()) * (scene - 290) + 2 * rng.standard_normal()
    # One view of the strip: frame m begins ROWS_PER_FRAME rows after frame m - 1.
    views = np.lib.stride_tricks.sliding_window_view(seen.astype(np.float32), height, axis=0)[::ROWS_PER_FRAME][:frames]
    noise = rng.standard_normal((frames, height, scene.shape[1]), dtype=np.float32)
    noise *= np.float32(0.3)
    noise += np.float32(0.1) * rng.standard_normal((frames, 1, 1), dtype=np.float32)
    noise += views.transpose(0, 2, 1)
    return noise
