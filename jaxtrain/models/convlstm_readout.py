"""From what a network emits to a forecast: copy a value upstream that will have arrived, correct one, or emit one; and its spread.

A field at (s, t + k) is, with high probability, a value that stands upstream now: the one at the station that trains leave k minutes
before they reach s, or, for trains yet to come, the plan at the entry. Arrays are (B, F, S, D) at the door and (F, B, D, S) inside,
with candidates and outputs leading: everything is then element-wise over long contiguous axes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

MASKED = -1e30  # finite: a softmax of masked candidates must not become nan
SHARPNESS = 5.0  # of the emitted logits, against a prior in minutes
LOGIT_SCALE = 0.02
SIGMA_FLOOR = 0.01  # of the cap
SPREAD_BIAS = -2.5  # softplus(-2.5) = 0.08 of the cap


def upstream_stations(travel_minutes: np.ndarray, reach: int) -> np.ndarray:
    """(reach + 1, D, S) int32: the station j places upstream of each, -1 beyond the entry.

    travel_minutes (D, S) rises from the entry on: along the grid, or against it where the grid follows the other direction.
    """
    directions, stations = travel_minutes.shape
    step = np.where(travel_minutes[:, -1:] < travel_minutes[:, :1], 1, -1)
    wanted = np.arange(stations) + step * np.arange(reach + 1)[:, None, None]
    return np.where((wanted < 0) | (wanted >= stations), -1, wanted).astype(np.int32)


def upstream(x: jax.Array, stations: np.ndarray) -> jax.Array:
    """x (B, D, S) at stations (J, D, S) of the same direction -> (J, B, D, S); whatever beyond the line."""
    directions, width = x.shape[1:]
    flat = np.arange(directions)[:, None] * width + np.maximum(stations, 0)
    return jnp.moveaxis(x.reshape(len(x), -1)[:, flat], 0, 1)


def last_known(history: jax.Array, known: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """history, known (B, L, S, D) -> the newest known value (0 if there is none), rows since then, whether there is one: (B, D, S)."""
    rows = jnp.arange(history.shape[1])[:, None, None]
    newest = jnp.max(jnp.where(known, rows, -1), axis=1)
    value = jnp.sum(jnp.where(known & (rows == newest[:, None]), history, 0), axis=1)
    since = history.shape[1] - 1 - newest
    return value.swapaxes(1, 2), since.swapaxes(1, 2), (newest >= 0).swapaxes(1, 2)


def merged_plan(planned: jax.Array, known: jax.Array, target: str) -> tuple[jax.Array, jax.Array]:
    """planned, known (B, F, D, K) -> (B, F, D) of all origins: gaps combine like rates, ages to the smallest."""
    if target == "age":
        merged = jnp.min(jnp.where(known, planned, jnp.inf), axis=-1)
    else:
        rate = jnp.sum(jnp.where(known, 1 / jnp.maximum(planned, 1e-3), 0), axis=-1)
        merged = 1 / jnp.maximum(rate, 1e-6)
    any_known = known.any(-1)
    return jnp.where(any_known, merged, 0), any_known


def entry_rows(travel_minutes: np.ndarray, horizon: int, step_minutes: float) -> np.ndarray:
    """(F, D, S) int32: the target row whose plan stands, at F minutes ahead, at a station that trains reach later than the entry."""
    ahead = (np.arange(horizon) + 1) * step_minutes
    rows = np.floor((ahead[:, None, None] - travel_minutes) / step_minutes)
    return np.clip(rows, 0, horizon - 1).astype(np.int32)


def plan_at(planned: jax.Array, rows: np.ndarray) -> jax.Array:
    """planned (B, F, D) at rows (F, D, S) -> (F, B, D, S)."""
    picked = [planned[:, rows[:, d], d] for d in range(rows.shape[1])]  # each (B, F, S)
    return jnp.stack(picked, axis=2).swapaxes(0, 1)


class Candidates(NamedTuple):
    """What a cell may copy, in units of the cap, and how likely that looks before the network has spoken.

    now (J + 1, 1 or F, B, D, S): the newest value at the station j places upstream; planned (F, B, D, S): the plan's value at the
    entry; prior (J + 2, F, B, D, S) with the planned one last, -1e30 where unknown; fallback (D, S), the place's mean; known
    (F, B, D, S), whether there is any candidate; base (F, B, D, S): the mean under the prior alone, else the fallback.
    """

    now: jax.Array
    planned: jax.Array
    prior: jax.Array
    fallback: jax.Array
    known: jax.Array
    base: jax.Array


class Readout(nnx.Module):
    """How many outputs per cell and minute a body emits, and what becomes of them; without parameters of its own.

    copy: J + 2 logits and an offset, y = sum softmax(5 z + prior) v + offset. add: y = base + output. plain: y = output, through a
    sigmoid in `baseline`. After these come the outputs of the head, then the other input field's.
    """

    def __init__(self, config: Any, sizes: Any, travel_minutes: np.ndarray):
        self.kind, self.head, self.sizes = config.readout, config.head, sizes
        self.bounded = config.variant == "baseline"
        self.levels = len(config.levels)
        self.reach = min(config.upstream, sizes.stations - 1)
        self.travel = tuple(map(tuple, np.asarray(travel_minutes, float).tolist()))  # hashable: part of the program, not of the state
        self.own = self.reach + 3 if self.kind == "copy" else 1
        self.spread = {"point": 0, "gaussian": 1, "quantile": self.levels - 1}[self.head]
        self.outputs = self.own + self.spread + int(sizes.auxiliary)

    def kernel(self, key: jax.Array, features: int, groups: int) -> jax.Array:
        """The first weights (features, groups x outputs): near the base forecast, or Glorot where there is none."""
        shape = (features, groups, self.outputs)
        if self.kind == "plain":
            return nnx.initializers.glorot_uniform()(key, (features, groups * self.outputs), jnp.float32)
        small = LOGIT_SCALE * jax.random.normal(key, shape)
        return small.at[..., self.own - 1].set(0).reshape(features, -1)  # no offset at first

    def bias(self, groups: int) -> jax.Array:
        """(groups x outputs,)."""
        return jnp.zeros((groups, self.outputs)).at[:, self.own : self.own + self.spread].set(SPREAD_BIAS).reshape(-1)

    def candidates(self, inputs: Mapping[str, jax.Array]) -> Candidates:
        """From target_history, target_known (B, L, S, D), planned, planned_known (B, F, D, K) and fallback (S, D)."""
        s, travel = self.sizes, np.asarray(self.travel)
        minutes = (np.arange(s.horizon) + 1) * s.step_minutes
        stations = upstream_stations(travel, self.reach)
        back = travel[None] - np.take_along_axis(travel[None].repeat(len(stations), 0), np.maximum(stations, 0), axis=2)
        value, since, known = last_known(inputs["target_history"].astype(jnp.float32), inputs["target_known"])
        now, seen = upstream(value, stations)[:, None], (upstream(known, stations) & (stations >= 0)[:, None])[:, None]
        if s.target == "age":
            waited = upstream(since, stations)[:, None] * s.step_minutes
            moved = (waited + minutes[:, None, None, None] - back[:, None, None]) / s.cap_minutes
            now = now + moved
            seen = seen & (now >= 0)
        planned, planned_known = merged_plan(inputs["planned"].astype(jnp.float32), inputs["planned_known"], s.target)
        rows = entry_rows(travel, s.horizon, s.step_minutes)
        planned, planned_known = plan_at(planned, rows), plan_at(planned_known, rows)
        if s.target == "age":  # a train that has not reached the entry yet has no age here
            planned_known = planned_known & (travel <= minutes[:, None, None])[:, None]
        to_come = np.maximum(travel - minutes[:, None, None], 0)[None]
        prior = -np.concatenate([np.abs(back[:, None] - minutes[:, None, None]), to_come])[:, :, None]
        seen = jnp.concatenate([jnp.broadcast_to(seen, (len(seen), *planned.shape)), planned_known[None]])
        prior = jnp.where(seen, jnp.asarray(prior, jnp.float32), MASKED)
        fallback, any_known = inputs["fallback"].astype(jnp.float32).T, seen.any(0)
        blank = Candidates(now, planned, prior, fallback, any_known, planned)
        return blank._replace(base=_mixed(jax.nn.softmax(prior, axis=0), blank))

    def __call__(self, raw: jax.Array, candidates: Candidates) -> dict[str, jax.Array]:
        """raw (outputs, F, B, D, S) float32 -> {y, sigma | quantiles, other}, see `models.convlstm.Network`."""
        if self.kind == "copy":
            y = _mixed(copy_weights(raw[: self.own - 1], candidates), candidates) + raw[self.own - 1]
        elif self.kind == "add":
            y = candidates.base + raw[0]
        else:
            y = jax.nn.sigmoid(raw[0]) if self.bounded else raw[0]
        found = {"y": _outward(y)}
        spread = jax.nn.softplus(raw[self.own : self.own + self.spread])
        if self.head == "gaussian":
            found["sigma"] = _outward(spread[0] + SIGMA_FLOOR)
        elif self.head == "quantile":
            middle = self.levels // 2
            below, above = jnp.cumsum(spread[:middle], axis=0)[::-1], jnp.cumsum(spread[middle:], axis=0)
            levels = jnp.concatenate([y - below, y[None], y + above])
            found["quantiles"] = jnp.moveaxis(_outward(levels), 0, -1)
        if self.sizes.auxiliary:
            found["other"] = _outward(raw[-1])
        return found


def copy_weights(logits: jax.Array, candidates: Candidates) -> jax.Array:
    """softmax(5 z + prior) over the candidates: (J + 2, F, B, D, S)."""
    return jax.nn.softmax(SHARPNESS * logits + candidates.prior, axis=0)


def _mixed(weights: jax.Array, candidates: Candidates) -> jax.Array:
    copied = jnp.sum(weights[:-1] * candidates.now, axis=0) + weights[-1] * candidates.planned
    return jnp.where(candidates.known, copied, candidates.fallback)


def _outward(x: jax.Array) -> jax.Array:
    """(..., F, B, D, S) -> (..., B, F, S, D)."""
    return jnp.moveaxis(x, (-4, -3, -2, -1), (-3, -4, -1, -2))
