"""What the training rows teach: plain loops over them, and nothing else changes it."""

import numpy as np
import pytest
from fleet_problem import changed, config, table, write

from jaxtrain.data import fleet

LEVELS = (0.1, 0.5, 0.9)
SPANS = {"a": range(60), "b": range(60), "c": range(20, 60), "d": range(48), "e": range(60), "f": range(60)}
COLUMNS = {
    "disk": lambda name, step: None if step % 11 == 3 else round(np.exp(0.1 * step + ord(name) % 3), 3),
    "hot": lambda name, step: float(step % 7 + ord(name)),
    "busy": lambda name, step: float(step % 5 == 0),
    "cores": lambda name, step: 2.0 ** (ord(name) % 5),
    "rack": lambda name, step: "r" + name,
    "mode": lambda name, step: "night" if step % 12 < 3 else "day",
}
SETTINGS = {
    "targets": ("cpu", "disk"), "observed_real": ("hot",), "known_real": ("busy",), "static_real": ("cores",),
    "static_categorical": ("rack",), "observed_categorical": ("mode",), "transform": {"disk": "log1p", "cores": "log1p"},
    "normalise": {"cpu": "group"}, "fill_steps": 1,
}  # fmt: skip
SPLITS = {
    "time": {},
    "blocks": {"valid_blocks": 2, "gap_steps": 2},
    "group": {"split": "group"},
    "cross": {"split": "cross", "folds": 4, "fold": 1},
    "walk_forward": {"split": "walk_forward", "folds": 2, "fold_steps": 10, "train_steps": 25},
    "leave_out": {"split": "leave_out", "folds": 3},
}


@pytest.fixture(scope="module")
def rows():
    return table(SPANS, **COLUMNS)


def statistics(folder, rows, **changes):
    return fleet.splits(config(write(folder / "fleet.parquet", rows), **SETTINGS, **changes), LEVELS).statistics


def training_rows(rows, changes):
    """(n,) bool: rows of the table whose group and step a target of train can have (gaps and cuts written out)."""
    step = np.array([s for steps in SPANS.values() for s in steps])
    group = np.array(rows["server"])
    inside = {
        "blocks": (step < 18) | ((step >= 26) & (step < 42)), "cross": (step < 15) | (step >= 49),
        "walk_forward": (step >= 5) & (step < 30),
    }.get(changes.get("split", "blocks" if "valid_blocks" in changes else ""), step < 36)  # fmt: skip
    # In the order of sha256 the groups are d, f, c, b, e, a.
    members = {"group": "dfcb", "leave_out": "ea"}.get(changes.get("split", ""), "abcdef")
    return inside & np.isin(group, list(members))


def test_equal_plain_sums_over_the_training_rows(tmp_path, rows):
    s = statistics(tmp_path, rows)
    train = training_rows(rows, {})
    server, measured = np.array(rows["server"]), {name: np.array(rows[name], float) for name in ("cpu", "disk", "hot", "busy", "cores")}
    groups = s["group_names"].tolist()
    assert groups == list("abcdef") and s["step_seconds"] == 300 and s["start"] == 1_736_121_600
    spaces = {"cpu": measured["cpu"], "disk": np.log1p(measured["disk"])}
    z = {}
    for r, (name, g) in enumerate(spaces.items()):
        there = train & ~np.isnan(g)
        np.testing.assert_allclose([s["global_center"][r], s["global_scale"][r]], [g[there].mean(), g[there].std()], rtol=1e-5)
        np.testing.assert_allclose(s["global_cap"][r], measured[name][there].max(), rtol=1e-6)
        np.testing.assert_allclose(s["target_mean_abs"][r], np.abs(measured[name][there]).mean(), rtol=1e-5)
        z[name] = (g - g[there].mean()) / g[there].std()
        for i, group in enumerate(groups):
            mine = there & (server == group)
            np.testing.assert_allclose(s["cap"][i, r], measured[name][mine].max(), rtol=1e-6)
            np.testing.assert_allclose(s["level"][i, [r, 2 + r]], [z[name][mine].mean(), np.log(z[name][mine].std())], rtol=1e-4)
            own = [g[mine].mean(), g[mine].std()] if name == "cpu" else [s["global_center"][r], s["global_scale"][r]]
            np.testing.assert_allclose([s["center"][i, r], s["scale"][i, r]], own, rtol=1e-5)
    filled = measured["disk"].copy()  # one step back, inside the group
    hole = np.isnan(filled) & (np.concatenate([[""], server[:-1]]) == server)
    filled[hole] = measured["disk"][np.flatnonzero(hole) - 1]
    for values, r in ((measured["cpu"], 0), (filled, 1)):
        np.testing.assert_allclose(s["global_quantiles"][r], np.nanquantile(values[train], LEVELS), rtol=1e-6)
        np.testing.assert_allclose(s["train_quantiles"][2, r], np.nanquantile(values[train & (server == "c")], LEVELS), rtol=1e-6)
    hot = measured["hot"][train]
    np.testing.assert_allclose([s["observed_center"][0], s["observed_scale"][0]], [hot.mean(), hot.std()], rtol=1e-5)
    assert [s["known_center"][0], s["known_scale"][0]] == [0, 1]  # a binary column stays
    cores = np.log1p([2.0 ** (ord(g) % 5) for g in groups])
    np.testing.assert_allclose([s["static_center"][0], s["static_scale"][0]], [cores.mean(), cores.std()], rtol=1e-5)
    assert s["vocabulary/rack"].tolist() == ["ra", "rb", "rc", "rd", "re", "rf"] and s["vocabulary/mode"].tolist() == ["day", "night"]
    assert s["log1p"].tolist() == [False, True, False, False] and s["static_log1p"].tolist() == [True]


@pytest.mark.parametrize("changes", SPLITS.values(), ids=SPLITS)
def test_only_training_rows_count(tmp_path, rows, changes):
    before = statistics(tmp_path, rows, **changes)
    train = training_rows(rows, changes)
    random = np.random.default_rng(0)
    noisy = {name: list(values) for name, values in rows.items()}
    for row in np.flatnonzero(~train):
        for name in ("cpu", "disk", "hot", "busy"):
            noisy[name][row] = float(random.uniform(0, 1e6))
        noisy["mode"][row] = "never before"
    after = statistics(tmp_path, noisy, **changes)
    assert before.keys() == after.keys()
    # A cell before a training stretch may fill its first one: only the quantiles of filled values see that.
    for name in before.keys() - ({"train_quantiles", "global_quantiles"} if changes else set()):
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    for row in (np.flatnonzero(train)[0], np.flatnonzero(train)[-1]):
        touched = statistics(tmp_path, changed(rows, "hot", int(row), 1e3), **changes)
        assert touched["observed_center"][0] > before["observed_center"][0]


def test_constant_columns_keep_a_scale(tmp_path, rows):
    cpu = [7.0 if server == "b" else value for server, value in zip(rows["server"], rows["cpu"], strict=True)]
    s = statistics(tmp_path, {**rows, "hot": [5.0] * len(cpu), "cpu": cpu})
    np.testing.assert_allclose([s["observed_scale"][0], s["scale"][1, 0]], [5e-3, 7e-3], rtol=1e-5)
    np.testing.assert_allclose(s["level"][1, 2], np.log(1e-3), rtol=1e-5)


def test_are_numbers_and_text_alone(tmp_path, rows):
    for name, value in statistics(tmp_path, rows).items():
        assert value.dtype.kind in "fiubU" and value.dtype != np.float64, name
        assert value.dtype.kind != "f" or np.isfinite(value).all(), name
