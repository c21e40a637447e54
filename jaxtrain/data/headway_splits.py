"""Which service days teach and which windows are scored: one cut in time, rolling origins, or blocks of whole days.

A window lies inside one service day and one split, so the night is the gap. A prepared array without service days is one
run of rows, cut by the same shares; windows that touch a border are dropped.
"""

from dataclasses import dataclass

import numpy as np

from jaxtrain.data.headway_config import DataConfig
from jaxtrain.data.headway_tables import Line
from jaxtrain.errors import UserError

NAMES = ("train", "valid", "test")
Spans = list[tuple[int, int]]  # [first, end) of days, or of rows


@dataclass(frozen=True)
class Cut:
    """training: (R,) bool, rows that statistics may use; starts: first input rows of the train, valid and test windows, each (n,)."""

    training: np.ndarray
    starts: tuple[np.ndarray, ...]


def parts(config: DataConfig, count: int) -> tuple[Spans, Spans, Spans]:
    """Spans of train, valid and test among `count` service days (or rows), as `data.split` says; a span may be empty."""
    return {"time": _by_time, "walk_forward": _walk_forward, "blocked": _blocked}[config.split](config, count)


def _by_time(config: DataConfig, count: int) -> tuple[Spans, Spans, Spans]:
    first, second = (round(share * count) for share in config.cuts)
    return [(0, first)], [(first, second)], [(second, count)]


def _walk_forward(config: DataConfig, count: int) -> tuple[Spans, Spans, Spans]:
    """What follows the first cut is divided into folds + 1 blocks; fold f is tested on block f + 1, stops by block f and
    learns from everything before."""
    borders = np.linspace(round(config.cuts[0] * count), count, config.folds + 2).round().astype(int)
    train, valid, test = (int(b) for b in borders[config.fold : config.fold + 3])
    return [(0, train)], [(train, valid)], [(valid, test)]


def _blocked(config: DataConfig, count: int) -> tuple[Spans, Spans, Spans]:
    """Equal blocks: one for test, the next (cyclic) for valid, the others for training."""
    borders = [int(b) for b in np.linspace(0, count, config.folds + 1).round()]
    blocks = list(zip(borders[:-1], borders[1:], strict=True))
    test, valid = config.fold, (config.fold + 1) % config.folds
    train: Spans = []
    for number, (first, end) in enumerate(blocks):
        if number in (test, valid):
            continue
        if train and train[-1][1] == first:
            first = train.pop()[0]
        train.append((first, end))
    return train, [blocks[valid]], [blocks[test]]


def training_dates(config: DataConfig, service_dates: np.ndarray) -> list[str]:
    """Service dates that statistics and the raster may learn from."""
    return [str(date) for first, end in parts(config, len(service_dates))[0] for date in service_dates[first:end]]


def cut(config: DataConfig, line: Line, where: str) -> Cut:
    """The windows of every split. Raises UserError when one of them would hold none."""
    rows, days = len(line.time), len(line.service_dates)
    found = parts(config, days or rows)
    if days:
        # A day with a clock change may be short, so borders are looked up, not multiplied.
        borders = np.searchsorted(line.day, np.arange(days + 1))
        spans = [[(int(borders[a]), int(borders[b])) for a, b in part] for part in found]
    else:
        spans = list(found)
    usable = windows(config, line)
    starts = tuple(np.concatenate([_inside(usable, first, end, config) for first, end in part]) for part in spans)
    if not all(len(s) for s in starts):
        raise UserError(_no_window(config, starts, found, "service days" if days else "rows", where))
    training = np.zeros(rows, bool)
    for first, end in spans[0]:
        training[first:end] = True
    return Cut(training, (_newest(starts[0], config), *starts[1:]))


def windows(config: DataConfig, line: Line) -> np.ndarray:
    """(n,) first input rows of all windows inside one service day with enough known cells (`min_known`), `stride` rows apart."""
    rows = len(line.time)
    if rows < config.window:
        return np.zeros(0, np.int64)
    start = np.arange(rows - config.window + 1)
    newest, last = start + config.lookback - 1, start + config.window - 1
    row_of_day = start - np.searchsorted(line.day, line.day)[start]
    share = np.isfinite(getattr(line, config.target)).mean((1, 2))
    until = np.concatenate([[0], np.cumsum(share)])
    target = (until[last + 1] - until[newest + 1]) / config.horizon
    # The sum of shares is not exact: a share of just min_known counts.
    enough = np.minimum(share[newest], target) >= config.min_known - 1e-6
    return start[enough & (line.day[start] == line.day[last]) & (row_of_day % config.stride == 0)]


def _inside(usable: np.ndarray, first: int, end: int, config: DataConfig) -> np.ndarray:
    return usable[(usable >= first) & (usable + config.window <= end)]


def _newest(starts: np.ndarray, config: DataConfig) -> np.ndarray:
    """The newest share of the training windows, as `fraction` and `max_windows` ask."""
    count = max(1, round(config.fraction * len(starts)))
    if config.max_windows is not None:
        count = min(count, config.max_windows)
    return starts[len(starts) - count :]


def _no_window(config: DataConfig, starts: tuple[np.ndarray, ...], found: tuple[Spans, ...], unit: str, where: str) -> str:
    counts = ", ".join(
        f"{name} {len(s)} of {sum(end - first for first, end in part)} {unit}" for name, s, part in zip(NAMES, starts, found, strict=True)
    )
    key = "data.cuts" if config.split == "time" else "data.folds"
    return (
        f"{where}: a split holds no window of {config.window} rows (windows: {counts}); give more days, lower data.min_known "
        f"({config.min_known:g}), or change {key}"
    )
