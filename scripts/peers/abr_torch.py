"""The network of `abr` in plain PyTorch, as a yardstick for the speed of `jaxtrain.models.abr`.

Two programs with the same weights and the same function, which differ in how S4 runs through a signal:

    fft       by Fourier transforms, the usual way
    toeplitz  by products of matrices, as here

    python scripts/peers/abr_torch.py --check WEIGHTS.npz IO.npz       weights by path, inputs and outputs by name ("in/x", "out/signal")
    python scripts/peers/abr_torch.py --bench --batch 32 --steps 5     one JSON line per program and mode

Needs torch; without it it prints one line and exits with code 2.
"""

# pyright: reportMissingImports=false

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from abr_torch_network import CLASSES, SAMPLES, STATICS, Network, Sizes, load
    from allocator import keep_freed_memory, peak_memory_bytes
    from torch import Tensor, nn
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(f"abr_torch.py: {sys.executable} lacks {missing.name}; pip install numpy torch", file=sys.stderr)
    sys.exit(2)

PROGRAMS = ("fft", "toeplitz")
TOLERANCE = 1e-4


def sizes_of(options: argparse.Namespace, program: str) -> Sizes:
    given = {field.name: getattr(options, field.name) for field in fields(Sizes) if field.name != "convolution"}
    return Sizes(**given | {"channels": tuple(options.channels)}, convolution=program)


def batches(options: argparse.Namespace) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Rows of shared tensors of noise, as inputs and targets: only speed is measured."""
    draw = np.random.default_rng(options.seed)
    real = lambda *shape: torch.from_numpy(draw.normal(size=(options.rows, *shape)).astype(np.float32))  # noqa: E731
    label = torch.from_numpy(draw.integers(0, CLASSES, options.rows))
    t, ok = torch.from_numpy(draw.integers(0, 1000, options.rows)), torch.ones(options.rows, STATICS, dtype=torch.bool)
    inputs = {"x": real(SAMPLES), "statics": real(STATICS), "scale": real(2), "statics_ok": ok, "label": label, "t": t}
    inputs["null"] = torch.zeros(options.rows, dtype=torch.bool)
    targets = {"signal": real(SAMPLES), "latency_ms": real(), "amplitude_z": real(), "threshold_z": real(), "label": label}
    while True:
        order = torch.randperm(options.rows)
        for rows in order[: options.rows // options.batch * options.batch].view(-1, options.batch):
            yield {name: value[rows] for name, value in inputs.items()}, {name: value[rows] for name, value in targets.items()}


def loss(found: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Every output trains: squares, a cross-entropy each of existence and class, and a Gaussian likelihood per SD."""
    if "v" in found:
        return F.mse_loss(found["v"], targets["signal"])
    total = F.mse_loss(found["signal"], targets["signal"]) + F.cross_entropy(found["class_logits"], targets["label"])
    total = total + F.binary_cross_entropy_with_logits(found["existence"], (targets["label"] > 0).float())
    for name in ("latency_ms", "amplitude_z", "threshold_z"):
        error, ln_sd = found[name] - targets[name], found[f"{name.rsplit('_', 1)[0]}_ln_sd"]
        total = total + (error**2).mean() + (0.5 * (error.detach() * (-ln_sd).exp()) ** 2 + ln_sd).mean()
    return total


def check(weights_path: str, io_path: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Largest difference of each output from the recorded one, relative to its largest value."""
    with np.load(weights_path) as weights, np.load(io_path) as io:
        inputs = {name[3:]: torch.from_numpy(io[name]) for name in io.files if name.startswith("in/")}
        outputs = {name[4:]: torch.from_numpy(io[name]) for name in io.files if name.startswith("out/")}
        for program in options.program:
            network = Network(sizes_of(options, program)).eval()
            load(network, weights)
            with torch.no_grad():
                found = network(inputs)
            differences = {name: float((found[name] - value).abs().max() / value.abs().max()) for name, value in outputs.items()}
            yield {"program": program, "missing": sorted(set(found) ^ set(outputs)), **differences}


def step_times(network: Network, source: Iterator[Any], mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time whole steps, input included: train = forward, loss, backward (part by part), clip, AdamW; infer = forward alone."""
    warmup, steps, parts = options.warmup, options.steps, options.accumulate
    network.train(mode == "train")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01)
    wall, cpu, wait = [], [], []
    with torch.inference_mode(mode == "infer"):
        for _ in range(warmup + steps):
            started, cpu_started = time.perf_counter(), time.process_time()
            inputs, targets = next(source)
            waited = time.perf_counter() - started
            if mode == "infer":
                network(inputs)
            else:
                optimizer.zero_grad()
                for part in range(parts):
                    found = network({name: value[part::parts] for name, value in inputs.items()})
                    (loss(found, {name: value[part::parts] for name, value in targets.items()}) / parts).backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
            wall.append(time.perf_counter() - started)
            cpu.append(time.process_time() - cpu_started)
            wait.append(waited)
    wall, cpu, wait = wall[warmup:], cpu[warmup:], wait[warmup:]
    return {
        "wall_s": {"median": float(np.median(wall)), "min": min(wall), "max": max(wall)},
        "cpu_s": float(np.median(cpu)),
        "input_wait_s": float(np.median(wait)),
    }


def bench(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One measurement per program and mode, times in seconds per step (medians; `wall_s` with its range)."""
    allocator = "keep" if options.allocator == "keep" and keep_freed_memory() else "default"
    torch.set_num_threads(options.threads)
    for program in options.program:
        for mode in options.mode:
            torch.manual_seed(options.seed)
            network = Network(sizes_of(options, program))
            times = step_times(network, batches(options), mode, options)
            yield {
                "program": program,
                "mode": mode,
                "batch": options.batch,
                "objective": options.objective,
                "channels": options.channels,
                "parameters": sum(value.numel() for value in network.parameters()),
                "steps": options.steps,
                **times,
                "windows_per_s": options.batch / times["wall_s"]["median"],
                "peak_memory_bytes": peak_memory_bytes(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "allocator": allocator,
            }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", nargs=2, metavar=("WEIGHTS", "IO"), help="compare both programs with recorded arrays (.npz)")
    action.add_argument("--bench", action="store_true", help="time training and inference on noise")
    parser.add_argument("--program", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--mode", nargs="+", choices=("train", "infer"), default=["train", "infer"])
    parser.add_argument("--objective", choices=("predict", "generate"), default="predict")
    parser.add_argument("--channels", nargs="+", type=int, default=list(Sizes.channels))
    for field in fields(Sizes):
        if isinstance(field.default, int | float):
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a training batch")
    parser.add_argument("--rows", type=int, default=2048, help="records of noise")
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the clock counts")
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep", help="keep freed memory (faster), or as glibc comes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for path in options.check or ():
        if not Path(path).is_file():
            parser.error(f"no file {path}")
    if min(options.steps, options.threads, options.batch) < 1:
        parser.error("--steps, --threads and --batch must be at least 1")
    if options.rows < options.batch:
        parser.error(f"--rows {options.rows} is too few for one batch of {options.batch}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON line per measurement. --check exits with 1 when an output is off by TOLERANCE or more, or missing."""
    options = parse(arguments)
    if options.bench:
        for line in bench(options):
            print(json.dumps(line), flush=True)
        return 0
    results = list(check(*options.check, options))
    for line in results:
        print(json.dumps(line), flush=True)
    return 0 if all(not line["missing"] and max(v for v in line.values() if isinstance(v, float)) < TOLERANCE for line in results) else 1


if __name__ == "__main__":
    sys.exit(main())
