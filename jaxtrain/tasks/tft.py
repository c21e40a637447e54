"""Fleet metrics as quantiles: the Temporal Fusion Transformer, its loss, its scores and its tables.

Letters: B windows, k past steps, tau future steps, T = k + tau, R targets, Q quantile levels.
Batches and forecasts are in the units of the file; the network and the first part of the loss work in standardised ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.data import fleet, fleet_config, fleet_oracle
from jaxtrain.data.dataset import Batch, Dataset, Splits, Statistics
from jaxtrain.data.fleet_config import DataConfig, check_config
from jaxtrain.engine import config as configs
from jaxtrain.engine import metrics
from jaxtrain.engine.config import nearest
from jaxtrain.errors import UserError
from jaxtrain.models import tft as network
from jaxtrain.models.tft_config import flops_per_window
from jaxtrain.tasks import task as contract
from jaxtrain.tasks import tft_arrays, tft_combine, tft_inputs, tft_naive, tft_transfer
from jaxtrain.tasks import tft_scores as scores
from jaxtrain.tasks import tft_serving as serving
from jaxtrain.tasks.options import switch
from jaxtrain.tasks.task import Forecast, Sums

MEAN_FLOOR = 1e-6  # of the mean |y| that errors in units are divided by


@dataclass(frozen=True)
class LossConfig:
    units_weight: float  # share of the pinball loss in file units over the mean |y|, beside the standardised one
    target_weights: tuple[float, ...]  # one per target

    def __post_init__(self) -> None:
        if not 0 <= self.units_weight <= 1:
            raise UserError(f"config.loss.units_weight: must lie in [0, 1], got {self.units_weight:g}")
        if min(self.target_weights, default=0) < 0 or sum(self.target_weights) <= 0:
            raise UserError(f"config.loss.target_weights: weights of at least 0, not all 0, are needed, got {self.target_weights}")


@dataclass(frozen=True)
class ScoreConfig:
    steps: tuple[int, ...]  # horizon steps, from 1, with a column of their own
    combine: tuple[str, ...]  # targets whose forecasts are shifted towards the last value and the day before, as validation likes
    reference_median: tuple[str, ...]  # of these, those whose P50 is made of the last value and the day before alone


SECTIONS: dict[str, type] = {"data": DataConfig, "model": network.Config, "loss": LossConfig, "score": ScoreConfig}


@dataclass(frozen=True)
class Config:
    """The sections this task reads."""

    data: DataConfig
    model: network.Config
    loss: LossConfig
    score: ScoreConfig


def make_task(sections: Mapping[str, Any], statistics: Statistics | None = None) -> "Task":
    """The task of a run: `sections` maps every name of SECTIONS to its resolved values.

    Raises UserError for an unknown section or key, a value out of range, or keys that do not fit each other.
    """
    config = Config(**configs.sections(SECTIONS, sections))
    check_config(config.data)
    targets, weights, steps = config.data.targets, config.loss.target_weights, config.score.steps
    if len(weights) != len(targets):
        names = ", ".join(targets)
        raise UserError(f"config.loss.target_weights: {len(weights)} weights for {len(targets)} targets ({names}); give one each")
    wrong = [step for step in steps if not 1 <= step <= config.data.horizon_steps]
    if wrong:
        raise UserError(f"config.score.steps: {wrong[0]} is no step of the horizon, 1..{config.data.horizon_steps} (data.horizon_steps)")
    unknown = [name for name in config.score.combine if name not in targets]
    if unknown:
        raise UserError(f"config.score.combine: {unknown[0]!r} is not a target{nearest(unknown[0], targets)}")
    apart = [name for name in config.score.reference_median if name not in config.score.combine]
    if apart:
        raise UserError(f"config.score.reference_median: {apart[0]!r} is not in score.combine={config.score.combine}; add it there")
    season, context = config.data.season_steps[0], config.data.context_steps
    if config.score.combine and season > context:
        raise UserError(f"config.score.combine: needs the value data.season_steps={season} steps earlier, the network's past has "
                        f"data.context_steps={context}; lengthen it, or combine no target")  # fmt: skip
    headline = (*(f"qrisk_50/{name}" for name in targets), "qrisk_10", "qrisk_50", "qrisk_90", "coverage_80")
    return Task(config, dict(statistics or {}), headline=headline)


@dataclass(frozen=True)
class Task(contract.Task):
    """TFT. `statistics` is what `jaxtrain.data.fleet` computes from the training split."""

    config: Config
    signature: tuple[str, ...] = tft_arrays.SIGNATURE
    monitor = ("valid/qrisk_mean", "min")
    skill_score = "qrisk_50"
    fold_kinds: ClassVar[Mapping[str, str]] = {"walk_forward": "walk_forward", "blocked": "cross", "leave_one_out": "leave_out"}

    def fold_count(self, kind: str) -> int:
        """One group at a time is left out; else 5."""
        return len(fleet.group_names(self.config.data)) if kind == "leave_one_out" else super().fold_count(kind)

    @property
    def levels(self) -> tuple[float, ...]:
        return self.config.model.quantiles

    # Data ----------------------------------------------------------------------------------------------

    def splits(self) -> Splits:
        """Real files when data.path is set, else the embedded data."""
        return fleet.splits(self.config.data, self.levels)

    def inputs(self, path: str, options: Mapping[str, str]) -> Dataset:
        """Windows to forecast from. Options: at (time of the origin; default the step after a group's last measured target), every
        (an origin every so many steps), explain (yes: weights and attention as further tables)."""
        at, every = serving.origins(options, ("at", "every", "explain"))
        return serving.announced(fleet.inputs(self.config.data, self.statistics, path, at=at, every=every))

    def labelled(self, path: str, options: Mapping[str, str]) -> Dataset:
        """Windows of a file whose targets lie in it, an origin every data.eval_stride steps or every `every` (option)."""
        _, every = serving.origins(options, ("every",))
        return serving.announced(fleet.inputs(self.config.data, self.statistics, path, every=every, labelled=True))

    def oracle(self, rows: np.ndarray) -> dict[str, Forecast] | None:
        """Embedded fleet only: the generator continued from its true hidden state, for rows (B, 4)."""
        data = self.config.data
        if data.path or data.synthetic.kind != "fleet":
            return None
        return {"oracle": fleet_oracle.oracle(data, rows, self.levels)}

    # Model and objective -------------------------------------------------------------------------------

    def build(self, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> network.TFT:
        """The network for this run's variables, computing in `dtype`."""
        data = self.config.data
        return network.TFT(self.config.model, self._variables(), data.context_steps, data.horizon_steps, rngs, dtype)

    def _variables(self) -> network.Variables:
        return tft_inputs.variables(self.config.data, self.statistics)

    def loss(self, model: nnx.Module, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean over targets of (1 - units_weight) Z + units_weight U.

        Z: pinball loss of the standardised target, summed over levels, averaged over measured cells. U: the same in file units with
        the capped forecast, over the training mean of |y|; it weighs large servers as the score does. Logs Z and U per target.
        `weight` = measured cells, averaged over targets: a batch cut into parts then gives the undivided loss exactly when the
        targets are missing together, and else up to the differences of their shares.
        """
        assert isinstance(model, network.TFT)
        units, inputs = self._inputs(batch)
        z = model(inputs, rngs)
        y, mask = jnp.asarray(batch["target"], jnp.float32), scores.target_mask(batch)
        n = mask.sum((0, 1))  # (R,)

        def risk(quantiles: jax.Array, target: jax.Array) -> jax.Array:
            rho = metrics.pinball(quantiles, target, self.levels).sum(-1)
            return jnp.where(mask > 0, mask * rho, 0.0).sum((0, 1)) / jnp.maximum(n, 1.0)

        standard = risk(z, tft_inputs.standardise(units, y))
        typical = jnp.maximum(jnp.asarray(self.statistics["target_mean_abs"], jnp.float32), MEAN_FLOOR)
        physical = risk(tft_inputs.physical(units, z), y) / typical
        share, weights = self.config.loss.units_weight, np.array(self.config.loss.target_weights, np.float32)
        weights = weights / weights.sum()
        # Without weight the second part is only logged: 0 x gradient would still cost its backward pass.
        objective = (weights * ((1 - share) * standard + share * physical if share else standard)).sum()
        names = self.config.data.targets
        logs = {f"z/{name}": standard[r] for r, name in enumerate(names)} | {f"u/{name}": physical[r] for r, name in enumerate(names)}
        return objective, {**logs, "weight": (weights * n).sum()}

    def _inputs(self, batch: Batch) -> tuple[tft_inputs.Units, dict[str, jax.Array]]:
        units = tft_inputs.units(self.config.data, self.statistics, batch)
        return units, tft_inputs.model_inputs(self.config.data, self.statistics, batch, units)

    # Forecasts -----------------------------------------------------------------------------------------

    def naive(self, batch: Batch) -> dict[str, Forecast]:
        """last, day, week, window, train: see `tft_naive`."""
        return tft_naive.forecasts(self.config.data, self.levels, batch)

    def predict(self, model: nnx.Module, batch: Batch, explain: bool = False) -> Forecast:
        """quantiles (B, tau, R, Q), rising; p_above (B, tau, A), one per alert in the order of data.alerts.

        explain: adds the network's selection weights static_weights (B, m_s), past_weights (B, k, m_p), future_weights (B, tau, m_f)
        and its attention (B, tau, T); each row sums to 1. They show what the network reads, not causes.
        """
        assert isinstance(model, network.TFT)
        units, inputs = self._inputs(batch)
        found = dict(model.explain(inputs)) if explain else {"quantiles": model(inputs)}
        found["quantiles"] = tft_inputs.ascending(tft_inputs.physical(units, found["quantiles"]))
        share = self.statistics.get("combine_shares")
        if share is not None and np.any(share > 0):
            median, season = scores.median_of(self.levels), self.config.data.season_steps[0]
            found["quantiles"] = tft_combine.shift(found["quantiles"], batch, share, median, season, units)
        if self.config.data.alerts:
            place = [self.config.data.targets.index(name) for name in self.config.data.alerts]
            thresholds = np.array(list(self.config.data.alerts.values()), np.float32)
            found["p_above"] = scores.exceedance(found["quantiles"][:, :, place], self.levels, thresholds)
        return found

    # Scores --------------------------------------------------------------------------------------------

    def score(self, model: nnx.Module, batch: Batch) -> Sums:
        """Sums of every score, see `tft_scores.forecast_sums`; with score.combine also what `calibrate` needs."""
        quantiles = self.predict(model, batch)["quantiles"]
        sums = self.score_forecast({"quantiles": quantiles}, batch)
        if self.config.score.combine and "combine_shares" not in self.statistics:
            groups, season = len(self.statistics["group_names"]), self.config.data.season_steps[0]
            sums |= tft_combine.share_sums(quantiles, batch, groups, self.levels, scores.median_of(self.levels), season)
        return sums

    def calibrate(self, sums: Mapping[str, np.ndarray]) -> Statistics:
        """`combine_shares` (G + 1, R, Q, 2): how far the forecasts of score.combine are shifted to the references of `tft_combine`."""
        if "combine" not in sums:
            return {}
        score, median = self.config.score, scores.median_of(self.levels)
        return {"combine_shares": tft_combine.fitted(sums, self.config.data.targets, score.combine, score.reference_median, median)}

    def score_forecast(self, forecast: Forecast, batch: Batch) -> Sums:
        """The sums that a forecast allows: quantiles (B, tau, R, Q), rising along Q, or only their median (B, tau, R)."""
        return scores.forecast_sums(self._layout(), forecast, batch)

    def _layout(self) -> scores.Layout:
        data = self.config.data
        roles = fleet_config.roles(data)
        classes = len(self.statistics[f"vocabulary/{roles.static_categorical[0]}"]) + 1 if roles.static_categorical else 0
        clock = tuple(roles.calendar.index(name) if name in roles.calendar else None for name in ("hour_of_day", "day_of_week"))
        thresholds = np.array([data.alerts.get(name, np.nan) for name in data.targets], np.float32)
        return scores.Layout(self.levels, len(self.statistics["group_names"]), classes, (clock[0], clock[1]), thresholds)

    def summarize(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scores per target ("qrisk_50/cpu_percent") and as means over targets ("qrisk_50"), see `tft_scores.summarize`."""
        names = tuple(str(name) for name in self.statistics["group_names"])
        return scores.summarize(self._layout(), sums, self.config.data.targets, self.config.score.steps, names)

    # What people read ----------------------------------------------------------------------------------

    def complete(self, batch: Batch) -> Batch:
        """Arrays given by hand, checked and completed; see `tft_arrays.complete`."""
        return tft_arrays.complete(self.config.data, self.statistics, batch)

    def serving(self, options: Mapping[str, str]) -> dict[str, Any]:
        """`explain` goes to `predict`."""
        return {"explain": True} if switch(options, "explain") else {}

    def table(self, dataset: Dataset, forecast: Mapping[str, np.ndarray], options: Mapping[str, str]) -> dict[str, np.ndarray]:
        """The long table of `tft_serving.table`."""
        return serving.table(self.config.data, self.levels, dataset, forecast)

    def more_tables(
        self, dataset: Dataset, forecast: Mapping[str, np.ndarray], options: Mapping[str, str]
    ) -> dict[str, dict[str, np.ndarray]]:
        """With the option `explain`: weights (what each variable counted for) and attention (which steps were looked at)."""
        if not switch(options, "explain"):
            return {}
        names = self._weight_names()
        return {"weights": serving.weights_table(self.config.data, names, dataset, forecast),
                "attention": serving.attention_table(self.config.data, dataset, forecast)}  # fmt: skip

    def figures(self, predict: Callable[..., dict[str, np.ndarray]], dataset: Dataset,
                sums: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:  # fmt: skip
        """{name: matplotlib figure}: fan charts, q-risk by step, reliability, importances, attention by lag, scores by group, alert map."""
        from jaxtrain.tasks import tft_figures

        return tft_figures.draw(self.config.data, self._layout(), self._weight_names(), self.statistics, predict, dataset, sums)

    def adapt(self, params: dict[str, Any], statistics: Statistics) -> dict[str, Any]:
        """Rows of the embedding tables move by the name of their category, see `tft_transfer.adapt`."""
        return tft_transfer.adapt(self.config.data, self.statistics, params, statistics)

    def _weight_names(self) -> dict[str, tuple[str, ...]]:
        """The variables in the order of the selection weights, by network."""
        found = self._variables()
        parts = {"static": found.static, "past": found.past, "future": found.known}  # as `TFT.names`, without building one
        return {part: tuple(variable.name for variable in variables) for part, variables in parts.items()}

    def flops_per_example(self) -> float | None:
        """Forward and backward (three times forward) of one window."""
        if "group_names" not in self.statistics:
            return None
        data = self.config.data
        return 3 * flops_per_window(self.config.model, self._variables(), data.context_steps, data.horizon_steps)
