"""pytorch-forecasting's TemporalFusionTransformer as a yardstick for the speed of `tft`.

The library as its users run it: its TimeSeriesDataSet and DataLoader, its network, its quantile losses (one per target),
Adam and gradient clipping, float32. Four programs, each timed by its own clock after a warm-up:

    trainer  the whole loop under lightning.Trainer, without logger, checkpoints or progress bar, per --workers
    loop     the same loader (no workers) and network in a plain loop: what is left when the Trainer goes
    step     the same loop on one repeated batch: forward, loss, backward, clip, Adam
    loader   the loader alone, without workers: input per step

The columns have the roles and counts of a `tft` config, the values are harmonics and noise: only speed is measured.
Where a choice of the library costs time, the cheaper one is taken, so that a speed-up measured against it is not
flattered: 8-wide real inputs (its default, --continuous), one global scaler per target that is fitted once, no static
level variables, hour and weekday as categories (which skip their gated network), no logging.

    python scripts/peers/tft_forecasting.py --steps 5                       288 + 96 steps, 4 targets: one JSON line per program
    python scripts/peers/tft_forecasting.py --layout electricity --steps 5  168 + 24 hours, 1 target, hidden 128

Needs numpy, pandas, torch, lightning and pytorch-forecasting; without them it prints one line and exits with code 2.
"""

# pyright: reportMissingImports=false

import argparse
import itertools
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
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
    "groups": 48, "rows": 2016, "step-seconds": 300, "targets": 4, "observed-real": 2, "observed-categorical": 1, "known-real": 2,
    "known-categorical": 2, "static-real": 1, "static-categorical": 2, "relative": 1, "normalise": "global",
}  # fmt: skip
ELECTRICITY = {
    **FLEET,
    "context": 168, "horizon": 24, "hidden": 128, "quantiles": (0.1, 0.5, 0.9), "groups": 369, "rows": 672, "step-seconds": 3600,
    "targets": 1, "observed-real": 0, "observed-categorical": 0, "known-real": 3, "known-categorical": 0, "static-real": 0,
    "static-categorical": 1, "relative": 0, "normalise": "group",
}  # fmt: skip
LAYOUTS = {"fleet": FLEET, "electricity": ELECTRICITY}
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


