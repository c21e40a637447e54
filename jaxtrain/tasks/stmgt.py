"""Traffic speed on a road graph: the STMGT network, its loss, its scores and its tables.

Letters: B batch, T input steps, P output steps, N nodes, K mixture components, Q quantile levels.
Speeds are in the unit of the data (`data.unit`, km/h or mph); the loss alone works in normalised units.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.data import traffic
from jaxtrain.data.dataset import Batch, Dataset, Splits, Statistics
from jaxtrain.data.traffic_config import DataConfig, check_config
from jaxtrain.engine import config as configs
from jaxtrain.engine import metrics
from jaxtrain.errors import UserError
from jaxtrain.models import stmgt as network
from jaxtrain.nn import mixture as mixtures
from jaxtrain.nn.mixture import Mixture
from jaxtrain.tasks import stmgt_scores as scores
from jaxtrain.tasks import stmgt_serving as serving
from jaxtrain.tasks import task as contract
from jaxtrain.tasks.options import check as check_options
from jaxtrain.tasks.options import switch
from jaxtrain.tasks.task import Forecast, Sums

WEIGHT_FLOOR = 1e-8  # added to the component weights inside the logarithms of the loss
SELF, UPSTREAM, DOWNSTREAM = 0, 1, 2  # relations of the neighbour lists
ALL_NODES = 1024  # nodes up to which attention over all of them is served: its memory grows with their square
SMALL_SIGMA = 0.05  # normalised units; many components this narrow mean overconfidence


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; 0 switches a term off. `spread` is subtracted (it rewards distinct components)."""

    crps: float
    nll: float
    mse: float
    spread: float
    entropy: float

    def __post_init__(self) -> None:
        values = vars(self)
        for name, value in values.items():
            if value < 0:
                raise UserError(f"config.loss.{name}: must be at least 0, got {value:g}")
        if self.crps + self.nll + self.mse == 0:
            raise UserError("config.loss: crps, nll and mse are all 0, nothing ties the forecast to the targets; give one a weight")


@dataclass(frozen=True)
class AugmentConfig:
    """Applied to training inputs only."""

    mask_nodes: float  # chance that a node's whole history is hidden
    noise_std: float  # of Gaussian noise on the observed inputs, normalised units

    def __post_init__(self) -> None:
        if not 0 <= self.mask_nodes < 1:
            raise UserError(f"config.augment.mask_nodes: must lie in [0, 1), got {self.mask_nodes:g}")
        if self.noise_std < 0:
            raise UserError(f"config.augment.noise_std: must be at least 0, got {self.noise_std:g}")


@dataclass(frozen=True)
class ScoreConfig:
    horizons_minutes: tuple[float, ...]  # horizons with a column of their own
    congestion_fraction: float  # congested = slower than this fraction of the free-flow speed
    quantiles: tuple[float, ...]  # levels that `predict` writes

    def __post_init__(self) -> None:
        if not 0 < self.congestion_fraction < 1:
            raise UserError(f"config.score.congestion_fraction: must lie in (0, 1), got {self.congestion_fraction:g}")
        if not self.horizons_minutes:
            raise UserError("config.score.horizons_minutes: empty; name at least one horizon")
        levels = list(self.quantiles)
        if not levels or levels[0] <= 0 or levels[-1] >= 1 or levels != sorted(set(levels)):
            raise UserError(f"config.score.quantiles: levels in (0, 1) in rising order are needed, got {levels}")


SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "model": network.Config,
    "loss": LossConfig,
    "augment": AugmentConfig,
    "score": ScoreConfig,
}


@dataclass(frozen=True)
class Config:
    """The sections this task reads."""

    data: DataConfig
    model: network.Config
    loss: LossConfig
    augment: AugmentConfig
    score: ScoreConfig


def make_task(sections: Mapping[str, Any], statistics: Statistics | None = None) -> "Task":
    """The task of a run: `sections` maps every name of SECTIONS to its resolved values.

    Raises UserError for an unknown section or key, a value out of range, or a horizon that is no output step.
    """
    config = Config(**configs.sections(SECTIONS, sections))
    check_config(config.data)
    horizons = _horizon_steps(config)
    headline = (*(f"mae/{name}" for name in horizons), "mae", "rmse", "mape", "crps", "coverage_80")
    return Task(config, dict(statistics or {}), headline=headline)


def _horizon_steps(config: Config) -> dict[str, int]:
    """{"15min": 2, ...}: the output step (from 0) of every horizon with a column of its own."""
    step, count = config.data.step_minutes, config.data.out_steps
    steps = {}
    for minutes in config.score.horizons_minutes:
        number = round(minutes / step)
        if abs(number * step - minutes) > 1e-6 or not 1 <= number <= count:
            known = ", ".join(f"{step * (h + 1):g}" for h in range(count))
            raise UserError(f"config.score.horizons_minutes: {minutes:g} is no output step; possible are {known}")
        steps[f"{minutes:g}min"] = number - 1
    return steps


