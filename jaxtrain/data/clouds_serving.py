"""What a finished run reads: a prepared flight or an images file that need not have labels."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data import clouds_frames, clouds_prepared
from jaxtrain.data import clouds_references as reference
from jaxtrain.data import clouds_splits as parts
from jaxtrain.data.clouds_arrays import dataset, shared_arrays
from jaxtrain.data.clouds_config import DataConfig, FlightConfig
from jaxtrain.data.clouds_files import read_triple
from jaxtrain.data.clouds_flight import Flight, from_north
from jaxtrain.data.clouds_statistics import pixel_moments
from jaxtrain.data.dataset import Dataset, Statistics
from jaxtrain.errors import UserError

MANY_FRAMES = 200  # fewer say little about a flight
UNUSUAL_STD = 3  # pixel level or contrast outside the training flights' range by more than so many of the pixels' std


def read(config: DataConfig, path: str, nav: str, lidar: str) -> Flight:
    """The flight of a prepared file, or of an images file with `nav` and, if labels are wanted, `lidar`; named after the file.

    Raises UserError, also where the run needs angles and there is no navigation.
    """
    reading = replace(config.reading, folder="")
    name = Path(path).stem
    if clouds_prepared.is_prepared(path):
        if nav or lidar:
            raise UserError(f"{path}: is a prepared flight, which has its angles and labels inside; leave out nav and lidar")
        return clouds_prepared.read(reading, FlightConfig(name, file=path))
    if config.needed_angles and not nav:
        raise UserError(f"{path}: the run was trained with data.angles={config.angles!r}, and an images file has none; give nav=FILE")
    return read_triple(reading, replace(_alike(config, path), name=name, images=path, nav=nav, lidar=lidar, file=""))


def _alike(config: DataConfig, path: str) -> FlightConfig:
    """The run's flight of this images file; for another file the first one's names of time and heading, as the azimuth must
    count from where it did in training."""
    triples = [flight for flight in config.flights if flight.images]
    for flight in triples:
        if Path(flight.images).name == Path(path).name:
            return flight
    return replace(triples[0], year=None) if triples else FlightConfig("")


def check_fits(config: DataConfig, statistics: Statistics, flight: Flight) -> None:
    """Raises UserError for frames of another size, or fewer than a window."""
    expected, found = tuple(int(n) for n in statistics["frame_shape"]), tuple(flight.frames.shape[1:])
    if found != expected:
        raise UserError(f"{flight.source}: frames of {found[0]} x {found[1]} pixels, but the run was trained on {expected[0]} x "
                        f"{expected[1]}; prepare them with the same rows and reduce")  # fmt: skip
    if len(flight) < config.temporal_frames:
        raise UserError(f"{flight.source}: {len(flight)} frames, but a window needs {config.temporal_frames}; give more")


def as_trained(config: DataConfig, statistics: Statistics, flight: Flight) -> Flight:
    """The flight with an azimuth that counts from where it did in training. Raises UserError where that was a heading it lacks."""
    if "saa" not in config.needed_angles:
        return flight
    if not bool(statistics.get("heading_known", False)):
        return from_north(flight)
    if flight.heading is None:
        raise UserError(f"{flight.source}: has no heading, but the run's azimuth counts from the heading; add it (nav_heading, or "
                        "`heading` of a prepared file)")  # fmt: skip
    return flight


def windows(config: DataConfig, statistics: Statistics, flight: Flight, asked: np.ndarray, calibrate: int) -> Dataset:
    """Windows around the frames `asked` (N,) bool of one file, with the references that it allows: near is the training mean,
    last needs labels, ridge is the run's (labelled windows only).

    The first `calibrate` labelled windows have role 5 and are there even if not asked for; what lies within `gap_s` of them has
    role 6, all others role 4. Every row's flight is the run's test flight: a file of its own is an unseen flight. Raises UserError
    when there is no whole window, or fewer labelled ones than `calibrate`.
    """
    label = parts.labelled_frames(config, flight)
    found = parts.whole_windows(config, flight, asked | label if calibrate else asked)
    wanted, known = asked[found.centres], label[found.centres]
    last = reference.previous_label(config, flight, found.centres, float(statistics["height_mean"]))
    flight, found = parts.take_used(config, flight, found)
    used = parts.used_frames(config, found.centres)
    scan = clouds_frames.scan(flight.frames, used)
    clear = parts.clear_windows(config, found, scan.bad)
    whole = np.isin(found.centres, clear.centres)
    centres, wanted, known, last = clear.centres, wanted[whole], known[whole], last[whole]
    notes = clouds_frames.check_scan(scan, flight.source, flight.name)
    role = _roles(config, flight, centres, known, calibrate)
    keep = wanted | (role == parts.CALIBRATION)
    if not keep.any():
        why = ", ".join(f"{count} {reason}" for reason, count in clear.dropped.items() if count)
        raise UserError(f"{flight.source}: no whole window of {config.temporal_frames} frames ({why}); give more frames")
    arrays = shared_arrays(config, [flight], [scan.fill])
    for note in notes + unusual(statistics, flight.name, arrays["frames"], used):
        warnings.warn(note, stacklevel=2)
    references = np.full((len(flight), len(reference.NAMES)), np.nan, np.float32)
    references[centres, reference.NEAR] = statistics["height_mean"]
    references[centres, reference.LAST] = last
    features = reference.window_statistics(config, arrays, centres[known])
    references[centres[known], reference.RIDGE] = reference.predict_ridge(statistics, features)
    arrays["reference_km"] = references
    number = int(np.flatnonzero(statistics["flights"] == config.test_flight)[0])
    index = np.stack([centres, np.full(len(centres), number), role], axis=1)[keep].astype(np.int32)
    return dataset(config, arrays, index)


def _roles(config: DataConfig, flight: Flight, centres: np.ndarray, known: np.ndarray, calibrate: int) -> np.ndarray:
    """(n,) roles of the windows of one file, of which `known` (n,) bool have a label."""
    role = np.full(len(centres), parts.TEST_FLIGHT)
    if not calibrate:
        return role
    first = np.flatnonzero(known)[:calibrate]
    if len(first) < calibrate:
        raise UserError(f"{flight.source}: calibrate={calibrate}, but {len(first)} windows have a label; give fewer, or lidar=FILE")
    time = flight.time[centres]
    role[time < time[first[-1]] + config.gap_s] = parts.CALIBRATION_GAP
    role[first] = parts.CALIBRATION
    return role


def unusual(statistics: Statistics, name: str, frames: Any, rows: np.ndarray) -> tuple[str, ...]:
    """A sentence for a pixel mean or std that lies outside those of the training flights by more than three standard
    deviations between these flights (of the pixels, where only one trained)."""
    _, mean, square = pixel_moments(frames, rows)
    count = len(rows) * frames.shape[1] * frames.shape[2]
    spread = float(statistics["pixel_std"])
    notes = []
    for what, value, key in (("mean", mean, "flight_pixel_mean"), ("std", np.sqrt(square / count), "flight_pixel_std")):
        trained = statistics[key][np.isfinite(statistics[key])]
        # A few frames differ from a whole flight as frames do.
        room = UNUSUAL_STD * (trained.std() if len(trained) > 1 and len(rows) >= MANY_FRAMES else spread)
        if not trained.min() - room <= value <= trained.max() + room:
            notes.append(f"{name}: pixel {what} {value:g} is far from the training flights' {trained.min():g}..{trained.max():g}: "
                         "another camera or unit? intervals do not hold there")  # fmt: skip
    return tuple(notes)
