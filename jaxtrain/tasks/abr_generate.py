"""Objective `generate`: the diffusion loss, its score at fixed steps, waveforms drawn for given conditions and how real they are.

Letters: B records, L samples (200), T diffusion steps, K scored steps, Q principal components. The network sees waveforms in units
of sigma_data, the SD of all training samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.data.dataset import Arrays, Batch, Dataset, Statistics
from jaxtrain.data.evoked_config import SAMPLE_MS, SAMPLES
from jaxtrain.engine import metrics
from jaxtrain.errors import UserError
from jaxtrain.models import abr as network
from jaxtrain.models import abr_diffusion as diffusion
from jaxtrain.tasks.abr_inputs import conditions
from jaxtrain.tasks.abr_scores import LEVELS, groups
from jaxtrain.tasks.task import Forecast, Sums

HEADLINE = ("v_mse", "frechet", "frechet_floor", "level_wave_r", "slope_generated", "slope_real", "sd_ratio", "neighbour_ratio")
SCORED_STEPS = tuple(range(50, 951, 100))
PEAK_MS = (5.0, 9.75)
NEIGHBOURS = 2000  # training records that generated ones are held against
HEARD_DB = 30  # mean waves are compared from this level on
LEAST_OF_LEVEL = 5  # records


@dataclass(frozen=True)
class SamplingConfig:
    guidance: float  # 1 = off
    steps: int
    records: int  # test records that waveforms are drawn for after training
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= diffusion.STEPS:
            raise UserError(f"config.sampling.steps: must lie in 1..{diffusion.STEPS}, got {self.steps}")
        for key, least in (("guidance", 0), ("records", 2), ("seed", 0)):
            if getattr(self, key) < least:
                raise UserError(f"config.sampling.{key}: must be at least {least}, got {getattr(self, key)}")


def scaled_target(statistics: Statistics, batch: Batch) -> jax.Array:
    """(B, 200) x0 = target / sigma_data."""
    return jnp.asarray(batch["target"], jnp.float32) / np.float32(statistics["sigma_data"])


def asked(statistics: Statistics, batch: Batch) -> dict[str, jax.Array]:
    """The network's inputs beside x and t: statics, statics_ok (B, 4), label (B,)."""
    return {**conditions(statistics, batch), "label": jnp.asarray(batch["label"], jnp.int32)}


def v_error(model: network.Network, statistics: Statistics, batch: Batch, rngs: nnx.Rngs) -> jax.Array:
    """() mean square error of v over the batch's real examples, t uniform per example."""
    x0 = scaled_target(statistics, batch)
    t = jax.random.randint(rngs.step(), (len(x0),), 0, diffusion.STEPS)
    noise = jax.random.normal(rngs.noise(), x0.shape)
    x_t, v = diffusion.diffuse(x0, noise, t)
    error = ((model({"x": x_t, "t": t, **asked(statistics, batch)}, rngs)["v"] - v) ** 2).mean(-1)
    mask = jnp.asarray(batch["mask"], jnp.float32)
    return metrics.total(error, mask) / jnp.maximum(mask.sum(), 1.0)


# Scores of v ----------------------------------------------------------------------------------------------


def scored_noise(batch: Batch) -> jax.Array:
    """(K, B, 200) standard normal noise that depends on the record's row and the scored step alone."""

    def of(row: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(jax.random.key(0), row), (len(SCORED_STEPS), SAMPLES))

    return jnp.swapaxes(jax.vmap(of)(jnp.asarray(batch["row"], jnp.int32)), 0, 1)


def score(model: network.Network, statistics: Statistics, how: SamplingConfig, batch: Batch) -> Sums:
    """The sums of `score_forecast`; of a batch that asks for samples those of `sample_sums` as well."""
    x0, given = scaled_target(statistics, batch), asked(statistics, batch)

    def at(step_and_noise: tuple[jax.Array, jax.Array]) -> jax.Array:
        step, noise = step_and_noise
        t = jnp.full(len(x0), step)
        return model({"x": diffusion.diffuse(x0, noise, t)[0], "t": t, **given})["v"]

    sums = score_forecast({"v": jax.lax.map(at, (np.array(SCORED_STEPS), scored_noise(batch)))}, statistics, batch)
    if "samples" not in batch:
        return sums
    return sums | sample_sums(draw(model, statistics, how, batch), statistics, batch)


