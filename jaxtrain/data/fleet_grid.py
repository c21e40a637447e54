"""Long rows become one regular grid per group, all groups one after the other in flat arrays: `build`."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


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
    """

    source: str
    time: np.ndarray
    group: np.ndarray
    names: tuple[str, ...]
    numbers: dict[str, np.ndarray]
    categories: dict[str, Category]
    label: Callable[[int], str]
    notes: tuple[str, ...] = ()


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
