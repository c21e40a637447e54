"""What a finished headway run is asked and what it writes: options, arrays by hand, the table, evidence, another plan."""

import jax
import numpy as np
import pytest
from convlstm_case import CAP, COUNT, D, F, L, S, Told, batch, numbers, splits, task

from jaxtrain.data.dataset import Dataset
from jaxtrain.errors import UserError
from jaxtrain.tasks import convlstm_inputs as door
from jaxtrain.tasks import convlstm_serving as serving


@pytest.fixture(scope="module")
def served():
    """(dataset, forecast with the gathered batch) of windows spread over the test day, under the run's plan and another."""
    test = splits().test
    dataset = Dataset(test.arrays, test.index[:: len(test) // COUNT][:COUNT], test.gather)
    later = {**test.arrays, "planned": np.where(test.arrays["planned_known"], 6, 0).astype(np.float32)}
    dataset = door.with_own_plan(Dataset(later, dataset.index, test.gather), dataset, L)
    inputs = dataset.gather(dataset.arrays, dataset.index)
    inputs["headway_known"] = inputs["headway_known"].copy()
    inputs["headway_known"][0, :, :3, 0] = False  # nothing known at the first three stations, nor planned there
    inputs["headway_known"][1, :, :, 1] = False  # the plan alone
    inputs["planned_known"] = inputs["planned_known"].copy()
    inputs["planned_known"][0, :, 0] = False
    said = numbers()
    made = task(model__head="quantile", loss__kind="pinball", model__readout="plain")
    call = jax.jit(lambda b: made.predict(Told(y=said["y"], quantiles=said["quantiles"]), b))
    return dataset, {**inputs, **{k: np.asarray(v) for k, v in call(inputs).items()}}


def test_forecasts_are_minutes_within_the_cap(served):
    forecast, said = served[1], numbers()
    np.testing.assert_allclose(forecast["value"], CAP * np.clip(said["y"], 0, 1), rtol=1e-5)
    np.testing.assert_allclose(forecast["upper"], CAP * np.clip(said["quantiles"][..., 2], 0, 1), rtol=1e-5)
    assert (forecast["lower"] >= 0).all() and (forecast["advected"] <= CAP).all()
    np.testing.assert_array_equal(np.isnan(forecast["planned"]), ~forecast["planned_known"][..., 0])
    known = np.stack([forecast["headway_known"], forecast["age_known"]]).mean((0, 2))
    np.testing.assert_allclose(forecast["known_share"], known, rtol=1e-6)


def test_a_forecast_rests_on_something_upstream_or_on_the_plan(served):
    forecast, travel = served[1], splits().statistics["travel_minutes"]
    expected = np.zeros((COUNT, F, S, D), bool)
    for b, f, s, d in np.ndindex(expected.shape):
        upstream = travel[d] <= travel[d, s]
        row = int(np.clip(np.floor(f + 1 - travel[d, s]), 0, F - 1))
        planned = f + 1 >= travel[d, s] and forecast["planned_known"][b, row, d, 0]
        expected[b, f, s, d] = forecast["headway_known"][b][:, upstream, d].any() or planned
    np.testing.assert_array_equal(forecast["grounded"], expected)
    assert not expected[0, :, :3, 0].any() and 0.1 < expected[1, ..., 1].mean() < 0.7 and expected[2:].all()


def test_the_table_has_a_row_per_grounded_cell_with_its_times(served, capsys):
    dataset, forecast = served
    table = serving.table(task().config.data, splits().statistics, dataset, forecast)
    assert list(table) == [
        "issued_at", "target_time", "minutes_ahead", "service_date", "station", "direction", "headway_minutes", "lower_minutes",
        "upper_minutes", "planned_minutes", "advected_minutes", "known_share", "own_plan_minutes", "change_minutes",
    ]  # fmt: skip
    kept = int(forecast["grounded"].sum())
    assert {len(column) for column in table.values()} == {kept}
    assert f"{COUNT * F * S * D - kept:,} of {COUNT * F * S * D:,} rows are left out" in capsys.readouterr().err
    b, d, s, f = COUNT - 1, 1, 2, 3
    issued = np.datetime64(int(dataset.arrays["time"][dataset.index[b, 0] + L]), "s")
    row = np.flatnonzero((table["issued_at"] == f"{issued}+00:00") & (table["direction"] == "inbound") & (table["minutes_ahead"] == f + 1)
                         & (table["station"] == splits().statistics["stations"][d, s]))  # fmt: skip
    assert len(row) == 1
    assert table["target_time"][row[0]] == f"{issued + np.timedelta64(f + 1, 'm')}+00:00"
    assert table["service_date"][row[0]] == str((issued - np.timedelta64(4, "h")).astype("datetime64[D]"))
    for column, value in (("headway", forecast["value"]), ("lower", forecast["lower"]), ("advected", forecast["advected"])):
        assert table[f"{column}_minutes"][row[0]] == value[b, f, s, d]
    assert table["planned_minutes"][row[0]] == forecast["planned"][b, f, d] == 6
    assert table["known_share"][row[0]] == forecast["known_share"][b, s, d]


def test_an_array_without_times_is_served_by_row(served):
    dataset, forecast = served
    fictive = Dataset({**dataset.arrays, "time": 60 * np.arange(len(dataset.arrays["time"]))}, dataset.index, dataset.gather)
    table = serving.table(task().config.data, splits().statistics, fictive, forecast)
    assert list(table)[:2] == ["row", "minutes_ahead"] and table["row"][-1] == dataset.index[-1, 0] + L - 1


def test_another_plan_is_forecast_beside_the_run_s_own():
    test = splits().test
    own = Dataset(test.arrays, test.index[::300], test.gather)
    changed = Dataset({**test.arrays, "planned": test.arrays["planned"] / 2}, own.index, test.gather)
    one = door.with_own_plan(changed, own, L)
    found = one.gather(one.arrays, one.index)
    np.testing.assert_allclose(found["own_planned"], 2 * found["planned"])
    np.testing.assert_array_equal(found["own_planned_known"], own.gather(own.arrays, own.index)["planned_known"])


@pytest.mark.parametrize(("options", "message"), [
    ({"evry": "5"}, "--option evry: unknown option .did you mean 'every'"),
    ({"every": "0"}, "whole number of minutes from 1"),
    ({"every": "x"}, "whole number of minutes from 1"),
])  # fmt: skip
def test_options_are_checked_before_the_file_is_read(options, message):
    with pytest.raises(UserError, match=message):
        task().inputs("nowhere.csv", options)
    with pytest.raises(UserError, match="unknown option"):
        task().labelled("nowhere.csv", options)


def by_hand() -> dict[str, np.ndarray]:
    one = batch()
    return {name: np.where(one[f"{name}_known"], one[name], np.nan) for name in ("headway", "age", "planned")}


def test_arrays_by_hand_become_the_batch_of_the_file():
    made, one = task(), batch()
    found = made.complete(by_hand())
    assert made.signature == ("headway", "age", "planned")
    for name in ("headway", "headway_known", "age", "planned", "planned_known"):
        np.testing.assert_allclose(found[name], one[name])
    assert made.complete({**by_hand(), "headway": by_hand()["headway"] + 40})["headway"].max() == CAP


@pytest.mark.parametrize(("change", "message"), [
    (lambda a: a.pop("age"), "age is missing; give an array .6, 10, 6, 2."),
    (lambda a: a.update(planned=a["planned"][:, :2]), r"planned has shape .6, 2, 2, 1., this run expects .6, 5, 2, 1."),
    (lambda a: a.update(speed=a["age"]), "takes no speed; it takes headway, age, planned"),
    (lambda a: a.update(age=a["age"] - 50), "age must be minutes of at least 0"),
])  # fmt: skip
def test_faults_of_arrays_by_hand_name_the_array(change, message):
    arrays = by_hand()
    change(arrays)
    with pytest.raises(UserError, match=message):
        task().complete(arrays)
