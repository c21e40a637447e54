"""Scores of quantile forecasts against plain NumPy: sums, naive forecasts, alerts, summaries."""

import jax
import numpy as np
import pytest
from tft_case import LEVELS, SERVERS, TARGETS, batch, host, pinball, splits, task

from jaxtrain.tasks import tft_naive, tft_scores
from jaxtrain.tasks.tft_inputs import ascending

ALERTS = "{'cpu_percent': 40.0, 'load_average': 3.0}"


@pytest.fixture(scope="module")
def made():
    return task(data__alerts=ALERTS)


@pytest.fixture(scope="module")
def one():
    """12 windows with unmeasured cells, a padded example and a new group."""
    found = batch(count=12)
    found["target_mask"], found["group"], found["mask"] = found["target_mask"].copy(), found["group"].copy(), np.ones(12, np.float32)
    found["target_mask"][2, :4], found["target_mask"][5, 1, 2], found["group"][3], found["mask"][7] = 0, 0, 0, 0
    return found


@pytest.fixture(scope="module")
def quantiles(one) -> np.ndarray:
    rng = np.random.default_rng(3)
    spread = np.array([10, 5, 6, 2])[:, None]
    return np.sort(np.maximum(one["target"][..., None] + spread * rng.normal(size=(12, 8, 4, 7)), 0), -1).astype(np.float32)


@pytest.fixture(scope="module")
def compiled(made):
    return jax.jit(made.score_forecast)


@pytest.fixture(scope="module")
def sums(compiled, one, quantiles):
    return host(compiled({"quantiles": quantiles}, one))


def counted(one) -> np.ndarray:
    """(B, tau, R) cells that count."""
    return one["target_mask"] * one["mask"][:, None, None] > 0


def test_scores_equal_their_definitions(made, one, quantiles, sums):
    scores, mask = made.summarize(sums), counted(one)
    y, q = one["target"].astype(np.float64), quantiles.astype(np.float64)
    rho, error = pinball(q, y), np.abs(q[..., 3] - y)
    weights = (0.06, 0.115, 0.2, 0.25, 0.2, 0.115, 0.06)
    inside = {"80": (q[..., 1] <= y) & (y <= q[..., 5]), "96": (q[..., 0] <= y) & (y <= q[..., 6])}
    means: dict[str, list[float]] = {}
    for r, name in enumerate(TARGETS):
        m = mask[..., r]
        size = np.abs(y[..., r])[m].sum()
        expected = {
            "qrisk_10": 2 * rho[..., r, 1][m].sum() / size,
            "qrisk_50": error[..., r][m].sum() / size,
            "qrisk_90": 2 * rho[..., r, 5][m].sum() / size,
            "qrisk_mean": (2 * rho[..., r, :][m].sum(0) / size).mean(),
            "mae": error[..., r][m].mean(),
            "rmse": np.sqrt((error[..., r][m] ** 2).mean()),
            "coverage_80": inside["80"][..., r][m].mean(),
            "coverage_96": inside["96"][..., r][m].mean(),
            "width_80": (q[..., 5] - q[..., 1])[..., r][m].mean(),
            "crps": 2 * (np.array(weights) * rho[..., r, :][m]).sum(-1).mean(),
        }
        for score, value in expected.items():
            assert scores[f"{score}/{name}"] == pytest.approx(value, rel=1e-4), (score, name)
            means.setdefault(score, []).append(value)
        step = error[:, 3, r][m[:, 3]].sum() / np.abs(y[:, 3, r])[m[:, 3]].sum()
        assert scores[f"qrisk_50/{name}/step_4"] == pytest.approx(step, rel=1e-4)
    for score in ("qrisk_10", "qrisk_50", "qrisk_90", "qrisk_mean", "coverage_80", "coverage_96"):
        assert scores[score] == pytest.approx(np.mean(means[score]), rel=1e-4)
    assert "mae" not in scores and "width_80" not in scores  # units of different targets are never added
    assert scores["targets"] == mask.sum()


def test_brier_scores_the_probability_of_an_alert(made, one, quantiles, sums):
    scores, mask = made.summarize(sums), counted(one)
    for r, threshold in ((0, 40.0), (3, 3.0)):
        m = mask[..., r]
        below = np.array([np.interp(threshold, row, LEVELS, left=0, right=1) for row in quantiles[..., r, :][m]])
        expected = ((1 - below - (one["target"][..., r][m] > threshold)) ** 2).mean()
        assert scores[f"brier/{TARGETS[r]}"] == pytest.approx(expected, rel=1e-3)
    assert "brier/memory_percent" not in scores and "brier" not in scores


