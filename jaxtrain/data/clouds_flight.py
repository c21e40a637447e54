"""One flight as every reader hands it over: frames with their times, sun angles, labels and track. NumPy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxtrain.errors import UserError

PER_FRAME = ("time", "sza", "saa", "height_km", "oracle_km", "frame_id", "heading", "lat", "lon")
ANGLES = {"sza": "solar zenith", "saa": "solar azimuth", "heading": "heading"}
MAX_UNKNOWN_ANGLES = 0.05  # of a flight's frames
LATEST_S = 1e11  # more than three thousand years: milliseconds
GAP_STEPS = 1.5  # a step longer than so many median ones is a gap


@dataclass(frozen=True)
class Flight:
    """Frames in order of time; N of them, H x W pixels each.

    frames:    (N, H, W) any number type, in memory or mapped (`clouds_frames.MappedFrames`); sensor unit
    time:      (N,) float64 UTC epoch seconds, increasing
    sza, saa:  (N,) float32 degrees, zenith and azimuth of the sun, NaN unknown; the azimuth counts from the aircraft's
               heading where `heading` is known, else from north
    height_km: (N,) float32 km above sea level of the cloud base under the centre pixel; NaN = no usable label
    oracle_km: (N,) float32 km, what the simulator put there; NaN elsewhere
    frame_id:  (N,) int64 number of the frame in the recording
    heading, lat, lon: (N,) float32 degrees, or None
    span:      first and last second of the recording, of which the frames may be a part
    step_s:    seconds between neighbouring frames of the camera; a step longer than 1.5 of them is a gap
    funnel:    how many lidar profiles were left after every filter, in order
    notes:     sentences for the start-up table
    """

    name: str
    source: str  # file that an error names
    frames: Any
    time: np.ndarray
    sza: np.ndarray
    saa: np.ndarray
    height_km: np.ndarray
    oracle_km: np.ndarray
    frame_id: np.ndarray
    span: tuple[float, float]
    step_s: float
    heading: np.ndarray | None = None
    lat: np.ndarray | None = None
    lon: np.ndarray | None = None
    funnel: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.time)


def take(flight: Flight, rows: np.ndarray) -> Flight:
    """The flight with the frames `rows` (n,) only, read into memory; span and step stay those of the recording."""
    columns = {}
    for name in PER_FRAME:
        values = getattr(flight, name)
        columns[name] = None if values is None else values[rows]
    return replace(flight, frames=flight.frames[rows], **columns)


def median_step(time: np.ndarray) -> float:
    """Median seconds between neighbouring frames; 1 for a single frame."""
    return float(np.median(np.diff(time))) if len(time) > 1 else 1.0


def contiguous(time: np.ndarray, step_s: float, window: int) -> np.ndarray:
    """(max(N - window + 1, 0),) bool: whether the window of frames that starts here crosses no gap."""
    starts = len(time) - window + 1
    if starts <= 0:
        return np.zeros(0, bool)
    gaps = np.concatenate([[0], np.cumsum(np.diff(time) > GAP_STEPS * step_s)])
    return gaps[window - 1 :] == gaps[:starts]


def check_times(time: np.ndarray, frames: int, place: str) -> np.ndarray:
    """The frames' times as float64. Raises UserError where they are not finite, not increasing, or not one per frame."""
    if time.shape != (frames,):
        raise UserError(f"{place}: {time.shape} times for {frames} frames; give one per frame")
    check_seconds(time, place)
    time = time.astype(np.float64)
    if not np.isfinite(time).all():
        row = int(np.argmin(np.isfinite(time)))
        before = time[row - 1] if row else "nothing"
        raise UserError(f"{place}: [{row}] is {time[row]} after {before}; every frame needs a time in UTC seconds")
    falls = np.diff(time) <= 0
    if falls.any():
        row = int(np.argmax(falls)) + 1
        raise UserError(f"{place}: [{row}] is {time[row]:.3f} after {time[row - 1]:.3f}; times must increase; drop repeated frames")
    return time


def check_seconds(time: np.ndarray, place: str) -> None:
    """Raises UserError for epoch seconds that float32 cannot tell apart, or that are milliseconds."""
    largest = float(np.nanmax(time, initial=-np.inf))
    if time.dtype.itemsize < 8 and time.dtype.kind == "f" and largest > 2**24:
        raise UserError(f"{place}: stored as {time.dtype}, whose steps are {np.spacing(np.float32(largest)):g} s there; store float64")
    if np.isfinite(largest) and largest > LATEST_S:
        raise UserError(f"{place}: {largest:g} is no time in UTC seconds; divide milliseconds by 1000")


def check_angles(angles: Mapping[str, np.ndarray], place: str) -> None:
    """Raises UserError for a zenith outside 0..180, or an azimuth or heading outside -360..720 degrees, with its row."""
    for name, (low, high) in {"sza": (0, 180), "saa": (-360, 720), "heading": (-360, 720)}.items():
        if name not in angles:
            continue
        values = angles[name]
        outside = (values < low) | (values > high)
        if outside.any():
            row = int(np.argmax(outside))
            raise UserError(f"{place}: {ANGLES[name]} [{row}] is {values[row]:g} degrees, outside {low}..{high}; a fill value? "
                            "set it to NaN")  # fmt: skip


def check_known(flight: Flight, needed: Sequence[str]) -> None:
    """Raises UserError when more than 5 % of the frames lack an angle that is needed."""
    for name in needed:
        unknown = np.isnan(getattr(flight, name))
        share = float(unknown.mean())
        if share > MAX_UNKNOWN_ANGLES:
            row = int(np.argmax(unknown))
            raise UserError(f"{flight.source}: flight {flight.name}: {share:.0%} of the frames have no {ANGLES[name]} (row {row} is nan, "
                            "at most 5 % may be); mend the navigation, raise data.nav_gap_s or set data.angles")  # fmt: skip


def azimuth_notes(azimuth: np.ndarray, name: str) -> tuple[str, ...]:
    """A sentence about azimuths outside 0..360 degrees, which are brought into it."""
    outside = int(((azimuth < 0) | (azimuth > 360)).sum())
    return (f"flight {name}: {outside} azimuths outside 0..360 were turned into it",) if outside else ()


def from_north(flight: Flight) -> Flight:
    """The flight with an azimuth that counts from north, and without a heading."""
    if flight.heading is None:
        return flight
    return replace(flight, saa=np.mod(flight.saa + flight.heading, 360).astype(np.float32), heading=None)


def relative_azimuth(saa: np.ndarray, heading: np.ndarray | None) -> np.ndarray:
    """(N,) float32 azimuth minus heading, in [0, 360) degrees: the image turns with the aircraft."""
    return np.mod(saa if heading is None else saa - heading, 360).astype(np.float32)
