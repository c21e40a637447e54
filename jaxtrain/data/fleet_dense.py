"""Dense rows of groups at the file's step become the arrays of a fleet: averaged, filled causally, features added."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxtrain.data import fleet_features
from jaxtrain.data.fleet_config import DataConfig, features, roles
from jaxtrain.data.fleet_features import Totals


@dataclass(frozen=True)
class Spans:
    """Where groups stand on an axis of absolute steps (epoch // step). row0 (G+1,), first (G,) int64."""

    row0: np.ndarray
    first: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.row0)

    def coarse(self, steps: int, extend: int) -> "Spans":
        """The same groups on steps that are `steps` times as long, each `extend` steps longer at its end."""
        first = self.first // steps
        lengths = (self.first + self.lengths - 1) // steps - first + 1 + extend
        return Spans(np.concatenate([[0], np.cumsum(lengths)]), first)

    def part(self, begin: int, end: int) -> "Spans":
        """Groups begin .. end-1 alone."""
        return Spans(self.row0[begin : end + 1] - self.row0[begin], self.first[begin:end])


@dataclass(frozen=True)
class Grid:
    """Rows of some groups, one for each step from a group's first to its last.

    numbers: declared column -> (N,) float32, NaN where the file has nothing;  codes: column -> (N,) int16, 0 likewise
    """

    spans: Spans
    numbers: Mapping[str, np.ndarray]
    codes: Mapping[str, np.ndarray]


def finish(
    config: DataConfig,
    grid: Grid,
    vocabularies: Mapping[str, tuple[str, ...]],
    extend: int,
    start: int,
    steps: int,
    classes: Mapping[str, np.ndarray],
    totals: Mapping[str, Totals] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(real (N, F) float32, seen (N, R) uint8, cat (N, C) int16) as `Fleet` has them, on steps of `step_seconds`.

    grid: file steps;  start, steps: of the common axis, in steps of `step_seconds`
    classes, totals: as `fleet_features.add` takes them
    """
    grid = extended(averaged(config, grid), extend)
    role = roles(config)
    position = fleet_features.positions(grid.spans.row0)
    inside = position < np.repeat(grid.spans.lengths - extend, grid.spans.lengths)
    seen = np.column_stack([~np.isnan(grid.numbers[name]) for name in config.targets]).astype(np.uint8)
    future = _after_last(seen.max(axis=1, initial=0) > 0, position, grid.spans)

    measured = {name: _defaulted(values, config.known_default.get(name), future) for name, values in grid.numbers.items()}
    filled = {name: fill(values, position, inside, config.fill_steps) for name, values in measured.items()}
    filled |= fleet_features.add(features(config), filled, measured, grid.spans.row0, grid.spans.first - start, classes, steps, totals)
    real = np.empty((len(position), len(role.real)), np.float32)
    for column, name in enumerate(role.real):
        real[:, column] = filled[name]
    cat = np.empty((len(position), len(role.categorical)), np.int16)
    for column, name in enumerate(role.categorical):
        text = config.known_default.get(name)
        default = None if text is None else 1 + vocabularies[name].index(str(text))
        cat[:, column] = fill(_defaulted(grid.codes[name], default, future), position, inside, config.fill_steps)
    return real, seen, cat


def averaged(config: DataConfig, grid: Grid) -> Grid:
    """The grid on steps of `step_seconds`: means where half of the bin (one cell of three) is measured, maxima of known
    columns, last categories."""
    if config.file_steps == 1:
        return grid
    old = grid.spans
    spans = old.coarse(config.file_steps, 0)
    lengths = old.lengths
    number = fleet_features.positions(old.row0) + np.repeat(old.first, lengths)
    bins = number // config.file_steps + np.repeat(spans.row0[:-1] - spans.first, lengths)
    start = np.searchsorted(bins, np.arange(spans.row0[-1]))
    numbers = {}
    for name, values in grid.numbers.items():
        if name in config.known_real:
            numbers[name] = np.fmax.reduceat(values, start)
        else:
            there = ~np.isnan(values)
            count = np.add.reduceat(there.astype(np.int64), start)
            total = np.add.reduceat(np.where(there, values, 0).astype(np.float64), start)
            mean = total / np.maximum(count, 1)
            numbers[name] = np.where(count >= config.file_steps // 2, mean, np.nan).astype(np.float32)
    codes = {}
    for name, values in grid.codes.items():
        last = np.maximum.reduceat(np.where(values > 0, np.arange(len(values)), -1), start)
        codes[name] = np.where(last >= 0, values[last], 0).astype(values.dtype)
    return Grid(spans, numbers, codes)


def extended(grid: Grid, extend: int) -> Grid:
    """`extend` empty rows after each group's last."""
    if not extend:
        return grid
    spans = grid.spans.coarse(1, extend)
    place = np.arange(grid.spans.row0[-1]) + np.repeat(extend * np.arange(len(grid.spans.first)), grid.spans.lengths)

    def spread(values: np.ndarray) -> np.ndarray:
        whole = np.full(spans.row0[-1], 0 if values.dtype.kind == "i" else np.nan, values.dtype)
        whole[place] = values
        return whole

    return Grid(spans, {n: spread(v) for n, v in grid.numbers.items()}, {n: spread(v) for n, v in grid.codes.items()})


def fill(values: np.ndarray, position: np.ndarray, inside: np.ndarray, steps: int) -> np.ndarray:
    """Missing cells take the last value of their group at most `steps` rows earlier; rows not `inside` stay as they are."""
    missing = _missing(values)
    gaps = np.flatnonzero(missing & inside)
    if not len(gaps):
        return values
    last = np.maximum.accumulate(np.where(missing, -1, np.arange(len(values))))[gaps]
    near = gaps - last <= np.minimum(position[gaps], steps)
    filled = values.copy()
    filled[gaps[near]] = values[last[near]]
    return filled


def _missing(values: np.ndarray) -> np.ndarray:
    return np.isnan(values) if values.dtype.kind == "f" else values == 0


def _defaulted(values: np.ndarray, default: float | str | None, future: np.ndarray) -> np.ndarray:
    return values if default is None else np.where(_missing(values) & future, default, values).astype(values.dtype)


def _after_last(seen: np.ndarray, position: np.ndarray, spans: Spans) -> np.ndarray:
    """(N,) bool: rows after the last one of their group with a measured target."""
    last = np.maximum.reduceat(np.where(seen, position, -1), spans.row0[:-1])
    return position > np.repeat(last, spans.lengths)
