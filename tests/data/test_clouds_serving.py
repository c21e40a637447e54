"""What a finished run reads: prepared files and images, with and without labels."""

import functools
import warnings
from dataclasses import replace

import numpy as np
import pytest
from clouds_problem import Triple, config, entry, prepared, write_prepared

from jaxtrain.data import clouds, clouds_serving
from jaxtrain.data import clouds_references as reference
from jaxtrain.data.clouds_config import FlightConfig
from jaxtrain.errors import UserError

SIZE = (10, 12)


@functools.cache
def run():
    """(config, statistics) of a run on frames of 10 x 12 pixels."""
    c = config(size=SIZE)
    return c, clouds.splits(c).statistics


@pytest.fixture
def file(tmp_path):
    return write_prepared(tmp_path / "new.h5", prepared())


def test_every_frame_with_a_whole_window(file):
    found = clouds.inputs(*run(), file)
    np.testing.assert_array_equal(found.index[:, 0], np.arange(2, 58))
    assert (found.index[:, 1] == 2).all() and (found.index[:, 2] == 4).all() and found.index.dtype == np.int32
    batch = found.gather(found.arrays, found.index)
    assert batch["frames"].shape == (56, 5, *SIZE) and np.isfinite(batch["height_km"]).sum() == 12
    np.testing.assert_array_equal(batch["frames"][3], prepared()["frames"][3:8])
    np.testing.assert_array_equal(clouds.times(found), prepared()["time"][2:58])
    assert clouds.inputs(*run(), file, every=10).index[:, 0].tolist() == [10, 20, 30, 40, 50]


def test_labelled_windows_have_references(file):
    c, statistics = run()
    found = clouds.labelled(c, statistics, file)
    assert found.index[:, 0].tolist() == list(range(2, 58, 5))
    batch = found.gather(found.arrays, found.index)
    base = prepared()["cloud_base_km"][2::5]
    np.testing.assert_array_equal(batch["height_km"], base)
    near, last, ridge, boost, oracle = batch["reference_km"].T
    assert np.isnan(boost).all() and np.isnan(oracle).all()
    np.testing.assert_allclose(near, statistics["height_mean"], rtol=1e-6)
    np.testing.assert_allclose(last, [statistics["height_mean"], *base[:-1]], rtol=1e-6)
    features = reference.window_statistics(c, found.arrays, found.index[:, 0])
    np.testing.assert_allclose(ridge, reference.predict_ridge(statistics, features), rtol=1e-5)


def test_the_first_labels_calibrate(file):
    c, statistics = run()
    found = clouds.inputs(c, statistics, file, every=6, calibrate=3)
    assert found.index[found.index[:, 2] == 5, 0].tolist() == [2, 7, 12]
    gap = found.index[found.index[:, 2] == 6, 0]
    assert gap.tolist() == [6, 18, 24, 30, 36]  # less than gap_s 30 after frame 12
    assert found.index[found.index[:, 2] == 4, 0].tolist() == [42, 48, 54]
    labelled = clouds.labelled(c, statistics, file, calibrate=3)
    assert np.bincount(labelled.index[:, 2]).tolist() == [0, 0, 0, 0, 4, 3, 5]


def test_a_file_without_labels(tmp_path):
    path = write_prepared(tmp_path / "x.npz", prepared(mask=np.zeros(60, bool)))
    found = clouds.inputs(*run(), path)
    assert np.isnan(found.arrays["height_km"]).all() and len(found) == 56
    with pytest.raises(UserError, match="no frame has a label"):
        clouds.labelled(*run(), path)


def test_images_with_navigation(tmp_path):
    triple = Triple("P").write(tmp_path)
    paths = {kind: str(tmp_path / getattr(entry("P"), kind)) for kind in ("images", "lidar", "nav")}
    c, statistics = run()
    c, statistics = replace(c, rows=(0, 20), reduce=2), {**statistics, "flight_pixel_mean": np.array([1000.0, 1010, np.nan, np.nan, 990])}
    statistics["flight_pixel_std"] = np.array([24.0, 26, np.nan, np.nan, 25])
    found = clouds.inputs(c, statistics, paths["images"], nav=paths["nav"], every=7)
    assert found.index[:, 0].shape == (21,) and np.isnan(found.arrays["height_km"]).all()
    expected = triple.images["Product/Signal"][5:10].astype(np.float32).reshape(5, 10, 2, 12, 2).mean((2, 4))
    np.testing.assert_allclose(found.gather(found.arrays, found.index[:1])["frames"][0], expected, rtol=1e-6)
    assert clouds.times(found)[0] == triple.images["Time/TimeUTC"][7]
    labelled = clouds.labelled(c, statistics, paths["images"], nav=paths["nav"], lidar=paths["lidar"])
    np.testing.assert_array_equal(labelled.gather(labelled.arrays, labelled.index)["height_km"], triple.base[:, 0])
    with pytest.raises(UserError, match="data.angles='both'.*nav=FILE"):
        clouds.inputs(c, statistics, paths["images"])
    blind = clouds.inputs(replace(c, angles="none"), statistics, paths["images"])
    assert len(blind) == 146 and (blind.arrays["sun"] == 0).all()


