"""The training loop: restore or initialise, then evaluate -> save -> next -> step -> log until done."""

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.data.dataset import Splits
from jaxtrain.engine import optimizer, profile, steps
from jaxtrain.engine.checkpoint import Checkpoints
from jaxtrain.engine.config import Engine, Phase, duration, nearest
from jaxtrain.engine.feed import TrainFeed
from jaxtrain.engine.report import Log, Progress, format_bytes, format_duration, parameter_table
from jaxtrain.engine.scoring import Scorer, Source
from jaxtrain.engine.sharding import Layout
from jaxtrain.engine.state import Params, Template, TrainState, flatten, split
from jaxtrain.errors import UserError
from jaxtrain.tasks.task import Task


@dataclass(frozen=True)
class Standing:
    """Where a phase stands besides its arrays; saved with every checkpoint."""

    first_step: int
    best_step: int | None = None
    best_value: float | None = None
    waited: int = 0  # evaluations without gain
    plateau: tuple[float, float | None, int] = (1.0, None, 0)
    skipped_in_a_row: int = 0
    skipped: int = 0
    stopped: bool = False  # early, by patience


@dataclass
class Clock:
    """Seconds by activity."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("compile", "step", "input_wait", "eval", "checkpoint"), 0.0))

    @contextmanager
    def measure(self, name: str) -> Any:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


@dataclass(frozen=True)
class Result:
    """What a phase leaves behind."""

    status: str  # finished | interrupted
    state: TrainState
    standing: Standing
    step: int
    facts: dict[str, Any]  # for summary.json


@dataclass(frozen=True)
class Program:
    """Everything compiled or placed for one phase."""

    template: Template
    abstract: TrainState
    initialise: Callable[[], TrainState]
    call: Callable[..., Any]
    inputs: Any  # abstract inputs of one call
    arrays: Mapping[str, Any]
    feed: TrainFeed
    valid: Source
    scorer: Scorer
    total_steps: int  # of this phase
    steps_per_epoch: float


class Stop:
    """SIGTERM and the first Ctrl-C ask for a checkpoint and a clean exit; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def asked(self, step: int) -> bool:
        """The same answer on every process (the preemption service agrees on a step)."""
        if jax.process_count() == 1:
            return self.signal is not None
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step) or False


def place(splits: Splits, placement: str, layout: Layout) -> Mapping[str, Any]:
    """The shared arrays in device memory, or nothing when batches are built on the host."""
    return layout.put(dict(splits.train.arrays), layout.replicated()) if placement == "device" else {}


def build_model(task: Task, precision: str) -> tuple[Template, Params, Params]:
    """(template, abstract params, abstract model state), without computing anything."""
    compute = steps.PRECISIONS[precision][1]
    return split(nnx.eval_shape(lambda: task.build(nnx.Rngs(0), compute)))


def prepare(task: Task, engine: Engine, splits: Splits, layout: Layout, first_step: int, phase_number: int) -> Program:
    """Build the phase's programs; nothing is compiled yet."""
    train = engine.train
    template, params, model_state = build_model(task, train.precision)
    steps_per_epoch = len(splits.train) / train.batch
    transform = optimizer.direction(engine.optimizer, params, task.groups())
    compute = steps.PRECISIONS[train.precision][1]

    def create() -> TrainState:
        model = task.build(nnx.Rngs(train.seed), compute)
        _, params, others = nnx.split(model, nnx.Param, ...)
        return steps.initial_state(flatten(params), flatten(others), transform, precision=train.precision, ema=train.ema > 0)

    shapes = jax.eval_shape(create)
    shardings = layout.state(shapes, train.shard_mib)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    arrays = place(splits, train.placement, layout)
    feed = TrainFeed(
        splits.train, batch=train.batch, seed=train.seed + (phase_number << 32), placement=train.placement, workers=train.workers,
        part=jax.process_index(), parts=jax.process_count(),
    )  # fmt: skip
    gather = splits.train.gather if train.placement == "device" else None
    rate = optimizer.schedule(engine.optimizer, steps_per_epoch)
    call = steps.train_call(task, template, transform, rate, gather, accumulate=train.accumulate, ema=train.ema, first_step=first_step,
                            out_shardings=(shardings, layout.replicated()))
    example = feed.make(feed.order[0])
    inputs = {
        k: jax.ShapeDtypeStruct((train.steps_per_call, train.batch, *v.shape[1:]), v.dtype, sharding=layout.batch(1)) for k, v in example.items()
    }
    valid = Source(splits.valid, arrays, train.placement, engine.eval.batch, layout)
    scorer = Scorer(task, template, train.placement, valid.gather, layout)
    total = duration(train.duration, steps_per_epoch, "train.duration")
    return Program(template, abstract, jax.jit(create, out_shardings=shardings), call, inputs, arrays, feed, valid, scorer, total, steps_per_epoch)


