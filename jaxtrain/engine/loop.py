"""The training loop: restore or initialise, then evaluate -> save -> next -> step -> log until done."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.engine import profile, steps
from jaxtrain.engine.checkpoint import Checkpoints
from jaxtrain.engine.clock import Clock, Meter, Stop
from jaxtrain.engine.config import Engine, length, nearest
from jaxtrain.engine.program import Part, Program, compiled_facts, prepare, restore_or_initialise, start_up
from jaxtrain.engine.report import Log, Progress, format_duration
from jaxtrain.engine.standing import Standing, guard, observe
from jaxtrain.engine.state import Params, TrainState
from jaxtrain.errors import UserError
from jaxtrain.tasks.task import Task


@dataclass(frozen=True)
class Result:
    """What a phase leaves behind."""

    status: str  # finished | interrupted
    state: TrainState
    standing: Standing
    step: int
    facts: dict[str, Any]  # for summary.json
    program: Program  # what trained it


@dataclass(frozen=True)
class Rhythm:
    """The steps at which something happens, counted from the phase's first step.

    Epochs are seldom a whole number of steps: the third evaluation of `every="1ep"` comes at the step nearest to three epochs.
    """

    first: int
    end: int
    evaluate: float
    save: float  # 0 = at evaluations only
    log: int
    call: int
    warm: int  # the step from which on the rate rises no more

    def evaluates(self, step: int) -> bool:
        return self._at(step, self.evaluate) or step >= self.end

    def saves(self, step: int) -> bool:
        return bool(self.save) and self._at(step, self.save)

    def logs(self, step: int, before: int) -> bool:
        return step // self.log > before // self.log or step >= self.end

    def next_boundary(self, step: int, edges: tuple[int, ...]) -> int:
        """Where the dispatch that starts at `step` ends; edges: further steps that no dispatch may cross.

        The same steps for a whole run and a resumed one. The first dispatch is one step: what is wrong shows after one.
        """
        stops = [self.end, self._after(step, self.call), self._after(step, self.evaluate)]
        stops += [e for e in (self.first + 1, *edges) if e > step]
        return min([*stops, self._after(step, self.save)] if self.save else stops)

    def _at(self, step: int, every: float) -> bool:
        return self._after(step - 1, every) == step

    def _after(self, step: int, every: float) -> int:
        times = math.floor((step - self.first) / every)  # the last one before the step, or one of its neighbours
        return next(at for n in (times, times + 1, times + 2) if (at := self.first + round(n * every)) > step)


def rhythm(engine: Engine, program: Program, first: int) -> Rhythm:
    """Durations in steps, for this dataset's epochs."""

    def steps_of(text: str, key: str) -> float:
        return length(text, program.steps_per_epoch, key)

    save = steps_of(engine.checkpoint.every, "checkpoint.every")
    return Rhythm(
        first,
        first + program.total_steps,
        max(1, steps_of(engine.eval.every, "eval.every")),
        save and max(1, save),
        max(1, round(steps_of(engine.report.log_every, "report.log_every"))),
        engine.train.steps_per_call,
        first + round(steps_of(engine.optimizer.warmup, "optimizer.warmup")),
    )


def monitored(task: Task, engine: Engine) -> tuple[str, str]:
    """(score name, "min" or "max") that stops the run and ranks its checkpoints."""
    return (engine.train.monitor, engine.train.monitor_mode) if engine.train.monitor else task.monitor


