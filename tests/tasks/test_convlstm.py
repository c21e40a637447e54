"""The headway task by hand, on six embedded stations: configuration, inputs, loss, splits and rollouts."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_imports
from convlstm_case import CAP, CONFIG, COUNT, D, F, L, S, Told, batch, counted, numbers, sections, splits, task
from flax import nnx

from jaxtrain.engine import config as configs
from jaxtrain.engine.optimizer import rules
from jaxtrain.engine.program import build_model
from jaxtrain.errors import UserError
from jaxtrain.tasks import convlstm_inputs as door
from jaxtrain.tasks.convlstm import SECTIONS, make_task

PRESETS = ("default", "baseline", "track1", "paper", "conv3d", "attention", "quantile", "gaussian", "age", "dart", "speed", "smoke", "demo")


# Configuration


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_a_task(preset):
    made = make_task(sections(preset))
    assert {f.name for f in dataclasses.fields(made.config)} == set(SECTIONS)
    assert made.headline[:4] == ("rmse_s", "mae_s", "r2", "rmse_s/t+1")


def test_presets_join_and_unknown_ones_name_the_nearest():
    joined = configs.load(f"{CONFIG}:track1+smoke", {})
    assert joined["model"]["variant"] == "baseline" and joined["train"]["precision"] == "mixed_bfloat16" and joined["train"]["batch"] == 16
    with pytest.raises(UserError, match="did you mean 'attention'"):
        sections("atention")


def test_every_key_is_read():
    nested = [f.type for cls in SECTIONS.values() for f in dataclasses.fields(cls) if isinstance(f.type, type)]
    classes = [*SECTIONS.values(), *(cls for cls in nested if dataclasses.is_dataclass(cls))]
    own = [path for path, _ in test_imports.sources(test_imports.ROOT) if any(part in path.stem for part in ("headway", "conv"))]
    assert test_imports.unread(classes, [path.read_text() for path in own]) == []


@pytest.mark.parametrize(("overrides", "message"), [
    ({"loss__kind": "pinbal"}, "did you mean 'pinball'"),
    ({"loss__kind": "nll"}, "'nll' does not train model.head='point'; use mse or mae or huber"),
    ({"model__head": "quantile"}, "use pinball"),
    ({"loss__huber_minutes": "0."}, "huber_minutes: must be more than 0"),
    ({"loss__auxiliary": "-1."}, "auxiliary: must be at least 0"),
    ({"loss__auxiliary": "0.3", "data__inputs": "('headway',)"}, "hold no field beside the target headway"),
    ({"targets__rmse_s": "0."}, "targets.rmse_s: must be more than 0"),
    ({"score__minutes": "(1, 6)"}, "6 is no row of the horizon"),
    ({"score__rollout_minutes": "(5, 12)"}, "12 is no multiple of the horizon of 5 minutes"),
    ({"score__rollout_minutes": "(5, 10)"}, "the input age is not forecast; set loss.auxiliary"),
    ({"model__kernel": "(3, 3)"}, "unrelated stations would meet"),
    ({"model__upstream": "6"}, "6 stations upstream on a line of 6"),
    ({"data__horizon": "0"}, "horizon"),
    ({"model__variant": "seq3seq"}, "did you mean 'seq2seq'"),
])  # fmt: skip
def test_faults_of_the_config_name_their_key(overrides, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)")):
        make_task(sections(**overrides))


def test_an_unknown_section_is_refused():
    with pytest.raises(UserError, match="config.targts: unknown section"):
        make_task({**sections(), "targts": {}})
    with pytest.raises(UserError, match="config.score: missing"):
        make_task({k: v for k, v in sections().items() if k != "score"})


VARIANTS = {
    "seq2seq": {}, "add": {"model__readout": "add"}, "conv3d": {"model__variant": "conv3d"},
    "attention": {"model__variant": "attention", "model__dropout": "0.1"},
    "minutes": {"model__variant": "attention", "model__attention_over": "minutes", "model__place": "0", "model__readout": "add"},
    "quantile": {"model__head": "quantile", "loss__kind": "pinball"}, "gaussian": {"model__head": "gaussian", "loss__kind": "nll"},
    "age": {"data__target": "age", "data__clock": "true", "loss__auxiliary": "0.3"},
    "origins": {"data__terminal": "per_origin"},
}  # fmt: skip


@pytest.mark.parametrize("preset", ["baseline+smoke", "paper+smoke", *VARIANTS])
def test_every_variant_takes_the_batches_and_decays_kernels_alone(preset):
    made = make_task(sections(preset) if "+" in preset else sections(**VARIANTS[preset]))
    found = made.splits()
    made = made.with_statistics(found.statistics)
    template, params, state, _ = build_model(made, "float32")
    one = {**found.train.gather(found.train.arrays, found.train.index[:2]), "mask": np.ones(2, np.float32)}
    loss, logs = jax.eval_shape(lambda p, m: made.loss(template.join(p, m, training=True), one, nnx.Rngs(0)), params, state)
    assert loss.shape == () and made.config.loss.kind in logs
    sums = jax.eval_shape(lambda p, m: made.score(template.join(p, m, training=False), one), params, state)
    assert sums["minute/n"].shape == (F, D) and sums["station/sq"].shape == (S, D)
    flops = made.flops_per_example()
    assert flops is not None and flops > 0
    decayed = {path for path, rule in rules(params, made.groups()).items() if rule.weight_decay}
    assert decayed == {path for path, leaf in params.items() if leaf.ndim > 1 and path.split("/")[-1] == "kernel"}
    assert not any(word in path for path in decayed for word in ("bias", "norm", "place"))


# Inputs


def test_inputs_are_shares_of_the_cap_and_masks():
    one = batch()
    one["headway_known"] = one["headway_known"] & (np.random.default_rng(1).random((COUNT, L, S, D)) > 0.2)
    one["headway"] = np.where(one["headway_known"], one["headway"], 99)  # whatever stands where nothing is known
    one["planned_known"] = one["planned_known"] & (np.random.default_rng(2).random(one["planned"].shape) > 0.2)
    one["planned"] = np.where(one["planned_known"], one["planned"], 99)
    found = jax.jit(partial(door.model_inputs, task().config.data, splits().statistics))(one)
    assert found["fields"].shape == (COUNT, L, S, D, 4)
    np.testing.assert_allclose(found["fields"][..., 0], np.where(one["headway_known"], one["headway"], 0) / CAP, rtol=1e-6)
    np.testing.assert_array_equal(found["fields"][..., 3], one["age_known"])
    np.testing.assert_allclose(found["target_history"], found["fields"][..., 0])
    np.testing.assert_allclose(found["planned"], np.where(one["planned_known"], one["planned"], 0) / CAP, rtol=1e-6)
    np.testing.assert_allclose(found["fallback"], splits().statistics["place_mean"] / CAP)


def test_an_age_at_the_cap_dates_no_train():
    made = task(data__target="age")
    one = {"age": np.array([[12.0, 30.0, 30.0], [30.0, 3.0, 0.0]]).reshape(2, 3, 1, 1)}
    one["age_known"] = np.array([[True, True, True], [True, True, False]]).reshape(2, 3, 1, 1)
    history, known = door.dated(made.config.data, one)
    np.testing.assert_array_equal(known[..., 0, 0], [[True, False, False], [False, True, False]])
    np.testing.assert_array_equal(history[..., 0, 0], [[12, 0, 0], [0, 3, 0]])
    headway = {"headway": one["age"], "headway_known": one["age_known"]}
    np.testing.assert_array_equal(door.dated(task().config.data, headway)[1], one["age_known"])  # a gap at the cap is a gap


# Loss


@pytest.mark.parametrize(("overrides", "expected"), [
    ({}, lambda f, e, y: e**2),
    ({"loss__kind": "mae"}, lambda f, e, y: abs(e)),
    ({"loss__kind": "huber"}, lambda f, e, y: np.where(abs(e) <= 2 / CAP, e**2 / 2, 2 / CAP * (abs(e) - 1 / CAP))),
    ({"model__head": "gaussian", "loss__kind": "nll"},
     lambda f, e, y: -np.log(np.exp(-((e / f["sigma"]) ** 2) / 2) / f["sigma"] / np.sqrt(2 * np.pi) + 1e-300)),
    ({"model__head": "quantile", "loss__kind": "pinball"},
     lambda f, e, y: sum(np.where(y > q, level * (y - q), (1 - level) * (q - y))
                         for level, q in zip((0.1, 0.5, 0.9), np.moveaxis(f["quantiles"], -1, 0), strict=True))),
])  # fmt: skip
def test_loss_is_the_mean_over_known_cells_of_real_examples(overrides, expected):
    one, said = batch(), numbers()
    said["sigma"] = said["sigma"] + 0.1
    y = np.where(one["target_known"], one["target"], 0) / CAP
    told = Told(**{k: v for k, v in said.items() if k != "other"})
    value, logs = jax.jit(lambda b: task(**overrides).loss(told, b, nnx.Rngs(0)))(one)
    mask = counted(one)
    np.testing.assert_allclose(value, expected(said, said["y"] - y, y)[mask].mean(), rtol=2e-5)
    assert logs["weight"] == mask.sum()


def test_unmasked_loss_counts_unknown_cells_as_zero():
    one, said = batch(), numbers()
    value, logs = jax.jit(lambda b: task(loss__masked="false").loss(Told(y=said["y"]), b, nnx.Rngs(0)))(one)
    y = np.where(one["target_known"], one["target"], 0) / CAP
    np.testing.assert_allclose(value, ((said["y"] - y) ** 2)[:-1].mean(), rtol=1e-5)
    assert logs["weight"] == (COUNT - 1) * F * S * D


def test_the_other_field_is_learned_with_its_own_mask():
    made = task(loss__auxiliary="0.3")
    found = made.splits()
    one, said = batch(found.train), numbers()
    start = int(found.train.index[:: len(found.train) // COUNT][0, 0])
    np.testing.assert_array_equal(one["other_target"][0], found.train.arrays["age"][start + L : start + L + F])
    one["other_known"] = one["other_known"] & (np.random.default_rng(2).random(one["other_known"].shape) > 0.3)
    value, logs = jax.jit(lambda b: made.loss(Told(y=said["y"], other=said["other"]), b, nnx.Rngs(0)))(one)
    mask = one["other_known"] & (one["mask"][:, None, None, None] > 0)
    np.testing.assert_allclose(logs["auxiliary"], ((said["other"] - one["other_target"] / CAP) ** 2)[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(value, logs["mse"] + 0.3 * logs["auxiliary"], rtol=1e-6)


# Splits


def test_statistics_of_another_line_are_refused():
    other = {**splits().statistics, "stations": splits().statistics["stations"][:, ::-1]}
    with pytest.raises(UserError, match="not those of this run"):
        make_task(sections(), other).splits()


def test_notes_show_the_lines_to_pass_in_both_units():
    assert "lines to pass: rmse_s < 90 (a loss of 0.0025), loss < 0.01 (an rmse_s of 180)" in splits().notes


def test_the_rollout_split_has_longer_windows_of_the_test_days():
    found = task(score__rollout_minutes="(5, 10, 20)", loss__auxiliary="0.3").splits()
    longer = found.more["rollout"]
    assert longer.arrays is found.test.arrays and set(longer.index[:, 0]) < set(found.test.index[:, 0])
    one = longer.gather(longer.arrays, longer.index[:2])
    assert one["target"].shape == (2, 20, S, D) and one["planned"].shape == (2, 20, D, 1)


def test_folds_are_the_data_s():
    folds = task().folds("walk_forward", 2)
    assert [f.changes["data.split"] for f in folds] == ["walk_forward"] * 2 and folds[1].changes["data.fold"] == 1


def test_only_the_embedded_line_has_an_oracle():
    rows = splits().test.index[:2]
    said = task().oracle(rows)
    assert said is not None and said["oracle"]["value"].shape == (2, F, S, D) and said["oracle"]["draws"] == 48
    assert make_task(sections(data__path="some.csv"), splits().statistics).oracle(rows) is None


# Rollouts


def moving(inputs, *, other=False):
    """A forecast that depends on all it is fed: history, its mask, the plan."""
    past = inputs["fields"]
    value = past[:, -1, ..., 0] * 0.5 + past[:, 0, ..., 2] * 0.2 + 0.1 * past[..., 1].mean(1)
    y = value[:, None] + 0.3 * inputs["planned"].mean(-1)[:, :, None]
    return {"y": y, **({"other": 1.3 - y} if other else {})}


def test_a_rollout_of_one_block_is_the_forecast():
    made, one = task(), batch()
    data, statistics = made.config.data, made.statistics
    found = jax.jit(lambda b: (door.outputs(data, statistics, moving, b)["y"], moving(door.model_inputs(data, statistics, b))["y"]))(one)
    np.testing.assert_array_equal(*found)


def test_a_rollout_feeds_its_forecasts_back_as_known():
    made = task(score__rollout_minutes="(5, 15)", loss__auxiliary="0.3", data__clock="true")
    data = made.config.data
    splits = made.splits()
    longer = splits.more["rollout"]
    rows = longer.index[::150][:3]
    one = longer.gather(longer.arrays, rows)
    one["headway_known"] = one["headway_known"] & (np.random.default_rng(0).random(one["headway"].shape) > 0.2)
    seen = []

    def call(inputs):
        jax.debug.callback(lambda clock: seen.append(np.asarray(clock)), inputs["fields"][..., 0, 0, 4:])
        return moving(inputs, other=True)

    found = door.outputs(data, splits.statistics, call, one)
    assert found["y"].shape == found["other"].shape == (3, 15, S, D)
    again = jax.jit(lambda now: moving(door.model_inputs(data, splits.statistics, now), other=True))
    history = {k: one[k] for k in ("headway", "headway_known", "age", "age_known", "clock")}
    for block in range(3):
        rows_now = slice(5 * block, 5 * block + 5)
        now = {**history, "planned": one["planned"][:, rows_now], "planned_known": one["planned_known"][:, rows_now]}
        said = again(now)
        np.testing.assert_allclose(found["y"][:, rows_now], said["y"], rtol=1e-5, atol=1e-6)
        for name, value in (("headway", said["y"]), ("age", said["other"])):
            fed = np.clip(np.asarray(value), 0, 1) * CAP
            history[name] = np.concatenate([history[name][:, 5:], fed], axis=1)
            history[f"{name}_known"] = np.concatenate([history[f"{name}_known"][:, 5:], np.ones(fed.shape, bool)], axis=1)
    jax.effects_barrier()
    # The clock goes on as that of the rows themselves.
    for block, clock in enumerate(seen):
        at = rows + 5 * block + np.arange(L)
        np.testing.assert_allclose(clock, longer.arrays["clock"][at], atol=1e-5)
    assert len(seen) == 3


# Weights of another run


def test_place_vectors_move_by_name():
    statistics = splits().statistics
    vectors = np.random.default_rng(0).normal(size=(S, D, 3))
    other = {**statistics, "stations": statistics["stations"][:, ::-1]}
    moved = task().adapt({"body/place/vectors": vectors, "body/emit/bias": np.ones(2)}, other)
    np.testing.assert_array_equal(moved["body/place/vectors"], vectors[::-1])
    fewer = {**statistics, "stations": statistics["stations"][:, 1:]}
    moved = task().adapt({"body/place/vectors": vectors[1:]}, fewer)["body/place/vectors"]
    np.testing.assert_array_equal(moved[1:], vectors[1:])
    np.testing.assert_allclose(moved[0], np.broadcast_to(vectors[1:].mean((0, 1)), (D, 3)))


def test_a_gather_of_jax_arrays_is_the_same():
    made = task(loss__auxiliary="0.3")
    train = made.splits().train
    rows = train.index[:3]
    on_device = jax.jit(partial(train.gather, {k: jnp.asarray(v) for k, v in train.arrays.items() if k != "time"}))(rows)
    for name, value in train.gather(train.arrays, rows).items():
        np.testing.assert_array_equal(on_device[name], value)
