"""Linear maps, layer norms and GELU as a network with `Seeds` builds them: initial values cost one key and little compilation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.draws import Draws
from jaxtrain.nn.linear import Linear, row_sum
from jaxtrain.nn.stored import stored

EPSILON = 1e-5  # of every layer norm
NARROW = 64  # channels up to which sums over them are products on CPU
CUT = 2.0  # SDs
SD_OF_CUT = 0.87962566103423978  # of a standard normal cut at +-2


class Seeds:
    """What `nnx.Rngs` is to other layers: every call of `params` gives the `Draws` of another place."""

    def __init__(self, draws: Draws):
        self._draws, self._count = draws, 0

    def params(self) -> Draws:
        self._count += 1
        return self._draws.part(self._count)


def fan_in_normal(draws: Draws, shape: Sequence[int], scale: float = 1.0) -> jax.Array:
    """LeCun's initial kernel (..., outputs): SD scale / sqrt(fan-in), normal, cut at two of its SDs before scaling."""
    return scale / (SD_OF_CUT * math.sqrt(math.prod(shape[:-1]))) * draws.normal(shape, CUT)


def dense(
    inputs: int, outputs: int, seeds: Seeds, *, dtype: Any = None, bias: bool = True, scale: float = 1.0, sd: float | None = None
) -> Linear:
    """A linear map; its kernel starts with `fan_in_normal`, or as a normal of SD `sd`."""
    init = (lambda draws, shape: fan_in_normal(draws, shape, scale)) if sd is None else (lambda draws, shape: sd * draws.normal(shape))
    return Linear(inputs, outputs, use_bias=bias, kernel_init=_initializer(init), dtype=dtype, rngs=_as_rngs(seeds))


class LayerNorm(nnx.Module):
    """Layer norm over the last axis; moments in float32, result in `dtype`."""

    def __init__(self, width: int, dtype: Any):
        self.dtype = dtype
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        run = normalize_products if jax.default_backend() == "cpu" else normalize
        return run(x.astype(jnp.float32), self.scale[...], self.bias[...]).astype(self.dtype)


def normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """x (..., C) with mean 0 and variance 1 over C, times scale, plus bias, each (C,)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + EPSILON) * scale + bias


@jax.custom_vjp
def normalize_products(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """`normalize` with sums as products of matrices, forward and backward.

    XLA's CPU compiler sums a short last axis one number at a time; a product with a (C, C) matrix costs less up to C = NARROW
    (measured: at 16 and 64 channels the norm with its gradient adds nothing that can be measured, against as much as ten passes over
    memory). Sums over rows are those of `row_sum`.
    """
    return _normalize(x, scale, bias)[0]


def _normalize(x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, Any]:
    rows = x.reshape(-1, x.shape[-1])
    centred = rows - _mean(rows)
    inverse = jax.lax.rsqrt(_mean(centred * centred) + EPSILON)
    n = centred * inverse
    return (n * scale + bias).reshape(x.shape), (n, inverse, scale)


def _normalize_gradient(saved: Any, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    n, inverse, scale = saved
    rows = stored(g.reshape(-1, g.shape[-1]))
    h = rows * scale
    d_x = inverse * (h - _mean(h) - n * _mean(h * n))
    return d_x.reshape(g.shape), row_sum(rows * n), row_sum(rows)


normalize_products.defvjp(_normalize, _normalize_gradient)


def _mean(rows: jax.Array) -> jax.Array:
    """(R, C) -> the mean over C, (R, C) or (R, 1)."""
    width = rows.shape[-1]
    return rows @ jnp.full((width, width), 1 / width) if width <= NARROW else rows.mean(axis=-1, keepdims=True)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU; jax.nn.gelu writes it with erfc, which costs twice as much on CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _initializer(init: Callable[[Draws, Sequence[int]], jax.Array]) -> Any:
    return lambda draws, shape, dtype=jnp.float32, *_, **__: init(draws, shape).astype(dtype)


def _as_rngs(seeds: Seeds) -> Any:
    """Layers of nnx hand what `params()` gives to their initialiser, and ours take it."""
    return seeds
