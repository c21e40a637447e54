"""pytorch-forecasting's TemporalFusionTransformer as a yardstick for the speed of `tft`.

The library as its users run it: its TimeSeriesDataSet and DataLoader, its network, its quantile losses (one per target),
Adam and gradient clipping, float32. Four programs, each timed by its own clock after a warm-up:

    trainer  the whole loop under lightning.Trainer, without logger, checkpoints or progress bar, per --workers
    loop     the same loader (no workers) and network in a plain loop: what is left when the Trainer goes
    step     the same loop on one repeated batch: forward, loss, backward, clip, Adam
    loader   the loader alone, without workers: input per step

The columns have the roles and counts of a `tft` config, the values are harmonics and noise: only speed is measured.
Each is timed twice, with inputs as wide as the hidden layer (as `tft` has them) and 8 wide (the library's default: a
smaller network). Where another choice of the library costs time, the cheaper one is taken, so that a speed-up measured
against it is not flattered: no missing values, scalers fitted once, no level variables, hour and weekday as categories
(which skip their gated network), no logging.

    python scripts/peers/tft_forecasting.py --steps 5                       288 + 96 steps, 4 targets: one JSON line per program
    python scripts/peers/tft_forecasting.py --layout electricity --steps 5  168 + 24 hours, 1 target, hidden 128

Needs numpy, pandas, torch, lightning and pytorch-forecasting; without them it prints one line and exits with code 2.
"""

# pyright: reportMissingImports=false

import argparse
import itertools
import json
import logging
import math
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

try:
    import lightning
    import numpy as np
    import pandas as pd
    import pytorch_forecasting
    import torch
    from allocator import keep_freed_memory
    from pytorch_forecasting import GroupNormalizer, MultiNormalizer, TemporalFusionTransformer, TimeSeriesDataSet
    from pytorch_forecasting.data import TorchNormalizer
    from pytorch_forecasting.metrics import MultiLoss, QuantileLoss
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    needs = "pip install numpy pandas torch lightning pytorch-forecasting"
    print(f"tft_forecasting.py: {sys.executable} lacks {missing.name}; {needs}", file=sys.stderr)
    sys.exit(2)

PROGRAMS = ("trainer", "loop", "step", "loader")
FLEET = {
    "context": 288, "horizon": 96, "hidden": 32, "heads": 4, "batch": 32, "quantiles": (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98),
    "groups": 48, "step-seconds": 300, "targets": 4, "observed-real": 2, "observed-categorical": 1, "known-real": 2,
    "known-categorical": 2, "static-real": 1, "static-categorical": 2, "relative": 1, "normalise": "global",
}  # fmt: skip
ELECTRICITY = {
    **FLEET,
    "context": 168, "horizon": 24, "hidden": 128, "quantiles": (0.1, 0.5, 0.9), "groups": 369, "step-seconds": 3600,
    "targets": 1, "observed-real": 0, "observed-categorical": 0, "known-real": 3, "known-categorical": 0, "static-real": 0,
    "static-categorical": 1, "relative": 0, "normalise": "group",
}  # fmt: skip
LAYOUTS = {"fleet": FLEET, "electricity": ELECTRICITY}
AT_LEAST_ONE = ("context", "horizon", "hidden", "heads", "batch", "groups", "targets", "step-seconds")
ROLES = ("targets", "observed_real", "observed_categorical", "known_real", "known_categorical", "static_real", "static_categorical")
Sample = tuple[dict[str, Any], Any]  # x and y of the library's loader


def columns(options: argparse.Namespace) -> dict[str, list[str]]:
    """Column names by role. With static categories, the first of them is the group itself."""
    names = {role: [f"{role}_{i}" for i in range(getattr(options, role))] for role in ROLES}
    names["static_categorical"][:1] = ["group"] * bool(names["static_categorical"])
    return names


