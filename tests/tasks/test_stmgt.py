"""The traffic task by hand, on the shrunk embedded network: data, loss, gradient, scores, tables."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxtrain.data.dataset import Dataset, padded_rows
from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError
from jaxtrain.nn import mixture as mixtures
from jaxtrain.nn.mixture import Mixture
from jaxtrain.tasks.stmgt import SECTIONS, Task, make_task

CONFIG = Path(__file__).parents[2] / "configs" / "stmgt.py"
PRESETS = ("default", "normalized_v1", "seed64", "seed128", "v3", "strong", "metr_la", "los", "hcmc", "demo", "smoke")


def sections(preset: str = "smoke", **overrides: str) -> dict[str, Any]:
    return configs.task_sections(configs.load(f"{CONFIG}:{preset}", {k.replace("__", "."): v for k, v in overrides.items()}))


@pytest.fixture(scope="module")
def splits():
    return make_task(sections()).splits()


@pytest.fixture(scope="module")
def task(splits) -> Task:
    return make_task(sections(), splits.statistics)


@pytest.fixture(scope="module")
def batch(splits) -> dict[str, Any]:
    """Five windows of the test split, spread over it."""
    rows = splits.test.index[:: len(splits.test) // 5][:5]
    return {**splits.test.gather(splits.test.arrays, rows), "mask": np.ones(5, np.float32)}


class Trained:
    """A few hundred steps are enough for forecasts that are no longer the initial ones."""

    def __init__(self, task: Task, splits: Any, steps: int = 60):
        model = task.build(nnx.Rngs(0))
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        transform = optax.adam(3e-3)

        @jax.jit
        def step(params, state, batch, key):
            def objective(params):
                return task.loss(nnx.merge(graph, params, rest), batch, nnx.Rngs(key))

            (value, logs), gradient = jax.value_and_grad(objective, has_aux=True)(params)
            updates, state = transform.update(gradient, state)
            return optax.apply_updates(params, updates), state, value, gradient

        state, order = transform.init(params), np.random.default_rng(0)
        self.losses = []
        for number in range(steps):
            rows = splits.train.index[order.integers(0, len(splits.train), 8)]
            batch = {**splits.train.gather(splits.train.arrays, rows), "mask": np.ones(8, np.float32)}
            params, state, value, self.gradient = step(params, state, batch, jax.random.key(number))
            self.losses.append(float(value))
        self.model = nnx.view(nnx.merge(graph, params, rest), deterministic=True)
        graph, state = nnx.split(self.model)
        self.score = jax.jit(lambda batch: task.score(nnx.merge(graph, state), batch))
        self.predict = jax.jit(lambda batch: task.predict(nnx.merge(graph, state), batch))


@pytest.fixture(scope="module")
def trained(task, splits) -> Trained:
    return Trained(task, splits)


@pytest.fixture(scope="module")
def forecast(trained, batch) -> dict[str, np.ndarray]:
    return {k: np.asarray(v) for k, v in trained.predict(batch).items()}


def host(sums: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float64) for name, value in sums.items()}


def observed(batch: dict[str, Any]) -> np.ndarray:
    return np.asarray(batch["target_mask"]) * np.asarray(batch["mask"])[:, None, None] > 0


# Configuration


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_a_task(preset):
    task = make_task(sections(preset))
    assert {f.name for f in dataclasses.fields(task.config)} == set(SECTIONS)
    assert task.headline[-4:] == ("rmse", "mape", "crps", "coverage_80") and task.headline[0].startswith("mae/")


def test_presets_join_left_to_right_and_unknown_ones_name_the_nearest():
    joined = sections("seed64+smoke")
    assert joined["model"]["width"] == 16 and joined["model"]["readout"] == "mean"
    with pytest.raises(UserError, match="did you mean 'hcmc'"):
        sections("hmcm")


@pytest.mark.parametrize(("key", "value", "message"), [
    ("score__horizons_minutes", "(10, 12)", "12 is no output step; possible are 5, 10, 15, 20"),
    ("score__horizons_minutes", "(25,)", "25 is no output step"),
    ("score__horizons_minutes", "()", "horizons_minutes: empty"),
    ("score__congestion_fraction", "1.5", "congestion_fraction"),
    ("score__quantiles", "(.5, .1)", "quantiles"),
    ("data__synthetic__seed", "-1", "synthetic.seed"),
    ("data__step_minutes", "0", "whole number of steps"),
    ("loss__crps", "0", "nothing ties the forecast"),
    ("loss__spread", "-1", "loss.spread"),
    ("augment__mask_nodes", "1", "mask_nodes"),
    ("augment__noise_std", "-.1", "noise_std"),
])  # fmt: skip
def test_faulty_values_are_one_line(key, value, message):
    with pytest.raises(UserError, match=message) as error:
        make_task(sections(**{key: value}))
    assert "\n" not in str(error.value)


def test_unknown_and_missing_sections_are_named():
    with pytest.raises(UserError, match="'scor'|config.scor"):
        make_task({**sections(), "scor": {}})
    with pytest.raises(UserError, match="config.loss: missing"):
        make_task({k: v for k, v in sections().items() if k != "loss"})


# Objective


def test_loss_is_finite_falls_and_reaches_every_parameter(trained):
    assert np.isfinite(trained.losses).all()
    assert np.mean(trained.losses[-10:]) < 0.9 * np.mean(trained.losses[:5])
    for path, leaf in nnx.to_flat_state(trained.gradient):
        assert np.isfinite(np.asarray(leaf[...])).all(), path


def test_loss_equals_its_terms_in_normalised_units(splits, batch):
    weights = {"loss__crps": ".5", "loss__nll": "2", "loss__mse": ".4", "loss__spread": ".01", "loss__entropy": ".001"}
    task = make_task(sections(**weights), splits.statistics)
    model = nnx.view(task.build(nnx.Rngs(0)), deterministic=True)
    value, logs = task.loss(model, batch, nnx.Rngs(1))
    mixture: Mixture = model(batch)
    mean, std = splits.statistics["speed_mean"], splits.statistics["speed_std"]
    y, mask = (batch["target"] - mean) / std, observed(batch)
    pi, mu, sigma = (np.asarray(x, np.float64) for x in (np.exp(mixture.log_weights), mixture.means, mixture.stds))
    density = (pi * np.exp(-(((y[..., None] - mu) / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi))).sum(-1)
    terms = {
        "crps": np.asarray(mixtures.crps(mixture, jnp.asarray(y))),
        "nll": -np.log(density),
        "mse": ((pi * mu).sum(-1) - y) ** 2,
        "spread": mu.std(-1, ddof=1),
        "entropy": (pi * np.log(pi)).sum(-1),
    }
    for name, term in terms.items():
        assert float(logs[name]) == pytest.approx(term[mask].mean(), rel=1e-4)
    average = {name: term[mask].mean() for name, term in terms.items()}
    expected = 0.5 * average["crps"] + 2 * average["nll"] + 0.4 * average["mse"] - 0.01 * average["spread"] + 0.001 * average["entropy"]
    assert float(value) == pytest.approx(expected, rel=1e-4)
    assert float(logs["weight"]) == mask.sum()


def test_relation_biases_are_logged_where_there_are_any(task, splits, batch):
    model = nnx.view(task.build(nnx.Rngs(0)), deterministic=True)
    beta = model.blocks[0].spatial.pair_bias.relation
    beta.set_value(jnp.array([1.0, 3.0, 0.5, 0.0, 0.0])[:, None] + jnp.array([0.0, 1.0]))
    logs = task.loss(model, batch, nnx.Rngs(0))[1]
    assert (float(logs["bias_upstream"]), float(logs["bias_downstream"])) == (2.0, -0.5)
    plain = make_task(sections(model__relation_bias="no"), splits.statistics)
    assert "bias_upstream" not in plain.loss(nnx.view(plain.build(nnx.Rngs(0)), deterministic=True), batch, nnx.Rngs(0))[1]


def test_padded_examples_do_not_count_in_the_loss(task, batch):
    model = nnx.view(task.build(nnx.Rngs(0)), deterministic=True)
    short = {name: value[:3] for name, value in batch.items()}
    padded = {**batch, "mask": np.array([1, 1, 1, 0, 0], np.float32)}
    (a, logs_a), (b, logs_b) = (task.loss(model, x, nnx.Rngs(1)) for x in (short, padded))
    assert float(a) == pytest.approx(float(b), rel=1e-5)
    assert float(logs_a["weight"]) == float(logs_b["weight"])


def test_raw_output_is_not_trained(splits, batch):
    task = make_task(sections(model__output_space="raw", model__anchor="none"), splits.statistics)
    model = task.build(nnx.Rngs(0))
    with pytest.raises(UserError, match="train with 'normalized'"):
        task.loss(model, batch, nnx.Rngs(0))
    with pytest.raises(UserError, match="second time"):
        task.predict(nnx.view(model, deterministic=True), batch, denormalize=True)


def test_augmentation_hides_whole_nodes_and_adds_noise_to_observed_steps_only(splits, batch):
    task = make_task(sections(augment__mask_nodes=".5", augment__noise_std=".1"), splits.statistics)
    changed = {k: np.asarray(v) for k, v in task._augment({k: jnp.asarray(v) for k, v in batch.items()}, nnx.Rngs(3)).items()}
    hidden = ~changed["observed"].any(1) & batch["observed"].any(1)
    assert 0.3 < hidden.mean() < 0.7
    lost = ~(changed["observed"] | batch["observed"]).any(1)  # was unobserved anyway: hidden or not makes no difference
    kept = np.broadcast_to(~hidden[:, None] & ~lost[:, None], changed["observed"].shape)
    np.testing.assert_array_equal(changed["observed"][kept], batch["observed"][kept])
    steps = batch["speed"].shape[1]
    usual = splits.statistics["profile"][(batch["dow"][:, :steps] >= 5).astype(int), batch["slot"][:, :steps]]
    away = np.broadcast_to(hidden[:, None], kept.shape)
    np.testing.assert_array_equal(changed["speed"][away], usual[away])
    noise = (changed["speed"] - batch["speed"])[changed["observed"]] / splits.statistics["speed_std"]
    assert 0.08 < noise.std() < 0.12
    untouched = kept & ~batch["observed"]
    np.testing.assert_array_equal(changed["speed"][untouched], batch["speed"][untouched])


# Scores


def test_padded_batch_equals_unpadded_in_every_sum(task, trained, splits, batch):
    rows = splits.test.index[:3]
    (padded_index, mask), = padded_rows(rows, 5)
    gather = partial(splits.test.gather, splits.test.arrays)
    padded = host(trained.score({**gather(padded_index), "mask": mask}))
    short = host(trained.score({**gather(rows), "mask": np.ones(3, np.float32)}))
    assert padded.keys() == short.keys()
    for name, value in short.items():
        np.testing.assert_allclose(padded[name], value, rtol=1e-4, atol=1e-3, err_msg=name)
    empty = host(trained.score({**gather(padded_index), "mask": np.zeros(5, np.float32)}))
    assert all(not np.any(value) for value in empty.values())
    assert task.summarize(empty) == {name: 0.0 for name in task.summarize(empty)} and "mae" not in task.summarize(empty)


def test_scores_equal_their_definitions(task, trained, batch, forecast):
    scores = task.summarize(host(trained.score(batch)))
    mask = observed(batch)
    y = batch["target"].astype(np.float64)
    median, mean, std = (forecast[name].astype(np.float64) for name in ("median", "mean", "std"))
    level = list(task.config.score.quantiles)
    q10, q90 = forecast["quantiles"][..., level.index(0.1)], forecast["quantiles"][..., level.index(0.9)]
    congested = y < task.config.score.congestion_fraction * task.statistics["free_flow"]
    expected = {
        "mae": np.abs(median - y)[mask].mean(),
        "rmse": np.sqrt(((mean - y) ** 2)[mask].mean()),
        "bias": (mean - y)[mask].mean(),
        "mape": 100 * (np.abs(median - y)[mask] / y[mask]).mean(),
        "r2": 1 - ((mean - y) ** 2)[mask].sum() / ((y - y[mask].mean()) ** 2)[mask].sum(),
        "coverage_80": ((q10 <= y) & (y <= q90))[mask].mean(),
        "coverage_80_gaussian": (np.abs(mean - y) <= 1.2816 * std)[mask].mean(),
        "width_80": (q90 - q10)[mask].mean(),
        "brier": ((forecast["p_congested"] - congested) ** 2)[mask].mean(),
        "targets": mask.sum(),
        "mae/20min": np.abs(median - y)[:, 3][mask[:, 3]].mean(),
    }
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, rel=2e-3, abs=1e-5), name
    # The mixture's own scores, from samples of it.
    rng = np.random.default_rng(0)
    weights = forecast["component_weight"].astype(np.float64)
    chosen = (rng.random((4000, *y.shape, 1)) > np.cumsum(weights, -1)[..., :-1]).sum(-1)
    pick = partial(np.take_along_axis, indices=chosen[..., None], axis=-1)
    center, width = (pick(forecast[f"component_{name}"][None])[..., 0] for name in ("mean", "std"))
    draws = center + width * rng.standard_normal(chosen.shape)
    crps = np.abs(draws - y).mean(0) - np.abs(draws[::2] - draws[1::2]).mean(0) / 2
    assert scores["crps"] == pytest.approx(crps[mask].mean(), rel=0.02)
    bell = np.exp(-(((y[..., None] - forecast["component_mean"]) / forecast["component_std"]) ** 2) / 2) / forecast["component_std"]
    nll = -np.log((weights * bell).sum(-1) / np.sqrt(2 * np.pi))
    assert scores["nll"] == pytest.approx(nll[mask].mean(), rel=1e-3)


def test_groups_add_up_and_hold_what_their_name_says(task, trained, batch, forecast):
    sums = host(trained.score(batch))
    for group in ("node", "hour", "state"):
        assert sums[f"{group}/abs"].sum() == pytest.approx(sums["horizon/abs"].sum(), rel=1e-5)
    mask, error = observed(batch), np.abs(forecast["median"] - batch["target"])
    hour = (batch["slot"][:, 6:] * 5) // 60
    for h in np.unique(hour):
        assert sums["hour/abs"][h] == pytest.approx((error * mask)[hour == h].sum(), rel=1e-4)
    np.testing.assert_allclose(sums["node/n"], mask.sum((0, 1)))
    ratio = batch["target"] / task.statistics["free_flow"]
    expected = [(mask & part).sum() for part in (ratio < 0.5, (ratio >= 0.5) & (ratio <= 0.8), ratio > 0.8)]
    np.testing.assert_allclose(sums["state/n"], expected)
    assert sums["pit"].shape == (4, 20) and sums["pit"].sum() == mask.sum()
    assert sums["reliability/n"].sum() == mask.sum()


def test_naive_sums_equal_plain_numpy(task, batch):
    statistics, (steps, horizon) = task.statistics, (6, 4)
    sums = {name: host(task.score_forecast(f, batch)) for name, f in task.naive(batch).items()}
    mask, y = observed(batch), batch["target"]
    weekend = (batch["dow"] >= 5).astype(int)
    for b in range(len(y)):
        usual = statistics["profile"][weekend[b], batch["slot"][b]]
        last = batch["speed"][b, -1]
        forecasts = {
            "last": np.repeat(last[None], horizon, 0),
            "tod": usual[steps:],
            "damped": usual[steps:] + statistics["damping"][:, None] * (last - usual[steps - 1]),
        }
        for name, value in forecasts.items():
            sums[name]["horizon/abs"] -= (np.abs(value - y[b]) * mask[b]).sum(1)
            sums[name]["horizon/sq"] -= ((value - y[b]) ** 2 * mask[b]).sum(1)
    for name in ("last", "tod", "damped"):
        np.testing.assert_allclose(sums[name]["horizon/abs"], 0, atol=2e-2)
        np.testing.assert_allclose(sums[name]["horizon/sq"], 0, atol=1e-1)
        assert "horizon/crps" not in sums[name]
    assert "horizon/brier" in sums["tod"] and "horizon/brier" not in sums["last"]


def test_the_oracle_is_scored_as_an_ensemble_and_only_on_embedded_data(task, splits, batch):
    rows = splits.test.index[:4]
    known = {**splits.test.gather(splits.test.arrays, rows), "mask": np.ones(4, np.float32)}
    found = task.oracle(rows)["oracle"]
    scores = task.summarize(host(task.score_forecast(found, known)))
    mask = observed(known)
    low, high = np.quantile(found["samples"], [0.1, 0.9], axis=1)
    assert scores["width_80"] == pytest.approx((high - low)[mask].mean(), rel=1e-3)
    assert scores["coverage_80"] == pytest.approx(((low <= known["target"]) & (known["target"] <= high))[mask].mean(), abs=0.02)
    assert scores["crps"] < scores["mae"] and "nll" not in scores
    real = make_task(sections(data__path="somewhere.csv"), splits.statistics)
    assert real.oracle(rows) is None


# Prediction


def test_forecasts_are_physical_ordered_and_consistent(task, splits, batch, forecast):
    largest = splits.statistics["speed_mean"] + 6 * splits.statistics["speed_std"]
    fastest = np.max(splits.train.arrays["speed"][: int(splits.train.index[-1, 0]) + 10])
    assert fastest < largest
    assert (forecast["median"] >= 0).all() and (forecast["median"] <= 1.2 * fastest).all()
    assert (np.diff(forecast["quantiles"], axis=-1) >= 0).all()
    np.testing.assert_allclose(forecast["quantiles"][..., 3], forecast["median"], rtol=1e-6)
    np.testing.assert_allclose(forecast["component_weight"].sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose((forecast["component_weight"] * forecast["component_mean"]).sum(-1), forecast["mean"], rtol=1e-4)
    assert ((forecast["p_congested"] >= 0) & (forecast["p_congested"] <= 1)).all()
    np.testing.assert_allclose(forecast["last"], np.repeat(batch["speed"][:, -1:], 4, 1))


def test_denormalize_false_returns_the_networks_own_numbers(task, trained, batch, forecast):
    own = task.predict(trained.model, batch, denormalize=False)
    mean, std = task.statistics["speed_mean"], task.statistics["speed_std"]
    np.testing.assert_allclose(own["median"] * std + mean, forecast["median"], rtol=1e-4, atol=1e-3)
    assert "damped" not in own


def test_prediction_needs_no_targets(trained, batch, forecast):
    bare = {name: batch[name] for name in ("speed", "observed", "slot", "dow", "weather")}
    np.testing.assert_allclose(trained.predict(bare)["median"], forecast["median"], rtol=1e-5)


def test_table_is_long_in_origin_horizon_node_order(task, splits, forecast):
    rows = splits.test.index[:: len(splits.test) // 5][:5]
    dataset = Dataset(splits.test.arrays, rows, splits.test.gather)
    table = task.table(dataset, forecast, {"components": "yes"})
    assert {len(column) for column in table.values()} == {5 * 4 * 16}
    mixture = [f"{name}_{k}" for k in range(2) for name in ("weight", "mean", "std")]
    quantiles = ["q05", "q10", "q25", "q75", "q90", "q95"]
    assert list(table) == ["origin", "time", "horizon_minutes", "node", "median", "mean", "std", *quantiles, "p_congested", "last",
                           "damped", *mixture, "unit"]  # fmt: skip
    where = np.flatnonzero((table["origin"] == table["origin"][4 * 16 * 2]) & (table["horizon_minutes"] == 15) & (table["node"] == "n07"))
    assert len(where) == 1
    assert table["median"][where[0]] == forecast["median"][2, 2, 7] and table["q90"][where[0]] == forecast["quantiles"][2, 2, 7, 5]
    expected = splits.test.arrays["time"][rows[2, 0] + 5]
    assert table["origin"][where[0]] == np.datetime64(int(expected), "s")
    assert table["time"][where[0]] - table["origin"][where[0]] == np.timedelta64(15 * 60, "s")
    assert "weight_0" not in task.table(dataset, forecast, {})


def test_nodes_never_observed_in_training_are_not_written(task, splits, forecast):
    rows = splits.test.index[:: len(splits.test) // 5][:5]
    dataset = Dataset(splits.test.arrays, rows, splits.test.gather)
    blind = task.with_statistics({"trained": np.arange(16) != 3})
    nodes = blind.table(dataset, forecast, {})["node"]
    assert len(nodes) == 5 * 4 * 15 and "n03" not in nodes


def test_segments_are_written_with_both_ends(task, splits, forecast):
    rows = splits.test.index[:: len(splits.test) // 5][:5]
    dataset = Dataset(splits.test.arrays, rows, splits.test.gather)
    pairs = np.array([[f"a{i}", f"b{i}"] for i in range(16)])
    table = task.with_statistics({"node_pairs": pairs}).table(dataset, forecast, {})
    assert "node" not in table and table["node_a_id"][5] == "a5" and table["node_b_id"][5] == "b5"


def test_unknown_options_are_named(task):
    with pytest.raises(UserError, match="did you mean 'origin'"):
        task.inputs("speed.csv", {"orign": "2026-01-01"})
    with pytest.raises(UserError, match="expected yes or no"):
        task.inputs("speed.csv", {"allow_missing": "maybe"})
    with pytest.raises(UserError, match="layout=matrx: unknown layout.*did you mean 'matrix'"):
        task.inputs("speed.csv", {"layout": "matrx"})
    with pytest.raises(UserError, match="feature=-1: expected a whole number"):
        task.labelled("speed.csv", {"feature": "-1"})


# Data


def test_a_finished_run_refuses_splits_of_other_nodes(task, file_run):
    other = make_task(sections(data__synthetic__nodes="8"), task.statistics)
    with pytest.raises(UserError, match=r"data.path is unset .* not those of this run \(8, the run has 16\); give .* --input FILE"):
        other.splits()
    of_file, path = file_run
    renamed = of_file.with_statistics({"node_ids": np.array(list("abcdz"))})
    with pytest.raises(UserError, match="speed.csv: its nodes are not those of this run; restore the file"):
        renamed.splits()
    np.testing.assert_array_equal(of_file.splits().statistics["node_ids"], list("abcde"))


def test_attention_over_all_of_a_large_graph_is_refused(task):
    crowd = {"neighbors": np.zeros((1025, 2), np.int32)}
    with pytest.raises(UserError, match="'all' serves up to 1,024 nodes, the data has 1,025; set model.reach='neighbours' .*max_neighbors"):
        make_task(sections(model__spatial="dot", model__reach="all"), {**task.statistics, **crowd}).build(nnx.Rngs(0))
    assert make_task(sections(model__spatial="dot", model__reach="all"), task.statistics).build(nnx.Rngs(0)).nodes == 16


# Arrays given by hand


def test_hand_given_arrays_equal_the_gathered_batch(task, batch, trained, forecast):
    speed = np.where(batch["observed"], batch["speed"], np.nan)
    completed = task.complete({"speed": speed, "slot": batch["slot"], "dow": batch["dow"], "weather": batch["weather"]})
    np.testing.assert_array_equal(completed["observed"], batch["observed"])
    np.testing.assert_allclose(completed["speed"][batch["observed"]], batch["speed"][batch["observed"]])
    assert np.isfinite(completed["speed"]).all()
    whole = batch["observed"].all((1, 2))
    assert whole.any()
    np.testing.assert_allclose(np.asarray(trained.predict(completed)["median"])[whole], forecast["median"][whole], rtol=1e-5)


def test_holes_are_carried_and_older_ones_take_the_usual_speed(splits):
    # Ten minutes of carrying at most: two steps.
    profile = np.random.default_rng(0).uniform(20, 60, splits.statistics["profile"].shape).astype(np.float32)
    task = make_task(sections(data__max_fill_minutes="10"), {**splits.statistics, "profile": profile})
    slot, dow = np.arange(100, 110)[None], np.full((1, 10), 5)
    speed = np.full((1, 6, 16), np.nan, np.float32)
    speed[0, 1] = 33.0
    weather = np.zeros((1, 6, 3), np.float32)
    filled = task.complete({"speed": speed, "slot": slot, "dow": dow, "weather": weather})["speed"][0]
    usual = profile[1, 100:106]
    np.testing.assert_allclose(filled, np.stack([usual[0], *np.full((3, 16), 33.0), usual[4], usual[5]]), rtol=1e-6)


@pytest.mark.parametrize(("change", "message"), [
    ({"speed": None}, "speed is missing"),
    ({"weather": None}, r"weather is missing; give an array \(5, 6, 3\)"),
    ({"slot": np.zeros((5, 6), int)}, r"slot has shape \(5, 6\), this run expects \(5, 10\)"),
    ({"dow": np.full((5, 10), 7)}, r"dow must lie in 0\.\.6, got 7\.\.7"),
    ({"speed": np.full((5, 6, 16), 900.0)}, "0..200 km/h"),
    ({"hour": np.zeros((5, 10))}, "takes no hour"),
])  # fmt: skip
def test_faulty_arrays_are_one_line(task, batch, change, message):
    given = {name: batch[name] for name in ("speed", "slot", "dow", "weather")} | change
    with pytest.raises(UserError, match=message):
        task.complete({name: value for name, value in given.items() if value is not None})


def test_flops_are_known_with_the_graph_only(task):
    assert make_task(sections()).flops_per_example() is None
    assert task.flops_per_example() == pytest.approx(3.5e6, rel=0.3)


# From a file to a table


@pytest.fixture(scope="module")
def file_run(tmp_path_factory, splits):
    """A task trained (nominally) on a CSV of the embedded readings, and that file."""
    series, rows = splits.train.arrays, 600
    path = tmp_path_factory.mktemp("traffic") / "speed.csv"
    times = series["time"][:rows].astype("datetime64[s]")
    values = np.where(series["observed"][:rows, :5], series["speed"][:rows, :5], np.nan)
    lines = ["time,a,b,c,d,e"]
    lines += [",".join([str(t), *("" if np.isnan(v) else f"{v:.3f}" for v in row)]) for t, row in zip(times, values, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    task = make_task(sections(data__path=str(path), data__layout="matrix"))
    return task.with_statistics(task.splits().statistics), path


def test_a_file_becomes_a_table_of_forecasts(file_run):
    task, path = file_run
    dataset = task.inputs(str(path), {"origin": "2026-01-02T10:00, 2026-01-02T11:00"})
    model = nnx.view(task.build(nnx.Rngs(0)), deterministic=True)
    batch = dataset.gather(dataset.arrays, dataset.index)
    forecast = {k: np.asarray(v) for k, v in task.predict(model, batch).items()}
    table = task.table(dataset, forecast, {})
    assert len(table["median"]) == 2 * 4 * 5 and set(table["node"]) == set("abcde")
    np.testing.assert_array_equal(np.unique(table["origin"]), np.array(["2026-01-02T10:00", "2026-01-02T11:00"], "datetime64[s]"))
    at_ten = table["origin"] == np.datetime64("2026-01-02T10:00")
    newest = dict(zip(table["node"][at_ten], table["last"][at_ten], strict=True))
    line = next(text for text in path.read_text().splitlines() if text.startswith("2026-01-02T10:00"))
    for node, text in zip("abcde", line.split(",")[1:], strict=True):
        assert text and newest[node] == pytest.approx(float(text), abs=1e-3)


def test_a_labelled_file_is_scored_on_every_window(file_run):
    task, path = file_run
    dataset = task.labelled(str(path), {})
    assert len(dataset) == 600 - 10 + 1
    batch = {**dataset.gather(dataset.arrays, dataset.index), "mask": np.ones(len(dataset), np.float32)}
    scores = task.summarize(host(task.score_forecast(task.naive(batch)["last"], batch)))
    text = [line.split(",")[1:] for line in path.read_text().splitlines()[1:]]
    values = np.array([[float(cell) if cell else np.nan for cell in row] for row in text])
    assert np.isfinite(values).all()
    assert scores["targets"] == 4 * 591 * 5
    assert scores["mae/10min"] == pytest.approx(np.abs(values[7:-2] - values[5:-4]).mean(), rel=1e-4)
    with pytest.raises(UserError, match="unknown option"):
        task.labelled(str(path), {"origin": "2026-01-01"})


def test_a_run_reads_other_formats_than_it_was_trained_on(file_run, tmp_path):
    task, path = file_run  # trained with data.layout="matrix"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    values = np.array([row[1:] for row in rows[1:]], np.float32)
    with h5py.File(tmp_path / "speed.h5", "w") as file:
        group = file.create_group("df")
        names = np.array(rows[0][1:], "S")
        group["axis0"], group["block0_items"], group["block0_values"] = names, names, values
        group["axis1"] = np.array([row[0] for row in rows[1:]], "datetime64[ns]").astype(np.int64)
    np.savez(tmp_path / "speed.npz", flow=np.stack([np.zeros_like(values), values], axis=2))
    lines = [f"{row[0]},{name},{name},{cell}" for row in rows[1:] for name, cell in zip("abcde", row[1:], strict=True)]
    (tmp_path / "edges.csv").write_text("\n".join(["timestamp,node_a_id,node_b_id,speed_kmh", *lines]) + "\n")
    expected = task.labelled(str(path), {}).arrays["speed"]
    for name, options in {
        "speed.h5": {},
        "speed.npz": {"key": "flow", "feature": "1", "start": rows[1][0]},
        "edges.csv": {"layout": "edges"},
    }.items():
        np.testing.assert_allclose(task.labelled(str(tmp_path / name), options).arrays["speed"], expected, rtol=1e-6, err_msg=name)
    keyed = make_task(sections(data__path=str(tmp_path / "speed.h5"), data__layout="h5", data__key="df"), task.statistics)
    np.testing.assert_allclose(keyed.labelled(str(path), {}).arrays["speed"], expected, rtol=1e-6)
