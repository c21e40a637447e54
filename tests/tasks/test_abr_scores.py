"""Scores of evoked-response forecasts against brute force, and the reference forecasts."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from abr_case import COUNT, Told, batch, host, numbers, splits, task
from scipy import stats

from jaxtrain.data import evoked_naive
from jaxtrain.data.evoked_serving import series_threshold
from jaxtrain.tasks import abr_scores
from jaxtrain.tasks.abr_scores import KINDS, PATIENT_KINDS, ROC_BINS, SERIES_DB

NAMES = ("A", "B", "C", "D", "E")
LAYOUT = abr_scores.Layout(NAMES, bootstraps=50)


@functools.cache
def call() -> Any:
    return jax.jit(lambda forecast, b: abr_scores.forecast_sums(splits().statistics, forecast, b))


def forecast(seed: int = 0, count: int = COUNT) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 5))
    found = {
        "signal": rng.normal(0, 0.2, (count, 200)), "existence": rng.normal(0, 2, count), "latency_ms": rng.uniform(5, 9, count),
        "amplitude_uv": rng.normal(0.2, 0.2, count), "threshold_db": rng.uniform(0, 60, count), "latency_sd": rng.uniform(0.1, 2, count),
        "amplitude_sd": rng.uniform(0.02, 0.3, count), "threshold_sd": rng.uniform(2, 20, count),
        "class_logp": logits - np.log(np.exp(logits).sum(1, keepdims=True)),
    }  # fmt: skip
    return {name: value.astype(np.float32) for name, value in found.items()}


@functools.cache
def scored() -> tuple[dict, dict, dict, dict]:
    """(batch, forecast, sums, scores)."""
    one, told = batch(), forecast()
    sums = host(call()(told, one))
    return one, told, sums, abr_scores.summarize(LAYOUT, sums)


def centred(wave: np.ndarray) -> np.ndarray:
    return wave.astype(np.float64) - wave.mean(1, keepdims=True, dtype=np.float64)


def test_waveform_scores_leave_the_window_mean_out():
    one, told, _, found = scored()
    real = one["mask"] > 0
    y, t, x = (centred(wave)[real] for wave in (told["signal"], one["target"], one["signal"]))
    assert found["rmse_uv"] == pytest.approx(np.sqrt(((y - t) ** 2).mean()), rel=1e-4)
    assert found["gain_db"] == pytest.approx(10 * np.log10(((x - t) ** 2).mean() / ((y - t) ** 2).mean()), abs=1e-3)
    assert found["r"] == pytest.approx(np.mean([stats.pearsonr(a, b)[0] for a, b in zip(y, t, strict=True)]), abs=1e-4)
    assert "gain_corrected_db" not in found and found["records"] == COUNT - 1


def test_halves_are_also_scored_without_the_noise_of_the_target():
    one, told, _, _ = scored()
    found = abr_scores.summarize(LAYOUT, host(call()(told, {**one, "paired": np.ones(COUNT, bool)})))
    real = one["mask"] > 0
    y, t, x = (centred(wave)[real] for wave in (told["signal"], one["target"], one["signal"]))
    noise = ((x - t) ** 2).mean() / 2
    assert found["gain_corrected_db"] == pytest.approx(10 * np.log10(noise / (((y - t) ** 2).mean() - noise)), abs=1e-3)


@pytest.mark.parametrize(("name", "unit", "ok", "within"), [
    ("latency", "ms", "peak_ok", 0.5), ("amplitude", "uv", "peak_ok", 0.1), ("threshold", "db", "threshold_ok", 15),
])  # fmt: skip
def test_measures_are_masked_means(name, unit, ok, within):
    one, told, _, found = scored()
    chosen = one[ok] & (one["mask"] > 0)
    y, f, sd = (np.asarray(v, np.float64)[chosen] for v in (one[f"{name}_{unit}"], told[f"{name}_{unit}"], told[f"{name}_sd"]))
    e = f - y
    assert found[f"{name}_mae_{unit}"] == pytest.approx(abs(e).mean(), rel=1e-5)
    assert found[f"{name}_rmse_{unit}"] == pytest.approx(np.sqrt((e**2).mean()), rel=1e-5)
    assert found[f"{name}_bias_{unit}"] == pytest.approx(e.mean(), rel=1e-4, abs=1e-6)
    assert found[f"{name}_r2"] == pytest.approx(1 - (e**2).sum() / ((y - y.mean()) ** 2).sum(), rel=1e-3)
    assert found[f"{name}_within"] == pytest.approx((abs(e) <= within).mean())
    for level in (80, 95):
        inside = abs(e) <= stats.norm.ppf(0.5 + level / 200) * sd
        assert found[f"coverage_{level}/{name}"] == pytest.approx(inside.mean())
    crps = []
    for a, s in zip(e, sd, strict=True):
        grid = np.linspace(-1, 1, 20_001) * (abs(a) + 8 * s)
        crps.append(((stats.norm.cdf(grid, a, s) - (grid >= 0)) ** 2).sum() * (grid[1] - grid[0]))
    assert found[f"crps/{name}"] == pytest.approx(np.mean(crps), rel=2e-3)


def test_existence_scores():
    one, told, _, found = scored()
    chosen = one["present_ok"] & (one["mask"] > 0)
    event, z = one["present"][chosen], told["existence"][chosen].astype(np.float64)
    assert found["brier"] == pytest.approx(((1 / (1 + np.exp(-z)) - event) ** 2).mean(), rel=1e-5)
    tp, fp, fn = ((z >= 0) & event).sum(), ((z >= 0) & ~event).sum(), ((z < 0) & event).sum()
    assert found["peak_f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert found["missed_peaks"] == pytest.approx(fn / event.sum()) and found["false_peaks"] == pytest.approx(fp / (~event).sum())


@pytest.mark.parametrize("middle", [0.0, -0.95, 0.95])
def test_auc_tells_logits_apart_that_lie_close_together(middle):
    """As of a network that has hardly learned: around 0, or around the share of the records with a wave V."""
    rng = np.random.default_rng(3)
    event = np.arange(400) % 2 == 0
    z = (middle + 0.02 * event + rng.normal(0, 0.03, 400)).astype(np.float32)
    sums = [np.asarray(abr_scores._histogram(z, (event == yes).astype(np.float32))) for yes in (False, True)]
    exact = (z[event][:, None] > z[~event]).mean()
    assert abs(abr_scores.auc(np.stack(sums)) - exact) < 2e-3


def test_auc_of_histograms_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    z, event = rng.normal(0, 2, 3000), rng.random(3000) < 0.3
    z[event] += 1.5
    edges = np.linspace(-12, 12, ROC_BINS + 1)
    found = abr_scores.auc(np.stack([np.histogram(z[event == yes], edges)[0] for yes in (False, True)]))
    pairs = z[event][:, None] - z[~event][None]
    assert found == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2, abs=2e-3)
    assert abr_scores.auc(np.array([[0, 0], [1, 2]])) is None


def test_class_scores_of_a_table():
    rng = np.random.default_rng(1)
    label, told = rng.integers(0, 4, 400), rng.integers(0, 5, 400)  # the last class never occurs
    table = np.zeros((5, 5))
    np.add.at(table, (label, told), 1)
    found = abr_scores.class_scores(NAMES, table)
    recall = [(told[label == c] == c).mean() for c in range(4)]
    f1 = [2 * ((label == c) & (told == c)).sum() / ((label == c).sum() + (told == c).sum()) for c in range(4)]
    assert found["accuracy"] == pytest.approx((label == told).mean()) and found["balanced_accuracy"] == pytest.approx(np.mean(recall))
    assert found["f1_macro"] == pytest.approx(np.mean(f1)) and "f1/E" not in found and found["f1/C"] == pytest.approx(f1[2])
    assert found["f1_weighted"] == pytest.approx(np.average(f1, weights=np.bincount(label)))


def test_classes_are_counted_where_they_are_known():
    one, told, sums, found = scored()
    chosen = (one["label"] >= 0) & (one["mask"] > 0)
    right = told["class_logp"].argmax(1)[chosen] == one["label"][chosen]
    assert found["accuracy"] == pytest.approx(right.mean()) and sums["all"][KINDS.index("class/n")] == chosen.sum()
    nll = -told["class_logp"][chosen, one["label"][chosen]]
    assert found["class_nll"] == pytest.approx(nll.mean(), rel=1e-5)


def test_groups_share_out_the_records():
    one, told, sums, found = scored()
    counted, n = one["mask"] > 0, KINDS.index("signal/n")
    level, ok = one["statics"][:, 1], one["statics_ok"]
    for i, low in enumerate(abr_scores.LEVELS):
        assert sums["level"][i, n] == (counted & ok[:, 1] & (level >= low) & (level < low + 10)).sum()
    fmp = one["statics"][:, 3]
    edges = [0, 0.1, 0.5, 1, 2, 5, np.inf]
    wanted = [(counted & ok[:, 3] & (fmp >= a) & (fmp < b)).sum() for a, b in zip(edges, edges[1:], strict=False)]
    assert sums["fmp"][:, n].tolist() == [*wanted, (counted & ~ok[:, 3]).sum()]
    assert sums["class"][:, n].tolist() == [(counted & (one["label"] == c)).sum() for c in range(5)]
    here = counted & (one["label"] == 2) & one["peak_ok"]
    if here.any():
        assert found["latency_mae_ms/class/C"] == pytest.approx(abs(told["latency_ms"] - one["latency_ms"])[here].mean(), rel=1e-5)


def test_order_cuts_and_padding_change_nothing():
    one, told, sums, _ = scored()
    order = np.array([7, 2, 9, 0, 5, 11, 3, 1, 8, 10, 4, 6])
    parts = []
    for rows in (order[:6], order[6:]):
        parts.append(host(call()({k: v[rows] for k, v in told.items()}, {k: v[rows] for k, v in one.items()})))
    for name, value in sums.items():
        np.testing.assert_allclose(parts[0][name] + parts[1][name], value, rtol=1e-5, atol=1e-5)
    spoilt = {name: np.where(np.isin(np.arange(COUNT), COUNT - 1).reshape(-1, *[1] * (v.ndim - 1)), np.nan, v) for name, v in told.items()}
    for name, value in host(call()(spoilt, one)).items():
        np.testing.assert_allclose(value, sums[name], rtol=1e-6, atol=1e-7)


def test_patients_add_up_and_their_class_is_the_likeliest():
    one, told, sums, found = scored()
    np.testing.assert_allclose(sums["patient"].sum(0)[: len(KINDS)], sums["all"], rtol=1e-5, atol=1e-5)
    known = (one["label"] >= 0) & (one["mask"] > 0)
    right = []
    for code in np.unique(one["patient"][known]):
        mine = known & (one["patient"] == code)
        right.append(told["class_logp"][mine].sum(0).argmax() == np.bincount(one["label"][mine]).argmax())
    assert found["patient_accuracy"] == pytest.approx(np.mean(right)) and found["patients"] == len(right)


def test_intervals_come_from_draws_of_patients():
    rng = np.random.default_rng(0)
    rows = np.zeros((60, len(PATIENT_KINDS)))
    error = rng.exponential(1.0, 60)
    rows[:, KINDS.index("latency/n")], rows[:, KINDS.index("latency/abs")] = 10, 10 * error
    found = abr_scores.intervals(abr_scores.Layout(NAMES, 400), rows)
    half = 1.96 * error.std() / np.sqrt(60)
    assert found["latency_mae_ms/low"] == pytest.approx(error.mean() - half, abs=0.3 * half)
    assert found["latency_mae_ms/high"] == pytest.approx(error.mean() + half, abs=0.3 * half)
    assert abr_scores.intervals(abr_scores.Layout(NAMES, 0), rows) == {}


def test_series_of_an_ear_give_its_threshold():
    levels, p = np.array([70.0, 50, 40, 30, 20, 20]), np.array([0.99, 0.97, 0.9, 0.4, 0.1, 0.2])
    ears = np.zeros((2, len(SERIES_DB), 2))
    for level, one in zip(levels, p, strict=True):
        ears[0, SERIES_DB.index(level)] += 1, one
    ears[1, SERIES_DB.index(40)] = 5, 2  # one level is no series
    found = abr_scores.series_errors(ears, np.array([[6 * 25.0, 6], [40, 1]]))
    mean = np.where(levels == 20, 0.15, p)
    assert found.tolist() == [series_threshold(levels, mean) - 25]


def test_the_sums_of_an_ear_are_those_of_its_records():
    one, told, sums, _ = scored()
    codes = np.asarray(splits().test.arrays["scored_ears"])[1]
    mine = 3 * one["patient"] + one["ear"] + 1
    for ear in np.unique(mine[:-1]):
        rows = (mine == ear) & (one["mask"] > 0)
        level = np.round((one["statics"][rows, 1] + 20) / 5).astype(int)
        wanted = np.zeros((len(SERIES_DB), 2))
        np.add.at(wanted, level, np.stack([np.ones(rows.sum()), 1 / (1 + np.exp(-told["existence"][rows]))], 1))
        np.testing.assert_allclose(sums["ear"][np.flatnonzero(codes == ear)[0]], wanted, atol=1e-5)


# Reference forecasts ------------------------------------------------------------------------------------


@functools.cache
def naive() -> tuple[dict, dict]:
    one = batch()
    one["statics_ok"] = one["statics_ok"].copy()
    one["statics_ok"][2, 1] = one["statics_ok"][5, 3] = False  # level and FMP missing
    return one, jax.device_get(jax.jit(task().naive)(one))


def test_reference_forecasts_are_those_of_the_training_statistics():
    one, found = naive()
    known = splits().statistics
    filtered = evoked_naive.wiener(known, one["signal"], one["statics"], one["statics_ok"])
    np.testing.assert_allclose(found["wiener"]["signal"], filtered, atol=2e-5)
    np.testing.assert_allclose(found["wiener"]["latency_ms"], evoked_naive.peak_ms(np.asarray(found["wiener"]["signal"])), atol=1e-5)
    cell = evoked_naive.cells(one["statics"], one["statics_ok"])
    for name in ("latency_ms", "amplitude_uv", "threshold_db"):
        np.testing.assert_allclose(found["table"][name], known[f"table_{name}"][cell], rtol=1e-6)
    share = np.clip(known["table_present"][cell], 1e-3, 0.999)
    np.testing.assert_allclose(1 / (1 + np.exp(-found["table"]["existence"])), share, rtol=1e-4)
    np.testing.assert_array_equal(found["identity"]["signal"], one["signal"])
    np.testing.assert_allclose(found["identity"]["latency_ms"], evoked_naive.peak_ms(one["signal"]), atol=1e-5)
    assert (found["identity"]["existence"] > 0).tolist() == ((one["statics"][:, 3] > 1) & one["statics_ok"][:, 3]).tolist()
    np.testing.assert_allclose(found["majority"]["latency_ms"], known["latency_mean"])
    assert np.all(found["majority"]["class_logp"].argmax(1) == 0) and np.all(found["majority"]["signal"] == 0)
    np.testing.assert_allclose(found["mean"]["signal"], known["level_wave"][cell[0]], rtol=1e-6)


def test_a_model_that_is_told_is_scored_as_a_forecast():
    made, one, said = task(), batch(), numbers()
    sums = host(jax.jit(lambda b: made.score(Told(**said), b))(one))
    m, s = one["signal"].mean(1), np.maximum(one["signal"].std(1), 0.01)
    known = made.statistics
    by_hand = {
        "signal": m[:, None] + s[:, None] * said["signal"], "existence": said["existence"], "latency_ms": said["latency_ms"],
        "amplitude_uv": m + s * said["amplitude_z"], "threshold_db": known["threshold_mean"] + known["threshold_std"] * said["threshold_z"],
        "latency_sd": np.exp(said["latency_ln_sd"]), "amplitude_sd": s * np.exp(said["amplitude_ln_sd"]),
        "threshold_sd": known["threshold_std"] * np.exp(said["threshold_ln_sd"]),
        "class_logp": said["class_logits"] - np.log(np.exp(said["class_logits"]).sum(1, keepdims=True)),
    }  # fmt: skip
    for name, value in host(call()({k: np.asarray(v, np.float32) for k, v in by_hand.items()}, one)).items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_corrupted_records_are_scored_against_themselves():
    made, one = task(data__target="corrupt"), batch()
    one["target"] = one["signal"]
    sums = jax.jit(lambda b: {name: made.score_forecast(f, b) for name, f in made.naive(b).items()})(one)
    found = {name: made.summarize(host(value)) for name, value in sums.items()}
    assert found["identity"]["gain_db"] == pytest.approx(0, abs=1e-3) and found["identity"]["rmse_uv"] > 0.02
    exact = made.summarize(host(jax.jit(made.score_forecast)({"signal": one["signal"]}, one)))
    assert exact["rmse_uv"] == pytest.approx(0, abs=1e-6) and exact["r"] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_oracle_knows_more_than_any_other():
    made = task()
    rows = splits().test.index
    one = {**splits().test.gather(splits().test.arrays, rows), "mask": np.ones(len(rows), np.float32)}
    oracle = made.oracle(rows)
    assert oracle is not None
    sums = jax.jit(lambda b: {name: made.score_forecast(f, b) for name, f in {**oracle, **made.naive(b)}.items()})(one)
    found = {name: made.summarize(host(value)) for name, value in sums.items()}
    for score, better in (("latency_mae_ms", -1), ("amplitude_mae_uv", -1), ("brier", -1), ("auc", 1)):
        best = max(better * scores[score] for name, scores in found.items() if name != "oracle")
        assert better * found["oracle"][score] > best, score
    assert found["oracle"]["latency_mae_ms"] < 0.12 and found["oracle"]["latency_within"] > 0.97
    assert found["wiener"]["gain_db"] > 8 and found["identity"]["gain_db"] == pytest.approx(0, abs=1e-3)
