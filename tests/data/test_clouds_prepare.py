"""Prepared flights: the same windows as their triples, written whole or not at all, mapped where they are large."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from clouds_problem import DATES, Triple, entry, on_files, prepared, write_flights, write_prepared

from jaxtrain.data import clouds, clouds_frames, clouds_prepared
from jaxtrain.data.clouds_config import FlightConfig
from jaxtrain.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "prepare_cbh.py"
sys.path.insert(0, str(SCRIPT.parent))

import prepare_cbh  # noqa: E402


def flights_json(folder, **changes):
    keys = ("name", "images", "lidar", "nav")
    entries = [{key: getattr(entry(name), key) for key in keys} for name in DATES]
    entries[0] |= changes
    path = folder / "flights.json"
    path.write_text(json.dumps(entries))
    return str(path)


def prepare(folder, *options, out="prepared"):
    prepare_cbh.main(["--flights", flights_json(folder), "--out", str(folder / out), *options])
    return folder / out


def on_prepared(folder, suffix=".h5", **changes):
    return on_files(folder, flights=tuple(FlightConfig(name, file=f"{name}{suffix}") for name in DATES), **changes)


def batches(splits):
    return [split.gather(split.arrays, split.index) for split in (splits.train, splits.valid, splits.test)]


def assert_same(one, other):
    for a, b in zip(batches(one), batches(other), strict=True):
        for name, values in a.items():
            np.testing.assert_allclose(values, b[name], rtol=1e-6, atol=1e-6, err_msg=name)
    for name, value in one.statistics.items():
        if value.dtype.kind == "U":
            assert value.tolist() == other.statistics[name].tolist()
        else:
            np.testing.assert_allclose(value, other.statistics[name], rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
@pytest.mark.parametrize("options", [(), ("--rows", "2", "20", "--reduce", "2")])
def test_prepared_flights_are_the_triples(tmp_path, suffix, options):
    write_flights(tmp_path)
    keys = {"rows": (2, 20), "reduce": 2} if options else {}
    direct = clouds.splits(on_files(tmp_path, **keys))
    for more in ((), ("--all-frames",)):
        folder = prepare(tmp_path, "--format", suffix[1:], *options, *more)
        again = clouds.splits(on_prepared(folder, suffix))
        assert_same(direct, again)
        assert [note for note in again.notes if "profiles" in note] == [note for note in direct.notes if "profiles" in note]
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}{suffix}" for name in DATES)


def test_the_documented_layout(tmp_path, capsys):
    triple = Triple("P")
    triple.nav["nav/track"] = np.full(len(triple.nav["nav/time"]), 350.0)
    triple.nav["nav/IWG_lat"] = triple.nav["nav/IWG_lon"] = np.full(len(triple.nav["nav/time"]), 12.5)
    write_flights(tmp_path)
    triple.write(tmp_path)
    path = flights_json(tmp_path, nav_heading="nav/track")
    prepare_cbh.main(["--flights", path, "--out", str(tmp_path / "out"), "--window", "3"])
    said = capsys.readouterr().out
    assert "30 profiles -> 30 ocean -> 30 finite -> 30 in range -> 30 matched; 90 of 150 frames of 20 x 24 pixels" in said
    with h5py.File(tmp_path / "out" / "P.h5") as file:
        names = {"frames", "time", "sza", "saa", "cloud_base_km", "mask", "heading", "lat", "lon", "frame_id", "meta"}
        assert set(file) == names
        kinds = {"frames": "uint16", "time": "float64", "sza": "float32", "saa": "float32", "cloud_base_km": "float32", "mask": "bool"}
        assert {name: str(file[name].dtype) for name in kinds} == kinds
        assert file["frames"].chunks is None and file["frames"].id.get_offset() is not None
        np.testing.assert_array_equal(file["frame_id"][:6], [1, 2, 3, 6, 7, 8])
        np.testing.assert_allclose(file["saa"][0], 200 + 0.02, atol=0.01)  # from north, whatever the heading
        meta = json.loads(file["meta"][()])
        assert meta["lidar"] == entry("P").lidar and meta["window"] == 3 and meta["funnel"][-1] == ["matched", 30]
    found = clouds_prepared.read(on_files(tmp_path).reading, FlightConfig("P", file="out/P.h5"))
    np.testing.assert_allclose(found.saa, np.mod(200 + 0.02 * found.frame_id - 350, 360), atol=0.02)
    assert found.step_s == 1 and found.span[1] - found.span[0] == 149


def test_large_frames_stay_in_their_files(tmp_path):
    write_flights(tmp_path)
    folder = prepare(tmp_path)
    inside, mapped = clouds.splits(on_prepared(folder)), clouds.splits(on_prepared(folder, max_gib=1e-5))
    assert isinstance(inside.train.arrays["frames"], np.ndarray)
    frames = mapped.train.arrays["frames"]
    assert isinstance(frames, clouds_frames.JoinedFrames) and frames.shape == inside.train.arrays["frames"].shape
    assert_same(inside, mapped)
    assert any("GiB of frames stay in their files" in note for note in mapped.notes)
    size = len(pickle.dumps(frames))
    assert size < frames.nbytes / 20  # a loader process gets the paths, not the frames
    again = pickle.loads(pickle.dumps(frames))
    np.testing.assert_array_equal(again[np.array([[449, 0], [150, 149]])], frames[np.array([[449, 0], [150, 149]])])
    with pytest.raises(UserError, match="train.placement=host"):
        import jax

        jax.device_put({"frames": frames})


def test_mapped_frames_are_repaired_as_they_are_read(tmp_path):
    arrays = prepared()
    arrays["frames"][7, 0, :5] = np.nan
    write_prepared(tmp_path / "p.h5", arrays)
    flights = tuple(FlightConfig(name, file="p.h5") for name in DATES)
    keys = {"flights": flights, "valid_rows": "flight", "gap_s": 10.0, "train_flights": ()}
    few = {**prepared(), "mask": np.arange(60) % 5 == 2}
    write_prepared(tmp_path / "p2.h5", few)
    config = on_files(tmp_path, **keys)
    import dataclasses

    more = (*flights, *(FlightConfig(f"{name}2", file="p2.h5") for name in DATES))
    inside = clouds.splits(dataclasses.replace(config, flights=more))
    mapped = clouds.splits(dataclasses.replace(config, flights=more, max_gib=1e-6))
    assert isinstance(mapped.train.arrays["frames"], clouds_frames.JoinedFrames)
    assert_same(inside, mapped)
    assert all(np.isfinite(batch["frames"]).all() for batch in batches(mapped))
    assert mapped.train.gather(mapped.train.arrays, mapped.train.index[1:2])["frames"][0, 2, 0, 0] == np.float32(
        np.median(arrays["frames"][7][np.isfinite(arrays["frames"][7])])
    )


def test_triples_that_are_too_large_ask_to_be_prepared(tmp_path):
    write_flights(tmp_path)
    with pytest.raises(UserError, match="more than data.max_gib.*prepare the flight with scripts/prepare_cbh.py"):
        clouds.splits(on_files(tmp_path, max_gib=1e-5))


def test_flat_field_removes_the_cameras_shading(tmp_path):
    write_flights(tmp_path)
    r, c = np.meshgrid(np.linspace(-1, 1, 20), np.linspace(-1, 1, 24), indexing="ij")
    shade = 1 + 0.2 * r - 0.1 * c * c
    triple = Triple("P")
    clean = triple.images["Product/Signal"].astype(np.float32)
    triple.images["Product/Signal"] = (clean * shade).astype(np.float32)
    triple.write(tmp_path)
    folder = prepare(tmp_path, "--flat-field", "--all-frames")
    found = clouds_prepared.read(on_files(folder).reading, FlightConfig("P", file="P.h5")).frames[np.arange(150)]
    before, after = ((clean * shade).mean(0), found.mean(0))
    assert before.std() > 0.1 * before.mean() and after.std() < 0.01 * after.mean()
    np.testing.assert_allclose(found / found.mean(), clean / clean.mean(), atol=0.02)


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    write_flights(tmp_path)

    def full(path, changed, *rest):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    for name, suffix in (("_write_h5", "h5"), ("_write_npz", "npz")):
        monkeypatch.setattr(clouds_prepared, name, full)
        with pytest.raises(UserError, match=rf"P.{suffix}: could not be written \(.*No space left on device.*make room"):
            prepare(tmp_path, "--format", suffix)
    assert not list((tmp_path / "prepared").iterdir())


def test_a_kill_leaves_no_half_flight(tmp_path):
    """Killed while a flight is being written: no file of its name; the same command then ends as if nothing had been."""
    write_flights(tmp_path)
    stall = (
        "import sys, time; sys.path[:0] = sys.argv[1:3]; from jaxtrain.data import clouds_prepared; import prepare_cbh\n"
        "def slow(blocks):\n    for block in blocks:\n        yield block\n        print('half', flush=True); time.sleep(60)\n"
        "whole = clouds_prepared._write_h5\n"
        "clouds_prepared._write_h5 = lambda path, changed, *rest: whole(path, slow(changed), *rest)\n"
        "prepare_cbh.main(sys.argv[3:])"
    )
    arguments = ["--flights", flights_json(tmp_path), "--out", str(tmp_path / "prepared")]
    command = [sys.executable, "-c", stall, str(ROOT), str(SCRIPT.parent), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    left = [path.name for path in (tmp_path / "prepared").iterdir()]
    assert left == ["P.h5.partial"]
    folder = prepare(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["P.h5", "Q.h5", "R.h5"]
    assert len(clouds.splits(on_prepared(folder)).train) == 30


@pytest.mark.parametrize(
    "entries, options, says",
    [
        ("[{}]", (), "flights\\[0\\].name: missing"),
        ('[{"name": "P", "images": "x"}]', (), "'P' lacks lidar, nav"),
        ('[{"name": "P", "file": "x.h5"}]', (), "is a prepared file already"),
        ('[{"name": "../P", "images": "x", "lidar": "y", "nav": "z"}]', (), "leave out folders"),
        ("{}", (), "expected a list"),
        ("[", (), "not JSON"),
        ('[{"name": "P", "colour": 1}]', (), "colour: unknown key"),
        ("[]", ("--base-km", "2", "0.1"), "--base-km"),
        ("[]", ("--rows", "9", "3"), "--rows 9 3"),
        ("[]", ("--reduce", "0"), "--reduce 0"),
    ],
)
def test_faults_of_the_command(tmp_path, entries, options, says):
    path = tmp_path / "flights.json"
    path.write_text(entries)
    with pytest.raises(UserError, match=says):
        prepare_cbh.main(["--flights", str(path), "--out", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_a_fault_is_one_line_and_code_2(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), "--flights", str(tmp_path / "none.json"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("error: --flights") and done.stderr.count("\n") == 1


def test_clahe_says_what_it_needs(tmp_path):
    write_flights(tmp_path)
    try:
        import skimage  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install scikit-image"):
            prepare(tmp_path, "--clahe", "0.01")
        assert not list((tmp_path / "prepared").iterdir())
    else:
        folder = prepare(tmp_path, "--clahe", "0.01")
        assert clouds.splits(on_prepared(folder)).train.arrays["frames"].max() <= 1
