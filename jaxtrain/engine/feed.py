"""Batches in a fixed order: batch i is a pure function of (seed, i), whatever the placement, workers or processes.

A Grain element is one whole batch of row numbers (or one gathered batch): Python per example is what starves small
models. Training draws from an endless stream of per-epoch permutations cut every `batch` rows, so that nothing is
dropped and an epoch is n / batch steps, a real number.
"""

import collections
import functools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grain
import numpy as np

from jaxtrain.data.dataset import Batch, Dataset, padded_rows
from jaxtrain.errors import UserError

ENDLESS = 2**40  # batches; Grain wants a length
SLOW_GATHER_SECONDS = 0.02  # above this `workers: auto` starts processes


@dataclass(frozen=True)
class BatchOrder:
    """Row numbers of every training batch: `order[i]` is (batch / parts,) int64, part `part` of the global batch i."""

    n: int
    batch: int
    seed: int
    weights: np.ndarray | None = None
    part: int = 0
    parts: int = 1
    _epochs: "collections.OrderedDict[int, np.ndarray]" = field(default_factory=collections.OrderedDict, compare=False, repr=False)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.whole(int(index))[self._mine()]

    def whole(self, i: int) -> np.ndarray:
        """All row numbers of global batch i."""
        if self.weights is not None:
            draws = np.random.Generator(np.random.Philox(key=[self.seed, i])).random(self.batch)
            return np.searchsorted(self._cumulative, draws, side="right")
        first, last = i * self.batch, (i + 1) * self.batch
        parts = []
        for epoch in range(first // self.n, (last - 1) // self.n + 1):
            start, stop = max(first - epoch * self.n, 0), min(last - epoch * self.n, self.n)
            parts.append(self._permutation(epoch)[start:stop])
        return np.concatenate(parts)

    def _mine(self) -> slice:
        # A contiguous share of the shuffled batch: joined in process order they are the global batch again.
        size = self.batch // self.parts
        return slice(self.part * size, (self.part + 1) * size)

    @functools.cached_property
    def _cumulative(self) -> np.ndarray:
        assert self.weights is not None
        total = np.cumsum(self.weights, dtype=np.float64)
        return total[:-1] / total[-1]

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            self._epochs[epoch] = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.n)
            while len(self._epochs) > 3:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]


@dataclass(frozen=True)
class MakeBatch:
    """Row numbers -> the loader's output; an object rather than a closure so that workers can receive it."""

    dataset: Dataset
    on_device: bool

    def __call__(self, numbers: np.ndarray) -> Batch:
        rows = self.dataset.index[numbers]
        return {"rows": rows} if self.on_device else dict(self.dataset.gather(self.dataset.arrays, rows))


class TrainFeed:
    """Stacks of training batches from any batch number on; counts the time spent waiting for them."""

    def __init__(self, dataset: Dataset, *, batch: int, seed: int, placement: str, workers: str, part: int = 0, parts: int = 1) -> None:
        if len(dataset) == 0:
            raise UserError("data: the training split is empty")
        check_weights(dataset)
        self.order = BatchOrder(len(dataset), batch, seed, dataset.weights, part, parts)
        self.make = MakeBatch(dataset, placement == "device")
        self.workers = self._count(workers)
        self.wait_seconds = 0.0
        self._iterator: Any = None

    def _count(self, workers: str) -> int:
        if self.make.on_device or workers == "0":
            return 0
        if workers != "auto":
            return int(workers)
        self.make(self.order[0])
        start = time.perf_counter()
        self.make(self.order[0])
        slow = time.perf_counter() - start > SLOW_GATHER_SECONDS
        return max(0, min(8, (os.cpu_count() or 1) - 1)) if slow else 0

    def start(self, batch_number: int) -> None:
        """Go to a global batch number, in constant time."""
        self.close()
        batches = grain.MapDataset.source(self.order)[batch_number:].map(self.make)
        if self.workers:
            _allow_grain_workers()
            iterable = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
            iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=2))
        else:
            # Row numbers cost microseconds; a thread would only add hand-over.
            threads = 0 if self.make.on_device else 1
            iterable = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(1, 2 * threads)))
        self._iterator = iter(iterable)

    def take(self, count: int, slots: int) -> Batch:
        """The next `count` batches as {name: (slots, B, ...)}; slots beyond `count` are left as zeros."""
        start = time.perf_counter()
        batches = [next(self._iterator) for _ in range(count)]
        stacked = {}
        for name, first in batches[0].items():
            out = np.zeros((slots, *first.shape), first.dtype)
            for i, b in enumerate(batches):
                out[i] = b[name]
            stacked[name] = out
        self.wait_seconds += time.perf_counter() - start
        return stacked

    def close(self) -> None:
        """Stop loader threads and processes (they would outlive us)."""
        if self._iterator is not None and hasattr(self._iterator, "close"):
            self._iterator.close()
        self._iterator = None


def check_weights(dataset: Dataset) -> None:
    """Raises UserError for sampling weights that nothing can be drawn with."""
    if dataset.weights is not None and not (np.all(dataset.weights >= 0) and 0 < dataset.weights.sum() < np.inf):
        raise UserError("data: sampling weights must be finite, not negative, and not all zero")


def eval_batches(dataset: Dataset, *, batch: int, placement: str, part: int = 0, parts: int = 1) -> Iterator[Batch]:
    """Every example exactly once, in order: batches of equal size with a `mask`; each process gets its share of each."""
    size = batch // parts
    for rows, mask in padded_rows(dataset.index, batch):
        mine = slice(part * size, (part + 1) * size)
        values = {"rows": rows[mine]} if placement == "device" else dict(dataset.gather(dataset.arrays, rows[mine]))
        yield {**values, "mask": mask[mine]}


def _allow_grain_workers() -> None:
    # Grain's workers read absl flags, which only absl's own main() parses.
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
