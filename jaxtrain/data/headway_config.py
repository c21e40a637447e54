"""The `data` section of the headway system, and the checks that need no file."""

import re
from dataclasses import dataclass
from datetime import date
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from jaxtrain.errors import UserError

DAY_MINUTES = 1440
FIELDS = ("headway", "age")
CHOICES = {
    "target": FIELDS,
    "terminal": ("merged", "per_origin"),
    "align": ("travel", "line"),
    "split": ("time", "walk_forward", "blocked"),
}
# Columns of all tables, as `columns` may map them to the names of the files.
COLUMNS = (
    "arrival_time", "trip", "station", "direction", "service_date", "scheduled_origin_departure", "origin", "destination", "event",
    "route", "snapshot_time", "branch", "departure", "day_type",
)  # fmt: skip
AT_LEAST = {"lookback": 1, "horizon": 1, "stride": 1, "zero_run": 0, "folds": 1, "fold": 0}
POSITIVE = ("cap_minutes", "max_gap_minutes", "max_age_minutes", "stale_minutes", "trunk_share", "fraction")
SHARES = ("trunk_share", "min_known", "fraction")


@dataclass(frozen=True)
class SyntheticConfig:
    stations: int
    days: int
    seed: int


@dataclass(frozen=True)
class DataConfig:
    path: str  # arrivals (.parquet, .csv, .csv.gz) or a prepared array (.npy); "" = the embedded line of `synthetic`
    snapshots: str  # times at which the feed was read; "" = none
    stations: str  # stations in line order; "" = derived from the arrivals
    timetable: str  # "" = rebuilt from the scheduled departures of the training days
    schedule: str  # planned headway beside a prepared array
    start: str  # ISO time with zone of a prepared array's row 0; "" = no service days
    columns: dict[str, str]  # column -> its name in the files
    events: tuple[str, ...]  # values of `event` that count; () = all
    routes: tuple[str, ...]  # values of `route` that count; () = all
    sunday_dates: tuple[str, ...]  # dates with Sunday service
    timezone: str  # IANA name of the local time of plans and service days
    service_day_start: str  # local HH:MM
    step_minutes: int  # one row
    lookback: int  # L, rows
    horizon: int  # F, rows
    target: str  # headway | age
    inputs: tuple[str, ...]  # fields that the model sees
    clock: bool  # adds sine and cosine of the local day and week
    terminal: str  # planned departures merged to one channel, or per_origin
    align: str  # travel: index 0 is where trains come from in both directions | line: one station per index
    cap_minutes: float  # known values are clipped to it
    max_gap_minutes: float  # a longer gap is unknown
    max_age_minutes: float  # an older last train is unknown
    stale_minutes: float  # a minute is observed by a snapshot at most this old
    trunk_share: float  # derived stations are served by at least this share of the training trips
    min_known: float  # share of known cells in a window's last input row and in its target
    zero_run: int  # prepared arrays: so many zeros in a row are unknown; 0 = every zero is a value
    stride: int  # between window starts
    split: str
    cuts: tuple[float, float]  # shares of the service days at which valid and test begin; rolling origins begin at the first
    folds: int  # of walk_forward and blocked
    fold: int  # which of them, from 0
    fraction: float  # newest share of the training windows
    max_windows: int | None  # newest training windows
    check_clock: bool
    synthetic: SyntheticConfig

    @property
    def prepared(self) -> bool:
        """Whether the path names a prepared array rather than a table of arrivals."""
        return self.path.lower().endswith(".npy")

    @property
    def step_seconds(self) -> int:
        return self.step_minutes * 60

    @property
    def day_rows(self) -> int:
        """Rows of one service day."""
        return DAY_MINUTES // self.step_minutes

    @property
    def day_start_minutes(self) -> int:
        """Local minute at which a service day starts."""
        hours, minutes = self.service_day_start.split(":")
        return int(hours) * 60 + int(minutes)

    @property
    def window(self) -> int:
        """Rows of one example, L + F."""
        return self.lookback + self.horizon


