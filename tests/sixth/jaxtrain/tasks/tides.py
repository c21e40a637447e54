"""Tide levels: data, perceptron, masked squared error, error scores. Letters: B batch, T input steps, P output steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.data import tides as data
from jaxtrain.data.dataset import Batch, Dataset, Splits, Statistics
from jaxtrain.engine import metrics
from jaxtrain.engine.config import section
from jaxtrain.models import tides as network
from jaxtrain.tasks import task as contract
from jaxtrain.tasks.task import Forecast, Group, Sums


@dataclass(frozen=True)
class GroupsConfig:
    freeze: str  # pattern of parameters that stay as they are; "" = none


@dataclass(frozen=True)
class Config:
    data: data.DataConfig
    model: network.Config
    groups: GroupsConfig


SECTIONS = {"data": data.DataConfig, "model": network.Config, "groups": GroupsConfig}


def make_task(sections: Mapping[str, Any], statistics: Statistics) -> "Task":
    """The task of a run."""
    return Task(Config(**{name: section(cls, sections[name], name) for name, cls in SECTIONS.items()}), dict(statistics))


@dataclass(frozen=True)
class Task(contract.Task):
    config: Config
    headline: tuple[str, ...] = ("mae", "rmse")
    signature: tuple[str, ...] = ("level",)
    fold_kinds: ClassVar[Mapping[str, str]] = {"walk_forward": "walk_forward"}

    def splits(self) -> Splits:
        return data.splits(self.config.data)

    def build(self, rngs: nnx.Rngs, dtype: Any) -> nnx.Module:
        d = self.config.data
        return network.Perceptron(self.config.model, d.in_steps, d.out_steps, data.GAUGES, dtype=dtype, rngs=rngs)

    def loss(self, model: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, dict[str, jax.Array]]:
        forecast = model(self._normal(batch["level"]), rngs)
        mask = batch["target_mask"] * batch["mask"][:, None, None]
        weight = mask.sum()
        loss = (mask * (forecast - self._normal(batch["target"])) ** 2).sum() / jnp.maximum(weight, 1)
        return loss, {"weight": weight, "bias": (mask * forecast).sum() / jnp.maximum(weight, 1)}

    def score(self, model: Any, batch: Batch) -> Sums:
        return self.score_forecast(self.predict(model, batch), batch)

    def score_forecast(self, forecast: Forecast, batch: Batch) -> Sums:
        return metrics.error_sums(forecast["level"], batch["target"], batch["target_mask"] * batch["mask"][:, None, None])

    def naive(self, batch: Batch) -> dict[str, Forecast]:
        return {"last": {"level": batch["level"][:, -1:].repeat(self.config.data.out_steps, 1)}}

    def predict(self, model: Any, batch: Batch) -> Forecast:
        return {"level": model(self._normal(batch["level"])) * self.statistics["std"] + self.statistics["mean"]}

    def summarize(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        return metrics.error_scores(sums)

    def calibrate(self, sums: Mapping[str, np.ndarray]) -> Statistics:
        return {"spread": np.sqrt(sums["sq"] / sums["n"])}

    def inputs(self, path: str, options: Mapping[str, str]) -> Dataset:
        return data.inputs(self.config.data, path, labelled=False)

    def labelled(self, path: str, options: Mapping[str, str]) -> Dataset:
        return data.inputs(self.config.data, path, labelled=True)

    def table(self, dataset: Dataset, forecast: Mapping[str, np.ndarray], options: Mapping[str, str]) -> dict[str, np.ndarray]:
        origin, step, gauge = np.indices(forecast["level"].shape)
        return {"origin": dataset.index[origin.ravel(), 0] + self.config.data.in_steps - 1, "step": step.ravel() + 1,
                "gauge": gauge.ravel(), "level_m": forecast["level"].ravel()}  # fmt: skip

    def figures(self, predict: Callable[[np.ndarray], dict[str, np.ndarray]], dataset: Dataset,
                sums: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:  # fmt: skip
        from matplotlib.figure import Figure

        figure = Figure()
        found = predict(dataset.index[:3])
        figure.subplots().plot(found["level"][0, :, 0])
        return {"first": figure}

    def groups(self) -> tuple[Group, ...]:
        return (Group(self.config.groups.freeze, learning_rate=0.0, weight_decay=False),) if self.config.groups.freeze else ()

    def flops_per_example(self) -> float | None:
        d, width = self.config.data, self.config.model.width
        return 6.0 * width * data.GAUGES * (d.in_steps + d.out_steps)

    def _normal(self, level: Any) -> Any:
        return (level - self.statistics["mean"]) / self.statistics["std"]
