"""Bad traffic input: one line that names the file, the place and the remedy."""

import os
import pickle
import re

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from traffic_problem import config, readings, stamps, write_edges, write_matrix

from jaxtrain.data import traffic
from jaxtrain.data.traffic import SyntheticConfig
from jaxtrain.errors import UserError

GOOD = "2024-01-01T00:00,a,b,10"


def edges(*lines, **changes):
    return lambda d: config(path=write_edges(d / "e.csv", list(lines)), **changes)


def matrix(values, header="", times=None, **changes):
    return lambda d: config(path=write_matrix(d / "m.csv", values, header, times), **{"start": "2024-01-01", **changes})


def text(content, name="m.csv", **changes):
    def make(d):
        (d / name).write_text(content)
        return config(path=str(d / name), **{"start": "2024-01-01", **changes})

    return make


def arrays(settings=(), **content):
    def make(d):
        np.savez(d / "m.npz", **content)
        return config(path=str(d / "m.npz"), start="2024-01-01", **dict(settings))

    return make


def frame(groups, **changes):
    def make(d):
        with h5py.File(d / "m.h5", "w") as file:
            for name, parts in groups.items():
                group = file.create_group(name)
                for part in parts:
                    group[part] = np.zeros(3)
        return config(path=str(d / "m.h5"), **changes)

    return make


def damaged(name, save, flip, **changes):
    """A file that `save(path)` wrote, with bytes flipped in its middle, or cut in half."""

    def make(d):
        save(d / name)
        raw = bytearray((d / name).read_bytes())
        half = len(raw) // 2
        if flip:
            raw[half - 50 : half + 50] = bytes(b ^ 0xFF for b in raw[half - 50 : half + 50])
        (d / name).write_bytes(raw if flip else raw[:half])
        if "graph" in name:
            return config(path=write_matrix(d / "m.csv", readings(), "a,b,c"), start="2024-01-01", graph_path=str(d / name))
        return config(path=str(d / name), start="2024-01-01", **changes)

    return make


def save_npz(path):
    np.savez(path, data=readings())


def save_npz_as_is(path):
    with path.open("wb") as file:
        np.savez(file, data=readings())


def save_array_as_is(path):
    with path.open("wb") as file:
        np.save(file, readings())


def save_parquet(path):
    columns = {"timestamp": stamps(2000), "node_a_id": ["a", "b"] * 1000, "node_b_id": ["b", "a"] * 1000}
    table = pa.table({**columns, "speed_kmh": np.random.default_rng(0).uniform(20, 60, 2000)})
    pq.write_table(table, path, compression="gzip", use_dictionary=False)


def as_is(name, save):
    def make(d):
        save(d / name)
        return config(path=str(d / name), start="2024-01-01")

    return make


def graph(name, content):
    def make(d):
        if isinstance(content, np.ndarray):
            np.savetxt(d / name, content, delimiter=",")
        elif isinstance(content, bytes):
            (d / name).write_bytes(content)
        else:
            (d / name).write_text(content)
        return config(path=write_matrix(d / "m.csv", readings(), "a,b,c"), start="2024-01-01", graph_path=str(d / name))

    return make


def changed(row, column, value, rows=200):
    values = readings(rows)
    values[row, column] = value
    return values


class Evil:
    def __reduce__(self):
        return os.system, ("echo no",)


def missing(d):
    (d / "speeds.csv").touch()
    return config(path=str(d / "speed.csv"))


def broken_times(order):
    times = stamps(200)
    return [times[order.get(i, i)] for i in range(200)]


