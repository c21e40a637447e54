"""HDF5 triples: what is joined to what, and which profiles become labels."""

import warnings
from dataclasses import replace
from datetime import UTC, datetime

import h5py
import numpy as np
import pytest
from clouds_problem import DAY_S, Triple, config, entry, on_files, write_flights

from jaxtrain.data import clouds, clouds_frames, clouds_lidar, clouds_nav
from jaxtrain.data.clouds_files import read_triple


@pytest.fixture
def triple():
    return Triple("P")


def read(folder, triple, **changes):
    triple.write(folder)
    return read_triple(replace(config().reading, folder=str(folder), **changes), entry(triple.name))


def test_julian_day():
    """2025, day 44.5 = 13 February, 12:00 UTC."""
    found = clouds_lidar.profile_times(np.array([44.5]), 2025, "x")
    assert found[0] == datetime(2025, 2, 13, 12, tzinfo=UTC).timestamp()
    assert clouds_lidar.profile_times(np.array([1.0]), 2024, "x")[0] == datetime(2024, 1, 1, tzinfo=UTC).timestamp()
    fine = clouds_lidar.profile_times(np.array([44.0, 44 + 0.25 / DAY_S]), 2025, "x")
    assert np.diff(fine)[0] == pytest.approx(0.25, abs=1e-5)  # not rounded to seconds


def test_a_midnight_that_the_day_missed():
    day = np.array([44.99, 44.9999, 44.0001, 44.01])
    found = clouds_lidar.profile_times(day, 2025, "x")
    np.testing.assert_allclose((found - found[0]) / DAY_S, [0, 0.0099, 0.0101, 0.02], atol=1e-9)
    counted = clouds_lidar.profile_times(np.array([44.99, 45.01]), 2025, "x")
    assert counted[1] - counted[0] == pytest.approx(0.02 * DAY_S)


def test_new_years_eve():
    for year, length in ((2025, 365), (2024, 366)):
        eve = datetime(year, 12, 31, 23, 59, tzinfo=UTC).timestamp()
        expected = eve + 60 * np.arange(3)
        fraction = np.array([1 - 60 / DAY_S, 0.0, 60 / DAY_S])
        for after in (1, length + 1):  # the day starts anew, or goes on
            day = np.array([length, after, after]) + fraction
            np.testing.assert_allclose(clouds_lidar.profile_times(day, year, "file"), expected, atol=1e-5)


def test_the_year_comes_from_the_files_own_name():
    assert clouds_lidar.file_year("data/2019_01jan19/CPL_L2_25904_12feb25.hdf5", 2011) == 2025
    assert clouds_lidar.file_year("CPL_L2_30Oct24.hdf5", None) == 2024
    assert clouds_lidar.file_year("data/12feb25/layers.hdf5", 2023) == 2023


def test_labels_meet_their_frames(tmp_path, triple):
    flight = read(tmp_path, triple)
    labelled = np.flatnonzero(np.isfinite(flight.height_km))
    np.testing.assert_array_equal(labelled, np.arange(2, 150, 5))
    np.testing.assert_array_equal(flight.height_km[labelled], triple.base[:, 0])
    assert flight.funnel == (("profiles", 30), ("ocean", 30), ("finite", 30), ("in range", 30), ("matched", 30))
    np.testing.assert_array_equal(flight.frames[np.array([3, 4, 9])], triple.images["Product/Signal"][[3, 4, 9]])
    assert flight.frames.dtype == np.uint16 and flight.step_s == 1 and flight.heading is None


