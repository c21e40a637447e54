"""A 3 x 3 convolution of maps (N, H, W, C) and a max-pool, both in the form that XLA's CPU compiler runs fastest."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

FEW = 2  # input channels up to which nine shifted copies and one product beat a convolution on CPU (3 times, measured)


class Conv3x3(nnx.Module):
    """'Same' convolution, stride 1, with bias: (N, H, W, inputs) -> (N, H, W, outputs) in `dtype`.

    Starts with weights of variance 2 / (9 outputs) and biases uniform within 1 / sqrt(9 inputs).
    """

    def __init__(self, inputs: int, outputs: int, *, dtype: Any, rngs: nnx.Rngs):
        kernel = nnx.initializers.normal((2 / (9 * outputs)) ** 0.5)
        self.kernel = nnx.Param(kernel(rngs.params(), (3, 3, inputs, outputs)))
        self.bias = nnx.Param(uniform(rngs.params(), outputs, (9 * inputs) ** -0.5))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.unbiased(x) + self.bias[...].astype(self.dtype)

    def unbiased(self, x: jax.Array) -> jax.Array:
        """Without the bias, for whoever adds it later."""
        return convolve(x.astype(self.dtype), self.kernel[...].astype(self.dtype))


def uniform(key: jax.Array, count: int, limit: float) -> jax.Array:
    """(count,) uniform within +-limit."""
    return jax.random.uniform(key, (count,), minval=-limit, maxval=limit)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(N, H, W, I) by (3, 3, I, O) -> (N, H, W, O), zeros beyond the edges."""
    inputs, outputs = kernel.shape[2:]
    if jax.default_backend() == "cpu" and inputs <= FEW:
        flat = neighbourhoods(x).reshape(-1, 9 * inputs) @ kernel.reshape(9 * inputs, outputs)
        return flat.reshape(*x.shape[:-1], outputs)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def neighbourhoods(x: jax.Array) -> jax.Array:
    """(N, H, W, I) -> (N, H, W, 9 I): every pixel's 3 x 3 neighbours row by row, zeros beyond the edges."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=-1)


def max_pool(x: jax.Array) -> jax.Array:
    """Maximum of 2 x 2 blocks: (N, H, W, C) -> (N, H // 2, W // 2, C); an odd last row or column is left out.

    The maximum of four strided slices is seven times faster than `reduce_window` with its gradient on CPU (measured).
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    corners = [x[:, i:height:2, j:width:2] for i in range(2) for j in range(2)]
    return jnp.maximum(jnp.maximum(corners[0], corners[1]), jnp.maximum(corners[2], corners[3]))
