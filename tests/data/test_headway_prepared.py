"""Prepared arrays: what a zero means, which rows belong to which service day, and travel times from lags."""

from dataclasses import replace

import numpy as np
import pytest
from headway_arrivals import days, tables, train
from headway_lines import config

from jaxtrain.data import headway
from jaxtrain.data import headway_prepared as prepared
from jaxtrain.data.headway_field import raster
from jaxtrain.errors import UserError


def arrays(folder, field, schedule=None, **changes):
    np.save(folder / "x.npy", field)
    if schedule is not None:
        np.save(folder / "y.npy", schedule)
        changes["schedule"] = str(folder / "y.npy")
    target = changes.pop("target", "headway")
    return config(path=str(folder / "x.npy"), target=target, inputs=(target,), **changes)


def test_a_long_run_of_zeros_is_unknown(tmp_path):
    column = np.array([0, 0, 5, 0, 0, 0, 0, 7, 0, 8, np.nan, 40, 0, 0, 0], np.float64)
    field = np.stack([column, np.full(15, 4.0)], axis=1)[:, None, :].repeat(2, axis=1)
    for run, expected in (
        (3, [0, 0, 5, *[np.nan] * 4, 7, 0, 8, np.nan, 30, *[np.nan] * 3]),
        (5, [0, 0, 5, 0, 0, 0, 0, 7, 0, 8, np.nan, 30, 0, 0, 0]),
        (1, [np.nan, np.nan, 5, *[np.nan] * 4, 7, np.nan, 8, np.nan, 30, *[np.nan] * 3]),
        (0, [0, 0, 5, 0, 0, 0, 0, 7, 0, 8, np.nan, 30, 0, 0, 0]),
    ):
        line = prepared.read(arrays(tmp_path, field, zero_run=run))
        np.testing.assert_array_equal(line.headway[:, 1, 0], np.array(expected, np.float32))
        assert (line.headway[:, :, 1] == 4).all() and np.isnan(line.age).all() and np.isnan(line.planned).all()


def test_the_old_last_axis_and_the_blocks_change_nothing(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    field, schedule = rng.uniform(1, 29, (300, 5, 2)), rng.uniform(1, 29, (300, 2))
    whole = prepared.read(arrays(tmp_path, field, schedule))
    monkeypatch.setattr(prepared, "BLOCK", 64)
    line = prepared.read(arrays(tmp_path, field.astype(np.float32)[..., None], schedule[..., None]))
    np.testing.assert_array_equal(line.headway, whole.headway)
    np.testing.assert_array_equal(line.planned, whole.planned)
    assert line.headway.dtype == np.float32 and line.planned.shape == (300, 2, 1)
    np.testing.assert_allclose(whole.planned[:, :, 0], schedule, rtol=1e-6)
    np.testing.assert_allclose(whole.headway[:, ::-1, 1], field[:, :, 1], rtol=1e-6)  # travel order
    np.testing.assert_allclose(prepared.read(arrays(tmp_path, field, align="line")).headway, field, rtol=1e-6)
    assert whole.stations.tolist() == [list("01234"), list("43210")]


def test_without_start_there_are_no_service_days(tmp_path):
    line = prepared.read(arrays(tmp_path, np.full((3000, 2, 2), 5.0)))
    assert len(line.service_dates) == 0 and not line.day.any() and (np.diff(line.time) == 60).all()


def test_start_gives_service_days(tmp_path):
    field = np.full((3 * 1440, 2, 2), 5.0)
    line = prepared.read(arrays(tmp_path, field, start="2025-10-25T01:00:00+01:00", timezone="Europe/Dublin", sunday_dates=("2025-10-24",)))
    assert line.service_dates.tolist() == ["2025-10-24", "2025-10-25", "2025-10-26", "2025-10-27"]
    assert np.bincount(line.day).tolist() == [180, 1500, 1440, 1200]  # the second has an hour more
    assert line.minute[[0, 180]].tolist() == [1440 - 180, 0]
    beyond = np.isnan(line.headway[:, 0, 0])
    assert beyond.sum() == 60 and (line.day[beyond] == 1).all() and line.minute.max() == 1439
    assert line.day_type[[0, 200, 2000, 4000]].tolist() == [2, 1, 2, 0]


def test_a_saved_raster_reads_as_it_was(tmp_path):
    rows = [r for day in days(2) for m in range(300, 1600, 7) for d in ("north", "south") for r in train(m, d, day)]
    changed, found = tables(tmp_path, rows, check_clock=False, align="line")
    expected = raster(replace(changed, align="travel"), found, days(2))
    for target in ("headway", "age"):
        field = np.nan_to_num(getattr(raster(changed, found, days(2)), target))
        line = prepared.read(arrays(tmp_path, field, start="2025-01-06T04:00Z", target=target))
        np.testing.assert_array_equal(getattr(line, target), getattr(expected, target))
        for name in ("time", "day", "day_type", "minute", "service_dates"):
            np.testing.assert_array_equal(getattr(line, name), getattr(expected, name))


@pytest.mark.parametrize("align", ["travel", "line"])
@pytest.mark.parametrize("target", ["headway", "age"])
def test_travel_times_come_from_lags(tmp_path, target, align):
    """Irregular trains on links of 2.4, 7 and 3.5 minutes."""
    rng = np.random.default_rng(0)
    link, entry = np.array([2.4, 7.0, 3.5]), np.cumsum(rng.uniform(4, 14, 600))
    place = np.concatenate([[0], np.cumsum(link)])
    end = np.arange(1, 5001)
    field = np.zeros((5000, 4, 2))
    for s in range(4):
        for d, offset in ((0, place[s]), (1, place[3] - place[s])):
            times = entry + offset
            last = np.searchsorted(times, end) - 1
            known = last >= 1
            value = end - times[last] if target == "age" else times[last] - times[last - 1]
            field[:, s, d] = np.where(known, value, 0)
    changed = arrays(tmp_path, field, target=target, align=align)
    training = np.arange(5000) < 4000
    links = prepared.link_minutes(changed, prepared.read(changed), training)
    np.testing.assert_allclose(links, [link, link[::-1]], atol=0.35)
    dead = field.copy()
    dead[:, 1] = 0
    links = prepared.link_minutes(changed, prepared.read(arrays(tmp_path, dead, target=target, align=align)), training)
    assert np.isnan(links[0, :2]).all() and np.isfinite(links[0, 2])


def test_a_schedule_in_another_time_zone_is_refused(tmp_path):
    minutes = np.arange(4 * 1440)
    plan = np.stack([10 + 5 * np.sin(2 * np.pi * minutes / 1440), 8 + 3 * np.cos(2 * np.pi * minutes / 1440)], axis=1)
    field = plan[:, None].repeat(3, axis=1) + np.random.default_rng(0).normal(0, 0.5, (len(minutes), 3, 2))
    found = headway.splits(arrays(tmp_path, field, plan))
    assert any("planned and observed headways correlate by" in note for note in found.notes)
    late = np.roll(plan, 300, axis=0)
    with pytest.raises(UserError, match=r"y\.npy: planned and observed headways of 0 trains fit best with the plan moved by -5 h"):
        headway.splits(arrays(tmp_path, field, late))
    assert not any("correlate" in note for note in headway.splits(arrays(tmp_path, field, late, check_clock=False)).notes)
