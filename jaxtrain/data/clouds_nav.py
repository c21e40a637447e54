"""Sun angles and track from a navigation file, joined to camera frames by time."""

from dataclasses import dataclass

import numpy as np

from jaxtrain.data.clouds_flight import azimuth_notes, check_angles, check_seconds
from jaxtrain.data.clouds_hdf5 import column, has, opened
from jaxtrain.data.clouds_lidar import DAY_S, check_overlap
from jaxtrain.errors import UserError

ZENITH, AZIMUTH = "nav/solarZenith", "nav/sunAzGrd"
TIMES = ("nav/time", "nav/timeUTC", "nav/unix_time")
TRACK = {"lat": "nav/IWG_lat", "lon": "nav/IWG_lon"}
SECONDS_OF_DAY = 172_800  # smaller times count from midnight


@dataclass(frozen=True)
class Navigation:
    """Per frame (N,) float32 degrees, NaN in gaps: sza, saa from north, and heading, lat, lon or None; notes."""

    sza: np.ndarray
    saa: np.ndarray
    heading: np.ndarray | None
    lat: np.ndarray | None
    lon: np.ndarray | None
    notes: tuple[str, ...]


def read_navigation(path: str, name: str, frame_time: np.ndarray, gap_s: float, nav_time: str, nav_heading: str) -> Navigation:
    """The navigation at `frame_time` (N,) epoch s: zenith and position linear, directions through their unit vectors.

    Without any time the rows are the frames', if there are as many. Raises UserError where the file does not fit.
    """
    with opened(path) as file:
        columns = {"sza": column(file, path, ZENITH), "saa": column(file, path, AZIMUTH)}
        columns |= {key: column(file, path, place) for key, place in TRACK.items() if has(file, place)}
        if nav_heading:
            columns["heading"] = column(file, path, nav_heading)
        key = nav_time or next((place for place in TIMES if has(file, place)), "")
        time = column(file, path, key) if key else None
    columns = {key: values.astype(np.float64) for key, values in columns.items()}
    rows = len(columns["sza"])
    for other, values in {**columns, "time": time}.items():
        if values is not None and len(values) != rows:
            raise UserError(f"{path}: {other} has {len(values)} rows, but {ZENITH} has {rows}; all must have one row per moment")
    check_angles(columns, path)
    notes = azimuth_notes(columns["saa"], name)
    if time is None:
        if rows != len(frame_time):
            raise UserError(f"{path}: no time ({', '.join(TIMES)}), and {rows} rows for {len(frame_time)} frames cannot be joined by row; "
                            "name nav_time")  # fmt: skip
        notes += (f"flight {name}: the navigation has no time and was joined by row; name nav_time if it has one under another name",)
        joined = columns
    else:
        joined = _by_time(path, key, time, columns, frame_time, gap_s)
    values = {key: value.astype(np.float32) for key, value in joined.items()}
    return Navigation(values["sza"], values["saa"], values.get("heading"), values.get("lat"), values.get("lon"), notes)


def _by_time(
    path: str, key: str, time: np.ndarray, columns: dict[str, np.ndarray], frame_time: np.ndarray, gap_s: float
) -> dict[str, np.ndarray]:
    check_seconds(time, f"{path}: {key}")
    time = epoch(time.astype(np.float64), frame_time)
    check_overlap(path, time, frame_time, "the camera", f"is it another flight's file, or another time than {key}? name nav_time")
    return {
        name: _direction(time, values, frame_time, gap_s) if name in ("saa", "heading") else linear(time, values, frame_time, gap_s)
        for name, values in columns.items()
    }


def epoch(time: np.ndarray, frame_time: np.ndarray) -> np.ndarray:
    """Epoch s of times that may be seconds of the day, which may start anew at midnight: of the camera's first day or, where the
    camera was switched on after midnight, of the one before."""
    known = np.isfinite(time)
    if not known.any() or np.nanmax(time) >= SECONDS_OF_DAY:
        return time
    passed = np.zeros(len(time))
    passed[np.flatnonzero(known)[1:]] = np.diff(time[known]) < -DAY_S / 2
    found = time + DAY_S * (np.floor(frame_time[0] / DAY_S) + np.cumsum(passed))
    first, last = np.nanmin(found), np.nanmax(found)
    shared = [min(last - back, frame_time[-1]) - max(first - back, frame_time[0]) for back in (0, DAY_S)]
    return found - DAY_S if shared[1] >= 0 and shared[1] > shared[0] else found


def linear(time: np.ndarray, values: np.ndarray, at: np.ndarray, gap_s: float) -> np.ndarray:
    """Values (M,) at other times (N,), linear between known neighbours at most `gap_s` apart, else NaN."""
    known = np.isfinite(time) & np.isfinite(values)
    order = np.argsort(time[known], kind="stable")
    time, values = time[known][order], values[known][order]
    if not len(time):
        return np.full(len(at), np.nan)
    right = np.clip(np.searchsorted(time, at), 0, len(time) - 1)
    left = np.clip(np.searchsorted(time, at, side="right") - 1, 0, len(time) - 1)
    inside = (time[left] <= at) & (at <= time[right]) & (time[right] - time[left] <= gap_s)
    return np.where(inside, np.interp(at, time, values), np.nan)


def _direction(time: np.ndarray, degrees: np.ndarray, at: np.ndarray, gap_s: float) -> np.ndarray:
    radians = np.radians(degrees)
    sine, cosine = linear(time, np.sin(radians), at, gap_s), linear(time, np.cos(radians), at, gap_s)
    return np.mod(np.degrees(np.arctan2(sine, cosine)), 360)
