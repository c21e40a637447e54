"""Bitbrains (GWA-T-12) beside the checkout: window counts and naive scores to the printed digit."""

import time
from dataclasses import replace

import numpy as np
import pytest
from fleet_shipped import MEDIAN, QUANTILES, qrisk, shipped

from jaxtrain.data import fleet
from jaxtrain.data.fleet_config import DataConfig

pytestmark = pytest.mark.slow
FILE = "data/servers/bitbrains_2013_08.parquet"


def bitbrains(shared, preset="bitbrains", **changes) -> DataConfig:
    return shipped(preset, **{"path": str(shared / FILE), "max_train_windows": None, **changes})


@pytest.fixture(scope="module")
def whole(shared):
    return fleet.splits(bitbrains(shared), QUANTILES)


@pytest.fixture(scope="module")
def scores(whole):
    return qrisk(whole.test)


def test_windows(whole):
    assert [len(part) for part in whole.named().values()] == [894_586, 8_778, 19_866]
    arrays, statistics = whole.train.arrays, whole.statistics
    assert arrays["real"].shape == (154 * 8640, 4) and len(statistics["group_names"]) == 154
    assert (arrays["seen"] == 0).any(axis=1).sum() == 2_594 and np.isfinite(arrays["real"]).all()
    assert np.datetime64(int(statistics["start"]), "s") == np.datetime64("2013-07-31T22:00:00")
    np.testing.assert_allclose(arrays["calendar"][0], [[0, 1], [np.sin(np.pi * 6 / 7), np.cos(np.pi * 6 / 7)], [0, 0]], atol=1e-6)
    assert any("memory_capacity_gb" in note and "70 of 154" in note for note in whole.notes)
    step = whole.test.gather(arrays, whole.test.index)["when"][:, 1]
    assert [step.min(), step.max() + 95, len(np.unique(step))] == [7_008, 8_639, 129]
    assert np.unique(whole.test.index[:, 3]).tolist() == [0, 1]


@pytest.mark.parametrize("name,expected", [
    ("last", [[0.363], [0.441], [0.991], [1.097]]),
    ("day", [[0.564], [0.487], [0.753], [0.960]]),
    ("week", [[0.734], [0.589], [0.697], [1.050]]),
    ("window", [[0.212, 0.476, 0.289], [0.137, 0.403, 0.311], [0.183, 0.748, 0.846], [0.193, 0.833, 0.877]]),
    ("train", [[0.187, 0.911, 0.261], [0.138, 0.574, 0.361], [0.169, 0.757, 0.984], [0.198, 0.896, 1.161]]),
])  # fmt: skip
def test_naive_scores(scores, name, expected):
    levels = [MEDIAN] if len(expected[0]) == 1 else [1, MEDIAN, 5]
    assert scores["cells"] == 7_610_656
    np.testing.assert_allclose(scores[name][:, levels], expected, atol=0.00051)


@pytest.mark.parametrize("fold,expected", enumerate([
    [0.571, 0.516, 0.726, 0.837], [0.555, 0.521, 0.717, 0.785], [0.482, 0.476, 0.687, 0.862], [0.284, 0.335, 0.745, 0.828],
]))  # fmt: skip
def test_walk_forward_naive_scores(shared, fold, expected):
    """The best of last, day, week and window per target."""
    data = fleet.splits(bitbrains(shared, split="walk_forward", folds=4, fold=fold, fold_steps=864), QUANTILES).test
    found = qrisk(data)
    best = np.min([found[name][:, MEDIAN] for name in ("last", "day", "week", "window")], axis=0)
    np.testing.assert_allclose(best, expected, atol=0.00051)


def test_quarter_hour_naive_scores(shared):
    data = fleet.splits(bitbrains(shared, "bitbrains15"), QUANTILES).test
    assert len(data) == 19_866
    found = qrisk(data)
    medians = [found[name][:, MEDIAN] for name in ("last", "window", "week")]
    expected = [[0.362, 0.396, 0.937, 1.036], [0.474, 0.375, 0.718, 0.818], [0.726, 0.547, 0.626, 0.984]]
    np.testing.assert_allclose(medians, expected, atol=0.00051)


def last(batch):
    shape = (*batch["target"].shape, len(QUANTILES))
    return {"last": np.broadcast_to(batch["past"][:, -1:, :, None], shape)}


def test_blocks_differ(whole):
    """Many machines run hot in the first three days of the test."""
    block = whole.test.index[:, 3]
    parts = [qrisk(replace(whole.test, index=whole.test.index[block == b]), last) for b in (0, 1)]
    np.testing.assert_allclose([part["last"][0, MEDIAN] for part in parts], [0.458, 0.284], atol=0.00051)


def test_statistics_are_quick(shared):
    config = bitbrains(shared)
    start = time.process_time()
    fleet.splits(config, QUANTILES)
    assert time.process_time() - start < 5
