"""Every layout of traffic files against the arrays they were written from."""

import io
import pickle
import struct
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from traffic_problem import config, readings, stamps, write_edges, write_matrix

from jaxtrain.data.traffic_files import find_layout, read_locations, read_series, read_weather
from jaxtrain.data.traffic_graph import edge_weights, head_to_tail, neighbor_lists
from jaxtrain.data.traffic_graph_files import read_graph

START = int(np.datetime64("2024-01-01T00:00", "s").astype(int))


@pytest.mark.parametrize("header,ids,named", [
    ("a,b,c", ["a", "b", "c"], True),
    ("773869,767541,767542", ["773869", "767541", "767542"], True),
    ("", ["0", "1", "2"], False),
])  # fmt: skip
def test_matrix_headers(tmp_path, header, ids, named):
    values = readings(5)
    values[2, 1] = 0
    series = read_series(config(start="2024-01-01T00:00"), write_matrix(tmp_path / "m.csv", values, header))
    assert series.ids.tolist() == ids and series.named == named
    assert np.isnan(series.speed[2, 1]) and np.isfinite(series.speed).sum() == 14
    np.testing.assert_allclose(series.speed[0], values[0], rtol=1e-6)
    assert series.time.tolist() == [START + 300 * k for k in range(5)]


def test_matrix_with_times_empty_cells_and_a_gap(tmp_path):
    values = readings(5)
    times = stamps(6)[:3] + stamps(6)[4:]
    path = write_matrix(tmp_path / "m.csv", values, "time,773869,767541,767542", times)
    text = (tmp_path / "m.csv").read_text().replace(f"{values[1, 0]:g},", ",", 1)
    (tmp_path / "m.csv").write_text(text)
    series = read_series(config(), path)
    assert series.speed.shape == (6, 3) and np.isnan(series.speed[3]).all() and np.isnan(series.speed[1, 0])
    np.testing.assert_allclose(series.speed[4:], values[3:], rtol=1e-6)


def test_null_value_and_npy(tmp_path):
    values = readings(5)
    values[0, 0], values[1, 1] = -1, 0
    np.save(tmp_path / "m.npy", values)
    speed = read_series(config(start="2024-01-01", null_value=-1.0), str(tmp_path / "m.npy")).speed
    assert np.isnan(speed[0, 0]) and speed[1, 1] == 0


def test_npz_takes_key_and_feature(tmp_path):
    values = np.stack([readings(5), readings(5, seed=1)], axis=2)
    np.savez(tmp_path / "m.npz", data=values, flow=values[:, :, 0])
    settings = config(start="2024-01-01")
    for changes, expected in (({"feature": 1}, values[:, :, 1]), ({"key": "flow"}, values[:, :, 0])):
        made = read_series(config(start=settings.start, **changes), str(tmp_path / "m.npz"))
        np.testing.assert_allclose(made.speed, expected, rtol=1e-6)


@pytest.mark.parametrize("kind,unit", [("datetime64", 10**9), ("datetime64[us]", 10**6)])
def test_h5_joins_blocks_by_item(tmp_path, kind, unit):
    values = readings(4)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        group = file.create_group("df")
        group["axis0"] = np.array([b"71", b"72", b"73"])
        group["axis1"] = (START + 300 * np.arange(4)) * unit
        group["axis1"].attrs["kind"] = np.bytes_(kind)
        group["block0_items"], group["block0_values"] = np.array([b"73", b"71"]), values[:, [2, 0]]
        group["block1_items"], group["block1_values"] = np.array([b"72"]), values[:, [1]]
    series = read_series(config(), str(tmp_path / "m.h5"))
    assert series.ids.tolist() == ["71", "72", "73"] and series.time.tolist() == [START + 300 * k for k in range(4)]
    np.testing.assert_allclose(series.speed, values, rtol=1e-6)


EDGES = [
    "2024-01-01T00:01,a,b,10", "2024-01-01T00:01,a,c,20", "2024-01-01T00:01,b,c,30",
    "2024-01-01T00:02,a,b,14",  # the same slot: averaged with the first reading
    "2024-01-01T00:09,a,b,40", "2024-01-01T00:09,b,c,",
]  # fmt: skip


