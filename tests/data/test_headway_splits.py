"""Windows of a rail line: inside one service day and one split, with enough known cells; folds of whole days."""

from dataclasses import replace

import numpy as np
import pytest
from headway_lines import config, line

from jaxtrain.data.headway_splits import Cut, cut, training_dates, windows
from jaxtrain.data.headway_tables import Line
from jaxtrain.errors import UserError


def target_rows(found: Cut, changed) -> list[set[int]]:
    return [{int(s) + changed.lookback + h for s in starts for h in range(changed.horizon)} for starts in found.starts]


def small(**changes):
    return config(lookback=4, horizon=3, **changes)


@pytest.mark.parametrize("days, counts", [(28, (20, 4, 4)), (21, (15, 3, 3)), (10, (7, 1, 2))])
def test_days_are_cut_by_the_rounded_shares(days, counts):
    found = cut(small(), line(days, day_rows=20), "x")
    assert [len(s) for s in found.starts] == [n * (20 - 7 + 1) for n in counts]
    assert found.training.sum() == counts[0] * 20
    assert len(training_dates(config(), np.arange(days))) == counts[0]


def test_no_window_crosses_a_service_day():
    made = line(6, day_rows=20)
    starts = windows(small(), made)
    assert (made.day[starts] == made.day[starts + 6]).all()
    assert set(starts % 20) == set(range(14)), "the last window of every day counts"


def test_a_short_day_moves_no_border():
    made = line(10, day_rows=20)
    keep = np.delete(np.arange(200), slice(35, 40))  # the second day is five rows short
    made = Line(**{k: v[keep] if isinstance(v, np.ndarray) and len(v) == 200 else v for k, v in vars(made).items()})
    found = cut(small(), made, "x")
    assert set(made.day[found.starts[1]]) == {7} and set(made.day[found.starts[2]]) == {8, 9}
    assert (made.day[found.starts[0]] == made.day[found.starts[0] + 6]).all()
    assert set(made.day[found.training]) == set(range(7))


def test_a_run_without_days_drops_the_windows_at_its_borders():
    changed, made = config(), line(1, day_rows=1000, dated=False)
    found = cut(changed, made, "x")
    assert [len(s) for s in found.starts] == [700 - 44, 150 - 44, 150 - 44]
    assert [int(s[0]) for s in found.starts] == [0, 700, 850] and int(found.starts[2][-1]) == 1000 - 45
    train, valid, test = target_rows(found, changed)
    assert not (train & valid or train & test or valid & test)


def test_a_window_needs_known_cells_in_its_last_input_row_and_in_its_target():
    made = line(4, day_rows=20)  # 6 cells a row
    headway = made.headway.copy()
    headway[3, :2] = np.nan  # row 3: 4 of 6 unknown
    headway[15:18] = np.nan
    changed = small()
    starts = {int(s) for s in windows(changed, replace(made, headway=headway)) if s < 20}
    assert 0 not in starts and {1, 2, 3} <= starts, "an unknown last input row excludes, an unknown earlier row does not"
    assert starts == {1, 2, 3, 4, 5, 6, 7, 8, 9, 10} - {10}, "targets 13-15, 14-16, ... hold one, two, three unknown rows"
    headway[3, 1, 0] = 5.0  # row 3: 3 of 6
    assert 0 in windows(changed, replace(made, headway=headway)), "half is enough"
    assert 0 in windows(replace(changed, target="age"), replace(made, headway=headway))


def test_stride_counts_within_a_day():
    made = line(4, day_rows=20)
    starts = windows(small(stride=3), made)
    assert set(starts % 20) == {0, 3, 6, 9, 12}


def test_only_training_windows_are_reduced_to_the_newest():
    full = cut(small(), line(10, day_rows=20), "x")
    fifth = cut(small(fraction=0.2), line(10, day_rows=20), "x")
    np.testing.assert_array_equal(fifth.starts[0], full.starts[0][-round(0.2 * 98) :])
    few = cut(small(max_windows=5), line(10, day_rows=20), "x")
    np.testing.assert_array_equal(few.starts[0], full.starts[0][-5:])
    for one in (1, 2):
        np.testing.assert_array_equal(few.starts[one], full.starts[one])


@pytest.mark.parametrize("split", ["walk_forward", "blocked"])
def test_folds_are_whole_days_and_share_no_target(split):
    made, tested = line(16, day_rows=12), []
    for fold in range(4):
        changed = small(split=split, folds=4, fold=fold)
        found = cut(changed, made, "x")
        train, valid, test = (set(made.day[s]) for s in found.starts)
        assert not (train & valid or train & test or valid & test)
        assert set(made.day[found.training]) == train
        assert [str(d) for d in made.service_dates[sorted(train)]] == training_dates(changed, made.service_dates)
        if split == "walk_forward":
            assert max(train) < min(valid) and max(valid) < min(test), "nothing is learned from the future"
        assert not any(test & earlier for earlier in tested)
        tested.append(test)
    if split == "blocked":
        assert set.union(*tested) == set(range(16)), "every day is tested once"


@pytest.mark.parametrize("changes, days, said", [
    ({}, 2, "windows: train 14 of 1 service days, valid 14 of 1 service days, test 0 of 0 service days"),
    ({"min_known": 1.0}, 8, "lower data.min_known"),
    ({"split": "walk_forward", "folds": 20}, 8, "change data.folds"),
])  # fmt: skip
def test_an_empty_split_is_one_clear_line(changes, days, said):
    made = line(days, day_rows=20)
    made.headway[:, 0, 0] = np.nan
    with pytest.raises(UserError, match=said):
        cut(small(**changes), made, "arrivals.parquet")
