"""Cloud base height from airborne camera frames: data, network, objective, intervals and scores put together.

Letters: B windows, T frames of a window, H rows along track, W columns, F flights. Heights are km above sea level, angles degrees; the
network and the loss work in standard deviations of the training heights.
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.data import clouds
from jaxtrain.data.clouds_config import DataConfig, check_config
from jaxtrain.data.dataset import Batch, Dataset, Splits, Statistics
from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError
from jaxtrain.models import cbh as network
from jaxtrain.tasks import cbh_augment as augment
from jaxtrain.tasks import cbh_inputs as door
from jaxtrain.tasks import cbh_intervals as intervals
from jaxtrain.tasks import cbh_loss as objective
from jaxtrain.tasks import cbh_scores as scores
from jaxtrain.tasks import cbh_serving as serving
from jaxtrain.tasks import task as contract
from jaxtrain.tasks.options import check as check_options
from jaxtrain.tasks.options import whole
from jaxtrain.tasks.task import Fold, Forecast, Sums

REFERENCES = ("near", "last*", "ridge", "boost", "oracle")  # columns of reference_km; the star: needs a lidar on board
SECTIONS: dict[str, type] = {
    "data": DataConfig, "model": network.Config, "augment": augment.AugmentConfig, "loss": objective.LossConfig,
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The sections this task reads."""

    data: DataConfig
    model: network.Config
    augment: augment.AugmentConfig
    loss: objective.LossConfig


def make_task(sections: Mapping[str, Any], statistics: Statistics | None = None) -> "Task":
    """The task of a run: `sections` maps every name of SECTIONS to its resolved values.

    Raises UserError for an unknown section or key, a value out of range, or keys that do not fit each other.
    """
    config = Config(**configs.sections(SECTIONS, sections))
    check_config(config.data)
    if config.model.film == "plain" and config.data.angles == "none" and config.model.variant != "cnn":
        raise UserError("config.model.film: 'plain' multiplies by what it makes of the sun's angles, and with data.angles='none' there is "
                        "nothing to learn from; set model.film to none")  # fmt: skip
    return Task(config).with_statistics(dict(statistics or {}))


