"""The data section of the shipped presets, and the naive forecasts of a batch with their scores in plain NumPy."""

from dataclasses import replace
from typing import Any

import numpy as np
from sixth_problem import ROOT

from jaxtrain.data.dataset import Batch, Dataset
from jaxtrain.data.fleet_config import DataConfig, SyntheticConfig
from jaxtrain.engine.config import load, section

QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
MEDIAN = 3
TINY = SyntheticConfig(kind="fleet", servers=8, days=6, seed=0)


def shipped(preset: str = "default", **changes: Any) -> DataConfig:
    return replace(section(DataConfig, load(f"{ROOT / 'configs/tft.py'}:{preset}", {})["data"], "data"), **changes)


def naive(batch: Batch) -> dict[str, np.ndarray]:
    """(B, tau, R, Q) of last, day, week (points: one value for all levels), window and train."""
    shape = (*batch["target"].shape, len(QUANTILES))
    past = np.where(batch["past_mask"][..., None], batch["past"][..., : shape[2]], np.nan).astype(np.float64)
    newest = np.where(np.isfinite(past), np.arange(past.shape[1])[:, None], 0).max(axis=1)
    last = np.take_along_axis(past, newest[:, None], axis=1)
    train = batch["train_quantiles"][:, None]
    last = np.where(np.isfinite(last), last, train[..., MEDIAN])
    found = {"last": last[..., None]}
    for i, name in enumerate(("day", "week")):
        found[name] = np.where(np.isfinite(batch["season"][..., i]), batch["season"][..., i], last)[..., None]
    quantile = np.quantile if np.isfinite(past).all() else np.nanquantile  # the latter is many times slower
    found["window"] = np.moveaxis(quantile(past, QUANTILES, axis=1), 0, -1)[:, None]
    found["train"] = train
    return {name: np.broadcast_to(value, shape) for name, value in found.items()}


def qrisk(dataset: Dataset, forecast: Any = naive, every: int = 1) -> dict[str, np.ndarray]:
    """{name: (R, Q)} 2 sum rho_q / sum |y| over the measured cells of every `every`-th window; "cells" and "coverage/NAME" beside."""
    sums: dict[str, Any] = {}
    index = dataset.index[::every]
    for start in range(0, len(index), 256):
        rows = index[start : start + 256]
        batch = dataset.gather(dataset.arrays, rows)
        measured, target = batch["target_mask"] > 0, batch["target"].astype(np.float64)
        found = {"cells": measured.sum(), "size": np.abs(target).sum(axis=(0, 1), where=measured)[:, None]}
        for name, values in forecast(batch).items():
            error = target[..., None] - values
            loss = np.maximum(np.array(QUANTILES) * error, (np.array(QUANTILES) - 1) * error)
            found[name] = 2 * loss.sum(axis=(0, 1), where=measured[..., None])
            found[f"coverage/{name}"] = ((error[..., 1] >= 0) & (error[..., 5] <= 0)).sum(axis=(0, 1), where=measured)
        sums = {name: sums.get(name, 0) + value for name, value in found.items()}
    size, cells = sums.pop("size"), sums.pop("cells")
    scores = {name: value / (cells / len(size)) if name.startswith("coverage/") else value / size for name, value in sums.items()}
    return {**scores, "cells": cells}