def test_the_funnel_counts_what_every_filter_takes(tmp_path, triple):
    lidar = triple.lidar
    lidar["layer_descriptor/Lidar_Surface_Altitude"][[0, 1]] = [950, -901]
    lidar["layer_descriptor/DEM_Surface_Altitude"][2] = 3
    triple.base[3, 0], triple.base[4, 0], triple.base[5, 0] = -9999, np.nan, 2.5
    triple.base[6, 0] = 0.05
    triple.day[7] += 0.7 / DAY_S  # too far from the frame before, near the next
    triple.day[8, 0] = triple.day[9, 0] + 0.05 / DAY_S  # a second profile of a frame, farther away
    flight = read(tmp_path, triple)
    assert flight.funnel == (("profiles", 30), ("ocean", 27), ("finite", 25), ("in range", 23), ("matched", 22))
    assert flight.height_km[38] == triple.base[7, 0] and np.isnan(flight.height_km[37])
    assert np.isnan(flight.height_km[42]) and flight.height_km[47] == triple.base[9, 0]
    wide = read(tmp_path, triple, base_km=(0.01, 3.0))
    assert dict(wide.funnel)["in range"] == 25
    strict = read(tmp_path, triple, match_s=0.15)
    assert dict(strict.funnel)["matched"] == 21


def test_crop_and_block_mean(tmp_path, triple):
    signal = triple.images["Product/Signal"]
    flight = read(tmp_path, triple, rows=(3, 20), reduce=2)
    assert flight.frames.shape == (150, 8, 12) and flight.frames.dtype == np.float32
    expected = signal[7, 3:19].astype(np.float32).reshape(8, 2, 12, 2).mean((1, 3))
    np.testing.assert_allclose(flight.frames[np.array([7])][0], expected, rtol=1e-6)
    triple.images["Product/Signal"] = signal.astype(np.float64)
    assert read(tmp_path, triple).frames.dtype == np.float32


def test_angles_are_joined_by_time_through_gaps_and_north(tmp_path, triple):
    moments = triple.nav["nav/time"]
    triple.nav["nav/sunAzGrd"] = np.mod(359.0 + 0.02 * np.arange(len(moments)), 360)  # turns through north
    hole = (moments > triple.start + 20) & (moments < triple.start + 24)
    triple.nav = {key: values[~hole] for key, values in triple.nav.items()}
    flight = read(tmp_path, triple)
    lost = np.isnan(flight.sza)
    assert lost.sum() in (4, 5) and lost[20:25].sum() == lost.sum() and (np.isnan(flight.saa) == lost).all()
    seconds = np.arange(150)
    np.testing.assert_allclose(flight.sza[~lost], (40 + 0.01 * seconds)[~lost], atol=1e-4)
    turned = np.mod(359.0 + 0.02 * (seconds + 3.75), 360)
    away = np.mod(flight.saa - turned + 180, 360) - 180
    assert np.abs(away[~lost]).max() < 1e-3
    assert np.isfinite(read(tmp_path, triple, nav_gap_s=6.0).sza).all()


def test_seconds_of_the_day_and_a_clock_offset(tmp_path, triple):
    expected = read(tmp_path, triple).sza
    triple.nav["nav/timeUTC"] = np.mod(triple.nav.pop("nav/time"), DAY_S)
    np.testing.assert_allclose(read(tmp_path, triple).sza, expected, atol=1e-4)
    triple.nav["nav/timeUTC"] = triple.nav["nav/timeUTC"] + 2.5  # the camera is 2.5 s ahead
    np.testing.assert_allclose(read(tmp_path, triple).sza[5:140], expected[5:140] - 0.025, atol=1e-4)


def test_seconds_of_the_day_pass_midnight():
    frames = np.arange(3)
    found = clouds_nav.epoch(np.array([86_398.0, 86_399, 1, 2]), 20 * DAY_S + 86_398.5 + frames)
    assert (found - 20 * DAY_S).tolist() == [86_398, 86_399, 86_401, 86_402]
    # The camera was switched on after midnight, the navigation before.
    for after in (86_401.0, 1.0):
        assert (clouds_nav.epoch(np.array([86_399.0, after]), 20 * DAY_S + 0.5 + frames) - 20 * DAY_S).tolist() == [-1, 1]


