"""The commands as a user runs them: repeat, interrupt, kill, fill the disk; the end is the same bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import sixth_problem
from sixth_problem import after_line, assert_same, checkpoint, rows, summary

import jaxtrain

Command = sixth_problem.Command
LONG = ("--config", "configs/tides.py:long")
HOST = (*LONG, "--config.train.placement=host", "--config.train.workers=0")
TWO = ("--config", "configs/tides.py:two")


@pytest.fixture(scope="session")
def long_run(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "long"
    command("main", *LONG, "--workdir", workdir)
    return workdir


@pytest.fixture(scope="session")
def host_run(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with batches built on the host: equal batches, but another program, which rounds differently."""
    workdir = tmp_path_factory.mktemp("runs") / "host"
    command("main", *HOST, "--workdir", workdir)
    return workdir


@pytest.fixture(scope="session")
def two_run(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phases, never interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "two"
    command("main", *TWO, "--workdir", workdir)
    return workdir


def kill_again_and_again(command: Command, arguments: tuple[str, ...], workdir: Path, times: int, seed: int, marker: str, most: int) -> int:
    """Start, wait for some progress, kill -9; then let it finish. Returns how often the kill hit a living process."""
    moments, hits = random.Random(seed), 0
    for _ in range(times):
        process = command.start("main", *arguments, "--workdir", workdir)
        try:
            after_line(process, marker, moments.randint(1, most))
            time.sleep(moments.uniform(0, 0.1))
            hits += process.poll() is None
        finally:
            process.kill()
            process.communicate()
    command("main", *arguments, "--workdir", workdir)
    return hits


def assert_ends_alike(workdir: Path, reference: Path, folders: tuple[str, ...] = ("checkpoints",)) -> None:
    for folder in folders:
        assert_same(checkpoint(workdir / folder), checkpoint(reference / folder))
    assert rows(workdir) == rows(reference)
    ours, theirs = summary(workdir), summary(reference)
    for key in ("status", "steps", "best", "test", "naive", "valid"):
        assert ours[key] == theirs[key], key


def test_a_finished_folder_shows_its_scores_and_stays_as_it_is(command: Command, long_run: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in long_run.rglob("*")}
    again = command("main", *LONG, "--workdir", long_run, "--config.report.log_every=7st")
    assert "finished at step 200" in again.out and "last" in again.out
    assert before == {p: p.stat().st_mtime_ns for p in long_run.rglob("*")}


def test_another_config_in_the_same_folder_is_refused_by_key(command: Command, long_run: Path) -> None:
    refused = command("main", *LONG, "--workdir", long_run, "--config.optimizer.lr=0.5", "--config.model.width=8", code=2)
    assert "model.width, optimizer.lr differ" in refused.err and refused.err.count("\n") == 1


def test_metrics_have_one_row_per_step_and_kind(long_run: Path) -> None:
    for kind, every in (("train/loss", 10), ("valid/mae", 10)):
        assert [r["step"] for r in rows(long_run) if kind in r] == list(range(every, 201, every))


def test_sigterm_saves_and_the_repeated_command_ends_as_if_nothing_had_been(command: Command, long_run: Path, tmp_path: Path) -> None:
    process = command.start("main", *LONG, "--workdir", tmp_path / "run")
    assert after_line(process, "train step 60 ")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "interrupted at step" in err
    found = summary(tmp_path / "run")
    assert found["status"] == "interrupted" and 60 <= found["steps"] < 200
    command("main", *LONG, "--workdir", tmp_path / "run")
    assert_ends_alike(tmp_path / "run", long_run)


def test_kill_at_random_moments(command: Command, long_run: Path, tmp_path: Path) -> None:
    assert kill_again_and_again(command, LONG, tmp_path / "run", 3, 1, "train step", 5) == 3
    assert_ends_alike(tmp_path / "run", long_run)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["device", "host"])
def test_kill_at_five_more_moments_with_either_placement(
    command: Command, long_run: Path, host_run: Path, tmp_path: Path, placement: str
) -> None:
    arguments, reference, seed = (LONG, long_run, 2) if placement == "device" else (HOST, host_run, 3)
    assert kill_again_and_again(command, arguments, tmp_path / "run", 5, seed, "train step", 3) == 5
    assert_ends_alike(tmp_path / "run", reference)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["device", pytest.param("host", marks=pytest.mark.long)])
