"""Calibrated intervals: the factor comes from the validation sums and makes the interval hold its share, minute by minute."""

import numpy as np
import pytest
from convlstm_case import CAP, F, Told, batch, counted, host, numbers, splits, task

from jaxtrain.tasks import convlstm_intervals as intervals

HEADS = {"gaussian": {"model__head": "gaussian", "loss__kind": "nll"}, "quantile": {"model__head": "quantile", "loss__kind": "pinball"}}


def case(head: str):
    made, one = task(**HEADS[head]), batch(splits().train, count=60)
    said = numbers(count=60)
    fixed = {"y": 0.3 + 0.1 * said["y"], "sigma": 0.12 + 0 * said["sigma"]}
    fixed["quantiles"] = np.stack([fixed["y"] - 0.15, fixed["y"], fixed["y"] + 0.1], -1)
    names = ("y", "sigma") if head == "gaussian" else ("y", "quantiles")
    return made, one, Told(**{name: fixed[name] for name in names})


@pytest.mark.parametrize("head", HEADS)
def test_the_interval_holds_its_share_of_what_it_was_fitted_on(head):
    made, one, told = case(head)
    sums = host(made.score(told, one))
    known = counted(one)
    np.testing.assert_allclose(sums["interval/n"], known.sum((0, 2, 3)))
    said = {k: np.asarray(v) for k, v in made.predict(told, one).items()}
    inside = (said["lower"] <= one["target"]) & (one["target"] <= said["upper"])
    one_place = int(np.argmin(abs(intervals.FACTORS - 1)))
    assert intervals.FACTORS[one_place] == pytest.approx(1)
    np.testing.assert_allclose(sums["interval/inside"][one_place], (inside & known).sum((0, 2, 3)), atol=2)

    fitted = made.calibrate(sums)
    calibrated = made.with_statistics(fitted)
    before, after = (made.summarize(host(t.score(told, one))) for t in (made, calibrated))
    assert abs(before["coverage_80"] - 0.8) > 0.03, "a case without anything to mend"
    for minutes in (1, 5):
        assert after[f"coverage_80/t+{minutes}"] == pytest.approx(0.8, abs=0.02)
    assert after["rmse_s"] == before["rmse_s"]
    wide = {k: np.asarray(v) for k, v in calibrated.predict(told, one).items()}
    factor = fitted["interval_factor"]
    expected = np.clip(said["value"] + factor[:, None, None] * (said["lower"] - said["value"]), 0, CAP)
    np.testing.assert_allclose(wide["lower"], expected, atol=1e-4)
    assert "interval/n" not in calibrated.score(told, one)


def test_rows_of_a_rollout_past_the_horizon_take_the_last_factor():
    value = np.full((1, 2 * F, 1, 1), 10.0)
    factor = np.linspace(0.5, 1.5, F).astype(np.float32)
    found = intervals.scaled({"value": value, "lower": value - 2, "upper": value + 4}, factor, CAP)
    np.testing.assert_allclose(found["upper"][0, :, 0, 0], 10 + 4 * np.concatenate([factor, np.full(F, 1.5)]))
    np.testing.assert_allclose(found["lower"][0, :, 0, 0], 10 - 2 * np.concatenate([factor, np.full(F, 1.5)]))


def test_without_cells_or_without_an_interval_nothing_changes():
    n = np.array([0.0, 10.0])
    inside = np.zeros((len(intervals.FACTORS), 2))
    inside[:, 1] = np.arange(len(intervals.FACTORS))
    np.testing.assert_allclose(intervals.fitted({"interval/inside": inside, "interval/n": n}, 0.8), [1.0, intervals.FACTORS[8]])
    assert "interval/n" not in task().score(Told(y=numbers()["y"]), batch()) and task().calibrate({}) == {}
