"""Real files beside the checkout: recorded windows, and naive scores to the printed digit."""

import numpy as np
import pytest
from traffic_problem import config

from jaxtrain.data import traffic


def forecasts(batch, statistics):
    """last, tod and damped of a batch: {name: (B, P, N)}."""
    steps = batch["speed"].shape[1]
    profile = statistics["profile"][(batch["dow"] >= 5).astype(int), batch["slot"]]
    last, now, ahead = batch["speed"][:, -1:], profile[:, steps - 1 : steps], profile[:, steps:]
    return {"last": np.broadcast_to(last, ahead.shape), "tod": ahead, "damped": ahead + statistics["damping"][:, None] * (last - now)}


@pytest.fixture(scope="module")
def los(shared):
    return traffic.splits(config(path=str(shared / "data/traffic/los_speed.csv"), graph_path=str(shared / "data/traffic/los_adj.csv"),
                                 start="2012-03-01T00:00", unit="mph", in_steps=12, out_steps=12), 0.5)  # fmt: skip


def test_los_series_and_graph(los):
    assert [len(los.train), len(los.valid), len(los.test)] == [1388, 178, 381]
    arrays, statistics = los.train.arrays, los.statistics
    assert arrays["speed"].shape == (2016, 207) and arrays["observed"].all()
    assert round(float(arrays["speed"].mean()), 2) == 58.89 and round(float(arrays["speed"].std()), 2) == 12.53
    assert statistics["node_ids"][0] == "773869" and statistics["neighbors"].shape == (207, 26)
    assert statistics["neighbor_mask"].sum() - 207 == 2833 - 207  # 2,833 non-zeros, the diagonal among them
    assert arrays["dow"][0] == 3 and arrays["slot"][288] == 0


@pytest.mark.parametrize("name,mae,rmse,mape,mean", [
    ("last", [3.58, 4.38, 5.80], [6.47, 8.24, 10.90], [8.9, 11.3, 15.7], 4.43),
    ("tod", [4.46, 4.42, 4.36], [7.93, 7.88, 7.80], [13.6, 13.5, 13.4], 4.42),
    ("damped", [3.47, 3.99, 4.38], [5.87, 6.81, 7.50], [9.0, 11.0, 12.5], 3.86),
])  # fmt: skip
def test_los_naive_scores(los, name, mae, rmse, mape, mean):
    batch = los.test.gather(los.test.arrays, los.test.index)
    error = forecasts(batch, los.statistics)[name].astype(np.float64) - batch["target"]
    steps = [2, 5, 11]
    np.testing.assert_allclose(np.abs(error).mean(axis=(0, 2))[steps], mae, atol=0.0051)
    np.testing.assert_allclose(np.sqrt((error**2).mean(axis=(0, 2)))[steps], rmse, atol=0.0051)
    np.testing.assert_allclose(100 * np.abs(error / batch["target"]).mean(axis=(0, 2))[steps], mape, atol=0.051)
    np.testing.assert_allclose(np.abs(error).mean(), mean, atol=0.0051)


def hcmc(shared, **changes):
    settings = {"step_minutes": 30.0, "in_steps": 12, "out_steps": 8, "gap_steps": 0, "max_fill_minutes": 120.0, **changes}
    return config(path=str(shared / "data/traffic/hcmc_speed.parquet"), **settings)


@pytest.mark.parametrize("aggregate,last,tod,damped,mean", [
    ("mean", [1.22, 1.33, 2.25, 3.48], [3.02, 2.53, 1.68, 1.73], [1.15, 1.38, 1.63, 1.71], [3.08, 2.40, 4.11, 3.76]),
    ("segment", [1.54, 1.63, 2.40, 3.61], [3.03, 2.62, 1.86, 1.92], [1.34, 1.35, 1.83, 1.88], [3.16, 2.56, 4.24, 3.91]),
])  # fmt: skip
def test_hcmc_naive_scores(shared, aggregate, last, tod, damped, mean):
    made = traffic.splits(hcmc(shared, aggregate=aggregate), 0.5)
    arrays, statistics = made.train.arrays, made.statistics
    observed, speed = arrays["observed"], arrays["speed"].astype(np.float64)
    seen = observed.any(axis=1)
    assert len(seen) == 160 and [seen[a:b].sum() for a, b in ((0, 112), (112, 128), (128, 160))] == [46, 8, 11]
    profile = statistics["profile"][(arrays["dow"] >= 5).astype(int), arrays["slot"]]
    for k, h in enumerate((1, 2, 4, 8)):
        origins = np.array([r for r in range(128 - h, 160 - h) if seen[r] and seen[r + h]])
        assert len(origins) == (3, 2, 7, 8)[k]
        both = observed[origins] & observed[origins + h]
        ahead = profile[origins + h]
        points = {"last": speed[origins], "tod": ahead, "mean": np.broadcast_to(statistics["node_mean"], ahead.shape),
                  "damped": ahead + statistics["damping"][h - 1] * (speed[origins] - profile[origins])}  # fmt: skip
        expected = {"last": last, "tod": tod, "damped": damped, "mean": mean}
        for name, point in points.items():
            np.testing.assert_allclose(np.abs(point - speed[origins + h])[both].mean(), expected[name][k], atol=0.0051, err_msg=name)


def test_hcmc_damping_leaves_the_day_out(shared):
    rho = traffic.splits(hcmc(shared), 0.5).statistics["damping"]
    assert round(float(rho[0]), 2) == 0.69


def test_hcmc_graphs(shared):
    junctions = traffic.splits(hcmc(shared), 0.5)
    assert len(junctions.statistics["node_ids"]) == 62 and (~junctions.statistics["trained"]).sum() == 12
    assert junctions.statistics["neighbor_mask"].sum() == 62 + 2 * 144 and junctions.statistics["positions"].shape == (62, 2)
    segments = traffic.splits(hcmc(shared, aggregate="segment"), 0.5).statistics
    relation = segments["relation"]
    assert len(relation) == 144 and (relation == 1).sum() == 254 == (relation == 2).sum() and (relation == 3).sum() == 0
    assert (relation == 1).sum(axis=1).max() == 9 and (relation == 2).sum(axis=1).max() == 8
    assert (segments["neighbor_mask"].sum(axis=1) == 1).sum() == 12


def test_recorded_windows_exactly(shared):
    recorded = np.load(shared / "golden/stmgt_baseline_1month_io.npz")
    made = traffic.splits(hcmc(shared, grid="runs", aggregate="last", fill="zero", directed=True, split="windows", out_steps=12), 0.5)
    rows = np.arange(8, dtype=np.int32)[:, None]
    batch = made.train.gather(made.train.arrays, rows)
    np.testing.assert_array_equal(made.statistics["node_ids"], recorded["node_list"])
    np.testing.assert_array_equal(batch["speed"], recorded["x_traffic"][..., 0].transpose(0, 2, 1))
    np.testing.assert_array_equal(batch["target"], recorded["y_target"].transpose(0, 2, 1))
    np.testing.assert_array_equal(batch["weather"], recorded["x_weather"])
    np.testing.assert_array_equal(batch["dow"][:, :12], recorded["dow"])
    np.testing.assert_array_equal(batch["slot"][:, :12] * 30 // 60, recorded["hour"])
    lists, edges = made.statistics["neighbors"], recorded["edge_index"]
    assert lists.shape == (62, 10) and made.statistics["neighbor_mask"].sum() == 206
    for node in range(62):
        own = lists[node][made.statistics["neighbor_mask"][node]]
        assert own[0] == node and sorted(own[1:]) == sorted(edges[0][edges[1] == node])
