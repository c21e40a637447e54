"""Terms of the evoked-response objective against their formulas in NumPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from abr_case import COUNT, Told, batch, numbers, sections, task
from flax import nnx
from scipy.special import log_softmax

from jaxtrain.errors import UserError
from jaxtrain.tasks import abr_loss
from jaxtrain.tasks.abr import make_task


class Counting(Told, abr_loss.CountingNetwork):
    """Told, and counting."""

    def __init__(self, **said: Any):
        Told.__init__(self, **said)
        self.seen = nnx.BatchStat(jnp.zeros((), jnp.int32))


QUIET = {"data__hide_statics": "0"}


WEIGHTS = {"signal": 0.5, "existence": 0.7, "latency": 1.1, "amplitude": 1.3, "classes": 1.7, "threshold": 1.9, "uncertainty": 2.3}
VARIANTS = {
    "": {}, "weights": {f"loss__{name}": str(weight) for name, weight in WEIGHTS.items()},
    "mse": {"loss__kind": "mse"}, "l1": {"loss__kind": "l1"}, "flat": {"loss__signal": "0"},
    **{f"{weights}{smoothing}": {"loss__class_weights": weights, "loss__label_smoothing": str(smoothing)}
       for weights in ("none", "sqrt", "balanced", "focal") for smoothing in (0.0, 0.2)},
}  # fmt: skip


@functools.cache
def everything() -> dict[str, dict[str, float]]:
    """{variant: the terms and the objective of a batch}, in one program."""
    one, said = batch(), numbers()

    def of(b: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, overrides in VARIANTS.items():
            made = task(**overrides)
            config, told = made.config.loss, made._found(Told(**said), b)
            losses = abr_loss.terms(config, made.statistics, told, b)
            found[name] = {**losses, "objective": abr_loss.objective(config, losses, None)}
        return found

    return {name: {term: float(value) for term, value in row.items()} for name, row in jax.jit(of)(one).items()}


@functools.cache
def pieces() -> dict[str, Any]:
    """Residuals and ingredients in NumPy: float64."""
    one, said, known = batch(), numbers(), task().statistics
    x = one["signal"].astype(np.float64)
    m, s = x.mean(1), np.maximum(x.std(1), 0.01)
    mask = one["mask"] > 0
    found = {"mask": mask, "label": one["label"], "present": one["present"], "present_ok": one["present_ok"] & mask,
             "signal": said["signal"] - (one["target"] - m[:, None]) / s[:, None]}  # fmt: skip
    values = {"latency": said["latency_ms"], "amplitude": m + s * said["amplitude_z"],
              "threshold": known["threshold_mean"] + known["threshold_std"] * said["threshold_z"]}  # fmt: skip
    scale = {"latency": 1.0, "amplitude": s, "threshold": known["threshold_std"]}
    fields = {"latency": "latency_ms", "amplitude": "amplitude_uv", "threshold": "threshold_db"}
    for name, value in values.items():
        std = known[f"{name}_std"]
        found[name] = (value - one[fields[name]]) / std
        found[f"{name}_sd"] = np.exp(said[f"{name}_ln_sd"]) * scale[name] / std
        found[f"{name}_ok"] = one["threshold_ok" if name == "threshold" else "peak_ok"] & mask
        found[f"{name}_share"] = known["valid_share_threshold" if name == "threshold" else "valid_share_peak"]
    return found


RHO = {
    "mse": lambda e: e**2,
    "l1": np.abs,
    "huber": lambda e: np.where(np.abs(e) <= 1, e**2 / 2, np.abs(e) - 0.5),
}


@pytest.mark.parametrize("kind", ["mse", "huber", "l1"])
def test_residual_terms_are_masked_sums_over_constants(kind):
    p, found = pieces(), everything()["" if kind == "huber" else kind]
    records = COUNT - 1
    wanted = {"signal": (RHO[kind](p["signal"]).mean(1) * p["mask"]).sum() / records}
    for name in ("latency", "amplitude", "threshold"):
        wanted[name] = RHO[kind](p[name])[p[f"{name}_ok"]].sum() / (records * p[f"{name}_share"])
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


def test_existence_is_the_cross_entropy_of_the_logit():
    p, z = pieces(), numbers()["existence"].astype(np.float64)
    q = 1 / (1 + np.exp(-z))
    entropy = -np.where(p["present"], np.log(q), np.log(1 - q))
    share = task().statistics["valid_share_present"]
    assert everything()[""]["existence"] == pytest.approx(entropy[p["present_ok"]].sum() / ((COUNT - 1) * share), rel=1e-4)


@pytest.mark.parametrize("weights", ["none", "sqrt", "balanced", "focal"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_term_weighs_and_smooths(weights, smoothing):
    p, share = pieces(), np.asarray(task().statistics["class_share"], np.float64)
    known = p["mask"] & (p["label"] >= 0)
    logp, label = log_softmax(numbers()["class_logits"].astype(np.float64)[known], 1), p["label"][known]
    target = (1 - smoothing) * np.eye(5)[label] + smoothing / 5
    entropy = -(target * logp).sum(1)
    if weights == "focal":
        entropy *= (1 - np.exp(logp[np.arange(len(label)), label])) ** 2
    else:
        raw = share ** {"none": 0.0, "sqrt": -0.5, "balanced": -1.0}[weights]
        entropy *= (raw / (share * raw).sum())[label]
    found = everything()[f"{weights}{smoothing}"]
    assert found["classes"] == pytest.approx(entropy.sum() / ((COUNT - 1) * task().statistics["valid_share_class"]), rel=1e-4)


def test_balanced_weights_of_an_archive():
    counts = np.array([29_096, 327, 3_847, 1_218, 2_019])
    found = abr_loss.class_weights("balanced", counts / counts.sum())
    np.testing.assert_allclose(found, [0.2509, 22.328, 1.8979, 5.9946, 3.6163], rtol=2e-4)
    half = np.array([0.5, 0.5, 0, 0, 0])
    np.testing.assert_allclose(abr_loss.class_weights("sqrt", half), [1, 1, 0, 0, 0])


def test_uncertainty_is_a_likelihood_that_leaves_the_mean_alone():
    p = pieces()
    wanted = sum(
        (p[name] ** 2 / (2 * p[f"{name}_sd"] ** 2) + np.log(p[f"{name}_sd"]))[p[f"{name}_ok"]].sum() / ((COUNT - 1) * p[f"{name}_share"])
        for name in ("latency", "amplitude", "threshold")
    )
    assert everything()[""]["uncertainty"] == pytest.approx(wanted, rel=1e-4)
    made, one, said = task(**QUIET, **{f"loss__{name}": "0" for name in ("latency", "amplitude", "threshold")}), batch(), numbers()

    def objective(latency: jax.Array, spread: jax.Array) -> jax.Array:
        told = Told(**said)
        told.said["latency_ms"], told.said["latency_ln_sd"] = nnx.Param(latency), nnx.Param(spread)
        return made.loss(told, one, nnx.Rngs(0))[0]

    mean, spread = jax.jit(jax.grad(objective, argnums=(0, 1)))(said["latency_ms"], said["latency_ln_sd"])
    assert np.all(mean == 0) and np.abs(spread).max() > 0


def test_objective_is_the_weighted_sum():
    found = everything()[""]
    other = everything()["weights"]  # every weight another, so that none can stand for its neighbour
    assert other["objective"] == pytest.approx(sum(w * found[name] for name, w in WEIGHTS.items()), rel=1e-5)
    weights = {"signal": 1.0, "existence": 0.3, "latency": 0.8, "amplitude": 0.8, "classes": 2.0, "threshold": 0.6, "uncertainty": 0.1}
    assert found["objective"] == pytest.approx(sum(w * found[name] for name, w in weights.items()), rel=1e-5)
    assert everything()["flat"]["objective"] == pytest.approx(found["objective"] - found["signal"], rel=1e-4)


@functools.cache
def whole_loss() -> Any:
    made = task(**QUIET)
    return jax.jit(lambda said, b: made.loss(Told(**said), b, nnx.Rngs(0)))


def test_two_halves_of_a_batch_give_the_loss_of_the_whole():
    one, said = batch(), numbers()
    total = weight = 0.0
    for part in (slice(0, 6), slice(6, COUNT)):
        loss, logs = whole_loss()({k: v[part] for k, v in said.items()}, {k: v[part] for k, v in one.items()})
        total, weight = total + float(loss) * float(logs["weight"]), weight + float(logs["weight"])
    assert weight == COUNT - 1 and total / weight == pytest.approx(everything()[""]["objective"], rel=1e-5)


def test_terms_without_labels_or_heads_are_left_out():
    made, one, said = task(), batch(), numbers()
    nobody = {**one, "threshold_ok": np.zeros(COUNT, bool), "threshold_db": np.full(COUNT, np.nan, np.float32)}

    def both(b: dict[str, Any]) -> Any:
        few = Told(signal=said["signal"])
        return [abr_loss.terms(made.config.loss, made.statistics, made._found(told, b), b) for told in (Told(**said), few)]

    full, bare = jax.jit(both)(nobody)
    assert float(full["threshold"]) == 0 and np.isfinite([float(v) for v in full.values()]).all() and float(full["latency"]) > 0
    assert set(bare) == {"signal"}


def test_curriculum_lets_terms_in_one_after_another():
    config = task(loss__curriculum="true", loss__starts="(3,5,10)", loss__ramp="5").config.loss
    for epoch, wanted in ((0, (0, 0, 0)), (3, (0.2, 0, 0)), (5.5, (0.7, 0.3, 0)), (9, (1, 1, 0)), (11, (1, 1, 0.4)), (40, (1, 1, 1))):
        found = abr_loss.ramps(config, jnp.float32(epoch))
        np.testing.assert_allclose([found["classes"], found["latency"], found["threshold"]], wanted, atol=1e-6)
        assert found["signal"] == 1


def test_curriculum_counts_the_examples_that_were_trained_on():
    made, one = task(**QUIET, loss__curriculum="true", loss__starts="(0,1,2)", loss__ramp="1"), batch()
    told = Counting(**numbers())
    records = int(made.statistics["train_records"])
    told.seen[...] = jnp.asarray(round(0.5 * records), jnp.int32)

    def run(b: dict[str, Any]) -> Any:
        counting = nnx.clone(told)
        loss, logs = made.loss(counting, b, nnx.Rngs(0))
        return loss, logs, counting.seen[...]

    loss, logs, seen = jax.jit(run)(one)
    config = made.config.loss
    wanted = logs["signal"] + config.classes * logs["classes"]
    for name in ("existence", "latency", "amplitude", "uncertainty"):
        wanted = wanted + 0.5 * getattr(config, name) * logs[name]
    assert float(loss) == pytest.approx(float(wanted), rel=1e-3) and int(seen) == round(0.5 * records) + COUNT - 1


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("loss__kind", "hubber", "did you mean 'huber'"),
        ("loss__class_weights", "equal", "config.loss.class_weights"),
        ("loss__latency", "-1", "config.loss.latency: must be at least 0"),
        ("loss__label_smoothing", "1", "config.loss.label_smoothing"),
        ("loss__ramp", "0", "config.loss.ramp"),
        ("model__heads", "('signal','peak')", "config.loss.classes: 2, but model.heads"),
    ],
)
def test_faults_name_the_key(key, value, says):
    with pytest.raises(UserError, match=says):
        make_task(sections(**{key: value}))
