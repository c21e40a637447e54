"""Forecasts without a model against loops that say what they mean, with a line that runs against the grid in one direction."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.models import convlstm_naive as naive

TRAVEL = np.array([[0.0, 1.2, 1.9, 4.0, 5.5], [6.1, 4.4, 4.4, 1.0, 0.0]])  # the second direction enters at the last station
HORIZON = 7


@pytest.fixture(scope="module")
def case() -> dict[str, np.ndarray]:
    r = np.random.default_rng(0)
    known = r.random((2, 4, 5, 2)) > 0.5
    known[:, :, 1] = False  # a station that was never heard of
    plan_known = r.random((2, HORIZON, 2, 2)) > 0.3
    return {
        "history": np.where(known, r.uniform(1, 9, known.shape), 0).astype(np.float32), "known": known,
        "planned": r.uniform(2, 8, plan_known.shape).astype(np.float32), "planned_known": plan_known,
        "fallback": r.uniform(10, 12, (5, 2)).astype(np.float32),
    }  # fmt: skip


def last(case: Any, b: int, s: int, d: int) -> tuple[float, int] | None:
    """The newest known value and how many rows ago it was."""
    rows = np.flatnonzero(case["known"][b, :, s, d])
    return (case["history"][b, rows[-1], s, d], 3 - rows[-1]) if len(rows) else None


def newest(case: Any, b: int, s: int, d: int) -> float:
    found = last(case, b, s, d)
    return case["fallback"][s, d] if found is None else found[0]


def plan(case: Any, b: int, f: int, s: int, d: int, merge: Any) -> float | None:
    """What all origins together say at the entry, when the train left it that is here f + 1 minutes ahead."""
    row = min(max(int(np.floor(f + 1 - TRAVEL[d, s])), 0), HORIZON - 1)
    values = case["planned"][b, row, d][case["planned_known"][b, row, d]]
    return merge(values) if len(values) else None


def every(value: Any) -> np.ndarray:
    found = np.empty((2, HORIZON, 5, 2))
    for place in np.ndindex(found.shape):
        found[place] = value(*place)
    return found


def source(f: int, s: int, d: int) -> int:
    """The station nearest to where the train that comes in f + 1 minutes is now: halfway between two of them, the borders."""
    way = [0, 1, 2, 3, 4] if d == 0 else [4, 3, 2, 1, 0]
    passed = [(TRAVEL[d, a] + TRAVEL[d, b]) / 2 < TRAVEL[d, s] - (f + 1) for a, b in zip(way, way[1:], strict=False)]
    return way[sum(passed)]


def test_hold(case: dict[str, np.ndarray]) -> None:
    found = jax.jit(naive.hold, static_argnums=3)(case["history"], case["known"], case["fallback"], HORIZON)
    np.testing.assert_allclose(found, every(lambda b, f, s, d: newest(case, b, s, d)), rtol=1e-6)


def test_advected(case: dict[str, np.ndarray]) -> None:
    found = jax.jit(lambda c: naive.advected(c["history"], c["known"], c["fallback"], TRAVEL, HORIZON, 1.0))(case)
    np.testing.assert_allclose(found, every(lambda b, f, s, d: newest(case, b, source(f, s, d), d)), rtol=1e-6)
    assert source(3, 3, 0) == 0 and source(0, 3, 0) == 3 and source(0, 0, 1) == 1  # 0.0, 3.0 and 5.1 minutes from the entry


def test_advected_with_the_plan(case: dict[str, np.ndarray]) -> None:
    def expected(b: int, f: int, s: int, d: int) -> float:
        planned = plan(case, b, f, s, d, lambda gaps: 1 / np.sum(1 / gaps))
        to_come = TRAVEL[d, s] - (f + 1) < 0
        return planned if to_come and planned is not None else newest(case, b, source(f, s, d), d)

    forecast = jax.jit(lambda c: naive.advected_planned(
        c["history"], c["known"], c["planned"], c["planned_known"], c["fallback"], TRAVEL, 1.0))  # fmt: skip
    np.testing.assert_allclose(forecast(case), every(expected), rtol=1e-5)


@pytest.mark.parametrize("use_plan", [True, False])
def test_dead_reckoning(case: dict[str, np.ndarray], use_plan: bool) -> None:
    def expected(b: int, f: int, s: int, d: int) -> float:
        ages = []
        for other in range(5):
            back, found = TRAVEL[d, s] - TRAVEL[d, other], last(case, b, other, d)
            upstream = other <= s if d == 0 else other >= s
            if upstream and found is not None and found[0] + found[1] + f + 1 - back >= 0:
                ages.append(found[0] + found[1] + f + 1 - back)
        planned = plan(case, b, f, s, d, np.min)
        if use_plan and planned is not None and TRAVEL[d, s] <= f + 1:
            ages.append(planned)
        return min(ages) if ages else case["fallback"][s, d]

    forecast = jax.jit(lambda c: naive.dead_reckoning(
        c["history"], c["known"], c["planned"], c["planned_known"], c["fallback"], TRAVEL, 1.0, use_plan=use_plan))  # fmt: skip
    np.testing.assert_allclose(forecast(case), every(expected), rtol=1e-5)


def test_a_wave_that_moves_a_station_a_minute_is_foreseen_exactly() -> None:
    travel = np.arange(6.0)[None]
    field = jnp.arange(6.0)[None, None, :, None] + 20  # (1, 1, 6, 1)
    found = naive.advected(field, jnp.ones(field.shape, bool), jnp.zeros((6, 1)), travel, 2, 1.0)
    np.testing.assert_array_equal(found[0, :, :, 0], [[20, 20, 21, 22, 23, 24], [20, 20, 20, 21, 22, 23]])
