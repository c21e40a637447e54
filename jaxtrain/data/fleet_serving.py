"""What a finished run reads: a file with the past of its groups, and of known columns the future as well."""

from dataclasses import dataclass

import numpy as np

from jaxtrain.data import fleet_files
from jaxtrain.data.dataset import Dataset, Statistics
from jaxtrain.data.fleet_config import DataConfig, check_config, roles
from jaxtrain.data.fleet_grid import Fleet
from jaxtrain.data.fleet_splits import Part, windows
from jaxtrain.data.fleet_statistics import show, some
from jaxtrain.data.fleet_windows import bound_gather, shared_arrays
from jaxtrain.data.traffic_time import parse_stamp
from jaxtrain.errors import UserError


def inputs(config: DataConfig, statistics: Statistics, path: str, *, at: str = "", every: int = 0, labelled: bool = False) -> Dataset:
    """Windows of a file that the run may never have seen; needs the run's config and statistics only.

    By default one window per group, with its origin at the step after the last measured target. at: ISO time of the origin
    (UTC if it names no zone) of every group with a measurement in the context before it. every: also origins so many steps
    apart before that one, with min_history_steps rows of history. labelled: every window whose horizon lies in the file, an
    origin every `every` (0 = eval_stride) steps, with all that an evaluation batch holds.
    Groups and categories unknown to the run have index 0. Besides the shared arrays there are group_names (G,), start ()
    int64 epoch seconds of step 0 and notes (n,), sentences about the file.
    Raises UserError where the file does not fit the run, or does not hold the known columns of the whole horizon.
    """
    check_config(config)
    # An origin named by its time may lie a while after the last row of a group.
    extend = 0 if labelled else 2 * config.horizon_steps if at else config.horizon_steps
    fleet = fleet_files.read(config, path, extend=extend)
    if labelled:
        everything = Part(((0, fleet.steps),), np.ones(len(fleet.groups), bool))
        index = windows(fleet, everything, config, every or config.eval_stride, blocks=True)
        if not len(index):
            raise UserError(f"{path}: no window to score; the longest group has {np.diff(fleet.row0).max()} steps, a window needs "
                            f"{config.min_history_steps + config.horizon_steps} with a measured target in its horizon")  # fmt: skip
    else:
        ends = _Ends.of(fleet)
        index = _index(config, _origins(config, fleet, ends, at, every, path))
        _check_known(config, fleet, index, ends, path)
    arrays = shared_arrays(fleet, config, statistics, index)
    arrays |= {"group_names": np.array(fleet.groups), "start": np.asarray(fleet.start, np.int64)}
    arrays["notes"] = np.array([*fleet.notes, *_unknown(config, fleet, statistics)], dtype=np.str_)
    return Dataset(arrays, index, bound_gather(config, evaluation=labelled))


@dataclass(frozen=True)
class _Ends:
    """Rows of each group, counted from its first: after the last measured target (0 = never measured), and all of them."""

    measured: np.ndarray
    rows: np.ndarray
    seen: np.ndarray  # (N + 1,) measured rows before each row of the flat arrays

    @classmethod
    def of(cls, fleet: Fleet) -> "_Ends":
        seen = np.asarray(fleet.seen).max(axis=1) > 0
        rows = np.diff(fleet.row0)
        position = np.arange(len(seen)) - np.repeat(fleet.row0[:-1], rows)
        measured = np.maximum.reduceat(np.where(seen, position + 1, 0), fleet.row0[:-1])
        return cls(measured, rows, np.concatenate([[0], np.cumsum(seen)]))


