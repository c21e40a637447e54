"""One run from config to summary: check, train every phase, test the best weights, write what was found."""

import importlib.metadata
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxtrain.data.dataset import Dataset, Splits, Statistics
from jaxtrain.engine import config as configs
from jaxtrain.engine import optimizer, profile, report, steps
from jaxtrain.engine.checkpoint import Checkpoints, check_leaves, holds_checkpoint
from jaxtrain.engine.clock import Clock, Stop
from jaxtrain.engine.course import course
from jaxtrain.engine.feed import check_weights
from jaxtrain.engine.loop import Result, monitored, train_phase
from jaxtrain.engine.program import Built, build_model
from jaxtrain.engine.run import (
    CONFIG,
    STATISTICS,
    SUMMARY,
    checkpoint_folder,
    load_statistics,
    make_task,
    open_run,
    read_config,
    save_statistics,
)
from jaxtrain.engine.sharding import Layout, layout
from jaxtrain.engine.start import start_jax
from jaxtrain.engine.state import Params, Template
from jaxtrain.engine.testing import Part, Tested, draw, render, test
from jaxtrain.errors import UserError
from jaxtrain.tasks.task import Task


def train_and_test(values: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """Train, test, write `summary.json` and print the table; returns the summary.

    Everything that can be wrong with config, data or folder is found before the folder is made or changed.
    """
    began = time.perf_counter()
    finished = check_folder(values, workdir)
    if finished is not None:
        print(f"{workdir}: finished at step {finished['steps']:,}; its scores:\n{render(finished)}")
        return finished
    start_jax()
    phases = configs.phases(values)
    with Stop() as stop:
        parts = prepare_parts(values, phases)
        statistics = parts[-1].task.statistics
        trained = [holds_checkpoint(checkpoint_folder(workdir, phases, part.number)) for part in parts]
        check_statistics(workdir, statistics, any(trained))
        # Once the run has checkpoints of its own, the run it started from may be gone.
        carried = None if any(trained) else initial_weights(values, parts[0])
        quiet = jax.process_index() > 0
        progress = report.Progress(quiet=quiet)
        if not quiet:
            workdir.mkdir(parents=True, exist_ok=True)
            lock = hold(workdir)  # noqa: F841 held until this function returns
            report.write_json(workdir / CONFIG, values)
            save_statistics(workdir, statistics)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("run folder")
        clock = Clock()
        part, result = train_parts(workdir, phases, parts, carried, progress, clock, stop)
        summary, tested = conclude(values, workdir, phases, part, result, clock, stop, quiet=quiet)
        clock.seconds["total"] = time.perf_counter() - began
        summary |= {"seconds": dict(clock.seconds), "peak_memory_bytes": profile.peak_memory_bytes()}
        if quiet:
            return summary
        report.write_json(workdir / SUMMARY, summary)
        if tested is None:
            progress.say(f"interrupted at step {result.step:,}; saved. Repeat the command to go on.")
            return summary
        print(render(summary))
        speed = summary["samples_per_second"]
        print(
            f"{workdir}: {report.format_duration(clock.seconds['total'])}, best step {result.standing.best_step} of {result.step}, "
            f"{f'{speed:,.0f} samples/s, ' if speed else ''}peak memory {report.format_bytes(summary['peak_memory_bytes'])}",
            flush=True,
        )
        show = part.phase.engine.report
        if show.figures and stop.signal is None:  # this process alone draws; last: whatever a picture costs, the scores are safe
            paths = draw(workdir, tested, result.step, tensorboard=show.tensorboard)
            progress.say(f"{len(paths)} figures in {workdir / 'figures'}")
    return summary


def conclude(
    values: Mapping[str, Any], workdir: Path, phases: list[configs.Phase], part: Part, result: Result, clock: Clock, stop: Stop, *,
    quiet: bool = False,
) -> tuple[dict[str, Any], Tested | None]:  # fmt: skip
    """Test what was trained; the summary but for times and memory, and what `draw` needs (None where the run was interrupted)."""
    summary = facts(values, part, result)
    if result.status == "finished" and stop.asked():
        result = replace(result, status="interrupted")
    tested = None
    if result.status == "finished":
        checkpoints = open_checkpoints(workdir, phases, part)
        try:
            with clock.measure("eval"):
                found, tested = test(workdir, part, checkpoints, result.program)
        finally:
            checkpoints.close()
        summary |= found
        if not quiet:
            summary["course"] = passed(workdir, part, result)
    summary["status"] = result.status
    return summary, tested


def prepare_parts(values: Mapping[str, Any], phases: list[configs.Phase]) -> list[Part]:
    """Every phase with its data, checked."""
    tasks = [make_task(values["task"], phase.task) for phase in phases]
    splits = [task.splits() for task in tasks]
    statistics = splits[-1].statistics  # the last phase's, for all of them: the weights carry over, so must their units
    tasks = [task.with_statistics(statistics) for task in tasks]
    together = zip(phases, tasks, splits, strict=True)
    return [Part(number, p, task, part, *check_phase(task, p, part)) for number, (p, task, part) in enumerate(together)]


def train_parts(
    workdir: Path,
    phases: list[configs.Phase],
    parts: list[Part],
    carried: tuple[Params, Params] | None,
    progress: report.Progress,
    clock: Clock,
    stop: Stop,
) -> tuple[Part, Result]:
    """Train what is left, phase by phase; the part that came last, and its result."""
    first_step = 0
    for part in parts:
        checkpoints = open_checkpoints(workdir, phases, part)
        try:
            if has_later_checkpoint(workdir, phases, parts, part.number):
                first_step = int(checkpoints.latest() or 0)  # this phase is over: only its weights matter
            else:
                result = train_phase(
                    part, workdir=workdir, checkpoints=checkpoints, first_step=first_step, carried=carried, progress=progress,
                    clock=clock, stop=stop,
                )  # fmt: skip
                if result.status == "interrupted" or part is parts[-1]:
                    return part, result
                first_step = result.step
            carried = carried_weights(checkpoints, phases[part.number + 1].carry, part)
        finally:
            checkpoints.close()
    raise AssertionError("the last phase always trains")


def passed(workdir: Path, part: Part, result: Result) -> dict[str, Any]:
    """The course of the last phase, from its curves."""
    name, mode = monitored(part.task, part.phase.engine)
    per_epoch = len(part.splits.train) / part.phase.engine.train.batch
    return course(workdir / "metrics.jsonl", part.phase.name, name, mode, result.standing.first_step, per_epoch)


def facts(values: Mapping[str, Any], part: Part, result: Result) -> dict[str, Any]:
    """What `summary.json` says besides the scores."""
    best = {"step": result.standing.best_step, "metric": monitored(part.task, part.phase.engine)[0], "value": result.standing.best_value}
    return {
        "task": values["task"],
        "preset": values["preset"],
        "status": result.status,
        "steps": result.step,
        "best": best,
        "stopped_early": result.standing.stopped,
        **{k: v for k, v in result.facts.items() if k != "program_memory"},
        "notes": list(part.splits.notes),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "versions": versions(),
    }


def check_folder(values: Mapping[str, Any], workdir: Path) -> dict[str, Any] | None:
    """The summary of a finished run, None where there is something to do; refuses a folder of another config."""
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir}: is a file; name a folder")
    if not (workdir / CONFIG).exists():
        if workdir.exists() and any(p for p in workdir.iterdir() if not p.name.startswith(".")):
            raise UserError(f"--workdir {workdir}: is not empty and holds no {CONFIG}; name a new folder")
        return None
    old = read_config(workdir)
    # What a run shows and traces changes no result, so it may change between calls.
    names = [n for n in configs.differences(old, json.loads(json.dumps(values))) if not n.startswith(("report.", "profile."))]
    if names:
        raise UserError(
            f"--workdir {workdir}: belongs to a run with another config ({', '.join(names)} differ); "
            f"use another folder, or its config: --config {workdir / CONFIG}"
        )
    try:
        summary = json.loads((workdir / SUMMARY).read_text())
    except (OSError, ValueError):
        return None
    return summary if summary.get("status") == "finished" else None


