"""The reference forecasts of a batch, in minutes: nothing here has learned more than means and running times.

Letters as in `convlstm`: B windows, F target rows, S stations, D directions.
"""

import jax
import jax.numpy as jnp

from jaxtrain.data.dataset import Batch, Statistics
from jaxtrain.data.headway_config import DataConfig
from jaxtrain.models import convlstm_naive as reference
from jaxtrain.tasks.convlstm_inputs import dated


def forecasts(data: DataConfig, statistics: Statistics, batch: Batch) -> dict[str, jax.Array]:
    """{name: (B, F, S, D) minutes within [0, cap]}, of as many target rows as the batch has.

    mean (of all training cells), clock (training mean of day type, hour and place), hold (the place's newest known value), advected
    (the newest known value where the train that will be here is now; its entry's for trains to come), advected_planned (for those
    the plan). Ages have dead_reckoning and dead_reckoning_planned in their place.
    """
    shape = (*batch["planned"].shape[:2], *statistics["place_mean"].shape)
    clock = jnp.asarray(statistics["clock_mean"])
    minute = batch["when"][:, 1, None] + data.step_minutes * jnp.arange(shape[1])
    moved = "advected" if data.target == "headway" else "dead_reckoning"
    found = {
        "mean": jnp.broadcast_to(jnp.asarray(statistics["mean"]), shape),
        "clock": clock[batch["when"][:, 0, None], minute // 60 % clock.shape[1]],
        "hold": hold(data, statistics, batch),
        moved: advected(data, statistics, batch, planned=False),
        f"{moved}_planned": advected(data, statistics, batch, planned=True),
    }
    return {name: jnp.clip(value, 0, data.cap_minutes) for name, value in found.items()}


def hold(data: DataConfig, statistics: Statistics, batch: Batch) -> jax.Array:
    """(B, F, S, D) the newest known value of every place, its training mean where there is none."""
    history, known = jnp.asarray(batch[data.target], jnp.float32), jnp.asarray(batch[f"{data.target}_known"], bool)
    return reference.hold(history, known, jnp.asarray(statistics["place_mean"]), batch["planned"].shape[1])


def advected(data: DataConfig, statistics: Statistics, batch: Batch, *, planned: bool) -> jax.Array:
    """(B, F, S, D) values that move with the trains; of ages where the trains will be. planned: trains to come follow the plan."""
    history, place, travel = dated(data, batch), jnp.asarray(statistics["place_mean"]), statistics["travel_minutes"]
    plan, step = (jnp.asarray(batch["planned"]), jnp.asarray(batch["planned_known"], bool)), data.step_minutes
    if data.target == "age":
        found = reference.dead_reckoning(*history, *plan, place, travel, step, use_plan=planned)
    elif planned:
        found = reference.advected_planned(*history, *plan, place, travel, step)
    else:
        found = reference.advected(*history, place, travel, plan[0].shape[1], step)
    return jnp.clip(found, 0, data.cap_minutes)
