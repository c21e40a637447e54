"""Flight triples: images, lidar and navigation in HDF5 files become one flight."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxtrain.data.clouds_config import MIN_PIXELS, FlightConfig, Reading
from jaxtrain.data.clouds_flight import Flight, check_known, check_times, median_step, relative_azimuth
from jaxtrain.data.clouds_frames import ImageFrames
from jaxtrain.data.clouds_hdf5 import column, dataset, opened
from jaxtrain.data.clouds_lidar import read_labels
from jaxtrain.data.clouds_nav import read_navigation
from jaxtrain.errors import UserError

SIGNAL, TIME = "Product/Signal", "Time/TimeUTC"


def read_triple(reading: Reading, flight: FlightConfig) -> Flight:
    """The flight of an images file, with labels where a lidar file and angles where a navigation file is named.

    The frames stay in their file. Raises UserError for every fault of the three files.
    """
    path = str(Path(reading.folder) / flight.images)
    frames, time = _images(path, reading)
    none = np.full(len(time), np.nan, np.float32)
    found = Flight(
        name=flight.name, source=path, frames=frames, time=time, sza=none, saa=none, height_km=none, oracle_km=none,
        frame_id=np.arange(len(time)), span=(float(time[0]), float(time[-1])), step_s=median_step(time),
    )  # fmt: skip
    if flight.lidar:
        labels = read_labels(str(Path(reading.folder) / flight.lidar), flight.year, time, reading.base_km, reading.match_s)
        found = replace(found, height_km=labels.height_km, funnel=labels.funnel)
    if flight.nav:
        nav = read_navigation(
            str(Path(reading.folder) / flight.nav), flight.name, time, reading.nav_gap_s, flight.nav_time, flight.nav_heading
        )
        found = replace(
            found, sza=nav.sza, saa=relative_azimuth(nav.saa, nav.heading), heading=nav.heading, lat=nav.lat, lon=nav.lon, notes=nav.notes
        )
        check_known(found, reading.angles)
    return found


def _images(path: str, reading: Reading) -> tuple[ImageFrames, np.ndarray]:
    with opened(path) as file:
        signal = dataset(file, path, SIGNAL)
        if signal.ndim != 3:
            raise UserError(f"{path}: {SIGNAL}: expected (frames, rows, columns), found {signal.shape}")
        count, height, width = signal.shape
        rows = (0, height) if tuple(reading.rows) == (0, 0) else reading.rows
        if rows[1] > height:
            raise UserError(f"{path}: {SIGNAL}: {signal.shape} has {height} rows, but data.rows asks for {rows}; set data.rows or reduce")
        frames = ImageFrames(path, SIGNAL, count, rows, width, reading.reduce, signal.dtype)
        if min(frames.shape[1:]) < MIN_PIXELS:
            raise UserError(f"{path}: {SIGNAL}: {signal.shape} with rows {rows} and reduce {reading.reduce} leaves {frames.shape[1]} x "
                            f"{frames.shape[2]} pixels, fewer than {MIN_PIXELS}; set data.rows or reduce")  # fmt: skip
        if not count:
            raise UserError(f"{path}: {SIGNAL}: holds no frame; is the file complete?")
        time = check_times(column(file, path, TIME), count, f"{path}: {TIME}")
    return frames, time