def hold(workdir: Path) -> Any:
    """A lock on the run folder for as long as the result lives. Raises UserError while another process trains in it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    file = (workdir / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--workdir {workdir}: another process is training in it; wait for it, or name another folder") from None
    except OSError:
        pass  # a file system without locks
    return file


def check_phase(task: Task, phase: configs.Phase, splits: Splits) -> tuple[Layout, Built]:
    """Every split holds something; the batches divide over the devices; schedule, monitor and model fit."""
    for name, dataset in splits.named().items():
        if len(dataset) == 0:
            raise UserError(f"data: the {name} split is empty; change the fractions, gaps or window lengths")
    train = phase.engine.train
    if train.batch > len(splits.train):
        raise UserError(f"config.train.batch {train.batch}: more than the {len(splits.train)} training examples; set it to at most that")
    devices = layout(train.batch, phase.engine.eval.batch, train.accumulate)
    optimizer.schedule(phase.engine.optimizer, len(splits.train) / train.batch)
    check_weights(splits.train)
    if train.placement == "device":
        for array in splits.train.arrays.values():  # one that stays in its files says here that it does
            getattr(array, "__jax_array__", None)
    built = template, params, model_state, _ = build_model(task, train.precision, train.seed)
    rows = splits.train.index[: min(2, train.batch // train.accumulate)]  # two where there are two: batch norm needs them
    one = {**splits.train.gather(splits.train.arrays, rows), "mask": np.ones(len(rows), np.float32)}
    jax.eval_shape(lambda p, m: task.loss(template.join(p, m, training=True), one, nnx.Rngs(0)), params, model_state)
    if train.monitor:
        names = score_names(task, template, params, model_state, splits.valid)
        if train.monitor not in names:
            raise UserError(f"config.train.monitor: no score is called {train.monitor!r}{configs.nearest(train.monitor, names)}")
    return devices, built


def score_names(task: Task, template: Template, params: Params, model_state: Params, valid: Dataset) -> list[str]:
    """The names of the scores that an evaluation will have, without computing one."""
    batch = {**valid.gather(valid.arrays, valid.index[:1]), "mask": np.ones(1, np.float32)}
    sums = jax.eval_shape(steps.score_call(task, template, None), params, model_state, {}, batch)
    # Some scores exist only for some sums (R2 needs a variance above 0): several draws name them all.
    draws = (np.random.default_rng(seed) for seed in range(8))
    found = [task.summarize({k: draw.uniform(0.5, 1.5, v.shape) for k, v in sums.items()}) for draw in draws]
    return list(dict.fromkeys(f"valid/{name}" for scores in found for name in scores))


def check_statistics(workdir: Path, statistics: Statistics, trained: bool) -> None:
    """Refuse to go on with other data: half of the run's numbers would belong to each.

    Sums are rounded otherwise on another number of cores; the network keeps the numbers of its checkpoint in any case.
    """
    if not trained or not (workdir / STATISTICS).exists():
        return
    old = load_statistics(workdir)
    changed = [k for k, v in statistics.items() if k not in old or not alike(old[k], v)]
    if changed:
        raise UserError(f"--workdir {workdir}: the data changed since this run began ({', '.join(changed)} differ); use a new folder")


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal; numbers with a fraction but for their rounding (a millionth of the largest)."""
    if b.dtype.kind != "f" or a.shape != b.shape:
        return np.array_equal(a, b)
    return np.allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b[np.isfinite(b)]).max(initial=0.0), equal_nan=True)