def score_forecast(forecast: Forecast, statistics: Statistics, batch: Batch) -> Sums:
    """v/sq (K,) sums of mean (v_hat - v)^2 per record and v/n (), of v_hat (K, B, 200)."""
    x0, steps = scaled_target(statistics, batch), np.array(SCORED_STEPS)
    truth = jax.vmap(lambda t, noise: diffusion.diffuse(x0, noise, jnp.full(len(x0), t))[1])(steps, scored_noise(batch))
    mask = jnp.asarray(batch["mask"], jnp.float32)
    error = ((forecast["v"] - truth) ** 2).mean(-1)
    return {"v/sq": jnp.where(mask > 0, error * mask, 0.0).sum(1), "v/n": mask.sum()}


def naive(statistics: Statistics, batch: Batch) -> dict[str, Forecast]:
    """zero: v = 0; linear: v of the best linear x0 from training mean and covariance."""
    x0, noise = scaled_target(statistics, batch), scored_noise(batch)
    sigma = float(statistics["sigma_data"])
    mean = np.asarray(statistics["train_mean"], np.float64) / sigma
    values, vectors = np.linalg.eigh(np.asarray(statistics["train_cov"], np.float64) / sigma**2)
    told = []
    for number, abar in enumerate(diffusion.abar_table()[list(SCORED_STEPS)]):
        a, g = float(np.sqrt(abar)), float(np.sqrt(1 - abar))
        # E[x0 | x_t] = mean + a C (a^2 C + g^2)^-1 (x_t - a mean), in the eigenbasis of C.
        gain = a * np.maximum(values, 0) / (a**2 * np.maximum(values, 0) + g**2)
        matrix = ((vectors * gain) @ vectors.T).astype(np.float32)
        x_t = a * x0 + g * noise[number]
        best = mean.astype(np.float32) + (x_t - (a * mean).astype(np.float32)) @ matrix
        told.append((a * x_t - best) / g)
    return {"zero": {"v": jnp.zeros_like(noise)}, "linear": {"v": jnp.stack(told)}}


# Waveforms ------------------------------------------------------------------------------------------------


def draw(model: network.Network, statistics: Statistics, how: SamplingConfig, batch: Batch) -> jax.Array:
    """(B, 200) uV drawn for the batch's conditions; the noise depends on the seed and the number of the drawing (else the row)."""
    numbers = jnp.asarray(batch["draw"] if "draw" in batch else batch["row"], jnp.int32)
    key = jax.random.key(how.seed)
    noise = jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number), (SAMPLES,)))(numbers)
    velocity = diffusion.guided(lambda inputs: model(inputs)["v"], asked(statistics, batch), how.guidance)
    return np.float32(statistics["sigma_data"]) * diffusion.ddim(velocity, noise, how.steps, float(statistics["clip"]))