def test_a_named_time_and_a_heading(tmp_path, triple):
    expected = read(tmp_path, triple)
    triple.nav["other/clock"] = triple.nav.pop("nav/time")
    triple.nav["nav/track"] = np.full(len(triple.nav["other/clock"]), 350.0)
    triple.nav["nav/IWG_lat"], triple.nav["nav/IWG_lon"] = np.full((2, len(triple.nav["other/clock"])), 12.5)
    triple.write(tmp_path)
    named = entry("P", nav_time="other/clock", nav_heading="nav/track")
    flight = read_triple(replace(config().reading, folder=str(tmp_path)), named)
    np.testing.assert_allclose(flight.saa, np.mod(expected.saa - 350, 360), atol=1e-3)  # the image turns with the aircraft
    np.testing.assert_allclose(flight.heading, 350, atol=1e-3)
    assert (flight.lat == 12.5).all() and (flight.lon == 12.5).all()


def test_without_a_time_rows_are_frames_and_it_is_said(tmp_path, triple):
    moments = triple.nav.pop("nav/time")
    triple.nav = {key: values[: len(triple.images["Time/TimeUTC"])] for key, values in triple.nav.items()}
    flight = read(tmp_path, triple)
    np.testing.assert_allclose(flight.sza, 40 + 0.01 * (moments[:150] - triple.start), atol=1e-4)
    assert any("joined by row" in note for note in flight.notes)


def test_azimuths_outside_the_circle_are_counted(tmp_path, triple):
    triple.nav["nav/sunAzGrd"] = triple.nav["nav/sunAzGrd"] - 360
    flight = read(tmp_path, triple)
    assert 200 <= flight.saa.min() and any("azimuths outside 0..360" in note for note in flight.notes)


def test_flights_of_files_train(tmp_path):
    triples = write_flights(tmp_path)
    splits = clouds.splits(on_files(tmp_path))
    assert [len(s.index) for s in (splits.train, splits.valid, splits.test)] == [30, 30, 30]
    batch = splits.train.gather(splits.train.arrays, splits.train.index[:2])
    np.testing.assert_array_equal(batch["frames"], triples["P"].images["Product/Signal"][:10].reshape(2, 5, 20, 24).astype(np.float32))
    assert batch["frames"].dtype == np.float32 and splits.train.arrays["frames"].dtype == np.uint16
    assert np.isnan(batch["reference_km"][:, 4]).all()
    assert "flight P: 30 profiles -> 30 ocean -> 30 finite -> 30 in range -> 30 matched -> 30 whole windows" in splits.notes
    assert clouds.flight_names(on_files(tmp_path))["Q"] == pytest.approx(triples["Q"].base[:, 0].std(), rel=1e-5)


def test_the_azimuth_counts_from_the_same_direction_in_all_flights(tmp_path):
    triples = write_flights(tmp_path)
    triples["P"].nav["nav/track"] = np.full(len(triples["P"].nav["nav/time"]), 350.0)
    triples["P"].write(tmp_path)
    flights = (entry("P", nav_heading="nav/track"), entry("Q"), entry("R"))
    mixed = clouds.splits(on_files(tmp_path, flights=flights))
    plain = clouds.splits(on_files(tmp_path))
    np.testing.assert_allclose(mixed.train.arrays["saa"], plain.train.arrays["saa"], atol=1e-3)
    assert "heading" not in mixed.train.arrays
    assert any(note.startswith("no heading in flight Q, R: the azimuth counts from north") for note in mixed.notes)
    assert not any("heading" in note for note in plain.notes)


def test_the_label_before_need_not_have_a_window(tmp_path):
    """The first label lies on frame 0, in no whole window; the lidar on board has seen it all the same."""
    triples = write_flights(tmp_path)
    test = triples["R"]
    key = "layer_descriptor/Profile_Decimal_Julian_Day"
    test.lidar[key] = test.lidar[key] - 2 / DAY_S
    test.write(tmp_path)
    splits = clouds.splits(on_files(tmp_path))
    batch = splits.test.gather(splits.test.arrays, splits.test.index[:2])
    np.testing.assert_allclose(batch["reference_km"][:, 1], test.base[:2, 0], rtol=1e-6)
    np.testing.assert_allclose(batch["height_km"], test.base[1:3, 0], rtol=1e-6)