def open_checkpoints(workdir: Path, phases: list[configs.Phase], part: Part, keep_latest: int = 1) -> Checkpoints:
    engine = part.phase.engine
    folder = checkpoint_folder(workdir, phases, part.number)
    return Checkpoints(folder, keep_best=engine.checkpoint.keep_best, mode=monitored(part.task, engine)[1], keep_latest=keep_latest)


def has_later_checkpoint(workdir: Path, phases: list[configs.Phase], parts: list[Part], number: int) -> bool:
    """Whether a later phase has already saved something complete."""
    for later in parts[number + 1 :]:
        if checkpoint_folder(workdir, phases, later.number).exists():
            checkpoints = open_checkpoints(workdir, phases, later)
            try:
                if checkpoints.latest() is not None:
                    return True
            finally:
                checkpoints.close()
    return False


def carried_weights(checkpoints: Checkpoints, carry: str, part: Part) -> tuple[Params, Params] | None:
    """The best or last weights of a phase that is over."""
    step = {"best": checkpoints.best, "last": checkpoints.latest, "none": lambda: None}[carry]()
    if step is None:
        return None
    return checkpoints.restore_weights(step, part.model.params, part.model.model_state)


def initial_weights(values: Mapping[str, Any], part: Part) -> tuple[Params, Params] | None:
    """Weights of the run that `init_from` names, compared leaf by leaf with this config's model."""
    if not values["init_from"]:
        return None
    other = open_run(values["init_from"])
    params = part.task.adapt(dict(other.params), other.task.statistics)
    check_leaves(f"config.init_from {values['init_from']}", part.model.params, params)
    return params, other.model_state


def versions() -> dict[str, str]:
    """What this run ran on."""
    names = ("jaxtrain", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    found = {"python": sys.version.split()[0]}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