def check_config(config: DataConfig) -> None:
    """Raises UserError naming the key, its value and what is possible."""
    for key, known in CHOICES.items():
        if getattr(config, key) not in known:
            raise UserError(f"config.data.{key}: {getattr(config, key)!r} is not supported (known: {', '.join(known)})")
    _check_numbers(config)
    _check_times(config)
    if not config.inputs or set(config.inputs) - set(FIELDS) or len(set(config.inputs)) < len(config.inputs):
        raise UserError(f"config.data.inputs: one or both of {', '.join(FIELDS)}, each once, got {config.inputs}")
    unknown = sorted(set(config.columns) - set(COLUMNS))
    if unknown:
        raise UserError(f"config.data.columns: {', '.join(unknown)}: no column of this system (known: {', '.join(COLUMNS)})")
    if config.folds < (3 if config.split == "blocked" else 1) or config.fold >= config.folds:
        raise UserError("config.data.fold: expected 0 <= fold < folds, with 3 folds or more when blocked, got "
                        f"{config.fold} of {config.folds}")  # fmt: skip
    _check_combinations(config)


def _check_numbers(config: DataConfig) -> None:
    if config.step_minutes < 1 or DAY_MINUTES % config.step_minutes:
        raise UserError(f"config.data.step_minutes: a day must be a whole number of steps, got {config.step_minutes} minutes")
    for key, least in AT_LEAST.items():
        if getattr(config, key) < least:
            raise UserError(f"config.data.{key}: must be at least {least}, got {getattr(config, key)}")
    for key in POSITIVE:
        if getattr(config, key) <= 0:
            raise UserError(f"config.data.{key}: must be more than 0, got {getattr(config, key):g}")
    for key in SHARES:
        if not 0 <= getattr(config, key) <= 1:
            raise UserError(f"config.data.{key}: must lie in [0, 1], got {getattr(config, key):g}")
    if config.max_windows is not None and config.max_windows < 1:
        raise UserError(f"config.data.max_windows: must be at least 1, got {config.max_windows}")
    if not 0 < config.cuts[0] < config.cuts[1] < 1:
        raise UserError(f"config.data.cuts: two growing shares between 0 and 1 (where valid and test begin), got {config.cuts}")
    if config.window > config.day_rows:
        raise UserError(f"config.data.lookback and horizon: {config.lookback} + {config.horizon} rows are more than a service day of "
                        f"{config.day_rows}; lower one of them")  # fmt: skip
    synthetic = config.synthetic
    if not config.path and (synthetic.stations < 2 or synthetic.days < 3):
        raise UserError(f"config.data.synthetic: needs at least 2 stations and 3 days, got {synthetic.stations} and {synthetic.days}")
    if synthetic.seed < 0:
        raise UserError(f"config.data.synthetic.seed: must be at least 0, got {synthetic.seed}")


def _check_times(config: DataConfig) -> None:
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", config.service_day_start):
        raise UserError(f"config.data.service_day_start: {config.service_day_start!r} is not a local time; write it as 04:00")
    try:
        ZoneInfo(config.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UserError(f"config.data.timezone: {config.timezone!r} is not a known zone; write it as Europe/Dublin or UTC") from None
    for text in config.sunday_dates:
        try:
            date.fromisoformat(text)
        except ValueError:
            raise UserError(f"config.data.sunday_dates: {text!r} is not a date; write it as 2025-12-25") from None


def _check_combinations(config: DataConfig) -> None:
    if not config.path:
        for key in ("snapshots", "stations", "timetable", "schedule", "start"):
            if getattr(config, key):
                raise UserError(f"config.data.{key}: {getattr(config, key)} belongs to a file of arrivals, but data.path is unset and the "
                                "embedded line would be used; set data.path")  # fmt: skip
    elif config.prepared:
        for key in ("snapshots", "timetable"):
            if getattr(config, key):
                raise UserError(f"config.data.{key}: {getattr(config, key)} belongs to a table of arrivals, but data.path {config.path} "
                                "is a prepared array; unset one of them")  # fmt: skip
        if config.inputs != (config.target,):
            raise UserError(f"config.data.inputs: a prepared array holds the one field that data.target names ({config.target}), got "
                            f"{config.inputs}; set data.inputs to ({config.target!r},)")  # fmt: skip
        if config.terminal != "merged":
            raise UserError(f"config.data.terminal: a prepared data.schedule has one planned value per direction, got {config.terminal!r}; "
                            "set it to merged")  # fmt: skip
        if config.clock and not config.start:
            raise UserError("config.data.clock: a prepared array without data.start has no clock; set data.start or clock=False")
    else:
        for key in ("schedule", "start"):
            if getattr(config, key):
                raise UserError(f"config.data.{key}: {getattr(config, key)} belongs to a prepared array (.npy), but data.path is "
                                f"{config.path}; unset one of them")  # fmt: skip
