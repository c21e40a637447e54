"""Recorded trains (Dublin) and the full simulated line: the published counts, and the reference forecasts to the printed digits."""

from pathlib import Path

import numpy as np
import pytest
from headway_lines import config
from headway_naive import advected, clock, dead_reckoning, hold

from jaxtrain.data import headway
from jaxtrain.data.dataset import Dataset, Statistics
from jaxtrain.data.headway_config import DataConfig
from jaxtrain.data.headway_oracle import oracle

FUTURES = 48


def reference_forecasts(changed: DataConfig, statistics: Statistics, batch: dict, rows: np.ndarray) -> dict[str, np.ndarray]:
    place, travel, cap = statistics["place_mean"], statistics["travel_minutes"], changed.cap_minutes
    values, known = batch[changed.target], batch[f"{changed.target}_known"]
    found = {
        "mean": np.full_like(batch["target"], statistics["mean"]),
        "clock": clock(statistics["clock_mean"], batch["when"], changed.horizon),
        "hold": hold(values, known, place, changed.horizon),
    }
    for name, plan in (("advected", False), ("planned", True)):
        if changed.target == "headway":
            found[name] = advected(batch, travel, place, plan)
        else:
            found[name] = dead_reckoning(batch, travel, place, plan, cap)
    if not changed.path:
        found["oracle"] = oracle(changed, rows, FUTURES)["value"]
    return found


def scores(changed: DataConfig, statistics: Statistics, dataset: Dataset, every: int = 1) -> dict[str, dict[str, float]]:
    """{forecast: {rmse, mae, r2, t+1, ...}} in seconds, pooled over the known cells of every so many windows."""
    sums: dict[str, np.ndarray] = {}
    index = dataset.index[::every]
    for first in range(0, len(index), 512):
        rows = index[first : first + 512]
        batch = dataset.gather(dataset.arrays, rows)
        known, y = batch["target_known"], batch["target"] * 60.0
        for name, forecast in reference_forecasts(changed, statistics, batch, rows).items():
            error = np.where(known, np.minimum(forecast, changed.cap_minutes) * 60.0 - y, 0)
            terms = (known, error**2, abs(error), y * known, y**2 * known)
            sums[name] = sums.get(name, 0) + np.stack([np.asarray(term, np.float64).sum((0, 2, 3)) for term in terms])
    found = {}
    for name, by_minute in sums.items():
        n, squared, absolute, total, total_squared = by_minute.sum(1)
        found[name] = {"rmse": np.sqrt(squared / n), "mae": absolute / n, "r2": 1 - squared / (total_squared - total**2 / n), "cells": n}
        found[name] |= {"target_mean": total / n, "target_sd": np.sqrt(total_squared / n - (total / n) ** 2)}
        found[name] |= {f"t+{m}": np.sqrt(by_minute[1, m - 1] / by_minute[0, m - 1]) for m in (1, 5, 10, 15)}
    return found


def dublin(shared: Path, **changes) -> DataConfig:
    folder = shared / "data" / "headway"
    paths = {"path": str(folder / "dart_arrivals.parquet"), "snapshots": str(folder / "dart_snapshots.parquet")}
    return config(timezone="Europe/Dublin", **paths, **changes)


@pytest.mark.slow
def test_dublin_headway(shared):
    changed = dublin(shared)
    found = headway.splits(changed)
    # One training window more than published: exactly half of its target is known, which `min_known` allows.
    assert [len(s) for s in (found.train, found.valid, found.test)] == [14_513, 3_010, 3_262]
    result = scores(changed, found.statistics, found.test)
    assert result["mean"]["cells"] == 2_332_316
    assert result["mean"]["target_mean"] == pytest.approx(702, abs=0.5) and result["mean"]["target_sd"] == pytest.approx(312, abs=0.5)
    table = {
        "mean": (325.7, 265.0, -0.09, 324, 325, 326, 326),
        "clock": (240.5, 178.4, 0.41, 240, 240, 240, 241),
        "hold": (285.5, 165.9, 0.16, 114, 251, 323, 347),
        "advected": (168.9, 84.2, 0.71, 115, 141, 181, 213),
        "planned": (162.3, 84.8, 0.73, 121, 142, 172, 194),
    }
    for name, printed in table.items():
        got = [result[name][key] for key in ("rmse", "mae", "r2", "t+1", "t+5", "t+10", "t+15")]
        for value, expected, digit in zip(got, printed, (0.1, 0.1, 0.01, 1, 1, 1, 1), strict=True):
            assert value == pytest.approx(expected, abs=0.55 * digit), name
    valid = scores(changed, found.statistics, found.valid)
    assert [round(valid[name]["rmse"]) for name in ("mean", "clock", "hold", "advected")] == [420, 269, 303, 167]


@pytest.mark.slow
def test_dublin_age(shared):
    changed = dublin(shared, target="age")
    found = headway.splits(changed)
    assert [len(s) for s in (found.train, found.valid, found.test)] == [14_863, 3_081, 3_322]
    result = scores(changed, found.statistics, found.test)
    for name, printed in {"mean": (361.7, 275.6, -0.01), "clock": (292.8, 228.9, 0.34), "hold": (386.2, 301.2, -0.15)}.items():
        got = [result[name][key] for key in ("rmse", "mae", "r2")]
        for value, expected, digit in zip(got, printed, (0.1, 0.1, 0.01), strict=True):
            assert value == pytest.approx(expected, abs=0.55 * digit), name
    # Published 319.6 / 149.4 and 269.7 / 121.1 with ages up to 60 minutes; a batch holds them up to the cap of 30.
    assert (result["advected"]["rmse"], result["advected"]["mae"]) == pytest.approx((318.4, 148.9), abs=0.1)
    assert (result["planned"]["rmse"], result["planned"]["mae"]) == pytest.approx((268.3, 120.6), abs=0.1)


@pytest.mark.slow
def test_a_series_of_forecasts_from_the_training_file_sees_the_same_fields(shared):
    changed = dublin(shared)
    found = headway.splits(changed)
    served = headway.inputs(changed, found.statistics, changed.path, labelled=True)
    assert len(served) == len(found.train) + len(found.valid) + len(found.test)
    for name in ("headway", "age", "planned"):
        np.testing.assert_array_equal(served.arrays[name], found.test.arrays[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["headway", "age"])
def test_the_simulated_line(target):
    """Another stream than the published one: within 5 %."""
    changed = config(target=target)
    found = headway.splits(changed)
    if target == "headway":
        for split, published in ((found.train, 23_059), (found.valid, 4_761), (found.test, 4_561)):
            assert len(split) == pytest.approx(published, rel=0.02)
        assert found.train.arrays["headway_known"].mean() == pytest.approx(0.81, abs=0.01)
        table = {
            "mean": (301, 249, 300, 302), "clock": (246, 183, 245, 247), "hold": (300, 171, 150, 352), "planned": (147, 71, 146, 168),
            "oracle": (104, 46, 65, 126),
        }  # fmt: skip
    else:
        table = {"mean": (358,), "clock": (289,), "hold": (363,), "planned": (194,), "oracle": (134,)}
    result = scores(changed, found.statistics, found.test, every=24)
    for key in ("rmse", "t+1", "t+15"):
        result["oracle"][key] /= np.sqrt(1 + 1 / FUTURES)
    for name, published in table.items():
        got = [result[name][key] for key in ("rmse", "mae", "t+1", "t+15")][: len(published)]
        np.testing.assert_allclose(got, published, rtol=0.05, err_msg=name)