FAULTS = {
    "file missing": (missing, ["speed.csv: not found", "speeds.csv"]),
    "folder missing": (lambda d: config(path=str(d / "no" / "speed.csv")), ["the folder", "does not exist"]),
    "unknown suffix": (text("1", "m.xlsx"), ["unknown suffix '.xlsx'", "edges", "matrix", "npz", "h5"]),
    "column missing": (lambda d: config(path=write_edges(d / "e.csv", ["2024-01-01,a,b"], "timestamp,node_a_id,node_b_id")),
                       ["columns missing: speed_kmh", "found: timestamp, node_a_id, node_b_id"]),
    "edge speed is text": (edges(GOOD, "2024-01-01T00:00,a,b,fast"), ["line 3, speed_kmh: 'fast' is not a number"]),
    "edge speed negative": (edges(GOOD, "2024-01-01T00:00,a,b,-3"), ["line 3, speed_kmh: -3 is negative"]),
    "edge id empty": (edges(GOOD, "2024-01-01T00:00,a,,3"), ["line 3, node_b_id is empty"]),
    "edge row ragged": (edges(GOOD, "2024-01-01T00:00,a,b"), ["line 3: 4 columns expected, 3 found"]),
    "matrix cell is text": (text("a,b\n1,2\n3,x\n"), ["line 3, node b: 'x' is not a number"]),
    "matrix negative": (matrix(changed(4, 1, -2), "a,b,c"), ["line 6, node b: -2 is negative"]),
    "matrix unit": (matrix(changed(4, 1, 250)), ["line 5, node 1: 250 is above 200: is the unit right? raise data.max_value if so"]),
    "matrix ragged": (text("1,2\n3,4\n5\n"), ["line 3: 2 columns expected, 1 found"]),
    "matrix empty": (text(""), ["the file is empty"]),
    "matrix ids doubled": (text("a,a\n1,2\n"), ["line 1", "a stands twice"]),
    "stamp unreadable": (edges(GOOD, "noon,a,b,3"), ["line 3, timestamp: 'noon' is not a time; write it as 2012-03-01T00:05"]),
    "stamp empty": (edges(GOOD, ",a,b,3"), ["line 3, timestamp: an empty timestamp"]),
    "stamp zone unset": (edges("2024-01-01T00:00Z,a,b,3"), ["line 2", "carries a time zone; set data.timezone"]),
    "zone unknown": (edges("2024-01-01T00:00Z,a,b,3", timezone="Saigon"), ["config.data.timezone: 'Saigon'"]),
    "times decreasing": (matrix(readings(), "", broken_times({5: 7, 7: 5})),
                         ["line 6 2024-01-01T00:35:00 comes after line 7 2024-01-01T00:30:00"]),
    "times doubled": (matrix(readings(), "", broken_times({5: 4})),
                      ["line 5 2024-01-01T00:20:00 is the same as line 6 2024-01-01T00:20:00"]),
    "times off the grid": (matrix(readings(), "", stamps(200, 3)),
                           ["line 1", "line 2", "3 minutes is not a multiple of data.step_minutes=5; a step of 3 would fit"]),
    "no times, no start": (matrix(readings(), start=""), ["set data.start, for example 2012-03-01T00:00"]),
    "npz key": (arrays(flow=np.ones((5, 3))), ["array 'data' is not there; set data.key (found: flow (5, 3))"]),
    "npz object": (arrays(data=np.array([{"a": 1}])), ["'data' is an object array"]),
    "npz feature": (arrays({"feature": 2}, data=np.ones((5, 3, 2))), ["data.feature=2", "features 0-1"]),
    "npz shape": (arrays(data=np.ones(5)), ["shape (rows, nodes) expected, found float64 (5,)"]),
    "npz cut": (damaged("m.npz", save_npz, flip=False), ["not a readable .npz", "save it again with numpy.savez"]),
    "npz bytes flipped": (damaged("m.npz", save_npz, flip=True), ["not a readable .npz of arrays (data: Bad CRC-32"]),
    "npz of one bare array": (as_is("m.npz", save_array_as_is), ["one bare array", "numpy.savez"]),
    "npy cut": (damaged("m.npy", save_array_as_is, flip=False), ["not a readable .npy", "save it again with numpy.save"]),
    "npy is an archive": (as_is("m.npy", save_npz_as_is), ["holds an archive of arrays", "suffix .npz"]),
    "graph npz cut": (damaged("graph.npz", save_npz, flip=False), ["graph.npz: not a readable .npz"]),
    "graph npz bytes flipped": (damaged("graph.npz", save_npz, flip=True), ["graph.npz: not a readable .npz of arrays (data: Bad CRC-32"]),
    "graph npy is an archive": (lambda d: (save_npz_as_is(d / "g.npy"), config(
        path=write_matrix(d / "m.csv", readings(), "a,b,c"), start="2024-01-01", graph_path=str(d / "g.npy")))[1], ["suffix .npz"]),
    "parquet cut": (damaged("e.parquet", save_parquet, flip=False), ["not a readable parquet file"]),
    "parquet page damaged": (damaged("e.parquet", save_parquet, flip=True), ["not a readable parquet file"]),
    "h5 table": (frame({"df": ["table"]}), ["'df' is in table format; write it in fixed format"]),
    "h5 several groups": (frame({"a": ["axis0"], "b": ["axis0"]}), ["set data.key to one of its groups: a, b"]),
    "h5 key": (frame({"a": ["axis0"]}, key="df"), ["group 'df' is not there", "found: a"]),
    "h5 not a frame": (frame({"a": ["x"]}), ["no pandas frame in fixed format"]),
    "adjacency shape": (graph("g.csv", np.ones((2, 2))), ["shape (2, 2), expected (3, 3)"]),
    "adjacency negative": (graph("g.csv", np.array([[0, -1, 0], [0, 0, 0], [0, 0, 0.0]])), ["-1 from node a to node b is negative"]),
    "adjacency nan": (graph("g.csv", np.array([[0, 1, np.nan], [0, 0, 0], [0, 0, 0.0]])), ["NaN at row 0, column 2 (node a to c)"]),
    "edge list id": (graph("g.csv", "from,to,cost\na,b,1\na,z,2\n"), ["unknown to the data: z"]),
    "edge list columns": (graph("g.csv", "from,to,length\na,b,1\n"), ["from, to and cost or distance; found: from, to, length"]),
    "edge list number": (graph("g.csv", "from,to,cost\na,b,far\n"), ["line 2, cost: 'far' is not a number"]),
    "pickle asks for more": (graph("g.pkl", pickle.dumps([["a"], {}, Evil()])), ["system, which is refused; convert the matrix to CSV"]),
    "pickle ids": (graph("g.pkl", pickle.dumps([["a", "b", "z"], {"a": 0, "b": 1, "z": 2}, np.ones((3, 3))])),
                   ["the graph lacks: c", "only in the graph: z"]),
    "pickle shape": (graph("g.pkl", pickle.dumps([1, 2])), ["no pickle of [ids, id -> position, matrix]"]),
    "graph suffix": (graph("g.txt", "1"), ["unknown suffix '.txt'"]),
    "too few rows": (matrix(readings(60)), ["60 rows are too few: valid needs 10 rows, has 6", "lower data.in_steps"]),
    "nothing observed": (matrix(np.zeros((200, 3))), ["training rows 0-139 hold no reading"]),
    "a single value": (matrix(np.full((200, 3), 50.0)), ["hold 420 readings, all 50"]),
    "most nodes unobserved": (matrix(np.where(np.arange(4) < 3, 0, readings(200, 4)), "a,b,c,d"),
                              ["3 of 4 nodes are unobserved in the 140 training rows (a, b, c)"]),
    "nothing to score": (matrix(np.where(np.arange(200)[:, None] < 155, readings(), 0)), ["no reading among the targets of test"]),
    "choice": (lambda d: config(layout="table"), ["config.data.layout: 'table' is not supported (known: auto, edges"]),
    "step": (lambda d: config(step_minutes=7.0), ["a whole number of steps, got 7 minutes"]),
    "synthetic seed": (lambda d: config(synthetic=SyntheticConfig(16, 4, -1)), ["config.data.synthetic.seed: must be at least 0, got -1"]),
    "synthetic size": (lambda d: config(synthetic=SyntheticConfig(1, 4, 0)), ["config.data.synthetic: needs at least 2 nodes"]),
    "graph alone": (lambda d: config(graph_path="g.csv"), ["config.data.graph_path: g.csv", "data.path is unset"]),
    "weather alone": (lambda d: config(weather_path="w.csv"), ["config.data.weather_path: w.csv", "data.path is unset"]),
    "locations alone": (lambda d: config(locations_path="l.csv"), ["config.data.locations_path: l.csv", "data.path is unset"]),
    "fractions": (lambda d: config(fractions=(0.8, 0.1, 0.2)), ["config.data.fractions"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_one_line(name, tmp_path):
    make, expected = FAULTS[name]
    settings = make(tmp_path)
    with pytest.raises(UserError) as caught:
        traffic.splits(settings, 0.5)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message
    if settings.path:
        assert str(tmp_path) in message or message.startswith("config.data.")


def test_the_refused_pickle_ran_nothing(tmp_path, capfd):
    settings = graph("g.pkl", pickle.dumps([["a"], {}, Evil()]))(tmp_path)
    with pytest.raises(UserError, match="refused"):
        traffic.splits(settings, 0.5)
    assert "no" not in re.split(r"\s", capfd.readouterr().out)


# What a finished run refuses


@pytest.fixture
def run(tmp_path):
    settings = config(path=write_matrix(tmp_path / "train.csv", readings(), "time,east,west,north", stamps(200)))
    return settings, traffic.splits(settings, 0.5).statistics


@pytest.mark.parametrize("rows,step,header,options,expected", [
    (5, 5, "time,east,west,north", {}, ["5 rows of 5 minutes, the run needs at least 6"]),
    (9, 5, "time,east,west,north", {"labelled": True}, ["9 rows", "at least 10 (6 input steps and 4 targets)"]),
    (9, 7, "time,east,west,north", {}, ["data.step_minutes=5; a step of 7 would fit"]),
    (9, 5, "time,east,south,north", {}, ["never seen: south", "expects 3 nodes: east, west, north"]),
    (9, 5, "time,east,north", {}, ["absent: west", "--option allow_missing=yes"]),
    (9, 5, "", {}, ["2 nodes, the run expects 3"]),
    (9, 5, "time,east,west,north", {"origins": ("2024-01-01T03:00",)},
     ["no row at --option origin=2024-01-01T03:00;", "2024-01-01T00:40:00"]),
    (9, 5, "time,east,west,north", {"origins": ("2024-01-01T00:10",)},
     ["--option origin=2024-01-01T00:10 has 3 rows up to it, the run needs 6"]),
    (9, 5, "time,east,west,north", {"origins": ("soon",)}, ["--option origin: 'soon' is not a time"]),
])  # fmt: skip
def test_inputs_that_do_not_fit_the_run(run, tmp_path, rows, step, header, options, expected):
    settings, statistics = run
    nodes = header.count(",") or 2
    path = write_matrix(tmp_path / "new.csv", readings(rows, nodes), header, stamps(rows, step))
    with pytest.raises(UserError) as caught:
        traffic.inputs(settings, statistics, path, **options)
    assert "\n" not in str(caught.value)
    for part in expected:
        assert part in str(caught.value), str(caught.value)


def test_inputs_without_weather_or_readings(run, tmp_path):
    settings, statistics = run
    path = write_matrix(tmp_path / "new.csv", readings(9), "time,east,west,north", stamps(9))
    with_weather = {**statistics, "weather_mean": np.zeros(3, np.float32), "weather_std": np.ones(3, np.float32)}
    with pytest.raises(UserError, match="give --option weather=FILE, or go without: --option allow_missing=yes"):
        traffic.inputs(settings, with_weather, path)
    data = traffic.inputs(settings, with_weather, path, allow_missing=True)
    assert not data.gather(data.arrays, data.index)["weather"].any()
    empty = write_matrix(tmp_path / "empty.csv", np.zeros((9, 3)), "time,east,west,north", stamps(9))
    with pytest.raises(UserError, match="no reading in the 6 rows up to 2024-01-01T00:40:00"):
        traffic.inputs(settings, statistics, empty)
