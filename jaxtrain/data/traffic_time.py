"""Time stamps of traffic files, and the grid of rows they stand on. Times are local epoch seconds (int64)."""

import calendar
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from jaxtrain.errors import UserError

FORMS = "2012-03-01T00:05, 2012-03-01 00:05:00 or 2012-03-01T00:05:00+07:00"
Label = Callable[[int], str]  # row number -> "line 7", as the reader of the file counts


def looks_like_stamp(text: str) -> bool:
    """Whether a cell is ISO text rather than a number."""
    text = text.strip().strip('"')
    return len(text) >= 10 and text[:4].isdigit() and text[4] == "-"


def parse_stamp(text: str, timezone: str, place: str) -> int:
    """Local epoch seconds of ISO text. A zone-aware stamp is converted to `timezone`, a naive one is local already."""
    try:
        stamp = datetime.fromisoformat(text.strip().strip('"'))
    except ValueError:
        found = repr(text) if text.strip() else "an empty timestamp"
        raise UserError(f"{place}: {found} is not a time; write it as {FORMS}") from None
    return local_seconds(stamp, timezone, place)


def local_seconds(stamp: datetime, timezone: str, place: str) -> int:
    """Epoch seconds of the wall clock in `timezone`."""
    if stamp.tzinfo is not None:
        if not timezone:
            raise UserError(f"{place}: {stamp.isoformat()} carries a time zone; set data.timezone, for example Asia/Ho_Chi_Minh")
        stamp = stamp.astimezone(zone(timezone))
    return calendar.timegm(stamp.timetuple())


def zone(name: str) -> ZoneInfo:
    """The zone of an IANA name. Raises UserError for an unknown one."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        raise UserError(f"config.data.timezone: {name!r} is not a known zone; write it as Asia/Ho_Chi_Minh or UTC") from None


def parse_stamps(texts: Sequence[str], timezone: str, path: str, label: Label) -> np.ndarray:
    """(R,) of a column of ISO text; equal texts are parsed once."""
    known: dict[str, int] = {}
    for row, text in enumerate(texts):
        if text not in known:
            known[text] = parse_stamp(text, timezone, f"{path}: {label(row)}, timestamp")
    return np.array([known[text] for text in texts], np.int64)


def localize(utc_seconds: np.ndarray, timezone: str, path: str) -> np.ndarray:
    """Local wall-clock seconds of instants (UTC seconds) from a zone-aware column."""
    instants, where = np.unique(utc_seconds, return_inverse=True)
    local = [local_seconds(datetime.fromtimestamp(int(s), UTC), timezone, f"{path}: timestamp") for s in instants]
    return np.array(local, np.int64)[where]


def show(seconds: int | np.integer) -> str:
    """ISO text of local epoch seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%S")


def snap(time: np.ndarray, step_seconds: int) -> np.ndarray:
    """The nearest multiple of the step, counted from midnight."""
    return (time + step_seconds // 2) // step_seconds * step_seconds


def span(first: int | np.integer, last: int | np.integer, step_seconds: int) -> np.ndarray:
    """Every step from first to last, both included."""
    return np.arange(int(first), int(last) + 1, step_seconds, dtype=np.int64)


def on_grid(time: np.ndarray, values: np.ndarray, step_seconds: int, path: str, label: Label) -> tuple[np.ndarray, np.ndarray]:
    """Rows (R, ...) placed on every step between the first and the last stamp; a step without a row is NaN.

    Raises UserError where the times decrease, repeat or are spaced by anything else than whole steps.
    """
    spacing = np.diff(time)
    wrong = np.flatnonzero(spacing <= 0)
    if len(wrong):
        row = int(wrong[0])
        fault = "is the same as" if spacing[row] == 0 else "comes after"
        raise UserError(f"{path}: {label(row)} {show(time[row])} {fault} {label(row + 1)} {show(time[row + 1])}; "
                        "sort the rows by time and keep each time once")  # fmt: skip
    wrong = np.flatnonzero(spacing % step_seconds)
    if len(wrong):
        row, fits = int(wrong[0]), math.gcd(*(int(s) for s in np.unique(spacing))) / 60
        raise UserError(f"{path}: {label(row)} {show(time[row])} and {label(row + 1)} {show(time[row + 1])}: {spacing[row] / 60:g} minutes "
                        f"is not a multiple of data.step_minutes={step_seconds / 60:g}; a step of {fits:g} would fit")  # fmt: skip
    full = span(time[0], time[-1], step_seconds)
    placed = np.full((len(full), *values.shape[1:]), np.nan, values.dtype)
    placed[(time - time[0]) // step_seconds] = values
    return full, placed
