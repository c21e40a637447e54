"""The fleet task by hand, on eight embedded servers: configuration, inputs, units and loss."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from tft_case import CONFIG, LEVELS, SERVERS, TARGETS, batch, loss, pinball, sections, splits, task, units

from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError
from jaxtrain.tasks import tft_inputs
from jaxtrain.tasks.tft import SECTIONS, make_task

PRESETS = (
    "default", "demo", "smoke", "seed", "single", "features", "walk_forward", "new_hosts", "bitbrains", "bitbrains15", "bitbrains_cpu",
    "electricity",
)  # fmt: skip


def numbers(count: int, seed: int = 0) -> np.ndarray:
    """Standardised quantiles (B, tau, R, Q), rising for most but not for all cells."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 8, 4, 1)) + np.sort(rng.normal(size=(count, 8, 4, 7)), -1) + 0.05 * rng.normal(size=(count, 8, 4, 7))


# Configuration


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_a_task(preset):
    made = make_task(sections(preset))
    assert {f.name for f in dataclasses.fields(made.config)} == set(SECTIONS)
    assert made.headline[-4:] == ("qrisk_10", "qrisk_50", "qrisk_90", "coverage_80")
    assert made.headline[0] == f"qrisk_50/{made.config.data.targets[0]}"


def test_presets_join_and_unknown_ones_name_the_nearest():
    joined = sections("features+smoke")
    assert joined["model"]["hidden"] == 8 and len(joined["data"]["lags"]) == 4
    with pytest.raises(UserError, match="did you mean 'bitbrains'"):
        configs.load(f"{CONFIG}:bitbrain", {})


def test_a_preset_replaces_a_mapping_of_columns_as_a_whole():
    found = sections("bitbrains")["data"]
    assert set(found["transform"]) == {"disk_kb_s", "network_kb_s", "cores", "memory_capacity_gb"}
    assert "load_average" not in found["bounds"] and found["bounds"]["disk_kb_s"] == [0, None]
    assert set(sections()["data"]["transform"]) == {"load_average", "cores"}


@pytest.mark.parametrize(("key", "value", "message"), [
    ("loss__units_weight", "1.5", "units_weight: must lie in"),
    ("loss__target_weights", "(1., 1.)", "2 weights for 4 targets"),
    ("loss__target_weights", "(0., 0., 0., 0.)", "not all 0"),
    ("score__steps", "(1, 9)", "9 is no step of the horizon, 1..8"),
    ("model__heads", "3", "divisible"),
    ("model__quantiles", "(.1, .9)", "0.5"),
    ("model__quantiles", "(.1, .9, .5)", "levels must increase"),
    ("model__quantiles", "(.5, 1.)", "inside .0, 1."),
    ("data__alerts", "{'cpu_procent': 90.0}", "did you mean 'cpu_percent'"),
    ("data__synthetic__kind", "fleets", "synthetic.kind"),
])  # fmt: skip
def test_faulty_values_are_one_line(key, value, message):
    with pytest.raises(UserError, match=message) as error:
        make_task(sections(**{key: value}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "n"), [("walk_forward", 2), ("blocked", 3), ("leave_one_out", 4)])
def test_folds_test_other_steps_or_servers_each(kind, n):
    values = configs.load(f"{CONFIG}:smoke", {"data.fold_steps": "96", "data.min_history_steps": "12"})
    tested, trained = [], []
    for fold in make_task(configs.task_sections(values)).folds(kind, n):
        made = make_task(configs.task_sections(configs.with_changes(values, fold.changes))).splits()
        when = made.test.gather(made.test.arrays, made.test.index)["when"]
        tested.append({tuple(cell) for cell in when[:, :2]})
        trained.append(made)
    assert len(tested) == n and all(tested)
    assert not any(a & b for i, a in enumerate(tested) for b in tested[i + 1 :]), "no window is tested twice"
    means = [made.statistics["global_center"] for made in trained]
    assert all((means[0] != other).any() for other in means[1:]), "statistics anew in every fold"
    if kind == "leave_one_out":
        for made in trained:
            assert not set(made.test.index[:, 1]) & set(made.train.index[:, 1])
    if kind == "walk_forward":
        assert len(trained[0].train) < len(trained[1].train)


def test_one_server_at_a_time_is_left_out():
    folds = task().folds("leave_one_out", None)
    assert [fold.changes["data.fold"] for fold in folds] == list(range(SERVERS)) and folds[0].changes["data.folds"] == SERVERS
    assert len(task().folds("walk_forward", None)) == 5


