"""Prediction at its edges: options, arrays that a caller gives by hand, what a forecast rests on, and the table that is written.

Letters as in `convlstm`: B windows, L lookback rows, F horizon rows, S stations, D directions, K terminal channels.
"""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.dataset import Batch, Dataset, Statistics
from jaxtrain.data.headway_config import DataConfig
from jaxtrain.data.headway_time import local_dates, show_local
from jaxtrain.errors import UserError
from jaxtrain.models.convlstm import Sizes
from jaxtrain.models.convlstm_readout import entry_rows, merged_plan, plan_at
from jaxtrain.tasks.convlstm_inputs import array_shapes

READING = ("timetable", "snapshots", "start")  # options of every file that a run reads


def complete(data: DataConfig, size: Sizes, batch: Batch) -> Batch:
    """A batch of the network from arrays given by hand: the fields of data.inputs and the target (B, L, S, D), planned (B, F, D, K),
    all in minutes with NaN where unknown; with data.clock also clock (B, L, 4), sine and cosine of the local time of day and week.

    Raises UserError naming the array, the shape or range expected and what was given.
    """
    windows = len(np.atleast_1d(batch[data.target])) if data.target in batch else 1
    shapes = array_shapes(data, size, windows)
    for name, shape in shapes.items():
        if name not in batch:
            raise UserError(f"predict: {name} is missing; give an array {shape}")
        if np.shape(batch[name]) != shape:
            raise UserError(f"predict: {name} has shape {np.shape(batch[name])}, this run expects {shape}")
    unknown = sorted(batch.keys() - shapes.keys())
    if unknown:
        raise UserError(f"predict: this run takes no {', '.join(unknown)}; it takes {', '.join(shapes)}")
    found: Batch = {}
    for name in shapes:
        values = np.asarray(batch[name], np.float32)
        if name == "clock":
            found[name] = values
            continue
        known = np.isfinite(values)
        if values[known].min(initial=0) < 0:
            raise UserError(f"predict: {name} must be minutes of at least 0, NaN where unknown; got {values[known].min():g}")
        found |= {name: np.where(known, np.minimum(values, data.cap_minutes), 0).astype(np.float32), f"{name}_known": known}
    return found


def evidence(data: DataConfig, travel_minutes: np.ndarray, batch: Batch) -> dict[str, jax.Array]:
    """What a forecast rests on.

    planned (B, F, D) minutes, NaN where unknown: of all origins together; known_share (B, S, D) of the place's input cells;
    grounded (B, F, S, D) bool: a value of the place or of a station upstream was known, or the plan of a train that can be there.
    """
    plan, plan_known = merged_plan(jnp.asarray(batch["planned"], jnp.float32), jnp.asarray(batch["planned_known"], bool), data.target)
    horizon = plan.shape[1]
    share = jnp.stack([jnp.asarray(batch[f"{name}_known"], jnp.float32).mean(1) for name in data.inputs]).mean(0)
    seen = jnp.asarray(batch[f"{data.target}_known"], bool).any(1)  # (B, S, D)
    at_or_above = travel_minutes[:, :, None] >= travel_minutes[:, None, :]  # (D, S, S'): s' is s or upstream of it
    behind = jnp.einsum("bud,dsu->bsd", seen.astype(jnp.float32), jnp.asarray(at_or_above, jnp.float32)) > 0
    ahead = (np.arange(horizon) + 1) * data.step_minutes
    entered = travel_minutes <= ahead[:, None, None]  # (F, D, S)
    expected = plan_at(plan_known, entry_rows(travel_minutes, horizon, data.step_minutes)) & entered[:, None]
    return {
        "planned": jnp.where(plan_known, plan, jnp.nan),
        "known_share": share,
        "grounded": behind[:, None] | expected.transpose(1, 0, 3, 2),
    }


def table(data: DataConfig, statistics: Statistics, dataset: Dataset, forecast: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """One row per forecast, direction, station and minute ahead, in this order.

    issued_at, target_time (ISO, local with offset), minutes_ahead, service_date, station, direction, headway_minutes (age_minutes),
    lower_minutes, upper_minutes (80 % interval, where the head has one), planned_minutes (the plan at the entry in that minute),
    advected_minutes, known_share; under a changed plan own_plan_minutes and change_minutes. An array without times has row (its last
    input row) in place of the times. Rows that rest on nothing known are left out; stderr says how many.
    """
    value = np.moveaxis(np.asarray(forecast["value"]), (1, 2, 3), (3, 2, 1))  # (B, D, S, F)
    shape, horizon = value.shape, value.shape[-1]
    kept = np.moveaxis(np.asarray(forecast["grounded"]), (1, 2, 3), (3, 2, 1)).ravel()
    ahead = data.step_minutes * np.arange(1, horizon + 1)

    def cells(name: str) -> np.ndarray:
        return np.moveaxis(np.asarray(forecast[name]), (1, 2, 3), (3, 2, 1)).ravel()

    def along(values: np.ndarray, *axes: int) -> np.ndarray:
        return np.broadcast_to(np.expand_dims(values, [a for a in range(4) if a not in axes]), shape).ravel()

    columns = _times(data, dataset, ahead, along)
    columns |= {"station": along(statistics["stations"], 1, 2), "direction": along(statistics["directions"], 1)}
    columns[f"{data.target}_minutes"] = value.ravel()
    columns |= {f"{name}_minutes": cells(name) for name in ("lower", "upper") if name in forecast}
    columns["planned_minutes"] = along(np.moveaxis(np.asarray(forecast["planned"]), 1, 2), 0, 1, 3)
    columns["advected_minutes"] = cells("advected")
    columns["known_share"] = along(np.moveaxis(np.asarray(forecast["known_share"]), 1, 2), 0, 1, 2)
    if "own_plan" in forecast:
        own = cells("own_plan")
        columns |= {"own_plan_minutes": own, "change_minutes": columns[f"{data.target}_minutes"] - own}
    if not kept.all():
        print(f"note: {int((~kept).sum()):,} of {kept.size:,} rows are left out: nothing was known at the place, upstream of it or in "
              "the plan", file=sys.stderr)  # fmt: skip
    return {name: column[kept] for name, column in columns.items()}


def _times(data: DataConfig, dataset: Dataset, ahead: np.ndarray, along: Any) -> dict[str, np.ndarray]:
    """The columns that say when: issued at the end of the last input row, true at the end of the target row."""
    last = dataset.index[:, 0] + data.lookback - 1
    time = np.asarray(dataset.arrays["time"])
    if time[0] == 0:  # fictive: the array has no start
        return {"row": along(last, 0), "minutes_ahead": along(ahead, 3)}
    issued = time[last] + data.step_seconds  # (B,) epoch seconds
    target = issued[:, None] + 60 * ahead
    dates = local_dates(target.ravel() - data.step_seconds, data.timezone, data.day_start_minutes).astype(np.str_)
    return {
        "issued_at": along(_local(issued, data.timezone), 0),
        "target_time": along(_local(target, data.timezone), 0, 3),
        "minutes_ahead": along(ahead, 3),
        "service_date": along(dates.reshape(target.shape), 0, 3),
    }


def _local(seconds: np.ndarray, timezone: str) -> np.ndarray:
    """ISO texts with offset."""
    unique, where = np.unique(seconds, return_inverse=True)
    return np.array([show_local(float(second), timezone) for second in unique])[where].reshape(seconds.shape)
