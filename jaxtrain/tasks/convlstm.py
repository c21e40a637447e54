"""Train headways on a rail line: the ConvLSTM networks, their loss, scores, rollouts and tables.

Letters: B windows, L lookback rows, F horizon rows, S stations, D directions, K terminal channels, Q quantile levels.
Batches and forecasts are in minutes; the network and the loss work in units of the cap; scores are in seconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.data import headway, headway_oracle
from jaxtrain.data.dataset import Batch, Dataset, Splits, Statistics
from jaxtrain.data.headway_config import DataConfig, check_config
from jaxtrain.engine import config as configs
from jaxtrain.engine import metrics
from jaxtrain.engine.config import nearest
from jaxtrain.errors import UserError
from jaxtrain.models import convlstm as network
from jaxtrain.tasks import convlstm_inputs as door
from jaxtrain.tasks import convlstm_intervals as intervals
from jaxtrain.tasks import convlstm_naive as reference
from jaxtrain.tasks import convlstm_scores as scores
from jaxtrain.tasks import convlstm_serving as serving
from jaxtrain.tasks import task as contract
from jaxtrain.tasks.options import check as check_options
from jaxtrain.tasks.options import whole
from jaxtrain.tasks.task import Forecast, Sums

FUTURES = 48  # that the oracle draws
KINDS = {"point": ("mse", "mae", "huber"), "gaussian": ("nll",), "quantile": ("pinball",)}  # losses of each head


@dataclass(frozen=True)
class LossConfig:
    kind: str  # mse | mae | huber | nll | pinball
    masked: bool  # False: unknown cells count as 0
    huber_minutes: float
    auxiliary: float  # weight of forecasting the other input field

    def __post_init__(self) -> None:
        known = [kind for kinds in KINDS.values() for kind in kinds]
        if self.kind not in known:
            raise UserError(f"config.loss.kind: {self.kind!r} is not supported{nearest(self.kind, known)}")
        if self.huber_minutes <= 0:
            raise UserError(f"config.loss.huber_minutes: must be more than 0, got {self.huber_minutes:g}")
        if self.auxiliary < 0:
            raise UserError(f"config.loss.auxiliary: must be at least 0, got {self.auxiliary:g}")


@dataclass(frozen=True)
class ScoreConfig:
    minutes: tuple[int, ...]  # minutes ahead with a column of their own
    rollout_minutes: tuple[int, ...]  # ends of the rows that a rollout is scored at; () = no rollout


@dataclass(frozen=True)
class TargetsConfig:
    """Lines that a forecast is held against."""

    rmse_s: float
    loss: float  # mean square in units of cap^2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise UserError(f"config.targets.{name}: must be more than 0, got {value:g}")


SECTIONS: dict[str, type] = {
    "data": DataConfig, "model": network.Config, "loss": LossConfig, "score": ScoreConfig, "targets": TargetsConfig,
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The sections this task reads."""

    data: DataConfig
    model: network.Config
    loss: LossConfig
    score: ScoreConfig
    targets: TargetsConfig


def make_task(sections: Mapping[str, Any], statistics: Statistics | None = None) -> "Task":
    """The task of a run: `sections` maps every name of SECTIONS to its resolved values.

    Raises UserError for an unknown section or key, a value out of range, or keys that do not fit each other.
    """
    config = Config(**configs.sections(SECTIONS, sections))
    check_config(config.data)
    _check_model(config)
    _check_score(config)
    fields = (*dict.fromkeys((config.data.target, *config.data.inputs)), "planned")
    return Task(config, signature=fields).with_statistics(dict(statistics or {}))


def _check_model(config: Config) -> None:
    data, model, loss = config.data, config.model, config.loss
    if model.kernel[1] > 1 and data.align == "travel":
        raise UserError(f"config.model.kernel: {list(model.kernel)} mixes the directions, and with data.align='travel' unrelated stations "
                        "would meet; use a kernel of (n, 1) or data.align='line'")  # fmt: skip
    if loss.kind not in KINDS[model.head]:
        raise UserError(f"config.loss.kind: {loss.kind!r} does not train model.head={model.head!r}; use {' or '.join(KINDS[model.head])}")
    if not data.path and model.readout != "plain" and model.upstream >= data.synthetic.stations:
        raise UserError(f"config.model.upstream: {model.upstream} stations upstream on a line of {data.synthetic.stations} "
                        "(data.synthetic.stations); lower it")  # fmt: skip
    if loss.auxiliary and not door.other_field(data):
        raise UserError(f"config.loss.auxiliary: {loss.auxiliary:g}, but data.inputs {data.inputs} hold no field beside the target "
                        f"{data.target}; set it to 0")  # fmt: skip


