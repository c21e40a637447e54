"""The contract between the engine and a forecasting system: one frozen object with pure methods."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import jax
import numpy as np
from flax import nnx

from jaxtrain.data.dataset import Batch, Dataset, Splits, Statistics
from jaxtrain.errors import UserError

Sums = dict[str, Any]  # additive masked sums, float32 on the device, float64 once they are on the host
Forecast = dict[str, Any]  # arrays in physical units, batch first


@dataclass(frozen=True)
class Group:
    """Parameters whose path ("blocks/0/spatial/beta") matches `pattern` (re.search); the first match counts."""

    pattern: str
    learning_rate: float = 1.0  # multiplies the schedule; 0 freezes
    weight_decay: bool = True


@dataclass(frozen=True)
class Fold:
    """One run of a validation: an ordinary run with some keys changed, so that it resumes, scores and serves like any other."""

    name: str  # of its run folder
    changes: Mapping[str, Any]  # {"data.fold": 2}: dotted keys of the config and their values


@dataclass(frozen=True)
class Task(abc.ABC):
    """One forecasting system: data + model + loss + scores + figures.

    config:     the run's resolved config sections (a task reads its own: data, model, loss, ...)
    statistics: what the training split taught (`Splits.statistics`, then `calibrate`'s result); saved in
                the run folder, so that a finished run predicts without its training data. Empty until known.
    """

    config: Any
    statistics: Statistics = field(default_factory=dict)

    # What early stopping and the best checkpoint watch; `train.monitor` may name another score.
    monitor = ("valid/mae", "min")
    # Scores shown in the printed tables, in this order; all of them are in `summary.json`.
    headline: tuple[str, ...] = ("mae",)

    def with_statistics(self, statistics: Statistics) -> Self:
        """This task, knowing these statistics as well."""
        return replace(self, statistics={**self.statistics, **statistics})

    # Data, on the host ---------------------------------------------------------------------------------

    @abc.abstractmethod
    def splits(self) -> Splits:
        """Real files when config.data.path is set, else the embedded default. Needs no statistics."""

    fold_kinds: ClassVar[Mapping[str, str]] = {}  # kind of validation -> value of `data.split`; the data also read data.folds, data.fold

    def folds(self, kind: str, n: int | None) -> list[Fold]:
        """The runs of `walk_forward` (rolling origin), `blocked` (blocks with gaps) or `leave_one_out` (one group each).

        n: how many; None for the usual number. Every fold computes its statistics anew. Raises UserError for a kind that
        this system does not have.
        """
        if kind not in self.fold_kinds:
            raise UserError(f"--folds {kind}: this system has {', '.join(self.fold_kinds) or 'no folds'}")
        n = self.fold_count(kind) if n is None else n
        keys = {"data.split": self.fold_kinds[kind], "data.folds": n}
        return [Fold(f"fold-{i + 1:0{len(str(n))}d}", {**keys, "data.fold": i}) for i in range(n)]

    def fold_count(self, kind: str) -> int:
        """The usual number of folds of a kind."""
        return 5

    # Model and objective, inside jit -------------------------------------------------------------------

    @abc.abstractmethod
    def build(self, rngs: nnx.Rngs, dtype: Any) -> nnx.Module:
        """The network: float32 parameters, computing in `dtype`. Constants live in non-Param variables."""

    @abc.abstractmethod
    def loss(self, model: nnx.Module, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(scalar training objective, {name: scalar to log}); honours batch["mask"] (B,).

        `weight` among the logged scalars is the objective's denominator (for example the number of observed
        targets): gradient accumulation then equals the undivided batch exactly. Augmentation draws from rngs.
        """

    @abc.abstractmethod
    def score(self, model: nnx.Module, batch: Batch) -> Sums:
        """Additive masked sums of the model's forecast, float32, physical units (per horizon, per target)."""

    def naive(self, batch: Batch) -> dict[str, Forecast]:
        """The reference forecasts of the same examples, by name."""
        return {}

    def score_forecast(self, forecast: Forecast, batch: Batch) -> Sums:
        """The sums of `score` that a forecast without a model allows (naive forecasts, oracle)."""
        raise NotImplementedError

    def predict(self, model: nnx.Module, batch: Batch) -> Forecast:
        """Physical units, with uncertainty where the model has it. The batch may lack targets; a task may add options."""
        raise NotImplementedError

    signature: tuple[str, ...] = ()  # names of the arrays that `Run.predict` takes without a name

    def complete(self, batch: Batch) -> Batch:
        """Check arrays given by hand to `Run.predict` and add what follows from them. Raises UserError."""
        return batch

    # On the host ---------------------------------------------------------------------------------------

    @abc.abstractmethod
    def summarize(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scores from sums (float64), only those the sums allow: one division at the end."""

    def oracle(self, rows: np.ndarray) -> dict[str, Forecast] | None:
        """Embedded defaults only: what a forecaster that knew the generator would say for rows (B, k)."""
        return None

    skill_score = "mae"  # the score (lower is better) whose way from best naive to oracle is called skill

    def calibrate(self, sums: Mapping[str, np.ndarray]) -> Statistics:
        """Interval widths and the like from the validation split's sums; merged into the statistics."""
        return {}

    def inputs(self, path: str, options: Mapping[str, str]) -> Dataset:
        """What `predict` reads: the same readers and checks, no targets needed."""
        raise NotImplementedError

    def labelled(self, path: str, options: Mapping[str, str]) -> Dataset:
        """What `evaluate --input` reads: a file with targets that the run has never seen."""
        raise NotImplementedError

    def serving(self, options: Mapping[str, str]) -> dict[str, Any]:
        """The options of `predict` that these `--option key=value` of the command ask for."""
        return {}

    def table(self, dataset: Dataset, forecast: Mapping[str, np.ndarray], options: Mapping[str, str]) -> dict[str, np.ndarray]:
        """What `predict` writes: equally long columns, units in their names."""
        raise NotImplementedError

    def more_tables(
        self, dataset: Dataset, forecast: Mapping[str, np.ndarray], options: Mapping[str, str]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Further tables of `predict` by name, each a file beside the first: "weights" goes to OUTPUT.weights.parquet."""
        return {}

    def figures(
        self, predict: Callable[..., dict[str, np.ndarray]], dataset: Dataset, sums: Mapping[str, Mapping[str, np.ndarray]]
    ) -> dict[str, Any]:
        """{name: matplotlib figure}. predict: (rows (B, k), **options of `predict`) -> forecast plus the
        gathered batch, any B, on the host; sums: forecaster ("model", naive names, "oracle") -> sums over `dataset`."""
        return {}

    # Optional facts the engine uses --------------------------------------------------------------------

    def adapt(self, params: dict[str, Any], statistics: Statistics) -> dict[str, Any]:
        """Weights of another run (`init_from`; its statistics) made to fit this one: rows of tables by name, for example.

        params: "a/b/kernel" -> array. The engine compares the result leaf by leaf with this run's model.
        """
        return params

    def groups(self) -> tuple[Group, ...]:
        """Parameter groups. Without a match: learning rate x 1, and weight decay on leaves named `kernel`."""
        return ()

    def flops_per_example(self) -> float | None:
        """Analytic FLOPs of one training example, forward and backward (XLA counts a scan body once)."""
        return None
