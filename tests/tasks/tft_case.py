"""The fleet task on eight embedded servers, and a network that says what it is told."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.data.dataset import Dataset, Splits
from jaxtrain.engine import config as configs
from jaxtrain.models import tft as network
from jaxtrain.tasks import tft_inputs
from jaxtrain.tasks.tft import Task, make_task

CONFIG = Path(__file__).parents[2] / "configs" / "tft.py"
LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
TARGETS = ("cpu_percent", "memory_percent", "disk_percent", "load_average")
SERVERS = 8


def sections(preset: str = "smoke", **overrides: str) -> dict[str, Any]:
    return configs.task_sections(configs.load(f"{CONFIG}:{preset}", {k.replace("__", "."): v for k, v in overrides.items()}))


@functools.cache
def splits() -> Splits:
    return make_task(sections()).splits()


def task(**overrides: str) -> Task:
    """The smoke preset with the statistics of its training rows."""
    return make_task(sections(**overrides), splits().statistics)


def batch(dataset: Dataset | None = None, count: int = 6) -> dict[str, Any]:
    """Windows spread over a split (test)."""
    chosen = splits().test if dataset is None else dataset
    rows = chosen.index[:: len(chosen) // count][:count]
    return {**chosen.gather(chosen.arrays, rows), "mask": np.ones(count, np.float32)}


class Told(network.TFT):
    """Answers every batch with the same standardised quantiles z (B, tau, R, Q)."""

    def __init__(self, z: np.ndarray):
        self.z = nnx.Param(jnp.asarray(z, jnp.float32))

    def __call__(self, inputs: Any, rngs: Any = None) -> Any:
        return self.z[...]


@functools.cache
def _compiled_loss(overrides: tuple[tuple[str, str], ...]) -> Any:
    made = task(**dict(overrides))
    return jax.jit(jax.value_and_grad(lambda z, b: made.loss(Told(z), b, nnx.Rngs(0)), has_aux=True))


def loss(one: dict[str, Any], z: np.ndarray, **overrides: str) -> tuple[float, dict[str, float], np.ndarray]:
    """(loss, logs, gradient with respect to z) of a network that says z (6, 8, 4, 7)."""
    (value, logs), gradient = _compiled_loss(tuple(overrides.items()))(jnp.asarray(z, jnp.float32), one)
    return float(value), {name: float(v) for name, v in logs.items()}, np.asarray(gradient)


@functools.cache
def _compiled_units(overrides: tuple[tuple[str, str], ...]) -> Any:
    made = task(**dict(overrides))
    return jax.jit(lambda b: made._inputs(b)[0][:4])


def units(one: dict[str, Any], **overrides: str) -> tft_inputs.Units:
    return tft_inputs.Units(*_compiled_units(tuple(overrides.items()))(one), np.array([False, False, False, True]))


def host(sums: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float64) for name, value in sums.items()}


def pinball(quantiles: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(..., Q) rho of quantiles (..., Q)."""
    error = y[..., None] - quantiles
    return np.where(error > 0, np.array(LEVELS) * error, (np.array(LEVELS) - 1) * error)
