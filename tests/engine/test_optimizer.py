"""Schedules against numbers by hand, decay masks, groups, float32 originals of bfloat16 parameters."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxtrain.engine import optimizer, steps
from jaxtrain.engine.config import OptimizerConfig
from jaxtrain.engine.optimizer import Plateau, direction, restart_fraction, schedule
from jaxtrain.errors import UserError
from jaxtrain.tasks.task import Group


def rates(steps_per_epoch: float = 10.0, **keys: Any) -> Any:
    return schedule(OptimizerConfig(**keys), steps_per_epoch)


def test_cosine_with_warm_up() -> None:
    rate = rates(lr=1.0, min_lr=0.1, schedule="cosine", warmup="4st", decay="2ep")
    by_hand = {0: 0.25, 1: 0.5, 3: 1.0, 4: 1.0, 8: 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)), 12: 0.55, 20: 0.1, 500: 0.1}
    for step, expected in by_hand.items():
        assert float(rate(step)) == pytest.approx(expected, abs=1e-6), step


def test_cosine_that_ends_before_its_warm_up_is_refused() -> None:
    with pytest.raises(UserError, match="optimizer.decay"):
        rates(schedule="cosine", warmup="2ep", decay="20st")


def test_constant_follows_the_warm_up() -> None:
    rate = rates(lr=2.0, schedule="constant", warmup="0.5ep")
    assert [float(rate(s)) for s in (0, 4, 5, 10**6)] == pytest.approx([0.4, 2.0, 2.0, 2.0])


def test_warm_restarts_over_five_cycles() -> None:
    """SGDR's loop in float64: count within the cycle, restart when its length is reached, lengthen by T_mult."""
    rate = rates(lr=1.0, min_lr=0.01, schedule="warm_restarts", restart_period="1ep", restart_mult=1.5)
    start, length, seen = 0.0, 10.0, 0
    for step in range(131):
        if step >= start + length:
            start, length, seen = start + length, length * 1.5, seen + 1
        expected = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - start) / length))
        assert float(rate(step)) == pytest.approx(expected, abs=2e-5), step
    assert seen == 4  # the fifth cycle ends at step 131.9
    assert [float(rate(s)) for s in (0, 10, 25)] == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)  # restarts on whole steps


@pytest.mark.parametrize(("period", "mult"), [(1000, 2.0), (50, 1.5), (128, 3.0), (7, 1.0), (977, 1.1)])
def test_a_restart_step_is_the_start_of_its_cycle(period: int, mult: float) -> None:
    """Also late in a long run, where float32 rounding could leave the step at the end of the cycle before."""
    start = 0.0
    for cycle in range(11):
        if start.is_integer() and start < 2**23:
            assert float(restart_fraction(jnp.float32(start), period, mult)) < 1e-4, (cycle, start)
        start += period * mult**cycle


def test_plateau_cuts_the_rate_after_more_than_patience_evaluations() -> None:
    config = OptimizerConfig(schedule="plateau", lr=1.0, min_lr=0.2, plateau_factor=0.5, plateau_patience=2)
    state, scales = Plateau(), []
    for value in (3.0, 2.0, 2.5, 2.0, 2.1, 1.9, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, math.nan, math.nan, math.nan):
        state = state.observe(value, config)
        scales.append(state.scale)
    assert scales == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.2, 0.2, 0.2, 0.2]
    assert state.best == 1.9
    assert float(rates(lr=3.0, schedule="plateau")(77)) == 3.0


PARAMS = {"a/kernel": jnp.full((2, 2), 2.0), "a/bias": jnp.full((2,), 2.0), "b/kernel": jnp.full((3,), 2.0), "b/scale": jnp.ones((3,))}


def change(config: OptimizerConfig, groups: tuple[Group, ...], gradient: float, count: int = 1) -> dict[str, np.ndarray]:
    """What `count` steps at rate 0.1 add to every parameter."""
    transform = direction(config, PARAMS, groups)
    packed = transform.packing.pack(PARAMS)
    state, gradients = transform.init(packed), {k: jnp.full(v.shape, gradient) for k, v in packed.items()}
    for _ in range(count):
        packed, state = optimizer.descend(transform, gradients, state, packed, jnp.float32(0.1))
    params = transform.packing.unpack(packed)
    return {k: np.asarray(params[k] - PARAMS[k]) for k in PARAMS}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
def test_decay_is_decoupled_and_on_kernels_alone(name: str) -> None:
    moved = change(OptimizerConfig(name=name, weight_decay=0.5, momentum=0.0), (), gradient=0.0)
    for path, value in moved.items():
        np.testing.assert_allclose(value, -0.1 * 0.5 * 2.0 if path.endswith("kernel") else 0.0, atol=1e-6, err_msg=path)


def test_adam_takes_the_penalty_through_its_moments() -> None:
    moved = change(OptimizerConfig(name="adam", weight_decay=0.5), (), gradient=0.0)
    np.testing.assert_allclose(moved["a/kernel"], -0.1, rtol=1e-4)  # the sign of the penalty's gradient, times the rate
    np.testing.assert_allclose(moved["a/bias"], 0.0)


def test_adamw_equals_optax() -> None:
    config = OptimizerConfig(name="adamw", weight_decay=0.02, betas=(0.8, 0.95), clip=0.0)
    reference = optax.adamw(0.1, 0.8, 0.95, weight_decay=0.02, mask={k: k.endswith("kernel") for k in PARAMS})
    params, state = PARAMS, reference.init(PARAMS)
    for _ in range(5):
        updates, state = reference.update({k: jnp.full(v.shape, 0.3) for k, v in params.items()}, state, params)
        params = optax.apply_updates(params, updates)
    for path, value in change(config, (), 0.3, 5).items():
        np.testing.assert_allclose(value, np.asarray(params[path] - PARAMS[path]), atol=1e-6)


def test_clip_bounds_the_global_norm() -> None:
    moved = change(OptimizerConfig(name="sgd", momentum=0.0, clip=1.0), (), gradient=10.0)
    assert np.sqrt(sum((v**2).sum() for v in moved.values())) == pytest.approx(0.1, rel=1e-5)


def test_the_first_matching_group_rules() -> None:
    groups = (Group("a/kernel", learning_rate=0.0, weight_decay=False), Group("^a/", learning_rate=0.5), Group("scale", weight_decay=True))
    moved = change(OptimizerConfig(name="sgd", momentum=0.0, clip=0.0, weight_decay=0.1), groups, gradient=1.0, count=1)
    np.testing.assert_array_equal(moved["a/kernel"], 0.0)
    np.testing.assert_allclose(moved["a/bias"], -0.1 * 0.5 * (1.0 + 0.1 * 2.0), rtol=1e-5)
    np.testing.assert_allclose(moved["b/scale"], -0.1 * (1.0 + 0.1 * 1.0), rtol=1e-5)
    np.testing.assert_allclose(moved["b/kernel"], -0.1 * (1.0 + 0.1 * 2.0), rtol=1e-5)


def test_a_group_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        direction(OptimizerConfig(), PARAMS, (Group("nowhere"),))


def test_moments_of_bfloat16_parameters_are_float32() -> None:
    transform = direction(OptimizerConfig(), {"kernel": jnp.ones(4)}, ())
    state = steps.initial_state({"kernel": jnp.ones(4)}, {}, transform, precision="bfloat16", ema=True)
    floats = [x.dtype for x in jax.tree.leaves((state.opt_state, state.ema)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(floats) >= 4 and set(floats) == {jnp.dtype(jnp.float32)}
