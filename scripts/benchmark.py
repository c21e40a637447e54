"""Time a config's training program: python scripts/benchmark.py --config configs/stmgt.py[:preset] [--config.key=value ...]

Measures every combination of precision, placement and steps per call, each in a process of its own (so that peak memory is
its own), one after another on this machine: compile time without any cache, step time (median, min, max, CPU seconds), samples/s
of the whole loop with its input, input wait, peak memory, FLOPs and their share of a matrix product timed in the same run, bytes
(as XLA counts them, the body of an inner loop once) and their share of a memory copy timed in the same run.
--first also times the training command itself until its first step is done, with an empty compilation cache and again with a full one.
--members 5 also times five members trained in one program (`jaxtrain.population`).
--peers PYTHON also times other programs for the same job on the same sizes (scripts/peers), with that interpreter.
On one core: taskset -c 0 python scripts/benchmark.py ...
"""

import argparse
import itertools
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import benchmark_peers
import numpy as np

from jaxtrain import cli
from jaxtrain.engine import config as configs
from jaxtrain.engine.report import format_bytes, number, table, write_json
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
    parser.add_argument("--first", action="store_true", help="time the command until its first step, cold and cached")
    parser.add_argument("--members", type=int, nargs="*", default=[], help="also time so many members trained together")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has the peers' packages")
    parser.add_argument("--peer-options", default="", metavar="TEXT", help='for the peer script, e.g. "--program step --threads 1"')
    parser.add_argument("--output", type=Path, default=Path("benchmark.json"), help="where the rows go, as JSON")
    parser.add_argument("--one", type=int, metavar="MEMBERS", help=argparse.SUPPRESS)
    arguments, overrides = cli.parse(parser, argv)
    values = configs.load(arguments.config, overrides)
    if arguments.one:
        print(json.dumps(measure(values, arguments.steps, arguments.infer, arguments.one)))
        return 0
    if not arguments.output.parent.is_dir():
        raise UserError(f"--output {arguments.output}: there is no folder {arguments.output.parent}")
    if arguments.peers:
        benchmark_peers.check(arguments.peers, values["task"], arguments.precisions)
    calls = arguments.calls or sorted({1, min(values["train"]["steps_per_call"], arguments.steps)})
    started = first_step(arguments, overrides) if arguments.first else []
    rows = []
    for precision, placement, call in itertools.product(arguments.precisions, arguments.placements, calls):
        changes = {"train.precision": precision, "train.placement": placement, "train.steps_per_call": str(call)}
        for members in (1, *arguments.members):
            rows.append(child(arguments, {**overrides, **changes}, members))
            print(f"{program_name(rows[-1])}: {rows[-1]['samples_per_second']:,.1f} samples/s", file=sys.stderr)
    steps, more = max(3, min(arguments.steps, 10)), shlex.split(arguments.peer_options)
    peers = benchmark_peers.run(arguments.peers, values, steps, more) if arguments.peers else []
    result = {"command": " ".join(["python", "scripts/benchmark.py", *argv]), "machine": machine()}
    result |= {"rows": rows, "peers": peers, "first": started}
    text = render(result)
    print(text)
    write_json(arguments.output, result)
    return 0


