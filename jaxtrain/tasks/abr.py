"""Auditory brainstem responses: the network, its losses, scores and tables. Objective `predict` reads records, `generate` draws them.

Letters: B records, L samples (200). Batches are in uV, ms, dB and raw statics; the network works in units of each record's scale.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.data import evoked, evoked_oracle
from jaxtrain.data.dataset import Batch, Dataset, Splits, Statistics
from jaxtrain.data.evoked_config import DataConfig, check_config
from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError
from jaxtrain.models import abr as network
from jaxtrain.tasks import abr_generate as generation
from jaxtrain.tasks import abr_inputs as door
from jaxtrain.tasks import abr_loss as losses
from jaxtrain.tasks import abr_naive as reference
from jaxtrain.tasks import abr_scores as scores
from jaxtrain.tasks import abr_serving as serving
from jaxtrain.tasks import task as contract
from jaxtrain.tasks.options import whole
from jaxtrain.tasks.task import Forecast, Group, Sums

LN_SD_LIMIT = 6.0  # standard deviations stay within e^-6 and e^6 of their unit
PREDICT_HEADLINE = (
    "gain_db", "gain_corrected_db", "r", "latency_mae_ms", "latency_within", "amplitude_mae_uv", "auc", "brier", "f1_macro",
    "balanced_accuracy", "threshold_mae_db", "coverage_80/latency", "patient_f1_macro", "series_threshold_mae_db",
)  # fmt: skip


@dataclass(frozen=True)
class RatesConfig:
    s4: float  # optimizer.lr times this for the step sizes and eigenvalues of the S4 layers

    def __post_init__(self) -> None:
        if self.s4 <= 0:
            raise UserError(f"config.rates.s4: must be more than 0, got {self.s4:g}")


@dataclass(frozen=True)
class ScoreConfig:
    bootstraps: int  # draws of patients behind 95 % intervals; 0 = none

    def __post_init__(self) -> None:
        if self.bootstraps < 0:
            raise UserError(f"config.score.bootstraps: must be at least 0, got {self.bootstraps}")


SECTIONS: dict[str, type] = {
    "data": DataConfig, "model": network.Config, "loss": losses.LossConfig, "rates": RatesConfig,
    "sampling": generation.SamplingConfig, "score": ScoreConfig,
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The sections this task reads."""

    data: DataConfig
    model: network.Config
    loss: losses.LossConfig
    rates: RatesConfig
    sampling: generation.SamplingConfig
    score: ScoreConfig


def make_task(sections: Mapping[str, Any], statistics: Statistics | None = None) -> "Task":
    """The task of a run: `sections` maps every name of SECTIONS to its resolved values.

    Raises UserError for an unknown section or key, a value out of range, or keys that do not fit each other.
    """
    config = Config(**configs.sections(SECTIONS, sections))
    check_config(config.data)
    if config.model.objective == "generate":
        if config.data.target == "corrupt":
            raise UserError("config.data.target: 'corrupt' adds noise to an input, and model.objective='generate' has none; use 'clean'")
        return Task(config, dict(statistics or {}), monitor=("valid/v_mse", "min"), headline=generation.HEADLINE,
                    signature=("statics", "label"))  # fmt: skip
    for term, head in losses.HEADS.items():
        if term != "signal" and getattr(config.loss, term) and head not in config.model.heads:
            raise UserError(f"config.loss.{term}: {getattr(config.loss, term):g}, but model.heads {list(config.model.heads)} has no "
                            f"{head!r}; set it to 0")  # fmt: skip
    monitor = ("valid/f1_macro", "max") if config.loss.classes else ("valid/rmse_uv", "min")
    return Task(config, dict(statistics or {}), monitor=monitor, headline=PREDICT_HEADLINE, signature=("signal", "statics"))