@pytest.mark.parametrize("aggregate,expected", [
    ("mean", [[16, 30, np.nan], [np.nan] * 3, [40, np.nan, np.nan]]),
    ("last", [[14, 30, np.nan], [np.nan] * 3, [40, np.nan, np.nan]]),
    ("segment", [[12, 20, 30], [np.nan] * 3, [40, np.nan, np.nan]]),
])  # fmt: skip
def test_edges_aggregate(tmp_path, aggregate, expected):
    series = read_series(config(aggregate=aggregate), write_edges(tmp_path / "e.csv", EDGES))
    np.testing.assert_array_equal(series.speed, expected)
    assert series.weights is not None
    links = sorted(tuple(e) for e in np.argwhere(series.weights).tolist())
    if aggregate == "segment":
        assert series.ids.tolist() == ["a->b", "a->c", "b->c"] and links == [(0, 2)]
        assert series.pairs is not None and series.pairs.tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    else:  # c has no outgoing edge and stays, unobserved
        assert series.ids.tolist() == ["a", "b", "c"] and links == [(0, 1), (0, 2), (1, 2)]


def test_edges_of_runs_are_one_row_each(tmp_path):
    lines = ["2024-01-01T00:01,a,b,10,r1,25", "2024-01-01T00:02,a,b,14,r2,26", "2024-01-01T07:09,a,b,40,r3,27"]
    path = write_edges(tmp_path / "e.csv", lines, "timestamp,node_a_id,node_b_id,speed_kmh,run_id,temperature_c")
    series = read_series(config(grid="runs"), path)
    assert series.speed[:, 0].tolist() == [10, 14, 40]
    assert series.time.tolist() == [START + 60, START + 120, START + 7 * 3600 + 540]
    assert series.weather is not None and series.weather.tolist() == [[25, 0, 0], [26, 0, 0], [27, 0, 0]]


def test_zone_aware_stamps_become_local(tmp_path):
    instants = np.array(["2024-01-01T00:00", "2024-01-01T00:05"], "datetime64[ns]")
    table = pa.table({"timestamp": pa.array(instants, pa.timestamp("ns", "UTC")), "node_a_id": [1, 1], "node_b_id": [2, 2],
                      "speed_kmh": [10.0, 20.0], "temperature_c": pa.nulls(2)})  # fmt: skip
    pq.write_table(table, tmp_path / "e.parquet")
    series = read_series(config(timezone="Asia/Ho_Chi_Minh"), str(tmp_path / "e.parquet"))
    assert series.time.tolist() == [START + 7 * 3600, START + 7 * 3600 + 300]
    assert series.ids.tolist() == ["1", "2"] and series.weather is None
    lines = ["2024-01-01T00:00Z,a,b,10", "2024-01-01T08:05+08:00,a,b,20"]
    text = read_series(config(timezone="Asia/Ho_Chi_Minh"), write_edges(tmp_path / "e.csv", lines))
    assert text.time.tolist() == series.time.tolist()


def test_weather_is_the_latest_at_or_before(tmp_path):
    (tmp_path / "w.csv").write_text("time,temperature_c,precipitation_mm\n2024-01-01T00:10,21,0\n2024-01-01T00:05,20,1.5\n")
    weather = read_weather(str(tmp_path / "w.csv"), START + 300 * np.arange(4), "")
    np.testing.assert_array_equal(weather, [[np.nan, 0, np.nan], [20, 0, 1.5], [21, 0, 0], [21, 0, 0]])


def test_locations(tmp_path):
    (tmp_path / "l.csv").write_text("node,lat,lon\nb,1.5,2\na,3,4\n")
    np.testing.assert_array_equal(read_locations(str(tmp_path / "l.csv"), np.array(["a", "b", "c"])), [[3, 4], [1.5, 2], [np.nan, np.nan]])


def test_layouts_are_found_by_suffix_and_header(tmp_path):
    write_edges(tmp_path / "e.csv", EDGES)
    write_matrix(tmp_path / "m.csv", readings(3))
    for name in ("p.parquet", "n.npy", "z.npz", "h.h5"):
        (tmp_path / name).touch()
    found = {name: find_layout("auto", str(tmp_path / name)) for name in ("e.csv", "m.csv", "p.parquet", "n.npy", "z.npz", "h.h5")}
    assert found == {"e.csv": "edges", "m.csv": "matrix", "p.parquet": "edges", "n.npy": "matrix", "z.npz": "npz", "h.h5": "h5"}


# Graphs

IDS = np.array(["a", "b", "c"])
WEIGHTS = np.array([[1, 0.5, 0], [0, 1, 0.25], [0.75, 0, 1]], np.float32)