def _origins(config: DataConfig, fleet: Fleet, ends: _Ends, at: str, every: int, path: str) -> list[tuple[int, int, int]]:
    """(row of the origin, group, rows before it) of every window."""
    silent = [name for name, measured in zip(fleet.groups, ends.measured, strict=True) if not measured]
    if silent and not at:
        raise UserError(f"{path}: {len(silent)} groups have no measured target ({some(silent)}); a forecast needs at least one row "
                        f"with {config.targets[0]}, leave these groups out")  # fmt: skip
    found = []
    for group, first in enumerate(fleet.row0[:-1]):
        last = int(ends.measured[group])
        before = [last]
        if every:
            before = [*range(last, config.min_history_steps - 1, -every)][::-1] or before
        elif at:
            before = [_step_at(config, fleet, at, path) - int(fleet.step0[group])]
            before = [b for b in before if _has_context(config, ends, int(first), b, int(ends.rows[group]))]
        found += [(int(first) + b, group, b) for b in before]
    if not found:
        last = show(fleet, int((fleet.step0 + ends.measured).max()) - 1)
        raise UserError(f"{path}: no group has a measured target in the {config.context_steps} steps before --option at={at}; "
                        f"the file goes from {show(fleet, 0)} to {last}")  # fmt: skip
    return found


def _has_context(config: DataConfig, ends: _Ends, first: int, before: int, rows: int) -> bool:
    """Whether an origin `before` rows into a group has a measured row in its context and its horizon inside the arrays."""
    if not 0 < before <= rows - config.horizon_steps:
        return False
    return ends.seen[first + before] > ends.seen[first + max(before - config.context_steps, 0)]


def _step_at(config: DataConfig, fleet: Fleet, at: str, path: str) -> int:
    """The step of the common axis that begins at a time."""
    step, rest = divmod(parse_stamp(at, "UTC", "--option at") - fleet.start, config.step_seconds)
    if rest:
        raise UserError(f"{path}: --option at={at} is off the grid by {rest} s; steps are {config.step_seconds} s from {show(fleet, 0)}")
    return step


def _index(config: DataConfig, origins: list[tuple[int, int, int]]) -> np.ndarray:
    """Index rows (row of the origin, group, history, block 0)."""
    row, group, before = np.array(origins).T
    return np.stack([row, group, np.minimum(before, config.context_steps), np.zeros_like(row)], axis=1).astype(np.int32)


def _check_known(config: DataConfig, fleet: Fleet, index: np.ndarray, ends: _Ends, path: str) -> None:
    """Every known column must reach to the end of the horizon: what is planned there cannot be guessed."""
    names = roles(config)
    real = len(names.targets) + len(names.observed_real)
    holes = {name: np.isnan(fleet.real[:, real + i]) for i, name in enumerate(config.known_real)}
    holes |= {name: fleet.cat[:, len(names.observed_categorical) + i] == 0 for i, name in enumerate(config.known_categorical)}
    for row, group, _, _ in index:
        # Where the targets were measured, a missing known value is one as in training.
        start = max(int(row), int(fleet.row0[group] + ends.measured[group]))
        for name, hole in holes.items():
            missing = np.flatnonzero(hole[start : row + config.horizon_steps])
            if len(missing):
                step = int(fleet.step0[group] + start - fleet.row0[group] + missing[0])
                raise UserError(f"{path}: group {fleet.groups[group]}, column {name} is missing from {show(fleet, step)} on; give "
                                f"{config.horizon_steps} rows after the last measurement, or set data.known_default.{name}")  # fmt: skip


def _unknown(config: DataConfig, fleet: Fleet, statistics: Statistics) -> list[str]:
    """Sentences that name the groups and categories that training has not seen."""
    names, notes = roles(config), []
    known = {str(name) for name in statistics["group_names"]}
    new = [name for name in fleet.groups if name not in known]
    if new and config.groups:
        notes.append(f"{len(new)} of {len(fleet.groups)} groups are new to the run and take the unknown index: {some(new)}")
    for columns, codes in ((names.categorical, fleet.cat), (names.static_categorical, fleet.static_cat)):
        for i, name in enumerate(columns):
            known = {str(text) for text in statistics[f"vocabulary/{name}"]}
            there = [fleet.vocabularies[name][c - 1] for c in np.unique(codes[:, i]) if c > 0]
            new = [text for text in there if text not in known]
            if new:
                notes.append(f"{name}: {len(new)} categories are new to the run and take the unknown index: {some(new)}")
    return notes
