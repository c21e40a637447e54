"""Cloud base height from camera frames: windows over shared frames, split by cycles with gaps and by whole flights.

Letters: B batch, T frames of a window, H, W image rows (along track) and columns, N frames of all flights, F flights.
A batch holds frames (B, T, H, W) float32 in the sensor's unit, sun (B, 2) degrees (zenith, azimuth from the aircraft's
heading where known), height_km (B,), reference_km (B, 5) = near, last, ridge, boost, oracle, NaN where not available, and
flight, role (B,) int32: position in the statistics' `flights`, and one of `clouds_splits.ROLES`.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data import clouds_frames, clouds_prepared, clouds_serving
from jaxtrain.data import clouds_references as reference
from jaxtrain.data import clouds_splits as parts
from jaxtrain.data.clouds_arrays import dataset, gather, shared_arrays
from jaxtrain.data.clouds_config import DataConfig, check_config
from jaxtrain.data.clouds_files import read_triple
from jaxtrain.data.clouds_flight import Flight, from_north
from jaxtrain.data.clouds_statistics import label_facts, training_statistics
from jaxtrain.data.clouds_synthetic import flights as embedded_flights
from jaxtrain.data.dataset import Dataset, Splits, Statistics
from jaxtrain.errors import UserError

__all__ = ["flight_names", "gather", "inputs", "labelled", "splits", "times"]


def splits(config: DataConfig) -> Splits:
    """Train (role 0), valid (1 and 3 as `valid_rows` says) and test (2, 4, 5, 6) windows of the config's flights.

    Raises UserError for every fault of the input.
    """
    check_config(config)
    flights = read_flights(config)
    names = [flight.name for flight in flights]
    _check_shapes(config, flights)
    flights, turned = _one_azimuth(config, flights)
    flights, centres, previous, fills, notes = _windows(config, flights)
    notes += turned + _prepared_notes(config)
    roles = parts.roles(config, flights, centres)
    parts.check_roles(config, flights, roles, config.path or "embedded flights")
    arrays = shared_arrays(config, flights, fills)
    index = _index(flights, centres, roles)
    statistics = training_statistics(config, arrays, index, names)
    mean_km = float(statistics["height_mean"])
    arrays["reference_km"], ridge, more = reference.references(
        config, flights, centres, previous, roles, arrays, index, mean_km
    )
    statistics |= ridge | label_facts([flight.height_km[parts.labelled_frames(config, flight)] for flight in flights])
    chosen = ((parts.TRAIN,), parts.VALID_ROLES[config.valid_rows], parts.TEST_ROLES)
    train, valid, test = (index[np.isin(index[:, 2], wanted)] for wanted in chosen)
    weights = _weights(config, train, names)
    notes += more + _role_notes(names, index) + _weight_notes(config, train, names, weights) + _size_notes(config, arrays["frames"])
    return Splits(
        dataset(config, arrays, train, weights), dataset(config, arrays, valid), dataset(config, arrays, test), statistics, notes=notes
    )


def inputs(
    config: DataConfig, statistics: Statistics, path: str, *, every: int = 1, nav: str = "", lidar: str = "", calibrate: int = 0
) -> Dataset:
    """What a finished run reads: its config and statistics, and a prepared file, or an images file with `nav`.

    Every `every`-th frame with a whole window is a row of role 4. Labels come from the prepared file or from `lidar`; frames
    without one have NaN. calibrate: the file's first so many labelled windows have role 5 (and are there whatever `every` says),
    windows within `gap_s` of them role 6. Raises UserError where the file does not fit the run.
    """
    if every < 1:
        raise UserError(f"option every: {every} is not possible; 1 takes every frame, k every k-th")
    flight = _served(config, statistics, path, nav, lidar, calibrate)
    return clouds_serving.windows(config, statistics, flight, np.arange(len(flight)) % every == 0, calibrate)


def labelled(
    config: DataConfig, statistics: Statistics, path: str, *, nav: str = "", lidar: str = "", calibrate: int = 0
) -> Dataset:
    """As `inputs`, but the labelled windows only."""
    flight = _served(config, statistics, path, nav, lidar, calibrate)
    trained = [entry.name for entry in config.flights if Path(entry.images or entry.file).name == Path(path).name]
    if trained and trained[0] != config.test_flight:
        warnings.warn(f"{path}: is flight {trained[0]} of the run, which it knows; its scores, called {config.test_flight}, are no test",
                      stacklevel=2)  # fmt: skip
    asked = parts.labelled_frames(config, flight)
    if not asked.any():
        raise UserError(f"{path}: no frame has a label inside data.base_km {config.base_km}; give a labelled file, or lidar=FILE")
    return clouds_serving.windows(config, statistics, flight, asked, calibrate)


def times(dataset: Dataset) -> np.ndarray:
    """(n,) float64 UTC epoch seconds of every row's centre frame."""
    return dataset.arrays["time"][dataset.index[:, 0]]


