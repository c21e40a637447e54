"""Forecasts shifted towards the last value and the day before: shares come from the validation sums by group and level, and only the
chosen targets move."""

import numpy as np
import pytest
from tft_case import LEVELS, SERVERS, Told, batch, task

from jaxtrain.errors import UserError
from jaxtrain.tasks import tft_combine

MEDIAN, SEASON = LEVELS.index(0.5), 5
PAIRS = tft_combine.PAIRS


def made():
    return task(score__combine="('cpu_percent',)", data__season_steps=f"({SEASON}, 192)")


def windows_of(*groups):
    windows = batch()
    windows["past"] = windows["past"].copy()
    windows["past"][0, -6, 0] = np.nan  # the last value stands in for an unknown day
    windows["past"][1, :, 0] = np.nan
    return windows | {"group": np.array(groups, np.int32)}


def told(windows):
    # The same fan for everybody, around the training mean.
    shape = (*windows["target"].shape, len(LEVELS))
    return Told(np.broadcast_to(np.linspace(-1, 1, len(LEVELS)), shape).astype(np.float32))


def ways(windows, quantiles):
    """(B, tau, R) to the last known value and to the one SEASON or 2 SEASON steps before, cell by cell."""
    past, median = windows["past"][..., :4], quantiles[..., MEDIAN]
    last, day = np.zeros_like(median), np.zeros_like(median)
    for b, j, r in np.ndindex(median.shape):
        known = past[b, np.isfinite(past[b, :, r]), r]
        if len(known):
            value = past[b, past.shape[1] + j - SEASON * (1 + j // SEASON), r]
            last[b, j, r], day[b, j, r] = known[-1] - median[b, j, r], (known[-1] if np.isnan(value) else value) - median[b, j, r]
    return last[..., None], day[..., None]


def test_pairs_leave_the_network_the_rest():
    assert len(PAIRS) == len({tuple(pair) for pair in PAIRS.tolist()}) == 21
    assert PAIRS.min() == 0 and PAIRS.sum(1).max() == 1
    assert {(0, 0), (1, 0), (0, 1)} <= {tuple(pair) for pair in PAIRS.tolist()}


def test_sums_of_every_pair_equal_a_loop():
    windows, chosen = windows_of(0, 3, 3, 1, 8, 3), made()
    model = told(windows)
    quantiles = np.asarray(chosen.predict(model, windows)["quantiles"])
    last, day = ways(windows, quantiles)
    found = np.asarray(chosen.score(model, windows)["combine"])
    assert found.shape == (SERVERS + 1, 4, len(LEVELS), len(PAIRS))
    for place, (a, b) in enumerate(PAIRS):
        moved = quantiles + a * last + b * day
        for q, level in enumerate(LEVELS):
            error = windows["target"] - moved[..., q]
            loss = (np.where(error > 0, level * error, (level - 1) * error) * windows["target_mask"]).sum(1)
            expected = [loss[windows["group"] == group].sum(0) for group in range(SERVERS + 1)]
            np.testing.assert_allclose(found[:, :, q, place], expected, rtol=1e-4)


def losses(*best):
    """(groups, R = 2, Q = 1, C): 1 + the distance of a pair from the group's best one."""
    loss = np.stack([1 + np.abs(PAIRS - np.array(pair)).sum(1) for pair in best])
    return {"combine": np.repeat(loss[:, None, None], 2, axis=1)}


def fitted(sums, chosen=("a", "b"), alone=()):
    return tft_combine.fitted(sums, ("a", "b"), chosen, alone, 0)


def test_a_group_follows_its_own_record_and_without_one_the_fleet():
    sums = losses((0, 0), (0.2, 0), (0.2, 0), (0.2, 0), (0, 1))
    sums["combine"][0] = 0  # no group is new to training
    found = fitted(sums, ("a",))
    assert found.shape == (5, 2, 1, 2) and not found[:, 1].any()
    np.testing.assert_allclose(found[:4, 0, 0], [(0.2, 0)] * 4)
    np.testing.assert_allclose(found[4, 0, 0], (0, 1))
    sums["combine"][4] = 0
    np.testing.assert_allclose(fitted(sums)[:, 0, 0], [(0.2, 0)] * 5)


def test_a_record_that_says_little_leans_on_the_fleet():
    sums = losses((0, 0), (0.2, 0), (0.2, 0), (0.2, 0), (0, 1))
    sums["combine"][4] = 1 + 0.1 * (sums["combine"][4] - 1)  # all pairs cost this group nearly the same
    np.testing.assert_allclose(fitted(sums)[4, 0, 0], (0.2, 0))


def test_the_size_of_a_group_does_not_matter_to_its_own_pair():
    sums = losses((0, 0), (0.2, 0.2), (0.2, 0.2), (0.8, 0))
    small = {"combine": sums["combine"] * np.array([1, 1, 1, 1e-3])[:, None, None, None]}
    np.testing.assert_allclose([fitted(s)[3, 0, 0] for s in (sums, small)], [(0.8, 0)] * 2)


def test_a_pair_that_is_never_wrong_is_taken():
    sums = losses((0, 0), (0.2, 0), (0.2, 0))
    sums["combine"][2] = 1.0
    sums["combine"][2, ..., 7] = 0.0
    np.testing.assert_array_equal(fitted(sums)[2, 0, 0], PAIRS[7])


def test_a_median_of_references_leaves_the_network_no_share():
    sums = losses((0, 0), (0.2, 0), (0, 0), (0, 0.4))
    sums["combine"] = np.repeat(sums["combine"], 2, axis=2)  # two levels, of which the first is P50
    found = fitted(sums, alone=("b",))
    np.testing.assert_allclose(found[:, 1, 0].sum(-1), 1)
    np.testing.assert_array_equal(found[:, 1, 1], found[:, 0, 1])
    assert (found[:, 0].sum(-1) < 1).all()


def test_levels_move_by_their_groups_shares_and_are_put_in_order():
    windows, chosen = windows_of(1, 2, 1, 0, 5, 2), made()
    model = told(windows)
    found = chosen.calibrate({k: np.asarray(v) for k, v in chosen.score(model, windows).items()})
    share = found["combine_shares"]
    assert share[:, 0].any() and not share[:, 1:].any() and len(np.unique(share[:, 0].reshape(SERVERS + 1, -1), axis=0)) > 1
    before, after = (np.asarray(t.predict(model, windows)["quantiles"]) for t in (chosen, chosen.with_statistics(found)))
    np.testing.assert_array_equal(before[:, :, 1:], after[:, :, 1:])
    last, day = ways(windows, before)
    own = share[windows["group"]][:, None]
    moved = before + own[..., 0] * last + own[..., 1] * day
    np.testing.assert_allclose(after[:, :, 0], np.sort(np.clip(moved, 0, 100), axis=-1)[:, :, 0], rtol=1e-5, atol=1e-4)
    assert (np.diff(after, axis=-1) >= 0).all() and np.abs(before - after).max() > 1e-3


def test_what_follows_the_origin_is_not_read():
    windows, chosen = windows_of(1, 2, 1, 0, 5, 2), made()
    model = told(windows)
    ready = chosen.with_statistics({"combine_shares": np.full((SERVERS + 1, 4, len(LEVELS), 2), 0.4, np.float32)})
    hidden = windows | {"target": np.zeros_like(windows["target"]), "season": np.zeros_like(windows["season"])}
    np.testing.assert_array_equal(ready.predict(model, windows)["quantiles"], ready.predict(model, hidden)["quantiles"])


def test_nothing_is_shifted_unless_asked_for():
    windows = batch()
    assert "combine" not in task().score(told(windows), windows)
    assert task().calibrate({}) == {}
    with pytest.raises(UserError, match="combine: 'cpus_percent' is not a target .did you mean 'cpu_percent'"):
        task(score__combine="('cpus_percent',)")
    with pytest.raises(UserError, match="reference_median: 'disk_percent' is not in score.combine"):
        task(score__combine="('cpu_percent',)", score__reference_median="('disk_percent',)", data__season_steps="(5, 192)")
    with pytest.raises(UserError, match="season_steps=96 steps earlier, the network's past has data.context_steps=24"):
        task(score__combine="('cpu_percent',)")
