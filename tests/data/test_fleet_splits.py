"""Which steps and groups a split holds, and that no two of them touch."""

from typing import Any

import numpy as np
import pytest
from fleet_problem import config, table, write

from jaxtrain.data import fleet, fleet_files
from jaxtrain.data.fleet_splits import group_weights, parts, subset, windows

STEPS = 200
NAMES = tuple(f"server{i}" for i in range(10))
KINDS: dict[str, dict[str, Any]] = {
    "time": {},
    "time, wide gap": {"gap_steps": 9},
    "time, no gap": {"gap_steps": 0},
    "blocks": {"valid_blocks": 3},
    "group": {"split": "group", "test_fraction": 0.3},
    "walk_forward": {"split": "walk_forward", "folds": 3, "fold": 1, "fold_steps": 20},
    "walk_forward, recent": {"split": "walk_forward", "folds": 3, "fold": 2, "fold_steps": 20, "train_steps": 50},
    "cross": {"split": "cross", "folds": 4, "fold": 1},
    "cross, last": {"split": "cross", "folds": 4, "fold": 3},
    "leave_out": {"split": "leave_out", "folds": 4, "fold": 3},
}


@pytest.fixture(scope="module")
def fleet_file(tmp_path_factory):
    """Ten groups, one of them late, one that ends early, with cells that were never measured."""
    spans = {name: range(STEPS) for name in NAMES} | {NAMES[3]: range(90, STEPS), NAMES[5]: range(150)}
    rows = table(spans)
    rows["cpu"] = [None if 100 <= i % STEPS < 107 else v for i, v in enumerate(rows["cpu"])]
    return str(write(tmp_path_factory.mktemp("fleet") / "fleet.parquet", rows))


def target_steps(data: Any, horizon: int) -> np.ndarray:
    """(n, 2) group and step of every target of a dataset."""
    when = data.gather(data.arrays, data.index)["when"]
    steps = when[:, 1, None] + np.arange(horizon)
    return np.unique(np.stack([np.broadcast_to(when[:, :1], steps.shape), steps], axis=-1).reshape(-1, 2), axis=0)


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_targets_of_two_splits_are_a_gap_apart(fleet_file, changes):
    settings = config(fleet_file, **changes)
    found = fleet.splits(settings, (0.5,)).named()
    steps = {name: target_steps(data, settings.horizon_steps) for name, data in found.items()}
    nearest = {}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        nearest[a, b] = np.abs(np.unique(steps[a][:, 1])[:, None] - np.unique(steps[b][:, 1])).min()
        if changes.get("split") in ("group", "leave_out"):
            assert not set(steps[a][:, 0]) & set(steps[b][:, 0])
    assert min(nearest.values()) == settings.gap + 1, nearest


def test_time_cuts():
    cut = parts(config(), STEPS, NAMES)
    assert {name: part.intervals for name, part in cut.items()} == {"train": ((0, 120),), "valid": ((124, 160),), "test": ((164, 200),)}
    assert all(part.groups.all() for part in cut.values())
    assert parts(config(valid_blocks=1), STEPS, NAMES)["valid"].intervals == cut["valid"].intervals


def test_validation_blocks_end_equal_stretches():
    cut = parts(config(valid_blocks=2), STEPS, NAMES)
    assert cut["train"].intervals == ((0, 60), (84, 140)) and cut["valid"].intervals == ((64, 80), (144, 160))
    assert cut["test"].intervals == ((164, 200),)


def test_walk_forward_goes_through_the_end():
    def folds(**changes):
        return [parts(config(split="walk_forward", folds=3, fold=f, fold_steps=20, **changes), STEPS, NAMES) for f in range(3)]

    assert [cut["test"].intervals for cut in folds()] == [((144, 160),), ((164, 180),), ((184, 200),)]
    assert [cut["valid"].intervals for cut in folds()] == [((124, 140),), ((144, 160),), ((164, 180),)]
    assert [cut["train"].intervals for cut in folds()] == [((0, 120),), ((0, 140),), ((0, 160),)]
    assert [cut["train"].intervals for cut in folds(train_steps=30)] == [((90, 120),), ((110, 140),), ((130, 160),)]


def test_cross_tests_every_block_once():
    folds = [parts(config(split="cross", folds=4, fold=f, gap_steps=0), STEPS, NAMES) for f in range(4)]
    assert [cut["test"].intervals for cut in folds] == [((0, 50),), ((50, 100),), ((100, 150),), ((150, 200),)]
    assert [cut["valid"].intervals for cut in folds] == [((50, 100),), ((100, 150),), ((150, 200),), ((0, 50),)]
    assert folds[1]["train"].intervals == ((0, 50), (150, 200)) and folds[0]["train"].intervals == ((100, 200),)


def test_leave_out_tests_every_group_once():
    folds = [parts(config(split="leave_out", folds=4, fold=f), STEPS, NAMES) for f in range(4)]
    assert np.all(np.sum([cut["test"].groups for cut in folds], axis=0) == 1)
    for f, cut in enumerate(folds):
        assert np.array_equal(cut["valid"].groups, folds[(f + 1) % 4]["test"].groups)
        assert np.all(cut["train"].groups + cut["valid"].groups + cut["test"].groups == 1)


def test_groups_are_ordered_by_their_names_hash():
    def test_groups(names):
        return {names[g] for g in np.flatnonzero(parts(config(split="group", test_fraction=0.3), STEPS, names)["test"].groups)}

    # The last three of the ten sha256 sums; where a name stands in the file is of no account.
    assert test_groups(NAMES) == test_groups(NAMES[::-1]) == {"server2", "server3", "server7"}


@pytest.mark.parametrize("stride", [1, 5])
def test_windows_equal_a_plain_search(fleet_file, stride):
    settings = config(fleet_file, min_history_steps=6, context_steps=8, valid_blocks=2)
    found = fleet_files.read(settings)
    part = parts(settings, found.steps, found.groups)["train"]
    expected = []
    for g in range(len(found.groups)):
        first, length, start = int(found.row0[g]), int(found.row0[g + 1] - found.row0[g]), int(found.step0[g])
        for a, b in part.intervals:
            for o in range(a, b - 3, stride):
                row = o - start
                if row >= 6 and row + 4 <= length and found.seen[first + row : first + row + 4].any():
                    expected.append((first + row, g, min(row, 8), (o - part.intervals[0][0]) // 8))
    index = windows(found, part, settings, stride, blocks=True)
    assert index.dtype == np.int32 and index.tolist() == [list(row) for row in expected]
    assert 0 < len(index) < len(found.seen)
    assert np.array_equal(windows(found, part, settings, stride, blocks=False)[:, 3], np.zeros(len(index)))


def test_a_subset_is_drawn_alike_and_groups_weigh_alike(fleet_file):
    settings = config(fleet_file)
    everything = fleet.splits(settings, (0.5,))
    few = fleet.splits(config(fleet_file, max_train_windows=50, max_valid_windows=20, weight="group"), (0.5,))
    assert [len(few.train), len(few.valid), len(few.test)] == [50, 20, len(everything.test)]
    rows = {tuple(row) for row in everything.train.index.tolist()}
    assert all(tuple(row) in rows for row in few.train.index.tolist()) and len(np.unique(few.train.index[:, 0])) == 50
    assert np.array_equal(subset(everything.train.index, 50), few.train.index) and everything.train.weights is None
    weights = few.train.weights
    assert weights is not None
    per_group = np.bincount(few.train.index[:, 1], weights, minlength=10)
    np.testing.assert_allclose(per_group[per_group > 0], 1)
    assert len(np.unique(group_weights(everything.train.index))) > 1
