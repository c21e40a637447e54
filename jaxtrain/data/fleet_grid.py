"""Long rows become one regular grid per group, all groups one after the other in flat arrays: `build`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxtrain.data.fleet_config import DataConfig, log1p, roles
from jaxtrain.data.fleet_dense import Grid, Spans, finish
from jaxtrain.data.fleet_static import find_runs, settle
from jaxtrain.data.fleet_time import check_step
from jaxtrain.data.traffic_time import show
from jaxtrain.errors import UserError

MOST_ROWS = 2**31 - 1  # index rows are int32
SPARSE = 100  # a group whose grid is so many times its rows holds a wild stamp
Training = Callable[[int, Sequence[str]], np.ndarray]  # (steps of the axis, groups) -> (steps,) bool


@dataclass(frozen=True)
class Category:
    """A column of categories. codes (n,) int: 0 = missing, else 1 + index into `texts`."""

    codes: np.ndarray
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Columns:
    """A long table in memory, one row per (group, time), rows in any order.

    source:     what the rows came from, for messages
    time:       (n,) int64 epoch seconds, on the grid of `file_step_seconds`
    group:      (n,) int index into `names`
    numbers:    column -> (n,) float, file units, NaN = missing (static columns: repeated on every row)
    categories: column -> Category of n codes
    label:      row (from 0) -> "FILE: row 7", as the reader of the file counts
    rows:       (n,) number of each row in its file, from 0, where that is another
    """

    source: str
    time: np.ndarray
    group: np.ndarray
    names: tuple[str, ...]
    numbers: dict[str, np.ndarray]
    categories: dict[str, Category]
    label: Callable[[int], str]
    notes: tuple[str, ...] = ()
    rows: np.ndarray | None = None


@dataclass(frozen=True)
class Fleet:
    """All groups on a common axis of steps; rows of group g are row0[g] .. row0[g+1]-1, in time order, without holes.

    start:       epoch seconds of step 0, the first step of any group
    row0:        (G+1,) int64
    step0:       (G,) int32 step of a group's first row
    real:        (N, R+O+K) float32, file units: targets, observed, known (`Roles.real`); filled causally, NaN where nothing is known
    seen:        (N, R) uint8, 1 where a target was measured
    cat:         (N, C) int16, observed then known: 1 + index into `vocabularies` (of the whole file), 0 = missing
    static_real: (G, S_r) float32, file units, NaN = missing
    static_cat:  (G, S_c) int32, coded like `cat`
    log1p:       (R+O+K,) bool, the transform of each column; static_log1p (S_r,) likewise
    notes:       sentences about the data for the start-up table
    """

    groups: tuple[str, ...]
    start: int
    step_seconds: int
    row0: np.ndarray
    step0: np.ndarray
    real: np.ndarray
    seen: np.ndarray
    cat: np.ndarray
    vocabularies: dict[str, tuple[str, ...]]
    static_real: np.ndarray
    static_cat: np.ndarray
    log1p: np.ndarray
    static_log1p: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """L, the length of the common axis."""
        return int((self.step0 + np.diff(self.row0)).max())


def build(config: DataConfig, columns: Columns, extend: int = 0, training: Training | None = None) -> Fleet:
    """The fleet of a long table: gridded, averaged where `step_seconds` asks for it, filled, with features.

    extend:   steps added after each group's last row, for forecasts past the end of the file: nothing is measured
              there, known columns take `known_default`, and known features look back from there
    training: which steps may decide about static columns that change (default: all)
    Raises UserError naming rows where (group, time) stands twice, a stamp is wild or a static column changes.
    """
    order = sorting(columns.group, columns.time)
    group, time = taken(columns.group, order).astype(np.int64), taken(columns.time, order)
    phase = int(time[0]) % config.file_step_seconds
    number = (time - phase) // config.file_step_seconds
    keep, notes = _without_copies(config, columns, order, group, number)
    if keep is not None:
        order = np.flatnonzero(keep) if order is None else order[keep]
        group, number = group[keep], number[keep]

    check_step(config, columns.source, step_counts(group, number))
    spans = find_spans(config, group, number, columns.names, columns.source, phase)
    place = spans.row0[group] + number - spans.first[group]
    role = roles(config)
    declared = config.targets + config.observed_real + config.known_real
    numbers = {name: _scattered(taken(columns.numbers[name], order), place, spans, np.float32, np.nan) for name in declared}
    codes = {name: _scattered(taken(columns.categories[name].codes, order), place, spans, np.int16, 0) for name in role.categorical}
    vocabularies = {name: columns.categories[name].texts for name in (*role.categorical, *role.static_categorical)}

    axis = spans.coarse(config.file_steps, extend)
    start, steps = int(axis.first.min()), int((axis.first + axis.lengths).max() - axis.first.min())
    step = number // config.file_steps - start
    chosen = np.ones(len(step), bool) if training is None else training(steps - extend, columns.names)[step]
    static: dict[str, np.ndarray] = {}
    for name in config.static_real + config.static_categorical:
        values = columns.numbers[name] if name in config.static_real else columns.categories[name].codes
        row = np.arange(len(values)) if order is None else order
        runs = find_runs(group, step, row, taken(values, order), chosen)
        static[name], changed = settle(name, runs, columns.names, config.static_change, columns.label, *showing(vocabularies.get(name)))
        notes += changed
    vocabularies = with_defaults(config, vocabularies)
    classes = peer_classes(config, static, len(columns.names))
    real, seen, cat = finish(config, Grid(spans, numbers, codes), vocabularies, extend, start, steps, classes)
    return assemble(config, columns.names, axis, phase, real, seen, cat, vocabularies, static, (*columns.notes, *notes))


def assemble(
    config: DataConfig,
    names: tuple[str, ...],
    axis: Spans,
    phase: int,
    real: np.ndarray,
    seen: np.ndarray,
    cat: np.ndarray,
    vocabularies: Mapping[str, tuple[str, ...]],
    static: Mapping[str, np.ndarray],
    notes: tuple[str, ...],
) -> Fleet:
    """A Fleet from its finished arrays."""
    start = int(axis.first.min())
    blank = np.zeros((len(names), 0))
    return Fleet(
        groups=names,
        start=start * config.step_seconds + phase,
        step_seconds=config.step_seconds,
        row0=axis.row0,
        step0=(axis.first - start).astype(np.int32),
        real=real,
        seen=seen,
        cat=cat,
        vocabularies=dict(vocabularies),
        static_real=np.column_stack([blank, *(static[name] for name in config.static_real)]).astype(np.float32),
        static_cat=np.column_stack([blank, *(static[name] for name in config.static_categorical)]).astype(np.int32),
        log1p=np.array(log1p(config), bool),
        static_log1p=np.array([config.transform.get(name) == "log1p" for name in config.static_real], bool),
        notes=notes,
    )


def sorting(group: np.ndarray, time: np.ndarray) -> np.ndarray | None:
    """The order by group and time; None where the rows stand in it."""
    later, same = group[1:] > group[:-1], group[1:] == group[:-1]
    return None if (later | (same & (time[1:] >= time[:-1]))).all() else np.lexsort((time, group))


def taken(values: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """The values in the order of `sorting`."""
    return values if order is None else values[order]


def _without_copies(
    config: DataConfig, columns: Columns, order: np.ndarray | None, group: np.ndarray, number: np.ndarray
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """(sorted rows to keep or None for all, notes). Raises UserError where two rows of one step differ."""
    copy = np.flatnonzero((group[1:] == group[:-1]) & (number[1:] == number[:-1])) + 1
    if not len(copy):
        return None, ()
    rows = np.arange(len(group)) if order is None else order
    a, b = rows[copy - 1], rows[copy]
    differs = np.zeros(len(copy), bool)
    for values in _declared(config, columns):
        x, y = values[a], values[b]
        differs |= (x != y) & ~((x != x) & (y != y))
    if differs.any():
        at = int(np.flatnonzero(differs)[0])
        first, second = sorted((int(a[at]), int(b[at])))
        raise UserError(f"{columns.label(first)} and {columns.label(second)} both give group {columns.names[group[copy[at]]]} at "
                        f"{show(columns.time[first])} UTC, with different values ({differs.sum()} such rows); keep one")  # fmt: skip
    keep = np.ones(len(group), bool)
    keep[copy] = False
    return keep, (f"{columns.source}: {len(copy)} rows that repeat another exactly were dropped",)


def step_counts(group: np.ndarray, number: np.ndarray) -> np.ndarray:
    """How often rows sorted by group and step lie 0, 1, 2 .. steps after the one before; farther ones than SPARSE not counted."""
    apart = np.diff(number)[group[1:] == group[:-1]]
    return np.bincount(apart[apart <= SPARSE])


def _declared(config: DataConfig, columns: Columns) -> list[np.ndarray]:
    role = roles(config)
    reals = config.targets + config.observed_real + config.known_real + config.static_real
    return [*(columns.numbers[n] for n in reals), *(columns.categories[n].codes for n in role.categorical + role.static_categorical)]


def find_spans(config: DataConfig, group: np.ndarray, number: np.ndarray, names: Sequence[str], source: str, phase: int) -> Spans:
    """First step and length of each group. Raises UserError for a wild stamp or more rows than an index can count."""
    rows = np.bincount(group, minlength=len(names))
    first, last = np.full(len(names), np.iinfo(np.int64).max), np.full(len(names), np.iinfo(np.int64).min)
    np.minimum.at(first, group, number)
    np.maximum.at(last, group, number)
    return check_spans(config, first, last, rows, names, source, phase)


def check_spans(
    config: DataConfig, first: np.ndarray, last: np.ndarray, rows: np.ndarray, names: Sequence[str], source: str, phase: int
) -> Spans:
    """The spans of groups with `rows` rows between the steps `first` and `last`; the checks of `find_spans`."""
    lengths = last - first + 1
    wild = np.flatnonzero(lengths > SPARSE * rows)
    if len(wild):
        g = int(wild[0])
        begin, end = (show(int(s) * config.file_step_seconds + phase) for s in (first[g], last[g]))
        raise UserError(f"{source}: group {names[g]} has {rows[g]} rows between {begin} and {end} UTC, {lengths[g]} steps of "
                        f"{config.file_step_seconds} s; correct the stamp that lies far away, or data.file_step_seconds")  # fmt: skip
    total = int(lengths.sum())
    if total > MOST_ROWS:
        raise UserError(f"{source}: {total} grid rows, at most {MOST_ROWS} are possible; split by group over processes")
    return Spans(np.concatenate([[0], np.cumsum(lengths)]), first)


def _scattered(values: np.ndarray, place: np.ndarray, spans: Spans, dtype: type, empty: float) -> np.ndarray:
    if len(place) == spans.row0[-1]:
        return values.astype(dtype)
    grid = np.full(spans.row0[-1], empty, dtype)
    grid[place] = values
    return grid


def showing(texts: tuple[str, ...] | None) -> tuple[Callable[[float], str], float]:
    """How `settle` writes a value of a number or category column, and what stands for a missing one."""
    return (lambda value: f"{value:g}", np.nan) if texts is None else (lambda value: repr(texts[int(value) - 1]), 0.0)


def with_defaults(config: DataConfig, vocabularies: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Vocabularies that hold the categories of `known_default` too."""
    whole = dict(vocabularies)
    for name in config.known_categorical:
        text = str(config.known_default.get(name, ""))
        if text and text not in whole[name]:
            whole[name] = (*whole[name], text)
    return whole


def peer_classes(config: DataConfig, static: Mapping[str, np.ndarray], groups: int) -> dict[str, np.ndarray]:
    """Static column -> (G,) class of each group for `peers`, -1 = unknown; "" = one class of all."""
    found = {"": np.zeros(groups, np.int64)}
    for name in {static_column for _, static_column in config.peers if static_column}:
        values = static[name] if name in config.static_real else np.where(static[name] > 0, static[name], np.nan)
        found[name] = np.where(np.isnan(values), -1, np.unique(values, return_inverse=True)[1])
    return found
