"""Eight simulated devices and two real processes train like one device, and read each other's checkpoints."""

import signal
import socket
from pathlib import Path

import pytest
import sixth_problem
from compiling import QUICK
from sixth_problem import after_line, assert_same, checkpoint, rows, summary

Command = sixth_problem.Command
BASE = ("--config", "configs/tides.py:long", "--config.train.duration=60st")
# Adam turns the rounding noise of a gradient that is zero (the bias before a batch norm) into full steps: sgd keeps it noise.
PLAIN = (*BASE, "--config.optimizer.name=sgd", "--config.optimizer.lr=0.05")
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


@pytest.fixture(scope="session")
def one_device(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "one"
    command("main", *PLAIN, "--workdir", workdir)
    return workdir


def assert_close(workdir: Path, reference: Path, tolerance: float = 1e-5) -> None:
    """Every logged loss and score, and the weights."""
    ours, theirs = rows(workdir), rows(reference)
    assert [r.keys() for r in ours] == [r.keys() for r in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name, value in a.items():
            expected = pytest.approx(b[name], rel=tolerance, abs=tolerance) if isinstance(value, float) else b[name]
            assert value == expected, (a["step"], name)
    assert_same(checkpoint(workdir / "checkpoints"), checkpoint(reference / "checkpoints"), 10 * tolerance)
    assert summary(workdir)["test"] == pytest.approx(summary(reference)["test"], rel=tolerance)
    # The bias is a mean of errors of both signs: sums in another order differ by rounding of the errors, not of their mean.
    assert summary(workdir)["naive"]["last"] == pytest.approx(summary(reference)["naive"]["last"], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "more",
    [(), ("--config.train.shard_mib=0", "--config.train.placement=host", "--config.train.workers=0")],
    ids=["replicated", "sharded-host"],
)
def test_eight_devices_train_like_one(command: Command, one_device: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    command("main", *PLAIN, *more, "--workdir", tmp_path / "run", **EIGHT)
    assert "8 x cpu" in summary(tmp_path / "run")["device"]
    assert_close(tmp_path / "run", one_device)


@pytest.mark.slow
def test_eight_devices_accumulate_like_one(command: Command, one_device: Path, tmp_path: Path) -> None:
    more = ("--config.train.accumulate=2", "--config.model.norm=false", "--config.model.dropout=0")
    command("main", *PLAIN, *more, "--workdir", tmp_path / "eight", **EIGHT)
    command("main", *PLAIN, *more, "--workdir", tmp_path / "one")
    assert_close(tmp_path / "eight", tmp_path / "one")


@pytest.mark.slow
def test_eight_devices_train_the_traffic_system_like_one(command: Command, tmp_path: Path) -> None:
    arguments = ("--config", "configs/stmgt.py:smoke", "--config.train.batch=8", "--config.eval.batch=8", "--config.report.figures=false",
                 "--config.data.synthetic.days=3", "--config.optimizer.name=sgd")  # fmt: skip
    command("main", *arguments, "--workdir", tmp_path / "one", **QUICK)
    command("main", *arguments, "--workdir", tmp_path / "eight", **EIGHT, **QUICK)
    assert_close(tmp_path / "eight", tmp_path / "one")


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(command: Command, tmp_path: Path) -> None:
    refused = command("main", *PLAIN, "--config.train.batch=12", "--workdir", tmp_path / "run", code=2, **EIGHT)
    assert "config.train.batch: 12 examples do not divide over 8 devices; use a multiple of 8" in refused.err
    assert not (tmp_path / "run").exists()


def interrupted(command: Command, workdir: Path, count: int, **environment: str) -> None:
    """A run of one process that stopped somewhere before its end."""
    process = command.start("main", *PLAIN, "--workdir", workdir, **environment)
    assert after_line(process, "train step", count)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and summary(workdir)["status"] == "interrupted", err


@pytest.mark.parametrize("direction", ["shrink", pytest.param("grow", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_devices(command: Command, one_device: Path, tmp_path: Path, direction: str) -> None:
    directions: dict[str, tuple[dict[str, str], dict[str, str]]] = {"grow": ({}, EIGHT), "shrink": (EIGHT, {})}
    before, after = directions[direction]
    interrupted(command, tmp_path / "run", 2, **before)
    command("main", *PLAIN, "--workdir", tmp_path / "run", **after)
    assert_close(tmp_path / "run", one_device)


class Two:
    """The same command in two processes with one device each; both are killed after two minutes."""

    def __init__(self, command: Command, *arguments: object) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        where = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
        self.processes = [command.start("main", *arguments, **where, JAX_PROCESS_ID=str(i)) for i in range(2)]

    def wait(self) -> list[str]:
        """stderr of both; they must have ended well."""
        found = []
        try:
            for process in self.processes:
                out, err = process.communicate(timeout=120)
                assert process.returncode == 0, f"{out}\n{err}"
                found.append(err)
        finally:
            for process in self.processes:
                process.kill()
        return found


@pytest.mark.parametrize("placement", ["device", pytest.param("host", marks=pytest.mark.slow)])
def test_two_processes_train_like_one(command: Command, one_device: Path, tmp_path: Path, placement: str) -> None:
    more = (f"--config.train.placement={placement}", "--config.report.figures=true")
    Two(command, *PLAIN, *more, "--workdir", tmp_path / "run").wait()
    assert "2 x cpu" in summary(tmp_path / "run")["device"]
    assert_close(tmp_path / "run", one_device)
    assert (tmp_path / "run" / "figures" / "first.png").exists()


@pytest.mark.slow
def test_two_processes_stop_together_and_one_goes_on(command: Command, one_device: Path, tmp_path: Path) -> None:
    two = Two(command, *PLAIN, "--workdir", tmp_path / "run")
    assert after_line(two.processes[0], "train step", 2)
    two.processes[1].send_signal(signal.SIGTERM)
    said = two.wait()
    found = summary(tmp_path / "run")
    assert found["status"] == "interrupted" and found["steps"] < 60 and "interrupted at step" in said[0]
    command("main", *PLAIN, "--workdir", tmp_path / "run")
    assert_close(tmp_path / "run", one_device)


@pytest.mark.slow
def test_one_process_stops_and_two_go_on(command: Command, one_device: Path, tmp_path: Path) -> None:
    interrupted(command, tmp_path / "run", 2)
    Two(command, *PLAIN, "--config.train.shard_mib=64", "--workdir", tmp_path / "run").wait()
    assert_close(tmp_path / "run", one_device)


@pytest.mark.long
def test_two_processes_run_both_phases_with_sharded_parameters_and_start_from_a_run(command: Command, tmp_path: Path) -> None:
    first = tmp_path / "first"
    command("main", *BASE, "--workdir", first)
    arguments = ("--config", "configs/tides.py:two", "--config.train.shard_mib=0", f"--config.init_from={first}")
    Two(command, *arguments, "--workdir", tmp_path / "two").wait()
    command("main", *arguments, "--workdir", tmp_path / "one")
    found, expected = summary(tmp_path / "two"), summary(tmp_path / "one")
    assert found["status"] == expected["status"] == "finished"
    assert found["test"]["mae"] == pytest.approx(expected["test"]["mae"], rel=0.02)
