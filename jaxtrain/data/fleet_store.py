"""Rows of a fleet on disk while its folder is prepared, mapped into memory piece by piece."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from jaxtrain.data.fleet_config import DataConfig, roles
from jaxtrain.data.fleet_dense import Grid, Spans
from jaxtrain.data.fleet_grid import step_counts

ROWS_AT_ONCE = 1 << 19  # of one stretch of groups; a longer group is one stretch


@dataclass(frozen=True)
class Store:
    """Rows at the file's step on disk, mapped piece by piece so that memory stays small.

    They lie in the arrays to be written where the step stays the same (`real` then has columns for the features too),
    else in arrays that are removed in the end.
    """

    config: DataConfig
    folder: Path
    real: str
    cat: str

    @classmethod
    def create(cls, config: DataConfig, folder: Path, spans: Spans) -> "Store":
        same, role, rows = config.file_steps == 1, roles(config), int(spans.row0[-1])
        store = cls(config, folder, "real" if same else "raw_real", "cat" if same else "raw_cat")
        width = len(role.real) if same else len(store.names)
        open_memmap(folder / f"{store.real}.npy", "w+", np.float32, (rows, width))
        open_memmap(folder / f"{store.cat}.npy", "w+", np.int16, (rows, len(role.categorical)))
        open_memmap(folder / "there.npy", "w+", np.uint8, (rows,))
        return store

    @property
    def names(self) -> tuple[str, ...]:
        return self.config.targets + self.config.observed_real + self.config.known_real

    def _open(self, name: str) -> np.ndarray:
        return np.load(self.folder / f"{name}.npy", mmap_mode="r+")

    def scatter(self, values: dict[str, np.ndarray], place: np.ndarray) -> tuple[int, int | None]:
        """Write rows sorted by place. Returns (rows that were new, a row that differs from an earlier one of its place)."""
        real, cat, there = self._open(self.real), self._open(self.cat), self._open("there")
        numbers = np.column_stack([values[name] for name in self.names]).astype(np.float32)
        codes = np.column_stack([np.zeros((len(place), 0)), *(values[name] for name in roles(self.config).categorical)]).astype(np.int16)
        again = np.concatenate([[False], place[1:] == place[:-1]])
        first = ~again & (there[place] == 0)
        real[place[first], : len(self.names)] = numbers[first]
        cat[place[first]] = codes[first]
        there[place[first]] = 1
        old = np.flatnonzero(~first)
        there_numbers = real[place[old], : len(self.names)]
        same = (there_numbers == numbers[old]) | (np.isnan(there_numbers) & np.isnan(numbers[old]))
        differs = old[~(same.all(axis=1) & (cat[place[old]] == codes[old]).all(axis=1))]
        return int(first.sum()), int(differs[0]) if len(differs) else None

    def grid(self, spans: Spans, begin: int, end: int) -> Grid:
        """The rows of groups begin .. end-1."""
        rows = slice(int(spans.row0[begin]), int(spans.row0[end]))
        real, cat, there = self._open(self.real)[rows], self._open(self.cat)[rows], self._open("there")[rows] > 0
        numbers = {name: np.where(there, real[:, i], np.float32(np.nan)) for i, name in enumerate(self.names)}
        codes = {name: np.array(cat[:, i]) for i, name in enumerate(roles(self.config).categorical)}
        return Grid(spans.part(begin, end), numbers, codes)

    def step_counts(self, spans: Spans, begin: int, end: int) -> np.ndarray:
        """`fleet_grid.step_counts` of groups begin .. end-1."""
        there = np.flatnonzero(self._open("there")[int(spans.row0[begin]) : int(spans.row0[end])])
        part = spans.part(begin, end)
        return step_counts(np.searchsorted(part.row0, there, side="right"), there)

    def create_output(self, rows: int) -> None:
        role = roles(self.config)
        if self.real != "real":
            open_memmap(self.folder / "real.npy", "w+", np.float32, (rows, len(role.real)))
            open_memmap(self.folder / "cat.npy", "w+", np.int16, (rows, len(role.categorical)))

    def write(self, real: np.ndarray, cat: np.ndarray, rows: slice) -> None:
        self._open("real")[rows] = real
        self._open("cat")[rows] = cat

    def clean(self) -> None:
        for name in {"there", self.real, self.cat} - {"real", "cat"}:
            (self.folder / f"{name}.npy").unlink()


def stretches(spans: Spans) -> Iterator[tuple[int, int]]:
    """(begin, end) of groups that have about ROWS_AT_ONCE rows together."""
    begin, groups = 0, len(spans.first)
    while begin < groups:
        end = max(begin + 1, int(np.searchsorted(spans.row0, spans.row0[begin] + ROWS_AT_ONCE, side="right")) - 1)
        yield begin, end
        begin = end
