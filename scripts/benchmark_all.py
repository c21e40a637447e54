"""All systems against their peers in one table: python scripts/benchmark_all.py --peers PYTHON [--only stmgt,cbh] [--output all.json]

Runs `scripts/benchmark.py` for one case after another on this machine (minutes on two CPU cores) and prints, for the
fastest of a peer's programs that train the same network on the same batch: its samples/s and ours, of the whole loop with its input;
their ratio; the ratio of CPU seconds per step; and the ratio that is wanted. PYTHON has the packages of scripts/peers.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrain import cli
from jaxtrain.engine.report import number, table, write_json
from jaxtrain.errors import UserError

LARGE_FRAMES = ("--config.phases=()", "--config.train.batch=1", "--config.data.synthetic.height=440",
                "--config.data.synthetic.width=640", "--config.data.synthetic.label_factor=0.3")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A config with the options of `scripts/benchmark.py`; peers: start of a program's name -> the ratio of samples/s wanted."""

    config: str
    options: tuple[str, ...]
    peer_options: str
    peers: Mapping[str, float]


CASES = (
    Case(
        "stmgt.py:normalized_v1",
        ("--config.data.synthetic.nodes=62", "--config.train.batch=32", "--calls", "5", "--steps", "10"),
        "--mode train", {"loops": 2.0, "folded": 1.2},
    ),
    Case(
        "tft.py", ("--config.train.batch=32", "--calls", "10", "--steps", "20"),
        "--threads 2 --program trainer --continuous 32", {"trainer": 1.0},
    ),
    Case(
        "tft.py:electricity", ("--config.train.batch=64", "--calls", "2", "--steps", "10"),
        "--threads 2 --program trainer --continuous 128", {"trainer": 1.0},
    ),
    Case(
        "convlstm.py:baseline", ("--config.data.synthetic.days=5", "--calls", "5", "--steps", "10"),
        "--program step --steps 4 --threads 2 --backend torch", {"step": 1.0},
    ),
    Case("cbh.py:demo", ("--calls", "20", "--steps", "40"), "--mode train --threads 2", {"eager": 1.5}),
    Case("cbh.py", (*LARGE_FRAMES, "--calls", "4", "--steps", "12"), "--mode train --threads 2", {"eager": 1.0}),
    Case("abr.py:demo", ("--calls", "10", "--steps", "20"), "--mode train", {"fft": 1.0, "toeplitz": 1.0}),
    Case("abr.py", ("--calls", "1", "--steps", "3"), "--mode train --program fft --steps 3 --warmup 1", {"fft": 1.0}),
)  # fmt: skip


def main(argv: list[str]) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python scripts/benchmark_all.py", description=__doc__, formatter_class=style)
    parser.add_argument("--peers", metavar="PYTHON", required=True, help="an interpreter that has the peers' packages")
    parser.add_argument("--only", default="", metavar="NAMES", help="starts of configs, e.g. stmgt,cbh")
    parser.add_argument("--output", type=Path, default=Path("benchmark_all.json"), help="where all results go, as JSON")
    arguments = parser.parse_args(argv)
    chosen = [case for case in CASES if case.config.startswith(tuple(arguments.only.split(",")))]
    if not chosen:
        raise UserError(f"--only {arguments.only}: no case starts like that (there are {', '.join(case.config for case in CASES)})")
    if not arguments.output.parent.is_dir():
        raise UserError(f"--output {arguments.output}: there is no folder {arguments.output.parent}")
    results, rows = [], [["config", "batch", "samples/s", "peer", "samples/s", "ours / peer", "CPU time, peer / ours", "wanted"]]
    for case in chosen:
        results.append(measure(case, arguments.peers))
        rows += compare(case, results[-1])
        print(f"{case.config}: {results[-1]['rows'][0]['samples_per_second']:,.1f} samples/s", file=sys.stderr)
    write_json(arguments.output, results)
    where, first = results[0]["machine"], results[0]["rows"][0]
    print(f"{where['cpu']}, {where['cores']} cores; {first['device']}; JAX {first['jax']}, Python {where['python']}; float32")
    print(table(rows))
    return 0


def measure(case: Case, python: str) -> dict[str, Any]:
    """What `scripts/benchmark.py` found."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "one.json"
        command = [sys.executable, str(Path(__file__).with_name("benchmark.py")), "--config", f"configs/{case.config}", *case.options]
        command += ["--precisions", "float32", "--placements", "device", "--peers", python, "--peer-options", case.peer_options]
        done = subprocess.run([*command, "--output", str(found)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{case.config}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
        return json.loads(found.read_text())


def compare(case: Case, result: Mapping[str, Any]) -> list[list[str]]:
    """One row per peer: its fastest program beside ours."""
    ours, rows = result["rows"][0], []
    for start, wanted in case.peers.items():
        programs = [peer for peer in result["peers"] if peer["program"].startswith(start) and peer["mode"] == "train"]
        if not programs:
            raise UserError(f"{case.config}: the peer printed no program {start!r}")
        peer = max(programs, key=lambda peer: peer["windows_per_s"])
        ratio, cpu = ours["samples_per_second"] / peer["windows_per_s"], peer["cpu_s"] / ours["cpu_s"]
        speeds = [number(ours["samples_per_second"]), peer["program"], number(peer["windows_per_s"])]
        rows.append([case.config, str(ours["batch"]), *speeds, f"{ratio:.2f}", f"{cpu:.2f}", f"{wanted:g}"])
    return rows


if __name__ == "__main__":
    cli.run(main)  # type: ignore[arg-type]
