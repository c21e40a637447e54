"""Scores: additive sums against plain NumPy on all windows at once, effective numbers, tiers, references."""

import jax
import numpy as np
import pytest
from cbh_case import FLIGHTS, STATISTICS, Told, batch, task

from jaxtrain.tasks import cbh_scores as scores

COUNT = 41
LAYOUT = scores.layout(STATISTICS)


@pytest.fixture(scope="module")
def found():
    """(batch, forecast in km, summarised scores added over three parts of the batch)."""
    made, one = task(loss__kind="mae"), batch(COUNT)
    one["flight"][one["role"] != 2] = 2
    rng = np.random.default_rng(5)
    said = np.nan_to_num(0.7 * one["height_km"] + 0.2 + rng.normal(0, 0.2, COUNT)).astype(np.float32)
    score = jax.jit(lambda y, b: made.score(Told(y), b))
    sums: dict[str, np.ndarray] = {}
    for part in (slice(0, 14), slice(14, 28), slice(27, 41)):
        piece = {k: v[part].copy() for k, v in one.items()}
        if part.start == 27:
            piece["mask"][0] = 0  # counted in the part before
        for key, value in score((said[part] - 0.8) / 0.4, piece).items():
            sums[key] = sums.get(key, 0) + np.asarray(value, np.float64)
    return one, said, made.summarize(sums), sums


def rows_of(one, part: str) -> np.ndarray:
    return np.isin(one["role"], scores.PARTS[part]) & (one["mask"] > 0)


@pytest.mark.parametrize("part", ["blocked", "flight"])
def test_scores_are_those_of_all_rows_at_once(found, part):
    one, said, summary, _ = found
    chosen = rows_of(one, part)
    y, f, flight = one["height_km"][chosen], said[chosen], one["flight"][chosen]
    e = f - y
    own = np.array([y[flight == k].mean() for k in flight])
    f_own = np.array([f[flight == k].mean() for k in flight])
    expected = {
        "mae_km": abs(e).mean(), "rmse_km": np.sqrt((e**2).mean()), "bias_km": e.mean(), "loss": abs(e).mean() / 0.4, "n": len(y),
        "r2": 1 - (e**2).sum() / ((y - own) ** 2).sum(), "r2_pooled": 1 - (e**2).sum() / ((y - y.mean()) ** 2).sum(),
        "skill": 1 - (e**2).mean() / ((y - 0.8) ** 2).mean(),
        "spread": np.sqrt(((f - f_own) ** 2).sum() / ((y - own) ** 2).sum()),
    }  # fmt: skip
    for name, value in expected.items():
        assert summary[f"{name}/{part}"] == pytest.approx(value, rel=1e-4), name
    for percent in scores.PERCENTILES:
        expected = np.quantile(abs(e), percent / 100, method="inverted_cdf")
        assert summary[f"error_km_p{percent}/{part}"] == pytest.approx(expected, abs=0.0051)
    one_flight = flight == flight[0]
    name = FLIGHTS[flight[0]]
    assert summary[f"mae_km/{part}/{name}"] == pytest.approx(abs(e[one_flight]).mean(), rel=1e-4)
    low = (y >= 0.3) & (y < 0.6)
    assert summary[f"mae_km/{part}/0.3-0.6_km"] == pytest.approx(abs(e[low]).mean(), rel=1e-4)
    assert summary[f"bias_km/{part}/0.3-0.6_km"] == pytest.approx(e[low].mean(), rel=1e-3)


def test_the_monitor_is_the_mean_loss_of_all_rows(found):
    one, said, summary, _ = found
    chosen = one["mask"] > 0
    assert summary["loss"] == pytest.approx(abs(said - one["height_km"])[chosen].mean() / 0.4, rel=1e-4)


def test_pooled_r2_is_the_larger(found):
    assert found[2]["r2_pooled/blocked"] > found[2]["r2/blocked"]


def test_histogram_counts_errors_in_5_m_bins(found):
    one, said, _, sums = found
    chosen = rows_of(one, "flight")
    expected = np.histogram(abs(said - one["height_km"])[chosen], bins=np.append(np.arange(401) * 0.005, np.inf))[0]
    np.testing.assert_array_equal(np.asarray(sums["histogram"])[4:].sum((0, 1)), expected)


