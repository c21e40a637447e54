"""Scores of traffic forecasts: masked sums against plain NumPy, groups, references, the oracle as an ensemble."""

from functools import partial

import numpy as np
import pytest
from stmgt_case import batch, forecast, host, observed, splits, task, trained

from jaxtrain.data.dataset import padded_rows


def test_padded_batch_equals_unpadded_in_every_sum():
    made, test = task(), splits().test
    rows = test.index[:3]
    (padded_index, mask), = padded_rows(rows, 5)
    gather = partial(test.gather, test.arrays)
    padded = host(trained().score({**gather(padded_index), "mask": mask}))
    short = host(trained().score({**gather(rows), "mask": np.ones(3, np.float32)}))
    assert padded.keys() == short.keys()
    for name, value in short.items():
        np.testing.assert_allclose(padded[name], value, rtol=1e-4, atol=1e-3, err_msg=name)
    empty = host(trained().score({**gather(padded_index), "mask": np.zeros(5, np.float32)}))
    assert all(not np.any(value) for value in empty.values())
    assert made.summarize(empty) == {name: 0.0 for name in made.summarize(empty)} and "mae" not in made.summarize(empty)


def test_scores_equal_their_definitions():
    made, one, said = task(), batch(), forecast()
    scores = made.summarize(host(trained().score(one)))
    mask = observed(one)
    y = one["target"].astype(np.float64)
    median, mean, std = (said[name].astype(np.float64) for name in ("median", "mean", "std"))
    level = list(made.config.score.quantiles)
    q10, q90 = said["quantiles"][..., level.index(0.1)], said["quantiles"][..., level.index(0.9)]
    congested = y < made.config.score.congestion_fraction * made.statistics["free_flow"]
    expected = {
        "mae": np.abs(median - y)[mask].mean(),
        "rmse": np.sqrt(((mean - y) ** 2)[mask].mean()),
        "bias": (mean - y)[mask].mean(),
        "mape": 100 * (np.abs(median - y)[mask] / y[mask]).mean(),
        "r2": 1 - ((mean - y) ** 2)[mask].sum() / ((y - y[mask].mean()) ** 2)[mask].sum(),
        "coverage_80": ((q10 <= y) & (y <= q90))[mask].mean(),
        "coverage_80_gaussian": (np.abs(mean - y) <= 1.2816 * std)[mask].mean(),
        "width_80": (q90 - q10)[mask].mean(),
        "brier": ((said["p_congested"] - congested) ** 2)[mask].mean(),
        "targets": mask.sum(),
        "mae/20min": np.abs(median - y)[:, 3][mask[:, 3]].mean(),
    }
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, rel=2e-3, abs=1e-5), name
    # The mixture's own scores, from samples of it.
    rng = np.random.default_rng(0)
    weights = said["component_weight"].astype(np.float64)
    chosen = (rng.random((4000, *y.shape, 1)) > np.cumsum(weights, -1)[..., :-1]).sum(-1)
    pick = partial(np.take_along_axis, indices=chosen[..., None], axis=-1)
    center, width = (pick(said[f"component_{name}"][None])[..., 0] for name in ("mean", "std"))
    draws = center + width * rng.standard_normal(chosen.shape)
    crps = np.abs(draws - y).mean(0) - np.abs(draws[::2] - draws[1::2]).mean(0) / 2
    assert scores["crps"] == pytest.approx(crps[mask].mean(), rel=0.02)
    bell = np.exp(-(((y[..., None] - said["component_mean"]) / said["component_std"]) ** 2) / 2) / said["component_std"]
    nll = -np.log((weights * bell).sum(-1) / np.sqrt(2 * np.pi))
    assert scores["nll"] == pytest.approx(nll[mask].mean(), rel=1e-3)


def test_groups_add_up_and_hold_what_their_name_says():
    one = batch()
    sums = host(trained().score(one))
    for group in ("node", "hour", "state"):
        assert sums[f"{group}/abs"].sum() == pytest.approx(sums["horizon/abs"].sum(), rel=1e-5)
    mask, error = observed(one), np.abs(forecast()["median"] - one["target"])
    hour = (one["slot"][:, 6:] * 5) // 60
    for h in np.unique(hour):
        assert sums["hour/abs"][h] == pytest.approx((error * mask)[hour == h].sum(), rel=1e-4)
    np.testing.assert_allclose(sums["node/n"], mask.sum((0, 1)))
    ratio = one["target"] / task().statistics["free_flow"]
    expected = [(mask & part).sum() for part in (ratio < 0.5, (ratio >= 0.5) & (ratio <= 0.8), ratio > 0.8)]
    np.testing.assert_allclose(sums["state/n"], expected)
    assert sums["pit"].shape == (4, 20) and sums["pit"].sum() == mask.sum()
    assert sums["reliability/n"].sum() == mask.sum()


def test_naive_sums_equal_plain_numpy():
    made, one = task(), batch()
    statistics, (steps, horizon) = made.statistics, (6, 4)
    sums = {name: host(made.score_forecast(f, one)) for name, f in made.naive(one).items()}
    mask, y = observed(one), one["target"]
    weekend = (one["dow"] >= 5).astype(int)
    for b in range(len(y)):
        usual = statistics["profile"][weekend[b], one["slot"][b]]
        last = one["speed"][b, -1]
        forecasts = {
            "last": np.repeat(last[None], horizon, 0),
            "tod": usual[steps:],
            "damped": usual[steps:] + statistics["damping"][:, None] * (last - usual[steps - 1]),
        }
        for name, value in forecasts.items():
            sums[name]["horizon/abs"] -= (np.abs(value - y[b]) * mask[b]).sum(1)
            sums[name]["horizon/sq"] -= ((value - y[b]) ** 2 * mask[b]).sum(1)
    for name in ("last", "tod", "damped"):
        np.testing.assert_allclose(sums[name]["horizon/abs"], 0, atol=2e-2)
        np.testing.assert_allclose(sums[name]["horizon/sq"], 0, atol=1e-1)
        assert "horizon/crps" not in sums[name]
    assert "horizon/brier" in sums["tod"] and "horizon/brier" not in sums["last"]


def test_the_oracle_is_scored_as_an_ensemble_and_only_on_embedded_data():
    made, test = task(), splits().test
    rows = test.index[:4]
    known = {**test.gather(test.arrays, rows), "mask": np.ones(4, np.float32)}
    found = made.oracle(rows)["oracle"]
    scores = made.summarize(host(made.score_forecast(found, known)))
    mask = observed(known)
    low, high = np.quantile(found["samples"], [0.1, 0.9], axis=1)
    assert scores["width_80"] == pytest.approx((high - low)[mask].mean(), rel=1e-3)
    assert scores["coverage_80"] == pytest.approx(((low <= known["target"]) & (known["target"] <= high))[mask].mean(), abs=0.02)
    assert scores["crps"] < scores["mae"] and "nll" not in scores
    real = task(data__path="somewhere.csv")
    assert real.oracle(rows) is None
