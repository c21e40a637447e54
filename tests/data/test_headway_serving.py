"""What a finished run reads: its own fields back from a file, issue times, another plan, and faults in one line."""

from pathlib import Path

import numpy as np
import pytest
from headway_lines import config, line

from jaxtrain.data import headway
from jaxtrain.data.dataset import Dataset
from jaxtrain.data.headway_serving import Served, issue_rows
from jaxtrain.data.headway_synthetic import tables
from jaxtrain.errors import UserError

RUN = config(synthetic=(6, 5, 5), cuts=(0.6, 0.8))
DAY = 3  # the service day in the files: Sunday 2025-01-05
SUNDAY = np.datetime64("2025-01-05T00:00", "s").astype(np.int64)


@pytest.fixture(scope="module")
def run():
    return headway.splits(RUN)


def write_arrivals(path: Path, until: str = "12:00", renamed: dict[str, str] | None = None) -> str:
    """The trains of the embedded line from 04:00 on Sunday, as a table of arrivals."""
    found, limits = tables(RUN), [np.datetime64(f"2025-01-05T{clock}", "s").astype(np.int64) for clock in ("04:00", until)]
    lines = ["arrival_time,trip,station,direction,service_date"]
    for row in np.flatnonzero((found.time >= limits[0]) & (found.time < limits[1])):
        names = [str(found.stations[found.station[row]]), str(found.directions[found.direction[row]])]
        names = [(renamed or {}).get(name, name) for name in names]
        stamp = np.datetime64(round(found.time[row] * 1e6), "us")
        lines.append(f"{stamp}Z,t{found.trip[row]},{names[0]},{names[1]},{found.service_dates[found.day[row]]}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def arrivals(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_arrivals(tmp_path_factory.mktemp("served") / "sunday.csv")


def issued(found: Dataset) -> list[str]:
    """Local times at which the forecasts are issued: the ends of the last input rows."""
    ends = found.arrays["time"][found.index[:, 0] + RUN.lookback - 1] + 60
    return [str(np.datetime64(int(end), "s"))[11:16] for end in ends]


def served(run, path: str, **options) -> Dataset:
    return headway.inputs(RUN, run.statistics, path, **options)


def test_a_file_gives_the_fields_that_the_run_was_trained_on(run, arrivals):
    found = served(run, arrivals)
    batch = found.gather(found.arrays, found.index)
    row = int((found.arrays["time"][found.index[0, 0]] - SUNDAY) // 60 - 240) + DAY * 1440
    own = run.train.gather(run.train.arrays, np.array([[row]], np.int32))
    for name in ("headway", "age"):
        both = batch[f"{name}_known"] & own[f"{name}_known"]
        assert both.mean() > 0.9
        np.testing.assert_allclose(batch[name][both], own[name][both], atol=1e-3)
    np.testing.assert_array_equal(batch["planned"], own["planned"])
    np.testing.assert_array_equal(batch["when"], own["when"])


def test_the_forecast_is_issued_after_the_last_complete_row(run, arrivals, tmp_path):
    newest = max(text.split(",")[0] for text in Path(arrivals).read_text().splitlines()[1:])
    assert issued(served(run, arrivals)) == [newest[11:16]]
    # Where the feed was read later without another train, later rows are complete.
    snapshots = tmp_path / "snapshots.csv"
    stamps = np.datetime64("2025-01-05T04:00:20") + np.arange(0, 8 * 3600 + 300, 60).astype("timedelta64[s]")
    snapshots.write_text("\n".join(["snapshot_time", *(f"{s}Z" for s in stamps)]) + "\n")
    assert issued(served(run, arrivals, snapshots=str(snapshots))) == ["12:04"]


@pytest.mark.parametrize("options, expected", [
    ({"at": "2025-01-05T10:30"}, ["10:30"]),
    ({"at": "2025-01-05T11:30:40+01:00"}, ["10:30"]),
    ({"every": 30, "at": "2025-01-05T10:01"}, ["10:30", "11:00", "11:30"]),
])  # fmt: skip
def test_issue_times_can_be_chosen(run, arrivals, options, expected):
    assert issued(served(run, arrivals, **options)) == expected


def test_a_series_starts_where_something_is_known(run, arrivals):
    times = issued(served(run, arrivals, every=15))
    assert times[0] == "08:30" and times[-1] == "11:45" and len(times) == 14  # the first train of a Sunday leaves at 08:00


def test_another_timetable_changes_the_plan_alone(run, arrivals, tmp_path):
    other = tmp_path / "what_if.csv"
    departures = [f"outbound,s0,{m // 60:02d}:{m % 60:02d},sunday" for m in range(480, 1440, 5)]
    other.write_text("\n".join(["direction,origin,departure,day_type", *departures]) + "\n")
    at = "2025-01-05T11:00"
    before, after = (served(run, arrivals, at=at, timetable=path) for path in ("", str(other)))
    one, two = (found.gather(found.arrays, found.index) for found in (before, after))
    assert set(one) == set(two)
    for name in set(one) - {"planned", "planned_known"}:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    assert two["planned_known"][0, :, 0].all() and (two["planned"][0, :, 0] == 5).all()
    assert not two["planned_known"][0, :, 1].any(), "no departures are given for the other direction"
    assert (one["planned"][0, :, 0] == 12).all()


def test_labelled_windows_are_those_that_training_would_take(run, arrivals):
    found = served(run, arrivals, labelled=True)
    known = found.arrays["headway_known"].mean((1, 2))
    first = found.index[:, 0]
    assert len(found) > 100
    for start in range(len(known) - 44):
        taken = known[start + 29] >= 0.5 and known[start + 30 : start + 45].mean() >= 0.5 - 1e-9
        assert taken == (start in first), start


def test_stations_are_matched_by_name_and_a_few_may_be_absent(run, tmp_path):
    # Other names sort otherwise; an unknown station is not on the grid.
    found = served(run, write_arrivals(tmp_path / "renamed.csv", renamed={"s2": "a branch"}), at="2025-01-05T11:00")
    batch = found.gather(found.arrays, found.index)
    assert not batch["headway_known"][..., 2, 0].any() and not batch["headway_known"][..., 3, 1].any(), "s2 is the fourth on the way back"
    assert batch["headway_known"][0, -1, [0, 1, 3, 4, 5], 0].all()


@pytest.mark.parametrize("until, options, said", [
    ("12:00", {"at": "2025-01-05T14:00"}, "at=2025-01-05T14:00: the file ends before it; the last usable time is 2025-01-05T11:5"),
    ("12:00", {"at": "2025-01-05T07:00"}, "rows up to it, the run needs 30; the last usable time is"),
    ("12:00", {"at": "noon"}, "--option at: 'noon' is not a time"),
    ("12:00", {"every": 15, "at": "2025-01-05T15:00"}, "every 15 min from 2025-01-05T15:00 on; the last usable time is 2025"),
    ("12:00", {"every": -1}, "--option every=-1"),
    ("08:20", {}, "complete rows of 1 min, the run needs 30; give more history"),
    ("08:04", {"labelled": True}, "no window of 45 rows inside one service day has 50% of its cells known"),
])  # fmt: skip
def test_a_time_without_history_is_one_clear_line(run, tmp_path, until, options, said):
    with pytest.raises(UserError, match=said) as fault:
        served(run, write_arrivals(tmp_path / "x.csv", until), **options)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("renamed, said", [
    ({f"s{i}": f"x{i}" for i in range(6)}, "6 stations are absent: s0, s1, s2 and 3 more; the file has x0, x1, x2 and 3 more"),
    ({"inbound": "west"}, "directions the run does not know: west; it has outbound, inbound"),
])  # fmt: skip
def test_another_line_is_one_clear_line(run, tmp_path, renamed, said):
    with pytest.raises(UserError, match=said):
        served(run, write_arrivals(tmp_path / "x.csv", renamed=renamed))


def test_nothing_known_in_the_last_row_names_the_last_usable_time(run, tmp_path):
    path = write_arrivals(tmp_path / "x.csv", "09:00")
    with open(path, "a") as file:  # three hours later a train of a branch shows that the feed is alive
        file.write("2025-01-05T12:00:00Z,late,elsewhere,outbound,2025-01-05\n")
    with pytest.raises(UserError, match=r"2025-01-05T12:00.*: no station's value is known then; the last usable time is 2025-01-05T09:"):
        served(run, path)


def test_the_input_does_not_reach_back_over_the_night():
    found = Served(line(2, day_rows=100), 0, 199)
    rows = issue_rows(RUN, found, "", every=1)
    assert rows.tolist() == [*range(29, 100), *range(129, 200)]
    with pytest.raises(UserError, match="04:20: its service day is younger than 30 rows; the last usable time is 2025-01-03T05:40"):
        issue_rows(RUN, found, "2025-01-03T04:20", every=0)


def test_a_timetable_of_other_origins_is_refused(run, arrivals, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("direction,origin,departure,day_type\noutbound,elsewhere,10:00,sunday\n")
    with pytest.raises(UserError, match=r"other.csv: no departure from an origin of the run's plan \(s0 \(outbound\), s5 \(inbound\)\)"):
        served(run, arrivals, timetable=str(other))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    """(config, splits) of a run on a prepared array."""
    folder, whole = tmp_path_factory.mktemp("prepared"), line(1, day_rows=600, stations=4, dated=False)
    np.save(folder / "x.npy", whole.headway)
    changed = config(path=str(folder / "x.npy"), inputs=("headway",))
    return changed, headway.splits(changed)


def test_a_prepared_array_is_forecast_from_its_last_known_row(prepared, tmp_path):
    changed, made = prepared
    values, plan = line(1, day_rows=100, stations=4, dated=False, seed=1).headway, np.full((100, 2), 7.0, np.float32)
    values[85:] = np.nan  # still to come, but planned
    np.save(tmp_path / "now.npy", values)
    np.save(tmp_path / "plan.npy", plan)
    found = headway.inputs(changed, made.statistics, str(tmp_path / "now.npy"), timetable=str(tmp_path / "plan.npy"))
    batch = found.gather(found.arrays, found.index)
    np.testing.assert_array_equal(batch["headway"][0, :, :, 0], values[55:85, :, 0])
    assert (batch["planned"] == 7).all() and not batch["target_known"].any()
    np.save(tmp_path / "now.npy", values[:85])
    short = headway.inputs(changed, made.statistics, str(tmp_path / "now.npy"))
    batch = short.gather(short.arrays, short.index)
    np.testing.assert_array_equal(batch["headway"][0, :, :, 0], values[55:85, :, 0])
    assert not batch["planned_known"].any()


def test_prepared_arrays_that_do_not_fit_are_one_clear_line(prepared, run, arrivals, tmp_path):
    changed, made = prepared
    np.save(tmp_path / "five.npy", line(1, day_rows=100, stations=5, dated=False).headway)
    np.save(tmp_path / "four.npy", line(1, day_rows=100, stations=4, dated=False).headway)
    with pytest.raises(UserError, match="5 stations and 2 directions, the run expects 4 and 2"):
        headway.inputs(changed, made.statistics, str(tmp_path / "five.npy"))
    with pytest.raises(UserError, match="knows no names; give a prepared array"):
        headway.inputs(changed, made.statistics, arrivals)
    with pytest.raises(UserError, match="needs the time of the array's first row; give --option start=TIME"):
        headway.inputs(changed, made.statistics, str(tmp_path / "four.npy"), at="2025-01-05T10:00")
    start = {"start": "2025-01-05T09:00Z", "at": "2025-01-05T10:00"}
    assert headway.inputs(changed, made.statistics, str(tmp_path / "four.npy"), **start).index.tolist() == [[30]]
    with pytest.raises(UserError, match="a prepared array holds the one field"):
        headway.inputs(RUN, run.statistics, str(tmp_path / "four.npy"))
