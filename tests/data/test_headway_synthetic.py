"""The simulated line: its measured facts, its tables, and the oracle that sees no more than the past."""

from dataclasses import replace

import numpy as np
import pytest
from headway_lines import config

from jaxtrain.data import headway, headway_oracle
from jaxtrain.data.headway_config import SyntheticConfig
from jaxtrain.data.headway_field import raster
from jaxtrain.data.headway_oracle import oracle
from jaxtrain.data.headway_splits import training_dates
from jaxtrain.data.headway_synthetic import EARLIEST, MIN_GAP, planned_departures, tables, world
from jaxtrain.data.headway_tables import Line

SMALL = config(synthetic=(8, 6, 3), cuts=(0.5, 0.7))


def drawn_line(changed) -> Line:
    found = tables(changed)
    return raster(changed, found, training_dates(changed, found.service_dates))


def test_the_default_line_has_the_measured_facts():
    known = world(SyntheticConfig(66, 28, 0))
    gaps = np.diff(known.arrival, axis=0)
    gaps = gaps[np.isfinite(gaps)]
    assert gaps.size == 521_136
    assert gaps.mean() == pytest.approx(8.0, abs=0.1) and gaps.std() == pytest.approx(5.3, abs=0.15)
    np.testing.assert_allclose(np.percentile(gaps, [1, 50, 95, 99]), [1.5, 7.3, 17.7, 23.9], rtol=0.02)
    assert np.mean(gaps < 2) == pytest.approx(0.12, abs=0.01)
    assert np.nanmean(known.arrival[:, -1] - known.arrival[:, 0]) == pytest.approx(135, abs=2.5)
    downstream = np.diff(known.arrival, axis=0) < 2
    assert downstream[:, 60].sum() > 2 * downstream[:, 5].sum(), "bunching grows downstream"


def test_trains_follow_the_plan_and_keep_their_distance():
    known = world(SyntheticConfig(12, 9, 1))
    gaps = np.diff(known.arrival, axis=0)
    assert np.nanmin(gaps) >= MIN_GAP - 1e-9
    assert np.nanmin(known.arrival[:, 0] - known.plan) >= EARLIEST - 1e-9, "nobody leaves more than half a minute early"
    assert np.nanmin(np.diff(known.arrival, axis=1)) >= 0.4 + 0.75
    assert known.day_type.tolist() == [0, 0, 1, 2, 0, 0, 0, 0, 0], "from a Thursday"
    lateness = known.lateness[:, known.day_type == 0].reshape(len(known.lateness), -1)
    assert np.corrcoef(lateness[:-1].ravel(), lateness[1:].ravel())[0, 1] == pytest.approx(0.7, abs=0.05)
    assert lateness.std() == pytest.approx(1.5, abs=0.1)
    starts, lengths = known.outage[known.outage[:, 1] > 0].T
    assert len(starts) and starts.min() >= 360 and (starts + lengths).max() <= 1440 and 5 <= lengths.min() <= lengths.max() <= 30


def test_the_planned_day():
    for peak, (start, end) in enumerate(((420, 600), (960, 1140))):
        every = [np.unique(np.diff([m for m in planned_departures(0, d) if start <= m < end])).tolist() for d in (0, 1)]
        assert (every[peak], every[1 - peak]) == ([4], [6]), "the evening peak runs the other way"
    assert [planned_departures(kind, 0)[0] for kind in (0, 1, 2)] == [300, 360, 480]
    assert all(planned_departures(kind, 1)[0] - planned_departures(kind, 0)[0] == 3 for kind in (0, 1, 2))
    assert all(1470 - 15 < planned_departures(kind, d)[-1] <= 1470 for kind in (0, 1, 2) for d in (0, 1))