def sampled(dataset: Dataset, count: int) -> Dataset:
    """At most `count` records, spread evenly, whose batches ask for waveforms to be drawn and compared."""
    index = np.ascontiguousarray(dataset.index[:: -(-len(dataset) // count)])
    return replace(dataset, index=index, gather=partial(_gather_samples, dataset.gather), weights=None)


def _gather_samples(gather: Any, arrays: Arrays, rows: Any) -> Batch:
    return {**gather(arrays, rows), "samples": rows[:, 0] >= 0}


def neighbours(train: Dataset, statistics: Statistics) -> Statistics:
    """neighbours (n, Q): training targets, spread evenly, by their principal components."""
    rows = train.index[:: -(-len(train) // NEIGHBOURS)]
    target = np.asarray(train.gather(train.arrays, rows)["target"], np.float32)
    return {"neighbours": (target - statistics["pca_mean"]) @ np.asarray(statistics["pca"], np.float32).T}


def sample_sums(drawn: jax.Array, statistics: Statistics, batch: Batch) -> Sums:
    """Sums of drawn and real waveforms (kinds `generated` and `real`): KIND/n (), KIND/sum (Q,), KIND/outer (Q, Q) of principal
    components, KIND/wave (16, 200) by level with wave/n (16,), KIND/sd () of SDs, KIND/near () of distances to the nearest of the
    training records."""
    mask = jnp.asarray(batch["mask"], jnp.float32)
    level = jnp.asarray(groups(batch)["level"], jnp.float32) * mask[:, None]
    sums: Sums = {"wave/n": level.sum(0)}
    for kind, wave in (("generated", drawn), ("real", jnp.asarray(batch["target"], jnp.float32))):
        part = (wave - statistics["pca_mean"]) @ jnp.asarray(statistics["pca"], jnp.float32).T
        near = ((part[:, None] - jnp.asarray(statistics["neighbours"])) ** 2).sum(-1).min(-1)
        sums |= {
            f"{kind}/n": mask.sum(),
            f"{kind}/sum": mask @ part,
            f"{kind}/outer": (part * mask[:, None]).T @ part,
            f"{kind}/wave": level.T @ wave,
            f"{kind}/sd": (mask * wave.std(-1)).sum(),
            f"{kind}/near": (mask * jnp.sqrt(near)).sum(),
        }
    return sums


# On the host ----------------------------------------------------------------------------------------------


def summarize(statistics: Statistics, sums: Mapping[str, Any]) -> dict[str, float]:
    """v_mse, v_mse/t=STEP; of samples: frechet (distance of the Gaussians of the principal components, generated against real),
    frechet_floor (training against real), level_wave_r (mean correlation of mean waves of a level, from 30 dB), slope_real and
    slope_generated (ms per 10 dB of the mean waves' peak), sd_ratio, neighbour_ratio (< 0.9: training records repeated); records."""
    host = {name: np.asarray(value, np.float64) for name, value in sums.items()}
    n = float(host["v/n"])
    if n == 0:
        return {}
    found: dict[str, float | None] = {"v_mse": float(host["v/sq"].mean() / n), "records": n}
    found |= {f"v_mse/t={step}": float(value / n) for step, value in zip(SCORED_STEPS, host["v/sq"], strict=True)}
    if host.get("generated/n", 0.0) > 1:
        found |= _sample_scores(statistics, host)
    return metrics.present(found)


def _sample_scores(statistics: Statistics, host: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    moments = {kind: _moments(host, kind) for kind in ("generated", "real")}
    pca = np.asarray(statistics["pca"], np.float64)
    train = pca @ (statistics["train_mean"] - statistics["pca_mean"]), pca @ np.asarray(statistics["train_cov"], np.float64) @ pca.T
    waves = level_waves(host)
    correlations = [float(np.corrcoef(real, drawn)[0, 1]) for _, real, drawn in waves]
    return {
        "frechet": frechet(*moments["generated"], *moments["real"]),
        "frechet_floor": frechet(*train, *moments["real"]),
        "level_wave_r": float(np.mean(correlations)) if correlations else None,
        "slope_real": slope([(level, real) for level, real, _ in waves]),
        "slope_generated": slope([(level, drawn) for level, _, drawn in waves]),
        "sd_ratio": metrics.divide(host["generated/sd"], host["real/sd"]),
        "neighbour_ratio": metrics.divide(host["generated/near"], host["real/near"]),
    }


def _moments(host: Mapping[str, np.ndarray], kind: str) -> tuple[np.ndarray, np.ndarray]:
    n = host[f"{kind}/n"]
    mean = host[f"{kind}/sum"] / n
    return mean, host[f"{kind}/outer"] / n - np.outer(mean, mean)


def frechet(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2) of two Gaussians (Heusel et al. 2017)."""
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def level_waves(host: Mapping[str, np.ndarray], least_db: float = HEARD_DB) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """[(level dB, mean real wave, mean generated wave)] of levels from `least_db` with at least five records."""
    n = host["wave/n"]
    return [(level, host["real/wave"][i] / n[i], host["generated/wave"][i] / n[i])
            for i, level in enumerate(LEVELS) if level >= least_db and n[i] >= LEAST_OF_LEVEL]  # fmt: skip


def slope(waves: list[tuple[float, np.ndarray]]) -> float | None:
    """ms per 10 dB of the highest sample in 5-9.75 ms; None with fewer than three levels."""
    if len(waves) < 3:
        return None
    first, last = (round(ms / SAMPLE_MS) for ms in PEAK_MS)
    peaks = [SAMPLE_MS * (first + int(np.argmax(wave[first : last + 1]))) for _, wave in waves]
    return float(10 * np.polyfit([level for level, _ in waves], peaks, 1)[0])
