"""Scores of headway forecasts: masked sums against plain NumPy, seconds by minute, direction and place, and the reference forecasts."""

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest
from convlstm_case import CAP, COUNT, D, F, S, Told, batch, counted, host, numbers, sections, splits, task

from jaxtrain.data.dataset import padded_rows
from jaxtrain.engine.scoring import nested_total, skill
from jaxtrain.tasks import convlstm_naive, convlstm_scores
from jaxtrain.tasks.convlstm import make_task


@functools.cache
def scored(head: str = "point") -> tuple[dict, dict, dict]:
    """(batch, what the network said, sums)."""
    made = task(**{"point": {}, "gaussian": {"model__head": "gaussian", "loss__kind": "nll"},
                   "quantile": {"model__head": "quantile", "loss__kind": "pinball"}}[head])  # fmt: skip
    one, said = batch(), numbers()
    told = Told(y=said["y"], **({"sigma": said["sigma"]} if head == "gaussian" else {}),
                **({"quantiles": said["quantiles"]} if head == "quantile" else {}))  # fmt: skip
    return one, said, host(jax.jit(lambda b: made.score(told, b))(one))


@functools.cache
def _call() -> Any:
    return jax.jit(task().score_forecast)


def sums_of(forecast: dict, one: dict) -> dict[str, np.ndarray]:
    return host(_call()({name: np.asarray(v, np.float32) for name, v in forecast.items()}, one))


def value(said: dict) -> np.ndarray:
    return CAP * np.clip(said["y"], 0, 1)


def test_sums_count_every_known_cell_of_real_examples_once():
    one, said, sums = scored()
    mask = counted(one)
    error = np.where(mask, value(said) - one["target"], 0)
    held = np.asarray(convlstm_naive.hold(task().config.data, splits().statistics, one))
    for group, axes in (("minute", (0, 2)), ("station", (0, 1))):
        for kind, terms in (("n", mask), ("abs", abs(error)), ("sq", error**2), ("err", error)):
            np.testing.assert_allclose(sums[f"{group}/{kind}"], terms.astype(np.float64).sum(axes), rtol=1e-4, atol=1e-3)
    for group, chosen in (("changed", abs(one["target"] - held) > 1e-3), ("large", one["target"] > 20)):
        np.testing.assert_allclose(sums[f"{group}/sq"], (error**2)[mask & chosen].sum(), rtol=1e-4)
    assert 0 < sums["changed/n"] < mask.sum()


def test_scores_are_one_division_in_seconds():
    one, said, sums = scored()
    found, mask = task().summarize(sums), counted(one)
    error, y = 60 * (value(said) - one["target"]), 60 * one["target"]

    def rmse(chosen):
        return np.sqrt((error[chosen] ** 2).mean())

    everything = np.ones(mask.shape, bool)
    assert found["rmse_s"] == pytest.approx(rmse(mask), rel=1e-5) and found["mae_s"] == pytest.approx(abs(error[mask]).mean(), rel=1e-5)
    assert found["bias_s"] == pytest.approx(error[mask].mean(), rel=1e-3) and found["cells"] == mask.sum()
    assert found["r2"] == pytest.approx(1 - (error[mask] ** 2).sum() / ((y[mask] - y[mask].mean()) ** 2).sum(), rel=1e-4)
    for minute in (1, 5):
        row = everything & (np.arange(F)[:, None, None] == minute - 1)
        assert found[f"rmse_s/t+{minute}"] == pytest.approx(rmse(mask & row), rel=1e-5)
    for d, name in enumerate(("outbound", "inbound")):
        assert found[f"rmse_s/{name}"] == pytest.approx(rmse(mask & (everything & (np.arange(D) == d))), rel=1e-5)
    by_place = {(s, d): rmse(mask & everything & (np.arange(S)[:, None] == s) & (np.arange(D) == d)) for s in range(S) for d in range(D)}
    worst = sorted(by_place, key=lambda place: -by_place[place])[:3]
    names = [f"rmse_s/worst/{splits().statistics['stations'][d, s]}, {('outbound', 'inbound')[d]}" for s, d in worst]
    assert [name for name in found if "/worst/" in name] == names
    assert found[names[0]] == found["rmse_s/worst_station"] == pytest.approx(by_place[worst[0]], rel=1e-5)
    assert found["loss"] == pytest.approx(((value(said) - one["target"])[mask] ** 2).mean() / CAP**2, rel=1e-5)
    assert (found["passed/rmse_90_s"], found["passed/loss_0.01"]) == (0, 0)  # such numbers are far off


