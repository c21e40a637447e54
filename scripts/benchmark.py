"""Time a config's training program: python scripts/benchmark.py --config configs/stmgt.py[:preset] [--config.key=value ...]

Measures every combination of precision, placement and steps per call, each in a process of its own (so that peak memory is
its own), one after another on this machine: compile time without any cache, step time (median, min, max, CPU seconds), samples/s
of the whole loop with its input, input wait, peak memory, FLOPs and their share of a matrix product timed in the same run.
--peers PYTHON also times other programs for the same job on the same sizes (scripts/peers), with that interpreter.
On one core: taskset -c 0 python scripts/benchmark.py ...
"""

import argparse
import itertools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import benchmark_peers
import numpy as np

from jaxtrain import cli
from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError


def main(argv: list[str]) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python scripts/benchmark.py", description=__doc__, formatter_class=style)
    parser.add_argument("--config", required=True)
    parser.add_argument("--precisions", nargs="+", default=["float32", "mixed_bfloat16"])
    parser.add_argument("--placements", nargs="+", default=["device", "host"])
    parser.add_argument("--calls", nargs="+", type=int, help="steps per call to try (default: 1 and the config's)")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each measured pass")
    parser.add_argument("--infer", action="store_true", help="time the forward pass too (of networks that are called with a batch)")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has the peers' packages")
    parser.add_argument("--peer-options", default="", metavar="TEXT", help='for the peer script, e.g. "--program step --threads 1"')
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"), help="where the rows go, as JSON")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments, overrides = cli.parse(parser, argv)
    values = configs.load(arguments.config, overrides)
    if arguments.one:
        print(json.dumps(measure(values, arguments.steps, arguments.infer)))
        return 0
    if not arguments.output.parent.is_dir():
        raise UserError(f"--output {arguments.output}: there is no folder {arguments.output.parent}")
    if arguments.peers:
        benchmark_peers.check(arguments.peers, values["task"], arguments.precisions)
    calls = arguments.calls or sorted({1, min(values["train"]["steps_per_call"], arguments.steps)})
    rows = []
    for precision, placement, call in itertools.product(arguments.precisions, arguments.placements, calls):
        changes = {"train.precision": precision, "train.placement": placement, "train.steps_per_call": str(call)}
        rows.append(child(arguments, {**overrides, **changes}))
        print(f"{precision}, {placement}, {call} per call: {rows[-1]['samples_per_second']:,.1f} samples/s", file=sys.stderr)
    steps, more = max(3, min(arguments.steps, 10)), shlex.split(arguments.peer_options)
    peers = benchmark_peers.run(arguments.peers, values, steps, more) if arguments.peers else []
    result = {"command": " ".join(["python", "scripts/benchmark.py", *argv]), "machine": machine(), "rows": rows, "peers": peers}
    text = render(result)
    print(text)
    temporary = arguments.output.with_name(f".{arguments.output.name}.{os.getpid()}")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(arguments.output)
    return 0