@dataclass(frozen=True)
class Task(contract.Task):
    """Cloud base height. `statistics` is what `jaxtrain.data.clouds` computes from the training rows."""

    config: Config
    monitor = ("valid/loss", "min")
    signature = ("frames", "sun")

    def with_statistics(self, statistics: Statistics) -> Self:
        """This task, knowing these statistics as well; the printed scores name its flights."""
        known = super().with_statistics(statistics)
        flights = [str(name) for name in known.statistics.get("flights", ())]
        parts = [f"mae_km/{part}/{flight}" for part in ("blocked", "flight") for flight in flights]
        return replace(known, headline=(
            "mae_km/blocked", "mae_km/flight", "rmse_km/flight", "r2/blocked", "r2/flight", "r2_margin/flight", "spread/blocked",
            "spread/flight", "tier/flight", "coverage_90/blocked", "coverage_90/transfer", "coverage_90/few", *parts,
            "mae_km/train", "r2/train",
        ))  # fmt: skip

    # Data ----------------------------------------------------------------------------------------------

    def splits(self) -> Splits:
        """Real flights when data.path is set, else the embedded ones; the training rows also say whether mirrors can move the sun."""
        found = clouds.splits(self.config.data)
        known = _headings_known(found.train)
        mirrors = () if known or not self._azimuth_used() else ("no heading: the azimuth counts from north, mirrors are off",)
        statistics = {**found.statistics, "heading_known": np.array(known), "temporal_frames": np.array(self.config.data.temporal_frames)}
        # Figures show every window, whatever it was used for.
        windows = np.concatenate([found.train.index, found.valid.index, found.test.index])
        windows = np.ascontiguousarray(windows[np.argsort(windows[:, 0], kind="stable")])
        train, valid, test = (
            replace(part, arrays={**part.arrays, "windows": windows}) for part in (found.train, found.valid, found.test)
        )
        found = replace(found, train=train, valid=valid, test=test)
        return replace(found, statistics=statistics, notes=(*found.notes, *self._margins(found), *mirrors))

    def _margins(self, found: Splits) -> list[str]:
        """How little the test labels say: neighbours are alike."""
        layout, notes = scores.layout(found.statistics), []
        role, flight = found.test.index[:, 2], found.test.index[:, 1]
        for part in ("blocked", "flight"):
            counts = np.bincount(flight[np.isin(role, scores.PARTS[part])], minlength=layout.groups).astype(float)
            if counts.sum():
                n_eff = scores.effective(layout, counts)
                notes.append(f"{part}: {counts.sum():.0f} test labels are about {n_eff:.3g} independent ones; R2 differences below "
                             f"{n_eff**-0.5:.2g} are not distinguishable")  # fmt: skip
        return notes

    def folds(self, kind: str, n: int | None) -> list[Fold]:
        """`leave_one_out`: every flight is tested once, held out whole beside the other flight with the widest labels; one phase.

        n: the first so many flights. Every fold also scores the blocks of the flights it trains on.
        """
        if kind != "leave_one_out":
            raise UserError(f"--folds {kind}: this system has leave_one_out; blocks are part of every run")
        spread = clouds.flight_names(self.config.data)
        if n is not None and n > len(spread):
            raise UserError(f"--folds {kind}:{n}: there are {len(spread)} flights ({', '.join(spread)})")
        folds = []
        for test in list(spread)[:n]:
            valid = max((name for name in spread if name != test), key=lambda name: spread[name])
            held = (test, valid)
            changes = {"data.test_flight": test, "data.valid_flight": valid, "phases": []}
            changes["data.train_flights"] = [name for name in self.config.data.train_flights if name not in held]
            if self.config.data.overweight_flight in held:
                changes |= {"data.overweight_flight": "", "data.overweight_factor": 1.0}
            folds.append(Fold(f"fold-{test}", changes))
        return folds

    def inputs(self, path: str, options: Mapping[str, str]) -> Dataset:
        """Every frame of a flight that has a whole window. Options: every (k-th frame), nav (the navigation file of an images file), lidar
        (its labels), calibrate (the first k labels make the interval)."""
        check_options(options, serving.OPTIONS)
        found = clouds.inputs(
            self.config.data, self.statistics, path, every=whole(options, "every", 1), nav=options.get("nav", ""),
            lidar=options.get("lidar", ""), calibrate=whole(options, "calibrate", 0),
        )  # fmt: skip
        return replace(found, arrays={**found.arrays, "flight_name": np.array([Path(path).stem])})

    def labelled(self, path: str, options: Mapping[str, str]) -> Dataset:
        """The labelled windows of a flight that the run has never seen. Options: nav, lidar, as for `inputs`."""
        check_options(options, ("nav", "lidar"))
        return clouds.labelled(self.config.data, self.statistics, path, nav=options.get("nav", ""), lidar=options.get("lidar", ""))

    # Model and objective -------------------------------------------------------------------------------

    def build(self, rngs: nnx.Rngs, dtype: Any = jnp.float32) -> network.Network:
        """The network for this run's windows, computing in `dtype`."""
        model = self.config.model
        return network.Network(
            model, self.config.data.temporal_frames, door.CHANNELS[model.intensity], door.SUN_FEATURES[model.sun], rngs, dtype
        )

    def _azimuth_used(self) -> bool:
        return door.USED[self.config.data.angles][1] and self.config.model.film != "none" and self.config.model.variant != "cnn"

    def loss(self, model: nnx.Module, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Mean over the windows of loss.kind on a random view of them, the hardest counting more (`cbh_loss`).

        Logs loss_plain (without mining, as the validation's) and mae_km. `weight` = valid windows: a batch cut into parts gives the
        undivided loss exactly, but for mining, which then chooses within each part.
        """
        assert isinstance(model, network.Network)
        config, known, mask = self.config, self.statistics, jnp.asarray(batch["mask"], jnp.float32)
        frames, sun = jnp.asarray(batch["frames"], jnp.float32), jnp.asarray(batch["sun"], jnp.float32)
        self._check_shape(frames.shape[1:])
        view = None
        if config.augment.strength > 0:
            mirrors = not self._azimuth_used() or bool(known["heading_known"])
            view = augment.draw(config.augment, rngs, frames.shape, mirrors=mirrors)
            centre = frames.mean((1, 2, 3)) if config.augment.kind == "seed" else jnp.asarray(known["pixel_mean"], jnp.float32)
            frames, sun = augment.seen(view, frames, sun, jnp.asarray(known["pixel_std"], jnp.float32), centre)
        inputs = door.model_inputs(config.data, config.model, known, frames, sun)
        if view is not None:
            inputs["frames"] = augment.erased(view, inputs["frames"])
        values, errors = self._losses(model(inputs, rngs)["y"], batch)
        mined = objective.mined(values, mask, config.loss.hard_fraction, config.loss.hard_weight)
        return objective.average(mined, mask), {
            "loss_plain": objective.average(values, mask), "mae_km": objective.average(jnp.abs(errors), mask), "weight": mask.sum(),
        }  # fmt: skip

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        """The statistics are those of the last phase: another window there is another network."""
        last = (int(self.statistics["temporal_frames"]), *(int(size) for size in self.statistics["frame_shape"]))
        if shape != last:
            raise UserError(f"config.phases: the last phase has windows of {last} (frames, rows, columns), another one of {shape}; the "
                            "weights carry over, so set data.temporal_frames, rows, reduce and synthetic outside the phases")  # fmt: skip

    def _losses(self, y: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Loss (B,) and error (B,) km of standardised heights."""
        mean, std = self.statistics["height_mean"], self.statistics["height_std"]
        height = jnp.asarray(batch["height_km"], jnp.float32)
        return objective.losses(self.config.loss, (height - mean) / std, y), y * std + mean - height

    # Forecasts -----------------------------------------------------------------------------------------

    def _outputs(self, model: nnx.Module, batch: Batch, explain: bool) -> dict[str, jax.Array]:
        """The network's outputs and height_km (B,)."""
        assert isinstance(model, network.Network)
        inputs = door.model_inputs(self.config.data, self.config.model, self.statistics, batch["frames"], batch["sun"])
        found = model(inputs, explain=explain)
        return {**found, "height_km": found["y"] * self.statistics["height_std"] + self.statistics["height_mean"]}

    def predict(self, model: nnx.Module, batch: Batch, explain: bool = False) -> Forecast:
        """base_km (B,), low80_km, high80_km, low90_km, high90_km (B,) km and frame_weights (B, T); explain: also map (B, T, h, w),
        where the network looked, if it has such a map."""
        found = self._outputs(model, batch, True)
        forecast: Forecast = serving.with_interval(self.statistics, found["height_km"], batch["flight"])
        forecast["frame_weights"] = found["frame_weights"]
        if explain and "map" in found:
            forecast["map"] = found["map"]
        return forecast

    def naive(self, batch: Batch) -> dict[str, Forecast]:
        """mean (of the training rows) and the references of the data: near, last*, ridge, boost, on embedded flights oracle.

        A row for which a reference is not available is left out of that reference's scores.
        """
        reference = jnp.asarray(batch["reference_km"], jnp.float32)
        found: dict[str, Forecast] = {"mean": {"height_km": jnp.full(len(reference), self.statistics["height_mean"], jnp.float32)}}
        for i, name in enumerate(REFERENCES):
            if name == "oracle" and self.config.data.path or name == "boost" and not self._boosts():
                continue
            found[name] = {"height_km": reference[:, i]}
        return found

    def _boosts(self) -> bool:
        return self.config.data.boost and importlib.util.find_spec("sklearn") is not None

    # Scores --------------------------------------------------------------------------------------------

    @functools.cached_property
    def _layout(self) -> scores.Layout:
        return scores.layout(self.statistics)

    def score(self, model: nnx.Module, batch: Batch) -> Sums:
        """Sums of every score, see `cbh_scores.window_sums`; `own` tells that intervals are calibrated for this forecast."""
        found = self._outputs(model, batch, False)
        sums = scores.window_sums(self._layout, found["height_km"], self._losses(found["y"], batch)[0], batch)
        return {**sums, "own": jnp.asarray(batch["mask"], jnp.float32).sum()}

    def score_forecast(self, forecast: Forecast, batch: Batch) -> Sums:
        """The same sums of a forecast height_km (B,), over the windows where it is known."""
        height = jnp.asarray(forecast["height_km"], jnp.float32)
        known = jnp.isfinite(height)
        height = jnp.where(known, height, 0.0)
        y = (height - self.statistics["height_mean"]) / self.statistics["height_std"]
        return scores.window_sums(self._layout, height, self._losses(y, batch)[0], {**batch, "mask": batch["mask"] * known})

    def summarize(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scores in km, see `cbh_scores.summarize`; of the model also how its intervals hold, see `cbh_intervals.scores`."""
        found = scores.summarize(self._layout, sums)
        return found | (intervals.scores(sums["histogram"], self.statistics) if "own" in sums else {})

    def calibrate(self, sums: Mapping[str, np.ndarray]) -> Statistics:
        """Half widths of the intervals from the validation rows."""
        return intervals.calibrate(sums["histogram"])

    # What people read ----------------------------------------------------------------------------------

    def complete(self, batch: Batch) -> Batch:
        """Arrays given by hand: frames (B, T, H, W) in sensor units and sun (B, 2) degrees, see `cbh_serving`."""
        return serving.complete(self.config.data, self.statistics, batch)

    def table(self, dataset: Dataset, forecast: Mapping[str, np.ndarray], options: Mapping[str, str]) -> dict[str, np.ndarray]:
        """The table of `cbh_serving.table`."""
        return serving.table(dataset, forecast, options)

    def figures(self, predict: Callable[..., dict[str, np.ndarray]], dataset: Dataset,
                sums: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Any]:  # fmt: skip
        """{name: matplotlib figure}: truth and forecast, flights over time, residuals, references, where the network looked, heights."""
        from jaxtrain.tasks import cbh_figures

        return cbh_figures.draw(self._layout, self.summarize, predict, dataset, sums)

    def groups(self) -> tuple[contract.Group, ...]:
        """Weight decay on every parameter where loss.decay_all asks for it."""
        return (contract.Group(".", weight_decay=True),) if self.config.loss.decay_all else ()

    def flops_per_example(self) -> float | None:
        """Forward and backward of one window's convolutions."""
        if "frame_shape" not in self.statistics:
            return None
        height, width = (int(size) for size in self.statistics["frame_shape"])
        model = self.config.model
        return network.flops_per_window(model, self.config.data.temporal_frames, height, width, door.CHANNELS[model.intensity])


def _headings_known(train: Dataset) -> bool:
    """Whether every training window's azimuth counts from the aircraft's heading."""
    heading = train.arrays.get("heading")
    return heading is not None and bool(np.isfinite(np.asarray(heading)[train.index[:, 0]]).all())