def test_lines_are_passed_below_them():
    one = batch()
    near = task().summarize(sums_of({"value": one["target"] + 1.4}, one))
    assert near["rmse_s"] == pytest.approx(84, rel=1e-4) and (near["passed/rmse_90_s"], near["passed/loss_0.01"]) == (1, 1)
    between = task().summarize(sums_of({"value": one["target"] + 2.5}, one))
    assert (between["passed/rmse_90_s"], between["passed/loss_0.01"]) == (0, 1)


def test_a_mean_of_draws_is_freed_of_its_sampling_error():
    one, said, sums = scored()
    drawn = sums_of({"value": value(said), "draws": 48}, one)
    np.testing.assert_allclose(drawn["minute/sq"], sums["minute/sq"] / (1 + 1 / 48), rtol=1e-5)
    np.testing.assert_allclose(drawn["minute/abs"], sums["minute/abs"], rtol=1e-6)
    # So scored, the mean of few draws is as good as the mean itself, on average.
    rng = np.random.default_rng(0)
    truth = (rng.normal(size=(COUNT, F, S, D)) + 10).astype(np.float32)
    one = {**one, "target": truth, "target_known": np.ones(truth.shape, bool)}
    few = 10 + rng.normal(size=(3, COUNT, F, S, D)).mean(0)
    pairs = (few, 3), (few * 0 + 10, 1e9), (few, 1e9)
    drawn, exact, plain = (sums_of({"value": forecast, "draws": draws}, one)["minute/sq"].sum() for forecast, draws in pairs)
    assert drawn == pytest.approx(exact, rel=0.1) and plain > 1.2 * exact


def test_gaussian_scores():
    one, said, sums = scored("gaussian")
    found = task(model__head="gaussian", loss__kind="nll").summarize(sums)
    mask, sigma, mean = counted(one), CAP * said["sigma"], value(said)
    y = one["target"]
    low, high = (np.clip(CAP * said["y"] + z * sigma, 0, CAP) for z in (-1.2815516, 1.2815516))
    assert found["coverage_80"] == pytest.approx(((low <= y) & (y <= high))[mask].mean(), abs=1e-6)
    assert found["width_80_s"] == pytest.approx(60 * (high - low)[mask].mean(), rel=1e-4)
    grid = np.linspace(-60, 90, 3001)  # CRPS by its definition: the squared distance of the two distribution functions
    cdf = np.array([0.5 * (1 + np.vectorize(math.erf)((grid - m) / s / np.sqrt(2))) for m, s in
                    zip(mean[mask][:40], sigma[mask][:40], strict=True)])  # fmt: skip
    expected = np.sum((cdf - (grid >= y[mask][:40, None])) ** 2, axis=1) * 0.05
    closed = jax.jit(convlstm_scores.gaussian_crps)(mean[mask][:40], sigma[mask][:40], y[mask][:40])
    np.testing.assert_allclose(closed, expected, atol=0.03)
    assert found["crps_s"] > 0


def test_quantile_scores():
    one, said, sums = scored("quantile")
    found = task(model__head="quantile", loss__kind="pinball").summarize(sums)
    mask, y = counted(one), one["target"]
    quantiles = CAP * np.clip(said["quantiles"], 0, 1)
    inside = (quantiles[..., 0] <= y) & (y <= quantiles[..., 2])
    assert found["coverage_80"] == pytest.approx(inside[mask].mean(), abs=1e-6)
    assert found["coverage_80/t+5"] == pytest.approx(inside[:, 4][mask[:, 4]].mean(), abs=1e-6)
    losses = [np.where(y > q, level * (y - q), (1 - level) * (q - y))[mask].mean()
              for level, q in zip((0.1, 0.5, 0.9), np.moveaxis(quantiles, -1, 0), strict=True)]  # fmt: skip
    for level, loss in zip((0.1, 0.5, 0.9), losses, strict=True):
        assert found[f"pinball_s/{level:g}"] == pytest.approx(60 * loss, rel=1e-4)
    assert found["crps_s"] == pytest.approx(60 * 2 * np.mean(losses), rel=1e-4)


def test_blocks_of_a_rollout_are_scored_by_themselves():
    made = task(score__rollout_minutes="(5, 15)", loss__auxiliary="0.3")
    error = np.array([1.0] * 5 + [50.0] * 5 + [3.0] * 5)[:, None] * np.ones(D)
    sums = {"minute/n": np.full((15, D), 7.0), "minute/sq": 7 * error**2, "station/n": np.ones((S, D)), "station/sq": np.ones((S, D))}
    found = made.summarize({**sums, "changed/n": np.zeros(()), "large/n": np.zeros(())})
    assert found["rmse_s/block_5"] == pytest.approx(60) and found["rmse_s/block_15"] == pytest.approx(180)
    assert "rmse_s/block_10" not in found and found["rmse_s/t+1"] == pytest.approx(60)
    assert not any("block" in name for name in made.summarize(scored()[2]))


