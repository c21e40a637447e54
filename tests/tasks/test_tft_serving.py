"""What `predict` reads and writes: tables, options, arrays given by hand."""

import jax
import numpy as np
import pytest
from tft_case import LEVELS, TARGETS, Told, batch, splits, task

from jaxtrain.data.dataset import Dataset
from jaxtrain.errors import UserError
from jaxtrain.tasks import tft_arrays, tft_serving

ALERTS = "{'cpu_percent': 40.0, 'disk_percent': 40.0, 'load_average': 3.5}"
START = 1_736_121_600  # 2025-01-06 00:00 UTC


@pytest.fixture(scope="module")
def made():
    return task(data__alerts=ALERTS)


@pytest.fixture(scope="module")
def served(made) -> tuple[Dataset, dict[str, np.ndarray]]:
    """A dataset as `inputs` gives it, and a forecast of six of its windows; the second group is new, its history short."""
    one = batch()
    one["group"], one["when"] = one["group"].copy(), one["when"].copy()
    one["group"][1], one["when"][1, 2], one["static_cat"] = 0, 5, one["static_cat"] * np.array([1, 1, 0, 1, 1, 1])[:, None]
    one["past_mask"] = np.arange(24) >= 24 - one["when"][:, 2:3]
    z = np.sort(np.random.default_rng(0).normal(size=(6, 8, 4, 7)), -1)
    forecast = {name: np.asarray(value) for name, value in jax.jit(lambda b: made.predict(Told(z), b))(one).items()}
    names = made._weight_names()
    rng = np.random.default_rng(1)
    shapes = {"static_weights": (6, 4), "past_weights": (6, 24, 12), "future_weights": (6, 8, 5), "attention": (6, 8, 32)}
    weights = {name: rng.dirichlet(np.ones(shape[-1]), shape[:-1]) for name, shape in shapes.items()}
    assert [len(part) for part in names.values()] == [4, 12, 5]
    arrays = {"group_names": splits().statistics["group_names"], "start": np.int64(START), "notes": np.array(["1 new group: x"])}
    index = splits().test.index[:6]
    return Dataset(arrays, index, splits().test.gather), {**one, **forecast, **weights}


def test_forecasts_rise_along_the_levels_and_alerts_follow_them(made, served):
    quantiles, p_above = served[1]["quantiles"], served[1]["p_above"]
    assert quantiles.shape == (6, 8, 4, 7) and (np.diff(quantiles, axis=-1) >= 0).all()
    assert p_above.shape == (6, 8, 3) and p_above.min() >= 0 and p_above.max() <= 1
    below = np.interp(40, quantiles[2, 5, 0], LEVELS, left=0, right=1)
    assert p_above[2, 5, 0] == pytest.approx(1 - below, abs=1e-5)


def test_the_table_is_long_and_in_order(made, served):
    dataset, forecast = served
    table = made.table(dataset, forecast, {})
    assert list(table) == [
        "server", "origin", "timestamp", "step", "target", "q02", "q10", "q25", "q50", "q75", "q90", "q98", "p_above_40", "p_above_3.5",
        "history_steps", "note",
    ]  # fmt: skip
    assert {len(column) for column in table.values()} == {6 * 4 * 8}
    b, r, step = 4, 2, 6
    row = (b * 4 + r) * 8 + step - 1
    origin = np.datetime64(START + 900 * int(forecast["when"][b, 1]), "s")
    assert table["server"][row] == splits().statistics["group_names"][forecast["when"][b, 0]]
    assert (table["origin"][row], table["timestamp"][row]) == (origin, origin + np.timedelta64(900 * (step - 1), "s"))
    assert (table["step"][row], table["target"][row]) == (step, TARGETS[r])
    assert table["q75"][row] == forecast["quantiles"][b, step - 1, r, 4]
    targets = table["target"]
    assert np.isfinite(table["p_above_40"][np.isin(targets, ("cpu_percent", "disk_percent"))]).all()
    assert np.isnan(table["p_above_40"][np.isin(targets, ("memory_percent", "load_average"))]).all()
    assert table["p_above_40"][row] == forecast["p_above"][b, step - 1, 1]
    assert np.isfinite(table["p_above_3.5"]).sum() == 6 * 8
    notes = table["note"].reshape(6, 32)
    assert list(notes[:, 0]) == ["", "history below 12 steps; new group", "profile unknown", "", "", ""]
    assert table["history_steps"].reshape(6, 32)[1, 0] == 5


def test_groups_of_several_columns_are_taken_apart_again(served):
    two = task(data__groups="('site', 'server')").config.data
    dataset, forecast = served
    names = np.array([f"site{i}/box/{i}" for i in range(8)])
    table = tft_serving.table(two, LEVELS, Dataset({**dataset.arrays, "group_names": names}, dataset.index, dataset.gather), forecast)
    number = forecast["when"][0, 0]
    assert (table["site"][0], table["server"][0]) == (f"site{number}", f"box/{number}")


def test_quantile_columns_of_odd_levels():
    assert [tft_serving.quantile_name(level) for level in (0.005, 0.02, 0.1, 0.5, 0.975)] == ["q00.5", "q02", "q10", "q50", "q97.5"]