def monitored(task: Task, engine: Engine) -> tuple[str, str]:
    """(score name, "min" or "max") that stops the run and ranks its checkpoints."""
    return (engine.train.monitor, engine.train.monitor_mode) if engine.train.monitor else task.monitor


def train_phase(
    task: Task, phase: Phase, splits: Splits, layout: Layout, *, workdir: Path, checkpoints: Checkpoints, first_step: int,
    phase_number: int, carried: tuple[Params, Params] | None, progress: Progress, clock: Clock, stop: Stop, describe: bool,
) -> Result:  # fmt: skip
    """Train one phase to its end, from its latest checkpoint if it has one. Raises UserError when it cannot go on."""
    engine, train = phase.engine, phase.engine.train
    latest = checkpoints.latest()
    standing = Standing(first_step) if latest is None else Standing(**checkpoints.meta(latest)["standing"])
    program = prepare(task, engine, splits, layout, standing.first_step, phase_number)
    state = restore_or_initialise(program, checkpoints, latest, carried, layout, standing.first_step)
    step = restored = int(state.step)
    end = standing.first_step + program.total_steps
    eval_every = max(1, duration(engine.eval.every, program.steps_per_epoch, "eval.every"))
    save_every = duration(engine.checkpoint.every, program.steps_per_epoch, "checkpoint.every")
    log_every = max(1, duration(engine.report.log_every, program.steps_per_epoch, "report.log_every"))
    name, mode = monitored(task, engine)
    log = Log(workdir, tensorboard=engine.report.tensorboard, resume_step=restored, quiet=progress.quiet)
    trace = profile.TraceWindow(workdir / "profile", engine.profile.start, engine.profile.steps)
    key = jax.random.key(train.seed)
    facts: dict[str, Any] = {"parameters": sum(math.prod(p.shape) for p in program.abstract.params.values())}

    compiled = None
    if step < end and not standing.stopped:
        with clock.measure("compile"):
            scalar = jax.ShapeDtypeStruct((), jnp.float32)
            count = jax.ShapeDtypeStruct((), jnp.int32)
            compiled = program.call.lower(program.abstract, program.arrays, program.inputs, count, scalar, key).compile()
        facts |= compiled_facts(task, train, compiled)
        if describe:
            progress.say(start_up(program, splits, layout, phase, facts, clock))
        program.feed.start(step - standing.first_step)

    pending: tuple[int, int, Any] | None = None
    last_metric = ""
    rate_meter = Meter(clock, step)

    def collect() -> None:
        """Fetch the logs of the call before, which is done or nearly so by now."""
        nonlocal pending, standing
        if pending is None:
            return
        first, count, logs = pending
        pending = None
        values = {k: np.asarray(v)[:count] for k, v in jax.device_get(logs).items()}
        standing = guard(standing, values["skipped"], values["loss"], first, train.max_skipped, checkpoints)
        if (first + count) // log_every > first // log_every or first + count == end:
            fine = values["skipped"] == 0
            means = {f"train/{k}": float(v[fine].mean()) if fine.any() else math.nan for k, v in values.items() if k not in ("skipped", "weight")}
            speed = rate_meter.samples_per_second(first + count, train.batch)
            log.scalars(first + count, {**means, "train/skipped": standing.skipped, "train/epoch": (first + count - standing.first_step) / program.steps_per_epoch,
                                        "speed/samples_per_second": speed, "speed/input_wait": rate_meter.wait_share()}, phase=phase.name)
            left = (end - first - count) * train.batch / speed if speed else 0
            progress.show(f"{phase.name} step {first + count:,}/{end:,}  loss {means['train/loss']:.4f}{last_metric}  {speed:,.0f} samples/s  "
                          f"input wait {rate_meter.wait_share():.1%}  {format_duration(left)} left")

    try:
        while True:
            at_end = step >= end
            evaluate_now = step > restored and ((step - standing.first_step) % eval_every == 0 or at_end)
            value = None
            if evaluate_now:
                with clock.measure("step"):
                    collect()
                with clock.measure("eval"):
                    sums = program.scorer.model(program.valid, steps.weights(state), state.model_state)
                    scores = {f"valid/{k}": v for k, v in task.summarize(sums).items()}
                if name not in scores:
                    raise UserError(f"config.train.monitor: no score is called {name!r}{nearest(name, scores)}")
                value = scores[name]
                standing = observe(standing, engine, step, value, mode)
                last_metric = f"  {name} {value:.4f}"
                log.scalars(step, scores, phase=phase.name)
                if engine.report.histograms:
                    log.histograms(step, jax.device_get(state.params))
                mark = "  best" if standing.best_step == step else ""
                progress.say(f"{phase.name} step {step:,}  {name} {value:.4f}{mark}")
            stopping = stop.asked(step)
            regular_save = save_every and (step - standing.first_step) % save_every == 0 and step > restored
            if evaluate_now or regular_save or (stopping and step > restored):
                with clock.measure("step"):
                    collect()
                with clock.measure("checkpoint"):
                    checkpoints.save(step, state, {"step": step, "phase": phase.name, "standing": asdict(standing)}, value)
            if at_end or standing.stopped or stopping:
                break
            assert compiled is not None
            n = next_boundary(step, end, train.steps_per_call, standing.first_step, eval_every, save_every, trace.edges()) - step
            if trace.at(step):
                progress.say(f"profile written to {trace.folder} (view it with: xprof {trace.folder})")
            with clock.measure("input_wait"):
                batches = program.feed.take(n, train.steps_per_call)
            with clock.measure("step"), jax.profiler.StepTraceAnnotation("train", step_num=step):
                inputs = layout.put_local(batches, 1)
                state, logs = compiled(state, program.arrays, inputs, np.int32(n), np.float32(standing.plateau[0]), key)
                collect()
            pending = (step, n, logs)
            step += n
        with clock.measure("step"):
            collect()
        with clock.measure("checkpoint"):
            checkpoints.wait()
    finally:
        if trace.close():
            progress.say(f"profile written to {trace.folder} (view it with: xprof {trace.folder})")
        program.feed.close()
        log.close()
    done = step - restored
    facts |= {"steps_done": done, "samples_per_second": rate_meter.overall(done, train.batch), "skipped_steps": standing.skipped}
    if facts.get("flops_per_step") and done and (peak := profile.peak_flops(train.precision)):
        facts["mfu"] = facts["flops_per_step"] * facts["samples_per_second"] / train.batch / peak
    status = "interrupted" if stop.asked(step) and step < end and not standing.stopped else "finished"
    return Result(status, state, standing, step, facts)


