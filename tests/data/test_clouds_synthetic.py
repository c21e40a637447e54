"""The flight simulator against its checked figures, and its physics."""

import time

import numpy as np
import pytest
from clouds_problem import config

from jaxtrain.data import clouds
from jaxtrain.data import clouds_synthetic as simulator
from jaxtrain.data.clouds_config import SyntheticConfig


def labels(flight):
    return flight.height_km[np.isfinite(flight.height_km)].astype(np.float64)


def distance(a, b):
    """Two-sample Kolmogorov-Smirnov."""
    a, b = np.sort(a), np.sort(b)
    x = np.concatenate([a, b])
    return np.abs(np.searchsorted(a, x, "right") / len(a) - np.searchsorted(b, x, "right") / len(b)).max()


def check_figures(seeds, shared):
    real = np.loadtxt(shared / "data" / "cbh" / "cpl_cloud_base_km.csv", skiprows=1)
    for seed in seeds:
        flights = simulator.flights(SyntheticConfig(seed, 32, 48, 1.0, 0))
        assert [len(labels(flight)) for flight in flights] == [501, 163, 144, 101, 24]
        frames = sum(len(flight) for flight in flights)
        assert 7000 < frames < 8300 and 0.55 < 933 * 5 / frames < 0.68  # cover about 0.6
        pooled = np.concatenate([labels(flight) for flight in flights])
        assert abs(pooled.mean() - 0.830) <= 0.06 and abs(pooled.std() - 0.371) <= 0.05
        assert distance(pooled, real) <= 0.12
        lag1 = [np.corrcoef(y[1:], y[:-1])[0, 1] for y in map(labels, flights[:4])]
        assert 0.78 < np.mean(lag1) < 0.93 and 0.87 < lag1[0] < 0.96
        y = labels(flights[0])
        assert 0.45 < np.corrcoef(y[5:], y[:-5])[0, 1] < 0.8
        error = pooled - np.concatenate([f.oracle_km[np.isfinite(f.height_km)] for f in flights])
        assert abs(np.abs(error).mean() - 0.025) < 0.003 and abs(np.sqrt((error**2).mean()) - 0.031) < 0.003


def test_figures_of_one_seed(shared):
    check_figures([0], shared)


@pytest.mark.slow
def test_figures_of_ten_seeds(shared):
    check_figures(range(10), shared)


def test_labels_are_on_the_lidars_grid_and_leave_room_for_their_windows():
    for flight in simulator.flights(SyntheticConfig(3, 16, 24, 0.2, 0)):
        y = labels(flight)
        inner = y[(y > 0.12) & (y < 1.95)]
        np.testing.assert_allclose(inner / 0.03, np.round(inner / 0.03), atol=1e-4)
        assert y.min() >= 0.12 - 1e-6 and y.max() <= 1.95 + 1e-6
        known = np.flatnonzero(np.isfinite(flight.height_km))
        assert (known % 5 == 2).all() and known[-1] == len(flight) - 3


def test_a_flight_is_a_function_of_seed_and_number():
    same, again = (simulator.flights(SyntheticConfig(5, 16, 24, 0.1, 1)) for _ in range(2))
    other = simulator.flights(SyntheticConfig(6, 16, 24, 0.1, 0))
    for a, b in zip(same, again, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
    assert [flight.name for flight in same] == list("ABCDEF") and len(other) == 5
    assert same[0].frames.shape[1:] == (16, 24) and same[0].frames.dtype == np.float32
    assert not np.array_equal(same[0].frames[:4], other[0].frames[:4])


def test_frames_move_over_one_strip():
    """Frame m + 1 is frame m two rows on, up to the noise of 0.3 K per pixel and 0.1 K per frame."""
    frames = simulator.flights(SyntheticConfig(0, 16, 24, 0.1, 0))[1].frames
    moved = frames[1:20, :-2] - frames[:19, 2:]
    assert abs(moved.std() - np.sqrt(2 * (0.3**2 + 0.1**2))) < 0.03
    assert frames[:19].std() > 4 * moved.std()


def test_the_strips_heights_are_the_mixture_whatever_the_seed():
    parts = ((0.3, 0.5, 0.05), (0.7, 1.2, 0.1))
    for seed in range(3):
        base = simulator.strip_base(np.random.default_rng(seed), parts, 6000)
        assert abs(base.mean() - 0.99) < 0.005 and abs((base < 0.8).mean() - 0.3) < 0.02


def test_cells_widen_with_height():
    """Half the pattern's variance lies below a wave number that falls as the base rises."""
    def centre(height):
        rng = np.random.default_rng(1)
        cloud = simulator.thickness(rng, np.full(2048, height), 64)
        power = np.abs(np.fft.rfft(cloud - cloud.mean(0), axis=0)).mean(1)[1:] ** 2
        return np.searchsorted(np.cumsum(power), power.sum() / 2)

    assert centre(0.25) > 1.5 * centre(1.5)


def test_a_mirrored_strip_has_a_mirrored_sun():
    rng = np.random.default_rng(2)
    cloud = np.cumsum(rng.standard_normal((30, 20)), axis=0) / 10
    lit = simulator.sunlit(cloud, np.full((30, 1), 50.0), np.full((30, 1), 70.0))
    np.testing.assert_allclose(simulator.sunlit(cloud[:, ::-1], np.array(50.0), np.array(360 - 70.0)), lit[:, ::-1], atol=1e-12)
    np.testing.assert_allclose(simulator.sunlit(cloud[::-1], np.array(50.0), np.array(180 - 70.0)), lit[::-1], atol=1e-12)
    assert np.abs(simulator.sunlit(cloud[:, ::-1], np.array(50.0), np.array(70.0)) - lit[:, ::-1]).max() > 0.1


def test_a_slope_of_45_degrees_faces_a_sun_at_45_degrees():
    ramp = np.broadcast_to(0.1 * np.arange(12.0)[:, None], (12, 9))  # 0.1 km per pixel of 0.1 km, rising ahead
    for cloud, azimuth in ((ramp, 180.0), (ramp[:9].T, 270.0)):
        np.testing.assert_allclose(simulator.sunlit(cloud, np.array(45.0), np.array(azimuth)), 1, rtol=1e-12)
        np.testing.assert_allclose(simulator.sunlit(cloud, np.array(45.0), np.array(azimuth + 180)), 0, atol=1e-12)


@pytest.mark.slow
def test_the_default_loads_in_two_seconds():
    start = time.process_time()
    clouds.splits(config(size=(32, 48), factor=1.0, cycle_s=1200.0, gap_s=60.0))
    assert time.process_time() - start < 2
