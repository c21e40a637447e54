"""Networks and batches for the tests of `models.cbh`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.models.cbh import Config, Network

REFERENCE: dict[str, Any] = dict(
    variant="attention", channels=(64, 128, 256), dense=(256, 128), film_hidden=256, intensity="frame", norm="batch", film="plain",
    sun="scaled", pool="mean", position=False, spatial_attention=True, temporal_attention=True, dropout=(0.25, 0.5, 0.3),
    output_init=(0.5, 0.1), frames="each", remat=True,
)  # fmt: skip
DEFAULT: dict[str, Any] = dict(
    variant="attention", channels=(32, 64, 128), dense=(128, 64), film_hidden=256, intensity="both", norm="group", film="identity",
    sun="vector", pool="nadir", position=True, spatial_attention=False, temporal_attention=True, dropout=(0.1, 0.2, 0.2),
    output_init=(0.01, 0.0), frames="together", remat=False,
)  # fmt: skip
SMALL: dict[str, Any] = dict(channels=(32, 64, 128), dense=(128, 64))
DEMO: dict[str, Any] = dict(channels=(16, 32, 64), dense=(64, 32))
TINY: dict[str, Any] = dict(channels=(8, 8, 16), dense=(16, 8), film_hidden=8)
NO_DROPOUT = dict(dropout=(0.0, 0.0, 0.0))


def network(base: dict[str, Any], seed: int = 0, window: int = 3, dtype: Any = jnp.float32, **changes: Any) -> Network:
    """A network whose every array is random, so that no part is at zero; drawn by NumPy, which compiles nothing."""
    model = abstract(base, window, dtype, **changes)
    r = np.random.default_rng(seed)
    state = nnx.state(model)
    for path, leaf in nnx.to_flat_state(state):
        center = 1 if path[-1] in ("scale", "var") else 0
        leaf.set_value(jnp.asarray(center + r.uniform(-0.5, 0.5, leaf.shape), jnp.float32))
    nnx.update(model, state)
    return model


def abstract(base: dict[str, Any], window: int = 3, dtype: Any = jnp.float32, **changes: Any) -> Network:
    """Shapes alone."""
    config = Config(**{**base, **changes})
    return nnx.eval_shape(lambda: Network(config, window, *inputs_of(config), nnx.Rngs(0), dtype))


def inputs_of(config: Config) -> tuple[int, int]:
    """Image channels and numbers for the sun."""
    return 2 if config.intensity == "both" else 1, 3 if config.sun == "vector" else 2


def evaluating(model: Network) -> Network:
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)


def parameters(model: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def batch(model: Network, windows: int = 3, height: int = 9, width: int = 10, seed: int = 0) -> dict[str, jax.Array]:
    r = np.random.default_rng(seed)
    frames, channels, sun = model.sizes
    arrays = {"frames": (windows, frames, height, width, channels), "sun": (windows, sun)}
    return {name: jnp.asarray(r.normal(size=shape), jnp.float32) for name, shape in arrays.items()}


def paths(state: Any) -> dict[str, jax.Array]:
    """{"a/0/kernel": array} of a module's state."""
    return {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}

