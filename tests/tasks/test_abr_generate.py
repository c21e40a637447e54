"""Objective `generate`: loss and score of v, reference forecasts, sampling and what drawn waveforms are judged by."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from abr_case import COUNT, Told, host, sections
from flax import nnx
from scipy.linalg import sqrtm

from jaxtrain.data.dataset import Splits
from jaxtrain.errors import UserError
from jaxtrain.models import abr as network
from jaxtrain.models.abr_diffusion import abar_table
from jaxtrain.tasks import abr_generate as generation
from jaxtrain.tasks.abr import Task, make_task

STEPS = generation.SCORED_STEPS


@functools.cache
def splits() -> Splits:
    return make_task(sections("generate+smoke")).splits()


def task() -> Task:
    return make_task(sections("generate+smoke"), splits().statistics)


def batch(name: str = "test", count: int = COUNT) -> dict[str, Any]:
    chosen = splits().named()[name]
    rows = chosen.index[:: max(1, len(chosen) // count)][:count]
    mask = np.ones(len(rows), np.float32)
    mask[-1] = 0
    return {**chosen.gather(chosen.arrays, rows), "mask": mask}


class Shrinking(network.Network):
    """v of the estimate x0 = factor x_t: not far off at small t, and a function of its inputs."""

    def __init__(self, factor: float = 0.5):
        self.factor = nnx.Param(jnp.float32(factor))

    def __call__(self, inputs: Any, rngs: Any = None) -> dict[str, jax.Array]:
        a, g = (jnp.asarray(level, jnp.float32)[inputs["t"]][:, None] for level in (np.sqrt(abar_table()), np.sqrt(1 - abar_table())))
        return {"v": (a - self.factor[...]) * inputs["x"] / g}


def levels(step: int) -> tuple[float, float]:
    return float(np.sqrt(abar_table()[step])), float(np.sqrt(1 - abar_table()[step]))


def test_the_loss_is_the_mean_square_of_v():
    made, one = task(), batch()
    zero = Told(v=np.zeros((COUNT, 200)))
    call = jax.jit(lambda b: made.loss(zero, b, nnx.Rngs(0)))
    loss, logs = call(one)
    # With v_hat = 0 it is the mean of v^2 = a^2 eps^2 + g^2 x0^2 up to chance: t is uniform.
    x0 = one["target"][:-1] / splits().statistics["sigma_data"]
    assert float(loss) == float(logs["v_mse"]) and float(logs["weight"]) == COUNT - 1
    assert 0.5 * min(1, (x0**2).mean()) < float(loss) < 1.5 * max(1, (x0**2).mean())
    spoilt = {**one, "target": np.where(np.arange(COUNT)[:, None] == COUNT - 1, np.nan, one["target"])}
    assert float(call(spoilt)[0]) == pytest.approx(float(loss))


@functools.cache
def scored() -> tuple[dict, dict[str, dict[str, float]], dict]:
    """(batch, scores by forecaster, sums of the model)."""
    made, one = task(), batch()
    call = jax.jit(lambda b: {"model": made.score(Shrinking(), b), **{n: made.score_forecast(f, b) for n, f in made.naive(b).items()}})
    sums = call(one)
    return one, {name: made.summarize(host(value)) for name, value in sums.items()}, host(sums["model"])


def test_the_score_is_the_error_at_fixed_steps_with_noise_by_record():
    one, found, _ = scored()
    known = splits().statistics
    x0 = one["target"][:-1].astype(np.float64) / known["sigma_data"]
    noise = np.asarray(generation.scored_noise(one), np.float64)[:, :-1]
    for number, step in enumerate(STEPS):
        a, g = levels(step)
        x_t, v = a * x0 + g * noise[number], a * noise[number] - g * x0
        assert found["model"][f"v_mse/t={step}"] == pytest.approx(((((a - 0.5) * x_t / g) - v) ** 2).mean(), rel=1e-3)
        assert found["zero"][f"v_mse/t={step}"] == pytest.approx((v**2).mean(), rel=1e-4)
    for row in found.values():
        assert row["v_mse"] == pytest.approx(np.mean([row[f"v_mse/t={step}"] for step in STEPS]), rel=1e-5) and row["records"] == COUNT - 1
    assert len(STEPS) == 10 and (STEPS[0], STEPS[-1]) == (50, 950)
    order = np.array([5, 2, 0])
    part = generation.scored_noise({name: values[order] for name, values in one.items()})
    np.testing.assert_array_equal(part, np.asarray(generation.scored_noise(one))[:, order])


def test_the_linear_forecast_is_the_best_linear_one():
    made, one = task(), batch()
    known = splits().statistics
    sigma = float(known["sigma_data"])
    mean, cov = known["train_mean"].astype(np.float64) / sigma, known["train_cov"].astype(np.float64) / sigma**2
    x0, noise = one["target"] / sigma, np.asarray(generation.scored_noise(one))
    told = np.asarray(jax.jit(made.naive)(one)["linear"]["v"])
    for number in (0, 5, 9):
        a, g = levels(STEPS[number])
        x_t = a * x0 + g * noise[number]
        best = mean + (x_t - a * mean) @ np.linalg.solve(a**2 * cov + g**2 * np.eye(200), a * cov)
        np.testing.assert_allclose(told[number], (a * x_t - best) / g, atol=2e-3)
    _, found, _ = scored()
    assert found["linear"]["v_mse"] < 0.6 * found["zero"]["v_mse"]


@functools.cache
def drawn() -> tuple[dict, np.ndarray, dict]:
    """(batch of the split `samples`, waveforms, sums)."""
    made, one = task(), batch("samples", 100)

    def both(b: dict) -> Any:
        return made.predict(Shrinking(), b)["generated_uv"], made.score(Shrinking(), b)

    wave, sums = jax.jit(both)(one)
    return one, np.asarray(wave), host(sums)


def test_only_the_split_samples_is_drawn_for():
    found = splits()
    assert set(found.more) == {"samples"} and 2 <= len(found.more["samples"]) <= task().config.sampling.records
    _, _, plain = scored()
    assert not any(name.startswith("generated") for name in plain) and "generated/n" in drawn()[2]


@pytest.mark.slow
def test_drawn_waveforms_depend_on_seed_and_record():
    made, (one, wave, _) = task(), drawn()
    assert wave.shape == one["target"].shape and np.isfinite(wave).all() and wave.std() > 0
    few = {name: values[:3] for name, values in one.items()}
    call = jax.jit(lambda b, seed: made.predict(Shrinking(), b, seed=seed)["generated_uv"], static_argnums=1)
    np.testing.assert_allclose(call(few, made.config.sampling.seed), wave[:3], atol=1e-5)
    assert np.abs(np.asarray(call(few, 7)) - wave[:3]).max() > 1e-3


def test_sums_of_drawn_waveforms_are_plain_moments():
    one, wave, sums = drawn()
    known = splits().statistics
    real = one["mask"] > 0
    for kind, waves in (("generated", wave), ("real", one["target"])):
        part = (waves[real] - known["pca_mean"]) @ known["pca"].T
        np.testing.assert_allclose(sums[f"{kind}/sum"], part.sum(0), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(sums[f"{kind}/outer"], part.T @ part, rtol=1e-3, atol=1e-3)
        near = np.sqrt(((part[:, None] - known["neighbours"]) ** 2).sum(-1)).min(1)
        assert sums[f"{kind}/near"] == pytest.approx(near.sum(), rel=1e-3)
        assert sums[f"{kind}/sd"] == pytest.approx(waves[real].std(1).sum(), rel=1e-4)
    assert sums["wave/n"].sum() == (real & one["statics_ok"][:, 1]).sum()


def test_real_waveforms_pass_for_real():
    made, (_, _, sums) = task(), drawn()
    forged = {**sums, **{f"generated/{name[5:]}": value for name, value in sums.items() if name.startswith("real/")}}
    found, poor = made.summarize(forged), made.summarize(sums)
    assert found["frechet"] == pytest.approx(0, abs=1e-6) and found["sd_ratio"] == found["neighbour_ratio"] == 1
    assert found["frechet_floor"] > 0 and poor["frechet"] > found["frechet"]


def test_frechet_distance_of_two_gaussians():
    rng = np.random.default_rng(0)
    a, b = (np.cov(rng.normal(size=(50, 6)).T) for _ in range(2))
    m, n = rng.normal(size=(2, 6))
    wanted = ((m - n) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert generation.frechet(m, a, n, b) == pytest.approx(wanted)


def test_slope_of_mean_waves():
    time = 0.05 * np.arange(200)
    waves = [(level, np.exp(-(((time - (8 - 0.04 * level)) / 0.3) ** 2))) for level in (30.0, 50.0, 70.0)]
    assert generation.slope(waves) == pytest.approx(-0.4) and generation.slope(waves[:2]) is None


@pytest.mark.slow
def test_conditions_are_read_and_waveforms_written(tmp_path):
    made = task()
    path = tmp_path / "ask.json"
    first = '{"patient_id": "a", "static": [0, 60, null, 1.5], "class": "SNIK"}'
    second = '{"patient_id": "b", "static": [30, 20, 33.1, null]}'
    path.write_text(f"[{first}, {second}]")
    options = {"count": "3", "guidance": "1", "steps": "7", "seed": "5"}
    dataset = made.inputs(str(path), options)
    assert len(dataset) == 6 and made.serving(options) == {"guidance": 1.0, "steps": 7, "seed": 5}
    one = dataset.gather(dataset.arrays, dataset.index)
    assert one["draw"].tolist() == list(range(6)) and one["label"].tolist() == [2] * 3 + [-1] * 3
    wave = np.asarray(jax.jit(lambda b: made.predict(Shrinking(), b, **made.serving(options)))(one)["generated_uv"])
    assert np.abs(wave[0] - wave[1]).max() > 1e-3
    table = made.table(dataset, {"generated_uv": wave}, options)
    assert table["signal"].shape == (6, 200) and table["class"].tolist() == ["SNIK"] * 3 + [""] * 3
    assert np.isnan(table["rate_hz"][0]) and table["intensity_db"].tolist() == [60] * 3 + [20] * 3


@pytest.mark.parametrize(("options", "says"), [
    ({"guidance": "lots"}, "--option guidance=lots"), ({"guidance": "-1"}, "--option guidance=-1"), ({"steps": "0"}, "--option steps=0"),
    ({"seed": "x"}, "--option seed=x"),
    ({"seed": "9" * 20}, "--option seed=9+: expected a whole number below 2\\^63"),
])  # fmt: skip
def test_options_out_of_range(options, says):
    with pytest.raises(UserError, match=says):
        task().serving(options)


@pytest.mark.parametrize(("key", "value", "says"), [
    ("sampling__steps", "1001", "config.sampling.steps"), ("sampling__records", "1", "config.sampling.records"),
    ("data__target", "corrupt", "config.data.target"),
])  # fmt: skip
def test_faults_name_the_key(key, value, says):
    with pytest.raises(UserError, match=says):
        make_task(sections("generate+smoke", **{key: value}))
