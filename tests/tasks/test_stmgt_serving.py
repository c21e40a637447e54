"""What a finished traffic run is asked and what it writes: forecasts, tables, options, arrays by hand, files of several formats."""

import h5py
import numpy as np
import pytest
from flax import nnx
from stmgt_case import batch, forecast, host, sections, splits, task, trained, windows

from jaxtrain.errors import UserError
from jaxtrain.tasks.stmgt import make_task

# Prediction


def test_forecasts_are_physical_ordered_and_consistent():
    said, statistics, train = forecast(), splits().statistics, splits().train
    largest = statistics["speed_mean"] + 6 * statistics["speed_std"]
    fastest = np.max(train.arrays["speed"][: int(train.index[-1, 0]) + 10])
    assert fastest < largest
    assert (said["median"] >= 0).all() and (said["median"] <= 1.2 * fastest).all()
    assert (np.diff(said["quantiles"], axis=-1) >= 0).all()
    np.testing.assert_allclose(said["quantiles"][..., 3], said["median"], rtol=1e-6)
    np.testing.assert_allclose(said["component_weight"].sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose((said["component_weight"] * said["component_mean"]).sum(-1), said["mean"], rtol=1e-4)
    assert ((said["p_congested"] >= 0) & (said["p_congested"] <= 1)).all()
    np.testing.assert_allclose(said["last"], np.repeat(batch()["speed"][:, -1:], 4, 1))


def test_denormalize_false_returns_the_networks_own_numbers():
    made = task()
    own = made.predict(trained().model, batch(), denormalize=False)
    mean, std = made.statistics["speed_mean"], made.statistics["speed_std"]
    np.testing.assert_allclose(own["median"] * std + mean, forecast()["median"], rtol=1e-4, atol=1e-3)
    assert "damped" not in own


def test_prediction_needs_no_targets():
    one = batch()
    bare = {name: one[name] for name in ("speed", "observed", "slot", "dow", "weather")}
    np.testing.assert_allclose(trained().predict(bare)["median"], forecast()["median"], rtol=1e-5)


def test_table_is_long_in_origin_horizon_node_order():
    said, dataset = forecast(), windows()
    table = task().table(dataset, said, {"components": "yes"})
    assert {len(column) for column in table.values()} == {5 * 4 * 16}
    mixture = [f"{name}_{k}" for k in range(2) for name in ("weight", "mean", "std")]
    quantiles = ["q05", "q10", "q25", "q75", "q90", "q95"]
    assert list(table) == ["origin", "time", "horizon_minutes", "node", "median", "mean", "std", *quantiles, "p_congested", "last",
                           "damped", *mixture, "unit"]  # fmt: skip
    where = np.flatnonzero((table["origin"] == table["origin"][4 * 16 * 2]) & (table["horizon_minutes"] == 15) & (table["node"] == "n07"))
    assert len(where) == 1
    assert table["median"][where[0]] == said["median"][2, 2, 7] and table["q90"][where[0]] == said["quantiles"][2, 2, 7, 5]
    expected = dataset.arrays["time"][dataset.index[2, 0] + 5]
    assert table["origin"][where[0]] == np.datetime64(int(expected), "s")
    assert table["time"][where[0]] - table["origin"][where[0]] == np.timedelta64(15 * 60, "s")
    assert "weight_0" not in task().table(dataset, said, {})


def test_nodes_never_observed_in_training_are_not_written():
    blind = task().with_statistics({"trained": np.arange(16) != 3})
    nodes = blind.table(windows(), forecast(), {})["node"]
    assert len(nodes) == 5 * 4 * 15 and "n03" not in nodes


def test_segments_are_written_with_both_ends():
    pairs = np.array([[f"a{i}", f"b{i}"] for i in range(16)])
    table = task().with_statistics({"node_pairs": pairs}).table(windows(), forecast(), {})
    assert "node" not in table and table["node_a_id"][5] == "a5" and table["node_b_id"][5] == "b5"


def test_unknown_options_are_named():
    made = task()
    with pytest.raises(UserError, match="did you mean 'origin'"):
        made.inputs("speed.csv", {"orign": "2026-01-01"})
    with pytest.raises(UserError, match="expected yes or no"):
        made.inputs("speed.csv", {"allow_missing": "maybe"})
    with pytest.raises(UserError, match="layout=matrx: unknown layout.*did you mean 'matrix'"):
        made.inputs("speed.csv", {"layout": "matrx"})
    with pytest.raises(UserError, match="feature=-1: expected a whole number"):
        made.labelled("speed.csv", {"feature": "-1"})


# Arrays given by hand


def test_hand_given_arrays_equal_the_gathered_batch():
    one = batch()
    speed = np.where(one["observed"], one["speed"], np.nan)
    completed = task().complete({"speed": speed, "slot": one["slot"], "dow": one["dow"], "weather": one["weather"]})
    np.testing.assert_array_equal(completed["observed"], one["observed"])
    np.testing.assert_allclose(completed["speed"][one["observed"]], one["speed"][one["observed"]])
    assert np.isfinite(completed["speed"]).all()
    whole = one["observed"].all((1, 2))
    assert whole.any()
    np.testing.assert_allclose(np.asarray(trained().predict(completed)["median"])[whole], forecast()["median"][whole], rtol=1e-5)


def test_holes_are_carried_and_older_ones_take_the_usual_speed():
    statistics = splits().statistics
    profile = np.random.default_rng(0).uniform(20, 60, statistics["profile"].shape).astype(np.float32)
    made = make_task(sections(data__max_fill_minutes="10"), {**statistics, "profile": profile})  # carried for two steps at most
    slot, dow = np.arange(100, 110)[None], np.full((1, 10), 5)
    speed = np.full((1, 6, 16), np.nan, np.float32)
    speed[0, 1] = 33.0
    weather = np.zeros((1, 6, 3), np.float32)
    filled = made.complete({"speed": speed, "slot": slot, "dow": dow, "weather": weather})["speed"][0]
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
def test_faulty_arrays_are_one_line(change, message):
    one = batch()
    given = {name: one[name] for name in ("speed", "slot", "dow", "weather")} | change
    with pytest.raises(UserError, match=message):
        task().complete({name: value for name, value in given.items() if value is not None})


# From a file to a table


@pytest.fixture(scope="module")
def file_run(tmp_path_factory):
    """A task trained (nominally) on a CSV of the embedded readings, and that file."""
    series, rows = splits().train.arrays, 600
    path = tmp_path_factory.mktemp("traffic") / "speed.csv"
    times = series["time"][:rows].astype("datetime64[s]")
    values = np.where(series["observed"][:rows, :5], series["speed"][:rows, :5], np.nan)
    lines = ["time,a,b,c,d,e"]
    lines += [",".join([str(t), *("" if np.isnan(v) else f"{v:.3f}" for v in row)]) for t, row in zip(times, values, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    made = make_task(sections(data__path=str(path), data__layout="matrix"))
    return made.with_statistics(made.splits().statistics), path


def test_a_file_becomes_a_table_of_forecasts(file_run):
    made, path = file_run
    dataset = made.inputs(str(path), {"origin": "2026-01-02T10:00, 2026-01-02T11:00"})
    model = nnx.view(made.build(nnx.Rngs(0)), deterministic=True)
    one = dataset.gather(dataset.arrays, dataset.index)
    said = {k: np.asarray(v) for k, v in made.predict(model, one).items()}
    table = made.table(dataset, said, {})
    assert len(table["median"]) == 2 * 4 * 5 and set(table["node"]) == set("abcde")
    np.testing.assert_array_equal(np.unique(table["origin"]), np.array(["2026-01-02T10:00", "2026-01-02T11:00"], "datetime64[s]"))
    at_ten = table["origin"] == np.datetime64("2026-01-02T10:00")
    newest = dict(zip(table["node"][at_ten], table["last"][at_ten], strict=True))
    line = next(text for text in path.read_text().splitlines() if text.startswith("2026-01-02T10:00"))
    for node, text in zip("abcde", line.split(",")[1:], strict=True):
        assert text and newest[node] == pytest.approx(float(text), abs=1e-3)


def test_a_labelled_file_is_scored_on_every_window(file_run):
    made, path = file_run
    dataset = made.labelled(str(path), {})
    assert len(dataset) == 600 - 10 + 1
    one = {**dataset.gather(dataset.arrays, dataset.index), "mask": np.ones(len(dataset), np.float32)}
    scores = made.summarize(host(made.score_forecast(made.naive(one)["last"], one)))
    text = [line.split(",")[1:] for line in path.read_text().splitlines()[1:]]
    values = np.array([[float(cell) if cell else np.nan for cell in row] for row in text])
    assert np.isfinite(values).all()
    assert scores["targets"] == 4 * 591 * 5
    assert scores["mae/10min"] == pytest.approx(np.abs(values[7:-2] - values[5:-4]).mean(), rel=1e-4)
    with pytest.raises(UserError, match="unknown option"):
        made.labelled(str(path), {"origin": "2026-01-01"})


def test_a_run_reads_other_formats_than_it_was_trained_on(file_run, tmp_path):
    made, path = file_run  # trained with data.layout="matrix"
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
    expected = made.labelled(str(path), {}).arrays["speed"]
    for name, options in {
        "speed.h5": {},
        "speed.npz": {"key": "flow", "feature": "1", "start": rows[1][0]},
        "edges.csv": {"layout": "edges"},
    }.items():
        np.testing.assert_allclose(made.labelled(str(tmp_path / name), options).arrays["speed"], expected, rtol=1e-6, err_msg=name)
    keyed = make_task(sections(data__path=str(tmp_path / "speed.h5"), data__layout="h5", data__key="df"), made.statistics)
    np.testing.assert_allclose(keyed.labelled(str(path), {}).arrays["speed"], expected, rtol=1e-6)


def test_a_finished_run_refuses_splits_of_other_nodes(file_run):
    other = make_task(sections(data__synthetic__nodes="8"), task().statistics)
    with pytest.raises(UserError, match=r"data.path is unset .* not those of this run \(8, the run has 16\); give .* --input FILE"):
        other.splits()
    of_file, path = file_run
    renamed = of_file.with_statistics({"node_ids": np.array(list("abcdz"))})
    with pytest.raises(UserError, match="speed.csv: its nodes are not those of this run; restore the file"):
        renamed.splits()
    np.testing.assert_array_equal(of_file.splits().statistics["node_ids"], list("abcde"))
