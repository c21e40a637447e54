"""Static columns, repeated on every row of a file, become one value per group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxtrain.errors import UserError


@dataclass(frozen=True)
class Runs:
    """Stretches of rows of one group with one value.

    group, first, row: (n,) int64 group, step of the first row and its number in the file
    value:             (n,) numbers or codes;  rows (n,) int64 how many of them are training rows
    """

    group: np.ndarray
    first: np.ndarray
    row: np.ndarray
    value: np.ndarray
    rows: np.ndarray


def find_runs(group: np.ndarray, step: np.ndarray, row: np.ndarray, value: np.ndarray, training: np.ndarray) -> Runs:
    """The runs of equal values in rows sorted by group and step, missing ones (NaN, code 0) left out."""
    there = ~np.isnan(value) if value.dtype.kind == "f" else value > 0
    if not there.all():
        group, step, row, value, training = (a[there] for a in (group, step, row, value, training))
    if not len(group):
        return Runs(group, step, row, value, np.zeros(0, np.int64))
    start = np.flatnonzero(np.concatenate([[True], (group[1:] != group[:-1]) | (value[1:] != value[:-1])]))
    return Runs(group[start], step[start], row[start], value[start], np.add.reduceat(training.astype(np.int64), start))


def join_runs(parts: Sequence[Runs]) -> Runs:
    """Runs of several stretches of a file, in order of group and step."""
    whole = Runs(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("group", "first", "row", "value", "rows")))
    order = np.lexsort((whole.first, whole.group))
    return Runs(*(getattr(whole, f)[order] for f in ("group", "first", "row", "value", "rows")))


def settle(
    name: str, runs: Runs, groups: Sequence[str], change: str, label: Callable[[int], str], show: Callable[[float], str], empty: float
) -> tuple[np.ndarray, tuple[str, ...]]:
    """((G,) the value of each group, `empty` where it has none; notes).

    change: "error" refuses a value that changes, "train" takes the median (codes: the commonest) of the training rows.
    Raises UserError naming group, rows and values.
    """
    values = np.full(len(groups), empty, np.float64)
    found, start = np.unique(runs.group, return_index=True)
    values[found] = runs.value[start]
    differs = runs.value != values[runs.group]
    if not differs.any():
        return values, ()
    if change == "error":
        at = int(np.flatnonzero(differs)[0])
        first = int(start[np.searchsorted(found, runs.group[at])])
        raise UserError(f"{label(int(runs.row[first]))}: group {groups[runs.group[at]]} has {name} {show(runs.value[first])}, but "
                        f"{label(int(runs.row[at]))} has {show(runs.value[at])}; a static column may not change, correct it, or set "
                        "data.static_change=train to use the usual value of the training rows")  # fmt: skip
    changing = np.unique(runs.group[differs])
    for group in changing:
        mine = (runs.group == group) & (runs.rows > 0)
        if mine.any():  # a group that joins after the training rows keeps its first value
            values[group] = _usual(runs.value[mine], runs.rows[mine])
    return values, (f"{name} changes inside {len(changing)} of {len(groups)} groups: the usual value of the training rows is used",)


def _usual(values: np.ndarray, rows: np.ndarray) -> float:
    if values.dtype.kind == "f":
        return float(np.median(np.repeat(values, rows)))
    return float(np.bincount(values, rows).argmax())
