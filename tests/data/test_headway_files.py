"""Tables of arrivals and of what lies beside them: formats, names, service days, filters."""

import numpy as np
import pytest
from headway_arrivals import HEADER, days, service, stamp, tables, train, write
from headway_lines import config

from jaxtrain.data.headway_files import read, read_stations, read_timetable
from jaxtrain.data.headway_time import instant, midnights
from jaxtrain.errors import UserError


def stops(found) -> set[tuple]:
    """What a table says, whatever its codes are."""
    columns = (
        found.service_dates[found.day], found.directions[found.direction], found.stations[found.station],
        found.origins[found.origin], found.departure.round(6), found.time.round(3),
    )  # fmt: skip
    return set(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.csv.gz"])
def test_every_format_reads_the_same(tmp_path, name):
    rows = service(2)
    found = read(config(path=write(tmp_path / name, rows)))
    expected = {
        (r["service_date"], r["direction"], r["station"], r["origin"], float(int(r["scheduled_origin_departure"][:2]) * 60
         + int(r["scheduled_origin_departure"][3:])), np.datetime64(r["arrival_time"][:-6]).astype("datetime64[ms]").astype(float) / 1e3)
        for r in rows
    }  # fmt: skip
    assert stops(found) == expected and len(found.time) == len(rows)
    assert found.service_dates.tolist() == days(2) and found.directions.tolist() == ["north", "south"]
    assert len(np.unique(found.trip)) == len({(r["service_date"], r["trip"]) for r in rows})


def test_other_column_names(tmp_path):
    rows = service()
    renamed = [{**r, "stop_id": r["station"], "station": "x"} for r in rows]
    path = write(tmp_path / "a.csv", renamed, (*HEADER, "stop_id"))
    found = read(config(path=path, columns={"station": "stop_id"}))
    assert stops(found) == stops(read(config(path=write(tmp_path / "b.csv", rows))))


def test_offsets_are_honoured(tmp_path):
    rows = train(400)
    moved = [{**r, "arrival_time": r["arrival_time"].replace("06:", "08:").replace("+00:00", "+02:00")} for r in rows]
    assert moved[0]["arrival_time"] != rows[0]["arrival_time"]
    assert stops(read(config(path=write(tmp_path / "a.csv", moved)))) == stops(tables(tmp_path, rows)[1])


def test_dates_and_times_as_timetables_and_databases_write_them(tmp_path):
    rows = service(2)
    other = [{**r, "service_date": r["service_date"].replace("-", ""), "arrival_time": r["arrival_time"][:19].replace("T", " ") + " UTC"}
             for r in rows]  # fmt: skip
    other[0] = rows[0]  # one day, written in two ways
    found = read(config(path=write(tmp_path / "a.csv", other)))
    assert stops(found) == stops(read(config(path=write(tmp_path / "b.csv", rows))))
    assert found.service_dates.tolist() == days(2)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_columns_may_be_separated_otherwise(tmp_path, separator):
    rows = service()
    (tmp_path / "a.csv").write_text(open(write(tmp_path / "b.csv", rows)).read().replace(",", separator))
    assert stops(read(config(path=str(tmp_path / "a.csv")))) == stops(read(config(path=str(tmp_path / "b.csv"))))


def test_without_service_date_a_day_begins_at_its_start(tmp_path):
    rows = train(360) + [{**r, "trip": "late"} for r in train(1440 + 120)] + [{**r, "trip": "early"} for r in train(240, day="2025-01-07")]
    found = read(config(path=write(tmp_path / "a.csv", rows, HEADER[:4])))
    assert found.service_dates.tolist() == ["2025-01-06", "2025-01-07"]
    assert found.day.tolist() == [0] * 8 + [1] * 4
    assert np.isnan(found.departure).all()


def test_the_local_date_counts(tmp_path):
    rows = [{**r, "arrival_time": stamp(30, "2025-07-02"), "trip": f"t{i}"} for i, r in enumerate(train(360))]
    found = read(config(path=write(tmp_path / "a.csv", rows, HEADER[:4]), timezone="Asia/Tokyo"))  # 09:30 there
    assert found.service_dates.tolist() == ["2025-07-02"]
    found = read(config(path=write(tmp_path / "a.csv", rows, HEADER[:4]), timezone="America/New_York"))  # 20:30 the day before
    assert found.service_dates.tolist() == ["2025-07-01"]


def test_events_and_routes_filter_and_leave_no_names(tmp_path):
    rows = [{**r, "event": "A", "route": "1"} for r in service()]
    rows += [{**r, "event": "D", "route": "1", "station": "Elm"} for r in train(700)]
    rows += [{**r, "event": "A", "route": "2", "station": "Fort"} for r in train(720)]
    path = write(tmp_path / "a.csv", rows, (*HEADER, "event", "route"))
    found = read(config(path=path, events=("A",), routes=("1",)))
    assert found.stations.tolist() == ["Abbey", "Bridge", "Court", "Dock"]
    assert stops(found) == stops(tables(tmp_path, service())[1])


def test_departures_after_midnight_belong_to_the_day_before(tmp_path):
    rows = [{**r, "scheduled_origin_departure": t} for r, t in zip(train(1440 + 5), ("00:05", "24:05", "24:05:30", ""), strict=True)]
    found = tables(tmp_path, rows)[1]
    np.testing.assert_allclose(found.departure, [1445, 1445, 1445.5, np.nan])


def test_stops_reported_twice_are_counted(tmp_path):
    twice = {**train(360)[0], "arrival_time": stamp(370)}
    assert tables(tmp_path, service())[1].notes == ()
    assert "1 stops are reported twice" in tables(tmp_path, [*service(), twice])[1].notes[0]


def test_snapshots_are_sorted(tmp_path):
    path = write(tmp_path / "s.csv", [{"snapshot_time": stamp(m)} for m in (5, 3, 3, 4)], ("snapshot_time",))
    found = read(config(path=write(tmp_path / "a.csv", service()), snapshots=path)).snapshots
    assert found is not None and (np.diff(found) == 60).all() and len(found) == 3


def test_stations_of_the_first_branch(tmp_path):
    rows = [{"station": s, "branch": b} for s, b in (("Dock", ""), ("Elm", "west"), ("Abbey", ""))]
    assert read_stations(config(stations=write(tmp_path / "s.csv", rows, ("station", "branch")))).tolist() == ["Dock", "Abbey"]


def test_timetable_by_day_type_and_by_date(tmp_path):
    rows = [{"direction": "north", "origin": "Abbey", "departure": t, "day_type": k, "service_date": "2025-01-06"}
            for t, k in (("06:10", "weekday"), ("00:15", "Sunday"))]  # fmt: skip
    table = read_timetable(config(timetable=write(tmp_path / "t.csv", rows, ("direction", "origin", "departure", "day_type"))))
    assert table.minute.tolist() == [370, 1455] and table.day_type.tolist() == [0, 2] and table.date.tolist() == ["", ""]
    table = read_timetable(config(timetable=write(tmp_path / "t.csv", rows, ("direction", "origin", "departure", "service_date"))))
    assert table.day_type.tolist() == [-1, -1] and table.date.tolist() == ["2025-01-06"] * 2


def test_wall_times_count_from_noon():
    """On the night of a clock change 24:30 stays half an hour after midnight, and later times keep their distance from noon."""
    autumn, spring, plain = midnights(["2025-10-26", "2025-03-30", "2025-01-06"], "Europe/Dublin")
    assert autumn == instant("2025-10-26T00:00+00:00", "UTC", "") and spring == instant("2025-03-29T23:00+00:00", "UTC", "")
    assert plain == instant("2025-01-06T00:00+00:00", "UTC", "")


def test_local_times_of_a_clock_change():
    first, later = (instant(t, "Europe/Dublin", "x") for t in ("2025-10-26T01:30", "2025-10-26T02:30"))
    assert later - first == 2 * 3600  # the first of the two 01:30
    assert instant("2025-10-26T01:30+00:00", "Europe/Dublin", "x") - first == 3600
    with pytest.raises(UserError, match="2025-03-30T01:30 does not exist in Europe/Dublin"):
        instant("2025-03-30T01:30", "Europe/Dublin", "x")