# Reference forecasts


def test_names_follow_the_target():
    assert set(jax.eval_shape(task().naive, batch())) == {"mean", "clock", "hold", "advected", "advected_planned"}
    made = task(data__target="age")
    found = jax.eval_shape(made.naive, batch(made.splits().test))
    assert set(found) == {"mean", "clock", "hold", "dead_reckoning", "dead_reckoning_planned"}
    assert {f["value"].shape for f in found.values()} == {(COUNT, F, S, D)}


def test_clock_mean_and_hold_by_hand():
    one, statistics = batch(), splits().statistics
    one["when"] = np.array([[0, 57], [1, 59], [2, 60 * 23 + 58], [0, 600], [1, 0], [0, 179]], np.int32)
    one["headway_known"] = one["headway_known"].copy()
    one["headway_known"][:2, -3:] = False
    one["headway_known"][2, :, 4, 1] = False
    found = {name: np.asarray(f["value"]) for name, f in jax.jit(task().naive)(one).items()}
    for b, (kind, minute) in enumerate(one["when"]):
        for f in range(F):
            np.testing.assert_allclose(found["clock"][b, f], statistics["clock_mean"][kind, (minute + f) // 60 % 24], rtol=1e-6)
    assert (found["mean"] == statistics["mean"]).all()
    for b, s, d in ((0, 2, 1), (3, 0, 0), (2, 4, 1)):
        rows = np.flatnonzero(one["headway_known"][b, :, s, d])
        expected = one["headway"][b, rows[-1], s, d] if len(rows) else statistics["place_mean"][s, d]
        np.testing.assert_allclose(found["hold"][b, :, s, d], expected, rtol=1e-6)


def test_skill_is_the_way_from_the_best_naive_to_the_oracle():
    sums = {"model": {"value": 80.0}, "hold": {"value": 200.0}, "advected": {"value": 100.0}, "oracle": {"value": 60.0}}

    class Fixed:
        skill_score = task().skill_score

        def summarize(self, s):
            return {"rmse_s": s["value"], "mae_s": -1.0}

    found = skill(Fixed(), sums)  # type: ignore[arg-type]
    assert found is not None and found["skill"] == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "printed"), [
    ("dart", {"mean": (325.7, 265.0, -0.09, 324, 325, 326, 326), "clock": (240.5, 178.4, 0.41, 240, 240, 240, 241),
              "hold": (285.5, 165.9, 0.16, 114, 251, 323, 347), "advected": (168.9, 84.2, 0.71, 115, 141, 181, 213),
              "advected_planned": (162.3, 84.8, 0.73, 121, 142, 172, 194)}),
    ("dart+age", {"mean": (361.7, 275.6, -0.01), "clock": (292.8, 228.9, 0.34), "hold": (386.2, 301.2, -0.15),
                  "dead_reckoning": (319.4, 149.4, 0.21), "dead_reckoning_planned": (269.5, 121.1, 0.44)}),
])  # fmt: skip
def test_dublin_reference_lines(shared, preset, printed):
    folder = shared / "data" / "headway"
    files = {"data__path": str(folder / "dart_arrivals.parquet"), "data__snapshots": str(folder / "dart_snapshots.parquet")}
    made = make_task(sections(preset, **files))
    found = made.splits()
    made = made.with_statistics(found.statistics)
    call = jax.jit(lambda b: {name: made.score_forecast(f, b) for name, f in made.naive(b).items()})
    test = found.test
    sums = nested_total(call({**test.gather(test.arrays, rows), "mask": mask}) for rows, mask in padded_rows(test.index, 256))
    for name, row in printed.items():
        scores = made.summarize(sums[name])
        got = [scores[key] for key in ("rmse_s", "mae_s", "r2", "rmse_s/t+1", "rmse_s/t+5", "rmse_s/t+10", "rmse_s/t+15")][: len(row)]
        digits = [0.06, 0.06, 0.006, 0.6, 0.6, 0.6, 0.6][: len(row)]
        assert all(abs(a - b) < d for a, b, d in zip(got, row, digits, strict=True)), f"{name}: {got}"


def test_batches_add_up():
    one, said, sums = scored()
    masks = np.arange(COUNT) < 2, (np.arange(COUNT) >= 2) & (one["mask"] > 0)
    cut = [sums_of({"value": value(said)}, {**one, "mask": mask.astype(np.float32)}) for mask in masks]
    for name, total in sums.items():
        np.testing.assert_allclose(cut[0][name] + cut[1][name], total, rtol=1e-4, atol=1e-3)
