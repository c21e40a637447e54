"""Windows over the flat arrays of a fleet: what is shared, and how one batch is read from it.

Letters: B batch, k past steps, tau future steps, R targets, G groups, N rows, C categorical columns; see `fleet`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxtrain.data import fleet_features
from jaxtrain.data.dataset import Arrays, Batch, Statistics
from jaxtrain.data.fleet_config import DataConfig, roles
from jaxtrain.data.fleet_grid import Fleet
from jaxtrain.data.fleet_statistics import SHRINK_STEPS, Moments, group_values, measured_targets, transformed


def bound_gather(config: DataConfig, *, evaluation: bool) -> functools.partial[Batch]:
    """`gather` for a config; an evaluation also reads what the naive forecasts need."""
    names = roles(config)
    return functools.partial(
        gather,
        context_steps=config.context_steps,
        horizon_steps=config.horizon_steps,
        observed=len(names.observed_real),
        observed_categorical=len(names.observed_categorical),
        season_steps=config.season_steps if evaluation else (),
    )


def gather(
    arrays: Arrays,
    rows: Any,
    *,
    context_steps: int,
    horizon_steps: int,
    observed: int,
    observed_categorical: int,
    season_steps: tuple[int, ...],
) -> Batch:
    """The windows of index rows (B, 4): see the module's docstring. Works on NumPy and on jax arrays alike.

    Rows outside of the arrays are read from their nearest end: they lie under past_mask 0.
    """
    real, k, tau = arrays["real"], context_steps, horizon_steps
    xp = real.__array_namespace__()  # numpy, or jax.numpy inside a compiled step
    targets = arrays["seen"].shape[1]
    row, group, history = rows[:, 0], rows[:, 1], rows[:, 2]
    first = arrays["row0"][group]
    step = arrays["step0"][group] + row - first
    window = xp.clip(row[:, None] + np.arange(-k, tau, dtype=np.int32), 0, len(real) - 1)
    values, seen = real[window], arrays["seen"][window] > 0
    past_mask = np.arange(k, dtype=np.int32) >= k - history[:, None]
    share = xp.asarray(np.arange(targets + 1, dtype=np.float32) / targets)
    batch = {
        "past": values[:, :k, : targets + observed],
        "past_mask": past_mask,
        "present": share[seen[:, :k].sum(axis=2)] * past_mask,
        "known": values[:, :, targets + observed :],
        "group": arrays["group"][group],
        "target": xp.where(seen[:, k:], values[:, k:, :targets], np.float32(0)),
        "target_mask": seen[:, k:].astype(np.float32),
        "when": xp.stack([group, step, history, rows[:, 3]], axis=1),
    }
    if arrays["cat"].shape[1]:
        cat = arrays["cat"][window].astype(np.int32)
        batch |= {"past_cat": cat[:, :k, :observed_categorical], "known_cat": cat[:, :, observed_categorical:]}
    steps = xp.clip(step[:, None] + np.arange(-k, tau, dtype=np.int32), 0, len(arrays["calendar"]) - 1)
    batch["calendar"] = arrays["calendar"][steps]
    batch |= {name: arrays[name][group] for name in ("static_real", "static_cat", "level", "center", "scale", "cap")}
    if season_steps:
        batch["train_quantiles"] = arrays["train_quantiles"][group]
        batch["season"] = xp.stack([_earlier(arrays, row, first, s, tau) for s in season_steps], axis=-1)
    return {name: value for name, value in batch.items() if 0 not in value.shape[1:]}


def _earlier(arrays: Arrays, row: Any, first: Any, season: int, horizon_steps: int) -> Any:
    """(B, tau, R) the targets one season, or the least number of seasons that leads before the origin, earlier."""
    xp = arrays["real"].__array_namespace__()
    ahead = np.arange(horizon_steps, dtype=np.int32)
    back = row[:, None] + (ahead - (ahead // season + 1) * season).astype(np.int32)
    there = back >= first[:, None]
    values = arrays["real"][xp.where(there, back, 0)][..., : arrays["seen"].shape[1]]
    return xp.where(there[..., None], values, np.float32(np.nan))


def shared_arrays(fleet: Fleet, config: DataConfig, statistics: Statistics, evaluated: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays that all windows share, coded and scaled by the statistics of a run.

    A group that training has not seen gets level, center and scale from its rows before its first origin in `evaluated`
    (index rows), shrunk to those of the whole fleet; its cap and quantiles are those of the whole fleet.
    """
    names = roles(config)
    place = {str(name): i for i, name in enumerate(statistics["group_names"])}
    known = np.array([place.get(name, -1) for name in fleet.groups])
    new = np.flatnonzero(known < 0)
    arrays = {
        "real": fleet.real,
        "seen": fleet.seen,
        "cat": _recoded(fleet.cat, fleet, names.categorical, statistics),
        "calendar": fleet_features.calendar(config.calendar, fleet.start, fleet.step_seconds, fleet.steps, config.timezone),
        "row0": fleet.row0.astype(np.int32),
        "step0": fleet.step0.astype(np.int32),
        "group": (1 + known).astype(np.int32),
        "static_real": fleet.static_real,
        "static_cat": _recoded(fleet.static_cat, fleet, names.static_categorical, statistics),
        "cap": np.where(known[:, None] >= 0, statistics["cap"][known], statistics["global_cap"]),
        "train_quantiles": np.where(known[:, None, None] >= 0, statistics["train_quantiles"][known], statistics["global_quantiles"]),
        **{name: statistics[name][known] for name in ("center", "scale", "level")},
    }
    if len(new):
        ends = fleet.row0[:-1].copy()
        origins = np.full(len(ends), np.iinfo(np.int64).max)
        np.minimum.at(origins, evaluated[:, 1], evaluated[:, 0])
        ends = np.where(origins < np.iinfo(np.int64).max, origins, ends)
        log1p = statistics["log1p"][: len(names.targets)]
        own = [Moments.of(transformed(measured_targets(fleet, slice(int(fleet.row0[g]), int(ends[g]))), log1p)) for g in new]
        for name, values in group_values(Moments.stack(own), statistics, config, SHRINK_STEPS).items():
            arrays[name][new] = values
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _recoded(codes: np.ndarray, fleet: Fleet, columns: Sequence[str], statistics: Statistics) -> np.ndarray:
    """Codes (n, C) of the file's vocabularies in those of the run: 0 = missing or unknown to the run."""
    result = codes
    for i, name in enumerate(columns):
        place = {str(text): 1 + j for j, text in enumerate(statistics[f"vocabulary/{name}"])}
        table = np.array([0, *(place.get(text, 0) for text in fleet.vocabularies[name])], codes.dtype)
        if not np.array_equal(table, np.arange(len(table))):
            result = result.copy() if result is codes else result
            result[:, i] = table[codes[:, i]]
    return result
