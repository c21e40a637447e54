"""The reference forecasts of a batch, in file units: nothing here has learned more than training quantiles.

Letters: B windows, k past steps, tau future steps, R targets, Q levels.
"""

import jax
import jax.numpy as jnp

from jaxtrain.data.dataset import Batch
from jaxtrain.data.fleet_config import DataConfig
from jaxtrain.tasks.task import Forecast
from jaxtrain.tasks.tft_inputs import known_past, newest
from jaxtrain.tasks.tft_scores import median_of

NAMED_SEASONS = {86400: "day", 604800: "week"}


def season_names(data: DataConfig) -> tuple[str, ...]:
    """ "day" and "week" where the season is one, else its hours ("12h")."""
    seconds = [steps * data.step_seconds for steps in data.season_steps]
    return tuple(NAMED_SEASONS.get(s, f"{s / 3600:g}h") for s in seconds)


def forecasts(data: DataConfig, levels: tuple[float, ...], batch: Batch) -> dict[str, Forecast]:
    """last (newest known value), one per season (the value a day, a week earlier), both as median (B, tau, R); window (quantiles
    of the past k steps) and train (the group's training quantiles) as quantiles (B, tau, R, Q).

    Where a reference knows nothing, the next simpler one speaks: season -> last -> train, window -> train. So all of them are
    scored on the same cells. Seasons and train need the arrays `season` and `train_quantiles`, which only evaluation batches have.
    """
    if "train_quantiles" not in batch:
        return {}
    count, horizon = len(data.targets), data.horizon_steps
    train = jnp.asarray(batch["train_quantiles"], jnp.float32)
    past, known = known_past(batch, count)
    any_known = known.any(1)  # (B, R)
    last = jnp.where(any_known, newest(past, known), train[..., median_of(levels)])

    def along(values: jax.Array) -> jax.Array:
        return jnp.broadcast_to(values[:, None], (len(values), horizon, *values.shape[1:]))

    found: dict[str, Forecast] = {"last": {"median": along(last)}}
    for place, name in enumerate(season_names(data)):
        earlier = jnp.asarray(batch["season"][..., place], jnp.float32)
        found[name] = {"median": jnp.where(jnp.isfinite(earlier), earlier, last[:, None])}
    window = jnp.moveaxis(jnp.nanquantile(jnp.where(known, past, jnp.nan), jnp.asarray(levels), axis=1), 0, -1)
    found["window"] = {"quantiles": along(jnp.where(any_known[..., None], window, train))}
    found["train"] = {"quantiles": along(train)}
    return found
