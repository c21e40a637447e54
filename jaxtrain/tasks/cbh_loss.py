"""The objective: losses per window on standardised heights, and hard mining over a batch.

e = y - y_hat is the truth less the forecast, in standard deviations of the training heights: e > 0 is a forecast that is too low.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxtrain.engine.config import nearest
from jaxtrain.errors import UserError

KINDS = ("huber", "mse_mae", "mae", "huber_mae", "weighted_huber", "weighted_huber_mae")


@dataclass(frozen=True)
class LossConfig:
    kind: str  # one of KINDS
    alpha: float  # share of the first term of a mixed loss
    delta: float  # Huber's corner
    gamma: float  # exponent of the second term of huber_mae
    under_weight: float  # factor on Huber where e > 0, weighted_huber alone
    hard_fraction: float  # share of a batch that counts hard_weight times, 0 = none
    hard_weight: float
    decay_all: bool  # weight decay on biases and norms too, not on kernels alone

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"config.loss.kind: {self.kind!r} is not supported{nearest(self.kind, KINDS)}")
        for name, low, high in (("alpha", 0, 1), ("hard_fraction", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"config.loss.{name}: must lie in [{low}, {high}], got {getattr(self, name):g}")
        for name in ("delta", "under_weight", "hard_weight"):
            if getattr(self, name) <= 0:
                raise UserError(f"config.loss.{name}: must be more than 0, got {getattr(self, name):g}")
        if self.gamma < 1:
            raise UserError(f"config.loss.gamma: must be at least 1 (|e|^gamma has no slope at 0 below), got {self.gamma:g}")


def losses(config: LossConfig, y: jax.Array, forecast: jax.Array) -> jax.Array:
    """The loss of every window, of y and forecast (B,); not averaged.

    huber: e^2/2 up to |e| = delta, then delta (|e| - delta/2); mse_mae: alpha e^2 + (1 - alpha) |e|; mae: |e|;
    huber_mae: alpha huber + (1 - alpha) |e|^gamma; weighted_huber: huber, times under_weight where e > 0;
    weighted_huber_mae: huber_mae with the weighted Huber in it.
    """
    error = y - forecast
    size = jnp.abs(error)
    if config.kind == "mae":
        return size
    if config.kind == "mse_mae":
        return config.alpha * error**2 + (1 - config.alpha) * size
    huber = jnp.where(size <= config.delta, error**2 / 2, config.delta * (size - config.delta / 2))
    if config.kind.startswith("weighted"):
        huber = jnp.where(error > 0, config.under_weight, 1.0) * huber
    return config.alpha * huber + (1 - config.alpha) * size**config.gamma if config.kind.endswith("mae") else huber


def mined(values: jax.Array, mask: jax.Array, fraction: float, weight: float) -> jax.Array:
    """Losses (B,) under mask (B,), those of the int(B x fraction) largest valid ones times `weight`."""
    hard = int(len(values) * fraction)
    if not hard:
        return values
    valid = mask > 0
    # Chosen by position, not by value: of equal losses no more than `hard` count more.
    _, largest = jax.lax.top_k(jnp.where(valid, jax.lax.stop_gradient(values), -jnp.inf), hard)
    factor = jnp.ones(values.shape).at[largest].set(weight)
    return jnp.where(valid, factor, 1.0) * values


def average(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the valid rows; what stands under mask 0 is ignored, 0 where nothing is valid."""
    return jnp.where(mask > 0, values, 0.0).sum() / jnp.maximum(mask.sum(), 1.0)
