"""Raw snapshot folders become an `edges` file that the readers take."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from traffic_problem import config

from jaxtrain.data.traffic_files import read_series

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prepare_traffic.py"


def snapshot(folder: Path, speed: float | str, **more: object) -> None:
    folder.mkdir(parents=True)
    (folder / "traffic_edges.json").write_text(json.dumps([
        {"node_a_id": "a", "node_b_id": "b", "speed_kmh": speed, "lat_a": 1, "lon_a": 2, "lat_b": 3, "lon_b": 4, **more},
        {"node_a_id": "b", "node_b_id": "a", "speed_kmh": None},
    ]))  # fmt: skip


def prepare(runs: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--runs", str(runs), "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1], env={"PYTHONPATH": str(SCRIPT.parents[1])})


def test_snapshots_become_edges(tmp_path):
    snapshot(tmp_path / "run_20251030_032440", 24.5)
    snapshot(tmp_path / "run_20251030_033012", 30, timestamp="2025-10-30T03:30:12.25")
    weather = [{"temperature_c": 25, "precipitation_mm": None}, {"temperature_c": 26, "precipitation_mm": 2}]
    (tmp_path / "run_20251030_032440" / "weather_snapshot.json").write_text(json.dumps(weather))
    output = tmp_path / "out" / "edges.parquet"
    made = prepare(tmp_path, output)
    assert made.returncode == 0 and "4 rows, 2 snapshots, 2 directed edges" in made.stdout
    series = read_series(config(grid="runs"), str(output))
    np.testing.assert_array_equal(series.speed, np.array([[24.5, np.nan], [30, np.nan]], np.float32))
    assert np.datetime64(int(series.time[1]), "s") == np.datetime64("2025-10-30T03:30:12")
    assert series.weather is not None and series.weather[0].tolist() == [25.5, 0, 2]
    assert series.positions is not None and series.positions.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("fault,line", [
    ("speed", "record 0, speed_kmh: 'fast' is not a number"),
    ("json", "not valid JSON"),
    ("name", "name the folder run_YYYYMMDD_HHMMSS"),
    ("folder", "traffic_edges.json: Is a directory"),
    ("none", "holds no folder run_YYYYMMDD_HHMMSS"),
])  # fmt: skip
def test_faults_are_one_line(tmp_path, fault, line):
    if fault == "folder":
        (tmp_path / "run_20251030_032440" / "traffic_edges.json").mkdir(parents=True)
    elif fault != "none":
        folder = tmp_path / ("run_today" if fault == "name" else "run_20251030_032440")
        snapshot(folder, "fast" if fault == "speed" else 20)
        if fault == "json":
            (folder / "traffic_edges.json").write_text("[{")
    made = prepare(tmp_path, tmp_path / "edges.parquet")
    assert made.returncode == 2 and made.stderr.count("\n") == 1 and line in made.stderr
    assert not (tmp_path / "edges.parquet").exists()


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    snapshot(tmp_path / "run_20251030_032440", 20)
    (tmp_path / "file").touch()
    (tmp_path / "taken.parquet").mkdir()
    for output in (tmp_path / "file" / "edges.parquet", tmp_path / "taken.parquet"):
        made = prepare(tmp_path, output)
        assert made.returncode == 2 and made.stderr.count("\n") == 1 and "nothing was written" in made.stderr
    assert made.stderr.startswith(f"{output}: Is a directory")
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("prepare_traffic", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    snapshot(tmp_path / "run_20251030_032440", 20)
    output = tmp_path / "edges.parquet"
    arguments = ["--runs", str(tmp_path), "--output", str(output)]
    assert script.main(arguments) == 0
    before = output.read_bytes()

    def full_disk(table, where):
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "write_table", full_disk)
    assert script.main(arguments) == 2
    assert output.read_bytes() == before and not list(tmp_path.glob(".*"))
