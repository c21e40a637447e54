"""Bad input: one line that names the file, the place and the remedy."""

import gzip
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from headway_arrivals import HEADER, STATIONS, days, service, stamp, train, write
from headway_lines import config

from jaxtrain.data import headway_prepared
from jaxtrain.data.headway_config import DataConfig, check_config
from jaxtrain.data.headway_field import Facts, learn, raster, rasterise
from jaxtrain.data.headway_files import read
from jaxtrain.errors import UserError

Make = Callable[..., DataConfig]


def arrivals(rows, name="a.csv", header=HEADER, **changes) -> Make:
    return lambda folder: config(path=write(folder / name, rows, header), **changes)


def cell(column, value, row=2, **changes) -> Make:
    """A good file with one other cell; its line is row + 2."""
    rows = service()
    rows[row] = {**rows[row], column: value}
    return arrivals(rows, **changes)


def beside(key, content, name="b.csv", **changes) -> Make:
    def make(folder):
        (folder / name).write_text(content)
        return config(path=write(folder / "a.csv", service()), **{key: str(folder / name)}, **changes)

    return make


def damaged(name, flip=False) -> Make:
    def make(folder):
        rng = np.random.default_rng(0)
        rows = [{**r, "trip": f"{rng.integers(1 << 40)}"} for r in service()]  # so that nothing compresses away
        raw = bytearray(open(write(folder / name, rows), "rb").read())
        half = len(raw) // 2
        if flip:
            raw[half : half + 40] = bytes(b ^ 0xFF for b in raw[half : half + 40])
        (folder / name).write_bytes(raw if flip else raw[:half])
        return config(path=str(folder / name))

    return make


def content(name, raw) -> Make:
    def make(folder):
        (folder / name).write_bytes(raw)
        return config(path=str(folder / name))

    return make


def naive_parquet(folder):
    rows = service()
    table = {name: [r[name] for r in rows] for name in HEADER[1:4]}
    pq.write_table(pa.table({**table, "arrival_time": pa.array([0] * len(rows), pa.timestamp("us"))}), folder / "a.parquet")
    return config(path=str(folder / "a.parquet"))


def circle() -> list:
    """A before B, B before C, C before A, each for most trains."""
    paths = (("Abbey", "Bridge", "Court"), ("Bridge", "Court", "Abbey"), ("Court", "Abbey", "Bridge"))
    return [r for k in range(9) for r in train(360 + 20 * k, stations=paths[k % 3])]


def one_way() -> list:
    """South trains run the way that north trains run."""
    return service() + [{**r, "direction": "south", "trip": f"x{k}"} for k in range(30) for r in train(600 + 10 * k)]


