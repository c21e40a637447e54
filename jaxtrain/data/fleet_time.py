"""Time stamps of fleet files: parsed to microseconds UTC, checked against the declared step, snapped to its grid."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import numpy as np

from jaxtrain.data.fleet_config import DataConfig
from jaxtrain.data.fleet_tables import compute
from jaxtrain.data.traffic_time import FORMS, Label, show
from jaxtrain.errors import UserError

EARLIEST, LATEST = 631_152_000, 4_102_444_800  # 1990 and 2100: an epoch outside is in another unit
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}  # of an epoch, per second
MICRO = 1_000_000


@dataclass(frozen=True)
class Stamps:
    """Times of a piece. micro (n,) int64 microseconds UTC; naive: they carried no zone."""

    micro: np.ndarray
    naive: bool


def read_time(config: DataConfig, column: Any, label: Label) -> Stamps:
    """Stamps of a column of timestamps, dates, ISO text or epochs. Raises UserError naming row and value."""
    import pyarrow as pa

    pc = compute()
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = pc.utf8_trim_whitespace(column)
        empty = pc.fill_null(pc.equal(column, ""), True)
        if len(column) and pc.all(pc.match_substring_regex(column, r"^\d+(\.0*)?$")).as_py() and not pc.any(empty).as_py():
            column = column.cast(pa.float64())
            kind = column.type
    else:
        empty = column.is_null()
    if pc.any(empty).as_py():
        raise UserError(f"{label(first_true(empty))}, {config.time} is empty; every row needs a time")
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        zoned = bool(getattr(kind, "tz", None))
        micro = column.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(pa.int64()).to_numpy()
        stamps = Stamps(micro, not zoned)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return Stamps(_epochs(config, column.to_numpy(), label), False)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        stamps = _iso(config, column, label)
    else:
        raise UserError(f"{label(0)}, {config.time} holds {kind}, not times; write {FORMS} or an integer epoch")
    wrong = np.flatnonzero((stamps.micro < EARLIEST * MICRO) | (stamps.micro > LATEST * MICRO))
    if len(wrong):
        row = int(wrong[0])
        raise UserError(f"{label(row)}, {config.time}: {column[row].as_py()} lies outside the years 1990 to 2100; correct the stamp")
    return stamps


def _epochs(config: DataConfig, values: np.ndarray, label: Label) -> np.ndarray:
    per_second = UNITS[config.time_unit]
    wrong = np.flatnonzero(~((values >= EARLIEST * per_second) & (values <= LATEST * per_second)))
    if len(wrong):
        row = int(wrong[0])
        fits = [unit for unit, scale in UNITS.items() if EARLIEST * scale <= values[row] <= LATEST * scale]
        if not fits:
            hint = "correct the stamp"
        elif fits[0] in ("s", "ms"):
            hint = f"set data.time_unit={fits[0]}"
        else:
            hint = "it looks like " + fits[0] + "; divide the stamps down to ms and set data.time_unit=ms"
        raise UserError(f"{label(row)}, {config.time}: {values[row]:.0f} is no time between 1990 and 2100 with "
                        f"data.time_unit={config.time_unit}; {hint}")  # fmt: skip
    if values.dtype.kind == "f":
        return np.round(values * (MICRO // per_second)).astype(np.int64)
    return values.astype(np.int64) * (MICRO // per_second)


def _iso(config: DataConfig, column: Any, label: Label) -> Stamps:
    import pyarrow as pa

    pc = compute()
    for zone in ("UTC", None):
        try:
            return Stamps(column.cast(pa.timestamp("us", zone)).cast(pa.int64()).to_numpy(), zone is None)
        except pa.ArrowInvalid:
            continue
    naive, micro = False, {}  # several forms in one column: text by text
    for text in pc.unique(column).to_pylist():
        try:
            stamp = datetime.fromisoformat(text)
        except ValueError:
            row = first_true(pc.equal(column, text))
            raise UserError(f"{label(row)}, {config.time}: {text!r} is not a time; write it as {FORMS}, or as an integer epoch") from None
        naive |= stamp.tzinfo is None
        stamp = stamp.replace(tzinfo=UTC) if stamp.tzinfo is None else stamp
        micro[text] = round(stamp.timestamp() * MICRO)
    encoded = column.combine_chunks().dictionary_encode()
    values = np.array([micro[text] for text in encoded.dictionary.to_pylist()], np.int64)
    return Stamps(values[encoded.indices.to_numpy()], naive)


def check_stamps(config: DataConfig, path: str, group: np.ndarray, micro: np.ndarray) -> None:
    """Raises UserError where the rows of a group mostly follow each other by what is no multiple of the declared step.

    group, micro: of rows sorted by both, which may be some of the file's only: then steps between them are missing.
    """
    apart = np.diff(micro)[(group[1:] == group[:-1]) & (micro[1:] > micro[:-1])] / MICRO
    near = config.file_step_seconds * np.maximum(1, np.round(apart / config.file_step_seconds))
    fits = np.abs(apart - near) <= 2 * config.snap_tolerance * config.file_step_seconds
    if 2 * fits.sum() < len(apart):
        values, counts = np.unique(np.maximum(1, np.round(apart)).astype(np.int64), return_counts=True)
        _refuse_step(config, path, int(values[counts.argmax()]), counts.max() / len(apart))


def check_step(config: DataConfig, path: str, counts: np.ndarray) -> None:
    """Raises UserError where another step than the declared one is the commonest.

    counts: how often rows of a group that follow each other lie 0, 1, 2 .. file steps apart
    """
    if len(counts) > 2 and counts.argmax() > 1:
        _refuse_step(config, path, int(counts.argmax()) * config.file_step_seconds, counts.max() / counts.sum())


def _refuse_step(config: DataConfig, path: str, seconds: int, share: float) -> NoReturn:
    remedy = f"set it to {seconds}"
    if config.step_seconds != seconds:
        average = config.step_seconds > seconds and config.step_seconds % seconds == 0
        remedy += f", and step_seconds to {config.step_seconds} to average" if average else ", and step_seconds to a multiple of it"
    raise UserError(f"{path}: the commonest step is {seconds} s ({100 * share:.0f} %), data.file_step_seconds is "
                    f"{config.file_step_seconds}: {remedy}")  # fmt: skip


def snapped(config: DataConfig, micro: np.ndarray, phase: int | None, label: Label) -> tuple[np.ndarray, int]:
    """((n,) epoch seconds on the grid, its phase). Multiples of the step since 1970, unless most stamps have another offset."""
    step = config.file_step_seconds * MICRO
    tolerance = config.snap_tolerance * step

    def offsets(phase_seconds: int) -> np.ndarray:
        after = (micro - phase_seconds * MICRO) % step
        return np.where(after > step / 2, after - step, after)

    if phase is None:
        phase = 0
        if 2 * (np.abs(offsets(0)) <= tolerance).sum() < len(micro):
            values, counts = np.unique(np.round(micro % step / MICRO).astype(np.int64), return_counts=True)
            phase = int(values[counts.argmax()]) % config.file_step_seconds
    off = offsets(phase)
    wrong = np.flatnonzero(np.abs(off) > tolerance)
    if len(wrong):
        row = int(wrong[0])
        raise UserError(f"{label(row)}: {show(micro[row] // MICRO)} UTC lies {off[row] / MICRO:g} s off the grid of "
                        f"{config.file_step_seconds} s ({len(wrong)} such rows); correct the stamps, data.file_step_seconds or "
                        "data.snap_tolerance")  # fmt: skip
    return (micro - off.astype(np.int64)) // MICRO, phase


def first_true(mask: Any) -> int:
    """Number of the first row of an Arrow mask that is true."""
    pc = compute()
    return int(pc.index(mask, True).as_py())
