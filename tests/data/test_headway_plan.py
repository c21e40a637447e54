"""The plan at the terminals: rebuilt or read, moved by the usual lag, and never an observed departure."""

from dataclasses import replace

import numpy as np
import pytest
from headway_arrivals import STATIONS, days, service, tables, train, write
from headway_lines import config

from jaxtrain.data.headway_field import learn, raster
from jaxtrain.data.headway_files import read
from jaxtrain.data.headway_plan import planned_minutes
from jaxtrain.data.headway_tables import Plan, Timetable
from jaxtrain.errors import UserError

NORTH = np.array(["north"])


def plan(minutes, lags, kinds=None, dates=None) -> Plan:
    """North departures [(origin, minute)]; lags: origin -> minutes."""
    kinds = np.zeros(len(minutes), np.int32) if kinds is None else np.array(kinds, np.int32)
    dates = np.full(len(minutes), "") if dates is None else np.array(dates)
    origin, minute = zip(*minutes, strict=True)
    table = Timetable(np.full(len(minutes), "north"), np.array(origin), np.array(minute, float), kinds, dates)
    return Plan(table, np.full(len(lags), "north"), np.array(list(lags)), np.array(list(lags.values()), float))


def by_definition(entries, changed, field) -> np.ndarray:
    values = []
    for row in range(changed.day_rows):
        end = 240 + (row + 1) * changed.step_minutes
        past = sorted(e for e in entries if 240 < e <= end)
        held = bool(past) and end - past[-1] <= changed.max_age_minutes
        gap = past[-1] - past[-2] if len(past) > 1 else np.nan
        values.append(min(end - past[-1] if field == "age" else gap, changed.cap_minutes) if held else np.nan)
    return np.array(values)


@pytest.mark.parametrize("field", ["headway", "age"])
@pytest.mark.parametrize("changes", [{}, {"step_minutes": 5, "cap_minutes": 9.0, "max_age_minutes": 15.0}])
def test_every_row_follows_its_definition(field, changes):
    changed = config(**changes)
    origins = {"Abbey": 2.25, "Zoo": 9.0}
    rng = np.random.default_rng(0)
    minutes = [(str(rng.choice(list(origins))), float(m)) for m in rng.integers(235, 1500, 60)] + [("Abbey", 236.0), ("Abbey", 1450.0)]
    planned = planned_minutes(changed, plan(minutes, origins), np.array(["2025-01-06"]), NORTH, field, "merged")
    assert planned.shape == (changed.day_rows, 1, 1) and planned.dtype == np.float32
    entries = {m + origins[o] for o, m in minutes}
    np.testing.assert_allclose(planned[:, 0, 0], by_definition(entries, changed, field), atol=1e-3)
    assert np.isnan(planned[:, 0, 0]).any() and np.isfinite(planned[:, 0, 0]).any()

    apart = planned_minutes(changed, plan(minutes, origins), np.array(["2025-01-06"]), NORTH, field, "per_origin")
    assert apart.shape == (changed.day_rows, 1, 2)
    for k, origin in enumerate(sorted(origins)):
        entries = {m + origins[origin] for o, m in minutes if o == origin}
        np.testing.assert_allclose(apart[:, 0, k], by_definition(entries, changed, field), atol=1e-3)


def test_a_train_at_the_end_of_a_row_counts_in_it():
    planned = planned_minutes(config(), plan([("A", 300), ("A", 310)], {"A": 0.0}), np.array(["2025-01-06"]), NORTH, "headway", "merged")
    assert np.flatnonzero(np.isfinite(planned[:, 0, 0]))[0] == 310 - 240 - 1


def test_days_follow_their_type_or_their_date():
    dates = np.array(days(7) + ["2025-01-13"])
    minutes = [("A", 300), ("A", 306), ("A", 300), ("A", 309), ("A", 300), ("A", 312), ("A", 300), ("A", 318)]
    kinds, own = [0, 0, 1, 1, 2, 2, -1, -1], [""] * 6 + ["2025-01-13"] * 2
    planned = planned_minutes(config(), plan(minutes, {"A": 0.0}, kinds, own), dates, NORTH, "headway", "merged")
    last = np.nanmax(planned[:, 0, 0].reshape(8, 1440)[:, :90], axis=1)
    assert last.tolist() == [6, 6, 6, 6, 6, 9, 12, 12]  # the dated Monday has 12 minutes between 306 and 318, besides 6


def test_a_departure_on_half_of_the_training_days_is_planned(tmp_path):
    rows = service(4)
    rows += [r for day in days(4)[:2] for r in train(543, day=day)] + train(547)
    changed, found = tables(tmp_path, rows)
    facts = learn(changed, found, days(4))
    table = facts.plan.timetable
    assert sorted(table.minute[table.direction == "north"].tolist()) == [*range(360, 540, 10), 543]
    assert sorted(table.minute[table.direction == "south"].tolist()) == list(range(360, 540, 10))
    assert (table.day_type == 0).all()


