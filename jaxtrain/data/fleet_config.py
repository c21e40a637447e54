"""The `data` section of the fleet system, the roles of its columns, and the checks that need no file."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from jaxtrain.errors import UserError

CALENDAR = ("hour_of_day", "day_of_week", "is_weekend", "day_of_month", "month", "day_of_year")
CHOICES = {
    "format": ("auto", "parquet", "csv", "jsonl", "json", "prepared"),
    "time_unit": ("s", "ms"),
    "static_change": ("error", "train"),
    "split": ("time", "group", "walk_forward", "cross", "leave_out"),
    "weight": ("uniform", "group"),
}
TRANSFORMS = ("identity", "log1p")
NORMALISE = ("global", "group", "window")
STATISTICS = ("mean", "std", "min", "max")
AT_LEAST = {
    "file_step_seconds": 1, "step_seconds": 1, "snap_tolerance": 0, "fill_steps": 0, "context_steps": 1, "horizon_steps": 1,
    "min_history_steps": 1, "gap_steps": 0, "valid_blocks": 1, "block_steps": 1, "folds": 2, "fold": 0, "fold_steps": 1,
    "train_steps": 1, "train_stride": 1, "eval_stride": 1, "max_train_windows": 1, "max_valid_windows": 1,
}  # fmt: skip
ROLES = ("targets", "observed_real", "observed_categorical", "known_real", "known_categorical", "static_real", "static_categorical")


@dataclass(frozen=True)
class SyntheticConfig:
    servers: int  # or customers
    days: int
    seed: int
    kind: str  # fleet | electricity


@dataclass(frozen=True)
class DataConfig:
    path: str | tuple[str, ...]  # file, folder or a list of them; "" = the embedded fleet of `synthetic`
    format: str  # auto = by suffix
    time: str  # column of the time stamps
    time_unit: str  # of integer stamps
    groups: tuple[str, ...]  # columns that name a series, joined by "/"; () = one series
    file_step_seconds: int
    step_seconds: int  # a multiple of the file's; larger = averages
    snap_tolerance: float  # share of a file step that a stamp may lie off the grid
    timezone: str  # of the calendar
    fill_steps: int  # a missing cell takes the last value at most this many steps old
    targets: tuple[str, ...]
    observed_real: tuple[str, ...]
    observed_categorical: tuple[str, ...]
    known_real: tuple[str, ...]
    known_categorical: tuple[str, ...]
    static_real: tuple[str, ...]
    static_categorical: tuple[str, ...]
    calendar: tuple[str, ...]
    lags: tuple[tuple[str, int], ...]  # (column, steps)
    rolling: tuple[tuple[str, int, str, int], ...]  # (column, width, mean | std | min | max, shift)
    interactions: tuple[tuple[str, str], ...]
    peers: tuple[tuple[str, str], ...]  # (column, static column or "")
    static_change: str  # a static column that changes inside a group: error | train (its usual value in training)
    group_as_static: bool
    level_as_static: bool
    present_as_observed: bool
    relative_step_as_known: bool
    transform: dict[str, str]  # column -> identity | log1p
    normalise: dict[str, str]  # target -> global | group | window
    bounds: dict[str, tuple[float | None, float | None]]  # column -> least and greatest possible value, file units
    clip: bool  # move values outside `bounds` to the bound instead of refusing the file
    cap: bool
    context_steps: int  # k
    horizon_steps: int  # tau
    min_history_steps: int
    split: str
    valid_fraction: float
    test_fraction: float
    gap_steps: int | None  # None = tau
    valid_blocks: int
    block_steps: int
    folds: int
    fold: int
    fold_steps: int
    train_steps: int | None
    train_stride: int
    eval_stride: int
    max_train_windows: int | None
    max_valid_windows: int | None
    weight: str
    season_steps: tuple[int, ...]
    alerts: dict[str, float]  # target -> threshold, file units
    known_default: dict[str, float | str]  # known column -> constant for future rows that the file lacks
    synthetic: SyntheticConfig

    @property
    def gap(self) -> int:
        return self.horizon_steps if self.gap_steps is None else self.gap_steps

    @property
    def file_steps(self) -> int:
        """File steps of one step."""
        return self.step_seconds // self.file_step_seconds


@dataclass(frozen=True)
class Roles:
    """Variables by role, engineered features under their names after the declared columns."""

    targets: tuple[str, ...]
    observed_real: tuple[str, ...]
    known_real: tuple[str, ...]
    observed_categorical: tuple[str, ...]
    known_categorical: tuple[str, ...]
    static_real: tuple[str, ...]
    static_categorical: tuple[str, ...]
    calendar: tuple[str, ...]

    @property
    def real(self) -> tuple[str, ...]:
        """The columns of `Fleet.real`."""
        return self.targets + self.observed_real + self.known_real

    @property
    def categorical(self) -> tuple[str, ...]:
        """The columns of `Fleet.cat`."""
        return self.observed_categorical + self.known_categorical


@dataclass(frozen=True)
class Feature:
    """One engineered column: what it is made of, and whether all of the horizon knows it."""

    name: str
    kind: str  # lag | rolling | interaction | peers
    columns: tuple[str, ...]
    known: bool
    steps: int = 0  # lag, or the shift of a rolling statistic
    width: int = 0
    statistic: str = ""
    static: str = ""  # column that tells the classes of peers; "" = all groups


def features(config: DataConfig) -> tuple[Feature, ...]:
    """The engineered columns in config order: lags, rolling, interactions, peers.

    A lag or a shifted statistic is known where it looks back at least the horizon; a shorter one is unknown at its far end.
    """
    horizon, known = config.horizon_steps, config.known_real
    found = [Feature(f"{column} lag {steps}", "lag", (column,), steps >= horizon, steps) for column, steps in config.lags]
    for column, width, statistic, shift in config.rolling:
        name = f"{column} {statistic} {width}" + (f" shift {shift}" if shift else "")
        found.append(Feature(name, "rolling", (column,), shift >= horizon, shift, width, statistic))
    found += [Feature(f"{a} x {b}", "interaction", (a, b), a in known and b in known) for a, b in config.interactions]
    for column, static in config.peers:
        found.append(Feature(f"{column} of {static} peers" if static else f"{column} of peers", "peers", (column,), False, static=static))
    return tuple(found)


def roles(config: DataConfig) -> Roles:
    """The variables of a run, from its config alone."""
    made = features(config)
    return Roles(
        targets=config.targets,
        observed_real=config.observed_real + tuple(f.name for f in made if not f.known),
        known_real=config.known_real + tuple(f.name for f in made if f.known),
        observed_categorical=config.observed_categorical,
        known_categorical=config.known_categorical,
        static_real=config.static_real,
        static_categorical=config.static_categorical,
        calendar=config.calendar,
    )


def log1p(config: DataConfig) -> tuple[bool, ...]:
    """Whether each of `Roles.real` is transformed; a feature like all of its columns unless `transform` names it."""
    known = {column: name == "log1p" for column, name in config.transform.items()}
    for feature in features(config):
        known.setdefault(feature.name, all(known.get(column, False) for column in feature.columns))
    return tuple(known.get(column, False) for column in roles(config).real)


def check_config(config: DataConfig) -> None:
    """Raises UserError naming the key, its value and what is possible."""
    for key, known in CHOICES.items():
        _choice(key, getattr(config, key), known)
    for key, least in AT_LEAST.items():
        value = getattr(config, key)
        if value is not None and value < least:
            raise UserError(f"config.data.{key}: must be at least {least}, got {value}")
    _choice("synthetic.kind", config.synthetic.kind, ("fleet", "electricity"))
    _check_numbers(config)
    _check_roles(config)
    _check_references(config)


def _choice(key: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(f"config.data.{key}: {value!r} is not supported (known: {', '.join(known)})")


def _check_numbers(config: DataConfig) -> None:
    if config.step_seconds % config.file_step_seconds:
        raise UserError(f"config.data.step_seconds: must be a multiple of data.file_step_seconds={config.file_step_seconds}, "
                        f"got {config.step_seconds}")  # fmt: skip
    if config.snap_tolerance >= 0.5:
        raise UserError(f"config.data.snap_tolerance: must lie below half a step (0.5), got {config.snap_tolerance}")
    if config.min_history_steps > config.context_steps:
        raise UserError(f"config.data.min_history_steps: must be at most data.context_steps={config.context_steps}, "
                        f"got {config.min_history_steps}")  # fmt: skip
    for key in ("valid_fraction", "test_fraction"):
        if not 0 < getattr(config, key) < 1:
            raise UserError(f"config.data.{key}: must lie between 0 and 1, got {getattr(config, key)}")
    if config.valid_fraction + config.test_fraction >= 1:
        raise UserError(f"config.data.valid_fraction: leaves nothing to train on beside data.test_fraction={config.test_fraction}, "
                        f"got {config.valid_fraction}")  # fmt: skip
    if config.fold >= config.folds:
        raise UserError(f"config.data.fold: must be below data.folds={config.folds}, got {config.fold}")
    if not config.season_steps or min(config.season_steps) < 1:
        raise UserError(f"config.data.season_steps: needs whole numbers of steps, got {config.season_steps}")
    if config.synthetic.servers < 1 or config.synthetic.days < 1 or config.synthetic.seed < 0:
        raise UserError(f"config.data.synthetic: needs at least 1 server, 1 day and a seed of 0 or more, got {config.synthetic}")
    for column, (low, high) in config.bounds.items():
        if low is not None and high is not None and low >= high:
            raise UserError(f"config.data.bounds.{column}: the least value must lie below the greatest, got {low} and {high}")


def _check_roles(config: DataConfig) -> None:
    if not config.targets:
        raise UserError("config.data.targets: name at least one column to forecast")
    taken: dict[str, str] = {config.time: "time"}
    for key in ("groups", *ROLES):
        for column in getattr(config, key):
            if column in taken:
                why = "; a target is never known in advance" if "targets" in (key, taken[column]) else ""
                raise UserError(f"config.data.{key}: column {column!r} already has the role {taken[column]}{why}; name it once")
            taken[column] = key
    for column in config.calendar:
        _choice("calendar", column, CALENDAR)
    names = [*taken, *config.calendar, *(f.name for f in features(config))]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"config.data: two variables are named {twice[0]!r}; name each feature once")


def _check_references(config: DataConfig) -> None:
    moving = config.targets + config.observed_real + config.known_real
    static = config.static_real + config.static_categorical
    made = tuple(f.name for f in features(config))
    for key, pairs, first, second in (("lags", config.lags, moving, ()), ("interactions", config.interactions, moving, moving),
                                      ("peers", config.peers, moving, ("", *static))):  # fmt: skip
        for a, b in pairs:
            _column(key, a, first)
            if second:
                _column(key, str(b), second)
    for column, steps in config.lags:
        if steps < 1:
            raise UserError(f"config.data.lags: {column!r} needs at least 1 step, got {steps}")
    for column, width, statistic, shift in config.rolling:
        _column("rolling", column, moving)
        _choice("rolling", statistic, STATISTICS)
        if width < 1 or shift < 0:
            raise UserError(f"config.data.rolling: {column!r} needs a width of at least 1 and a shift of at least 0, got {width}, {shift}")
    for key, columns, values in (("transform", moving + config.static_real + made, TRANSFORMS), ("normalise", config.targets, NORMALISE)):
        for column, value in getattr(config, key).items():
            _column(key, column, columns)
            _choice(f"{key}.{column}", value, values)
    for column in config.bounds:
        _column("bounds", column, moving + config.static_real)
    for column in config.alerts:
        _column("alerts", column, config.targets)
    for column, value in config.known_default.items():
        _column("known_default", column, config.known_real + config.known_categorical)
        if column in config.known_real and isinstance(value, str):
            raise UserError(f"config.data.known_default.{column}: must be a number, got {value!r}")


def _column(key: str, column: str, known: Iterable[str]) -> None:
    if column not in known:
        near = difflib.get_close_matches(column, sorted(known), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(filter(None, known)) or 'none'}"
        raise UserError(f"config.data.{key}: names the column {column!r}, which has no fitting role ({hint})")
