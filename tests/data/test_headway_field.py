"""The raster: every cell against its definition, minute by minute; what is unobserved stays unknown; names stay with places."""

from dataclasses import replace

import numpy as np
import pytest
from headway_arrivals import STATIONS, days, service, tables, train
from headway_lines import config

from jaxtrain.data.headway_field import learn, raster, rasterise, unobserved_rows
from jaxtrain.data.headway_files import read
from jaxtrain.data.headway_tables import Facts, Plan, Tables, Timetable
from jaxtrain.data.headway_time import instant, midnights
from jaxtrain.errors import UserError

NONE = np.array([], np.str_)


def random_tables(seed: int, snapshots: bool) -> Tables:
    """Two days of a line of 3 stations with irregular trains, a trip reported twice, a shared instant and feed outages."""
    rng = np.random.default_rng(seed)
    day = np.repeat([0, 1], 240)
    begin = midnights(["2025-01-06", "2025-01-07"], "UTC")
    minute = np.sort(rng.uniform(230, 1450, 480)).round(2)
    minute[rng.random(480) < 0.3] = 700.5  # many at one instant, others further apart
    known = rng.random(3000) < 0.7
    times = np.sort(rng.uniform(240, 1680, 3000))
    times = np.concatenate([times[known & (times % 200 > 40)] * 60 + b for b in begin])
    return Tables(
        "x", np.array(["2025-01-06", "2025-01-07"]), np.array(["out", "in"]), np.array(["A", "B", "C", "D"]), NONE,
        begin[day] + minute * 60, day.astype(np.int32), (day * 300 + rng.integers(0, 200, 480)).astype(np.int32),
        rng.integers(0, 4, 480).astype(np.int32), rng.integers(0, 2, 480).astype(np.int32), np.full(480, np.nan), np.full(480, -1),
        snapshots=times if snapshots else None,
    )  # fmt: skip


FACTS = Facts(
    np.array(["out", "in"]), np.array([["C", "A", "B"]] * 2),
    Plan(Timetable(NONE, NONE, np.array([]), np.array([], np.int32), NONE), NONE, NONE, np.array([])),
)  # fmt: skip


