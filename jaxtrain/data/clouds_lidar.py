"""Labels from a lidar's layer file: which profiles count, when they were taken, and which camera frame they belong to."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from jaxtrain.data.clouds_hdf5 import column, opened
from jaxtrain.errors import UserError

GROUP = "layer_descriptor"
DAY, BASE = f"{GROUP}/Profile_Decimal_Julian_Day", f"{GROUP}/Layer_Base_Altitude"
SURFACE, GROUND = f"{GROUP}/Lidar_Surface_Altitude", f"{GROUP}/DEM_Surface_Altitude"
MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
DAY_S = 86_400
MAX_SURFACE_M = 900  # of the surface the lidar saw; more is land or a cloud taken for it
LOWEST_BASE = -9990  # below: the fill value
METRES = 50  # a median above is no height in km
MIDNIGHT_FALL = 0.2  # of the day's fraction
MIN_LABELS = 10


@dataclass(frozen=True)
class Labels:
    """height_km: (N,) float32, NaN without; funnel: profiles left after every filter, in order."""

    height_km: np.ndarray
    funnel: tuple[tuple[str, int], ...]


def read_labels(path: str, year: int | None, frame_time: np.ndarray, base_km: tuple[float, float], match_s: float) -> Labels:
    """The labels of camera frames at `frame_time` (N,) epoch s.

    A profile counts over the ocean with a base inside `base_km`; it goes to the nearest frame within `match_s`, the nearest
    profile of a frame wins. Raises UserError where the file does not fit its layout, the camera's times or km.
    """
    with opened(path) as file:
        day = column(file, path, DAY)
        base, surface, ground = (column(file, path, key) for key in (BASE, SURFACE, GROUND))
    for key, values in ((BASE, base), (SURFACE, surface), (GROUND, ground)):
        if len(values) != len(day):
            raise UserError(f"{path}: {key}: {len(values)} profiles, but {DAY} has {len(day)}; all must have one row per profile")
    time = profile_times(day, file_year(path, year), path)
    check_overlap(path, time, frame_time, "the camera", "is it another flight's file, or data.flights[].year?")
    found = np.isfinite(base) & (base > LOWEST_BASE)
    if found.any() and np.median(base[found]) > METRES:
        raise UserError(f"{path}: {BASE}: the median is {np.median(base[found]):g}; expected km; divide metres by 1000")
    ocean = (np.abs(surface) <= MAX_SURFACE_M) & (ground == 0)
    found &= ocean
    inside = found & (base >= base_km[0]) & (base <= base_km[1])
    offset, frame = nearest_frames(time, frame_time)
    matched = np.flatnonzero(inside & (np.abs(offset) <= match_s))
    matched = matched[np.argsort(np.abs(offset[matched]), kind="stable")]
    frames, first = np.unique(frame[matched], return_index=True)
    height_km = np.full(len(frame_time), np.nan, np.float32)
    height_km[frames] = base[matched[first]]
    counts = {"profiles": len(time), "ocean": ocean, "finite": found, "in range": inside}
    funnel = (*((name, int(np.sum(value))) for name, value in counts.items()), ("matched", len(frames)))
    if len(frames) < MIN_LABELS:
        steps = " -> ".join(f"{count} {name}" for name, count in funnel)
        away = f"{np.median(np.abs(offset[inside])):.1f} s" if inside.any() else "unknown"
        asked = {
            "ocean": f"over land, or {SURFACE}, {GROUND} not in metres?",
            "finite": f"fill values in {BASE}?",
            "in range": f"data.base_km ({base_km[0]:g}, {base_km[1]:g})?",
            "matched": f"clock offset? data.match_s ({match_s:g})?",
        }
        short = next(name for name, count in funnel[1:] if count < MIN_LABELS)
        raise UserError(f"{path}: fewer than {MIN_LABELS} labels ({steps}; median distance to a frame {away}); {asked[short]}")
    return Labels(height_km, funnel)


def file_year(path: str, year: int | None) -> int:
    """The year in the file's own name (12feb25), else `year`. Folders are not looked at: they may hold another date."""
    match = re.search(rf"(?<!\d)\d{{1,2}}({MONTHS})(\d{{2}})(?!\d)", Path(path).name.lower())
    if match:
        return 2000 + int(match[2])
    if year is None:
        raise UserError(f"{path}: no date like 12feb25 in the file's name; add one, or year to the flight of the config")
    return year


def profile_times(day: np.ndarray, year: int, path: str) -> np.ndarray:
    """(P,) float64 epoch s of days of the year with fraction (1 January = 1). A fraction that falls by more than 0.2 without
    a new day is a midnight that the day missed: the rest is a day later. After New Year's Eve the day may go on counting or start
    anew. Not rounded."""
    if day.dtype != np.float64:
        raise UserError(f"{path}: {DAY}: stored as {day.dtype}, whose steps are seconds long (float32: 2.6 s); store float64")
    new_year = datetime(year, 1, 1, tzinfo=UTC)
    length = (datetime(year + 1, 1, 1, tzinfo=UTC) - new_year).days
    outside = ~((day >= 1) & (day < length + 2))
    if outside.any():
        row = int(np.argmax(outside))
        raise UserError(f"{path}: {DAY}: row {row} is {day[row]:g}, no day of the year 1..{length}; repair the file")
    whole = np.floor(day)
    missed = np.concatenate([[0], np.cumsum((np.diff(day - whole) < -MIDNIGHT_FALL) & (np.diff(whole) == 0))]) if len(day) else day
    anew = np.concatenate([[0], np.cumsum(np.diff(whole) < -length / 2)]) if len(day) else day
    return new_year.timestamp() + (day - 1 + missed + length * anew) * DAY_S


def nearest_frames(time: np.ndarray, frame_time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((P,) seconds from the nearest frame, (P,) its number)."""
    after = np.clip(np.searchsorted(frame_time, time), 1, max(1, len(frame_time) - 1))
    before = after - 1
    after = np.minimum(after, len(frame_time) - 1)
    frame = np.where(np.abs(time - frame_time[before]) <= np.abs(frame_time[after] - time), before, after)
    return time - frame_time[frame], frame


def check_overlap(path: str, time: np.ndarray, frame_time: np.ndarray, other: str, remedy: str) -> None:
    """Raises UserError when `time` and the camera's times share no moment."""
    known = time[np.isfinite(time)]
    if len(known) and known.min() <= frame_time[-1] and known.max() >= frame_time[0]:
        return
    if not len(known):
        raise UserError(f"{path}: holds no time; {remedy}")
    days = (known.min() - frame_time[0]) / DAY_S
    apart = f"{days:+.2f} days apart" if abs(days) >= 1 else f"{24 * days:+.2f} hours apart; a clock offset"
    raise UserError(f"{path}: {_iso(known.min())} to {_iso(known.max())}, but {other} {_iso(frame_time[0])} to {_iso(frame_time[-1])}: "
                    f"{apart}; {remedy}")  # fmt: skip


def _iso(time: float) -> str:
    try:
        return datetime.fromtimestamp(float(time), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{time:g} s"
