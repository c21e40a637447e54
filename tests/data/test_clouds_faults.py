"""Bad input is one line that names the file, the place, what was found and what to do."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from clouds_problem import DATES, Triple, config, entry, on_files, prepared, write_flights, write_prepared

from jaxtrain.data import clouds
from jaxtrain.data.clouds_config import FlightConfig
from jaxtrain.data.clouds_hdf5 import opened
from jaxtrain.errors import UserError

DAY, BASE = "layer_descriptor/Profile_Decimal_Julian_Day", "layer_descriptor/Layer_Base_Altitude"
IMAGES, LIDAR, NAV = (getattr(entry("P"), kind) for kind in ("images", "lidar", "nav"))


def fault(run):
    with pytest.raises(UserError) as caught:
        run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def says(text, *parts):
    for part in parts:
        assert part in text, text


@pytest.fixture
def folder(tmp_path):
    write_flights(tmp_path)
    return tmp_path


def broken(folder, change, **changes):
    """What is said about the three flights after `change` of the first one's files."""
    triple = Triple("P")
    change(triple)
    triple.write(folder)
    return fault(lambda: clouds.splits(on_files(folder, **changes)))


def test_entries(folder):
    for flights, parts in (
        ((entry("P"), entry("Q", lidar="", nav="")), ("flights[1]", "'Q' lacks lidar, nav")),
        ((entry("P"), entry("Q"), entry("P")), ("flights[2]", "'P' was used by entry 0")),
        ((entry("P", file="p.h5"),), ("flights[0]", "prepared file and images, lidar, nav")),
        ((FlightConfig("", file="p.h5"),), ("flights[0]: no name",)),
        ((), ("config.data.flights: empty", "data.path")),
    ):
        says(fault(lambda given=flights: clouds.splits(on_files(folder, flights=given))), *parts)
    says(fault(lambda: clouds.splits(config(flights=(entry("P"),)))), "data.path is unset")


@pytest.mark.parametrize("name", [IMAGES, LIDAR, NAV])
def test_files_that_cannot_be_read(folder, name):
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    says(fault(lambda: clouds.splits(on_files(folder))), str(path), f"{len(whole) // 2:,} bytes", "truncated")
    path.write_bytes(b"no file of numbers" * 10)
    says(fault(lambda: clouds.splits(on_files(folder))), str(path), "180 bytes", "not a readable HDF5 file")
    path.unlink()
    says(fault(lambda: clouds.splits(on_files(folder))), str(path), "not found")


def test_damaged_data_inside_a_readable_file(folder):
    triple = Triple("P")
    path = folder / IMAGES
    with h5py.File(path, "w") as out:
        out.create_dataset("Product/Signal", data=triple.images["Product/Signal"], chunks=(10, 20, 24), compression="gzip")
        out["Time/TimeUTC"] = triple.images["Time/TimeUTC"]
        offset = out["Product/Signal"].id.get_chunk_info(3).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes(40)
    path.write_bytes(content)
    says(fault(lambda: clouds.splits(on_files(folder))), str(path), "bytes, not a readable HDF5 file")


@pytest.mark.parametrize(
    "part, key, parts",
    [
        ("images", "Product/Signal", (IMAGES, "Product/Signal: not there", "Time")),
        ("images", "Time/TimeUTC", (IMAGES, "Time/TimeUTC: not there")),
        ("lidar", BASE, (LIDAR, BASE, "/layer_descriptor holds DEM_Surface_Altitude, Lidar_Surface_Altitude, Profile_Decimal_Julian_Day")),
        ("nav", "nav/sunAzGrd", (NAV, "nav/sunAzGrd: not there", "solarZenith, time")),
    ],
)
def test_keys_that_are_not_there(folder, part, key, parts):
    says(broken(folder, lambda t: getattr(t, part).pop(key)), *parts)


def set_in(part, key, values):
    return lambda triple: getattr(triple, part).__setitem__(key, values(triple))


def test_wrong_shapes_and_types(folder):
    signal = lambda t: t.images["Product/Signal"]  # noqa: E731
    says(broken(folder, set_in("images", "Product/Signal", lambda t: signal(t)[0])), IMAGES, "expected (frames, rows, columns)", "(20, 24)")
    says(broken(folder, set_in("images", "Product/Signal", lambda t: signal(t).astype("S4"))), IMAGES, "not numbers")
    says(broken(folder, set_in("images", "Product/Signal", lambda t: signal(t)[:0])), IMAGES, "holds no frame")
    says(broken(folder, lambda t: None, rows=(0, 21)), IMAGES, "(150, 20, 24)", "(0, 21)", "set data.rows or reduce")
    says(broken(folder, lambda t: None, reduce=3), IMAGES, "6 x 8", "set data.rows or reduce")
    says(broken(folder, set_in("images", "Product/Signal", lambda t: signal(t)[:, :18])), "P 18 x 24, Q 20 x 24", "set data.rows or reduce")
    says(broken(folder, set_in("lidar", BASE, lambda t: t.base[:-1])), LIDAR, BASE, "29 profiles", "30")
    says(broken(folder, set_in("nav", "nav/solarZenith", lambda t: t.nav["nav/solarZenith"][1:])), NAV, "rows")