def train_phase(
    part: Part,
    *,
    workdir: Path,
    checkpoints: Checkpoints,
    first_step: int,
    carried: tuple[Params, Params] | None,
    progress: Progress,
    clock: Clock,
    stop: Stop,
) -> Result:
    """Train one phase to its end, from its latest checkpoint if it has one.

    carried: (weights, model state) that a fresh phase starts from. Raises UserError when it cannot go on.
    """
    task, phase, layout = part.task, part.phase, part.layout
    engine, train = phase.engine, phase.engine.train
    latest = checkpoints.latest()
    standing = Standing(first_step) if latest is None else Standing(**checkpoints.meta(latest)["standing"])
    program = prepare(task, engine, part.splits, layout, standing.first_step, part.number, model=part.model)
    step = restored = standing.first_step if latest is None else latest
    due = rhythm(engine, program, standing.first_step)
    facts: dict[str, Any] = {"parameters": sum(math.prod(p.shape) for p in program.abstract.params.values())}
    key = jax.random.key(train.seed)
    going = step < due.end and not standing.stopped
    with ThreadPoolExecutor(1) as aside, clock.measure("compile"):  # XLA compiles without Python's lock: two programs at once
        loading = aside.submit(restore_or_initialise, program, checkpoints, latest, carried, layout, standing.first_step)
        if latest is not None:
            loading.result()  # what cannot be read is said before anything is compiled
        call = compile_call(program, key) if going else None
        state = loading.result()
    if call is not None:
        facts |= compiled_facts(task, train, call)
        progress.say(start_up(program, part, facts, clock))
        program.feed.start(step - standing.first_step)
    log = Log(workdir, tensorboard=engine.report.tensorboard, resume_step=restored, quiet=progress.quiet)
    trace = profile.TraceWindow(workdir / "profile", engine.profile.start, engine.profile.steps)
    logs = TrainLogs(phase.name, due, train.batch, program.steps_per_epoch, Meter(clock, step), log, progress)
    name, mode = monitored(task, engine)

    def settle(standing: Standing) -> Standing:
        """Wait for the dispatch before, and count what it skipped."""
        with clock.measure("step"):
            return logs.collect(
                standing, lambda s, skipped, losses, at: guard(s, skipped, losses, at, train.max_skipped, checkpoints.latest())
            )

    try:
        while True:
            value, evaluating = None, step > restored and due.evaluates(step)
            if evaluating:
                standing = settle(standing)
                with clock.measure("eval"):
                    sums = program.scorer.model(program.valid, steps.weights(state), state.model_state)
                scores = {f"valid/{k}": v for k, v in task.summarize(sums).items()}
                if name not in scores:
                    raise UserError(f"config.train.monitor: no score is called {name!r}{nearest(name, scores)}")
                value = scores[name]
                standing = observe(standing, engine, step, value, mode, warming=step < due.warm)
                logs.evaluation(step, scores, name, best=standing.best_step == step)
                if engine.report.histograms:
                    log.histograms(step, jax.device_get(state.params))
            stopping = stop.asked()
            if step > restored and (evaluating or due.saves(step) or stopping):
                standing = settle(standing)
                with clock.measure("checkpoint"):
                    checkpoints.save(step, state, {"step": step, "phase": phase.name, "standing": asdict(standing)}, value)
            if step >= due.end or standing.stopped or stopping:
                break
            assert call is not None
            count = due.next_boundary(step, trace.edges()) - step
            if step in trace.edges():  # the dispatches in flight belong to neither side of the window
                standing = settle(standing)
            if trace.at(step):
                progress.say(trace.hint())
            with clock.measure("input_wait"):
                batches = program.feed.take(count, program.slots)
            with clock.measure("step"), jax.profiler.StepTraceAnnotation("train", step_num=step):
                inputs = layout.put_local(batches, 1)
                scale = np.float32(standing.plateau[0])
                state, current = call(state, program.arrays, inputs, np.int32(count), scale, key)
            standing = settle(standing)
            logs.pending = (step, count, current)
            step += count
        standing = settle(standing)
        done = step - restored
        facts |= {"steps_done": done, "samples_per_second": logs.meter.overall(done, train.batch) if done else None}
        with clock.measure("checkpoint"):
            checkpoints.wait()
    finally:
        if trace.close():
            progress.say(trace.hint())
        program.feed.close()
        log.close()
    facts |= {"skipped_steps": standing.skipped, "input_wait": logs.meter.wait_share()}
    peak = profile.peak_flops(train.precision)
    flops = facts.get("flops_per_step")
    facts["mfu"] = flops * facts["samples_per_second"] / train.batch / peak if peak and flops and done else None
    over = step >= due.end or standing.stopped
    return Result("finished" if over else "interrupted", state, standing, step, facts, program)


def compile_call(program: Program, key: jax.Array) -> Any:
    """The training program for these shapes, ahead of the first step: its time and memory can then be shown."""
    count, scale = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
    return program.call.lower(program.abstract, program.arrays, program.inputs, count, scale, key).compile()


@dataclass
class TrainLogs:
    """What the training dispatches log; fetched one dispatch late, so that the device never waits for the host."""

    phase: str
    due: Rhythm
    batch: int
    steps_per_epoch: float
    meter: Meter
    log: Log
    progress: Progress
    pending: tuple[int, int, Any] | None = None  # first step, how many, logs on the device
    _metric: str = field(default="", init=False)

    def collect(self, standing: Standing, count_skipped: Callable[..., Standing]) -> Standing:
        """Fetch the pending logs, show them where they are due, and return the standing with its skipped steps."""
        if self.pending is None:
            return standing
        first, count, logs = self.pending
        self.pending = None
        values = {k: np.asarray(v)[:count] for k, v in jax.device_get(logs).items()}
        standing = count_skipped(standing, values["skipped"], values["loss"], first)
        if self.due.logs(first + count, first):
            self._show(first + count, values, standing)
        return standing

    def _show(self, step: int, values: dict[str, np.ndarray], standing: Standing) -> None:
        fine = values.pop("skipped") == 0
        means = {f"train/{k}": float(v[fine].mean()) if fine.any() else math.nan for k, v in values.items() if k != "weight"}
        speed, wait = self.meter.samples_per_second(step, self.batch), self.meter.wait_share()
        epoch = (step - self.due.first) / self.steps_per_epoch
        also = {"train/skipped": standing.skipped, "train/epoch": epoch, "speed/samples_per_second": speed, "speed/input_wait": wait}
        self.log.scalars(step, {**means, **also}, phase=self.phase)
        left = format_duration((self.due.end - step) * self.batch / speed)
        self.progress.show(
            f"{self.phase} step {step:,}/{self.due.end:,}  loss {means['train/loss']:.4f}{self._metric}  "
            f"{speed:,.0f} samples/s  input wait {wait:.1%}  {left} left"
        )

    def evaluation(self, step: int, scores: dict[str, float], name: str, *, best: bool) -> None:
        self._metric = f"  {name} {scores[name]:.4f}"
        self.log.scalars(step, scores, phase=self.phase)
        self.progress.say(f"{self.phase} step {step:,}{self._metric}{'  best' if best else ''}")
