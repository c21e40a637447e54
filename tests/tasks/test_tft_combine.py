"""Forecasts shifted towards the last value: the share comes from the validation sums, and only the chosen targets move."""

import numpy as np
import pytest
from tft_case import LEVELS, Told, batch, task

from jaxtrain.errors import UserError
from jaxtrain.tasks import tft_combine


def made():
    return task(score__combine_last="('cpu_percent',)")


def told(windows):
    # The same fan for everybody, around the training mean.
    shape = (*windows["target"].shape, len(LEVELS))
    return Told(np.broadcast_to(np.linspace(-1, 1, len(LEVELS)), shape).astype(np.float32))


def test_sums_of_every_share_equal_a_loop():
    windows, chosen = batch(), made()
    model = told(windows)
    median = np.asarray(chosen.predict(model, windows)["quantiles"])[..., LEVELS.index(0.5)]
    last = windows["past"][:, -1, :4]
    last = np.where(np.isnan(last), median[:, 0], last)[:, None]
    found = np.asarray(chosen.score(model, windows)["combine"])
    for place, share in enumerate(tft_combine.SHARES):
        error = np.abs(median + share * (last - median) - windows["target"]) * windows["target_mask"]
        np.testing.assert_allclose(found[:, place], error.sum((0, 1)), rtol=1e-4)


def test_the_best_share_of_the_chosen_target_is_used():
    windows, chosen = batch(), made()
    model = told(windows)
    sums = {k: np.asarray(v) for k, v in chosen.score(model, windows).items()}
    fitted = chosen.calibrate(sums)
    share = fitted["last_share"]
    assert share[0] == tft_combine.SHARES[sums["combine"][0].argmin()] > 0 and not share[1:].any()

    before, after = chosen.predict(model, windows)["quantiles"], chosen.with_statistics(fitted).predict(model, windows)["quantiles"]
    np.testing.assert_array_equal(before[:, :, 1:], after[:, :, 1:])
    assert (np.diff(after, axis=-1) >= 0).all() and (after[:, :, 0] >= 0).all() and (after[:, :, 0] <= 100).all()
    error = np.abs(np.asarray(after)[..., 0, 3] - windows["target"][..., 0]) * windows["target_mask"][..., 0]
    np.testing.assert_allclose(error.sum(), sums["combine"][0].min(), rtol=1e-4)


def test_nothing_is_shifted_unless_asked_for():
    windows = batch()
    assert "combine" not in task().score(told(windows), windows)
    assert task().calibrate({}) == {}
    with pytest.raises(UserError, match="combine_last: 'cpus_percent' is not a target .did you mean 'cpu_percent'"):
        task(score__combine_last="('cpus_percent',)")
