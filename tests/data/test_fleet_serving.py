"""What a finished run reads: the same windows as in training, the end of a file, and what is missing there."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from fleet_problem import config, iso, table, write

from jaxtrain.data import fleet
from jaxtrain.errors import UserError

LEVELS = (0.1, 0.5, 0.9)
SETTINGS = {
    "observed_real": ("hot",), "known_real": ("plan",), "known_categorical": ("shift",), "static_categorical": ("rack",),
    "observed_categorical": ("mode",), "lags": (("cpu", 6), ("cpu", 1)), "rolling": (("cpu", 3, "mean", 4), ("hot", 4, "max", 0)),
    "peers": (("cpu", ""),), "transform": {"cpu": "log1p"}, "normalise": {"cpu": "group"},
}  # fmt: skip
COLUMNS = {
    "hot": lambda name, step: round(3 + np.sin(0.7 * step + ord(name)), 3),
    "plan": lambda name, step: float(step % 9 == 0),
    "shift": lambda name, step: "day" if step % 20 < 12 else "night",
    "rack": lambda name, step: "r" + name,
    "mode": lambda name, step: "slow" if step % 6 == 2 else "fast",
}
SPANS = {"a": range(80), "b": range(80), "c": range(30, 80)}
WAITING = {"cpu": None, "hot": None, "mode": None}  # what nobody knows of the future


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, statistics, splits) of a run."""
    settings = config(write(tmp_path_factory.mktemp("run") / "fleet.parquet", table(SPANS, **COLUMNS)), **SETTINGS)
    found = fleet.splits(settings, LEVELS)
    return settings, found.statistics, found


def cut(origin, horizon=4, spans=None, **columns):
    """The table up to a step, with only the known columns after it."""
    spans = SPANS if spans is None else spans
    until = {name: range(steps.start, min(steps.stop, origin + horizon)) for name, steps in spans.items()}
    rows = table(until, **{**COLUMNS, **columns})
    step = [s for steps in until.values() for s in steps]
    return rows | {name: [WAITING[name] if s >= origin else v for s, v in zip(step, rows[name], strict=True)] for name in WAITING}


def batch(data):
    return data.gather(data.arrays, data.index)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_window_is_read_as_in_training(run, tmp_path, kind):
    """A file that ends before an origin gives the run's own window, bit for bit: features, fill and codes included."""
    settings, statistics, found = run
    data = fleet.inputs(settings, statistics, str(write(tmp_path / f"now.{kind}", cut(70))))
    rows = found.test.index[batch(found.test)["when"][:, 1] == 70]
    there, trained = batch(data), found.test.gather(found.test.arrays, rows)
    assert there["when"].tolist() == [[g, 70, 8, 0] for g in range(3)] and len(rows) == 3
    assert not there["target_mask"].any()
    for name in ("past", "past_cat", "past_mask", "present", "known", "known_cat", "calendar", "static_cat", "group", "level", "cap"):
        np.testing.assert_array_equal(there[name], trained[name], err_msg=name)
    assert np.isfinite(there["known"]).all() and there["known"].shape[2] == 3  # plan, lag 6 and the mean 4 steps ago
    assert data.arrays["group_names"].tolist() == ["a", "b", "c"] and data.arrays["start"] == 1_736_121_600
    assert not len(data.arrays["notes"])


def test_origins_at_a_time_and_every_so_many_steps(run, tmp_path):
    settings, statistics, _ = run
    path = str(write(tmp_path / "now.parquet", cut(70)))

    def when(**options):
        return batch(fleet.inputs(settings, statistics, path, **options))["when"][:, :3].tolist()

    assert when(at=iso(33)) == [[0, 33, 8], [1, 33, 8], [2, 33, 3]]
    assert when(at=iso(30, "")) == [[0, 30, 8], [1, 30, 8]]  # no zone is UTC; c begins there
    assert when(at="2025-01-06T03:45:00+01:00") == when(at=iso(33))
    assert when(every=30) == [[g, o, 8] for g, first in ((0, 10), (1, 10), (2, 40)) for o in range(first, 71, 30)]
    with pytest.raises(UserError, match="off the grid by 60 s"):
        when(at="2025-01-06T02:46:00Z")
    with pytest.raises(UserError, match="no group has a measured target in the 8 steps before --option at=2025-01-07"):
        when(at="2025-01-07T00:00:00Z")


def test_an_origin_may_lie_a_while_after_the_last_row(run, tmp_path):
    settings, statistics, _ = run
    settings = replace(settings, known_default={"plan": 0.0, "shift": "day"})
    path = str(write(tmp_path / "now.parquet", cut(70, horizon=0)))
    there = batch(fleet.inputs(settings, statistics, path, at=iso(73)))
    assert there["when"][:, 1].tolist() == [73] * 3 and there["present"][0].tolist() == [1] * 5 + [0] * 3
    with pytest.raises(UserError, match="no group has a measured target"):
        fleet.inputs(settings, statistics, path, at=iso(79))