@pytest.mark.parametrize(
    "row, value, parts",
    [(7, None, ("[7] is", "after", "must increase")), (9, np.nan, ("[9] is nan",)), (-1, "cut", ("(149,) times for 150",))],
)
def test_frame_times(folder, row, value, parts):
    def change(triple):
        time = triple.images["Time/TimeUTC"]
        if value == "cut":
            triple.images["Time/TimeUTC"] = time[:-1]
        else:
            time[row] = time[row - 1] if value is None else value

    says(broken(folder, change), IMAGES, "Time/TimeUTC", *parts)


@pytest.mark.parametrize("part, key", [("images", "Time/TimeUTC"), ("nav", "nav/time")])
def test_times_that_are_no_seconds(folder, part, key):
    file = IMAGES if part == "images" else NAV
    says(broken(folder, set_in(part, key, lambda t: getattr(t, part)[key].astype(np.float32))), file, key, "float32", "128 s", "float64")
    says(broken(folder, set_in(part, key, lambda t: getattr(t, part)[key] * 1000)), file, key, "divide milliseconds by 1000")


def test_what_may_not_be_read_is_about_permissions(folder):
    def read():
        with opened(str(folder / NAV)):
            raise PermissionError(13, "Permission denied")

    says(fault(read), NAV, "permission denied", "change its permissions")


def test_a_group_is_no_dataset(folder):
    def change(triple):
        triple.nav["nav/sunAzGrd/values"] = triple.nav.pop("nav/sunAzGrd")

    says(broken(folder, change), NAV, "nav/sunAzGrd: is a group that holds values")


def test_a_folder_is_no_file(folder):
    (folder / NAV).unlink()
    (folder / NAV).mkdir()
    says(fault(lambda: clouds.splits(on_files(folder))), NAV, "is a folder")


def test_nothing_to_draw_more_often(folder):
    unlabelled = prepared(frames=np.ones((60, 20, 24), np.float32) * np.arange(24, dtype=np.float32), mask=np.zeros(60, bool))
    write_prepared(folder / "s.h5", unlabelled)
    flights = (*(entry(name) for name in DATES), FlightConfig("S", file="s.h5"))
    config = on_files(folder, flights=flights, overweight_flight="S", overweight_factor=2.0)
    says(fault(lambda: clouds.splits(config)), "overweight_flight: S has no training window")


def test_julian_days(folder):
    says(broken(folder, set_in("lidar", DAY, lambda t: t.day.astype(np.float32))), LIDAR, "float32", "2.6 s", "store float64")
    for row, value in ((3, 0.5), (4, 367.0), (5, np.nan)):
        says(broken(folder, lambda t, r=row, v=value: t.day.__setitem__((r, 0), v)), LIDAR, f"row {row} is {value:g}", "1..365")
    (folder / LIDAR).rename(folder / "layers.hdf5")
    flights = (entry("P", lidar="layers.hdf5"), entry("Q"), entry("R"))
    text = fault(lambda: clouds.splits(on_files(folder, flights=flights)))
    says(text, "layers.hdf5", "or year to the flight")
    Triple("P").write(folder)
    (folder / LIDAR).rename(folder / "layers.hdf5")
    with_year = (replace(flights[0], year=2025), *flights[1:])
    assert len(clouds.splits(on_files(folder, flights=with_year)).train) == 30


def test_files_of_different_times(folder):
    flights = (entry("P", lidar=entry("Q").lidar), entry("Q"), entry("R"))
    text = fault(lambda: clouds.splits(on_files(folder, flights=flights)))
    says(text, entry("Q").lidar, "2025-02-18T18:00:02Z", "2025-02-12T18:00:00Z", "+6.00 days apart")
    flights = (entry("P", nav=entry("R").nav), entry("Q"), entry("R"))
    text = fault(lambda: clouds.splits(on_files(folder, flights=flights)))
    says(text, entry("R").nav, "2024-10-30T", "2025-02-12T", "-105.00 days apart", "name nav_time")
    says(broken(folder, set_in("nav", "nav/time", lambda t: t.nav["nav/time"] + 3600)), NAV, "+1.00 hours apart; a clock offset")