def test_only_the_frames_of_windows_are_read(tmp_path):
    write_flights(tmp_path)
    kept = clouds.splits(on_files(tmp_path, temporal_frames=3))
    assert kept.train.arrays["frames"].shape[0] == 3 * 30 * 3
    batch = kept.test.gather(kept.test.arrays, kept.test.index)
    whole = Triple("R").images["Product/Signal"]
    np.testing.assert_array_equal(batch["frames"], np.stack([whole[c - 1 : c + 2] for c in range(2, 150, 5)]).astype(np.float32))


def test_flawed_pixels(tmp_path):
    triples = write_flights(tmp_path)
    signal = triples["P"].images["Product/Signal"].astype(np.float32)
    signal[7, 0, :20] = np.nan  # 20 of 480: repaired
    signal[30, :2] = np.inf  # 48 of 480: its window is dropped
    signal[61:64] = 1000  # constant
    triples["P"].images["Product/Signal"] = signal
    triples["P"].write(tmp_path)
    splits = clouds.splits(on_files(tmp_path))
    assert len(splits.train) == 29 and any("1 hold a bad frame" in note for note in splits.notes)
    assert any("flight P: 3 of 150 frames are constant" in note for note in splits.notes)
    assert any("flight P: 1 frames with up to 5% non-finite pixels" in note for note in splits.notes)
    row = splits.train.index[1]
    frame = splits.train.gather(splits.train.arrays, row[None])["frames"][0, 2]
    assert np.isfinite(frame).all() and (frame[0, :20] == np.float32(np.median(signal[7][np.isfinite(signal[7])]))).all()
    np.testing.assert_array_equal(frame[1:], signal[7, 1:])


def test_saturated_pixels_are_said(tmp_path):
    triples = write_flights(tmp_path)
    triples["Q"].images["Product/Signal"][:, :2] = 65_535
    triples["Q"].write(tmp_path)
    assert any("flight Q: 10.0% of the pixels are saturated" in note for note in clouds.splits(on_files(tmp_path)).notes)


def test_chunked_and_compressed_images_are_read(tmp_path):
    triple = write_flights(tmp_path)["P"]
    with h5py.File(tmp_path / entry("P").images, "w") as out:
        out.create_dataset("Product/Signal", data=triple.images["Product/Signal"], chunks=(7, 20, 24), compression="gzip")
        out["Time/TimeUTC"] = triple.images["Time/TimeUTC"][:, None]
    splits = clouds.splits(on_files(tmp_path))
    np.testing.assert_array_equal(splits.train.arrays["frames"][:150], triple.images["Product/Signal"])


def test_nothing_is_said_where_nothing_is_wrong(tmp_path):
    write_flights(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notes = clouds.splits(on_files(tmp_path)).notes
    assert all(note.startswith("flight") and ("windows" in note) for note in notes), notes


def test_blocks_change_nothing(tmp_path, monkeypatch):
    triples = write_flights(tmp_path)
    signal = triples["P"].images["Product/Signal"].astype(np.float32)
    signal[7, 0, :20], signal[40:43] = np.nan, 1000
    signal[:6, 10:], signal[90, :4] = 3000, 5000  # many of the largest values yet, then few of a larger one
    triples["P"].images["Product/Signal"] = signal
    triples["P"].write(tmp_path)
    whole = clouds.splits(on_files(tmp_path, reduce=2))
    monkeypatch.setattr(clouds_frames, "BLOCK_BYTES", 4 * 7 * 120)  # seven frames
    cut = clouds.splits(on_files(tmp_path, reduce=2))
    assert cut.notes == whole.notes and not any("saturated" in note for note in whole.notes)
    for name, values in whole.train.arrays.items():
        np.testing.assert_array_equal(cut.train.arrays[name], values)
    for name, values in whole.statistics.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(cut.statistics[name], values, rtol=1e-9, err_msg=name)
