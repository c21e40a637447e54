"""Forecasts shifted towards the last value: shares come from the validation sums by group and level, and only the chosen targets move."""

import numpy as np
import pytest
from tft_case import LEVELS, SERVERS, Told, batch, task

from jaxtrain.errors import UserError
from jaxtrain.tasks import tft_combine

MEDIAN = LEVELS.index(0.5)


def made():
    return task(score__combine_last="('cpu_percent',)")


def told(windows):
    # The same fan for everybody, around the training mean.
    shape = (*windows["target"].shape, len(LEVELS))
    return Told(np.broadcast_to(np.linspace(-1, 1, len(LEVELS)), shape).astype(np.float32))


def way(windows, quantiles):
    last = windows["past"][:, -1, :4]
    last = np.where(np.isnan(last), quantiles[:, 0, :, MEDIAN], last)[:, None]
    return (last - quantiles[..., MEDIAN])[..., None]


def test_sums_of_every_share_equal_a_loop():
    windows, chosen = batch(), made()
    windows["group"] = np.array([0, 3, 3, 1, 8, 3], np.int32)
    model = told(windows)
    quantiles = np.asarray(chosen.predict(model, windows)["quantiles"])
    found = np.asarray(chosen.score(model, windows)["combine"])
    assert found.shape == (SERVERS + 1, 4, len(LEVELS), len(tft_combine.SHARES))
    for place, share in enumerate(tft_combine.SHARES):
        moved = quantiles + share * way(windows, quantiles)
        for q, level in enumerate(LEVELS):
            error = windows["target"] - moved[..., q]
            loss = (np.where(error > 0, level * error, (level - 1) * error) * windows["target_mask"]).sum(1)
            expected = [loss[windows["group"] == group].sum(0) for group in range(SERVERS + 1)]
            np.testing.assert_allclose(found[:, :, q, place], expected, rtol=1e-4)


def losses(*best):
    """(1, R = 2, Q = 1, S) per group: |share - best| + 1 for both targets."""
    loss = np.stack([1 + np.abs(tft_combine.SHARES - share) for share in best])
    return {"combine": np.repeat(loss[:, None, None], 2, axis=1)}


def test_a_group_has_a_share_between_its_own_best_and_the_fleets():
    sums = losses(0.0, 0.2, 0.2, 0.2, 1.0)
    sums["combine"][0] = 0  # no group is new to training
    fitted = tft_combine.fitted(sums, ("cpu", "memory"), ("cpu",))
    assert fitted.shape == (5, 2, 1) and not fitted[:, 1].any()
    np.testing.assert_allclose(fitted[:4, 0, 0], 0.2)
    # The last group's cost falls faster towards its own best than the fleet's rises, but a longer record is needed to stand alone.
    assert fitted[4, 0, 0] == 1.0
    sums["combine"][4] = 0
    np.testing.assert_allclose(tft_combine.fitted(sums, ("cpu", "memory"), ("cpu",))[:, 0, 0], 0.2)  # no windows: the fleet's


def test_the_size_of_a_group_does_not_matter_to_its_own_share():
    sums = losses(0.0, 0.3, 0.9)
    small = {"combine": sums["combine"] * np.array([1, 1, 1e-3])[:, None, None, None]}
    own = [tft_combine.fitted(s, ("a", "b"), ("a", "b"))[2, 0, 0] for s in (sums, small)]
    assert own[0] > 0.5 and own[1] < own[0] + 1e-6


def test_a_share_that_is_never_wrong_is_taken():
    sums = losses(0.0, 0.3, 0.3)
    sums["combine"][2] = 1.0
    sums["combine"][2, ..., 7] = 0.0
    assert np.isclose(tft_combine.fitted(sums, ("a", "b"), ("a", "b"))[2, 0, 0], 0.7)


def test_levels_move_by_their_groups_share_and_are_put_in_order():
    windows, chosen = batch(), made()
    windows["group"] = np.array([1, 2, 1, 0, 5, 2], np.int32)
    model = told(windows)
    fitted = chosen.calibrate({k: np.asarray(v) for k, v in chosen.score(model, windows).items()})
    share = fitted["last_share"]
    assert share[:, 0].any() and not share[:, 1:].any() and len(np.unique(share[:, 0], axis=0)) > 1
    before, after = (np.asarray(t.predict(model, windows)["quantiles"]) for t in (chosen, chosen.with_statistics(fitted)))
    np.testing.assert_array_equal(before[:, :, 1:], after[:, :, 1:])
    moved = before + share[windows["group"]][:, None] * way(windows, before)
    np.testing.assert_allclose(after[:, :, 0], np.sort(np.clip(moved, 0, 100), axis=-1)[:, :, 0], rtol=1e-5, atol=1e-5)
    assert (np.diff(after, axis=-1) >= 0).all() and np.abs(before - after).max() > 1e-3


def test_nothing_is_shifted_unless_asked_for():
    windows = batch()
    assert "combine" not in task().score(told(windows), windows)
    assert task().calibrate({}) == {}
    with pytest.raises(UserError, match="combine_last: 'cpus_percent' is not a target .did you mean 'cpu_percent'"):
        task(score__combine_last="('cpus_percent',)")