def test_too_few_labels(folder):
    text = broken(folder, lambda t: t.day.__setitem__(slice(None), t.day + 130 / 86_400))
    says(text, LIDAR, "fewer than 10 labels", "30 profiles -> 30 ocean -> 30 finite -> 30 in range -> 4 matched")
    says(text, "median distance to a frame", "clock offset? data.match_s (0.5)")
    text = broken(folder, lambda t: t.base.__setitem__(slice(None), -9999))
    says(text, "0 finite", "median distance to a frame unknown", "fill values in")
    says(broken(folder, lambda t: t.base.__setitem__(slice(None), 3)), "0 in range", "data.base_km (0.1, 2)?")
    ground = "layer_descriptor/DEM_Surface_Altitude"
    says(broken(folder, set_in("lidar", ground, lambda t: t.lidar[ground] + 5)), "0 ocean", "over land")


def test_metres(folder):
    text = broken(folder, set_in("lidar", BASE, lambda t: np.where(t.base > 0, t.base * 1000, t.base)))
    says(text, LIDAR, "the median is", "expected km")


def test_navigation(folder):
    says(broken(folder, lambda t: t.nav.pop("nav/time")), NAV, "157 rows for 150 frames", "name nav_time")
    says(broken(folder, lambda t: t.nav["nav/solarZenith"].__setitem__(5, -9999)), NAV, "zenith [5] is -9999")
    says(broken(folder, lambda t: t.nav["nav/sunAzGrd"].__setitem__(6, 721)), NAV, "azimuth [6] is 721", "-360..720")
    says(broken(folder, lambda t: t.nav["nav/solarZenith"].__setitem__(slice(30, 50), np.nan)), IMAGES, "no solar zenith (row 26 is nan")
    triple = Triple("P")
    triple.nav["nav/solarZenith"][30:50] = np.nan
    triple.write(folder)
    assert len(clouds.splits(on_files(folder, angles="saa_only")).train) == 30


def test_constant_frames(folder):
    says(broken(folder, lambda t: t.images["Product/Signal"].__setitem__(slice(0, 76), 7)), IMAGES, "76 of 150 frames are constant")


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_prepared_files(tmp_path, suffix):
    def text(**changes):
        arrays = {key: values for key, values in prepared(**changes).items() if values is not None}
        write_prepared(tmp_path / f"p{suffix}", arrays)
        flights = tuple(FlightConfig(name, file=f"p{suffix}") for name in DATES)
        return fault(lambda: clouds.splits(on_files(tmp_path, flights=flights)))

    path = f"p{suffix}: "
    made = prepared()
    says(text(mask=None), path, "mask: not there", "cloud_base_km", "prepare_cbh.py")
    says(text(sza=made["sza"][:-1]), path, "sza: (59,)", "frames has 60")
    mask = made["mask"].copy()
    mask[3] = True
    says(text(mask=mask), path, "mask: [3] is true, but cloud_base_km[3] is nan")
    says(text(time=made["time"][::-1]), path, "time: [1] is")
    says(text(saa=made["saa"] + 1000), path, "solar azimuth [0] is 1200")
    says(text(sza=np.where(np.arange(60) < 4, np.nan, made["sza"])), path, "7% of the frames have no solar zenith (row 0")
    says(text(cloud_base_km=made["cloud_base_km"] * 1000), path, "expected km")
    says(text(frames=made["frames"].astype(np.float64)), path, "expected (N, H, W) float32 or uint16", "float64")
    says(text(frames=made["frames"][:, :7]), path, "at least 8", "(60, 7, 12)")
    says(text(meta="{broken"), path, "meta: not JSON")
    for meta in ('{"step_s": "x"}', '{"step_s": 0}', '{"step_s": 1e9}', '{"span": [NaN, NaN]}', '{"span": [5, 4]}'):
        says(text(meta=meta), path, "meta: span, step_s or funnel")
    says(text(mask=np.full(60, b"0")), path, "mask: holds |S1, not numbers")
    says(text(time=np.float64(5)), path, "time: (), but frames has 60")


def test_objects_are_never_unpickled(tmp_path):
    arrays = prepared(cloud_base_km=np.array([None] * 60, object))
    write_prepared(tmp_path / "p.npz", arrays)
    text = fault(lambda: clouds.splits(on_files(tmp_path, flights=tuple(FlightConfig(name, file="p.npz") for name in DATES))))
    says(text, "p.npz: cloud_base_km: an object array, which is never unpickled")


def test_prepared_files_that_cannot_be_read(tmp_path):
    for name, size in (("p.h5", 20_000), ("p.npz", 20_000)):
        path = tmp_path / name
        write_prepared(path, prepared())
        path.write_bytes(path.read_bytes()[:size])
        says(fault(lambda n=name: clouds.splits(on_files(tmp_path, flights=tuple(FlightConfig(k, file=n) for k in DATES)))), str(path))
    says(fault(lambda: clouds.splits(on_files(tmp_path, flights=tuple(FlightConfig(k, file="p.txt") for k in DATES)))), "unknown suffix")
