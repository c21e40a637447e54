"""A 3 x 3 convolution of maps (N, H, W, C) and a max-pool, both in the form that XLA's CPU compiler runs fastest."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

FEW = 2  # input channels up to which nine shifted copies and one product beat a convolution on CPU (1.2 to 2.5 times, measured)
STRIP = 60_000  # pixels times channels, of input and output together, of a strip at most; a longer single row is a strip too
LAYOUT = ("NHWC", "HWIO", "NHWC")


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
    """(N, H, W, I) by (3, 3, I, O) -> (N, H, W, O), zeros beyond the edges.

    On CPU with a gradient of its own: inside a loop XLA's compiler knows no fast form of the usual ones (100 times slower, measured).
    """
    return _on_cpu(x, kernel) if jax.default_backend() == "cpu" else _convolution(x, kernel)


def _convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)


@jax.custom_batching.sequential_vmap
def _one_after_the_other(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One convolution; under `vmap` with a kernel each as many, which together would be one in groups: slower than all of them."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=LAYOUT)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    inputs, outputs = kernel.shape[2:]
    if inputs > FEW:
        return _one_after_the_other(x, kernel)
    return (_neighbours(_padded(x)) @ kernel.reshape(9 * inputs, outputs)).reshape(*x.shape[:-1], outputs)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel), (x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    return _product(dy, kernel[::-1, ::-1].swapaxes(2, 3)), kernel_gradient(x, dy).astype(kernel.dtype)


def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """(3, 3, I, O): what x (N, H, W, I) and the outputs' gradient dy (N, H, W, O) say of the kernel."""
    inputs, outputs = x.shape[-1], dy.shape[-1]
    if inputs <= FEW:
        return (_neighbours(_padded(x)).T @ dy.reshape(-1, outputs)).reshape(3, 3, inputs, outputs)
    return _by_strips(x, dy)


def _by_strips(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The kernel's gradient as a sum over strips, whole examples or rows of one, each a product of what stays in the cache.

    Three rows of x side by side, times three columns of dy side by side, have all nine shifts: six copies instead of nine.
    """
    examples, height, width, inputs = x.shape
    outputs = dy.shape[-1]
    pixels = STRIP // (inputs + outputs)
    rows = _divisor(height, pixels // width)
    count = _divisor(examples, pixels // (height * width)) if rows == height else 1
    # Each part is a copy of its own: a copy that is made value by value inside another loop takes several times as long.
    alone = jax.lax.optimization_barrier

    def add(total: jax.Array, strip: jax.Array) -> tuple[jax.Array, None]:
        example, row = strip // (height // rows) * count, strip % (height // rows) * rows

        def part(maps: jax.Array, row: jax.Array, rows: int) -> jax.Array:
            return jax.lax.dynamic_slice(maps, (example, row, 0, 0), (count, rows, *maps.shape[2:]))

        # Rows from the neighbouring strips, not a padded copy of x: padding whole maps takes as long as their product.
        above = jnp.where(row > 0, part(x, jnp.maximum(row - 1, 0), 1), 0)
        below = jnp.where(row + rows < height, part(x, jnp.minimum(row + rows, height - 1), 1), 0)
        tall = alone(jnp.concatenate([above, part(x, row, rows), below], axis=1))
        wide = alone(jnp.pad(part(dy, row, rows), ((0, 0), (0, 0), (1, 1), (0, 0))))
        over = alone(jnp.concatenate([tall[:, i : i + rows] for i in range(3)], axis=-1)).reshape(-1, 3 * inputs)
        beside = alone(jnp.concatenate([wide[:, :, 2 - j : 2 - j + width] for j in range(3)], axis=-1)).reshape(-1, 3 * outputs)
        return total + jnp.matmul(over.T, beside, preferred_element_type=jnp.float32), None

    strips = examples // count * (height // rows)
    total, _ = jax.lax.scan(add, jnp.zeros((3 * inputs, 3 * outputs)), jnp.arange(strips))
    return total.reshape(3, inputs, 3, outputs).transpose(0, 2, 1, 3)


def _divisor(of: int, most: int) -> int:
    """The largest divisor up to `most`, or 1."""
    return max(count for count in range(1, of + 1) if of % count == 0 and (count == 1 or count <= most))


_on_cpu = jax.custom_vjp(_product)
_on_cpu.defvjp(_forward, _backward)


def _padded(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _neighbours(padded: jax.Array) -> jax.Array:
    """All 3 x 3 windows of padded maps (N, H + 2, W + 2, I), each as one row: (N H W, 9 I)."""
    height, width, inputs = padded.shape[1] - 2, padded.shape[2] - 2, padded.shape[3]
    if inputs <= FEW:  # neighbours in a row, then rows: fewer pieces to copy (a third of the time; with more channels three times slower)
        row = jnp.concatenate([padded[:, :, j : j + width] for j in range(3)], axis=-1)
        parts = [row[:, i : i + height] for i in range(3)]
    else:
        parts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(parts, axis=-1).reshape(-1, 9 * inputs)


def max_pool(x: jax.Array) -> jax.Array:
    """Maximum of 2 x 2 blocks: (N, H, W, C) -> (N, H // 2, W // 2, C); an odd last row or column is left out.

    The maximum of four strided slices is seven times faster than `reduce_window` with its gradient on CPU (measured).
    """
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    corners = [x[:, i:height:2, j:width:2] for i in range(2) for j in range(2)]
    return jnp.maximum(jnp.maximum(corners[0], corners[1]), jnp.maximum(corners[2], corners[3]))
