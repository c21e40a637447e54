"""Linear maps, layer norms and GELU as a network with `Seeds` builds them: initial values cost one key and little compilation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.draws import Draws
from jaxtrain.nn.linear import Linear

EPSILON = 1e-5  # of every layer norm
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


def layer_norm(width: int, seeds: Seeds, dtype: Any) -> nnx.LayerNorm:
    """Moments in float32, result in `dtype`."""
    return nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=_as_rngs(seeds))


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU; jax.nn.gelu writes it with erfc, which costs twice as much on CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _initializer(init: Callable[[Draws, Sequence[int]], jax.Array]) -> Any:
    return lambda draws, shape, dtype=jnp.float32, *_, **__: init(draws, shape).astype(dtype)


def _as_rngs(seeds: Seeds) -> Any:
    """Layers of nnx hand what `params()` gives to their initialiser, and ours take it."""
    return seeds