def test_kill_the_traffic_system_at_random_moments(command: Command, tmp_path: Path, placement: str) -> None:
    # With one step per call and the data of the preset these are the programs of tests/test_configs.py: they may lie compiled.
    arguments = ("--config", "configs/stmgt.py:smoke", f"--config.train.placement={placement}", "--config.report.figures=false",
                 "--config.eval.every=2st", "--config.train.steps_per_call=1")  # fmt: skip
    command("main", *arguments, "--workdir", tmp_path / "reference")
    assert kill_again_and_again(command, arguments, tmp_path / "run", 5, 4, "train step", 1) == 5
    assert_ends_alike(tmp_path / "run", tmp_path / "reference")


@pytest.mark.parametrize(("marker", "count"), [("coarse step", 6), ("fine step", 3)])
def test_kill_inside_either_phase(command: Command, two_run: Path, tmp_path: Path, marker: str, count: int) -> None:
    assert kill_again_and_again(command, TWO, tmp_path / "run", 1, 5, marker, count) == 1
    assert_ends_alike(tmp_path / "run", two_run, ("checkpoints/0-coarse", "checkpoints/1-fine"))


def test_phases_carry_weights_and_count_steps_on(two_run: Path) -> None:
    found = summary(two_run)
    assert (found["steps"], found["status"]) == (180, "finished")
    lines = rows(two_run)
    assert {r["phase"] for r in lines if r["step"] <= 100} == {"coarse"} and {r["phase"] for r in lines if r["step"] > 100} == {"fine"}
    before, after = (next(r["train/loss"] for r in lines if r["step"] == s and "train/loss" in r) for s in (100, 105))
    start = next(r["train/loss"] for r in lines if r["step"] == 5)
    assert after < (before + start) / 2  # goes on from the weights, not from the start
    assert next(r["train/lr"] for r in lines if r["step"] == 180 and "train/lr" in r) == pytest.approx(1e-3)


def test_config_json_reproduces_the_run(command: Command, two_run: Path, tmp_path: Path) -> None:
    command("main", "--config", two_run / "config.json", "--workdir", tmp_path / "again")
    assert_ends_alike(tmp_path / "again", two_run, ("checkpoints/0-coarse", "checkpoints/1-fine"))


@pytest.mark.slow
def test_two_loader_processes_and_one_thread_give_the_same_run(command: Command, host_run: Path, tmp_path: Path) -> None:
    command("main", *LONG, "--workdir", tmp_path / "run", "--config.train.placement=host", "--config.train.workers=2")
    assert_ends_alike(tmp_path / "run", host_run)


@pytest.mark.slow
def test_the_placement_changes_nothing_but_rounding(long_run: Path, host_run: Path) -> None:
    for ours, theirs in zip(rows(host_run), rows(long_run), strict=True):
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, rel=1e-3, abs=1e-3) if isinstance(value, float) else value), (theirs["step"], name)


@pytest.fixture(scope="session")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("levels") / "levels.npz"
    np.savez(path, level=np.sin(np.arange(90)[:, None] / np.array([2.0, 3.0, 4.0])))
    return path


