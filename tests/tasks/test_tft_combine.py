"""Forecasts shifted towards the last value: shares come from the validation sums, level by level, and only the chosen targets move."""

import numpy as np
import pytest
from tft_case import LEVELS, Told, batch, task

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
    model = told(windows)
    quantiles = np.asarray(chosen.predict(model, windows)["quantiles"])
    found = np.asarray(chosen.score(model, windows)["combine"])
    assert found.shape == (4, len(LEVELS), len(tft_combine.SHARES))
    for place, share in enumerate(tft_combine.SHARES):
        moved = quantiles + share * way(windows, quantiles)
        for q, level in enumerate(LEVELS):
            error = windows["target"] - moved[..., q]
            loss = np.where(error > 0, level * error, (level - 1) * error) * windows["target_mask"]
            np.testing.assert_allclose(found[:, q, place], loss.sum((0, 1)), rtol=1e-4)


def test_of_shares_that_cost_the_same_the_largest_is_taken():
    loss = np.full((2, 1, len(tft_combine.SHARES)), 3.0)
    loss[0, 0, 2:5] = 1.0, 1.009, 1.011
    loss[1, 0, 0] = 1.0
    fitted = tft_combine.fitted({"combine": loss}, ("cpu", "memory"), ("cpu", "memory"))
    np.testing.assert_allclose(fitted, [[0.3], [0.0]])
    np.testing.assert_allclose(tft_combine.fitted({"combine": loss}, ("cpu", "memory"), ("memory",)), 0)


def test_levels_move_by_their_own_share_and_are_put_in_order():
    windows, chosen = batch(), made()
    model = told(windows)
    fitted = chosen.calibrate({k: np.asarray(v) for k, v in chosen.score(model, windows).items()})
    share = fitted["last_share"]
    assert share[0].any() and not share[1:].any()
    before, after = (np.asarray(t.predict(model, windows)["quantiles"]) for t in (chosen, chosen.with_statistics(fitted)))
    np.testing.assert_array_equal(before[:, :, 1:], after[:, :, 1:])
    expected = np.sort(np.clip(before + share * way(windows, before), 0, 100), axis=-1)[:, :, 0]
    np.testing.assert_allclose(after[:, :, 0], expected, rtol=1e-5, atol=1e-5)
    assert (np.diff(after, axis=-1) >= 0).all() and np.abs(before - after).max() > 1e-3


def test_nothing_is_shifted_unless_asked_for():
    windows = batch()
    assert "combine" not in task().score(told(windows), windows)
    assert task().calibrate({}) == {}
    with pytest.raises(UserError, match="combine_last: 'cpus_percent' is not a target .did you mean 'cpu_percent'"):
        task(score__combine_last="('cpus_percent',)")