@dataclass(frozen=True)
class Task(contract.Task):
    """Evoked responses. `statistics` is what `jaxtrain.data.evoked` computes from the training split, and a little more (`splits`)."""

    config: Config
    monitor: tuple[str, str] = ("valid/f1_macro", "max")
    signature: tuple[str, ...] = ()
    skill_score = "latency_mae_ms"

    @property
    def generates(self) -> bool:
        return self.config.model.objective == "generate"

    # Data ----------------------------------------------------------------------------------------------

    def splits(self) -> Splits:
        """Records when data.path is set, else the synthetic clinic; scored batches know their patients and ears.

        Under `generate` a further split `samples`: sampling.records test records whose conditions waveforms are drawn for. Raises
        UserError when there is nothing to learn a class from.
        """
        found = evoked.splits(self.config.data)
        known = np.count_nonzero(found.statistics["class_share"])
        if not self.generates and self.config.loss.classes and known < 2:
            raise UserError(f"{self.config.data.path}: {'one class' if known else 'no class'} in the training records; a class head needs "
                            "two of them, else set loss.classes=0")  # fmt: skip
        statistics = {**found.statistics, **serving.more_statistics(found.train)}
        if self.generates:
            statistics |= generation.neighbours(found.train, found.statistics)
            return replace(found, statistics=statistics, more={"samples": generation.sampled(found.test, self.config.sampling.records)})
        (train,), (valid, test) = door.with_patients([found.train], [found.valid, found.test])
        return replace(found, train=train, valid=valid, test=test, statistics=statistics)

    def inputs(self, path: str, options: Mapping[str, str]) -> Dataset:
        """Records to read, or conditions to draw waveforms for. Options: statics=none (do not use the four values); of `generate`:
        count (waveforms per row), guidance, steps, seed."""
        serving.check_options(options, self.generates)
        found = self._read(self.config.data, path, options, labelled=False)
        return door.repeated(found, whole(options, "count", 1)) if self.generates else found

    def labelled(self, path: str, options: Mapping[str, str]) -> Dataset:
        """Every record of a file, scored by what the file has: its clean waveforms or other halves, its labels. Options: target (clean or
        other_half, in place of the run's own), statics=none; of `generate` samples (draw waveforms for so many records and compare)."""
        serving.check_options(options, self.generates, labelled=True)
        data = replace(self.config.data, target=options.get("target", self.config.data.target))
        found = self._read(data, path, options, labelled=True)
        if self.generates:
            return generation.sampled(found, whole(options, "samples", 2)) if "samples" in options else found
        return door.with_patients([], [found])[1][0]

    def _read(self, data: DataConfig, path: str, options: Mapping[str, str], *, labelled: bool) -> Dataset:
        waveforms, statics = labelled or not self.generates, options.get("statics", "")
        found = evoked.inputs(data, self.statistics, path, statics=statics, labelled=labelled, waveforms=waveforms)
        return door.without_statics(found) if statics else found

    def oracle(self, rows: np.ndarray) -> dict[str, Forecast] | None:
        """Synthetic clinic only: what a reader who knew the generator's hidden values would say, for rows (B, k)."""
        if self.config.data.path or self.generates:
            return None
        found = evoked_oracle.oracle(self.config.data, rows)
        p = np.clip(found["probability"], 1e-6, 1 - 1e-6)
        return {"oracle": {"existence": np.log(p / (1 - p)), "latency_ms": found["latency_ms"], "latency_sd": found["latency_sd_ms"],
                           "amplitude_uv": found["amplitude_uv"]}}  # fmt: skip

    # Model and objective -------------------------------------------------------------------------------

    def build(self, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> network.Network:
        """The network, computing in `dtype`; with loss.curriculum one that counts the examples it has seen."""
        kind = losses.CountingNetwork if self.config.loss.curriculum else network.Network
        return kind(self.config.model, rngs, dtype)

    def loss(self, model: nnx.Module, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The sum of the weighted terms of `abr_loss`, or the mean square error of v. Logs every term; `weight` = real examples."""
        assert isinstance(model, network.Network)
        data = self.config.data
        noise, augmentation = jax.random.split(rngs.augment())
        batch = door.augmented(data, door.corrupted(data, batch, noise), augmentation)
        weight = jnp.asarray(batch["mask"], jnp.float32).sum()
        if self.generates:
            error = generation.v_error(model, self.statistics, batch, rngs)
            return error, {"v_mse": error, "weight": weight}
        found = self._found(model, batch, rngs)
        parts = losses.terms(self.config.loss, self.statistics, found, batch)
        epoch = None
        if isinstance(model, losses.CountingNetwork):
            epoch = model.seen[...] / np.float32(self.statistics["train_records"])
            model.seen[...] = model.seen[...] + weight.astype(jnp.int32)
        return losses.objective(self.config.loss, parts, epoch), {**parts, "weight": weight}

    def _found(self, model: network.Network, batch: Batch, rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        """What the network's heads say, waveform in units of the record's scale, the rest in ms, uV and dB; center and scale (B,) uV."""
        inputs, center, scale = door.network_inputs(self.statistics, batch)
        told = model(inputs, rngs)
        found = {"signal": told["signal"], "center": center, "scale": scale}
        found |= {name: told[name] for name in ("existence", "latency_ms", "class_logits") if name in told}

        def spread(name: str) -> jax.Array:
            return jnp.clip(told[f"{name}_ln_sd"], -LN_SD_LIMIT, LN_SD_LIMIT)

        if "latency_ms" in told:
            found["latency_ln_sd"] = spread("latency")
            found["amplitude_uv"] = center + scale * told["amplitude_z"]
            found["amplitude_ln_sd"] = spread("amplitude") + jnp.log(scale)
        if "threshold_z" in told:
            mean, sd = (np.float32(self.statistics[f"threshold_{name}"]) for name in ("mean", "std"))
            found["threshold_db"] = mean + sd * told["threshold_z"]
            found["threshold_ln_sd"] = spread("threshold") + np.log(max(sd, np.float32(1e-6)))
        return found

    def _forecast(self, model: nnx.Module, batch: Batch) -> Forecast:
        """signal (B, 200) uV; of the heads there are: existence (B,) logit, latency_ms, amplitude_uv, threshold_db (B,) with _sd each
        under latency_sd, amplitude_sd, threshold_sd, class_logp (B, 5)."""
        assert isinstance(model, network.Network)
        found = self._found(model, batch)
        forecast: Forecast = {"signal": found["center"][:, None] + found["scale"][:, None] * found["signal"]}
        forecast |= {name: found[name] for name in ("existence", "latency_ms", "amplitude_uv", "threshold_db") if name in found}
        forecast |= {f"{name}_sd": jnp.exp(found[f"{name}_ln_sd"]) for name in scores.WITHIN if f"{name}_ln_sd" in found}
        if "class_logits" in found:
            forecast["class_logp"] = jax.nn.log_softmax(found["class_logits"])
        return forecast

    # Forecasts and scores ------------------------------------------------------------------------------

    def naive(self, batch: Batch) -> dict[str, Forecast]:
        """majority, mean, identity, table and wiener (see `abr_naive`); of `generate` zero and linear."""
        if self.generates:
            return generation.naive(self.statistics, batch)
        return reference.forecasts(self.statistics, door.corrupted(self.config.data, batch, None))

    def score(self, model: nnx.Module, batch: Batch) -> Sums:
        """Sums of every score, see `abr_scores.forecast_sums`; of `generate` `abr_generate.score`."""
        assert isinstance(model, network.Network)
        if self.generates:
            return generation.score(model, self.statistics, self.config.sampling, batch)
        return self.score_forecast(self._forecast(model, door.corrupted(self.config.data, batch, None)), batch)

    def score_forecast(self, forecast: Forecast, batch: Batch) -> Sums:
        """The sums that a forecast allows; fields as in `abr_scores.forecast_sums`."""
        if self.generates:
            return generation.score_forecast(forecast, self.statistics, batch)
        return scores.forecast_sums(self.statistics, forecast, door.corrupted(self.config.data, batch, None))

    def summarize(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scores by name, see `abr_scores.summarize` and `abr_generate.summarize`."""
        if self.generates:
            return generation.summarize(self.statistics, sums)
        return scores.summarize(scores.Layout(self._class_names(), self.config.score.bootstraps), sums)

    def _class_names(self) -> tuple[str, ...]:
        return tuple(str(name) for name in self.statistics["class_names"])

    def predict(
        self, model: nnx.Module, batch: Batch, guidance: float | None = None, steps: int | None = None, seed: int | None = None
    ) -> Forecast:
        """denoised_uv (B, 200); of the heads there are: v_probability (B,), v_latency_ms, v_latency_sd_ms, v_amplitude_uv,
        v_amplitude_sd_uv, class_probability (B, 5), threshold_mean_db, threshold_sd_db.

        Of `generate`: generated_uv (B, 200), drawn with these values in place of the config's `sampling`.
        """
        assert isinstance(model, network.Network)
        if self.generates:
            given = {"guidance": guidance, "steps": steps, "seed": seed}
            how = replace(self.config.sampling, **{name: value for name, value in given.items() if value is not None})
            return {"generated_uv": generation.draw(model, self.statistics, how, batch)}
        forecast = self._forecast(model, batch)
        found: Forecast = {"denoised_uv": forecast["signal"]}
        if "existence" in forecast:
            found |= {
                "v_probability": jax.nn.sigmoid(forecast["existence"]),
                "v_latency_ms": forecast["latency_ms"],
                "v_latency_sd_ms": forecast["latency_sd"],
                "v_amplitude_uv": forecast["amplitude_uv"],
                "v_amplitude_sd_uv": forecast["amplitude_sd"],
            }
        if "class_logp" in forecast:
            found["class_probability"] = jnp.exp(forecast["class_logp"])
        if "threshold_db" in forecast:
            found |= {"threshold_mean_db": forecast["threshold_db"], "threshold_sd_db": forecast["threshold_sd"]}
        return found

    # What people read ----------------------------------------------------------------------------------

    def complete(self, batch: Batch) -> Batch:
        """Arrays given by hand: signal (B, 200), statics (B, 4) with NaN where missing, label (B,); see `abr_serving.complete`."""
        return serving.complete(batch, generates=self.generates)

    def serving(self, options: Mapping[str, str]) -> dict[str, Any]:
        """guidance, steps and seed of `generate`, where they are asked for."""
        return serving.sampling_options(options) if self.generates else {}

    def table(self, dataset: Dataset, forecast: Mapping[str, np.ndarray], options: Mapping[str, str]) -> dict[str, np.ndarray]:
        """One row per record, see `abr_serving.table`."""
        return serving.table(self.statistics, dataset, forecast)

    def more_tables(
        self, dataset: Dataset, forecast: Mapping[str, np.ndarray], options: Mapping[str, str]
    ) -> dict[str, dict[str, np.ndarray]]:
        """series: threshold and class of every ear with at least four levels, where there is one."""
        return serving.series_tables(self.statistics, dataset, forecast)

    def figures(self, predict: Callable[..., dict[str, np.ndarray]], dataset: Dataset,
                sums: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:  # fmt: skip
        """{name: matplotlib figure}, see `abr_figures`."""
        from jaxtrain.tasks import abr_figures

        if self.generates:
            return abr_figures.draw_generated(self.statistics, predict, dataset)
        return abr_figures.draw(self.statistics, self._class_names(), predict, dataset, sums)

    # Facts the engine uses -----------------------------------------------------------------------------

    def groups(self) -> tuple[Group, ...]:
        """Step sizes and eigenvalues of the S4 layers have a rate of their own and no decay; their C decays like a kernel."""
        return (Group(r"/ssm/(log_dt|log_a|b)$", learning_rate=self.config.rates.s4, weight_decay=False), Group(r"/ssm/c$"))

    def flops_per_example(self) -> float | None:
        """Forward and backward of one record."""
        return network.flops_per_example(self.config.model)