@dataclass(frozen=True)
class Task(contract.Task):
    """STMGT. `statistics` is what `jaxtrain.data.traffic` computes from the training split."""

    config: Config
    signature: tuple[str, ...] = ("speed", "slot", "dow", "weather")
    fold_kinds: ClassVar[Mapping[str, str]] = {"walk_forward": "walk_forward", "blocked": "blocked"}

    # Data ----------------------------------------------------------------------------------------------

    def splits(self) -> Splits:
        """Real files when data.path is set, else the embedded road network. Raises UserError when a run's nodes are no longer theirs."""
        data = self.config.data
        if not data.path:
            self._check_nodes(traffic.embedded_ids(data))
        found = traffic.splits(data, self.config.score.congestion_fraction)
        self._check_nodes(found.statistics["node_ids"])
        return found

    def _check_nodes(self, ids: np.ndarray) -> None:
        """The nodes of a finished run, where this is one."""
        known = self.statistics.get("node_ids")
        if known is None or np.array_equal(known, ids):
            return
        path = self.config.data.path
        where = path or "data.path is unset and the embedded network"
        count = f" ({len(ids)}, the run has {len(known)})" if len(ids) != len(known) else ""
        remedy = "restore the file the run was trained on, or give" if path else "give"
        raise UserError(f"{where}: its nodes are not those of this run{count}; {remedy} labelled readings with --input FILE")

    def inputs(self, path: str, options: Mapping[str, str]) -> Dataset:
        """Windows to forecast from. Options: origin (times separated by commas; default the last row), weather (a file),
        start (time of the first row, where the file has no times), allow_missing (nodes of the run may lack in the file),
        layout, key, feature (as in `data`; a file of another suffix than the training file's has layout auto and no key),
        components (read by `table`)."""
        return self._read(path, options, ("origin", *serving.READING, "components"), labelled=False)

    def labelled(self, path: str, options: Mapping[str, str]) -> Dataset:
        """Every window of a file whose targets lie in it. Options as for `inputs`, without origin and components."""
        return self._read(path, options, serving.READING, labelled=True)

    def _read(self, path: str, options: Mapping[str, str], known: tuple[str, ...], *, labelled: bool) -> Dataset:
        check_options(options, known)
        origins = tuple(text.strip() for text in options.get("origin", "").split(",") if text.strip())
        return traffic.inputs(
            serving.reading(self.config.data, path, options), self.statistics, path, weather_path=options.get("weather", ""),
            origins=origins, allow_missing=switch(options, "allow_missing"), labelled=labelled,
        )  # fmt: skip

    def oracle(self, rows: np.ndarray) -> dict[str, Forecast] | None:
        """Embedded network only: the generator continued from its true hidden state, for rows (B, 1)."""
        return None if self.config.data.path else {"oracle": traffic.oracle(self.config.data, rows)}

    # Model and objective -------------------------------------------------------------------------------

    def build(self, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> network.STMGT:
        """The network on this run's graph, computing in `dtype`. Raises UserError for attention over all of a large graph."""
        nodes = len(self.statistics["neighbors"])
        if self.config.model.reach == "all" and nodes > ALL_NODES:
            raise UserError(f"config.model.reach: 'all' serves up to {ALL_NODES:,} nodes, the data has {nodes:,}; "
                            "set model.reach='neighbours' and bound the neighbours with data.max_neighbors")  # fmt: skip
        return network.STMGT(self.config.model, self.statistics, self.config.data.in_steps, self.config.data.out_steps, rngs, dtype)

    def loss(self, model: nnx.Module, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Weighted sum of the loss terms in normalised units, each averaged over the observed targets.

        Logs every term that counts, the mean of the largest component weight (over .8: the mixture collapsed), the
        effective number of components exp(entropy), the share of very narrow components and what attention adds to the
        score of upstream and downstream neighbours against the node's own. `weight` = observed targets.
        """
        if self.config.model.output_space == "raw":
            raise UserError("config.model.output_space: 'raw' only serves imported weights; train with 'normalized'")
        assert isinstance(model, network.STMGT)
        mixture = model(self._augment(batch, rngs), rngs)
        y = model.normalize(batch["target"])
        mask = scores.target_mask(batch)
        n = mask.sum()

        def average(values: jax.Array) -> jax.Array:
            return metrics.total(values, mask) / jnp.maximum(n, 1.0)

        weights = self.config.loss
        negative_entropy = mixtures.negative_entropy(mixture, WEIGHT_FLOOR)
        terms = {
            "crps": (weights.crps, lambda: mixtures.crps(mixture, y)),
            "nll": (weights.nll, lambda: mixtures.nll(mixture, y, WEIGHT_FLOOR)),
            "mse": (weights.mse, lambda: (mixtures.mean(mixture) - y) ** 2),
            "spread": (-weights.spread, lambda: mixtures.spread(mixture)),
            "entropy": (weights.entropy, lambda: negative_entropy),
        }
        logs = {name: average(term()) for name, (weight, term) in terms.items() if weight}
        objective = sum((terms[name][0] * value for name, value in logs.items()), start=jnp.zeros(()))
        logs |= {
            "largest_weight": average(jnp.exp(mixture.log_weights.max(-1))),
            "effective_components": average(jnp.exp(-negative_entropy)),
            "small_sigma": average((mixture.stds < SMALL_SIGMA).mean(-1)),
            "weight": n,
        }
        return objective, logs | _relation_biases(model)

    def _augment(self, batch: Batch, rngs: nnx.Rngs) -> Batch:
        """Hide whole nodes (their usual speeds stand in) and add noise, as `augment` says."""
        speed, observed = batch["speed"], batch["observed"]
        if self.config.augment.mask_nodes:
            hidden = jax.random.bernoulli(rngs.augment(), self.config.augment.mask_nodes, (speed.shape[0], 1, speed.shape[2]))
            steps = speed.shape[1]
            weekend = (batch["dow"][:, :steps] >= 5).astype(jnp.int32)
            usual = self._constant("profile")[weekend, batch["slot"][:, :steps]]
            speed, observed = jnp.where(hidden, usual, speed), observed & ~hidden
        if self.config.augment.noise_std:
            noise = jax.random.normal(rngs.augment(), speed.shape) * self.config.augment.noise_std * self._constant("speed_std")
            speed = jnp.where(observed, speed + noise, speed)
        return {**batch, "speed": speed, "observed": observed}

    # Forecasts -----------------------------------------------------------------------------------------

    def naive(self, batch: Batch) -> dict[str, Forecast]:
        """last (newest value), tod (usual value of that slot; probability of congestion = its training frequency), damped."""
        forecasts = network.naive_forecasts(batch, self._constant("profile"), self._constant("damping"))
        found: dict[str, Forecast] = {name: {"median": value, "mean": value} for name, value in forecasts.items()}
        found["tod"]["p_congested"] = self._usual_congestion(batch)
        return found

    def predict(self, model: nnx.Module, batch: Batch, denormalize: bool | None = None, attention_of: int | None = None) -> Forecast:
        """median, mean, std, p_congested, last, damped (B, P, N), quantiles (B, P, N, Q), component_* (B, P, N, K).

        denormalize: None follows the run (physical units); False returns the network's own numbers (normalised units,
        without last, damped and p_congested); True on a raw-scale run is a UserError, for it would scale twice.
        attention_of: adds `attention` (B, L, T, slots, H) of that node and `gate` (B, L), the share of the spatial branch.
        """
        assert isinstance(model, network.STMGT)
        if denormalize and self.config.model.output_space == "raw":
            raise UserError("predict: denormalize=True would scale the speeds of this raw-scale run a second time; leave it unset")
        mixture = model(batch)
        if denormalize is not False:
            mixture = model.physical(mixture)
        levels = self.config.score.quantiles
        quantiles = mixtures.quantile(mixture, (*levels, 0.5))
        forecast = {
            "median": quantiles[..., -1],
            "mean": mixtures.mean(mixture),
            "std": mixtures.std(mixture),
            "quantiles": quantiles[..., :-1],
            "component_weight": jnp.exp(mixture.log_weights),
            "component_mean": mixture.means,
            "component_std": mixture.stds,
        }
        if denormalize is not False:
            naive = network.naive_forecasts(batch, self._constant("profile"), self._constant("damping"))
            forecast |= {"p_congested": self._congested(mixture), "last": naive["last"], "damped": naive["damped"]}
        if attention_of is not None:
            found = model.inspect(batch, attention_of)
            gate = jnp.broadcast_to(found["gate"], (len(batch["speed"]), *found["gate"].shape))
            forecast |= {"attention": jnp.moveaxis(found["attention"], 0, 1), "gate": gate}
        return forecast

    def _congested(self, mixture: Mixture) -> jax.Array:
        return mixtures.cdf(mixture, jnp.broadcast_to(self._threshold(), mixture.means.shape[:-1]))

    def _threshold(self) -> jax.Array:
        """(N,) speed below which a node is congested."""
        return self.config.score.congestion_fraction * self._constant("free_flow")

    def _usual_congestion(self, batch: Batch) -> jax.Array:
        steps = batch["speed"].shape[1]
        weekend = (batch["dow"][:, steps:] >= 5).astype(jnp.int32)
        return self._constant("congestion_frequency")[weekend, batch["slot"][:, steps:]]

    def _constant(self, name: str) -> jax.Array:
        return jnp.asarray(self.statistics[name], jnp.float32)

    # Scores --------------------------------------------------------------------------------------------

    def score(self, model: nnx.Module, batch: Batch) -> Sums:
        """Sums of every score of the mixture: by horizon, hour of day, node and actual state; PIT histogram, reliability."""
        assert isinstance(model, network.STMGT)
        mixture = model.physical(model(batch))
        y = batch["target"]
        low, median, high = jnp.moveaxis(mixtures.quantile(mixture, (0.1, 0.5, 0.9)), -1, 0)
        return self._sums({
            "median": median,
            "mean": mixtures.mean(mixture),
            "std": mixtures.std(mixture),
            "crps": mixtures.crps(mixture, y),
            "nll": mixtures.nll(mixture, y),
            "crps_gaussian": mixtures.gaussian_crps(mixture, y),
            "pit": mixtures.cdf(mixture, y),
            "width_80": high - low,
            "p_congested": self._congested(mixture),
            "p_usual": self._usual_congestion(batch),
        }, batch)  # fmt: skip

    def score_forecast(self, forecast: Forecast, batch: Batch) -> Sums:
        """The sums that a forecast allows: median and mean (B, P, N); optionally p_congested (B, P, N), samples (B, S, P, N)."""
        found = {name: forecast[name] for name in ("median", "mean", "p_congested") if name in forecast}
        if "samples" in forecast:
            samples, y = forecast["samples"], batch["target"]
            low, high = jnp.quantile(samples, jnp.array([0.1, 0.9]), axis=1)
            found |= {
                "crps": metrics.sample_crps(samples, y),
                "pit": metrics.sample_pit(samples, y),
                "width_80": high - low,
                "p_congested": (samples < self._threshold()).mean(1),
            }
        return self._sums(found, batch)

    def _sums(self, forecast: Forecast, batch: Batch) -> Sums:
        return scores.forecast_sums(
            forecast, batch, free_flow=self._constant("free_flow"), threshold=self._threshold(),
            center=jnp.mean(self._constant("speed_mean")), step_minutes=self._constant("step_minutes"),
        )  # fmt: skip

    def summarize(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scores pooled over all P steps ("mae"), per horizon ("mae/15min") and per actual state ("mae/jammed"); see `stmgt_scores`."""
        return scores.summarize(sums, _horizon_steps(self.config))

    # What people read ----------------------------------------------------------------------------------

    def table(self, dataset: Dataset, forecast: Mapping[str, np.ndarray], options: Mapping[str, str]) -> dict[str, np.ndarray]:
        """The long table of `stmgt_serving.table`; the option `components` adds the mixture."""
        components = switch(options, "components")
        return serving.table(self.config.data, self.config.score.quantiles, self.statistics, dataset, forecast, components=components)

    def complete(self, batch: Batch) -> Batch:
        """Arrays given by hand, checked and filled; see `stmgt_serving.complete`."""
        return serving.complete(self.config.data, self.statistics, batch)

    def figures(self, predict: Callable[..., dict[str, np.ndarray]], dataset: Dataset,
                sums: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:  # fmt: skip
        """{name: matplotlib figure}: forecasts of three nodes, error by horizon and hour, gain by place, calibration, an incident."""
        from jaxtrain.tasks import stmgt_figures

        horizons = _horizon_steps(self.config)
        return stmgt_figures.draw(self.config.data, horizons, self.config.score.quantiles, self.statistics, predict, dataset, sums)

    def flops_per_example(self) -> float | None:
        """Forward and backward (three times forward) of one window."""
        if "neighbor_mask" not in self.statistics:
            return None
        data, mask = self.config.data, self.statistics["neighbor_mask"]
        forward = network.flops_per_window(
            self.config.model, len(mask), data.in_steps, data.out_steps, int(mask.sum()), weather="weather_mean" in self.statistics
        )
        return 3 * forward


def _relation_biases(model: network.STMGT) -> dict[str, jax.Array]:
    """Mean over blocks and heads of beta[relation] - beta[self]; empty without relation biases."""
    betas = [beta[...] for block in model.blocks if (beta := block.spatial.pair_bias.relation) is not None]
    if not betas:
        return {}
    beta = jnp.stack(betas).astype(jnp.float32).mean((0, 2))  # (relations,)
    return {"bias_upstream": beta[UPSTREAM] - beta[SELF], "bias_downstream": beta[DOWNSTREAM] - beta[SELF]}
