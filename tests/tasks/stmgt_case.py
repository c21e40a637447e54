"""The traffic task on its embedded network, shrunk; one model trained for a few steps, and its forecasts of five windows."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from jaxtrain.data.dataset import Dataset, Splits
from jaxtrain.engine import config as configs
from jaxtrain.tasks.stmgt import Task, make_task

CONFIG = Path(__file__).parents[2] / "configs" / "stmgt.py"


def sections(preset: str = "smoke", **overrides: str) -> dict[str, Any]:
    return configs.task_sections(configs.load(f"{CONFIG}:{preset}", {k.replace("__", "."): v for k, v in overrides.items()}))


@functools.cache
def splits() -> Splits:
    return make_task(sections()).splits()


def task(preset: str = "smoke", **overrides: str) -> Task:
    """The smoke preset with the statistics of its training days."""
    return make_task(sections(preset, **overrides), splits().statistics)


def windows() -> Dataset:
    """Five windows of the test split, spread over it."""
    test = splits().test
    return Dataset(test.arrays, test.index[:: len(test) // 5][:5], test.gather)


def batch() -> dict[str, Any]:
    """Those five windows, none of them padding."""
    dataset = windows()
    return {**dataset.gather(dataset.arrays, dataset.index), "mask": np.ones(5, np.float32)}


class Trained:
    """Sixty steps are enough for forecasts that are no longer the initial ones."""

    def __init__(self, task: Task, splits: Splits, steps: int = 60):
        model = task.build(nnx.Rngs(0))
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        transform = optax.adam(3e-3)

        @jax.jit
        def step(params, state, batch, key):
            def objective(params):
                return task.loss(nnx.merge(graph, params, rest), batch, nnx.Rngs(key))

            (value, logs), gradient = jax.value_and_grad(objective, has_aux=True)(params)
            updates, state = transform.update(gradient, state)
            return optax.apply_updates(params, updates), state, value, gradient

        state, order = transform.init(params), np.random.default_rng(0)
        self.losses = []
        for number in range(steps):
            rows = splits.train.index[order.integers(0, len(splits.train), 8)]
            batch = {**splits.train.gather(splits.train.arrays, rows), "mask": np.ones(8, np.float32)}
            params, state, value, self.gradient = step(params, state, batch, jax.random.key(number))
            self.losses.append(float(value))
        self.model = nnx.view(nnx.merge(graph, params, rest), deterministic=True)
        graph, state = nnx.split(self.model)
        self.score = jax.jit(lambda batch: task.score(nnx.merge(graph, state), batch))
        self.predict = jax.jit(lambda batch: task.predict(nnx.merge(graph, state), batch))


@functools.cache
def trained() -> Trained:
    return Trained(task(), splits())


@functools.cache
def forecast() -> dict[str, np.ndarray]:
    return {k: np.asarray(v) for k, v in trained().predict(batch()).items()}


def host(sums: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float64) for name, value in sums.items()}


def observed(batch: dict[str, Any]) -> np.ndarray:
    """(B, P, N) bool: observed targets of real examples."""
    return np.asarray(batch["target_mask"]) * np.asarray(batch["mask"])[:, None, None] > 0
