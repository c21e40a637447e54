"""Conformal intervals by hand and by counting."""

import math

import numpy as np
import pytest
from cbh_case import FLIGHTS, STATISTICS

from jaxtrain.tasks import cbh_intervals as intervals
from jaxtrain.tasks.cbh_intervals import BINS, adapted, calibrate, conformal, covered, histogram, scores, serving_widths

G = len(FLIGHTS) + 1


def test_rank_on_nine_residuals():
    nine = histogram(np.array([0.012, -0.031, 0.002, 0.104, -0.051, 0.063, -0.077, 0.088, 0.041]))
    assert conformal(nine, 0.8) == pytest.approx(0.09)  # the 8th smallest, .088, in the bin that ends at .09
    assert conformal(nine, 0.9) == pytest.approx(0.105)  # ceil(10 x .9) = 9: the largest
    assert conformal(nine, 0.95) is None and conformal(nine, 0.5) == pytest.approx(0.055)
    assert conformal(histogram(np.zeros(0)), 0.5) is None
    assert conformal(histogram(np.full(30, 2.5)), 0.8) is None  # beyond the bins: no width is known


@pytest.mark.parametrize("level", intervals.LEVELS)
def test_coverage_of_exchangeable_residuals(level):
    rng = np.random.default_rng(0)
    inside = [covered(histogram(rng.gamma(2, 0.1, 1000)), conformal(histogram(rng.gamma(2, 0.1, 199)), level)) for _ in range(100)]
    assert sum(inside) / 1e5 == pytest.approx(level, abs=0.01)


def made_up(residuals: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    found = np.zeros((7, G, BINS + 1))
    for (role, flight), errors in residuals.items():
        found[role, flight] = histogram(errors)
    return found


def test_flights_with_few_validation_labels_are_pooled():
    rng = np.random.default_rng(1)
    wide, narrow, few, held = rng.uniform(0, 0.4, 40), rng.uniform(0, 0.1, 30), rng.uniform(0, 1.5, 19), rng.uniform(0, 0.2, 50)
    found = calibrate(made_up({(1, 0): wide, (1, 1): narrow, (1, 4): few, (3, 3): held}))
    for flight, errors in ((0, wide), (1, narrow)):
        assert found["blocked_km"][flight, 1] == conformal(histogram(errors), 0.9)
    pooled = conformal(histogram(np.concatenate([wide, narrow, few])), 0.9)
    assert found["blocked_km"][4, 1] == found["blocked_km"][2, 1] == pooled
    assert found["transfer_km"][0] == conformal(histogram(held), 0.8)


def test_coverage_and_width_of_the_three_kinds():
    known = {"blocked_km": np.array([[0.1, 0.2, np.nan]] * G), "transfer_km": np.array([0.1, 0.3, 0.4])}
    known["blocked_km"][1] = [0.05, 0.05, 0.05]
    tested = made_up({
        (2, 0): np.array([0.01, 0.19, 0.201, 0.5]), (2, 1): np.array([0.04, 0.06]), (4, 2): np.array([0.03, 0.11, 0.31, 0.39]),
        (5, 2): np.linspace(0.001, 0.109, 10), (6, 2): np.array([0.9]),
    })  # fmt: skip
    found = scores(tested, known)
    assert found["coverage_90/blocked"] == 3 / 6 and found["width_km_90/blocked"] == pytest.approx((4 * 0.4 + 2 * 0.1) / 6)
    assert found["coverage_90/transfer"] == (2 + 10) / 15 and found["interval_n/transfer"] == 15  # all of the held-out flight
    assert found["coverage_90/few"] == 1 / 4 and found["width_km_90/few"] == pytest.approx(0.22)  # 10 of 10: .109
    assert "coverage_95/few" not in found and found["interval_n/blocked"] == 2  # of the last level: flight 1 alone
    assert set(scores(tested, {})) == {f"{name}/few" for name in ("coverage_80", "width_km_80", "coverage_90", "width_km_90", "interval_n")}


def test_a_flight_that_was_not_trained_on_gets_the_held_out_flight_s_width():
    known = {**STATISTICS, "blocked_km": np.arange(G)[:, None] / 10 + np.zeros(3), "transfer_km": np.array([1.0, 2.0, 3.0])}
    found = serving_widths(known)
    np.testing.assert_allclose(found[:, 1], [0, 0.1, 2, 2, 0.4, 2])
    alone = serving_widths({**known, "transfer_km": np.full(3, np.nan)})
    np.testing.assert_allclose(alone[:, 1], [0, 0.1, 0.5, 0.5, 0.4, 0.5])
    assert np.isnan(serving_widths(STATISTICS)).all() and serving_widths(STATISTICS).shape == (G, 3)


def test_a_miss_widens_and_hits_narrow():
    assert adapted(0.2, False, 0.9) == pytest.approx(0.2 * math.exp(0.05 * 0.9)) and adapted(0.2, False, 0.9) > 0.2
    assert adapted(0.2, True, 0.9) == pytest.approx(0.2 * math.exp(-0.05 * 0.1)) and adapted(0.2, True, 0.9) < 0.2
    rng, q, inside = np.random.default_rng(0), 0.01, []
    for error in np.abs(rng.normal(0, 0.3, 4000)):
        inside.append(error <= q)
        q = adapted(q, inside[-1], 0.9)
    assert np.mean(inside[500:]) == pytest.approx(0.9, abs=0.01)