def cell_by_definition(changed, found: Tables, unobserved: np.ndarray, day: int, station: str, direction: str) -> tuple[list, list]:
    """Headway and age of one place on one day, by walking through its rows."""
    begin = midnights(found.service_dates, "UTC")[day] / 60 + 240
    here = (found.day == day) & (found.stations[found.station] == station) & (found.directions[found.direction] == direction)
    first: dict[int, float] = {}
    for trip, time in zip(found.trip[here], found.time[here] / 60 - begin, strict=True):
        if 0 <= time < 1440:
            first[trip] = min(time, first.get(trip, np.inf))
    times = sorted(set(first.values()))
    headways, ages = [], []
    for row in range(changed.day_rows):
        end = (row + 1) * changed.step_minutes
        past = [t for t in times if t < end]
        headway = age = np.nan
        if past:
            since = slice(int(past[-1] // changed.step_minutes), row + 1)
            if not unobserved[day, since].any() and end - past[-1] <= changed.max_age_minutes:
                age = min(end - past[-1], changed.cap_minutes)
                if len(past) > 1:
                    between = slice(int(past[-2] // changed.step_minutes), row + 1)
                    if not unobserved[day, between].any() and past[-1] - past[-2] <= changed.max_gap_minutes:
                        headway = min(past[-1] - past[-2], changed.cap_minutes)
        headways.append(headway)
        ages.append(age)
    return headways, ages


@pytest.mark.parametrize("snapshots, changes", [
    (True, {}), (False, {}), (True, {"step_minutes": 5, "cap_minutes": 12.0}), (True, {"max_gap_minutes": 8.0, "max_age_minutes": 6.5}),
])  # fmt: skip
def test_every_cell_follows_its_definition(snapshots, changes):
    changed, found = config(align="line", check_clock=False, **changes), random_tables(1, snapshots)
    line = rasterise(changed, found, FACTS)
    begin = midnights(found.service_dates, "UTC") + 240 * 60
    unobserved = unobserved_rows(changed, found, begin[:, None] + changed.step_seconds * np.arange(changed.day_rows))
    assert 0.02 < unobserved.mean() < 0.9
    for d, direction in enumerate(line.directions):
        for s, station in enumerate(line.stations[d]):
            for day in (0, 1):
                headway, age = cell_by_definition(changed, found, unobserved, day, station, direction)
                rows = line.day == day
                np.testing.assert_allclose(line.headway[rows, s, d], headway, atol=2e-4)
                np.testing.assert_allclose(line.age[rows, s, d], age, atol=2e-4)
    known = np.isfinite(line.headway)
    assert 0.01 < known.mean() < 0.9 and line.headway.dtype == line.age.dtype == np.float32


def test_a_minute_known_to_be_unobserved_is_never_marked_known():
    for seed in range(3):
        found = random_tables(seed, True)
        assert found.snapshots is not None
        line = rasterise(config(), found, FACTS)
        end = line.time + 60
        last = np.array([found.snapshots[found.snapshots <= e].max(initial=-np.inf) for e in end])
        stale = end - last > 180
        assert stale.sum() > 100
        assert not np.isfinite(line.headway[stale]).any() and not np.isfinite(line.age[stale]).any()


def test_rows_named_unobserved_are_unknown():
    found = random_tables(0, False)
    begin = int(midnights(["2025-01-06"], "UTC")[0]) + 240 * 60
    busy = rasterise(config(), replace(found, unobserved=np.array([], np.int64)), FACTS)
    row = int(np.flatnonzero(np.isfinite(busy.age[:1440]).any((1, 2)))[50])
    line = rasterise(config(), replace(found, unobserved=np.array([begin + 60 * row])), FACTS)
    assert np.isfinite(busy.age[row]).any() and not np.isfinite(line.age[row]).any()
    assert np.array_equal(line.age[:row], busy.age[:row], equal_nan=True)


def test_without_snapshots_long_quiet_stretches_are_unobserved(tmp_path):
    rows = [*train(360), *train(372), *train(410)]  # last stop of the second at 383, first of the third at 412
    changed, found = tables(tmp_path, rows)
    time = midnights(found.service_dates, "UTC")[:, None] + 240 * 60 + 60 * np.arange(1440)
    quiet = unobserved_rows(changed, found, time)[0]
    minutes = np.flatnonzero(~quiet) + 240
    assert minutes.min() == 362 and minutes.max() == 421
    assert (quiet[384 - 240 : 412 - 240]).all() and not quiet[362 - 240 : 384 - 240].any()
    coarse = unobserved_rows(replace(changed, step_minutes=5), found, time[:, ::5])[0]
    assert (240 + 5 * np.flatnonzero(~coarse)).tolist() == [360, 365, 370, 375, 380, 410, 415, 420]


def test_nothing_is_carried_over_night(tmp_path):
    rows = service(2, between=(1660, 1680)) + service(2, between=(242, 262))
    changed, found = tables(tmp_path, rows, check_clock=False)
    line = raster(changed, found, days(2))
    second = line.day == 1
    entry = line.age[second, 0, 0]
    assert np.isnan(entry[:4]).all() and entry[4] == pytest.approx(1)  # the first train of the day, at 04:04
    assert np.isnan(line.headway[second, 0, 0][:14]).all() and line.headway[second, 0, 0][14] == pytest.approx(10)


def test_time_and_calendar_of_the_rows(tmp_path):
    changed, found = tables(tmp_path, service(7), timezone="America/New_York", service_day_start="01:30", check_clock=False)
    line = raster(changed, found, days(7))
    assert line.day_type[::1440].tolist() == [0, 0, 0, 0, 0, 1, 2]
    assert line.minute[1439] == 1439 and line.minute[1440] == 0 and (np.diff(line.time) == 60).all()
    assert line.time[0] == instant("2025-01-06T01:30", "America/New_York", "")
    special = raster(replace(changed, sunday_dates=("2025-01-08",)), found, days(7))
    assert special.day_type[::1440].tolist() == [0, 0, 2, 0, 0, 1, 2]


def test_days_with_a_clock_change():
    """A day on whose night clocks go forward is unknown in the hour that it shares with the next; one that gains an hour loses it."""
    dates = np.array(["2025-03-28", "2025-03-29", "2025-10-25", "2025-10-26"])
    begin = midnights(dates, "Europe/Dublin") + 240 * 60
    day, minute = np.repeat(np.arange(4), 2), np.tile([1370.5, 1385.5], 4)
    found = replace(
        random_tables(0, False), service_dates=dates, time=begin[day] + minute * 60, day=day, trip=np.arange(8), station=np.zeros(8, int),
        direction=np.zeros(8, int), departure=np.full(8, np.nan), origin=np.full(8, -1), unobserved=np.array([], np.int64),
    )  # fmt: skip
    line = rasterise(config(timezone="Europe/Dublin"), found, FACTS)
    plain, spring, autumn, after = (np.isfinite(line.age[line.day == d, 1, 0]) for d in range(4))
    for rows in (plain, autumn, after):
        assert rows[1370:].all()
    assert spring[1370:1380].all() and not spring[1380:].any()
    first = [instant(f"{d}T04:00", "Europe/Dublin", "") for d in dates]
    assert line.time[::1440].tolist() == first and first[3] - line.time[3 * 1440 - 1] == 3660


def test_directions_are_aligned_with_travel(tmp_path):
    changed, found = tables(tmp_path, service(), check_clock=False)
    travel, straight = raster(changed, found, days(1)), raster(replace(changed, align="line"), found, days(1))
    assert travel.directions.tolist() == ["north", "south"]
    assert travel.stations.tolist() == [list(STATIONS), list(STATIONS[::-1])] and straight.stations.tolist() == [list(STATIONS)] * 2
    for name in ("headway", "age"):
        a, b = getattr(travel, name), getattr(straight, name)
        assert np.isfinite(a).any()
        np.testing.assert_array_equal(a[:, :, 0], b[:, :, 0])
        np.testing.assert_array_equal(a[:, ::-1, 1], b[:, :, 1])
    first = np.isfinite(travel.age).argmax(0)
    assert (np.diff(first, axis=0) > 0).all()  # the first train comes to index 0 first, in both directions


def test_stations_of_few_trips_are_left_out_and_only_training_counts(tmp_path):
    short = [r for day in days(2)[1:] for k in range(40) for r in train(600 + k, day=day, stations=("Dock", "Elm"))]
    changed, found = tables(tmp_path, service(2) + short, check_clock=False)
    line = raster(changed, found, days(1))
    assert line.stations[0].tolist() == list(STATIONS)
    assert "stations of fewer than 90% of the training trips are left out: Elm" in line.notes
    with pytest.raises(UserError, match="Zoo"):
        learn(replace(changed, stations="s"), replace(found, order=np.array(["Abbey", "Zoo"])), days(1))
    with pytest.raises(UserError, match="trunk_share"):
        learn(replace(changed, trunk_share=1.0), found, days(2))


def test_a_listed_order_names_direction_0(tmp_path):
    changed, found = tables(tmp_path, service(), check_clock=False)
    line = raster(changed, replace(found, order=np.array(STATIONS[::-1])), days(1))
    assert line.directions.tolist() == ["south", "north"] and line.stations[0].tolist() == list(STATIONS[::-1])
    derived = raster(changed, found, days(1))
    np.testing.assert_array_equal(line.headway, derived.headway[:, :, ::-1])


def test_facts_of_a_run_place_a_file_with_fewer_stations(tmp_path):
    changed, found = tables(tmp_path, service(2), check_clock=False)
    facts = learn(changed, found, days(2))
    _, part = tables(tmp_path, [r for r in service(1) if r["station"] != "Bridge"])
    line = rasterise(changed, part, facts)
    assert line.stations.tolist() == facts.stations.tolist()
    assert np.isnan(line.age[:, 1, 0]).all() and np.isfinite(line.age[:, 2, 0]).any()


@pytest.mark.slow
def test_dublin(shared):
    folder = shared / "data" / "headway"
    changed = config(path=str(folder / "dart_arrivals.parquet"), snapshots=str(folder / "dart_snapshots.parquet"), timezone="Europe/Dublin")
    found = read(changed)
    assert len(found.time) == 90_778 and found.trip.max() + 1 == 3_482
    line = raster(changed, found, found.service_dates[:15].tolist())
    assert line.directions.tolist() == ["Northbound", "Southbound"]
    assert len(line.stations[0]) == 24 and line.stations[0, [0, -1]].tolist() == ["Woodbrook", "Howth Junction"]
    assert line.headway.shape == (30_240, 24, 2) and "23400 of 30240 rows were observed" in line.notes
    assert np.isfinite(line.headway).mean() == pytest.approx(0.69, abs=0.005)
    assert line.plan is not None
    lags = dict(zip(line.plan.lag_origin.tolist(), line.plan.lag_minutes.round(2).tolist(), strict=True))
    assert lags == {"Bray": 3.05, "Greystones": 15.05, "Howth": 10.03, "Malahide": 11.03}
    # 196, 141 and 83 less those of mid-line origins, which have no lag.
    assert np.bincount(line.plan.timetable.day_type).tolist() == [193, 138, 82]
    assert "Northbound 0.89, Southbound 0.82" in line.notes[-1]