TIMETABLE = "direction,origin,departure,day_type\n"
FAULTS: dict[str, tuple[Make, str]] = {
    "missing file": (lambda folder: config(path=str(folder / "none.csv")), r"none\.csv: not found"),
    "other suffix": (content("a.txt", b"x"), r"a\.txt: unknown suffix '\.txt'; expected a table \.parquet, \.csv or \.csv\.gz"),
    "empty csv": (content("a.csv", b""), r"a\.csv: not a readable CSV file \(.*\); expected a table"),
    "no parquet": (
        content("a.parquet", b"PAR1 this is no table PAR1"),
        r"a\.parquet: not a readable parquet file \(.+\); expected a table",
    ),
    "truncated parquet": (damaged("a.parquet"), r"a\.parquet: not a readable parquet file \(.+\)"),
    "flipped parquet": (damaged("a.parquet", flip=True), r"a\.parquet: not a readable parquet file \(.+\)"),
    "truncated gz": (damaged("a.csv.gz"), r"a\.csv\.gz: not a readable CSV file \(.+\)"),
    "no gz": (content("a.csv.gz", b"arrival_time,trip\n"), r"a\.csv\.gz: not a readable CSV file \(.+\)"),
    "binary csv": (content("a.csv", b"arrival_time,trip,station,direction\n\xff\xfe,\xff,\xff,\xff\n"), r"a\.csv: not a readable CSV file"),
    "ragged csv": (content("a.csv", b"arrival_time,trip\n1,2\n1,2,3\n"), r"a\.csv: not a readable CSV file \(.*2 columns, got 3"),
    "no rows": (arrivals([]), r"a\.csv: the table has no rows"),
    "no rows in parquet": (arrivals([], "a.parquet"), r"a\.parquet: the table has no rows"),
    "missing column": (
        arrivals(service(), header=("arrival_time", "trip", "origin")),
        r"a\.csv: columns missing: station, direction; found: arrival_time, trip, origin; map with data\.columns",
    ),
    "missing mapped column": (arrivals(service(), columns={"station": "stop_id"}), r"columns missing: stop_id; found: .*data\.columns"),
    "no zone": (
        cell("arrival_time", "2025-01-06T06:12:00"),
        r"a\.csv: line 4, arrival_time: 2025-01-06T06:12:00 has no time zone; store UTC or add an offset",
    ),
    "no zone in parquet": (naive_parquet, r"a\.parquet: row 0, arrival_time: .* has no time zone; store UTC or add an offset"),
    "no time": (cell("arrival_time", "yesterday"), r"a\.csv: line 4, arrival_time: 'yesterday' is not a time"),
    "empty time": (cell("arrival_time", ""), r"a\.csv: line 4, arrival_time"),
    "empty station": (cell("station", "", 0), r"a\.csv: line 2, station is empty"),
    "unparsable departure": (
        cell("scheduled_origin_departure", "9:7x"),
        r"a\.csv: line 4, scheduled_origin_departure: '9:7x' is not a local",
    ),
    "minute 75": (
        cell("scheduled_origin_departure", "09:75"),
        r"line 4, scheduled_origin_departure: '09:75' is not a local time; write it as",
    ),
    "no date": (cell("service_date", "6.1.2025"), r"a\.csv: line 4, service_date: '6\.1\.2025' is not a date"),
    "outside its day": (
        cell("service_date", "2025-01-08"),
        r"a\.csv: line 4, arrival_time: 2025-01-06T06:08:00\+00:00 belongs to 2025-01-06, but service_date is 2025-01-08; zone or serv",
    ),
    "another zone": (
        arrivals(service(), timezone="Asia/Kolkata"),
        r"a\.csv: trains are seen at their origin 332 min after the scheduled departure \(median of 36\); check data\.timezone",
    ),
    "another zone, origins unseen": (
        arrivals([{**r, "origin": f"Depot {r['direction']}"} for r in service(every=5)], timezone="America/New_York"),
        r"a\.csv: (north|south) trains from Depot (north|south) reach the line 298 min before the scheduled departure .*data\.timezone",
    ),
    "platforms": (
        arrivals([{**r, "station": f"{r['station']} {r['direction']}"} for r in service()]),
        r"a\.csv: no station has trains of both directions \(Abbey north, .*\); give the platforms of one station the same name",
    ),
    "another alphabet": (
        content("a.csv", "arrival_time,trip\n1,Gr\u00fcn\n".encode("latin-1")),
        r"a\.csv: not a readable CSV file .*; save it as UTF-8",
    ),
    "three directions": (
        arrivals([*service(), *train(600), {**train(600)[0], "direction": "west"}]),
        r"at most 2 directions, found 3 \(north 76, south 72, west 1 rows\)",
    ),
    "cycle": (
        arrivals(circle()),
        r"a\.csv: the order of (Abbey|Bridge|Court) and (Abbey|Bridge|Court) cannot be derived .*give data\.stations",
    ),
    "no reverse": (arrivals(one_way()), r"most south trains see Abbey and Bridge against the line order .*give data\.stations"),
    "listed against travel": (
        beside("stations", "station\nAbbey\nCourt\nBridge\nDock\n"),
        r"most (north|south) trains see Court and Bridge against the line order",
    ),
    "trip twice": (
        arrivals([*service(), {**train(360)[1], "arrival_time": stamp(420)}]),
        r"a\.csv: line 3, trip and line 146, trip: the same trip stops twice at one station on one day, 55 min apart",
    ),
    "no such event": (
        arrivals([{**r, "event": "Left"} for r in service()], header=(*HEADER, "event"), events=("Arrived",)),
        r"no event is one of data\.events \('Arrived',\); found: Left",
    ),
    "no event column": (arrivals(service(), events=("Arrived",)), r"columns missing: event; found"),
    "station never seen": (
        beside("stations", "station\nAbbey\nZoo\nPark\n"),
        r"b\.csv: listed stations that no train of .* serves: Zoo, Park",
    ),
    "station twice": (beside("stations", "station\nAbbey\nDock\nAbbey\n"), r"b\.csv: Abbey: listed twice"),
    "one station": (beside("stations", "station\nAbbey\n"), r"b\.csv: a line needs at least 2 stations, found 1"),
    "no snapshot zone": (
        beside("snapshots", "snapshot_time\n2025-01-06T06:12:00\n"),
        r"b\.csv: line 2, snapshot_time: .* has no time zone",
    ),
    "no snapshot column": (beside("snapshots", "time\n2025-01-06T06:12:00Z\n"), r"b\.csv: columns missing: snapshot_time; found: time"),
    "timetable direction": (
        beside("timetable", TIMETABLE + "up,Abbey,06:00,weekday\n"),
        r"b\.csv: direction up is not one of north, south",
    ),
    "timetable time": (
        beside("timetable", TIMETABLE + "north,Abbey,9:7x,weekday\n"),
        r"b\.csv: line 2, departure: '9:7x' is not a local time",
    ),
    "timetable empty time": (beside("timetable", TIMETABLE + "north,Abbey,,weekday\n"), r"b\.csv: line 2, departure is empty"),
    "timetable day type": (
        beside("timetable", TIMETABLE + "north,Abbey,06:00,monday\n"),
        r"b\.csv: line 2, day_type: 'monday' is not supported",
    ),
    "timetable without days": (
        beside("timetable", "direction,origin,departure\nnorth,Abbey,06:00\n"),
        r"b\.csv: needs service_date or day_type",
    ),
    "few stations": (
        arrivals(train(360) + train(400, stations=("Elm", "Fort"))),
        r"fewer than 2 stations are served by 90% of the 2 training",
    ),
    "nothing in a day": (
        arrivals(train(230, stations=("Abbey", "Bridge"))),
        r"a\.csv: no arrival lies on the line's stations within a service",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files(tmp_path, fault):
    make, message = FAULTS[fault]
    changed = make(tmp_path)
    check_config(changed)
    with pytest.raises(UserError, match=message) as raised:
        raster(changed, read(changed), days(1))
    assert "\n" not in str(raised.value)


def test_names_that_a_run_does_not_know(tmp_path):
    changed = arrivals(service())(tmp_path)
    found = read(changed)
    facts = learn(changed, found, days(1))
    other = Facts(np.array(["up", "south"]), facts.stations, facts.plan)
    with pytest.raises(UserError, match=r"direction north is not one of up, south \(found: north 72, south 72 rows\)"):
        rasterise(changed, found, other)
    other = replace(facts, stations=np.array([["X", "Y"]] * 2))
    with pytest.raises(UserError, match=rf"none of its stations \({', '.join(STATIONS[:3])}\) is on the line \(X, Y\)"):
        rasterise(changed, found, other)


GOOD = np.full((50, 3, 2), 5.0)


def with_value(value, *index):
    array = GOOD.copy()
    array[index] = value
    return array


ARRAYS: dict[str, tuple[np.ndarray, np.ndarray, str]] = {
    "two axes": (GOOD[:, 0], GOOD[:, 0], r"x\.npy: expected minutes of shape \(T, S, 2\) or \(T, S, 2, 1\), found \(50, 2\)"),
    "three directions": (np.ones((50, 4, 3)), GOOD[:, 0], r"x\.npy: expected minutes of shape .*, found \(50, 4, 3\)"),
    "old axis of two": (np.ones((50, 4, 2, 2)), GOOD[:, 0], r"x\.npy: expected minutes of shape .*, found \(50, 4, 2, 2\)"),
    "no rows": (GOOD[:0], GOOD[:0, 0], r"x\.npy: expected minutes of shape .*, found \(0, 3, 2\)"),
    "schedule shape": (GOOD, GOOD, r"y\.npy: expected minutes of shape \(T, 2\) or \(T, 2, 1\), found \(50, 3, 2\)"),
    "lengths": (GOOD, GOOD[:40, 0], r"y\.npy: \(40, 2\) has another number of rows than .*x\.npy \(50, 3, 2\)"),
    "integers": (GOOD.astype(int), GOOD[:, 0], r"x\.npy: expected float32 or float64 minutes, found int64 \(50, 3, 2\)"),
    "half floats": (GOOD.astype(np.float16), GOOD[:, 0], r"x\.npy: expected float32 or float64 minutes, found float16"),
    "infinite": (with_value(np.inf, 7, 2, 1), GOOD[:, 0], r"x\.npy: \[7, 2, 1\] is inf; minutes are finite"),
    "negative": (with_value(-3, 8, 0, 1), GOOD[:, 0], r"x\.npy: \[8, 0, 1\] is -3; minutes are finite and not negative"),
    "negative schedule": (GOOD, with_value(-1, 9, 0, 1)[:, 0], r"y\.npy: \[9, 0, 1\] is -1"),
    "seconds": (GOOD * 60, GOOD[:, 0], r"x\.npy: the median of the known values is 300 minutes; seconds\? divide by 60"),
    "objects": (np.array([{}], object), GOOD[:, 0], r"x\.npy: not a readable \.npy \(.*\); expected a float array"),
}


@pytest.mark.parametrize("fault", ARRAYS)
def test_arrays(tmp_path, fault):
    field, schedule, message = ARRAYS[fault]
    np.save(tmp_path / "x.npy", field, allow_pickle=True)
    np.save(tmp_path / "y.npy", schedule)
    changed = config(path=str(tmp_path / "x.npy"), schedule=str(tmp_path / "y.npy"), inputs=("headway",))
    check_config(changed)
    with pytest.raises(UserError, match=message) as raised:
        headway_prepared.read(changed)
    assert "\n" not in str(raised.value)


def test_other_faults_of_arrays(tmp_path):
    np.save(tmp_path / "x.npy", GOOD)
    changed = config(path=str(tmp_path / "x.npy"), inputs=("headway",))
    with pytest.raises(UserError, match=r"config\.data\.start: 2025-01-06T04:00 has no time zone"):
        headway_prepared.read(replace(changed, start="2025-01-06T04:00"))
    with pytest.raises(UserError, match=r"config\.data\.start: 'noon' is not a time"):
        headway_prepared.read(replace(changed, start="noon"))
    stations = write(tmp_path / "s.csv", [{"station": s} for s in "ab"], ("station",))
    with pytest.raises(UserError, match=r"s\.csv: lists 2 stations, but .*x\.npy has 3"):
        headway_prepared.read(replace(changed, stations=stations))
    raw = (tmp_path / "x.npy").read_bytes()
    for name, data in (("half.npy", raw[: len(raw) // 2]), ("none.npy", b""), ("gz.npy", gzip.compress(raw))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}: not a readable \.npy \(.+\); expected a float array \(T, S, 2\)"):
            headway_prepared.read(replace(changed, path=str(tmp_path / name)))
    np.savez(tmp_path / "z", GOOD)
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    with pytest.raises(UserError, match=r"z\.npy: holds an archive of arrays"):
        headway_prepared.read(replace(changed, path=str(tmp_path / "z.npy")))


@pytest.mark.parametrize("changes, message", [
    ({"target": "gap"}, "target: 'gap' is not supported (known: headway, age)"),
    ({"terminal": "both"}, "terminal: 'both' is not supported"),
    ({"align": "none"}, "align: 'none' is not supported"),
    ({"split": "random"}, "split: 'random' is not supported"),
    ({"inputs": ()}, "inputs: one or both of headway, age"),
    ({"inputs": ("headway", "headway")}, "inputs: one or both of headway, age, each once"),
    ({"inputs": ("speed",)}, "inputs: one or both of headway, age"),
    ({"columns": {"stop": "stop_id"}}, "columns: stop: no column of this system (known: arrival_time"),
    ({"step_minutes": 7}, "step_minutes: a day must be a whole number of steps, got 7"),
    ({"lookback": 0}, "lookback: must be at least 1, got 0"),
    ({"lookback": 1430}, "lookback and horizon: 1430 + 15 rows are more than a service day of 1440"),
    ({"stride": 0}, "stride: must be at least 1"),
    ({"cap_minutes": 0.0}, "cap_minutes: must be more than 0"),
    ({"trunk_share": 1.5}, "trunk_share: must lie in [0, 1], got 1.5"),
    ({"min_known": -0.1}, "min_known: must lie in [0, 1]"),
    ({"max_windows": 0}, "max_windows: must be at least 1"),
    ({"cuts": (0.9, 0.8)}, "cuts: two growing shares between 0 and 1"),
    ({"split": "blocked", "folds": 2}, "fold: expected 0 <= fold < folds, with 3 folds or more when blocked"),
    ({"fold": 5}, "fold: expected 0 <= fold < folds"),
    ({"timezone": "Dublin"}, "timezone: 'Dublin' is not a known zone"),
    ({"service_day_start": "4:00"}, "service_day_start: '4:00' is not a local time"),
    ({"sunday_dates": ("25.12.",)}, "sunday_dates: '25.12.' is not a date"),
    ({"synthetic": (1, 5, 0)}, "synthetic: needs at least 2 stations and 3 days, got 1 and 5"),
    ({"synthetic": (6, 5, -1)}, "synthetic.seed: must be at least 0"),
    ({"snapshots": "s.csv"}, "snapshots: s.csv belongs to a file of arrivals, but data.path is unset"),
    ({"path": "a.csv", "schedule": "y.npy"}, "schedule: y.npy belongs to a prepared array (.npy), but data.path is a.csv"),
    ({"path": "a.npy", "timetable": "t.csv", "inputs": ("headway",)}, "timetable: t.csv belongs to a table of arrivals"),
    ({"path": "a.npy"}, "inputs: a prepared array holds the one field that data.target names (headway)"),
    ({"path": "a.npy", "inputs": ("headway",), "terminal": "per_origin"}, "terminal: a prepared data.schedule has one planned value"),
    ({"path": "a.npy", "inputs": ("headway",), "clock": True}, "clock: a prepared array without data.start has no clock"),
])  # fmt: skip
def test_config(changes, message):
    with pytest.raises(UserError, match="^" + re.escape(f"config.data.{message}")):
        check_config(config(**changes))


def test_the_default_config_is_good():
    check_config(config())
    check_config(config(path="a.csv.gz", snapshots="s.csv", timetable="t.csv", stations="l.csv"))
    check_config(config(path="a.npy", schedule="y.npy", start="2025-01-06T04:00Z", clock=True, inputs=("headway",)))
