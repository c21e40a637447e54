"""Losses and hard mining by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cbh_case import Told, batch, sections, task
from flax import nnx

from jaxtrain.errors import UserError
from jaxtrain.tasks.cbh import make_task
from jaxtrain.tasks.cbh_loss import KINDS, LossConfig, average, losses, mined

Y, FORECAST = np.array([0.5, 2.0, -0.3, 0.0]), np.array([0.0, 0.0, 0.1, 3.0])  # e = 0.5, 2, -0.4, -3


call = jax.jit(losses, static_argnums=0)


def config(kind: str, alpha: float = 0.25, delta: float = 1.0, gamma: float = 1.5, under_weight: float = 3.0) -> LossConfig:
    return LossConfig(kind, alpha, delta, gamma, under_weight, 0.0, 1.0, False)


@pytest.mark.parametrize(("kind", "expected"), [
    ("huber", [0.125, 1.5, 0.08, 2.5]),
    ("mse_mae", [0.25 * 0.25 + 0.75 * 0.5, 0.25 * 4 + 0.75 * 2, 0.25 * 0.16 + 0.75 * 0.4, 0.25 * 9 + 0.75 * 3]),
    ("mae", [0.5, 2.0, 0.4, 3.0]),
    ("huber_mae", [0.03125 + 0.75 * 0.5**1.5, 0.375 + 0.75 * 2**1.5, 0.02 + 0.75 * 0.4**1.5, 0.625 + 0.75 * 3**1.5]),
    ("weighted_huber", [0.375, 4.5, 0.08, 2.5]),
    ("weighted_huber_mae", [0.09375 + 0.75 * 0.5**1.5, 1.125 + 0.75 * 2**1.5, 0.02 + 0.75 * 0.4**1.5, 0.625 + 0.75 * 3**1.5]),
])  # fmt: skip
def test_losses_by_hand(kind, expected):
    np.testing.assert_allclose(call(config(kind), Y, FORECAST), expected, rtol=1e-6)


def test_huber_has_its_corner_at_delta():
    found = call(config("huber", delta=0.5), Y, FORECAST)
    np.testing.assert_allclose(found, [0.125, 0.5 * 1.75, 0.08, 0.5 * 2.75], rtol=1e-6)
    slope = jax.grad(lambda f: losses(config("huber", delta=0.5), jnp.zeros(4), f).sum())
    slopes = jax.jit(slope)(jnp.array([0.1, 0.49, 0.51, 4.0]))
    np.testing.assert_allclose(slopes, [0.1, 0.49, 0.5, 0.5], rtol=1e-6)


def test_alpha_0_is_the_absolute_error_and_every_key_reaches_the_loss():
    np.testing.assert_array_equal(call(config("mse_mae", alpha=0.0), Y, FORECAST), call(config("mae"), Y, FORECAST))
    base = call(config("weighted_huber_mae"), Y, FORECAST)
    for key, value in (("alpha", 0.3), ("delta", 0.7), ("gamma", 1.0), ("under_weight", 1.0)):
        assert not np.allclose(call(config("weighted_huber_mae", **{key: value}), Y, FORECAST), base), key


def test_gradients_are_finite_at_no_error():
    known = [config(kind, gamma=gamma) for kind in KINDS for gamma in (1.0, 1.5)]
    slopes = jax.jit(jax.jacobian(lambda f: jnp.stack([losses(each, jnp.zeros(()), f) for each in known])))(0.0)
    assert np.isfinite(slopes).all(), slopes


hardest = jax.jit(mined, static_argnums=(2, 3))


def test_mining_on_five_numbers():
    values, mask = jnp.array([1.0, 5.0, 3.0, 2.0, 4.0]), jnp.ones(5)
    np.testing.assert_array_equal(hardest(values, mask, 0.35, 1.5), [1, 7.5, 3, 2, 4])  # int(5 x .35) = 1
    np.testing.assert_array_equal(hardest(values, mask, 0.4, 1.5), [1, 7.5, 3, 2, 6])
    np.testing.assert_array_equal(hardest(values, mask, 0.0, 1.5), values)
    assert float(average(hardest(values, mask, 0.4, 1.5), mask)) == pytest.approx(19.5 / 5)  # not renormalised


def test_masked_rows_enter_neither_mining_nor_mean():
    values, mask = jnp.array([1.0, jnp.nan, 3.0, jnp.inf, 4.0]), jnp.array([1.0, 0, 1, 0, 1])
    found = hardest(values, mask, 0.4, 2.0)
    np.testing.assert_array_equal(found[mask > 0], [1, 6, 8])
    assert float(average(found, mask)) == 5
    few = hardest(values, jnp.array([0.0, 0, 1, 0, 0]), 0.8, 2.0)
    assert float(average(few, jnp.array([0.0, 0, 1, 0, 0]))) == 6


def test_of_equal_losses_no_more_than_asked_count_more():
    assert float(hardest(jnp.ones(20), jnp.ones(20), 0.35, 1.5).sum()) == 20 + 7 * 0.5


def test_the_task_trains_on_the_mined_and_logs_the_plain_loss():
    made, one = task(augment__strength="0", loss__kind="huber", loss__hard_fraction="0.4", loss__hard_weight="2.0"), batch()
    y = np.array([0.1, -0.5, 0.0, 1.0, 2.0, np.nan])
    value, logs = jax.jit(lambda b: made.loss(Told(y), b, nnx.Rngs(0)))(one)
    e = (one["height_km"][:5] - 0.8) / 0.4 - y[:5]
    each = np.where(abs(e) <= 1, e**2 / 2, abs(e) - 0.5)
    hard = np.isin(np.arange(5), np.argsort(each)[-2:])
    assert float(logs["loss_plain"]) == pytest.approx(each.mean(), rel=1e-5) and float(logs["weight"]) == 5
    assert float(value) == pytest.approx((each * np.where(hard, 2, 1)).sum() / 5, rel=1e-5)
    assert float(logs["mae_km"]) == pytest.approx(abs(e).mean() * 0.4, rel=1e-5)


@pytest.mark.parametrize(("key", "value", "said"), [
    ("loss__kind", "hubr", "did you mean 'huber'"), ("loss__alpha", "1.5", "alpha"), ("loss__gamma", "0.5", "gamma"),
    ("loss__delta", "0.0", "delta"), ("loss__hard_fraction", "-0.1", "hard_fraction"),
])  # fmt: skip
def test_impossible_losses_are_refused_by_key(key, value, said):
    with pytest.raises(UserError, match=said):
        make_task(sections(**{key: value}))