def _check_score(config: Config) -> None:
    data, score = config.data, config.score
    step, block = data.step_minutes, data.horizon * data.step_minutes
    for minutes in score.minutes:
        if minutes % step or not step <= minutes <= block:
            raise UserError(f"config.score.minutes: {minutes} is no row of the horizon ({step} to {block} every {step}, data.horizon)")
    for minutes in score.rollout_minutes:
        if minutes < block or minutes % block:
            raise UserError(f"config.score.rollout_minutes: {minutes} is no multiple of the horizon of {block} minutes (data.horizon)")
    other = door.other_field(data)
    if score.rollout_minutes and other and not config.loss.auxiliary:
        raise UserError(f"config.score.rollout_minutes: a rollout feeds forecasts back, and the input {other} is not forecast; set "
                        f"loss.auxiliary (0.3), or data.inputs=({data.target!r},)")  # fmt: skip


@dataclass(frozen=True)
class Task(contract.Task):
    """ConvLSTM. `statistics` is what `jaxtrain.data.headway` computes from the training days."""

    config: Config
    signature: tuple[str, ...] = ()
    monitor = ("valid/rmse_s", "min")
    skill_score = "rmse_s"
    fold_kinds: ClassVar[Mapping[str, str]] = {"walk_forward": "walk_forward", "blocked": "blocked"}

    def with_statistics(self, statistics: Statistics) -> Self:
        """This task, knowing these statistics as well; the printed scores name its directions."""
        known = super().with_statistics(statistics)
        directions = [str(name) for name in known.statistics.get("directions", ())]
        parts = [*(f"t+{minutes}" for minutes in self.config.score.minutes), *directions, "worst_station"]
        parts += [f"block_{minutes}" for minutes in self.config.score.rollout_minutes]
        interval = [f"coverage_{scores.percent(self.levels)}"] if self.config.model.head != "point" else []
        return replace(known, headline=("rmse_s", "mae_s", "r2", *(f"rmse_s/{part}" for part in parts), *interval))

    @property
    def levels(self) -> tuple[float, ...]:
        """Quantile levels of the head; of a Gaussian those of its interval."""
        return self.config.model.levels if self.config.model.head == "quantile" else (0.1, 0.9)

    # Data ----------------------------------------------------------------------------------------------

    def splits(self) -> Splits:
        """Real files when data.path is set, else the embedded line; with score.rollout_minutes a further split `rollout`.

        That is the test days again, in windows with as many target rows as the longest rollout needs. Raises UserError when a
        run's stations are no longer those of its file.
        """
        data, score = self.config.data, self.config.score
        found = headway.splits(data)
        self._check_line(found.statistics)
        more = {}
        if score.rollout_minutes:
            longer = headway.splits(replace(data, horizon=max(score.rollout_minutes) // data.step_minutes)).test
            more["rollout"] = Dataset(found.test.arrays, longer.index, longer.gather)
        train = door.with_other(found.train, data) if self.config.loss.auxiliary else found.train  # the loss alone needs it
        return replace(found, train=train, more=more, notes=(*found.notes, self._target_note()))

    def _target_note(self) -> str:
        targets, cap = self.config.targets, self.config.data.cap_minutes
        return (f"lines to pass: rmse_s < {targets.rmse_s:g} (a loss of {(targets.rmse_s / 60 / cap) ** 2:.2g}), loss < {targets.loss:g} "
                f"(an rmse_s of {60 * cap * targets.loss**0.5:.3g})")  # fmt: skip

    def _check_line(self, statistics: Statistics) -> None:
        """The stations and directions of a finished run, where this is one."""
        if "stations" in self.statistics and not all(
            np.array_equal(self.statistics[name], statistics[name]) for name in ("directions", "stations")
        ):
            where = self.config.data.path or "data.path is unset and the embedded line"
            raise UserError(f"{where}: stations or directions are not those of this run; restore the file it was trained on, or give "
                            "labelled arrivals with --input FILE")  # fmt: skip

    def inputs(self, path: str, options: Mapping[str, str]) -> Dataset:
        """Windows to forecast from. Options: at (time of issue; default the end of the last complete row), every (minutes between
        forecasts), timetable (planned departures in place of the run's own: the table then shows both), snapshots (when the feed of
        this file was read), start (time of the first row of a prepared array)."""
        check_options(options, ("at", "every", *serving.READING))
        timetable = options.get("timetable", "")
        found = self._read(path, options, timetable)
        return door.with_own_plan(found, self._read(path, options, ""), self.config.data.lookback) if timetable else found

    def labelled(self, path: str, options: Mapping[str, str]) -> Dataset:
        """Every window of a file that training would take. Options: timetable, snapshots, start, as for `inputs`."""
        check_options(options, serving.READING)
        return self._read(path, options, options.get("timetable", ""), labelled=True)

    def _read(self, path: str, options: Mapping[str, str], timetable: str, *, labelled: bool = False) -> Dataset:
        return headway.inputs(
            self.config.data, self.statistics, path, at=options.get("at", ""), every=whole(options, "every", 0, of="minutes"),
            timetable=timetable, snapshots=options.get("snapshots", ""), start=options.get("start", ""), labelled=labelled,
        )  # fmt: skip

    def oracle(self, rows: np.ndarray) -> dict[str, Forecast] | None:
        """Embedded line only: the mean of futures drawn by the generator from all it knows up to now, for rows (B, 1)."""
        if self.config.data.path:
            return None
        return {"oracle": {**headway_oracle.oracle(self.config.data, rows, FUTURES), "draws": np.float32(FUTURES)}}

    # Model and objective -------------------------------------------------------------------------------

    def build(self, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> network.Network:
        """The network for this run's line, computing in `dtype`."""
        return network.Network(self.config.model, self._sizes(), self.statistics["travel_minutes"], rngs, dtype)

    def _sizes(self) -> network.Sizes:
        return door.sizes(self.config.data, self.statistics, self.config.loss.auxiliary > 0)

    def loss(self, model: nnx.Module, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean over known target cells in units of the cap, plus loss.auxiliary times the mean square of the other input field.

        Logs both terms. `weight` = known target cells: a batch cut into parts gives the undivided loss exactly, but for the other
        field, whose known cells may be shared out otherwise.
        """
        assert isinstance(model, network.Network)
        found = model(door.model_inputs(self.config.data, self.statistics, batch), rngs)
        cap, masked, kind = self.config.data.cap_minutes, self.config.loss.masked, self.config.loss.kind

        def average(values: jax.Array, known: Any) -> tuple[jax.Array, jax.Array]:
            counted = jnp.asarray(known, jnp.float32) if masked else jnp.ones(values.shape)
            weight = counted * batch["mask"][:, None, None, None]
            return metrics.total(values, weight) / jnp.maximum(weight.sum(), 1.0), weight.sum()

        def truth(values: Any, known: Any) -> jax.Array:
            return jnp.where(jnp.asarray(known, bool), values, 0.0).astype(jnp.float32) / cap

        y = truth(batch["target"], batch["target_known"])
        objective, weight = average(self._losses(found, y), batch["target_known"])
        logs = {kind: objective, "weight": weight}
        if "other" in found:
            known = batch["other_known"]
            logs["auxiliary"] = average((found["other"] - truth(batch["other_target"], known)) ** 2, known)[0]
            objective = objective + self.config.loss.auxiliary * logs["auxiliary"]
        return objective, logs

    def _losses(self, found: Mapping[str, jax.Array], y: jax.Array) -> jax.Array:
        """(B, F, S, D) of forecasts and targets in units of the cap."""
        kind, error = self.config.loss.kind, found["y"] - y
        if kind == "mse":
            return error**2
        if kind == "mae":
            return jnp.abs(error)
        if kind == "huber":
            delta = self.config.loss.huber_minutes / self.config.data.cap_minutes
            size = jnp.abs(error)
            return jnp.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
        if kind == "nll":
            return (error / found["sigma"]) ** 2 / 2 + jnp.log(found["sigma"]) + np.log(2 * np.pi) / 2
        return metrics.pinball(found["quantiles"], y, self.levels).sum(-1)

    # Forecasts -----------------------------------------------------------------------------------------

    def _forecast(self, model: nnx.Module, batch: Batch, weights: bool = False) -> Forecast:
        """value (B, F, S, D) minutes within [0, cap]; of a spreading head also lower, upper and sigma or quantiles (..., Q)."""
        assert isinstance(model, network.Network)
        call = door.with_copy_weights(model) if weights and self.config.model.readout == "copy" else model
        found = door.outputs(self.config.data, self.statistics, call, batch)
        cap = self.config.data.cap_minutes
        forecast: Forecast = {"value": cap * jnp.clip(found["y"], 0, 1)}
        if "sigma" in found:
            spread = scores.Z80 * found["sigma"]
            forecast |= {"lower": cap * jnp.clip(found["y"] - spread, 0, 1), "upper": cap * jnp.clip(found["y"] + spread, 0, 1)}
            forecast["sigma"] = cap * found["sigma"]
        elif "quantiles" in found:
            quantiles = cap * jnp.clip(found["quantiles"], 0, 1)
            forecast |= {"quantiles": quantiles, "lower": quantiles[..., 0], "upper": quantiles[..., -1]}
        if "interval_factor" in self.statistics and "lower" in forecast:
            forecast = intervals.scaled(forecast, self.statistics["interval_factor"], cap)
        return forecast | {name: found[name] for name in ("copy_weights",) if name in found}

    def naive(self, batch: Batch) -> dict[str, Forecast]:
        """mean, clock, hold, advected and advected_planned, of ages dead_reckoning and dead_reckoning_planned: see `convlstm_naive`."""
        return {name: {"value": value} for name, value in reference.forecasts(self.config.data, self.statistics, batch).items()}

    def predict(self, model: nnx.Module, batch: Batch, weights: bool = False) -> Forecast:
        """value, advected (with the plan; of ages dead reckoning) (B, F, S, D) minutes; lower, upper of an 80 % interval where the head
        has one; planned (B, F, D), NaN where unknown: the plan's value at the entry in the target row; known_share (B, S, D) of the
        place's inputs; grounded (B, F, S, D) bool: something upstream or the plan of a train that can be there was known; under a
        changed plan also own_plan (B, F, S, D), the value under the run's own.

        weights: adds copy_weights (B, F, S, D, J + 2), where a copying readout looks: 0..J stations upstream, then the plan.
        """
        assert isinstance(model, network.Network)
        data, known = self.config.data, self.statistics
        found = {**self._forecast(model, batch, weights), "advected": reference.advected(data, known, batch, planned=True)}
        found |= serving.evidence(data, known["travel_minutes"], batch)
        if "own_planned" in batch:
            own = {**batch, "planned": batch["own_planned"], "planned_known": batch["own_planned_known"]}
            found["own_plan"] = self._forecast(model, own)["value"]
        return found

    # Scores --------------------------------------------------------------------------------------------

    def score(self, model: nnx.Module, batch: Batch) -> Sums:
        """Sums of every score, see `convlstm_scores.forecast_sums`; of more target rows than the horizon those of a rollout."""
        forecast = self._forecast(model, batch)
        if "sigma" in forecast:
            y = jnp.asarray(batch["target"], jnp.float32)
            forecast["crps"] = scores.gaussian_crps(forecast["value"], forecast["sigma"], y)
        sums = self.score_forecast(forecast, batch)
        if "lower" in forecast and "interval_factor" not in self.statistics and batch["target"].shape[1] == self.config.data.horizon:
            sums |= intervals.inside_sums(forecast, batch)
        return sums

    def calibrate(self, sums: Mapping[str, np.ndarray]) -> Statistics:
        """`interval_factor` (F,) of a head with an interval: see `convlstm_intervals`."""
        if "interval/n" not in sums:
            return {}
        return {"interval_factor": intervals.fitted(sums, self.levels[-1] - self.levels[0])}

    def score_forecast(self, forecast: Forecast, batch: Batch) -> Sums:
        """The sums that a forecast allows: value (B, F, S, D); optionally lower, upper, quantiles, draws."""
        held = reference.hold(self.config.data, self.statistics, batch)
        return scores.forecast_sums(self._layout(), forecast, batch, held, self.statistics["mean"])

    def _layout(self) -> scores.Layout:
        data, score, targets = self.config.data, self.config.score, self.config.targets
        return scores.Layout(
            minutes={minutes: minutes // data.step_minutes - 1 for minutes in score.minutes}, horizon=data.horizon,
            step_minutes=data.step_minutes, blocks=score.rollout_minutes, stations=self.statistics["stations"],
            directions=tuple(str(name) for name in self.statistics["directions"]), levels=self.levels, cap=data.cap_minutes,
            rmse=targets.rmse_s, loss=targets.loss,
        )  # fmt: skip

    def summarize(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scores in seconds, see `convlstm_scores.summarize`."""
        return scores.summarize(self._layout(), sums)

    # What people read ----------------------------------------------------------------------------------

    def complete(self, batch: Batch) -> Batch:
        """Arrays given by hand: the fields (B, L, S, D) and planned (B, F, D, K), minutes, NaN where unknown; see `convlstm_serving`."""
        return serving.complete(self.config.data, self._sizes(), batch)

    def table(self, dataset: Dataset, forecast: Mapping[str, np.ndarray], options: Mapping[str, str]) -> dict[str, np.ndarray]:
        """The long table of `convlstm_serving.table`."""
        return serving.table(self.config.data, self.statistics, dataset, forecast)

    def figures(self, predict: Callable[..., dict[str, np.ndarray]], dataset: Dataset,
                sums: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:  # fmt: skip
        """{name: matplotlib figure}: time-station maps, error by minute and station, density, coverage, entries, copy weights."""
        from jaxtrain.tasks import convlstm_figures

        return convlstm_figures.draw(self.config.data, self._layout(), self.statistics, predict, dataset, sums)

    def adapt(self, params: dict[str, Any], statistics: Statistics) -> dict[str, Any]:
        """The place vectors move by the names of station and direction."""
        return door.moved_places(params, statistics, self.statistics)

    def flops_per_example(self) -> float | None:
        """Forward and backward (three times forward) of one window."""
        return 3 * network.flops_per_window(self.config.model, self._sizes()) if "stations" in self.statistics else None
