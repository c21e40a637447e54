"""The embedded road network and the forecaster that knows it."""

import numpy as np
import pytest
from traffic_problem import config

from jaxtrain.data import traffic
from jaxtrain.data.traffic_synthetic import CORRIDOR, draw_edges, world


@pytest.fixture(scope="module")
def drawn():
    return world(traffic.SyntheticConfig(64, 7, 0), 5.0)


def test_network_has_corridors_and_links():
    edges = draw_edges(64, np.random.default_rng(0))
    inside = [(a, b) for a, b in edges if a // CORRIDOR == b // CORRIDOR]
    between = [(a, b) for a, b in edges if a // CORRIDOR != b // CORRIDOR]
    assert len(inside) == 56 and all(b == a + 1 for a, b in inside)
    assert len(between) == 24 and [sum(a // CORRIDOR == c for a, _ in between) for c in range(8)] == [3] * 8


def test_history_obeys_the_equations(drawn):
    network = drawn.network
    assert drawn.speed.shape == (2016, 64) and np.datetime64(int(drawn.time[0]), "s") == np.datetime64("2026-01-01T00:00:00")
    np.testing.assert_allclose(network.coupling.sum(1)[network.coupling.any(1)], 0.43)
    for i, j in np.argwhere(network.coupling):
        assert [i, j] in network.edges.tolist()  # j is downstream of i: a jam moves against the traffic
    noise = drawn.jam[2:] - (0.55 * drawn.jam[1:-1] + drawn.jam[:-2] @ network.coupling.T + 0.45 * drawn.severity[2:])
    assert abs(noise.std() - 0.02) < 5e-4 and abs(noise.mean()) < 5e-4
    running = drawn.severity[drawn.severity > 0]
    assert 0.55 * 0.6 <= running.min() and running.max() <= 0.55 * 1.2
    assert np.nanmin(drawn.speed) >= 1 and 0.003 < np.isnan(drawn.speed).mean() < 0.02


def test_incidents_and_rain_last_as_long_as_they_should(drawn):
    longer = world(traffic.SyntheticConfig(64, 28, 1), 5.0)
    on = longer.severity > 0
    mean_minutes = 5 * on.sum() / np.count_nonzero(on[1:] & ~on[:-1])
    assert 35 < mean_minutes < 55  # ends with chance Dt/45 per step
    wet = longer.rain > 0
    assert 0.03 < wet.mean() < 0.13  # 90 / (1200 + 90)


def test_same_seed_same_history(drawn):
    world.cache_clear()
    again = world(traffic.SyntheticConfig(64, 7, 0), 5.0)
    np.testing.assert_array_equal(again.speed, drawn.speed)
    assert not np.array_equal(world(traffic.SyntheticConfig(64, 7, 1), 5.0).jam, drawn.jam)


def test_oracle_depends_on_the_row_only():
    settings = config()
    rows = np.array([[200], [500], [700]], np.int32)
    together = traffic.oracle(settings, rows, samples=8)
    alone = traffic.oracle(settings, rows[1:2], samples=8)
    np.testing.assert_array_equal(together["samples"][1:2], alone["samples"])
    assert together["samples"].shape == (3, 8, 4, 16) and together["median"].shape == (3, 4, 16)
    np.testing.assert_allclose(together["mean"], together["samples"].mean(axis=1))


def test_oracle_beats_the_naive_forecasts_and_knows_its_spread():
    settings = config(in_steps=12, out_steps=12, synthetic=traffic.SyntheticConfig(64, 14, 0))
    made = traffic.splits(settings, 0.5)
    rows = made.test.index[::40]
    batch = made.test.gather(made.test.arrays, rows)
    mask = batch["target_mask"]
    forecast = traffic.oracle(settings, rows, samples=64)
    statistics = made.statistics
    profile = statistics["profile"][(batch["dow"] >= 5).astype(int), batch["slot"]]
    last = batch["speed"][:, -1]
    damped = profile[:, 12:] + statistics["damping"][:, None] * (last - profile[:, 11])[:, None]

    def mae(point):
        return (np.abs(point - batch["target"]) * mask).sum() / mask.sum()

    assert mae(forecast["median"]) < 0.8 * min(mae(damped), mae(last[:, None]), mae(profile[:, 12:]))
    low, high = np.quantile(forecast["samples"], [0.1, 0.9], axis=1)
    inside = ((batch["target"] >= low) & (batch["target"] <= high)) * mask
    assert 0.76 < inside.sum() / mask.sum() < 0.83


def test_naive_scores_of_the_default_are_near_the_published_table():
    made = traffic.splits(config(in_steps=12, out_steps=12, synthetic=traffic.SyntheticConfig(64, 28, 0)), 0.5)
    assert [len(made.train), len(made.valid), len(made.test)] == [5621, 784, 1590]
    batch = made.test.gather(made.test.arrays, made.test.index[::3])
    mask = batch["target_mask"].sum(axis=(0, 2))
    last = (np.abs(batch["speed"][:, -1:] - batch["target"]) * batch["target_mask"]).sum(axis=(0, 2)) / mask
    np.testing.assert_allclose(last[[2, 5, 11]], [2.24, 2.99, 4.12], rtol=0.08)  # another draw of the same generator
