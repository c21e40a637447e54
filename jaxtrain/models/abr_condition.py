"""The condition of every FiLM layer: patient and stimulus, and beside them the record's scale or the diffusion step."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.models.abr_config import CLASSES, STATICS, STEP_WIDTH, Config
from jaxtrain.nn.draws import Dice
from jaxtrain.nn.layers import Seeds, dense, gelu

NULL_SD = 0.02  # of the learned vectors at the start
Inputs = Mapping[str, jax.Array]


class Condition(nnx.Module):
    """(B, E) float32 from statics, statics_ok and, by objective, scale, or label and t (see `models.abr.Network`)."""

    def __init__(self, config: Config, seeds: Seeds):
        width = config.cond_width
        self.rate = config.film_dropout
        self.statics = Perceptron(2 * STATICS, width, seeds)
        self.null = nnx.Param(NULL_SD * seeds.params().normal((width,)))
        generate = config.objective == "generate"
        self.classes = nnx.Param(NULL_SD * seeds.params().normal((CLASSES + 1, width))) if generate else None
        self.always = Perceptron(STEP_WIDTH if generate else 2, width, seeds)

    def __call__(self, inputs: Inputs, draws: Dice = None) -> jax.Array:
        """Samples whose `null` is set, and in training a share drawn here, take the learned vector instead of statics and class."""
        known = inputs["statics_ok"]
        values = jnp.where(known, inputs["statics"], 0)
        e = self.statics(jnp.concatenate([values, known.astype(values.dtype)], axis=-1))
        if self.classes is not None:
            label = inputs["label"]
            label = jnp.where((label >= 0) & (label < CLASSES), label, CLASSES)
            e = e + jax.nn.one_hot(label, CLASSES + 1) @ self.classes[...]  # a product: its gradient is one too, not a scatter
            always = sinusoid(inputs["t"])
        else:
            always = inputs["scale"]
        e = jnp.where(self._null(inputs, draws)[:, None], self.null[...], e)
        return gelu(e + self.always(always))

    def _null(self, inputs: Inputs, draws: Dice) -> jax.Array:
        """Which samples go without condition: (B,) bool."""
        batch = len(inputs["statics"])
        null = inputs["null"] if "null" in inputs else jnp.zeros(batch, bool)
        if draws is None or self.rate == 0:
            return null
        return null | draws.bernoulli(self.rate, (batch,))


class Perceptron(nnx.Module):
    """Dense, GELU, Dense: (B, inputs) -> (B, width) float32."""

    def __init__(self, inputs: int, width: int, seeds: Seeds):
        self.inner, self.outer = dense(inputs, width, seeds), dense(width, width, seeds)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.outer(gelu(self.inner(x)))


def sinusoid(t: jax.Array) -> jax.Array:
    """(B,) -> (B, STEP_WIDTH): sines and cosines of t at wavelengths from 2 pi to 10,000 x 2 pi."""
    half = STEP_WIDTH // 2
    angle = t.astype(jnp.float32)[:, None] * jnp.exp(-math.log(10_000.0) / half * jnp.arange(half))
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