def test_predict_evaluate_and_load_agree(command: Command, long_run: Path, levels: Path, tmp_path: Path) -> None:
    """The toy system needs its four files and nothing else, from training to serving."""
    said = command("predict", "--workdir", long_run, "--input", levels, "--output", tmp_path / "table.npz")
    with np.load(tmp_path / "table.npz") as table:
        assert list(table) == ["origin", "step", "gauge", "level_m"] and len(table["step"]) == 83 * 4 * 3
        written = table["level_m"].reshape(83, 4, 3)
    assert "996 rows from 83 examples" in said.out
    run = jaxtrain.load(long_run)
    with np.load(levels) as file:
        window = file["level"][None, 5:13].astype(np.float32)
    np.testing.assert_allclose(run.predict(level=window)["level"][0], written[5], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(run.predict(window)["level"], run.predict(level=window)["level"])

    command("evaluate", "--workdir", long_run, "--output", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    for name, theirs in {"model": summary(long_run)["test"], **summary(long_run)["naive"]}.items():
        assert scores["scores"][name] == pytest.approx(theirs, rel=1e-6)
    shown = command("evaluate", "--workdir", long_run, "--input", levels)
    assert "levels.npz, 79 examples" in shown.out
    assert summary(long_run)["test"]["mae"] < 0.5 * summary(long_run)["naive"]["last"]["mae"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("predict", "--workdir", "nowhere", "--input", "x", "--output", "x.npz"), "--workdir nowhere: no such folder"),
        (("predict", "--workdir", ".", "--input", "x", "--output", "x.xls"), "unknown suffix '.xls'"),
        (("predict", "--workdir", ".", "--input", "x", "--output", "no/x.npz"), "there is no folder no"),
        (("evaluate", "--workdir", "nowhere"), "--workdir nowhere: no such folder"),
        (("evaluate", "--workdir", "configs"), "configs: not a run folder"),
        (("main", "--config", "configs/tides.py", "--workdir", "configs"), "is not empty and holds no config.json"),
        (("main", "--config", "configs/tides.py", "--workdir", "configs/tides.py"), "is a file"),
        (("main", "--config", "configs/tides.py", "--workdir", "new", "--config.data.path=no.npz"), "no.npz: cannot be read"),
        (("main", "--config", "configs/tides.py", "--workdir", "new", "--config.data.rows=40"), "split is empty"),
        (("main", "--config", "configs/tides.py", "--workdir", "new", "--config.train.batch=9999"), "config.train.batch 9999: more than"),
        (("main", "--config", "configs/tides.py", "--workdir", "new", "--config.optimizer.warmup=9ep"), "config.optimizer.decay"),
        (("main", "--config", "configs/tides.py", "--workdir", "new", "--config.train.monitor=valid/mea"), "did you mean 'valid/mae'"),
        (("main", "--config", "configs/tides.py", "--workdir", "new", "--config.init_from=nowhere"), "nowhere: not a run folder"),
    ],
)
def test_a_fault_is_one_line_and_leaves_no_folder(command: Command, project: Path, arguments: tuple[str, ...], expected: str) -> None:
    found = command(*arguments, code=2)
    assert expected in found.err and found.err.startswith("error: ") and found.err.count("\n") == 1, found.err
    assert not (project / "new").exists()


def test_a_damaged_checkpoint_is_one_line_and_its_remedy_works(command: Command, long_run: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(long_run, workdir)
    (workdir / "summary.json").unlink()
    for path in (workdir / "checkpoints" / "200").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:20])
    refused = command("main", *LONG, "--workdir", workdir, code=2)
    last = refused.err.splitlines()[-1]
    assert last.startswith("error: checkpoint") and "delete that folder to go on from step" in last
    assert "Traceback" not in refused.err
    shutil.rmtree(workdir / "checkpoints" / "200")
    command("main", *LONG, "--workdir", workdir)
    assert_ends_alike(workdir, long_run)


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    """A file system of 3 MiB, where we may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_one_line_and_the_repeated_command_goes_on(command: Command, long_run: Path, small_disk: Path) -> None:
    process = command.start("main", *LONG, "--workdir", small_disk / "run")
    assert after_line(process, "train step 50 ")
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    last = err.splitlines()[-1]
    kept = max(int(p.name) for p in (small_disk / "run" / "checkpoints").iterdir() if p.name.isdigit())
    assert last.startswith("error: ") and "make room" in last
    assert "metrics.jsonl" in last or last.endswith(f"it goes on from step {kept}")
    assert "Traceback" not in err
    ballast.unlink()
    command("main", *LONG, "--workdir", small_disk / "run")
    assert_ends_alike(small_disk / "run", long_run)


@pytest.mark.parametrize(
    ("arguments", "expected", "code"),
    [
        (("main", "--help"), "--config", 0),
        (("predict", "--help"), "--option", 0),
        (("evaluate", "--help"), "--split", 0),
        (("main", "--config", "configs/tides.py", "--config.train.bacth=3"), "did you mean 'batch'", 2),
        (("main", "--config", "configs/stmgt.py:smok"), "did you mean 'smoke'", 2),
        (("main", "--config", "configs/tide.py"), "did you mean 'tides.py'", 2),
    ],
)
def test_help_and_config_faults_answer_before_jax_is_imported(project: Path, arguments: tuple[str, ...], expected: str, code: int) -> None:
    began = time.perf_counter()
    flags = ["-X", "importtime"]
    python = __import__("sys").executable
    found = subprocess.run([python, *flags, "-m", f"jaxtrain.{arguments[0]}", *arguments[1:]], cwd=project, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    imported = {line.rsplit("|", 1)[-1].strip() for line in found.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in imported and not {"jax", "flax", "orbax", "grain"} & imported
    assert found.returncode == code and expected in found.stdout + found.stderr
    assert seconds < 1.5 * load_factor()


def load_factor() -> float:
    """How much longer things take while others compute on this machine."""
    return max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1))


