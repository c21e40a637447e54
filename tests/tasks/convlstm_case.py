"""The headway task on six embedded stations, and a network that says what it is told."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.data.dataset import Dataset, Splits
from jaxtrain.engine import config as configs
from jaxtrain.models import convlstm as network
from jaxtrain.tasks.convlstm import Task, make_task

CONFIG = Path(__file__).parents[2] / "configs" / "convlstm.py"
L, F, S, D = 10, 5, 6, 2
CAP = 30.0
COUNT = 6  # windows of a batch; the last one is padding


def sections(preset: str = "smoke", **overrides: str) -> dict[str, Any]:
    return configs.task_sections(configs.load(f"{CONFIG}:{preset}", {k.replace("__", "."): v for k, v in overrides.items()}))


@functools.cache
def splits() -> Splits:
    return make_task(sections()).splits()


def task(preset: str = "smoke", **overrides: str) -> Task:
    """The smoke preset with the statistics of its training days."""
    return make_task(sections(preset, **overrides), splits().statistics)


def batch(dataset: Dataset | None = None, count: int = COUNT) -> dict[str, Any]:
    """Windows spread over a split (test); a tenth of the target cells is unknown, the last example is padding."""
    chosen = splits().test if dataset is None else dataset
    rows = chosen.index[:: len(chosen) // count][:count]
    found = {**chosen.gather(chosen.arrays, rows), "mask": np.ones(count, np.float32)}
    found["mask"][-1] = 0
    found["target_known"] = found["target_known"] & (np.random.default_rng(0).random(found["target"].shape) > 0.1)
    return found


def counted(one: dict[str, Any]) -> np.ndarray:
    """(B, F, S, D) bool: known target cells of real examples."""
    return np.asarray(one["target_known"]) & (one["mask"][:, None, None, None] > 0)


class Told(network.Network):
    """Answers every batch with the same arrays, in units of the cap."""

    def __init__(self, **said: np.ndarray):
        self.said = nnx.Dict({name: nnx.Param(jnp.asarray(value, jnp.float32)) for name, value in said.items()})

    def __call__(self, inputs: Any, rngs: Any = None) -> dict[str, jax.Array]:
        return {name: value[...] for name, value in self.said.items()}


def numbers(seed: int = 0, count: int = COUNT) -> dict[str, np.ndarray]:
    """y around the cells' size and beyond [0, 1], sigma, rising quantiles, the other field."""
    rng = np.random.default_rng(seed)
    y = rng.normal(0.3, 0.3, (count, F, S, D))
    wide = rng.uniform(0.02, 0.2, (*y.shape, 2))
    quantiles = np.stack([y - wide[..., 0], y, y + wide[..., 1]], -1)
    return {"y": y, "sigma": wide[..., 0], "quantiles": quantiles, "other": rng.uniform(0, 1, y.shape)}


def host(sums: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float64) for name, value in sums.items()}