@pytest.mark.parametrize(("threshold", "expected"), [
    (-1.0, 1.0), (0.0, 0.98), (1.0, 0.94), (2.0, 0.9), (5.0, 0.5), (7.0, 0.25), (9.0, 0.02), (9.1, 0.0),
])  # fmt: skip
def test_exceedance_interpolates_and_ends_in_0_and_1(threshold, expected):
    quantiles = np.array([[0.0, 2.0, 4.0, 5.0, 7.0, 7.0, 9.0]], np.float32)
    found = float(tft_scores.exceedance(quantiles, LEVELS, np.array([threshold]))[0])
    tie = threshold == 7.0  # two levels at one value: all of its probability lies at or below it
    assert found == pytest.approx(0.1 if tie else expected, abs=1e-6)


def test_groups_of_sums_hold_what_their_name_says(made, one, quantiles, sums):
    layout, mask = made._layout(), counted(one)
    error = np.abs(quantiles[..., 3] - one["target"]) * mask
    per = {group: tft_scores.kinds_of(layout, sums, group) for group in sums}
    assert set(per) == {"step", "block", "group", "class", "hour", "weekday"}
    for group, kinds in per.items():
        for kind, axes in (("n", mask), ("abs", error)):
            np.testing.assert_allclose(kinds[kind].sum(0), axes.sum((0, 1)), rtol=1e-5, err_msg=f"{group} {kind}")
    np.testing.assert_allclose(per["step"]["abs"], error.sum(0), rtol=1e-5)
    for b, (number, step, _, block) in enumerate(one["when"]):
        place = number if one["group"][b] else SERVERS + number
        others = [i for i in range(12) if one["when"][i, 0] == number and bool(one["group"][i]) == bool(one["group"][b])]
        np.testing.assert_allclose(per["group"]["abs"][place], error[others].sum((0, 1)), rtol=1e-5)
        assert per["block"]["n"][block].sum() >= mask[b].sum() and step > 0
    seconds = int(made.statistics["start"]) + (one["when"][:, 1:2] + np.arange(8)) * 900
    hour, weekday = seconds // 3600 % 24, (seconds // 86400 + 3) % 7
    for h in range(24):
        np.testing.assert_allclose(per["hour"]["abs"][h], error[hour == h].sum(0), rtol=1e-5)
    for day in range(7):
        np.testing.assert_allclose(per["weekday"]["n"][day], mask[weekday == day].sum(0))
    for category in range(len(made.statistics["vocabulary/profile"]) + 1):
        np.testing.assert_allclose(per["class"]["n"][category], mask[one["static_cat"][:, 0] == category].sum((0, 1)))


def test_padding_and_order_change_no_sum(compiled, one, quantiles, sums):
    order = np.random.default_rng(0).permutation(12)
    other = {name: value[order] for name, value in one.items()}
    other["target"] = np.where(counted(other), other["target"], 1e9).astype(np.float32)
    found = host(compiled({"quantiles": quantiles[order]}, other))
    for name, value in sums.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-4, err_msg=name)


def test_groups_are_ranked_and_new_ones_numbered(made, one, quantiles, sums):
    scores, mask = made.summarize(sums), counted(one)
    error, size = np.abs(quantiles[..., 0, 3] - one["target"][..., 0]), np.abs(one["target"][..., 0])
    names = [str(made.statistics["group_names"][g]) if one["group"][b] else f"new group {g + 1}" for b, g in enumerate(one["when"][:, 0])]
    risk = {}
    for name in names:
        m = mask[..., 0] & (np.array(names) == name)[:, None]
        if m.any():
            risk[name] = error[m].sum() / size[m].sum()
    worst = [name for name in scores if name.startswith("qrisk_50/cpu_percent/worst/")]
    ranked = sorted(risk, key=lambda name: -risk[name])[:5]
    assert [name.rsplit("/", 1)[1] for name in worst] == ranked
    assert scores[worst[0]] == pytest.approx(risk[ranked[0]], rel=1e-4)
    assert scores["qrisk_50/cpu_percent/group_median"] == pytest.approx(np.median(list(risk.values())), rel=1e-4)
    assert any(name.startswith("new group") for name in risk)