def test_the_fields_show_the_drawn_trains():
    known, line = world(SMALL.synthetic), drawn_line(SMALL)
    assert line.stations[0, 0] == line.stations[1, -1] == "s0"
    checked = 0
    for row in range(300, 6 * 1440, 211):
        end = 240 + row % 1440 + 1
        for s, d in ((0, 0), (3, 1), (7, 0)):
            passed = known.arrival[:, s, row // 1440, d]
            passed = passed[passed <= end]
            if np.isfinite(line.headway[row, s, d]):
                assert line.headway[row, s, d] == pytest.approx(min(passed[-1] - passed[-2], 30), abs=1e-3)
                assert line.age[row, s, d] == pytest.approx(min(end - passed[-1], 30), abs=1e-3)
                checked += 1
    assert checked > 60


def test_missed_minutes_are_unknown_until_the_next_train():
    known, line = world(SMALL.synthetic), drawn_line(SMALL)
    day = int(np.flatnonzero(known.outage[:, 1])[0])
    first, length = known.outage[day]
    rows = day * 1440 + first - 240 + np.arange(length)
    assert np.isfinite(line.age[rows[0] - 1]).all()
    assert np.isnan(line.age[rows]).all() and np.isnan(line.headway[rows]).all()


def test_a_line_is_a_function_of_its_seed():
    world.cache_clear()
    first = world(SyntheticConfig(5, 3, 7)).arrival.copy()
    world.cache_clear()
    np.testing.assert_array_equal(first, world(SyntheticConfig(5, 3, 7)).arrival)
    assert not np.array_equal(first[:50], world(SyntheticConfig(5, 3, 8)).arrival[:50])


@pytest.fixture(scope="module")
def tested():
    found = headway.splits(SMALL)
    rows = found.test.index[:: len(found.test) // 40]
    return rows, found.test.gather(found.test.arrays, rows)


def test_the_oracle_beats_what_a_line_without_knowledge_of_its_trains_can_say(tested):
    rows, batch = tested
    value, known = oracle(SMALL, rows)["value"], batch["target_known"]
    assert value.dtype == np.float32 and value.shape == batch["target"].shape
    error = np.sqrt(np.mean((value - batch["target"])[known] ** 2))
    held = np.broadcast_to(batch["headway"][:, -1:], value.shape)
    hold = np.sqrt(np.mean((held - batch["target"])[known & batch["headway_known"][:, -1:]] ** 2))
    assert error < 0.6 * hold
    assert abs((value - batch["target"])[known].mean()) < 0.2 * error, "no constant bias"


def test_the_oracle_of_a_row_does_not_depend_on_its_batch(tested):
    rows, _ = tested
    together = oracle(SMALL, rows[:20], futures=4)["value"]
    np.testing.assert_array_equal(oracle(SMALL, rows[17:18], futures=4)["value"], together[17:18])


@pytest.mark.parametrize("target", ["headway", "age"])
def test_the_oracle_sees_no_train_that_is_still_to_come(tested, monkeypatch, target):
    rows, changed = tested[0][10:11], replace(SMALL, target=target)
    before = oracle(changed, rows, futures=4)["value"]
    known = world(SMALL.synthetic)
    day, row = divmod(int(rows[0, 0]) + SMALL.lookback, 1440)
    late = known.arrival > 240 + row
    late[:, :, np.arange(len(known.day_type)) != day] = True
    # Every later event is moved; a train that has begun its run keeps what it has done.
    moved = replace(known, arrival=np.where(late, known.arrival + 5, known.arrival),
                    lateness=np.where(late[:, 0], 99.0, known.lateness))  # fmt: skip
    monkeypatch.setattr(headway_oracle, "world", lambda _: moved)
    np.testing.assert_array_equal(oracle(changed, rows, futures=4)["value"], before)
    moved.arrival[~late] -= 3
    assert not np.array_equal(oracle(changed, rows, futures=4)["value"], before)


def test_the_oracle_speaks_in_the_order_of_the_grid(tested):
    rows = tested[0][:3]
    travel, line = (oracle(replace(SMALL, align=align), rows, futures=4)["value"] for align in ("travel", "line"))
    np.testing.assert_array_equal(line[..., 0], travel[..., 0])
    np.testing.assert_array_equal(line[..., 1], travel[:, :, ::-1, 1])


@pytest.mark.parametrize("target", ["headway", "age"])
def test_without_noise_the_oracle_continues_the_line_by_its_rules(monkeypatch, target):
    """Against a plain loop over trains and stations."""
    changed = replace(SMALL, target=target)

    def calm(known, changed, columns, futures):
        shape = (max(c.trains for c in columns), 20 + 2 * headway_oracle.TRIES, len(columns), futures)
        return np.zeros(shape, np.float32), np.ones(shape, np.float32)

    # Long dwells, so that trains catch up with each other and must keep their distance.
    known = replace(world(SMALL.synthetic), slope=np.full(8, 0.4))
    monkeypatch.setattr(headway_oracle, "world", lambda _: known)
    monkeypatch.setattr(headway_oracle, "_noise", calm)
    start = 4 * 1440 + 200  # 07:20 on a Monday: the minutes up to 07:50 are the input
    value = oracle(changed, np.array([[start]]), futures=1)["value"][0]
    for direction in (0, 1):
        times = continued(known, 4, direction, now=240.0 + 200 + 30)
        for m in range(15):
            end = 240 + 200 + 30 + m + 1
            for s in range(8):
                passed = times[times[:, s] <= end, s]
                expected = passed[-1] - passed[-2] if target == "headway" else end - passed[-1]
                assert value[m, s, direction] == pytest.approx(min(expected, 30), abs=1e-3)


def continued(known, day: int, direction: int, now: float) -> np.ndarray:
    """(K, S) arrivals: what lies after now happens without noise, but not before now."""
    times, lateness = known.arrival[:, :, day, direction].copy(), known.lateness[:, day, direction].copy()
    plan = known.plan[:, day, direction]
    for k in range(1, int(np.isfinite(plan).sum())):
        for s in range(times.shape[1]):
            if times[k, s] <= now:
                continue
            if s == 0:
                lateness[k] = 0.7 * lateness[k - 1]
                ready = plan[k] + max(lateness[k], -0.5)
            else:
                gap = min(times[k, s - 1] - times[k - 1, s - 1], 20)
                ready = times[k, s - 1] + 0.4 + known.slope[s - 1] * gap + known.run[direction, s - 1]
            first = s == 0 or known.arrival[k, s - 1, day, direction] <= now
            times[k, s] = max(ready, times[k - 1, s] + 1.5, now + 1e-3 if first else 0)
    return times
