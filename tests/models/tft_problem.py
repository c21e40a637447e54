"""Small networks and inputs for the tests of the Temporal Fusion Transformer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.models.tft import TFT, Config, Variable, Variables

DEFAULT: dict[str, Any] = dict(
    hidden=32, heads=4, dropout=0.1, unknown_dropout=0.05, quantiles=(0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98), attention="causal",
    anchor="none", lstm="auto", vsn="collapsed", remat="none", head="independent",
)  # fmt: skip
TINY: dict[str, Any] = dict(hidden=8, heads=2)
V = Variable
FLEET = Variables(
    static=(V("server", categories=48), V("profile", categories=7), V("cores"), V("level", 8)),
    observed=(V("status", categories=8), V("upstream_cpu_percent"), V("present")),
    known=(V("hour_of_day", 2), V("day_of_week", 2), V("is_weekend"), V("relative_step"), V("maintenance")),
    targets=tuple(V(name) for name in ("cpu_percent", "memory_percent", "disk_percent", "load_average")),
)
NO_STATIC = Variables((), FLEET.observed, FLEET.known, FLEET.targets)
ELECTRICITY = Variables((V("id", categories=369),), (), (V("hour"), V("weekday"), V("hours_since_start")), (V("load"),))
K, TAU = 6, 4


def config(**overrides: Any) -> Config:
    return Config(**{**DEFAULT, **overrides})


def build(variables: Variables = FLEET, k: int = K, tau: int = TAU, dtype: Any = jnp.float32, **overrides: Any) -> TFT:
    return TFT(config(**{**TINY, **overrides}), variables, k, tau, nnx.Rngs(0), dtype)


def parameters(model: nnx.Module) -> dict[str, Any]:
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def stir(model: TFT) -> TFT:
    """Every parameter away from its start: zeros and ones would hide mistakes."""
    for number, leaf in enumerate(parameters(model).values()):
        leaf[...] = leaf[...] + 0.2 * jax.random.normal(jax.random.key(number), leaf.shape)
    return model


def inputs(variables: Variables = FLEET, batch: int = 3, k: int = K, tau: int = TAU, seed: int = 1, padded: bool = True) -> dict[str, Any]:
    """Standard normal numbers, any category; without `past_mask` when not padded."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for name, width in variables.widths().items():
        shape = {"static": (batch,), "known": (batch, k + tau)}.get(name.split("_")[0], (batch, k))
        if name.endswith("_cat"):
            counts = [v.categories for v in getattr(variables, name.removesuffix("_cat")) if v.categories]
            made[name] = rng.integers(0, np.array(counts) + 1, (*shape, width)).astype(np.int32)
        else:
            made[name] = rng.normal(size=(*shape, width)).astype(np.float32)
    if padded:
        made["past_mask"] = np.arange(k) >= np.arange(batch)[:, None] * (k - 1) // max(1, batch - 1)
    return {name: value for name, value in made.items() if value.shape[-1]}
