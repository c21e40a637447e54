"""A small perceptron on the flattened window, added to the last level."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


@dataclass(frozen=True)
class Config:
    width: int
    dropout: float
    norm: bool


class Perceptron(nnx.Module):
    """level (B, T, C) -> forecast (B, P, C), both normalised."""

    def __init__(self, config: Config, in_steps: int, out_steps: int, channels: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        self.out_steps = out_steps
        self.inputs = nnx.Linear(in_steps * channels, config.width, dtype=dtype, rngs=rngs)
        # Statistics of a batch are taken in float32: they are sums over many examples.
        self.norm = nnx.BatchNorm(config.width, momentum=0.9, dtype=jnp.float32, rngs=rngs) if config.norm else None
        self.dropout = nnx.Dropout(config.dropout)
        self.output = nnx.Linear(config.width, out_steps * channels, dtype=dtype, rngs=rngs)

    def __call__(self, level: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        batch, _, channels = level.shape
        x = self.inputs(level.reshape(batch, -1))
        x = self.norm(x) if self.norm is not None else x
        x = self.dropout(jax.nn.relu(x), rngs=rngs)
        change = self.output(x).astype(jnp.float32).reshape(batch, self.out_steps, channels)
        return level[:, -1:] + change
