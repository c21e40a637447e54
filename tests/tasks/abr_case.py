"""The evoked-response task on a small synthetic clinic, and a network that says what it is told."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.data.dataset import Dataset, Splits
from jaxtrain.engine import config as configs
from jaxtrain.models import abr as network
from jaxtrain.tasks.abr import Task, make_task

CONFIG = Path(__file__).parents[2] / "configs" / "abr.py"
COUNT = 12  # records of a batch; the last one is padding


def sections(preset: str = "smoke", **overrides: str) -> dict[str, Any]:
    return configs.task_sections(configs.load(f"{CONFIG}:{preset}", {k.replace("__", "."): v for k, v in overrides.items()}))


@functools.cache
def splits(preset: str = "smoke") -> Splits:
    return make_task(sections(preset)).splits()


def task(preset: str = "smoke", **overrides: str) -> Task:
    """The preset with the statistics of its training patients."""
    return make_task(sections(preset, **overrides), splits(preset).statistics)


def batch(dataset: Dataset | None = None, count: int = COUNT) -> dict[str, Any]:
    """Records spread over a split (test); one has no label, no reader's word and no threshold, the last is padding."""
    chosen = splits().test if dataset is None else dataset
    rows = chosen.index[:: len(chosen) // count][:count]
    found = {**chosen.gather(chosen.arrays, rows), "mask": np.ones(count, np.float32)}
    found["mask"][-1] = 0
    found["label"] = np.where(np.arange(count) == 3, -1, np.arange(count) % 5).astype(np.int32)
    for name in ("present_ok", "peak_ok", "threshold_ok"):
        found[name] = found[name] & (np.arange(count) != 3)
    return found


class Told(network.Network):
    """Answers every batch with the same arrays, as the network would put them."""

    def __init__(self, **said: Any):
        self.said = nnx.Dict({name: nnx.Param(jnp.asarray(value, jnp.float32)) for name, value in said.items()})

    def __call__(self, inputs: Any, rngs: Any = None) -> dict[str, jax.Array]:
        return {name: value[...] for name, value in self.said.items()}


def numbers(seed: int = 0, count: int = COUNT) -> dict[str, np.ndarray]:
    """What a network of all heads could say."""
    rng = np.random.default_rng(seed)
    names = ("existence", "amplitude_z", "threshold_z")
    said = {name: rng.normal(0, 1.5, count) for name in names}
    said |= {f"{name}_ln_sd": rng.normal(-0.5, 0.4, count) for name in ("latency", "amplitude", "threshold")}
    said |= {"signal": rng.normal(0, 1, (count, 200)), "class_logits": rng.normal(0, 2, (count, 5)), "latency_ms": rng.uniform(5, 9, count)}
    return {name: value.astype(np.float32) for name, value in said.items()}


def host(sums: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float64) for name, value in sums.items()}
