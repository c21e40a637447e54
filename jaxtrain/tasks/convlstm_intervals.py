"""Intervals widened or narrowed around the forecast until they hold their share of the validation cells, minute ahead by minute ahead.

Split conformal calibration (Vovk et al. 2005; Romano et al. 2019) of a scaled score: the smallest factor of the half-widths that holds
the share. Letters: B windows, F target rows, S stations, D directions, Q levels, K factors tried.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.dataset import Batch
from jaxtrain.tasks.convlstm_scores import target_mask
from jaxtrain.tasks.task import Forecast, Sums

FACTORS = np.arange(0.30, 2.51, 0.02, dtype=np.float32)


def inside_sums(forecast: Forecast, batch: Batch) -> Sums:
    """{"interval/inside": (K, F), "interval/n": (F,)}: cells that the interval holds when its half-widths are multiplied."""
    y, mask, middle = jnp.asarray(batch["target"], jnp.float32), target_mask(batch), forecast["value"]
    above = y > middle
    width = jnp.where(above, forecast["upper"] - middle, middle - forecast["lower"])
    distance = jnp.where(mask > 0, jnp.abs(y - middle), 0.0)

    def held(factor: jax.Array) -> jax.Array:
        return jnp.where(distance <= factor * width, mask, 0.0).sum((0, 2, 3))

    return {"interval/inside": jax.lax.map(held, jnp.asarray(FACTORS)), "interval/n": mask.sum((0, 2, 3))}


def fitted(sums: Mapping[str, np.ndarray], share: float) -> np.ndarray:
    """(F,) float32: the smallest factor that holds `share` of each row's known cells (the largest tried if none does); 1 without cells."""
    n = np.asarray(sums["interval/n"], np.float64)
    enough = np.asarray(sums["interval/inside"], np.float64) >= share * n
    found = np.where(enough.any(0), FACTORS[enough.argmax(0)], FACTORS[-1])
    return np.where(n > 0, found, 1.0).astype(np.float32)


def scaled(forecast: Forecast, factor: np.ndarray, cap: float) -> Forecast:
    """The forecast with lower, upper, sigma and quantiles that far from its value, within [0, cap]; rows past F take the last factor."""
    value = forecast["value"]
    rows = np.concatenate([factor, np.full(max(0, value.shape[1] - len(factor)), factor[-1], np.float32)])[: value.shape[1], None, None]
    found = dict(forecast)
    for name in ("lower", "upper"):
        found[name] = jnp.clip(value + rows * (forecast[name] - value), 0, cap)
    if "quantiles" in forecast:
        middle = value[..., None]
        found["quantiles"] = jnp.clip(middle + rows[..., None] * (forecast["quantiles"] - middle), 0, cap)
    if "sigma" in forecast:
        found["sigma"] = rows * forecast["sigma"]
    return found