def test_weight_matrices_and_pickles_match_by_id(tmp_path):
    np.savetxt(tmp_path / "w.csv", WEIGHTS, delimiter=",")
    np.save(tmp_path / "w.npy", WEIGHTS)
    np.savez(tmp_path / "w.npz", adj=WEIGHTS)
    order = [2, 0, 1]
    content = [IDS[order].tolist(), {str(i): p for p, i in enumerate(IDS[order])}, WEIGHTS[np.ix_(order, order)]]
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol=2))
    for name in ("w.csv", "w.npy", "w.npz", "w.pkl"):
        np.testing.assert_allclose(read_graph(config(graph_path=str(tmp_path / name)), IDS, True), WEIGHTS, rtol=1e-6)


PurePickler: Any = pickle._Pickler  # type: ignore[attr-defined]


class Python2Pickler(PurePickler):
    """Writes bytes as Python 2 wrote its strings."""

    dispatch = dict(PurePickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = save_bytes


def test_pickles_written_by_python_2_are_read(tmp_path):
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump([[b"a", b"b", b"c"], {b"a": 0, b"b": 1, b"c": 2}, WEIGHTS])
    assert pickle.loads(buffer.getvalue(), encoding="latin1")[0] == ["a", "b", "c"]
    (tmp_path / "w.pkl").write_bytes(buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(read_graph(config(graph_path=str(tmp_path / "w.pkl")), IDS, True), WEIGHTS)


@pytest.mark.parametrize("names", [IDS, np.arange(3)])
def test_edge_lists_of_distances_follow_dcrnn(tmp_path, names):
    lines = [(0, 1, 100.0), (1, 2, 200.0), (2, 0, 900.0)]
    (tmp_path / "d.csv").write_text("from,to,cost\n" + "".join(f"{names[i]},{names[j]},{d}\n" for i, j, d in lines))
    weights = read_graph(config(graph_path=str(tmp_path / "d.csv")), IDS, True)
    s = np.std([100, 200, 900])
    expected = np.zeros((3, 3))
    for i, j, d in lines:
        kernel = np.exp(-((d / s) ** 2))
        expected[i, j] = kernel if kernel >= 0.1 else 0
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert expected[2, 0] == 0 < expected[1, 2]
    as_weights = read_graph(config(graph_path=str(tmp_path / "d.csv"), graph_kind="weights"), IDS, True)
    assert as_weights[2, 0] == 900


def test_neighbour_lists_hold_both_ends_with_relations():
    lists, dropped = neighbor_lists(edge_weights(np.array([[0, 1], [1, 0], [1, 2], [3, 1]]), 5), False, 32)
    assert dropped == 0 and lists["neighbors"].shape == (5, 4)
    assert lists["neighbors"][1].tolist() == [1, 0, 2, 3] and lists["relation"][1].tolist() == [0, 3, 2, 1]
    assert lists["neighbors"][2].tolist() == [2, 1, 2, 2] and lists["relation"][2].tolist() == [0, 1, 4, 4]
    assert lists["neighbors"][4].tolist() == [4] * 4 and lists["neighbor_mask"][4].tolist() == [True, False, False, False]


def test_directed_lists_hold_the_sources_of_incoming_edges():
    lists, _ = neighbor_lists(edge_weights(np.array([[0, 1], [1, 0], [1, 2], [3, 1]]), 5), True, 32)
    assert lists["neighbors"][1].tolist() == [1, 0, 3] and lists["neighbors"][3].tolist() == [3, 3, 3]
    assert lists["relation"][1].tolist() == [0, 3, 1] and lists["neighbor_mask"].sum() == 5 + 4


def test_the_largest_weights_are_kept():
    weights = np.zeros((4, 4), np.float32)
    weights[0, 1:], weights[2, 0] = [0.2, 0.9, 0.5], 0.1
    lists, dropped = neighbor_lists(weights, False, 2)
    assert lists["neighbors"][0].tolist() == [0, 2, 3] and dropped == 1
    np.testing.assert_allclose(lists["neighbor_weight"][0], [1, 0.9, 0.5])


def test_segments_meet_head_to_tail():
    pairs = np.array([["a", "b"], ["b", "c"], ["c", "a"], ["x", "b"]])
    assert sorted(map(tuple, head_to_tail(pairs).tolist())) == [(0, 1), (1, 2), (2, 0), (3, 1)]
