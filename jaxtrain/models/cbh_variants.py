"""The ablation floor: one convolutional network over the mean of the frames."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.models.cbh_head import XAVIER, output
from jaxtrain.nn.conv import Conv3x3, max_pool
from jaxtrain.nn.linear import Linear


class MeanFrame(nnx.Module):
    """Mean over the frames, three times convolution, ReLU and max-pool, mean over the map, two dense layers, one output.

    Without norm, dropout and angles, on purpose: (B, T, H, W, C) -> (B,) float32.
    """

    def __init__(self, config: Any, channels: int, *, dtype: Any, rngs: nnx.Rngs):
        maps, dense = (channels, *config.channels), (config.channels[-1], *config.dense)
        self.convs = nnx.List([Conv3x3(*sizes, dtype=dtype, rngs=rngs) for sizes in zip(maps, maps[1:], strict=False)])
        pairs = list(zip(dense, dense[1:], strict=False))
        self.dense = nnx.List([Linear(*sizes, kernel_init=XAVIER, dtype=dtype, rngs=rngs) for sizes in pairs])
        self.output = output(config, dense[-1], rngs)

    def __call__(self, frames: jax.Array) -> jax.Array:
        x = frames.astype(jnp.float32).mean(1)
        for conv in self.convs:
            x = max_pool(jax.nn.relu(conv(x)))
        x = x.astype(jnp.float32).mean((1, 2))
        for dense in self.dense:
            x = jax.nn.relu(dense(x))
        return self.output(x)[..., 0]