def frame(options: argparse.Namespace) -> "pd.DataFrame":
    """A long table, `groups` times `rows`: daily harmonics and noise. The first known categories are the hour and the weekday."""
    rng = np.random.default_rng(options.seed)
    names, shape = columns(options), (options.groups, options.rows)
    seconds = np.arange(options.rows) * options.step_seconds
    calendar = [seconds // 3600 % 24, seconds // 86400 % 7]
    day = np.sin(2 * np.pi * seconds / 86400)
    table: dict[str, np.ndarray] = {"time": np.tile(np.arange(options.rows), options.groups)}
    table["group"] = np.repeat([f"group_{i:04d}" for i in range(options.groups)], options.rows)
    for role in ("targets", "observed_real", "known_real"):
        for name in names[role]:
            values = rng.normal(size=(options.groups, 1)) + day + rng.normal(size=shape)
            table[name] = values.astype(np.float32).ravel()
    for i, name in enumerate(names["known_categorical"]):
        codes = calendar[i] if i < len(calendar) else rng.integers(8, size=options.rows)
        table[name] = np.tile(codes, options.groups).astype(str)
    for name in names["observed_categorical"]:
        table[name] = rng.integers(8, size=shape).ravel().astype(str)
    for name in names["static_real"]:
        table[name] = np.repeat(rng.normal(size=options.groups).astype(np.float32), options.rows)
    for name in names["static_categorical"][1:]:
        table[name] = np.repeat(np.arange(options.groups) % 8, options.rows).astype(str)
    return pd.DataFrame(table)


def dataset(options: argparse.Namespace) -> "TimeSeriesDataSet":
    """The library's windows: every one has `context` past and `horizon` future steps."""
    names = columns(options)
    targets = names["targets"]
    scalers = [GroupNormalizer(groups=["group"]) if options.normalise == "group" else TorchNormalizer() for _ in targets]
    return TimeSeriesDataSet(
        frame(options),
        time_idx="time",
        target=targets if len(targets) > 1 else targets[0],
        group_ids=["group"],
        max_encoder_length=options.context,
        max_prediction_length=options.horizon,
        static_categoricals=names["static_categorical"],
        static_reals=names["static_real"],
        time_varying_known_categoricals=names["known_categorical"],
        time_varying_known_reals=names["known_real"],
        time_varying_unknown_categoricals=names["observed_categorical"],
        time_varying_unknown_reals=names["observed_real"] + targets,
        add_relative_time_idx=bool(options.relative),
        add_encoder_length=False,
        target_normalizer=MultiNormalizer(scalers) if len(targets) > 1 else scalers[0],
    )


def network(options: argparse.Namespace, data: "TimeSeriesDataSet", width: int) -> "TemporalFusionTransformer":
    """width: of the real inputs inside the selection networks, `hidden_continuous_size`."""
    torch.manual_seed(options.seed)
    return TemporalFusionTransformer.from_dataset(
        data,
        hidden_size=options.hidden,
        attention_head_size=options.heads,
        hidden_continuous_size=width,
        dropout=options.dropout,
        loss=QuantileLoss(list(options.quantiles)),
        learning_rate=options.learning_rate,
        optimizer="adam",
        log_interval=-1,
    )


def loss_of(model: "TemporalFusionTransformer", sample: Sample) -> "torch.Tensor":
    """The library's own objective: pinball of the forecast in units, summed over targets."""
    x, y = sample
    prediction = model(x)["prediction"]
    if isinstance(model.loss, MultiLoss):
        return model.loss(prediction, y, encoder_target=x["encoder_target"], encoder_lengths=x["encoder_lengths"])
    return model.loss(prediction, y)


class Clock(lightning.Callback):
    """Wall and CPU seconds at the end of every optimizer step."""

    def __init__(self, accumulate: int = 1) -> None:
        self.accumulate, self.batches = accumulate, 0
        self.stamps: list[tuple[float, float]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1
        if self.batches % self.accumulate == 0:
            self.stamp()

    def stamp(self) -> None:
        self.stamps.append((time.perf_counter(), cpu_seconds()))

    def times(self, warmup: int) -> dict[str, float]:
        """Seconds per step after `warmup` steps: the wall clock's median, min, max and mean; CPU is a mean, workers included."""
        stamps = np.array(self.stamps[warmup - 1 :])
        wall = np.diff(stamps[:, 0])
        spread = {"median": np.median(wall), "min": wall.min(), "max": wall.max(), "mean": wall.mean()}
        return {name: float(value) for name, value in (spread | {"cpu": np.diff(stamps[:, 1]).mean()}).items()}


def cpu_seconds() -> float:
    """CPU time of this process and, where the system tells (Linux), of its living loader workers."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system time, proc(5)
    return total


def run_trainer(options: argparse.Namespace, model: "TemporalFusionTransformer", batches: Any) -> Clock:
    clock = Clock(options.accumulate)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision="32-true",
        max_steps=options.warmup + options.steps,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.clip or None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(model, train_dataloaders=batches)
    return clock


def run_plain(options: argparse.Namespace, model: "TemporalFusionTransformer", samples: Iterator[Sample]) -> Clock:
    """What the Trainer does in a step, and nothing else."""
    clock = Clock()
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    for _ in range(options.warmup + options.steps):
        optimizer.zero_grad()
        for sample in itertools.islice(samples, options.accumulate):
            (loss_of(model, sample) / options.accumulate).backward()
        if options.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        clock.stamp()
    return clock


def run_loader(options: argparse.Namespace, samples: Iterator[Sample]) -> Clock:
    clock = Clock(options.accumulate)
    for _ in itertools.islice(samples, (options.warmup + options.steps) * options.accumulate):
        clock.on_train_batch_end()
    return clock


def loader(options: argparse.Namespace, data: "TimeSeriesDataSet", workers: int) -> Any:
    return data.to_dataloader(train=True, batch_size=options.batch // options.accumulate, num_workers=workers)


def endless(options: argparse.Namespace, data: "TimeSeriesDataSet") -> Iterator[Sample]:
    while True:
        yield from loader(options, data, 0)


def runs(options: argparse.Namespace, data: "TimeSeriesDataSet") -> Iterator[tuple[str, int, int, Callable[[], Clock]]]:
    """(program, input width, loader workers, what to time); the loader's time does not depend on the width."""
    for name, width in itertools.product(options.program, options.continuous):
        if name == "trainer":
            for workers in options.workers:
                yield name, width, workers, partial(run_trainer, options, network(options, data, width), loader(options, data, workers))
        elif name == "loop":
            yield name, width, 0, partial(run_plain, options, network(options, data, width), endless(options, data))
        elif name == "step":
            sample = next(endless(options, data))
            yield name, width, 0, partial(run_plain, options, network(options, data, width), itertools.repeat(sample))
        elif width == options.continuous[0]:
            yield name, width, 0, partial(run_loader, options, endless(options, data))


def bench(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One measurement per program, input width, worker and thread count, in seconds per optimizer step."""
    allocator = "keep" if options.allocator == "keep" and keep_freed_memory() else "default"
    data = dataset(options)
    parameters = {width: sum(p.numel() for p in network(options, data, width).parameters()) for width in options.continuous}
    sizes = {name: getattr(options, name) for name in (*ROLES, "context", "horizon", "hidden", "heads", "quantiles", "groups", "normalise")}
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, width, workers, run in runs(options, data):
            times = run().times(options.warmup)
            about = [name, *([f"{workers} workers"] if name == "trainer" else []), *([f"inputs {width} wide"] if name != "loader" else [])]
            yield {
                "program": ", ".join([*about, f"{threads} thread{'s' * (threads > 1)}"]),
                "mode": "input" if name == "loader" else "train",
                "batch": options.batch,
                "accumulate": options.accumulate,
                **sizes,
                "continuous": width,
                "parameters": parameters[width],
                "steps": options.steps,
                "wall_s": {key: times[key] for key in ("median", "min", "max")},
                "cpu_s": times["cpu"],
                "windows_per_s": options.batch / times["mean"],
                "windows": len(data),
                "torch": torch.__version__,
                "pytorch_forecasting": pytorch_forecasting.__version__,
                "lightning": lightning.__version__,
                "threads": threads,
                "workers": workers,
                "allocator": allocator,
            }


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=tuple(LAYOUTS), default="fleet", help="which defaults the sizes below have")
    parser.add_argument("--program", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2], help="loader processes of `trainer`")
    parser.add_argument("--threads", nargs="+", type=positive, default=[2, 1])
    for name in FLEET:
        if name not in ("quantiles", "normalise"):
            parser.add_argument(f"--{name}", type=positive if name in AT_LEAST_ONE else int)
    parser.add_argument("--quantiles", nargs="+", type=float)
    parser.add_argument("--normalise", choices=("global", "group"), help="how targets are scaled")
    parser.add_argument("--rows", type=positive, help="steps per group (default: enough for the measured steps)")
    parser.add_argument("--accumulate", type=positive, default=1, help="micro-batches of a batch")
    parser.add_argument("--continuous", nargs="+", type=positive, help="hidden_continuous_size (default: --hidden, and the library's 8)")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--clip", type=float, default=1.0, help="largest gradient norm; 0 = any")
    parser.add_argument("--steps", type=positive, default=5, help="measured optimizer steps")
    parser.add_argument("--warmup", type=positive, default=3, help="steps before the clock counts")
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep", help="keep freed memory (faster), or as glibc comes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name, default in LAYOUTS[options.layout].items():
        if getattr(options, name.replace("-", "_")) is None:
            setattr(options, name.replace("-", "_"), default)
    options.continuous = options.continuous or list(dict.fromkeys([options.hidden, 8]))
    if options.batch % options.accumulate:
        parser.error(f"--batch {options.batch} is not a multiple of --accumulate {options.accumulate}")
    if options.hidden % options.heads:
        parser.error(f"--hidden {options.hidden} is not a multiple of --heads {options.heads}")
    if options.rows is None:  # every measured step has windows of its own: a loader that starts anew would be timed with it
        needed = options.batch * (options.warmup + options.steps + 2)
        options.rows = options.context + options.horizon + max(options.context, math.ceil(needed / options.groups))
    windows = options.groups * max(0, options.rows - options.context - options.horizon + 1)
    if windows < options.batch:
        parser.error(f"--groups {options.groups} x --rows {options.rows} gives {windows} windows, fewer than one batch of {options.batch}")
    return options


def quiet() -> None:
    """No remarks on worker counts, pandas or checkpoints."""
    warnings.filterwarnings("ignore")
    os.environ["PYTHONWARNINGS"] = "ignore"  # of the loader workers
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_forecasting"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON line per measurement."""
    options = parse(arguments)
    quiet()
    for line in bench(options):
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
