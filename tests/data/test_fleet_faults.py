"""Bad fleet configs and files: one line that names the file, the place and the remedy."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fleet_problem import START, changed, config, iso, table, write

from jaxtrain.data.fleet_config import check_config
from jaxtrain.data.fleet_files import read
from jaxtrain.errors import UserError


def rows_file(rows, name="f.csv", **changes):
    """A case: a table written under a name, read with config changes."""
    return lambda d: config(write(d / name, rows), **changes)


def text_file(content, name="f.csv", **changes):
    def make(d):
        (d / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return config(d / name, **changes)

    return make


def damaged(name, flip=False):
    """A file of the kind its suffix says, cut in half or with bytes flipped in its middle."""

    def make(d):
        path = write(d / name, table({"a": range(3000)}))
        raw = bytearray(path.read_bytes())
        half = len(raw) // 2
        if flip:
            raw[half : half + 200] = bytes(b ^ 0xFF for b in raw[half : half + 200])
        path.write_bytes(raw if flip else raw[:half])
        return config(path)

    return make


def folder(d):
    (d / "empty").mkdir()
    return config(d / "empty")


def other_columns_in_one_file(d):
    write(d / "many" / "a.parquet", table({"a": range(5)}))
    write(d / "many" / "b.parquet", {"timestamp": [iso(0)], "server": ["b"], "CPU": [1.0]})
    return config(d / "many")


def typed(column, values, **changes):
    def make(d):
        pq.write_table(pa.table({**table({"a": range(4)}), column: values}), d / "f.parquet")
        return config(d / "f.parquet", **changes)

    return make


def seconds(spacing, count=40, **changes):
    rows = table({"a": range(count)})
    rows["timestamp"] = [iso(i * spacing / 300) for i in range(count)]
    return rows_file(rows, **changes)


LONG = table({"a": range(12), "b": range(12)}, cores=lambda name, step: 4 if name == "a" else 8)
EPOCHS = [START + 300 * step for step in range(24)]
WILD = table({"a": range(5), "b": [0, 1, 2, 3000]})
FILE_FAULTS = {
    "missing": (lambda d: config(d / "no.csv"), ["no.csv: not found"]),
    "suffix": (text_file("x", "f.xlsx"), ["f.xlsx: unknown suffix '.xlsx'", "parquet, csv"]),
    "no suffix": (text_file("x", "fleet"), ["unknown suffix ''"]),
    "empty csv": (text_file(""), ["f.csv: the file is empty"]),
    "header only": (text_file("timestamp,server,cpu\n"), ["f.csv: the table has no rows"]),
    "empty parquet": (text_file("", "f.parquet"), ["f.parquet: not a readable parquet file"]),
    "empty json": (text_file("", "f.json"), ["f.json: not valid JSON"]),
    "empty list": (text_file("[]", "f.json"), ["f.json: the table has no rows"]),
    "empty jsonl": (text_file("", "f.jsonl"), ["f.jsonl: the table has no rows"]),
    "not records": (text_file('{"a": 1}', "f.json"), ["a list of records expected", "'training_samples'"]),
    "jsonl line": (text_file('{"a": 1}\n{"a": \n', "f.jsonl"), ["f.jsonl: line 2: not valid JSON"]),
    "truncated parquet": (damaged("f.parquet"), ["f.parquet: not a readable parquet file", "write it again"]),
    "flipped parquet": (damaged("f.parquet", flip=True), ["f.parquet"]),
    "truncated gzip": (damaged("f.csv.gz"), ["f.csv.gz: not a readable csv file"]),
    "truncated json": (damaged("f.json"), ["f.json: not valid JSON"]),
    "plain text named gz": (text_file("timestamp,server,cpu\n", "f.csv.gz"), ["f.csv.gz: not a readable csv file"]),
    "ragged csv": (text_file(f"timestamp,server,cpu\n{iso(0)},a,1\n{iso(1)},a\n"), ["f.csv: not a readable csv file", "Row #3"]),
    "binary csv": (text_file(b"timestamp,server,cpu\n2025-01-06,\xff\xfe,1\n"), ["f.csv: not a readable csv file"]),
    "empty folder": (folder, ["empty: the folder holds no .parquet file"]),
    "file of a folder": (other_columns_in_one_file, ["b.parquet: columns missing: cpu (closest: CPU)", "found: timestamp, server, CPU"]),
    "format prepared": (rows_file(table(), format="prepared"), ["prepare_fleet.py", "data.format"]),
    "column missing": (rows_file(table(), targets=("cpu_percent",)), ["columns missing: cpu_percent (closest: cpu)", "found: timestamp"]),
    "json column missing": (rows_file(table(), "f.json", known_real=("plan",)), ["f.json: columns missing: plan"]),
    "column twice": (text_file(f"timestamp,server,cpu,cpu\n{iso(0)},a,1,2\n"), ["column cpu stands in the file twice"]),
    "no time": (rows_file(changed(table(), "timestamp", 4, "")), ["f.csv: row 5, timestamp is empty"]),
    "bad time": (rows_file(changed(table(), "timestamp", 4, "yesterday")), ["f.csv: row 5, timestamp: 'yesterday' is not a time"]),
    "old time": (rows_file(changed(table(), "timestamp", 4, "1970-01-01T00:00:00Z")), ["row 5", "1970", "outside the years 1990 to 2100"]),
    "epoch in ms": (rows_file({**LONG, "timestamp": [1000 * s for s in EPOCHS]}), ["row 1", f"{EPOCHS[0]}000", "set data.time_unit=ms"]),
    "epoch in s": (rows_file({**LONG, "timestamp": EPOCHS}, time_unit="ms"), ["row 1", "data.time_unit=ms; set data.time_unit=s"]),
    "epoch in ns": (rows_file({**LONG, "timestamp": [10**9 * s for s in EPOCHS]}, "f.parquet"), ["row 1", "looks like ns"]),
    "numbers as time": (rows_file({**LONG, "timestamp": list(range(24))}), ["row 1, timestamp: 0 is no time"]),
    "flags as time": (typed("timestamp", [True] * 4), ["row 1, timestamp holds bool"]),
    "wild stamp": (rows_file(WILD), ["group b has 4 rows between 2025-01-06T00:00:00 and 2025-01-16T10:00:00 UTC"]),
    "5 s": (seconds(5), ["commonest step is 5 s (100 %), data.file_step_seconds is 300: set it to 5, and step_seconds to 300 to average"]),
    "hour": (seconds(3600), ["the commonest step is 3600 s (100 %)", "set it to 3600, and step_seconds to a multiple"]),
    "off the grid": (rows_file(changed(LONG, "timestamp", 7, iso(7.4))), ["f.csv: row 8", "lies 120 s off the grid of 300 s (1 such"]),
    "twice": (rows_file({c: [*v, v[2] if c != "cpu" else 99.0] for c, v in LONG.items()}),
              ["f.csv: row 3 and", "row 25 both give group a at 2025-01-06T00:10:00 UTC", "keep one"]),
    "no group": (rows_file(changed(LONG, "server", 6, "")), ["f.csv: row 7, server is empty"]),
    "text": (rows_file(changed(LONG, "cpu", 6, "n/a")), ["row 7, cpu: 'n/a' is not a number (1 such rows); leave missing values empty"]),
    "json text": (rows_file(changed(LONG, "cpu", 6, "high"), "f.json"), ["f.json: row 7", "'high'"]),
    "infinity": (rows_file(changed(LONG, "cpu", 14, "inf")), ["f.csv: row 15, group b, 2025-01-06T00:10:00 UTC: cpu is inf (1 such rows)"]),
    "list column": (typed("cpu", [[1.0]] * 4), ["column cpu holds list"]),
    "time as number": (typed("cpu", pa.array([0] * 4, pa.timestamp("s"))), ["column cpu holds timestamp"]),
    "fraction as category": (typed("status", [1.0, 2.0, 2.5, 3.0], observed_categorical=("status",)), ["row 3, status: 2.5 is no"]),
    "time as category": (typed("status", pa.array([0] * 4, pa.timestamp("s")), observed_categorical=("status",)), ["column status holds"]),
    "above bound": (rows_file(changed(LONG, "cpu", 6, 250), bounds={"cpu": (0, 100)}),
                    ["row 7, group a, 2025-01-06T00:30:00 UTC: cpu is 250 (1 such rows), outside data.bounds (0 to 100)", "data.clip"]),
    "below bound": (rows_file(changed(LONG, "cpu", 6, -1), bounds={"cpu": (0, None)}), ["cpu is -1", "outside data.bounds (0 to None)"]),
    "negative under log1p": (rows_file(changed(LONG, "cpu", 6, -0.5), transform={"cpu": "log1p"}), ["row 7", "cpu is -0.5", "log1p"]),
    "fractions": (rows_file({**LONG, "cpu": [0.01 * v for v in LONG["cpu"]]}, bounds={"cpu": (0, 100)}), ["are these fractions?"]),
    "static changes": (rows_file(changed(LONG, "cores", 6, 16), static_real=("cores",)),
                       ["row 1: group a has cores 4, but", "row 7 has 16", "data.static_change=train"]),
    "static category changes": (rows_file(changed(LONG, "cores", 6, "big"), static_categorical=("cores",)), ["cores '4', but", "'big'"]),
    "unknown zone": (rows_file(changed(LONG, "timestamp", 0, "2025-01-06T00:00:00 Mars")), ["row 1, timestamp", "is not a time"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FILE_FAULTS)
def test_a_file_fault_is_one_line(tmp_path, name):
    make, wanted = FILE_FAULTS[name]
    settings = make(tmp_path)
    check_config(settings)
    with pytest.raises(UserError) as caught:
        read(settings)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(tmp_path))
    for part in wanted:
        assert part in message, message


def test_too_many_grid_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxtrain.data.fleet_grid.MOST_ROWS", 250)
    path = write(tmp_path / "f.csv", table({name: [0, 1, 2, 99] for name in "abc"}))
    with pytest.raises(UserError, match="300 grid rows, at most 250 are possible; split by group over processes"):
        read(config(path))


CONFIG_FAULTS = {
    "two roles": ({"known_real": ("cpu",)}, "'cpu' already has the role targets; a target is never known in advance"),
    "target as static": ({"static_real": ("cpu",)}, "never known in advance"),
    "group as category": ({"static_categorical": ("server",)}, "column 'server' already has the role groups"),
    "time as number": ({"observed_real": ("timestamp",)}, "already has the role time"),
    "no target": ({"targets": ()}, "config.data.targets: name at least one"),
    "format": ({"format": "xlsx"}, "config.data.format: 'xlsx' is not supported"),
    "time unit": ({"time_unit": "ns"}, "config.data.time_unit: 'ns'"),
    "split": ({"split": "random"}, "config.data.split: 'random'"),
    "static change": ({"static_change": "last"}, "config.data.static_change"),
    "calendar": ({"calendar": ("hour",)}, "config.data.calendar: 'hour' is not supported (known: hour_of_day"),
    "steps": ({"step_seconds": 450}, "config.data.step_seconds: must be a multiple of data.file_step_seconds=300, got 450"),
    "tolerance": ({"snap_tolerance": 0.5}, "config.data.snap_tolerance: must lie below half a step"),
    "horizon": ({"horizon_steps": 0}, "config.data.horizon_steps: must be at least 1, got 0"),
    "history": ({"min_history_steps": 9}, "config.data.min_history_steps: must be at most data.context_steps=8, got 9"),
    "fractions": ({"valid_fraction": 0.8}, "config.data.valid_fraction: leaves nothing to train on"),
    "fold": ({"fold": 5}, "config.data.fold: must be below data.folds=5, got 5"),
    "season": ({"season_steps": (0,)}, "config.data.season_steps"),
    "lag of nothing": ({"lags": (("cpus", 3),)}, "data.lags: names the column 'cpus', which has no fitting role (did you mean 'cpu'?)"),
    "lag of a category": ({"lags": (("status", 3),), "observed_categorical": ("status",)}, "config.data.lags: names the column 'status'"),
    "lag of 0": ({"lags": (("cpu", 0),)}, "config.data.lags: 'cpu' needs at least 1 step, got 0"),
    "statistic": ({"rolling": (("cpu", 3, "median", 0),)}, "config.data.rolling: 'median' is not supported"),
    "width": ({"rolling": (("cpu", 0, "mean", 0),)}, "config.data.rolling: 'cpu' needs a width"),
    "feature twice": ({"lags": (("cpu", 3), ("cpu", 3))}, "two variables are named 'cpu lag 3'"),
    "interaction": ({"interactions": (("cpu", "plan"),)}, "config.data.interactions: names the column 'plan'"),
    "peers": ({"peers": (("cpu", "profile"),)}, "config.data.peers: names the column 'profile'"),
    "transform": ({"transform": {"cpu": "sqrt"}}, "config.data.transform.cpu: 'sqrt'"),
    "transform of nothing": ({"transform": {"load": "log1p"}}, "config.data.transform: names the column 'load'"),
    "normalise": ({"normalise": {"cpu": "minmax"}}, "config.data.normalise.cpu: 'minmax'"),
    "bounds": ({"bounds": {"cpu": (100, 0)}}, "config.data.bounds.cpu: the least value must lie below the greatest"),
    "alerts": ({"alerts": {"load": 3.0}}, "config.data.alerts: names the column 'load'"),
    "default": ({"known_default": {"cpu": 1.0}}, "config.data.known_default: names the column 'cpu'"),
    "text default": ({"known_default": {"plan": "no"}, "known_real": ("plan",)}, "config.data.known_default.plan: must be a number"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_a_config_fault_names_key_and_value(name):
    changes, wanted = CONFIG_FAULTS[name]
    with pytest.raises(UserError) as caught:
        check_config(config(**changes))
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_without_faults_passes():
    check_config(config(lags=(("cpu", 3),), rolling=(("cpu", 3, "std", 4),), transform={"cpu lag 3": "log1p"}, alerts={"cpu": 90.0}))


def test_clip_moves_values_to_the_bounds(tmp_path):
    path = write(tmp_path / "f.csv", changed(LONG, "cpu", 6, 250))
    assert read(config(path, bounds={"cpu": (0, 100)}, clip=True)).real[6, 0] == 100


def test_a_changing_static_column_takes_its_usual_value_in_training(tmp_path):
    rows = table({"a": range(10), "b": range(10), "new": range(6, 10)},
                 cores=lambda name, step: {"a": [4, 4, 8, 8, 8, 8, 2, 2, 2, 2], "b": [1] * 10, "new": [0] * 6 + [3, 5, 5, 5]}[name][step],
                 kind=lambda name, step: "x" if name == "new" or step in (1, 2) or step > 5 else "y")  # fmt: skip
    path = write(tmp_path / "f.csv", rows)
    settings = config(path, static_real=("cores",), static_categorical=("kind",), static_change="train")
    fleet = read(settings, training=lambda steps, groups: np.arange(steps) < 5)
    assert fleet.static_real.tolist() == [[8], [1], [3]] and fleet.static_cat.tolist() == [[2], [2], [1]]  # "new" keeps its first value
    assert fleet.notes[0].startswith("cores changes inside 2 of 3 groups") and fleet.notes[1].startswith("kind changes inside 2 of 3")
    whole = read(settings)
    assert whole.static_real.tolist() == [[4], [1], [5]] and whole.static_cat.tolist() == [[1], [1], [1]]


def test_a_file_to_forecast_from_may_be_idle(tmp_path):
    idle = write(tmp_path / "idle.csv", {**LONG, "cpu": [0.5] * 24})
    settings = config(idle, bounds={"cpu": (0, 100)})
    assert read(settings, path=str(idle)).seen.all()


def test_records_that_are_no_objects(tmp_path):
    (tmp_path / "f.json").write_text(json.dumps([[1, 2]]))
    (tmp_path / "f.csv.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="a list of records expected"):
        read(config(tmp_path / "f.json"))
    with pytest.raises(UserError, match="f.csv.gz"):
        read(config(tmp_path / "f.csv.gz"))