def test_a_new_flight_is_read_as_the_runs_flights(tmp_path):
    triple = Triple("P")
    triple.nav["nav/clock"] = triple.nav.pop("nav/time")
    triple.nav["nav/track"] = np.full(len(triple.nav["nav/clock"]), 350.0)
    triple.write(tmp_path)
    flights = (FlightConfig("S", file="s.h5"), entry("Q", nav_time="nav/clock", nav_heading="nav/track"))
    images, nav = (str(tmp_path / getattr(entry("P"), kind)) for kind in ("images", "nav"))
    found = clouds_serving.read(replace(run()[0], flights=flights), images, nav, "")
    np.testing.assert_allclose(found.saa, np.mod(200 + 0.02 * np.arange(150) - 350, 360), atol=0.01)
    (tmp_path / entry("P").lidar).rename(tmp_path / "layers.hdf5")
    with pytest.raises(UserError, match="or year to the flight"):
        clouds_serving.read(replace(run()[0], flights=(replace(flights[1], year=2024),)), images, nav, str(tmp_path / "layers.hdf5"))
    own = replace(flights[1], images=f"folder/{entry('P').images}", year=2025)
    found = clouds_serving.read(replace(run()[0], flights=(own,)), images, nav, str(tmp_path / "layers.hdf5"))
    assert np.isfinite(found.height_km).sum() == 30


def test_the_azimuth_counts_from_where_it_did_in_training(tmp_path):
    c, statistics = run()
    with_heading = write_prepared(tmp_path / "heading.h5", prepared(heading=np.full(60, 350, np.float32)))
    without = write_prepared(tmp_path / "none.h5", prepared())
    for known, expected in ((False, 200), (True, 210)):
        found = clouds.inputs(c, {**statistics, "heading_known": np.array(known)}, with_heading)
        np.testing.assert_allclose(found.arrays["saa"], expected, rtol=1e-5)
    with pytest.raises(UserError, match="has no heading, but the run's azimuth counts from the heading"):
        clouds.inputs(c, {**statistics, "heading_known": np.array(True)}, without)
    zenith = replace(c, angles="sza_only")
    assert len(clouds.inputs(zenith, {**statistics, "heading_known": np.array(True)}, without).index) == 56


def test_prepared_frames_are_taken_as_they_are_and_it_is_said():
    c = replace(run()[0], path="folder", flights=(FlightConfig("A", file="a.h5"), entry("P")))
    assert clouds._prepared_notes(c) == ()
    assert clouds._prepared_notes(replace(c, reduce=2))[0].startswith("flight A: prepared, so data.rows and data.reduce change nothing")


def test_a_flight_of_the_run_is_no_test(file):
    c, statistics = run()
    flights = (FlightConfig("A", file="new.h5"), FlightConfig("C", file="other.h5"))
    with pytest.warns(UserWarning, match="is flight A of the run, which it knows"):
        clouds.labelled(replace(c, flights=flights), statistics, file)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clouds.labelled(replace(c, flights=(replace(flights[0], name="C"),)), statistics, file)
    assert not any("of the run" in str(w.message) for w in caught)


def test_prepared_azimuths_outside_the_circle_are_turned(tmp_path):
    path = write_prepared(tmp_path / "x.npz", prepared(saa=np.full(60, -90, np.float32)))
    assert (clouds.inputs(*run(), path).arrays["saa"] == 270).all()
    flight = clouds_serving.read(run()[0], path, "", "")
    assert flight.notes == ("flight x: 60 azimuths outside 0..360 were turned into it",)


def test_a_flight_unlike_the_training_flights_is_said(tmp_path, file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clouds.inputs(*run(), file)
    path = write_prepared(tmp_path / "hot.h5", prepared(frames=prepared()["frames"] + 200))
    with pytest.warns(UserWarning, match="hot: pixel mean (480|479).* is far from the training flights'"):
        clouds.inputs(*run(), path)


@pytest.mark.parametrize(
    "changes, options, says",
    [
        ({"frames": prepared()["frames"][:, :, :9]}, {}, "10 x 9 pixels.*trained on 10 x 12"),
        ({key: values[:4] for key, values in prepared().items()}, {}, "4 frames, but a window needs 5"),
        ({"time": 1.7e9 + np.cumsum(np.where(np.arange(60) % 4, 1.0, 3.0))}, {}, "no whole window of 5 frames \\(.*cross a gap"),
        ({"sza": np.full(60, np.nan, np.float32)}, {}, "100% of the frames have no solar zenith"),
        ({}, {"every": 0}, "option every: 0"),
        ({}, {"calibrate": 13}, "calibrate=13, but 12 windows have a label"),
        ({}, {"calibrate": -1}, "option calibrate: -1"),
        ({}, {"nav": "x.hdf"}, "leave out nav and lidar"),
    ],
)
def test_faults(tmp_path, changes, options, says):
    path = write_prepared(tmp_path / "x.h5", prepared(**changes))
    with pytest.raises(UserError, match=says):
        clouds.inputs(*run(), path, **options)
