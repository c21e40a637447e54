"""Fleets written to a folder of mapped arrays: the same as read into memory, in bounded memory, whole or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fleet_problem import START, changed, config, iso, table, write
from test_fleet_files import assert_same

from jaxtrain.data import fleet_store
from jaxtrain.data.fleet_dense import Spans
from jaxtrain.data.fleet_files import read
from jaxtrain.data.fleet_prepared import prepare
from jaxtrain.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
ROLES = {
    "observed_categorical": ("status",), "static_categorical": ("profile",), "static_real": ("cores",), "known_real": ("plan",),
    "observed_real": ("up",), "lags": (("cpu", 5),), "rolling": (("cpu", 3, "mean", 0),), "peers": (("cpu", "profile"), ("up", "")),
}  # fmt: skip


def rows():
    made = table(
        {"c": range(2, 30), "a": [*range(9), *range(12, 26)], "b": range(4, 31), "d": range(20, 28)},
        status=lambda name, step: "" if step % 7 == 0 else "alarm" if step == 17 else "hot" if step % 2 else "idle",
        profile=lambda name, step: "x" if name in "ac" else "y",
        cores=lambda name, step: 4 if name == "a" else 8,
        plan=lambda name, step: step % 3,
        up=lambda name, step: "" if step % 5 == 0 else round(np.cos(step) * 7, 3),
        region=lambda name, step: 7,
    )
    order = np.random.default_rng(0).permutation(len(made["cpu"]))
    return {column: [values[i] for i in order] for column, values in made.items()}


def as_numbers(made):
    """The rows with None for empty cells, as parquet wants them."""
    return {column: [None if v == "" else v for v in values] for column, values in made.items()}


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch):
    """Two or three stretches of groups, so that what crosses their borders is tested."""
    monkeypatch.setattr(fleet_store, "ROWS_AT_ONCE", 60)


def test_stretches_hold_whole_groups():
    spans = Spans(np.array([0, 20, 50, 150, 160, 220]), np.zeros(5, np.int64))
    assert list(fleet_store.stretches(spans)) == [(0, 2), (2, 3), (3, 4), (4, 5)]


@pytest.mark.parametrize("step_seconds", [300, 900])
def test_a_prepared_folder_is_the_fleet_in_memory(tmp_path, step_seconds):
    path = write(tmp_path / "f.parquet", as_numbers(rows()), row_group_size=10)
    settings = config(path, step_seconds=step_seconds, **ROLES)
    expected = read(settings)
    made = prepare(settings, tmp_path / "out" / "fleet")
    assert_same(made, expected)
    assert isinstance(made.real, np.memmap) and not made.real.flags.writeable
    again = read(config(tmp_path / "out" / "fleet", step_seconds=step_seconds, **ROLES))
    assert_same(again, expected)
    assert made.notes == expected.notes and sorted(p.name for p in (tmp_path / "out").iterdir()) == ["fleet"]


def test_csv_blocks_and_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxtrain.data.fleet_tables.BLOCK_BYTES", 400)
    made = rows()
    halves = tuple(
        str(write(tmp_path / f"{i}.csv", {column: values[part] for column, values in made.items()}))
        for i, part in enumerate((slice(0, 40), slice(40, None)))
    )
    settings = config(halves, **ROLES)
    assert_same(prepare(settings, tmp_path / "fleet"), read(settings))


def test_copies_in_different_pieces_are_dropped(tmp_path):
    made = rows()
    path = write(tmp_path / "f.parquet", as_numbers({column: values + values[:3] for column, values in made.items()}), row_group_size=10)
    fleet = prepare(config(path, **ROLES), tmp_path / "fleet")
    assert_same(fleet, read(config(write(tmp_path / "g.csv", made), **ROLES)))
    assert any("3 rows that repeat" in note for note in fleet.notes)


def test_static_columns_that_change(tmp_path):
    made = rows()
    made["cores"] = [c if t < iso(15) else 2 * c for c, t in zip(made["cores"], made["timestamp"], strict=True)]
    path = write(tmp_path / "f.parquet", as_numbers(made), row_group_size=10)
    with pytest.raises(UserError, match=r"f.parquet: row \d+: group a has cores 4, but .*f.parquet: row \d+ has 8; a static") as prepared:
        prepare(config(path, **ROLES), tmp_path / "fleet")
    with pytest.raises(UserError) as whole:
        read(config(path, **ROLES))
    assert str(prepared.value) == str(whole.value) and not (tmp_path / "fleet").exists()

    def training(steps, groups):
        return np.arange(steps) < 11

    settings = config(path, static_change="train", **ROLES)
    assert_same(prepare(settings, tmp_path / "fleet", training), read(settings, training=training))
    with pytest.raises(UserError, match="training steps of another split; prepare it again"):
        read(config(tmp_path / "fleet", static_change="train", **ROLES), training=lambda steps, groups: np.arange(steps) < 12)


def test_rows_that_differ_are_both_named(tmp_path):
    made = table({"a": range(12)})
    path = write(tmp_path / "f.parquet", {c: [*v, v[2] if c != "cpu" else 99.0] for c, v in made.items()}, row_group_size=5)
    with pytest.raises(UserError, match="row 3 and .*row 13 both give group a at 2025-01-06T00:10:00 UTC"):
        prepare(config(path), tmp_path / "fleet")


@pytest.mark.parametrize("changes,line", [
    ({"fill_steps": 3}, "prepared with fill_steps 2, config.data says 3; prepare it again"),
    ({"step_seconds": 600}, "prepared with step_seconds 300, config.data says 600"),
    ({"targets": ("up",), "observed_real": ("cpu",)}, "prepared with lags"),
    ({"horizon_steps": 6}, "prepared with observed_real"),
    ({"bounds": {"up": (0, None)}}, "up runs from -7 to 6.921, outside data.bounds (0 to None)"),
    ({"transform": {"up": "log1p"}}, "up goes down to -7, but its transform is log1p"),
])  # fmt: skip
def test_a_folder_of_another_config_is_refused(tmp_path, changes, line):
    path = write(tmp_path / "f.parquet", as_numbers(rows()))
    prepare(config(path, **ROLES), tmp_path / "fleet")
    if "targets" in changes:
        changes = {**changes, "lags": (("up", 5),)}
    with pytest.raises(UserError) as caught:
        read(config(tmp_path / "fleet", **{**ROLES, **changes}))
    assert line in str(caught.value) and str(caught.value).startswith(str(tmp_path / "fleet"))


def test_faults_leave_nothing_behind(tmp_path):
    path = write(tmp_path / "f.csv", changed(rows(), "cpu", 50, "high"))
    with pytest.raises(UserError, match="'high' is not a number"):
        prepare(config(path, **ROLES), tmp_path / "out" / "fleet")
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken: is there already"):
        prepare(config(path, **ROLES), tmp_path / "taken")


def test_a_damaged_folder_is_one_line(tmp_path):
    path = write(tmp_path / "f.parquet", as_numbers(rows()))
    prepare(config(path, **ROLES), tmp_path / "fleet")
    (tmp_path / "fleet" / "real.npy").write_bytes(b"half")
    with pytest.raises(UserError, match="fleet: not a readable prepared folder .*; prepare it again"):
        read(config(tmp_path / "fleet", **ROLES))


MEMORY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from fleet_problem import config
from jaxtrain.data import fleet_store
from jaxtrain.data.fleet_prepared import prepare
fleet_store.ROWS_AT_ONCE = 1 << 16
import pyarrow.parquet, pyarrow.compute
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(config({path!r}, targets=("cpu", "mem", "disk", "load")), Path({out!r}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_holds_one_piece(tmp_path):
    """4 M rows are 64 MB of targets alone; memory grows by the pieces of 65,536 rows, not by the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups, steps = 40, 100_000
    with pq.ParquetWriter(tmp_path / "f.parquet", pa.schema([("timestamp", pa.int64()), ("server", pa.string()),
                          *((n, pa.float32()) for n in ("cpu", "mem", "disk", "load"))])) as writer:  # fmt: skip
        for group in range(groups):
            values = {n: np.random.default_rng(group).random(steps, np.float32) for n in ("cpu", "mem", "disk", "load")}
            part = pa.table({"timestamp": START + 300 * np.arange(steps), "server": pa.array([f"s{group}"] * steps), **values})
            writer.write_table(part, row_group_size=1 << 16)
    script = MEMORY.format(tests=str(Path(__file__).parent), path=str(tmp_path / "f.parquet"), out=str(tmp_path / "fleet"))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 90_000, f"{done.stdout} KiB"


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "prepare_fleet.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def test_the_command(tmp_path):
    names = ("cpu_percent", "memory_percent", "disk_percent", "load_average", "upstream_cpu_percent", "maintenance")
    base = table({"web": range(20), "db": range(20)}, status=lambda *_: "ok", cores=lambda *_: 4, profile=lambda name, _: name)
    path = write(tmp_path / "f.csv", {**{c: v for c, v in base.items() if c != "cpu"}, **{name: base["cpu"] for name in names}})
    done = run_script("--config", "configs/tft.py", f"--config.data.path={path}", "--output", tmp_path / "fleet")
    assert done.returncode == 0, done.stderr
    assert "2 groups, 40 rows of 300 s, 6 columns" in done.stdout
    assert json.loads((tmp_path / "fleet" / "fleet.json").read_text())["groups"] == ["db", "web"]
    for arguments in (["--config", "configs/tft.py"], ["--config", "configs/tft.py", f"--config.data.path={tmp_path}/no.csv"]):
        done = run_script(*arguments, "--output", tmp_path / "second")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "second").exists(), done.stderr