def flight_names(config: DataConfig) -> dict[str, float]:
    """{name: standard deviation of its usable labels in km} in the order of the config; 0 below two labels."""
    check_config(config)
    found = {}
    for flight in read_flights(config):
        heights = flight.height_km[parts.labelled_frames(config, flight)]
        found[flight.name] = float(heights.std(dtype=np.float64)) if len(heights) > 1 else 0.0
    return found


def read_flights(config: DataConfig) -> list[Flight]:
    """The config's flights, or the embedded ones; frames may still be in their files."""
    if not config.path:
        return embedded_flights(config.synthetic)
    reading = config.reading
    return [clouds_prepared.read(reading, entry) if entry.file else read_triple(reading, entry) for entry in config.flights]


def _prepared_notes(config: DataConfig) -> tuple[str, ...]:
    """That prepared frames are taken as they are, where the config asks for something else."""
    prepared = [entry.name for entry in config.flights if entry.file]
    if not config.path or not prepared or (tuple(config.rows) == (0, 0) and config.reduce == 1):
        return ()
    return (f"flight {', '.join(prepared)}: prepared, so data.rows and data.reduce change nothing; prepare with --rows, --reduce",)


def _check_shapes(config: DataConfig, flights: Sequence[Flight]) -> None:
    shapes = {flight.name: flight.frames.shape[1:] for flight in flights}
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {height} x {width}" for name, (height, width) in shapes.items())
        raise UserError(f"{config.path}: flights of different sizes: {found} (data.rows {config.rows}, data.reduce {config.reduce}); "
                        "set data.rows or reduce so that all agree")  # fmt: skip


def _one_azimuth(config: DataConfig, flights: list[Flight]) -> tuple[list[Flight], tuple[str, ...]]:
    """The azimuth counts from the same direction in all flights: from the heading only where each has one."""
    without = [flight.name for flight in flights if flight.heading is None]
    if "saa" not in config.needed_angles or len(without) in (0, len(flights)):
        return flights, ()
    note = f"no heading in flight {', '.join(without)}: the azimuth counts from north in all flights; give every flight a heading"
    return [from_north(flight) for flight in flights], (note,)


def _windows(
    config: DataConfig, flights: Sequence[Flight]
) -> tuple[list[Flight], list[np.ndarray], list[np.ndarray], list[np.ndarray], tuple[str, ...]]:
    """Per flight: itself (with only the frames it needs, if they are read now), centre frames of its labelled windows, the label
    before each (NaN for the first), and the value for non-finite pixels; and notes."""
    kept, centres, previous, fills, notes = [], [], [], [], ()
    for flight in flights:
        labelled = parts.labelled_frames(config, flight)
        windows = parts.whole_windows(config, flight, labelled)
        before = reference.previous_label(config, flight, windows.centres)  # of all labels: few frames may be left afterwards
        flight, windows = parts.take_used(config, flight, windows)
        scan = clouds_frames.scan(flight.frames, parts.used_frames(config, windows.centres))
        found = parts.clear_windows(config, windows, scan.bad)
        previous.append(before[np.isin(windows.centres, found.centres)])
        windows = found
        kept.append(flight)
        centres.append(windows.centres)
        fills.append(scan.fill)
        notes += flight.notes + clouds_frames.check_scan(scan, flight.source, flight.name)
        notes += (funnel_note(flight, int(labelled.sum()), windows),)
    return kept, centres, previous, fills, notes