def network(options: argparse.Namespace, data: "TimeSeriesDataSet") -> "TemporalFusionTransformer":
    torch.manual_seed(options.seed)
    return TemporalFusionTransformer.from_dataset(
        data,
        hidden_size=options.hidden,
        attention_head_size=options.heads,
        hidden_continuous_size=options.continuous,
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

    def times(self, warmup: int) -> dict[str, Any]:
        """Seconds per step after `warmup` steps: median, min, max of the wall clock; CPU is the mean, workers included."""
        stamps = np.array(self.stamps[warmup - 1 :])
        wall = np.diff(stamps[:, 0])
        spread = {"median": float(np.median(wall)), "min": float(wall.min()), "max": float(wall.max())}
        return {"wall_s": spread, "mean_wall_s": float(wall.mean()), "cpu_s": float(np.diff(stamps[[0, -1], 1])[0] / len(wall))}


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


def run_trainer(options: argparse.Namespace, data: "TimeSeriesDataSet", workers: int) -> Clock:
    clock = Clock(options.accumulate)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision="32-true",
        max_steps=options.warmup + options.steps,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(network(options, data), train_dataloaders=loader(options, data, workers))
    return clock


def run_plain(options: argparse.Namespace, data: "TimeSeriesDataSet", samples: Iterator[Sample]) -> Clock:
    """What the Trainer does in a step, and nothing else."""
    model, clock = network(options, data).train(), Clock()
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    for _ in range(options.warmup + options.steps):
        optimizer.zero_grad()
        for sample in itertools.islice(samples, options.accumulate):
            (loss_of(model, sample) / options.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        clock.stamp()
    return clock


def run_loader(options: argparse.Namespace, data: "TimeSeriesDataSet") -> Clock:
    clock, samples = Clock(), endless(options, data)
    for _ in range(options.warmup + options.steps):
        for _ in range(options.accumulate):
            next(samples)
        clock.stamp()
    return clock


def loader(options: argparse.Namespace, data: "TimeSeriesDataSet", workers: int) -> Any:
    return data.to_dataloader(train=True, batch_size=options.batch // options.accumulate, num_workers=workers)


def endless(options: argparse.Namespace, data: "TimeSeriesDataSet") -> Iterator[Sample]:
    while True:
        yield from loader(options, data, 0)


def programs(options: argparse.Namespace, data: "TimeSeriesDataSet") -> Iterator[tuple[str, int, Callable[[], Clock]]]:
    """(name, loader workers, what to time)."""
    for name in options.program:
        if name == "trainer":
            for workers in options.workers:
                yield f"trainer, {workers} workers", workers, lambda workers=workers: run_trainer(options, data, workers)
        elif name == "loop":
            yield name, 0, lambda: run_plain(options, data, endless(options, data))
        elif name == "step":
            yield name, 0, lambda: run_plain(options, data, itertools.repeat(next(endless(options, data))))
        else:
            yield name, 0, lambda: run_loader(options, data)


def bench(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One measurement per program and thread count, in seconds per optimizer step."""
    allocator = "keep" if options.allocator == "keep" and keep_freed_memory() else "default"
    data = dataset(options)
    model = network(options, data)
    sizes = {name: getattr(options, name) for name in (*ROLES, "context", "horizon", "hidden", "heads", "continuous", "groups", "normalise")}
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name, workers, run in programs(options, data):
            times = run().times(options.warmup)
            mean = times.pop("mean_wall_s")
            yield {
                "program": f"{name}, {threads} thread{'s' if threads > 1 else ''}",
                "mode": "input" if name == "loader" else "train",
                "batch": options.batch,
                "accumulate": options.accumulate,
                **sizes,
                "quantiles": len(options.quantiles),
                "parameters": sum(p.numel() for p in model.parameters()),
                "steps": options.steps,
                **times,
                "windows_per_s": options.batch / mean,
                "windows": len(data),
                "torch": torch.__version__,
                "pytorch_forecasting": pytorch_forecasting.__version__,
                "lightning": lightning.__version__,
                "threads": threads,
                "workers": workers,
                "allocator": allocator,
            }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=tuple(LAYOUTS), default="fleet", help="which defaults the sizes below have")
    parser.add_argument("--program", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2], help="loader processes of `trainer`")
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    for name, default in FLEET.items():
        if name == "quantiles":
            parser.add_argument("--quantiles", nargs="+", type=float)
        elif name == "normalise":
            parser.add_argument("--normalise", choices=("global", "group"), help="how targets are scaled")
        else:
            parser.add_argument(f"--{name}", type=type(default))
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches that a batch is cut into")
    parser.add_argument("--continuous", type=int, default=8, help="hidden_continuous_size (the library's default)")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=5, help="measured optimizer steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the clock counts")
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep", help="keep freed memory (faster), or as glibc comes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name, default in LAYOUTS[options.layout].items():
        if getattr(options, name.replace("-", "_")) is None:
            setattr(options, name.replace("-", "_"), default)
    counts = (options.steps, options.warmup, options.batch, options.accumulate, options.groups, options.targets, *options.threads)
    if min(counts) < 1 or min(options.workers) < 0:
        parser.error("--steps, --warmup, --batch, --accumulate, --groups, --targets and --threads must be at least 1, --workers at least 0")
    if options.batch % options.accumulate:
        parser.error(f"--batch {options.batch} is not a multiple of --accumulate {options.accumulate}")
    if options.hidden % options.heads:
        parser.error(f"--hidden {options.hidden} is not a multiple of --heads {options.heads}")
    windows = options.groups * max(0, options.rows - options.context - options.horizon + 1)
    if windows < options.batch:
        parser.error(f"--groups {options.groups} times --rows {options.rows} gives {windows} windows, fewer than one batch of {options.batch}")
    return options


def quiet() -> None:
    """The library and the Trainer comment on worker counts, pandas and checkpoints; standard output is for the results."""
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
