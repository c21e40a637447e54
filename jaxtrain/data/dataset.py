"""What a data file hands over: rows of an index into shared arrays, and how they are split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = Mapping[str, Any]  # NumPy arrays on the host, jax arrays inside a compiled step
Batch = dict[str, Any]
Gather = Callable[[Arrays, Any], Batch]
Statistics = dict[str, np.ndarray]  # numbers and unicode text only (no objects): saved as .npz


@dataclass(frozen=True)
class Dataset:
    """Examples as rows of an index into arrays that all splits share.

    arrays:  name -> contiguous read-only array (may be memory-mapped)
    index:   (n, k) int32, one row per example
    gather:  (arrays, rows (B, k)) -> dict of (B, ...); pure, and written with indexing and operators only,
             so that the same function runs on NumPy arrays in a loader and on jax arrays inside a step
    weights: (n,) sampling weights >= 0, drawn with replacement; None = every example once per epoch
    """

    arrays: Arrays
    index: np.ndarray
    gather: Gather
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.index.ndim != 2 or self.index.dtype != np.int32:
            raise TypeError(f"index must be (n, k) int32, got {self.index.shape} {self.index.dtype}")
        if self.weights is not None and self.weights.shape != (len(self.index),):
            raise TypeError(f"weights must be ({len(self.index)},), got {self.weights.shape}")

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class Splits:
    """Disjoint examples, and statistics computed from `train` alone.

    more: further named splits where a task scores more than one protocol (rollout, held-out groups).
    notes: plain sentences about the data that belong into the start-up table and `summary.json`.
    """

    train: Dataset
    valid: Dataset
    test: Dataset
    statistics: Statistics
    more: dict[str, Dataset] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def named(self) -> dict[str, Dataset]:
        """All splits by name: train, valid, test, then `more`."""
        return {"train": self.train, "valid": self.valid, "test": self.test, **self.more}


def padded_rows(index: np.ndarray, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut an index into batches of equal size; the last is filled by repeating its last row under mask 0.

    Returns [(rows (B, k) int32, mask (B,) float32)]: every example exactly once where mask is 1.
    """
    batches = []
    for start in range(0, len(index), batch):
        rows = index[start : start + batch]
        missing = batch - len(rows)
        mask = np.concatenate([np.ones(len(rows), np.float32), np.zeros(missing, np.float32)])
        batches.append((np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]), mask))
    return batches
