"""Service days and local clocks of a rail line. Instants are UTC epoch seconds, wall times minutes of a service date."""

import calendar
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from jaxtrain.errors import UserError


def midnights(dates: Iterable[str], timezone: str) -> np.ndarray:
    """(n,) int64 s: noon minus 12 hours of each service date, from which its wall times count.

    The usual rule of timetables: 25:10 and days with a clock change need no special case. Where the clock shows a time
    twice, a time before the change counts.
    """
    zone = ZoneInfo(timezone)
    noons = [datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=zone) for day in dates]
    return np.array([int(noon.timestamp()) for noon in noons], np.int64) - 12 * 3600


def wall_minutes(text: str) -> float:
    """Minutes of a wall time HH:MM[:SS], which may pass 24:00. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d)(?:\.\d+)?)?", text.strip())
    if match is None or int(match[1]) > 47:
        raise ValueError(text)
    return int(match[1]) * 60 + int(match[2]) + int(match[3] or 0) / 60


def day_types(dates: Iterable[str], sunday_dates: Iterable[str]) -> np.ndarray:
    """(n,) int32: 0 weekday, 1 Saturday, 2 Sunday or one of sunday_dates."""
    sundays = set(sunday_dates)
    kinds = [2 if day in sundays else max(date.fromisoformat(day).weekday() - 4, 0) for day in dates]
    return np.array(kinds, np.int32)


def local_dates(seconds: np.ndarray, timezone: str, day_start_minutes: int) -> np.ndarray:
    """(n,) datetime64[D]: the local date on which the service day of each instant began."""
    return (local_seconds(seconds, timezone) - day_start_minutes * 60).astype("datetime64[s]").astype("datetime64[D]")


def local_seconds(seconds: np.ndarray, timezone: str) -> np.ndarray:
    """(n,) int64: the wall clock of each instant as if it were UTC."""
    zone = ZoneInfo(timezone)
    quarters, where = np.unique(np.floor(seconds / 900).astype(np.int64), return_inverse=True)  # clocks change on quarters of an hour
    walls = [calendar.timegm(datetime.fromtimestamp(int(q) * 900, zone).timetuple()) for q in quarters]
    return np.floor(seconds).astype(np.int64) + (np.array(walls, np.int64) - quarters * 900)[where]


def instant(text: str, timezone: str, place: str) -> int:
    """UTC epoch seconds of ISO text: with an offset as it stands, without one local time in `timezone`.

    Raises UserError for text that is no time, and for a local time that a clock change skips; of a local time that
    occurs twice the first counts.
    """
    try:
        stamp = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UserError(f"{place}: {text!r} is not a time; write it as 2025-10-06T08:30 or 2025-10-06T07:30:00Z") from None
    if stamp.tzinfo is None:
        stamp = stamp.replace(tzinfo=ZoneInfo(timezone))
        if stamp.astimezone(UTC).astimezone(stamp.tzinfo).replace(tzinfo=None) != stamp.replace(tzinfo=None):
            raise UserError(f"{place}: {text} does not exist in {timezone}, where the clock skips it; write it with an offset")
    return int(stamp.timestamp())


def zoned_instant(text: str, place: str) -> int:
    """UTC epoch seconds of ISO text with an offset. Raises UserError for text without one: a zone is never guessed."""
    seconds = instant(text, "UTC", place)
    if datetime.fromisoformat(text.strip()).tzinfo is None:
        raise UserError(f"{place}: {text} has no time zone; add an offset, as in 2025-10-06T04:00:00+01:00")
    return seconds


def show_local(seconds: float, timezone: str) -> str:
    """ISO text with offset of an instant."""
    return (datetime.fromtimestamp(0, UTC) + timedelta(seconds=float(seconds))).astimezone(ZoneInfo(timezone)).isoformat(timespec="seconds")