def restore_or_initialise(
    program: Program, checkpoints: Checkpoints, latest: int | None, carried: tuple[Params, Params] | None, layout: Layout, first_step: int
) -> TrainState:
    """The latest checkpoint, or a fresh state, or a fresh optimizer around the weights of the phase or run before."""
    if latest is not None:
        return checkpoints.restore(latest, program.abstract)
    state = program.initialise()
    if carried is not None:
        params, model_state = carried
        # Constants of the model (statistics) are this run's own; running averages come along with the weights.
        keep = {k: model_state[k] for k in program.template.running}
        restart = steps.restart(state, params, keep)
        state = layout.put(jax.device_get(restart), jax.tree.map(lambda x: x.sharding, program.abstract))
    if first_step:
        state = replace(state, step=layout.put(np.int32(first_step), layout.replicated()))
    return state


def observe(standing: Standing, engine: Engine, step: int, value: float, mode: str) -> Standing:
    """Best score, patience and plateau after an evaluation; a NaN is never a gain."""
    sign = 1.0 if mode == "min" else -1.0
    score = sign * value if not math.isnan(value) else math.inf
    best = math.inf if standing.best_value is None else sign * standing.best_value
    gain = score < best - engine.train.min_delta if math.isfinite(best) else math.isfinite(score)
    waited = 0 if gain else standing.waited + 1
    if score < best:
        standing = replace(standing, best_step=step, best_value=value)
    if engine.optimizer.schedule == "plateau":
        scale, top, count = standing.plateau
        p = optimizer.Plateau(scale, math.inf if top is None else top, count).observe(score, engine.optimizer)
        standing = replace(standing, plateau=(p.scale, p.best if math.isfinite(p.best) else None, p.waited))
    return replace(standing, waited=waited, stopped=bool(engine.train.patience) and waited >= engine.train.patience)


