"""Small networks and batches for the tests of `models.convlstm`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.models.convlstm import Config, Network, Sizes

DEFAULT: dict[str, Any] = dict(
    variant="seq2seq", hidden=32, kernel=(3, 1), activation="tanh", norm="none", dropout=0.0, place=8, readout="copy", upstream=10,
    head="point", levels=(0.1, 0.5, 0.9), remat="none", unroll=1, width=128, heads=4, blocks=3, attention_over="cells",
)  # fmt: skip
BASELINE = dict(variant="baseline", kernel=(3, 3), norm="batch", readout="plain", place=0)
SMALL = dict(hidden=4, upstream=2, place=3, width=8, heads=2, blocks=1)


def sizes(fields: int = 2, **changes: Any) -> Sizes:
    usual = dict(lookback=30, horizon=15, stations=66, directions=2, terminal=1, channels=2 * fields, fields=fields, target="headway",
                 cap_minutes=30.0, step_minutes=1.0, auxiliary=False)  # fmt: skip
    return Sizes(**{**usual, **changes})


def small_sizes(**changes: Any) -> Sizes:
    return sizes(**{"lookback": 6, "horizon": 4, "stations": 5, **changes})


def travel(sizes: Sizes) -> np.ndarray:
    """(D, S) minutes, another pace per direction."""
    return np.arange(sizes.stations) * np.linspace(1.2, 1.7, sizes.directions)[:, None]


def network(sizes: Sizes, dtype: Any = jnp.float32, **changes: Any) -> Network:
    return Network(Config(**{**DEFAULT, **changes}), sizes, travel(sizes), nnx.Rngs(0), dtype)


def evaluating(model: Network) -> Network:
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)


def batch(sizes: Sizes, examples: int = 2, seed: int = 0) -> dict[str, jax.Array]:
    """Random fields, a third of the cells unknown; the first field is the target."""
    r = np.random.default_rng(seed)
    fields = r.random((examples, sizes.lookback, sizes.stations, sizes.directions, sizes.channels), np.float32)
    known = r.random((*fields.shape[:-1], sizes.fields)) > 0.3
    fields[..., 0 : 2 * sizes.fields : 2] *= known
    fields[..., 1 : 2 * sizes.fields : 2] = known
    planned = r.random((examples, sizes.horizon, sizes.directions, sizes.terminal), np.float32)
    arrays = {
        "fields": fields, "target_history": fields[..., 0], "target_known": known[..., 0], "planned": planned,
        "planned_known": np.ones(planned.shape, bool), "fallback": r.random((sizes.stations, sizes.directions), np.float32),
    }  # fmt: skip
    return {name: jnp.asarray(value) for name, value in arrays.items()}