def child(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> dict[str, Any]:
    """One combination in a process of its own."""
    options = [f"--config.{key}={value}" for key, value in overrides.items()]
    command = [sys.executable, __file__, "--one", "--config", arguments.config, "--steps", str(arguments.steps), *options]
    done = subprocess.run(command + (["--infer"] if arguments.infer else []), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"measurement failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(values: Mapping[str, Any], steps: int, infer: bool) -> dict[str, Any]:
    """Everything about one combination, in this process."""
    import jax

    from jaxtrain.engine import profile
    from jaxtrain.engine.loop import compile_call
    from jaxtrain.engine.program import prepare
    from jaxtrain.engine.run import make_task
    from jaxtrain.engine.sharding import layout
    from jaxtrain.engine.start import start_jax

    start_jax(distributed=False)
    jax.config.update("jax_enable_compilation_cache", False)
    phase = configs.phases(values)[0]
    train = phase.engine.train
    task = make_task(values["task"], phase.task)
    splits = task.splits()
    task = task.with_statistics(splits.statistics)
    devices = layout(train.batch, phase.engine.eval.batch, train.accumulate)
    program = prepare(task, phase.engine, splits, devices, 0, 0)
    key = jax.random.key(train.seed)
    began = time.perf_counter()
    call = compile_call(program, key)
    compile_seconds = time.perf_counter() - began
    state = program.initialise()
    program.feed.start(0)
    n = min(train.steps_per_call, steps)

    def dispatch(state: Any) -> Any:
        inputs = devices.put_local(program.feed.take(n, program.slots), 1)
        return call(state, program.arrays, inputs, np.int32(n), np.float32(1), key)

    state, logs = dispatch(state)
    jax.block_until_ready(logs)
    walls, cpus = [], []
    for _ in range(max(3, steps // n)):  # one dispatch at a time: the time of a step
        wall, cpu = time.perf_counter(), time.process_time()
        state, logs = dispatch(state)
        jax.block_until_ready(logs)
        walls.append((time.perf_counter() - wall) / n)
        cpus.append((time.process_time() - cpu) / n)
    program.feed.wait_seconds = 0.0
    began, rounds = time.perf_counter(), max(2, steps // n)
    for _ in range(rounds):  # as the training loop does: the host runs ahead
        state, logs = dispatch(state)
    jax.block_until_ready(logs)
    elapsed = time.perf_counter() - began
    flops = profile.flops_per_step(task.flops_per_example(), train.batch, call)
    peak = profile.peak_flops(train.precision)
    measured = matmul_flops(train.precision)
    step = median(walls)
    result = {
        "task": values["task"],
        "preset": values["preset"],
        "precision": train.precision,
        "placement": train.placement,
        "steps_per_call": train.steps_per_call,
        "batch": train.batch,
        "parameters": sum(math.prod(p.shape) for p in program.abstract.params.values()),
        "compile_s": compile_seconds,
        "step_s": {"median": step, "min": min(walls), "max": max(walls)},
        "cpu_s": median(cpus),
        "samples_per_second": rounds * n * train.batch / elapsed,
        "input_wait": program.feed.wait_seconds / elapsed,
        "gather_ms": gather_milliseconds(splits.train, train.batch),
        "flops_per_step": flops,
        "matmul_flops": measured,
        "share_of_matmul": flops / step / measured if flops else None,
        "mfu": flops / step / peak if flops and peak else None,
        "temporaries_bytes": profile.program_memory(call).get("temporaries"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }
    if infer:
        result["infer_s"] = forward_seconds(task, program, splits, state, train.batch)
    return {**result, "peak_memory_bytes": profile.peak_memory_bytes()}


def forward_seconds(task: Any, program: Any, splits: Any, state: Any, batch: int) -> dict[str, float]:
    """Median, min and max seconds of the network alone on one batch."""
    import jax

    rows = np.resize(splits.train.index, (batch, splits.train.index.shape[1]))  # a short split is repeated
    inputs = dict(splits.train.gather(splits.train.arrays, rows))
    inputs = {k: jax.device_put(v) for k, v in inputs.items() if not k.startswith("target")}
    forward = jax.jit(lambda p, m, x: program.template.join(p, m, training=False)(x))
    seconds = timed(lambda: jax.block_until_ready(forward(state.params, state.model_state, inputs)), 7)
    return {"median": median(seconds), "min": min(seconds), "max": max(seconds)}


def gather_milliseconds(dataset: Any, batch: int) -> float:
    """One batch on the host."""
    rows = dataset.index[np.random.default_rng(0).integers(len(dataset), size=batch)]
    return 1e3 * median(timed(lambda: dataset.gather(dataset.arrays, rows), 20))


def matmul_flops(precision: str) -> float:
    """FLOP/s of a square matrix product, the most this machine gives a program now."""
    import jax
    import jax.numpy as jnp

    dtype = jnp.float32 if precision == "float32" else jnp.bfloat16
    size = 8192 if jax.default_backend() != "cpu" else 2048 if dtype == jnp.float32 else 1024
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / min(timed(lambda: product(a).block_until_ready(), 6))


def timed(function: Callable[[], Any], repeats: int) -> list[float]:
    function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return seconds


def machine() -> dict[str, Any]:
    names = {line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")}
    return {"cpu": ", ".join(sorted(names)) or platform.processor(), "cores": os.cpu_count(), "python": platform.python_version()}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def render(result: Mapping[str, Any]) -> str:
    """The printed tables."""
    from jaxtrain.engine.report import format_bytes, number, table

    rows = [["program", "compile s", "step ms", "min", "max", "CPU ms", "samples/s", "input wait", "memory", "of matmul", "MFU"]]
    for r in result["rows"]:
        times = [number(1e3 * r["step_s"][k]) for k in ("median", "min", "max")]
        shares = [f"{r[k]:.1%}" if r[k] else "-" for k in ("share_of_matmul", "mfu")]
        name = f"{r['precision']}, {r['placement']}, {r['steps_per_call']} per call"
        wait, memory = f"{r['input_wait']:.2%}", format_bytes(r["peak_memory_bytes"])
        rows.append(
            [name, number(r["compile_s"]), *times, number(1e3 * r["cpu_s"]), number(r["samples_per_second"]), wait, memory, *shares]
        )
    first, where = result["rows"][0], result["machine"]
    gflop = f", {number(first['flops_per_step'] / 1e9)} GFLOP per step" if first["flops_per_step"] else ""
    text = f"{result['command']}\n{where['cpu']}, {where['cores']} cores; {first['device']}; JAX {first['jax']}, Python {where['python']}\n"
    text += (
        f"batch {first['batch']}, {first['parameters']:,} parameters{gflop}; one batch gathered on the host in {first['gather_ms']:.3f} ms"
    )
    text += f"\n\n{table(rows)}"
    if result["peers"]:
        head = ["peer", "wall ms", "min", "max", "CPU ms", "samples/s", "wall / ours", "CPU / ours"]
        text += "\n\n" + table([head, *map(peer_row(result), result["peers"])])
    return text


def peer_row(result: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], list[str]]:
    """A peer's row, with the ratios to our fastest float32 program."""
    from jaxtrain.engine.report import number

    ours = min((r for r in result["rows"] if r["precision"] == "float32"), key=lambda r: r["step_s"]["median"])
    ours_wall = {"train": ours["step_s"]["median"], "infer": ours.get("infer_s", {}).get("median")}

    def row(peer: Mapping[str, Any]) -> list[str]:
        wall, mode = peer["wall_s"], peer["mode"]
        times = [number(1e3 * wall[k]) for k in ("median", "min", "max")]
        ratio = f"{wall['median'] / ours_wall[mode]:.2f}" if ours_wall.get(mode) else "-"
        cpu = f"{peer['cpu_s'] / ours['cpu_s']:.2f}" if mode == "train" else "-"
        return [f"{peer['program']}, {mode}", *times, number(1e3 * peer["cpu_s"]), number(peer["windows_per_s"]), ratio, cpu]

    return row


if __name__ == "__main__":
    cli.run(main)  # type: ignore[arg-type]