def child(arguments: argparse.Namespace, overrides: Mapping[str, str], members: int) -> dict[str, Any]:
    """One combination in a process of its own."""
    options = [f"--config.{key}={value}" for key, value in overrides.items()]
    command = [sys.executable, __file__, "--one", str(members), "--config", arguments.config, "--steps", str(arguments.steps), *options]
    done = subprocess.run(command + (["--infer"] if arguments.infer else []), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"measurement failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def first_step(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> list[float]:
    """Seconds from the start of the training command until its first optimizer step is done: compilation cache empty, then full."""
    more = {**overrides, "train.steps_per_call": "1", "report.log_every": "1st"}
    options = [f"--config.{key}={value}" for key, value in more.items()]
    seconds = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(2):
            command = [sys.executable, "-m", "jaxtrain.main", "--config", arguments.config, "--workdir", f"{scratch}/{number}", *options]
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{scratch}/cache"}
            began, said = time.perf_counter(), ""
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            assert process.stderr is not None
            for said in process.stderr:
                if re.search(r" step [\d,]+/", said):
                    seconds.append(time.perf_counter() - began)
                    break
            process.kill()
            process.wait()
            if len(seconds) == number:
                raise UserError(f"measurement failed: {said.strip()}")
    return seconds


def measure(values: Mapping[str, Any], steps: int, infer: bool, members: int = 1) -> dict[str, Any]:
    """Everything about one combination, in this process; members > 1: so many seeds in one program."""
    import jax

    from jaxtrain.engine import population, profile
    from jaxtrain.engine.loop import compile_call
    from jaxtrain.engine.program import prepare
    from jaxtrain.engine.run import make_task
    from jaxtrain.engine.sharding import layout
    from jaxtrain.engine.start import start_jax
    from jaxtrain.engine.steps import stack_members

    start_jax(distributed=False)
    jax.config.update("jax_enable_compilation_cache", False)
    phase = configs.phases(values)[0]
    train = phase.engine.train
    task = make_task(values["task"], phase.task)
    splits = task.splits()
    task = task.with_statistics(splits.statistics)
    devices = layout(train.batch, phase.engine.eval.batch, train.accumulate)
    seeds = [replace(phase.engine, train=replace(train, seed=train.seed + i)) for i in range(members)]
    program = prepare(task, seeds[0], splits, devices, 0, 0)
    programs = [program, *(prepare(task, engine, splits, devices, 0, 0, arrays=program.arrays) for engine in seeds[1:])]
    state, key, scale = program.initialise(), jax.random.key(train.seed), np.float32(1)
    if members > 1:
        state, scale = stack_members([p.initialise() for p in programs]), np.ones(members, np.float32)
        key = jax.vmap(jax.random.key)(np.arange(members) + train.seed)
    began = time.perf_counter()
    counted = profile.flops_per_step(task.flops_per_example(), train.batch, None)
    call = compile_call(program, key) if members == 1 else population.compile_call(program, state, members, key, counted)
    compile_seconds = time.perf_counter() - began
    for each in programs:
        each.feed.start(0)
    n = min(train.steps_per_call, steps)

    def dispatch(state: Any) -> Any:
        taken = [p.feed.take(n, p.slots) for p in programs]
        if members == 1:
            return call(state, program.arrays, devices.put_local(taken[0], 1), np.int32(n), scale, key)
        inputs = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *taken), devices.batch(2))
        return call(state, program.arrays, inputs, np.int32(n), scale, key)

    state, logs = dispatch(state)
    jax.block_until_ready(logs)
    walls, cpus = [], []
    for _ in range(max(3, steps // n)):  # one dispatch at a time: the time of a step
        wall, cpu = time.perf_counter(), time.process_time()
        state, logs = dispatch(state)
        jax.block_until_ready(logs)
        walls.append((time.perf_counter() - wall) / n)
        cpus.append((time.process_time() - cpu) / n)
    for each in programs:
        each.feed.wait_seconds = 0.0
    began, rounds = time.perf_counter(), max(2, steps // n)
    for _ in range(rounds):  # as the training loop does: the host runs ahead
        state, logs = dispatch(state)
    jax.block_until_ready(logs)
    elapsed = time.perf_counter() - began
    analytic = task.flops_per_example()  # of one member; XLA's own count would be that of all of them
    flops = None if analytic is None and members > 1 else profile.flops_per_step(analytic, train.batch, call)
    peak = profile.peak_flops(train.precision)
    measured, copied = matmul_flops(train.precision), copy_bytes_per_second()
    moved = profile.bytes_per_step(call)
    step = median(walls)
    result = {
        "task": values["task"],
        "preset": values["preset"],
        "precision": train.precision,
        "placement": train.placement,
        "steps_per_call": train.steps_per_call,
        "members": members,
        "batch": train.batch,
        "parameters": sum(math.prod(p.shape) for p in program.abstract.params.values()),
        "compile_s": compile_seconds,
        "step_s": {"median": step, "min": min(walls), "max": max(walls)},
        "cpu_s": median(cpus),
        "samples_per_second": members * rounds * n * train.batch / elapsed,
        "input_wait": sum(p.feed.wait_seconds for p in programs) / elapsed,
        "gather_ms": gather_milliseconds(splits.train, train.batch),
        "flops_per_step": flops,
        "matmul_flops": measured,
        "share_of_matmul": members * flops / step / measured if flops else None,
        "mfu": members * flops / step / peak if flops and peak else None,
        "bytes_per_step": moved,
        "copy_bytes_per_s": copied,
        "share_of_copy": moved / step / copied if moved else None,
        "temporaries_bytes": profile.program_memory(call).get("temporaries"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }
    if infer and members == 1:
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


def copy_bytes_per_second() -> float:
    """Bytes read and written per second by a pass over an array far larger than the caches."""
    import jax
    import jax.numpy as jnp

    x = jnp.zeros((2**26 if jax.default_backend() == "cpu" else 2**29,), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 2 * x.nbytes / min(timed(lambda: add(x).block_until_ready(), 6))


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
    head = ["program", "compile s", "step ms", "min", "max", "CPU ms", "samples/s", "input wait", "memory", "of matmul", "of copy", "MFU"]
    rows = [head]
    for r in result["rows"]:
        times = [number(1e3 * r["step_s"][k]) for k in ("median", "min", "max")]
        shares = [f"{r[k]:.1%}" if r[k] else "-" for k in ("share_of_matmul", "share_of_copy", "mfu")]
        wait, memory = f"{r['input_wait']:.2%}", format_bytes(r["peak_memory_bytes"])
        speed = [number(1e3 * r["cpu_s"]), number(r["samples_per_second"]), wait]
        rows.append([program_name(r), number(r["compile_s"]), *times, *speed, memory, *shares])
    first, where = result["rows"][0], result["machine"]
    gflop = f", {number(first['flops_per_step'] / 1e9)} GFLOP per step" if first["flops_per_step"] else ""
    text = f"{result['command']}\n{where['cpu']}, {where['cores']} cores; {first['device']}; JAX {first['jax']}, Python {where['python']}\n"
    text += (
        f"batch {first['batch']}, {first['parameters']:,} parameters{gflop}; one batch gathered on the host in {first['gather_ms']:.3f} ms"
    )
    peaks = [number(first[name] / 1e9) for name in ("matmul_flops", "copy_bytes_per_s")]
    text += f"\nmatrix product {peaks[0]} GFLOP/s, memory copy {peaks[1]} GB/s"
    if result["first"]:
        cold, warm = result["first"]
        text += f"\nfirst step {number(cold)} s after the command, {number(warm)} s with a full compilation cache"
    text += f"\n\n{table(rows)}"
    for r in result["rows"]:
        if r["members"] > 1:
            text += f"\n{cost_of_members(r, result['rows'])}"
    if result["peers"]:
        head = ["peer", "wall ms", "min", "max", "CPU ms", "samples/s", "memory", "wall / ours", "CPU / ours"]
        text += "\n\n" + table([head, *map(peer_row(result), result["peers"])])
    return text


def program_name(row: Mapping[str, Any]) -> str:
    members = f", {row['members']} members" if row["members"] > 1 else ""
    return f"{row['precision']}, {row['placement']}, {row['steps_per_call']} per call{members}"


def cost_of_members(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """What members trained together cost over the lone run of the same program."""
    alike = ("precision", "placement", "steps_per_call")
    one = next(r for r in rows if r["members"] == 1 and all(r[k] == row[k] for k in alike))
    ratio = row["step_s"]["median"] / one["step_s"]["median"]
    cpu = row["cpu_s"] / one["cpu_s"]
    return f"{program_name(row)} cost {ratio:.2f} x one by the wall clock ({ratio / row['members']:.2f} x per member), {cpu:.2f} x CPU time"


def peer_row(result: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], list[str]]:
    """A peer's row, with the ratios to our fastest float32 program."""
    ours = min((r for r in result["rows"] if r["precision"] == "float32" and r["members"] == 1), key=lambda r: r["step_s"]["median"])
    ours_wall = {"train": ours["step_s"]["median"], "infer": ours.get("infer_s", {}).get("median")}

    def row(peer: Mapping[str, Any]) -> list[str]:
        wall, mode = peer["wall_s"], peer["mode"]
        times = [number(1e3 * wall[k]) for k in ("median", "min", "max")]
        ratio = f"{wall['median'] / ours_wall[mode]:.2f}" if ours_wall.get(mode) else "-"
        cpu = f"{peer['cpu_s'] / ours['cpu_s']:.2f}" if mode == "train" else "-"
        memory = format_bytes(peer["peak_memory_bytes"]) if "peak_memory_bytes" in peer else "-"
        return [f"{peer['program']}, {mode}", *times, number(1e3 * peer["cpu_s"]), number(peer["windows_per_s"]), memory, ratio, cpu]

    return row


if __name__ == "__main__":
    cli.run(main)  # type: ignore[arg-type]