def guard(standing: Standing, skipped: np.ndarray, losses: np.ndarray, first: int, limit: int, checkpoints: Checkpoints) -> Standing:
    """Count the skipped steps of one call; raise UserError after `limit` in a row."""
    row = standing.skipped_in_a_row
    for i, flag in enumerate(skipped):
        row = row + 1 if flag else 0
        if row >= limit:
            latest = checkpoints.latest()
            last_good = f"the last checkpoint is step {latest}" if latest is not None else "no checkpoint was written yet"
            raise UserError(f"steps {first + i - row + 1}-{first + i}: loss or gradient not finite {row} times in a row (loss {losses[i]}); "
                            f"lower optimizer.lr or optimizer.clip, or look for extreme values in the data; {last_good}")
    return replace(standing, skipped_in_a_row=row, skipped=standing.skipped + int(np.sum(skipped)))


def next_boundary(step: int, end: int, per_call: int, first: int, eval_every: int, save_every: int, edges: tuple[int, ...]) -> int:
    """The step at which the next dispatch ends."""
    stops = [end, step + per_call, first + ((step - first) // eval_every + 1) * eval_every, *(e for e in edges if e > step)]
    if save_every:
        stops.append(first + ((step - first) // save_every + 1) * save_every)
    return min(stops)


class Meter:
    """Throughput of the loop outside compilation, evaluation and checkpoints."""

    def __init__(self, clock: Clock, first_step: int) -> None:
        self.clock, self._first, self._step = clock, first_step, None
        self._start_busy, self._start_wait = self._now()
        self._busy = self._start_busy

    def _now(self) -> tuple[float, float]:
        return self.clock.seconds["step"] + self.clock.seconds["input_wait"], self.clock.seconds["input_wait"]

    def samples_per_second(self, step: int, batch: int) -> float:
        """Since the call before."""
        busy, _ = self._now()
        before, self._step = self._step, step
        elapsed, self._busy = busy - self._busy, busy
        return (step - (self._first if before is None else before)) * batch / max(elapsed, 1e-9)

    def wait_share(self) -> float:
        """Share of the loop's time that went into waiting for input."""
        busy, wait = self._now()
        return (wait - self._start_wait) / max(busy - self._start_busy, 1e-9)

    def overall(self, steps_done: int, batch: int) -> float:
        busy, _ = self._now()
        return steps_done * batch / max(busy - self._start_busy, 1e-9)


def compiled_facts(task: Task, train: Any, compiled: Any) -> dict[str, Any]:
    """FLOPs and memory of the training program."""
    return {
        "flops_per_step": profile.flops_per_step(task.flops_per_example(), train.batch, compiled),
        "program_memory": profile.program_memory(compiled),
    }


def start_up(program: Program, splits: Splits, layout: Layout, phase: Phase, facts: Mapping[str, Any], clock: Clock) -> str:
    """Devices, parameters with shapes, data, compiled memory."""
    device = jax.devices()[0]
    sizes = ", ".join(f"{name} {len(d):,}" for name, d in splits.named().items())
    arrays = sum(np.asarray(a).nbytes if not hasattr(a, "nbytes") else a.nbytes for a in splits.train.arrays.values())
    memory = facts["program_memory"]
    train = phase.engine.train
    lines = [
        parameter_table(program.abstract.params),
        f"devices     {layout.devices} x {device.device_kind} ({jax.process_count()} process{'es' if jax.process_count() > 1 else ''}), {train.precision}",
        f"data        {sizes} examples; arrays {format_bytes(arrays)} on the {train.placement}",
        *(f"note        {note}" for note in splits.notes),
        f"training    {program.total_steps:,} steps of {train.batch} ({program.total_steps / program.steps_per_epoch:.1f} epochs), {train.steps_per_call} per call",
        f"compiled    {clock.seconds['compile']:.1f} s" + (f"; {', '.join(f'{k} {format_bytes(v)}' for k, v in memory.items())}" if memory else "")
        + (f"; {facts['flops_per_step'] / 1e9:.3g} GFLOP per step" if facts["flops_per_step"] else ""),
    ]  # fmt: skip
    return "\n".join(lines)
