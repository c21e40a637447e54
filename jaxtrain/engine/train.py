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

from jaxtrain.data.dataset import Dataset, Splits
from jaxtrain.engine import config as configs
from jaxtrain.engine import optimizer, profile, report, steps
from jaxtrain.engine.checkpoint import Checkpoints, check_leaves
from jaxtrain.engine.clock import Clock, Stop
from jaxtrain.engine.feed import check_weights
from jaxtrain.engine.loop import Result, monitored, train_phase
from jaxtrain.engine.program import build_model, place
from jaxtrain.engine.run import CONFIG, SUMMARY, checkpoint_folder, make_task, open_run, read_config, save_statistics
from jaxtrain.engine.scoring import HostSums, Scorer, Source, skill
from jaxtrain.engine.sharding import Layout, layout
from jaxtrain.engine.start import start_jax
from jaxtrain.engine.state import Params, Template
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
    quiet = jax.process_index() > 0
    progress = report.Progress(quiet=quiet)
    phases = configs.phases(values)
    tasks = [make_task(values["task"], phase.task) for phase in phases]
    splits = [task.splits() for task in tasks]
    statistics = splits[-1].statistics  # the last phase's, for all of them: the weights carry over, so must their units
    tasks = [task.with_statistics(statistics) for task in tasks]
    where = [check_phase(task, phase, part) for task, phase, part in zip(tasks, phases, splits, strict=True)]
    carried = initial_weights(values, tasks[0], phases[0])

    if not quiet:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = hold(workdir)  # until this process ends  # noqa: F841
        report.write_json(workdir / CONFIG, values)
        save_statistics(workdir, statistics)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("run folder")
    clock, first_step, result, number = Clock(), 0, None, 0
    with Stop() as stop:
        for number, (task, phase, part, devices) in enumerate(zip(tasks, phases, splits, where, strict=True)):
            checkpoints = open_checkpoints(workdir, phases, number, task)
            try:
                if has_later_checkpoint(workdir, phases, number, tasks):
                    first_step = int(checkpoints.latest() or 0)  # this phase is over: only its weights matter
                else:
                    result = train_phase(
                        task, phase, part, devices, workdir=workdir, checkpoints=checkpoints, first_step=first_step, phase_number=number,
                        carried=carried, progress=progress, clock=clock, stop=stop,
                    )  # fmt: skip
                    if result.status == "interrupted":
                        break
                    first_step = result.step
                if number + 1 < len(phases):
                    carried = carried_weights(checkpoints, phases[number + 1].carry, task, phase)
            finally:
                checkpoints.close()
    assert result is not None
    task, phase, part, devices = tasks[number], phases[number], splits[number], where[number]
    summary = {
        "task": values["task"], "preset": values["preset"], "status": result.status, "steps": result.step,
        "best": {"step": result.standing.best_step, "metric": monitored(task, phase.engine)[0], "value": result.standing.best_value},
        "stopped_early": result.standing.stopped, **{k: v for k, v in result.facts.items() if k != "program_memory"},
        "notes": list(part.notes), "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}", "versions": versions(),
    }  # fmt: skip
    if result.status == "interrupted":
        progress.say(f"interrupted at step {result.step:,}; saved. Repeat the command to go on.")
    else:
        summary |= test(workdir, phases, number, task, part, devices, phase, result, clock, progress)
    clock.seconds["total"] = time.perf_counter() - began
    summary |= {"seconds": dict(clock.seconds), "peak_memory_bytes": profile.peak_memory_bytes()}
    if not quiet:
        report.write_json(workdir / SUMMARY, summary)
        if result.status == "finished":
            print(render(summary))
            print(
                f"{workdir}: {report.format_duration(clock.seconds['total'])}, best step {result.standing.best_step}, "
                f"{summary['samples_per_second']:,.0f} samples/s, peak memory {report.format_bytes(summary['peak_memory_bytes'])}"
            )
    return summary


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


def check_phase(task: Task, phase: configs.Phase, splits: Splits) -> Layout:
    """Every split holds something; the batches divide over the devices; schedule, monitor and model fit."""
    for name, dataset in splits.named().items():
        if len(dataset) == 0:
            raise UserError(f"data: the {name} split is empty; change the fractions, gaps or window lengths")
    train = phase.engine.train
    devices = layout(train.batch, phase.engine.eval.batch, train.accumulate)
    optimizer.schedule(phase.engine.optimizer, len(splits.train) / train.batch)
    check_weights(splits.train)
    template, params, model_state = build_model(task, train.precision)
    if train.monitor:
        names = score_names(task, template, params, model_state, splits.valid)
        if train.monitor not in names:
            raise UserError(f"config.train.monitor: no score is called {train.monitor!r}{configs.nearest(train.monitor, names)}")
    return devices


def score_names(task: Task, template: Template, params: Params, model_state: Params, valid: Dataset) -> list[str]:
    """The names of the scores that an evaluation will have, without computing one."""
    batch = {**valid.gather(valid.arrays, valid.index[:1]), "mask": np.ones(1, np.float32)}
    sums = jax.eval_shape(steps.score_call(task, template, None), params, model_state, {}, batch)
    return [f"valid/{name}" for name in task.summarize({k: np.ones(v.shape) for k, v in sums.items()})]


def open_checkpoints(workdir: Path, phases: list[configs.Phase], number: int, task: Task) -> Checkpoints:
    engine = phases[number].engine
    return Checkpoints(checkpoint_folder(workdir, phases, number), keep_best=engine.checkpoint.keep_best, mode=monitored(task, engine)[1])


