"""What a cell may copy, the base forecast, and the heads, without a network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convlstm_problem import DEFAULT, batch, small_sizes, travel

from jaxtrain.models.convlstm import Config, Sizes
from jaxtrain.models.convlstm_readout import Candidates, Readout, copy_weights

UPSTREAM = 2


def readout(sizes: Sizes, travel_minutes: np.ndarray | None = None, **changes: Any) -> Readout:
    config = Config(**{**DEFAULT, "upstream": UPSTREAM, **changes})
    return Readout(config, sizes, travel(sizes) if travel_minutes is None else travel_minutes)


def candidates(found: Readout, inputs: dict[str, jax.Array]) -> Candidates:
    return jax.jit(found.candidates)(inputs)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def base_by_hand(sizes: Sizes, inputs: dict[str, jax.Array], place: tuple[int, int, int, int]) -> float:
    """The spec's sum over candidates of one cell and minute, unit by unit."""
    b, f, s, d = place
    minutes, ahead = travel(sizes)[d], (f + 1) * sizes.step_minutes
    history, known = np.asarray(inputs["target_history"])[b, :, :, d], np.asarray(inputs["target_known"])[b, :, :, d]
    values, priors = [], []
    for j in range(UPSTREAM + 1):
        rows = np.flatnonzero(known[:, s - j]) if s >= j else []
        if len(rows):
            value, back = history[rows[-1], s - j], minutes[s] - minutes[s - j]
            if sizes.target == "age":
                since = (sizes.lookback - 1 - rows[-1]) * sizes.step_minutes
                value += (since + ahead - back) / sizes.cap_minutes
            if sizes.target == "headway" or value >= 0:
                values.append(value)
                priors.append(-abs(back - ahead))
    row = int(np.clip(np.floor((ahead - minutes[s]) / sizes.step_minutes), 0, sizes.horizon - 1))
    plan, plan_known = (np.asarray(inputs[name])[b, row, d, 0] for name in ("planned", "planned_known"))
    if plan_known and (sizes.target == "headway" or minutes[s] <= ahead):
        values.append(plan)
        priors.append(-max(minutes[s] - ahead, 0))
    if not values:
        return float(inputs["fallback"][s, d])
    weights = np.exp(np.array(priors) - max(priors))
    return float(np.sum(weights * values) / weights.sum())


@pytest.mark.parametrize("target, step_minutes", [("headway", 1.0), ("age", 2.0)])
def test_base_is_the_prior_mean_of_what_is_known(target: str, step_minutes: float) -> None:
    sizes = small_sizes(target=target, step_minutes=step_minutes)
    inputs = batch(sizes)
    known = inputs["target_known"].at[0, :, :2].set(False)  # the first two stations of one example: never
    plan_known = inputs["planned_known"].at[0, :, 1].set(False)
    inputs |= {"target_known": known, "target_history": inputs["target_history"] * known, "planned_known": plan_known}
    found = candidates(readout(sizes), inputs)
    expected = [base_by_hand(sizes, inputs, place) for place in np.ndindex(2, sizes.horizon, sizes.stations, 2)]
    shape = (2, sizes.horizon, sizes.stations, 2)
    np.testing.assert_allclose(found.base.transpose(1, 0, 3, 2), np.reshape(expected, shape), rtol=2e-5, atol=1e-6)
    assert not bool(found.known[0, 0, 1, 0]) and bool(found.known.any())


def test_a_grid_against_the_travel_mirrors_the_forecast() -> None:
    sizes = small_sizes(directions=1)
    inputs = batch(sizes)
    mirrored = {name: value[:, :, ::-1] if name.startswith("target") else value for name, value in inputs.items()}
    mirrored["fallback"] = inputs["fallback"][::-1]
    along = candidates(readout(sizes), inputs)
    against = candidates(readout(sizes, travel(sizes)[:, ::-1]), mirrored)
    np.testing.assert_array_equal(against.base[..., ::-1], along.base)


def test_zero_logits_copy_the_base_and_weights_add_up() -> None:
    sizes = small_sizes()
    net = readout(sizes)
    found = candidates(net, batch(sizes))
    raw = np.zeros((net.outputs, *found.base.shape), np.float32)
    np.testing.assert_allclose(jax.jit(net)(raw, found)["y"], np.transpose(found.base, (1, 0, 3, 2)), rtol=1e-6)
    weights = np.asarray(jax.jit(copy_weights)(random(UPSTREAM + 2, *found.base.shape), found))
    np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-5)
    assert (weights[np.asarray(found.prior) < -1e29] == 0).all() and (weights > 0.5).any()


def test_nothing_known_gives_the_mean_of_the_place_and_gradients_stay_finite() -> None:
    sizes = small_sizes()
    inputs = batch(sizes)
    inputs |= {name: jnp.zeros_like(inputs[name]) for name in ("target_known", "planned_known")}
    net = readout(sizes)
    found = candidates(net, inputs)

    def total(raw: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = net(raw, found)["y"]
        return y.sum(), y

    raw = random(net.outputs, *found.base.shape)
    raw[-1] = 0
    gradient, y = jax.jit(jax.grad(total, has_aux=True))(raw)
    np.testing.assert_allclose(y, np.broadcast_to(inputs["fallback"], (2, 4, 5, 2)))
    assert np.isfinite(gradient).all() and (np.asarray(gradient)[-1] == 1).all()


def test_heads() -> None:
    sizes = small_sizes(auxiliary=True)
    found = candidates(readout(sizes), batch(sizes))
    raw = random(6, *found.base.shape)
    quantiles = readout(sizes, readout="plain", head="quantile", levels=(0.05, 0.25, 0.5, 0.75, 0.95))
    assert quantiles.outputs == 1 + 4 + 1
    out = jax.jit(quantiles)(raw, found)
    assert out["quantiles"].shape == (2, 4, 5, 2, 5)
    assert (np.diff(out["quantiles"]) > 0).all()
    np.testing.assert_array_equal(out["quantiles"][..., 2], out["y"])
    np.testing.assert_array_equal(out["other"], raw[5].transpose(1, 0, 3, 2))
    gaussian = readout(sizes, readout="add", head="gaussian")
    assert gaussian.outputs == 3
    raw[1] = -100
    out = jax.jit(gaussian)(raw[:3], found)
    np.testing.assert_allclose(out["sigma"], 0.01)
    np.testing.assert_allclose(out["y"], np.transpose(found.base + raw[0], (1, 0, 3, 2)), rtol=1e-6)


def test_first_weights_start_at_the_base() -> None:
    net = readout(small_sizes(), head="gaussian")
    kernel = np.asarray(net.kernel(jax.random.key(0), 50, 3)).reshape(50, 3, net.outputs)
    assert net.outputs == UPSTREAM + 4 and 0.015 < kernel[..., : net.own - 1].std() < 0.025
    assert (kernel[..., net.own - 1] == 0).all()
    np.testing.assert_array_equal(np.asarray(net.bias(3)).reshape(3, -1)[1], [0] * net.own + [-2.5])
