"""Tide levels at three gauges: a noisy sum of sines with gaps, or the array `level` (R, 3) m of an .npz file."""

import functools
from dataclasses import dataclass

import numpy as np

from jaxtrain.data.dataset import Arrays, Batch, Dataset, Splits
from jaxtrain.errors import UserError

GAUGES = 3
PERIODS_STEPS = (12.42, 24.0, 25.82)


@dataclass(frozen=True)
class DataConfig:
    path: str  # .npz; "" = the embedded default
    rows: int
    noise: float  # standard deviation, m
    in_steps: int
    out_steps: int
    weights: str  # none | recent
    seed: int
    split: str  # time | walk_forward
    folds: int
    fold: int


def gather(arrays: Arrays, rows: np.ndarray, *, in_steps: int, out_steps: int) -> Batch:
    """level (B, T, 3) m, and with out_steps > 0 target (B, P, 3) m and target_mask (B, P, 3)."""
    past = rows[:, :1] + np.arange(in_steps)
    batch = {"level": arrays["level"][past]}
    if out_steps:
        future = rows[:, :1] + np.arange(in_steps, in_steps + out_steps)
        batch |= {"target": arrays["level"][future], "target_mask": arrays["observed"][future]}
    return batch


def splits(config: DataConfig) -> Splits:
    """70, 15 and 15 % of the rows in order, no window across a border; or a fold of rolling origins over the last 30 %."""
    level = read(config.path) if config.path else embedded(config)
    level, observed = fill(level)
    arrays = {"level": level, "observed": observed}
    borders = [0, round(0.7 * len(level)), round(0.85 * len(level)), len(level)]
    if config.split == "walk_forward":
        blocks = np.linspace(borders[1], len(level), config.folds + 2).round().astype(int)
        borders = [0, *(int(b) for b in blocks[config.fold : config.fold + 3])]
    train, valid, test = (windows(arrays, a, b, config, config.out_steps) for a, b in zip(borders, borders[1:], strict=False))
    if config.weights == "recent":
        train = Dataset(train.arrays, train.index, train.gather, np.linspace(0, 1, len(train)))
    elif config.weights != "none":
        raise UserError(f"config.data.weights: {config.weights!r} is not supported (known: none, recent)")
    past = np.where(np.isfinite(level), level, 0)[: borders[1]]
    return Splits(train, valid, test, {"mean": past.mean(0), "std": past.std(0)}, notes=("three gauges",))


def inputs(config: DataConfig, path: str, *, labelled: bool) -> Dataset:
    """Every window of a file; with `labelled` those whose targets lie in it."""
    level, observed = fill(read(path))
    return windows({"level": level, "observed": observed}, 0, len(level), config, config.out_steps if labelled else 0)


def windows(arrays: Arrays, first: int, last: int, config: DataConfig, out_steps: int) -> Dataset:
    count = max(0, last - first - config.in_steps - out_steps + 1)
    index = (first + np.arange(count, dtype=np.int32))[:, None]
    return Dataset(arrays, index, functools.partial(gather, in_steps=config.in_steps, out_steps=out_steps))


def embedded(config: DataConfig) -> np.ndarray:
    """(R, 3) m with 5 % of the readings missing."""
    random = np.random.default_rng(config.seed)
    phase = 2 * np.pi * np.arange(config.rows)[:, None, None] / np.array(PERIODS_STEPS)
    level = np.sin(phase + random.uniform(0, 2 * np.pi, (GAUGES, len(PERIODS_STEPS)))).sum(-1)
    level += config.noise * random.standard_normal(level.shape)
    level[random.random(level.shape) < 0.05] = np.nan
    return level


def read(path: str) -> np.ndarray:
    try:
        with np.load(path) as file:
            level = file["level"]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); an .npz file with the array `level` (R, {GAUGES}) is needed") from None
    if level.ndim != 2 or level.shape[1] != GAUGES:
        raise UserError(f"{path}: level is {level.shape}, expected (R, {GAUGES})")
    return level


def fill(level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(level float32 with NaN as 0, observed float32); an infinity stays, as a fault of the data would."""
    missing = np.isnan(level)
    return np.where(missing, 0, level).astype(np.float32), (~missing).astype(np.float32)