def test_explanations_are_further_tables_whose_parts_sum_to_one(made, served):
    dataset, forecast = served
    assert made.more_tables(dataset, forecast, {}) == {} and made.serving({}) == {}
    assert made.serving({"explain": "true"}) == {"explain": True}
    tables = made.more_tables(dataset, forecast, {"explain": "true"})
    weights, attention = tables["weights"], tables["attention"]
    assert len(weights["weight"]) == 6 * (4 + 12 + 5)
    for part, size in (("static", 4), ("past", 12), ("future", 5)):
        chosen = weights["part"] == part
        np.testing.assert_allclose(weights["weight"][chosen].reshape(6, size).sum(1), 1)
        recent = weights["recent_weight"][chosen].reshape(6, size)
        assert np.isnan(recent).all() if part != "past" else np.allclose(recent.sum(1), 1)
    past = weights["weight"][weights["part"] == "past"].reshape(6, 12)
    np.testing.assert_allclose(past[0], forecast["past_weights"][0].mean(0))
    np.testing.assert_allclose(past[1], forecast["past_weights"][1, -5:].mean(0))  # five steps of history
    assert tuple(weights["variable"][:4]) == ("server", "profile", "cores", "level")
    assert len(attention["weight"]) == 6 * 4 * 32
    assert sorted(set(attention["step"])) == [1, 2, 4, 8] and (attention["position"].min(), attention["position"].max()) == (-24, 7)
    chosen = (attention["step"] == 4) & (attention["position"] == -3)
    np.testing.assert_array_equal(attention["weight"][chosen], forecast["attention"][:, 3, 21])
    assert {len(column) for table in tables.values() for column in table.values()} == {6 * 21, 6 * 128}


@pytest.mark.parametrize(("options", "message"), [
    ({"orgin": "1"}, "unknown option"),
    ({"every": "0"}, "from 1"),
    ({"every": "x"}, "from 1"),
    ({"every": "3", "at": "2025-01-01"}, "give one of the two"),
])  # fmt: skip
def test_wrong_options_are_one_line(made, options, message):
    with pytest.raises(UserError, match=message) as error:
        made.inputs("missing.csv", options)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="expected yes or no"):
        made.serving({"explain": "maybe"})


def test_what_the_run_does_not_know_is_said(served, capsys):
    assert tft_serving.announced(served[0]) is served[0]
    assert capsys.readouterr().err == "note: 1 new group: x\n"


# Arrays given by hand


def by_hand(one: dict[str, np.ndarray], made) -> dict[str, np.ndarray]:
    """What a caller would give for a gathered batch."""
    statistics = splits().statistics

    def texts(codes: np.ndarray, name: str) -> np.ndarray:
        return np.array(["?", *statistics[f"vocabulary/{name}"]])[codes]

    return {
        "past": one["past"],
        "known": one["known"],
        "time": (START + 900 * one["when"][:, 1].astype(np.int64)).astype("datetime64[s]"),
        "group": statistics["group_names"][one["group"] - 1],
        "static_real": one["static_real"],
        "static_cat": texts(one["static_cat"], "profile"),
        "past_cat": texts(one["past_cat"], "status"),
    }


def test_arrays_by_hand_become_the_batch_of_the_file(made):
    one = batch()
    found = made.complete(by_hand(one, made))
    given = ("past", "past_mask", "known", "group", "calendar", "static_real", "static_cat", "past_cat")
    for name in (*given, "level", "center", "scale", "cap"):
        np.testing.assert_allclose(found[name], one[name], rtol=1e-6, atol=1e-6, err_msg=name)
    inputs, same = (jax.eval_shape(lambda b: made._inputs(b)[1], x) for x in (found, one))
    assert {k: v.shape for k, v in inputs.items()} == {k: v.shape for k, v in same.items()}


def test_short_and_gappy_histories_by_hand(made):
    given = by_hand(batch(), made)
    given["past"] = given["past"].copy()
    given["past"][0, :6], given["past"][1, 10, 0], given["past"][2, 12:, 1] = np.nan, np.nan, np.nan
    found = made.complete(given)
    assert not found["past_mask"][0, :6].any() and found["past_mask"][0, 6:].all() and found["past_mask"][1:].all()
    assert found["past"][1, 10, 0] == given["past"][1, 9, 0] and found["present"][1, 10] == 0.75
    np.testing.assert_array_equal(found["past"][2, 12:16, 1], given["past"][2, 11, 1])
    assert np.isnan(found["past"][2, 16:, 1]).all()  # older than data.fill_steps
    assert (found["present"][0, :6] == 0).all()


def test_a_new_group_by_hand_takes_its_level_from_its_own_history(made):
    given = by_hand(batch(), made)
    del given["group"], given["static_cat"], given["static_real"], given["past_cat"]
    found, statistics = made.complete(given), splits().statistics
    assert (found["group"] == 0).all() and (found["static_cat"] == 0).all() and np.isnan(found["static_real"]).all()
    np.testing.assert_array_equal(found["cap"], np.broadcast_to(statistics["global_cap"], (6, 4)))
    own = (given["past"][2, :, 0].mean() - statistics["global_center"][0]) / statistics["global_scale"][0]
    assert found["level"][2, 0] == pytest.approx(own * 24 / (24 + 96), rel=1e-3)


@pytest.mark.parametrize(("change", "message"), [
    ({"past": None}, r"past is missing; give an array \(1, 24, 5\) \(cpu_percent, "),
    ({"known": None}, "known is missing"),
    ({"past": np.zeros((6, 23, 5))}, r"past has shape \(6, 23, 5\), this run expects \(6, 24, 5\)"),
    ({"time": np.zeros(5)}, r"time has shape \(5,\)"),
    ({"speed": np.zeros(6)}, "takes no speed"),
])  # fmt: skip
def test_wrong_arrays_are_one_line(made, change, message):
    given = {k: v for k, v in {**by_hand(batch(), made), **change}.items() if v is not None}
    with pytest.raises(UserError, match=message) as error:
        made.complete(given)
    assert "\n" not in str(error.value)


def test_fill_carries_forward_only():
    values = np.array([[np.nan, 1, np.nan, np.nan, np.nan, 2]], np.float32)[..., None]
    np.testing.assert_array_equal(tft_arrays.fill(values, 2)[0, :, 0], [np.nan, 1, 1, 1, np.nan, 2])

