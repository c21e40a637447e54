"""Splits of traffic rows: published counts, rolling origins, blocks; no target row in two splits, a gap after every border."""

from typing import Any

import numpy as np
import pytest
from traffic_problem import config, readings, write_matrix

from jaxtrain.data import traffic
from jaxtrain.data.traffic_splits import Cut, cut
from jaxtrain.errors import UserError


def targets(found: Cut, changed: Any) -> list[set[int]]:
    """Target rows of train, valid and test."""
    return [{int(s) + changed.in_steps + h for s in starts for h in range(changed.out_steps)} for starts in found.starts]


def test_windows_split_follows_the_published_counts():
    # METR-LA: 34,272 rows, 12 + 12 steps -> 23,974 / 3,425 / 6,850 windows.
    found = cut(config(split="windows", in_steps=12, out_steps=12), 34_272, "x")
    assert [len(i) for i in found.starts] == [23_974, 3_425, 6_850]
    assert found.training == ((0, 23_973 + 24),)


@pytest.mark.parametrize("split", ["walk_forward", "blocked"])
def test_folds_share_no_target_and_keep_the_gap(split):
    tested: list[set[int]] = []
    for fold in range(4):
        changed = config(split=split, folds=4, fold=fold, gap_steps=7)
        found = cut(changed, 600, "x")
        train, valid, test = targets(found, changed)
        assert not (train & valid or train & test or valid & test)
        for earlier, later in ((a, b) for a in (train, valid, test) for b in (train, valid, test) if a is not b):
            after = [row for row in later if row > max(earlier)]
            assert not after or min(after) - max(earlier) > 7
        assert train <= set(np.flatnonzero(found.training_rows(600))), "statistics come from the rows that train"
        assert not test & set(np.flatnonzero(found.training_rows(600)))
        if split == "walk_forward":
            assert max(train) < min(valid) < max(valid) < min(test), "nothing is learned from the future"
        assert all(not test & other for other in tested), "every fold is tested on rows of its own"
        tested.append(test)
    if split == "walk_forward":
        assert max(tested[-1]) == 599, "the last fold ends with the data"


def test_statistics_of_a_block_ignore_the_other_blocks(tmp_path):
    changed = config(split="blocked", folds=4, fold=1, start="2024-01-01")
    found = cut(changed, 400, "x")
    values = readings(400)
    before = traffic.splits(config(path=write_matrix(tmp_path / "a.csv", values), **_keys(changed)), 0.5)
    values[~found.training_rows(400)] = 190
    after = traffic.splits(config(path=write_matrix(tmp_path / "b.csv", values), **_keys(changed)), 0.5).statistics
    for name, value in before.statistics.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    assert any("later data" in note for note in before.notes)


def _keys(changed: Any) -> dict[str, Any]:
    return {name: getattr(changed, name) for name in ("split", "folds", "fold", "start")}


@pytest.mark.parametrize("changes, said", [
    ({"split": "blocked", "folds": 2}, "3 folds or more when blocked"),
    ({"split": "walk_forward", "folds": 4, "fold": 4}, "expected 0 <= fold < folds"),
    ({"split": "walk_forward", "folds": 40}, "change data.folds"),
])  # fmt: skip
def test_impossible_folds_are_one_clear_line(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        traffic.splits(config(path=write_matrix(tmp_path / "a.csv", readings(300)), start="2024-01-01", **changes), 0.5)