def test_blocks_are_scored_on_their_own(made, one, compiled, quantiles):
    other = {**one, "when": one["when"].copy()}
    other["when"][:, 3] = np.arange(12) // 6
    scores, mask = made.summarize(host(compiled({"quantiles": quantiles}, other))), counted(one)
    error = np.abs(quantiles[..., 3] - one["target"]) * mask
    for block, part in ((0, slice(6)), (1, slice(6, 12))):
        expected = error[part].sum((0, 1)) / (np.abs(one["target"]) * mask)[part].sum((0, 1))
        assert scores[f"qrisk_50/block_{block}"] == pytest.approx(expected.mean(), rel=1e-4)


def test_nothing_counted_is_no_score(made, one, compiled, quantiles):
    empty = host(compiled({"quantiles": quantiles}, {**one, "mask": np.zeros(12, np.float32)}))
    assert all(not value.any() for value in empty.values())
    assert made.summarize(empty) == {"targets": 0.0}


def test_a_median_alone_has_the_scores_it_allows(made, one, quantiles, sums):
    scores, whole = made.summarize(host(jax.jit(made.score_forecast)({"median": quantiles[..., 3]}, one))), made.summarize(sums)
    assert scores["qrisk_50"] == pytest.approx(whole["qrisk_50"], rel=1e-5) and scores["rmse/load_average"] > 0
    assert not {"qrisk_10", "qrisk_mean", "coverage_80", "crps/cpu_percent", "brier/cpu_percent"} & scores.keys()


def test_ascending_is_a_sort():
    values = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    np.testing.assert_array_equal(ascending(values), np.sort(values, -1))


def test_crps_weights_of_the_default_levels():
    np.testing.assert_allclose(tft_scores.crps_weights(LEVELS), (0.06, 0.115, 0.2, 0.25, 0.2, 0.115, 0.06))
    assert tft_scores.crps_weights((0.1, 0.5, 0.9)).sum() == pytest.approx(1)


# Naive forecasts


def test_naive_forecasts_equal_plain_numpy(made, one):
    changed = {**one, "past": one["past"].copy(), "season": one["season"].copy(), "past_mask": one["past_mask"].copy()}
    changed["past"][0, -3:, 0], changed["past"][1, :, 1], changed["season"][2, 4, 2, 1] = np.nan, np.nan, np.nan
    changed["past_mask"][4, :10], changed["past"][4, :10, :4] = False, 1e9
    found = {k: {n: np.asarray(v) for n, v in f.items()} for k, f in jax.jit(made.naive)(changed).items()}
    assert set(found) == {"last", "day", "48h", "window", "train"}
    train = changed["train_quantiles"]
    for b in range(12):
        for r in range(4):
            series = changed["past"][b, :, r][changed["past_mask"][b]].astype(np.float64)
            known = series[np.isfinite(series)]
            last = known[-1] if len(known) else train[b, r, 3]
            np.testing.assert_allclose(found["last"]["median"][b, :, r], np.repeat(last, 8), rtol=1e-6)
            for i, name in enumerate(("day", "48h")):
                season = changed["season"][b, :, r, i]
                np.testing.assert_allclose(found[name]["median"][b, :, r], np.where(np.isfinite(season), season, last), rtol=1e-6)
            window = np.quantile(known, LEVELS) if len(known) else train[b, r]
            np.testing.assert_allclose(found["window"]["quantiles"][b, :, r], np.tile(window, (8, 1)), rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(found["train"]["quantiles"][b, 5, r], train[b, r])


def test_batches_without_references_have_no_naive_forecast(made):
    train = batch(splits().train)
    assert "season" not in train and made.naive(train) == {}


def test_seasons_are_named_by_their_length():
    data = task(data__season_steps="(96, 672, 4)").config.data
    assert tft_naive.season_names(data) == ("day", "week", "1h")


def test_the_oracle_beats_every_naive_forecast(made, compiled):
    rows = splits().test.index[:: len(splits().test) // 12][:12]
    known = batch(count=12)
    forecasts = {"oracle": made.oracle(rows)["oracle"], **jax.jit(made.naive)(known)}
    risk = {}
    for name, forecast in forecasts.items():
        spread = forecast["quantiles"] if "quantiles" in forecast else np.repeat(np.asarray(forecast["median"])[..., None], 7, -1)
        risk[name] = made.summarize(host(compiled({"quantiles": spread}, known)))["qrisk_50"]
    assert risk.pop("oracle") < 0.8 * min(risk.values())


def test_only_the_embedded_fleet_has_an_oracle():
    rows = splits().test.index[:1]
    assert task(data__path="metrics.csv").oracle(rows) is None and task(data__synthetic__kind="electricity").oracle(rows) is None