def test_unknown_flights_and_unlabelled_frames():
    made, one = task(), batch(8)
    one |= {"flight": np.full(8, 9, np.int32), "role": np.full(8, 4, np.int32)}
    one["height_km"][:3] = np.nan
    summary = made.summarize(jax.jit(lambda b: made.score(Told(np.zeros(8)), b))(one))
    assert summary["n/flight"] == summary["n/flight/other"] == 4 and "mae_km/blocked" not in summary


def test_a_constant_has_no_spread_and_no_skill():
    made, one = task(), batch(COUNT)
    naive = made.naive(one)["mean"]
    summary = made.summarize(jax.jit(made.score_forecast)(naive, one))
    assert summary["skill/blocked"] == pytest.approx(0, abs=1e-5) and summary["spread/blocked"] == pytest.approx(0, abs=1e-3)
    assert "coverage_90/blocked" not in summary


def test_references_are_scored_where_they_are_known():
    made, one = task(), batch(COUNT)
    one["reference_km"][:7, 0] = np.nan
    naive = made.naive(one)
    assert set(naive) >= {"mean", "near", "last*", "ridge", "oracle"}
    score = jax.jit(made.score_forecast)
    scored = {name: made.summarize(score(naive[name], one)) for name in ("near", "ridge", "oracle")}
    assert scored["near"]["n/blocked"] + scored["near"]["n/flight"] == COUNT - 1 - 7
    chosen = rows_of(one, "blocked")
    for i, name in ((2, "ridge"), (4, "oracle")):
        assert scored[name]["mae_km/blocked"] == pytest.approx(abs(one["reference_km"][:, i] - one["height_km"])[chosen].mean(), rel=1e-4)


def test_references_that_do_not_exist_have_no_row():
    assert "boost" not in task(data__boost="false").naive(batch())
    real = task("smoke+campaign")
    assert "oracle" not in real.naive(batch())


def test_n_eff_of_alike_neighbours():
    counts = np.array([0, 0, 144.0, 0, 0, 0])
    assert scores.effective(LAYOUT, counts) == pytest.approx(144 * 0.06 / 1.94)  # about 4
    unknown = np.array([0, 0, 0, 0, 10.0, 0])
    r = np.nanmean(STATISTICS["label_lag1"])
    assert scores.effective(LAYOUT, unknown) == pytest.approx(10 * (1 - r) / (1 + r))


@pytest.mark.parametrize(("r2", "mae", "rmse", "reached"), [
    (-0.07, 0.34, 0.50, 0), (0.1, 0.34, 0.5, 1), (0.35, 0.29, 0.46, 1), (0.35, 0.29, 0.44, 2), (0.6, 0.24, 0.3, 3), (0.6, 0.26, 0.3, 2),
])  # fmt: skip
def test_tiers(r2, mae, rmse, reached):
    assert scores.tier({"r2": r2, "mae_km": mae, "rmse_km": rmse}) == reached
    assert scores.tier({"mae_km": mae, "rmse_km": rmse}) is None


def test_intervals_are_calibrated_on_validation_rows_and_scored_on_test_rows():
    made = task()
    valid = batch(200, roles=(1, 3), flights=(0,))
    valid["height_km"] = np.full(200, 0.8, np.float32)
    errors = np.random.default_rng(0).uniform(-0.3, 0.3, 200).astype(np.float32)
    score = jax.jit(lambda y, b: made.score(Told(y), b))
    known = made.with_statistics(made.calibrate(score(errors / 0.4, valid)))
    blocked = (valid["role"] == 1) & (valid["mask"] > 0)
    expected = np.sort(abs(errors[blocked]))[int(np.ceil((blocked.sum() + 1) * 0.9)) - 1]
    assert known.statistics["blocked_km"][0, 1] == pytest.approx(expected, abs=0.0051)
    tested = {**valid, "role": np.full(200, 2, np.int32)}
    summary = known.summarize(score(errors / 0.8, tested))
    assert summary["coverage_90/blocked"] == 1 and summary["width_km_90/blocked"] == 2 * known.statistics["blocked_km"][0, 1]