def test_lags_are_medians_and_short_workings_add_no_gap(tmp_path):
    rows = [r for day in days(2) for k in range(18) for r in train(360 + 10 * k, day=day, late=float(k % 3))]
    rows += [r for day in days(2) for k in range(4) for r in train(365 + 10 * k, day=day, stations=("Court", "Dock"))]
    rows += [r for day in days(2) for k in range(9) for r in train(362 + 10 * k, day=day, stations=("Zoo", *STATIONS))]
    changed, found = tables(tmp_path, rows + service(2), trunk_share=0.8)
    facts = learn(changed, found, days(2))
    assert dict(zip(zip(facts.plan.lag_direction.tolist(), facts.plan.lag_origin.tolist(), strict=True), facts.plan.lag_minutes.round(6),
                    strict=True)) == {("north", "Abbey"): 2.0, ("south", "Dock"): 2.0}  # fmt: skip
    assert set(facts.plan.timetable.origin.tolist()) == {"Abbey", "Dock"}
    assert "Court (north), Zoo (north)" in facts.notes[0]


def test_the_plan_of_later_days_never_sees_their_trains(tmp_path):
    rows = service(3)
    changed, found = tables(tmp_path, rows)
    whole = raster(changed, found, days(1))
    late = [r for day in days(3)[1:] for m in range(360, 540, 10) for d in ("north", "south") for r in train(m, d, day, late=7)]
    gone = [r for r in rows if r["service_date"] == days(3)[0] or r["scheduled_origin_departure"] < "07:00"]
    for other in (service(1) + late, gone):
        line = raster(changed, tables(tmp_path, other)[1], days(1))
        assert not np.array_equal(line.headway, whole.headway, equal_nan=True)
        np.testing.assert_array_equal(line.planned, whole.planned)
    assert np.isfinite(whole.planned[whole.day == 2]).any()


def test_a_timetable_file_replaces_the_departures_that_ran(tmp_path):
    rows = [{"direction": d, "origin": o, "departure": t, "day_type": "weekday"}
            for d, o in (("north", "Abbey"), ("south", "Dock")) for t in ("06:00", "06:07")]  # fmt: skip
    path = write(tmp_path / "t.csv", rows, ("direction", "origin", "departure", "day_type"))
    changed = config(path=write(tmp_path / "a.csv", service(2)), timetable=path, check_clock=False)
    line = raster(changed, read(changed), days(2))
    assert np.nanmax(line.planned) == 7 and line.plan is not None and set(line.plan.lag_minutes.tolist()) == {2.0}


def test_without_scheduled_departures_only_trains_from_the_first_station_are_placed(tmp_path):
    rows = [{"direction": d, "origin": o, "departure": t, "day_type": "weekday"}
            for d, o in (("north", "Abbey"), ("south", "Zoo")) for t in ("06:00", "06:07")]  # fmt: skip
    path = write(tmp_path / "t.csv", rows, ("direction", "origin", "departure", "day_type"))
    arrivals = write(tmp_path / "a.csv", service(2), ("arrival_time", "trip", "station", "direction"))
    changed = config(path=arrivals, timetable=path, check_clock=False)
    line = raster(changed, read(changed), days(2))
    assert np.nanmax(line.planned[:, 0]) == 7 and np.isnan(line.planned[:, 1]).all()
    assert any("Zoo (south)" in note for note in line.notes)
    unplanned = replace(changed, timetable="")
    line = raster(unplanned, read(unplanned), days(2))
    assert np.isnan(line.planned).all() and "no planned departures are known" in line.notes


def rush(day: str) -> list:
    """A day whose headways tell the time: dense in the morning, sparse at noon."""
    minutes = [*range(360, 480, 5), *range(480, 720, 20), *range(720, 900, 10)]
    return [r for m in minutes for d in ("north", "south") for r in train(m, d, day)]


def test_clock_check(tmp_path):
    rows = [r for day in days(2) for r in rush(day)]
    changed, found = tables(tmp_path, rows)
    assert "correlate by north 0.99, south 0.99" in raster(changed, found, days(2)).notes[-1]
    stops = len(found.time)
    moved = Timetable(
        found.directions[found.direction], found.origins[found.origin], found.departure + 300, np.zeros(stops, np.int32), np.full(stops, "")
    )
    wrong = replace(found, timetable=moved, departure=np.full(stops, np.nan))
    with pytest.raises(UserError, match=r"north trains fit best with the plan moved by -5 h .*check data.timezone"):
        raster(changed, wrong, days(2))
    assert not any("clock" in note for note in raster(replace(changed, check_clock=False), wrong, days(2)).notes)


def test_south_trains_enter_at_the_other_end(tmp_path):
    changed, found = tables(tmp_path, rush(days(2)[0]) + rush(days(2)[1]))
    for align in ("travel", "line"):
        facts = learn(replace(changed, align=align), found, days(2))
        assert facts.stations[1, 0] == (STATIONS[-1] if align == "travel" else STATIONS[0])
        assert facts.plan.lag_minutes.tolist() == [2.0, 2.0]
        assert raster(replace(changed, align=align), found, days(2)).notes[-1].endswith("correlate by north 0.99, south 0.99")