def test_a_labelled_file_is_scored_like_a_split(run):
    settings, statistics, found = run
    data = fleet.inputs(settings, statistics, str(settings.path), labelled=True)
    assert len(data) == sum(80 - steps.start - 4 - 4 + 1 for steps in SPANS.values())
    assert len(fleet.inputs(settings, statistics, str(settings.path), labelled=True, every=10)) < len(data) / 8
    there = batch(data)
    expected = batch(found.test)
    place = [np.flatnonzero((there["when"][:, :2] == row[:2]).all(axis=1))[0] for row in expected["when"]]
    for name in expected.keys() - {"when"}:
        np.testing.assert_array_equal(there[name][place], expected[name], err_msg=name)
    assert np.unique(there["when"][:, 3]).tolist() == list(range(1 + (76 - 0) // 8))
    assert data.gather.keywords["season_steps"] == settings.season_steps


def test_every_group_needs_a_measurement(run, tmp_path):
    settings, statistics, _ = run
    rows = cut(70)
    rows["cpu"] = [None if name == "b" else value for name, value in zip(rows["server"], rows["cpu"], strict=True)]
    with pytest.raises(UserError, match=r"now.parquet: 1 groups have no measured target \(b\)"):
        fleet.inputs(settings, statistics, str(write(tmp_path / "now.parquet", rows)))


def test_a_file_without_a_window_to_score_is_refused(run, tmp_path):
    settings, statistics, _ = run
    path = str(write(tmp_path / "short.parquet", table({"a": range(7)}, **COLUMNS)))
    with pytest.raises(UserError, match="the longest group has 7 steps, a window needs 8"):
        fleet.inputs(settings, statistics, path, labelled=True)


@pytest.mark.parametrize("horizon,columns,says", [
    (0, {}, "group a, column plan is missing from 2025-01-06 05:50:00 UTC on; give 4 rows after the last measurement"),
    (3, {}, "group a, column plan is missing from 2025-01-06 06:05:00 UTC on"),
    (4, {"plan": lambda name, step: None}, "column plan is missing from 2025-01-06 05:50:00 UTC"),
    (4, {"shift": lambda name, step: None if step > 60 else "day"}, "set data.known_default.shift"),
])  # fmt: skip
def test_known_columns_must_reach_over_the_horizon(run, tmp_path, horizon, columns, says):
    settings, statistics, _ = run
    path = str(write(tmp_path / "now.parquet", cut(70, horizon, **columns)))
    with pytest.raises(UserError) as fault:
        fleet.inputs(settings, statistics, path)
    assert says in str(fault.value) and path in str(fault.value) and "known_default" in str(fault.value)
    mended = replace(settings, known_default={"plan": 0.5, "shift": "night"})
    there = batch(fleet.inputs(mended, statistics, path))
    future = slice(8 + horizon if not columns else 8, None)
    name = next(iter(columns), "plan")
    if name == "plan":
        assert np.all(there["known"][:, future, 0] == 0.5)
    else:
        assert np.all(there["known_cat"][:, future] == 1 + statistics["vocabulary/shift"].tolist().index("night"))


def spaced(seconds):
    """`cut(70)` with rows so far apart."""
    rows = cut(70)
    stamps = np.array([text.removesuffix("Z") for text in rows["timestamp"]], "datetime64[s]")
    steps = (stamps - stamps.min()) / np.timedelta64(300, "s")
    return rows | {"timestamp": [iso(step * seconds / 300) for step in steps]}


@pytest.mark.parametrize("rows,says", [
    (spaced(60), "the commonest step is 60 s (100 %), data.file_step_seconds is 300"),
    ({name: values for name, values in cut(70).items() if name != "plan"}, "columns missing: plan"),
    ({**cut(70), "hot": ["warm"] * len(cut(70)["cpu"])}, "row 1, hot: 'warm' is not a number"),
])  # fmt: skip
def test_a_file_of_another_kind_than_in_training_is_refused(run, tmp_path, rows, says):
    settings, statistics, _ = run
    with pytest.raises(UserError) as fault:
        fleet.inputs(settings, statistics, str(write(tmp_path / "now.csv", rows)))
    assert says in str(fault.value) and "now.csv" in str(fault.value) and "\n" not in str(fault.value)


def test_new_groups_and_categories_are_named_and_unknown(run, tmp_path):
    settings, statistics, _ = run
    columns = {"mode": lambda name, step: "frozen" if name == "z" and step < 60 else "fast"}
    path = str(write(tmp_path / "now.csv", cut(70, spans={"b": range(80), "z": range(40, 80)}, **columns)))
    data = fleet.inputs(settings, statistics, path)
    there = batch(data)
    assert there["group"].tolist() == [2, 0] and there["static_cat"][:, 0].tolist() == [2, 0]
    codes = data.arrays["cat"][data.arrays["row0"][1] :, 0]
    assert not codes[:20].any() and codes[20:30].all()
    notes = " | ".join(data.arrays["notes"])
    assert "1 of 2 groups are new to the run and take the unknown index: z" in notes
    assert "mode: 1 categories are new" in notes and "frozen" in notes and "rack: 1 categories are new" in notes and ": rz" in notes
    own = np.log1p([float(row["cpu"]) for row in csv.DictReader(open(path)) if row["server"] == "z" and row["cpu"]])
    assert len(own) == 30
    weight = 30 / (30 + 96)
    expected = weight * own.mean() + (1 - weight) * statistics["global_center"]
    np.testing.assert_allclose(there["center"][1], expected, rtol=1e-5)
    np.testing.assert_array_equal(there["center"][0], statistics["center"][1])
    np.testing.assert_array_equal(there["cap"][1], statistics["global_cap"])