def test_unknown_and_missing_sections_are_named():
    with pytest.raises(UserError, match="config.scor: unknown section"):
        make_task({**sections(), "scor": {}})
    with pytest.raises(UserError, match="config.loss: missing"):
        make_task({k: v for k, v in sections().items() if k != "loss"})


# Inputs


def test_variables_of_the_default_config():
    statistics = {"group_names": np.arange(48).astype(str), "vocabulary/profile": np.arange(7), "vocabulary/status": np.arange(8)}
    default = make_task(sections("default"), statistics)
    found = default._variables()
    assert [(v.name, v.width, v.categories) for v in found.static] == [
        ("server", 1, 48), ("profile", 1, 7), ("cores", 1, 0), ("level", 8, 0),
    ]  # fmt: skip
    assert [(v.name, v.width) for v in found.known] == [
        ("hour_of_day", 2), ("day_of_week", 2), ("is_weekend", 1), ("relative_step", 1), ("maintenance", 1),
    ]  # fmt: skip
    assert [v.name for v in found.observed] == ["status", "upstream_cpu_percent", "present"]
    assert [v.name for v in found.targets] == list(TARGETS)
    model = nnx.eval_shape(lambda: default.build(nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) == 180_869
    assert default._weight_names() == model.names()


def test_a_single_series_has_no_static_group_variables():
    single = make_task(sections(data__groups="()"), splits().statistics)
    assert [v.name for v in single._variables().static] == ["profile", "cores"]


def test_model_inputs_are_standardised_and_never_missing():
    one, made = batch(), task()
    one["past"][0, 3:6] = np.nan
    found = {k: np.asarray(v) for k, v in jax.jit(lambda b: made._inputs(b)[1])(one).items()}
    widths = made._variables().widths()
    shapes = {name: value.shape[-1] for name, value in found.items() if name not in ("past_mask", "last")}
    assert shapes == {k: w for k, w in widths.items() if w}
    assert all(np.isfinite(value).all() for value in found.values())
    statistics = made.statistics
    past = one["past"][..., :4].astype(np.float64)
    past[..., 3] = np.log1p(past[..., 3])
    expected = np.nan_to_num((past - statistics["center"][0]) / statistics["scale"][0])
    np.testing.assert_allclose(found["targets"], expected, rtol=1e-4, atol=1e-5)
    assert (found["targets"][0, 3:6] == 0).all() and (found["observed_real"][0, 3:6, 0] == 0).all()
    np.testing.assert_array_equal(found["observed_real"][..., 1], one["present"])
    np.testing.assert_allclose(found["last"], found["targets"][:, -1], rtol=1e-6)
    cores = (np.log1p(one["static_real"]) - statistics["static_center"]) / statistics["static_scale"]
    np.testing.assert_allclose(found["static_real"], np.concatenate([cores, one["level"]], -1), rtol=1e-5)
    np.testing.assert_array_equal(found["static_cat"], np.column_stack([one["group"], one["static_cat"]]))
    calendar = np.concatenate([one["calendar"][:, :, i, :width] for i, width in enumerate((2, 2, 1))], -1)
    np.testing.assert_array_equal(found["known_real"][..., :5], calendar)
    np.testing.assert_allclose(found["known_real"][0, :, 5], (np.arange(32) - 24) / 24)
    assert found["static_cat"].max() <= SERVERS


def test_the_last_known_value_is_found_behind_missing_ones():
    one, made = batch(), task()
    one["past"][0, -5:, 1] = np.nan
    one["past"][1, :, 2] = np.nan
    found = {k: np.asarray(v) for k, v in made._inputs(one)[1].items()}
    assert found["last"][0, 1] == pytest.approx(found["targets"][0, -6, 1], rel=1e-6) and found["last"][0, 1] != 0
    assert found["targets"][0, -1, 1] == 0
    assert found["last"][1, 2] == 0, "nothing known: the centre"


def test_a_run_may_leave_the_derived_inputs_out():
    bare = task(data__group_as_static="no", data__level_as_static="no", data__present_as_observed="no", data__relative_step_as_known="no")
    found = jax.eval_shape(lambda b: bare._inputs(b)[1], batch())
    assert {k: v.shape[-1] for k, v in found.items() if k.endswith(("cat", "real"))} == {
        "static_cat": 1, "static_real": 1, "observed_cat": 1, "observed_real": 1, "known_real": 6,
    }  # fmt: skip


# Units


def test_physical_inverts_standardise_within_the_limits():
    one = batch()
    scaling = units(one, data__cap="no")
    z = np.asarray(tft_inputs.standardise(scaling, one["target"]))[..., None]
    found = np.asarray(tft_inputs.physical(scaling, np.concatenate([z, z - 1e3, z + 1e3], -1)))
    np.testing.assert_allclose(found[..., 0], one["target"], rtol=1e-4, atol=1e-4)
    assert (found[..., 1] == 0).all() and (found[..., :3, 2] == 100).all()
    assert np.isfinite(found).all() and found[..., 3, 2].min() > 1e30


def test_the_cap_is_the_larger_of_training_and_window():
    one = batch()
    one["past"][0, 5, 3] = 500.0
    one["past_mask"] = one["past_mask"].copy()
    one["past"][1, 0, 3], one["past_mask"][1, 0] = 1e6, False  # padding says nothing
    scaling = units(one)
    highest = np.asarray(tft_inputs.physical(scaling, np.full((6, 8, 4, 1), 1e3, np.float32)))[:, 0, :, 0]
    expected = np.minimum(np.maximum(one["cap"], np.nanmax(one["past"][..., :4], 1)), [100, 100, 100, np.inf])
    expected[1, 3] = max(one["cap"][1, 3], np.nanmax(one["past"][1, 1:, 3]))
    np.testing.assert_allclose(highest, expected, rtol=1e-5)
    assert highest[0, 3] == pytest.approx(500)


def test_a_capped_forecast_has_no_slope_and_no_nan():
    value, _, gradient = loss(batch(), np.full((6, 8, 4, 7), 1e3), loss__units_weight="1")
    assert np.isfinite(value) and (gradient == 0).all()


def test_a_window_is_standardised_by_its_own_past():
    one = batch()
    one["past"][0, :, 0], one["past"][1, :, 3], one["past"][2, :10, 0] = 7.0, np.nan, np.nan
    scaling = units(one, data__normalise="{'cpu_percent': 'window', 'load_average': 'window'}")
    center, scale = np.asarray(scaling.center), np.asarray(scaling.scale)
    past = one["past"].astype(np.float64)
    assert center[2, 0] == pytest.approx(past[2, 10:, 0].mean(), rel=1e-5) and scale[2, 0] == pytest.approx(past[2, 10:, 0].std(), rel=1e-4)
    assert center[3, 3] == pytest.approx(np.log1p(past[3, :, 3]).mean(), rel=1e-5)
    assert (center[0, 0], scale[0, 0]) == (7.0, pytest.approx(0.1 * one["scale"][0, 0]))  # constant by chance
    assert (center[1, 3], scale[1, 3]) == (one["center"][1, 3], one["scale"][1, 3])  # nothing known
    np.testing.assert_array_equal(center[:, 1:3], one["center"][:, 1:3])


# Loss


def expected_loss(made, one, z) -> tuple[np.ndarray, np.ndarray]:
    """Z and U (R,) in float64, from the definition."""
    statistics, y = made.statistics, one["target"].astype(np.float64)
    mask = one["target_mask"] * one["mask"][:, None, None] > 0
    transformed = np.concatenate([y[..., :3], np.log1p(y[..., 3:])], -1)
    standard = (transformed - statistics["global_center"]) / statistics["global_scale"]
    value = z * statistics["global_scale"][:, None] + statistics["global_center"][:, None]
    value[..., 3, :] = np.expm1(value[..., 3, :])
    cap = np.maximum(one["cap"], np.nanmax(np.where(one["past_mask"][..., None], one["past"][..., :4], np.nan), 1))
    value = np.maximum(np.minimum(value, np.minimum(cap, [100, 100, 100, np.inf])[:, None, :, None]), 0)
    mean = [[pinball(q, t)[..., r, :].sum(-1)[mask[..., r]].mean() for r in range(4)] for q, t in ((z, standard), (value, y))]
    return np.array(mean[0]), np.array(mean[1]) / statistics["target_mean_abs"]


def test_loss_is_its_definition():
    overrides = {"loss__units_weight": ".3", "loss__target_weights": "(1., 2., 0.5, 1.)"}
    one, z = batch(), numbers(6)
    one["target_mask"], one["mask"] = one["target_mask"].copy(), np.array([1, 1, 0, 1, 1, 0], np.float32)
    one["target_mask"][0, :3], one["target_mask"][1, 5, 2] = 0, 0
    value, logs, _ = loss(one, z, **overrides)
    standard, physical = expected_loss(task(), one, z)
    for r, name in enumerate(TARGETS):
        assert logs[f"z/{name}"] == pytest.approx(standard[r], rel=1e-4)
        assert logs[f"u/{name}"] == pytest.approx(physical[r], rel=1e-4)
    weights = np.array([1, 2, 0.5, 1]) / 4.5
    assert value == pytest.approx((weights * (0.7 * standard + 0.3 * physical)).sum(), rel=1e-4)
    n = (one["target_mask"] * one["mask"][:, None, None]).sum((0, 1))
    assert logs["weight"] == pytest.approx((weights * n).sum())


def test_without_units_weight_the_loss_is_the_papers():
    value, logs, _ = loss(batch(), numbers(6), loss__units_weight="0")
    assert value == pytest.approx(expected_loss(task(), batch(), numbers(6))[0].mean(), rel=1e-4)
    assert logs["u/cpu_percent"] > 0


def test_parts_of_a_batch_add_up_by_their_weight():
    one, z = batch(), numbers(6)
    one["target_mask"] = one["target_mask"].copy()
    one["target_mask"][0, :5] = 0  # rows are missing as a whole, for all targets
    whole, logs, _ = loss(one, z)
    parts = [loss({**one, "mask": (np.arange(6) % 2 == i).astype(np.float32)}, z) for i in range(2)]
    weight = [part[1]["weight"] for part in parts]
    assert sum(weight) == pytest.approx(logs["weight"]) and weight[0] != weight[1]
    assert sum(w * part[0] for w, part in zip(weight, parts, strict=True)) / sum(weight) == pytest.approx(whole, rel=1e-5)


def test_unmeasured_cells_and_padded_examples_do_not_count():
    one, z = batch(), numbers(6)
    one["target_mask"], one["mask"] = one["target_mask"].copy(), np.array([1, 1, 1, 1, 0, 0], np.float32)
    one["target_mask"][0, 2:] = 0
    other = {**one, "target": np.where(one["target_mask"] * one["mask"][:, None, None] > 0, one["target"], 1e6).astype(np.float32)}
    (a, _, gradient), (b, _, same) = loss(one, z), loss(other, z)
    assert a == b
    np.testing.assert_array_equal(gradient, same)
    assert (gradient[4:] == 0).all() and np.abs(gradient[1]).sum() > 0


def test_nothing_measured_is_no_loss_and_no_nan():
    value, _, gradient = loss({**batch(), "mask": np.zeros(6, np.float32)}, numbers(6))
    assert value == 0 and (gradient == 0).all()


def test_the_loss_of_a_constant_forecast_is_least_at_the_quantiles():
    one = batch()
    one["target"] = np.random.default_rng(1).gamma(2.0, 5.0, one["target"].shape).astype(np.float32)
    one["target_mask"] = np.ones_like(one["target"])
    standard = np.asarray(tft_inputs.standardise(units(one), one["target"]))
    best = np.quantile(standard, LEVELS, axis=(0, 1)).T  # (R, Q)
    least = loss(one, np.broadcast_to(best, (6, 8, 4, 7)), loss__units_weight="0")[0]
    for shift in (-0.2, 0.2):
        for q in range(7):
            moved = best + shift * (np.arange(7) == q)
            assert loss(one, np.broadcast_to(moved, (6, 8, 4, 7)), loss__units_weight="0")[0] > least


# Weights of another run


def test_rows_of_tables_move_by_name():
    made, rng = task(), np.random.default_rng(0)
    other = {**splits().statistics, "group_names": np.array(["web_api_001", "elsewhere"]), "vocabulary/profile": np.array(["web_api"])}
    params = {"embeddings/static/tables/server": rng.normal(size=(3, 8)), "embeddings/static/tables/profile": rng.normal(size=(2, 8)),
              "head/kernel": rng.normal(size=(8, 28))}  # fmt: skip
    found = made.adapt(params, other)
    names = list(splits().statistics["group_names"])
    table = found["embeddings/static/tables/server"]
    assert table.shape == (1 + SERVERS, 8)
    np.testing.assert_array_equal(table[1 + names.index("web_api_001")], params["embeddings/static/tables/server"][1])
    np.testing.assert_array_equal(table[1 + names.index("web_api_002")], params["embeddings/static/tables/server"][0])
    assert found["embeddings/static/tables/profile"].shape[0] == 1 + len(splits().statistics["vocabulary/profile"])
    assert found["head/kernel"] is params["head/kernel"]