def funnel_note(flight: Flight, labels: int, windows: parts.Windows) -> str:
    """'flight A: 2,400 profiles -> 1,900 ocean -> ... -> 501 labels -> 498 whole windows (2 leave the file, ...)'."""
    steps = [f"{count:,} {name}" for name, count in flight.funnel]
    if not flight.funnel or flight.funnel[-1][1] != labels:
        steps.append(f"{labels:,} labels")
    steps.append(f"{len(windows.centres):,} whole windows")
    dropped = ", ".join(f"{count} {why}" for why, count in windows.dropped.items() if count)
    return f"flight {flight.name}: {' -> '.join(steps)}" + (f" ({dropped})" if dropped else "")


def _index(flights: Sequence[Flight], centres: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> np.ndarray:
    """(n, 3) int32 (frame, flight, role) of all windows that have a role."""
    rows, first = [], 0
    for number, (flight, mine, role) in enumerate(zip(flights, centres, found, strict=True)):
        rows.append(np.stack([first + mine, np.full(len(mine), number), role], axis=1)[role != parts.UNUSED])
        first += len(flight)
    return np.concatenate(rows).astype(np.int32)


def _weights(config: DataConfig, index: np.ndarray, names: Sequence[str]) -> np.ndarray | None:
    """(n,) sampling weights of the training windows, or None where all are equal. Raises UserError for a flight without any."""
    if not config.overweight_flight or config.overweight_factor == 1:
        return None
    chosen = index[:, 1] == names.index(config.overweight_flight)
    if not chosen.any():
        raise UserError(f"config.data.overweight_flight: {config.overweight_flight} has no training window, there is nothing to draw more "
                        "often; name another flight or set it to \"\"")  # fmt: skip
    return np.where(chosen, config.overweight_factor, 1.0)


def _weight_notes(config: DataConfig, index: np.ndarray, names: Sequence[str], weights: np.ndarray | None) -> tuple[str, ...]:
    if weights is None:
        return ()
    share = weights[index[:, 1] == names.index(config.overweight_flight)].sum() / weights.sum()
    return (f"flight {config.overweight_flight} x {config.overweight_factor:g}: {share:.0%} of the training draws",)


def _size_notes(config: DataConfig, frames: Any) -> tuple[str, ...]:
    if isinstance(frames, np.ndarray):
        return ()
    return (f"{frames.nbytes / 2**30:.1f} GiB of frames stay in their files (data.max_gib {config.max_gib:g})",)


def _role_notes(names: Sequence[str], index: np.ndarray) -> tuple[str, ...]:
    notes = []
    for number, name in enumerate(names):
        counts = np.bincount(index[index[:, 1] == number, 2], minlength=len(parts.ROLES))
        text = ", ".join(f"{parts.ROLES[k]} {count}" for k, count in enumerate(counts) if count)
        notes.append(f"flight {name}: windows {text or 'none'}")
    return tuple(notes)


def _served(config: DataConfig, statistics: Statistics, path: str, nav: str, lidar: str, calibrate: int) -> Flight:
    if calibrate < 0:
        raise UserError(f"option calibrate: {calibrate} is not possible; give the number of labels, 0 for none")
    flight = clouds_serving.read(config, path, nav, lidar)
    clouds_serving.check_fits(config, statistics, flight)
    return clouds_serving.as_trained(config, statistics, flight)
