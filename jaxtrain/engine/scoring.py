"""Scores over whole splits: every example exactly once, the model and the naive forecasts on the same examples."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import jax
import numpy as np

from jaxtrain.data.dataset import Dataset, padded_rows
from jaxtrain.engine import feed, steps
from jaxtrain.engine.sharding import Layout
from jaxtrain.engine.state import Params, Template
from jaxtrain.tasks.task import Forecast, Sums, Task

HostSums = dict[str, np.ndarray]
ORACLE_EXAMPLES = 160  # continuing a simulation from hundreds of origins is slow: an even sample is enough
IN_FLIGHT = 2  # batches dispatched ahead; more would only hold memory


@dataclass(frozen=True)
class Source:
    """A dataset where the run keeps it: `arrays` on the devices and rows travelling, or whole batches travelling."""

    dataset: Dataset
    arrays: Mapping[str, Any]
    placement: str
    batch: int
    layout: Layout

    @property
    def gather(self) -> Any:
        return self.dataset.gather if self.placement == "device" else None

    def batches(self) -> Iterable[Any]:
        """Padded batches on the devices."""
        part, parts = jax.process_index(), jax.process_count()
        for batch in feed.eval_batches(self.dataset, batch=self.batch, placement=self.placement, part=part, parts=parts):
            yield self.layout.put_local(batch, 0)

    def subset(self, every: int) -> "Source":
        """Every `every`-th example."""
        index = np.ascontiguousarray(self.dataset.index[::every])
        return replace(self, dataset=Dataset(self.dataset.arrays, index, self.dataset.gather))


@dataclass(frozen=True, eq=False)
class Scorer:
    """The compiled scoring programs of one task and model."""

    task: Task
    template: Template
    placement: str
    gather: Any
    layout: Layout

    @cached_property
    def _model(self) -> Callable[..., Sums]:
        return steps.score_call(self.task, self.template, self.gather, self.layout.replicated())

    @cached_property
    def _naive(self) -> Callable[..., dict[str, Sums]]:
        return steps.naive_call(self.task, self.gather, self.layout.replicated())

    @cached_property
    def _forecast(self) -> Callable[[Forecast, Any], Sums]:
        return steps.forecast_score_call(self.task)

    @cache  # noqa: B019 a scorer lives as long as its run
    def predict_call(self, **options: Any) -> Callable[..., Forecast]:
        """Compiled prediction with these options of the task."""
        return steps.predict_call(self.task, self.template, **options)

    def model(self, source: Source, params: Params, model_state: Params) -> HostSums:
        """Sums of the model over the whole dataset, float64."""
        return total(self._model(params, model_state, source.arrays, batch) for batch in source.batches())

    def naive(self, source: Source) -> dict[str, HostSums]:
        """Sums of every naive forecast over the whole dataset."""
        return nested_total(self._naive(source.arrays, batch) for batch in source.batches())

    def oracle_every(self, source: Source) -> int:
        """The oracle speaks for one of so many examples."""
        return max(1, -(-len(source.dataset) // ORACLE_EXAMPLES))

    def oracle(self, source: Source, params: Params, model_state: Params) -> dict[str, HostSums] | None:
        """Sums of model, naive forecasts and oracle on an even sample of the same examples; None without an oracle."""
        sample = source.subset(self.oracle_every(source))
        batches = []
        for rows, mask in padded_rows(sample.dataset.index, min(source.batch, 32)):
            forecasts = self.task.oracle(rows)
            if forecasts is None:
                return None
            batch = {**sample.dataset.gather(sample.dataset.arrays, rows), "mask": mask}
            batches.append({name: self._forecast(forecast, batch) for name, forecast in forecasts.items()})
        return {"model": self.model(sample, params, model_state), **self.naive(sample), **nested_total(batches)}

    def predict(self, dataset: Dataset, params: Params, model_state: Params, batch: int) -> Callable[..., dict[str, np.ndarray]]:
        """(rows (B, k), **options of the task's predict) -> forecast and gathered batch as NumPy arrays, for any B."""

        def run(rows: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
            call, parts = self.predict_call(**options), []
            for padded, mask in padded_rows(rows, batch):
                inputs = dict(dataset.gather(dataset.arrays, padded))
                forecast = jax.device_get(call(params, model_state, inputs))
                count = int(mask.sum())
                parts.append({k: np.asarray(v)[:count] for k, v in {**inputs, **forecast}.items()})
            return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

        return run


def total(results: Iterable[Sums]) -> HostSums:
    """Additive sums over batches in float64, a few batches in flight."""
    sums: HostSums = {}

    def add(result: Sums) -> None:
        for key, value in jax.device_get(result).items():
            sums[key] = sums.get(key, 0.0) + np.asarray(value, np.float64)

    waiting: deque[Sums] = deque()
    for result in results:
        waiting.append(result)
        if len(waiting) > IN_FLIGHT:
            add(waiting.popleft())
    for result in waiting:
        add(result)
    return sums


def nested_total(results: Iterable[Mapping[str, Sums]]) -> dict[str, HostSums]:
    """`total` for {name: sums}."""
    flat = total({(name, key): value for name, sums in result.items() for key, value in sums.items()} for result in results)  # type: ignore[misc]
    nested: dict[str, HostSums] = {}
    for (name, key), value in flat.items():  # type: ignore[misc]
        nested.setdefault(name, {})[key] = value
    return nested


def skill(task: Task, sums: Mapping[str, HostSums]) -> dict[str, float] | None:
    """How far the model is on the way from the best naive forecast (0) to the oracle (1), on the same examples."""
    scores = {name: task.summarize(s)[task.skill_score] for name, s in sums.items()}
    if "oracle" not in scores:
        return None
    naive = min(v for k, v in scores.items() if k not in ("model", "oracle"))
    return {
        "model": scores["model"],
        "naive": naive,
        "oracle": scores["oracle"],
        "skill": (naive - scores["model"]) / (naive - scores["oracle"]),
    }
