"""Forecasts without a model, of a field that travels with the trains: hold it, move it on, reckon ages from where trains are.

Fields and plans are in minutes, (B, L, S, D) with their known mask and (B, F, D, K); forecasts are (B, F, S, D) minutes.
`travel_minutes` (D, S) counts from the entry, in grid order; `fallback` (S, D) is the place's mean, where nothing is known.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.models.convlstm_readout import entry_rows, last_known, merged_plan, plan_at, upstream, upstream_stations


def hold(history: jax.Array, known: jax.Array, fallback: jax.Array, horizon: int) -> jax.Array:
    """The newest known value, held."""
    value = _newest(history, known, fallback)
    return _outward(jnp.broadcast_to(value, (horizon, *value.shape)))


def advected(
    history: jax.Array, known: jax.Array, fallback: jax.Array, travel_minutes: np.ndarray, horizon: int, step_minutes: float
) -> jax.Array:
    """The newest known value at the station that trains pass m minutes before they reach this one; the entry's for trains to come."""
    value = _newest(history, known, fallback)
    origin, _ = _origins(travel_minutes, horizon, step_minutes)
    return _outward(upstream(value, origin))


def advected_planned(
    history: jax.Array, known: jax.Array, planned: jax.Array, planned_known: jax.Array, fallback: jax.Array,
    travel_minutes: np.ndarray, step_minutes: float,
) -> jax.Array:  # fmt: skip
    """`advected`, but for trains to come what the plan says at the entry."""
    horizon = planned.shape[1]
    value = _newest(history, known, fallback)
    origin, to_come = _origins(travel_minutes, horizon, step_minutes)
    plan, plan_known = _plan(planned, planned_known, travel_minutes, step_minutes, "headway")
    return _outward(jnp.where(to_come[:, None] & plan_known, plan, upstream(value, origin)))


def dead_reckoning(
    history: jax.Array, known: jax.Array, planned: jax.Array, planned_known: jax.Array, fallback: jax.Array,
    travel_minutes: np.ndarray, step_minutes: float, *, use_plan: bool = True,
) -> jax.Array:  # fmt: skip
    """Minutes since the last train: the train nearest behind this place, m minutes on, its age 0 when it gets here."""
    horizon, stations = planned.shape[1], history.shape[2]
    value, since, seen = last_known(history.astype(jnp.float32), known)
    value = value + since * step_minutes
    sources = upstream_stations(travel_minutes, stations - 1)  # (S, D, S): here and every station upstream
    back = travel_minutes - np.take_along_axis(travel_minutes[None].repeat(stations, 0), np.maximum(sources, 0), axis=2)
    values, usable = upstream(value, sources), upstream(seen, sources) & (sources >= 0)[:, None]
    minutes = _ahead(horizon, step_minutes)

    def at(m: jax.Array) -> jax.Array:  # one minute at a time: all candidates of all minutes would be S times the forecast
        reached = values + m - jnp.asarray(back, jnp.float32)[:, None]
        return jnp.min(jnp.where(usable & (reached >= 0), reached, jnp.inf), axis=0)

    age = jax.lax.map(at, jnp.asarray(minutes, jnp.float32))
    if use_plan:
        plan, plan_known = _plan(planned, planned_known, travel_minutes, step_minutes, "age")
        entered = (travel_minutes <= minutes[:, None, None])[:, None]
        age = jnp.minimum(age, jnp.where(plan_known & entered, plan, jnp.inf))
    return _outward(jnp.where(jnp.isfinite(age), age, fallback.T))


def _newest(history: jax.Array, known: jax.Array, fallback: jax.Array) -> jax.Array:
    value, _, seen = last_known(history.astype(jnp.float32), known)
    return jnp.where(seen, value, fallback.T)


def _ahead(horizon: int, step_minutes: float) -> np.ndarray:
    return (np.arange(horizon) + 1) * step_minutes


def _origins(travel_minutes: np.ndarray, horizon: int, step_minutes: float) -> tuple[np.ndarray, np.ndarray]:
    """(F, D, S): the station whose travel time is nearest travel - m (the entry below 0), and whether that is below 0.

    Interpolated between stations and rounded, so that equal travel times do not all count as one place.
    """
    wanted = travel_minutes - _ahead(horizon, step_minutes)[:, None, None]
    stations = np.arange(travel_minutes.shape[1])
    found = np.empty(wanted.shape, np.int32)
    for d, travel in enumerate(travel_minutes):
        order = stations[::-1] if travel[-1] < travel[0] else stations
        found[:, d] = order[np.rint(np.interp(wanted[:, d], travel[order], stations)).astype(np.int32)]
    return found, wanted < 0


def _plan(
    planned: jax.Array, known: jax.Array, travel_minutes: np.ndarray, step_minutes: float, target: str
) -> tuple[jax.Array, jax.Array]:
    rows = entry_rows(travel_minutes, planned.shape[1], step_minutes)
    merged, merged_known = merged_plan(planned.astype(jnp.float32), known, target)
    return plan_at(merged, rows), plan_at(merged_known, rows)


def _outward(x: jax.Array) -> jax.Array:
    """(F, B, D, S) -> (B, F, S, D)."""
    return x.transpose(1, 0, 3, 2)