def has_later_checkpoint(workdir: Path, phases: list[configs.Phase], number: int, tasks: list[Task]) -> bool:
    """Whether the next phase has already saved something complete."""
    later = number + 1
    if later >= len(phases) or not checkpoint_folder(workdir, phases, later).exists():
        return False
    checkpoints = open_checkpoints(workdir, phases, later, tasks[later])
    try:
        return checkpoints.latest() is not None or has_later_checkpoint(workdir, phases, later, tasks)
    finally:
        checkpoints.close()


def carried_weights(checkpoints: Checkpoints, carry: str, task: Task, phase: configs.Phase) -> tuple[Params, Params] | None:
    """The best or last weights of a phase that is over."""
    step = {"best": checkpoints.best, "last": checkpoints.latest, "none": lambda: None}[carry]()
    if step is None:
        return None
    _, params, model_state = build_model(task, phase.engine.train.precision)
    return checkpoints.restore_weights(step, params, model_state)


def initial_weights(values: Mapping[str, Any], task: Task, phase: configs.Phase) -> tuple[Params, Params] | None:
    """Weights of the run that `init_from` names, compared leaf by leaf with this config's model."""
    if not values["init_from"]:
        return None
    other = open_run(values["init_from"])
    _, wanted, _ = build_model(task, phase.engine.train.precision)
    check_leaves(f"config.init_from {values['init_from']}", wanted, other.params)
    return other.params, other.model_state


def test(workdir: Path, phases: list[configs.Phase], number: int, task: Task, splits: Splits, devices: Layout, phase: configs.Phase,
         result: Result, clock: Clock, progress: report.Progress) -> dict[str, Any]:  # fmt: skip
    """Score the best weights and the naive forecasts on every split but train; calibrate; draw."""
    with clock.measure("eval"):
        checkpoints = open_checkpoints(workdir, phases, number, task)
        try:
            step = checkpoints.best()
            assert step is not None
            template, params, model_state = build_model(task, phase.engine.train.precision)
            params, model_state = checkpoints.restore_weights(step, params, model_state, sharding=devices.replicated())
        finally:
            checkpoints.close()
        placement = phase.engine.train.placement
        arrays = place(splits, placement, devices)
        scores: dict[str, Any] = {}
        sums: dict[str, HostSums] = {}
        for name, dataset in {"valid": splits.valid, "test": splits.test, **splits.more}.items():
            source = Source(dataset, arrays, placement, phase.engine.eval.batch, devices)
            scorer = Scorer(task, template, placement, source.gather, devices)
            sums = {"model": scorer.model(source, params, model_state), **scorer.naive(source)}
            if name == "valid":
                calibration = task.calibrate(sums["model"])
                if calibration:
                    task = task.with_statistics(calibration)
                    if jax.process_index() == 0:
                        save_statistics(workdir, task.statistics)
            sampled = scorer.oracle(source, params, model_state) if name == "test" and jax.process_count() == 1 else None
            scores[name] = scored(task, sums, sampled, scorer.oracle_every(source))
            if name == "test" and phase.engine.report.figures and jax.process_index() == 0:
                host = replace(scorer, task=task, placement="host", gather=None)
                predict = host.predict(dataset, params, model_state, phase.engine.eval.batch)
                shown = {**sums, "oracle": sampled["oracle"]} if sampled else sums
                log = report.Log(workdir, tensorboard=phase.engine.report.tensorboard, resume_step=result.step)
                paths = report.save_figures(workdir, task.figures(predict, dataset, shown), log, result.step)
                log.close()
                progress.say(f"{len(paths)} figures in {workdir / 'figures'}")
    headline = list(task.headline)
    extra = {name: s for name, s in scores.items() if name not in ("valid", "test")}
    return {
        **scores["test"],
        "valid": scores["valid"]["test"],
        "headline": headline,
        "examples": {k: len(v) for k, v in splits.named().items()},
        **({"more": extra} if extra else {}),
    }


def scored(task: Task, sums: Mapping[str, HostSums], sampled: Mapping[str, HostSums] | None, every: int) -> dict[str, Any]:
    """{"test": scores, "naive": {name: scores}} of one split; with a sample also "oracle" and "skill"."""
    result: dict[str, Any] = {
        "test": task.summarize(sums["model"]),
        "naive": {name: task.summarize(s) for name, s in sums.items() if name != "model"},
    }
    if sampled:
        result["oracle"] = {"every": every, "scores": task.summarize(sampled["oracle"])}
        result["skill"] = skill(task, sampled)
    return result


def render(summary: Mapping[str, Any]) -> str:
    """The printed table: the model, the naive forecasts and the oracle on the same test examples."""
    naive = summary["naive"]
    key = summary["headline"][0]
    ordered = sorted(naive, key=lambda n: naive[n].get(key) if naive[n].get(key) is not None else float("inf"))
    rows = {"model": summary["test"], **{name: naive[name] for name in ordered}}
    if "oracle" in summary:
        rows[f"oracle (1 of {summary['oracle']['every']})"] = summary["oracle"]["scores"]
    text = report.score_table(f"test, {summary['examples']['test']:,} examples", rows, summary["headline"])
    if summary.get("skill"):
        s, every = summary["skill"], summary["oracle"]["every"]
        text += f"\nskill {s['skill']:.2f} on 1 of {every} examples: "
        text += f"model {s['model']:.3f}, best naive {s['naive']:.3f}, oracle {s['oracle']:.3f}"
    return text + "".join(f"\nnote: {note}" for note in summary["notes"])


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
