"""What one phase runs: model, state, feed and compiled programs, put together from config, task and data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxtrain.data.dataset import Splits
from jaxtrain.engine import optimizer, profile, steps
from jaxtrain.engine.checkpoint import Checkpoints
from jaxtrain.engine.clock import Clock
from jaxtrain.engine.config import Engine, Phase, duration
from jaxtrain.engine.feed import TrainFeed
from jaxtrain.engine.report import format_bytes, parameter_table
from jaxtrain.engine.scoring import Scorer, Source
from jaxtrain.engine.sharding import Layout
from jaxtrain.engine.state import Params, Template, TrainState, split
from jaxtrain.tasks.task import Task


class Built(NamedTuple):
    """A network traced once: its structure, its shapes, and what draws its initial values inside jit."""

    template: Template
    params: Params  # abstract
    model_state: Params  # abstract
    create: Callable[[], tuple[Params, Params]]


@dataclass(frozen=True)
class Part:
    """One phase of a run, ready to train."""

    number: int
    phase: Phase
    task: Task
    splits: Splits
    layout: Layout
    model: Built


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
    slots: int  # batches that the inputs of one call have room for


def place(splits: Splits, placement: str, layout: Layout) -> Mapping[str, Any]:
    """The shared arrays in device memory, or nothing when batches are built on the host."""
    return layout.put(dict(splits.train.arrays), layout.replicated()) if placement == "device" else {}


def build_model(task: Task, precision: str, seed: int = 0) -> Built:
    """The network of a task, without computing anything."""
    templates = []

    def create() -> tuple[Params, Params]:
        template, params, model_state = split(task.build(nnx.Rngs(seed), steps.PRECISIONS[precision][1]))
        templates.append(template)
        return params, model_state

    traced = jax.jit(create, inline=True)
    params, model_state = jax.eval_shape(traced)
    return Built(templates[0], params, model_state, traced)


def prepare(
    task: Task, engine: Engine, splits: Splits, layout: Layout, first_step: int, phase_number: int,
    *, arrays: Mapping[str, Any] | None = None, model: Built | None = None,
) -> Program:  # fmt: skip
    """Build the phase's programs; nothing is compiled yet.

    arrays, model: the shared arrays where another program has placed them, the network (of the same seed) where it has been built.
    """
    train = engine.train
    built = build_model(task, train.precision, train.seed) if model is None else model
    template, steps_per_epoch = built.template, len(splits.train) / train.batch
    transform = optimizer.direction(engine.optimizer, built.params, task.groups())

    def create() -> TrainState:
        return steps.initial_state(*built.create(), transform, precision=train.precision, ema=train.ema > 0)

    create = jax.jit(create, inline=True)  # asked for twice, for its shapes and for its values: traced once
    shapes = jax.eval_shape(create)
    shardings = layout.state(shapes, train.shard_mib)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    arrays = place(splits, train.placement, layout) if arrays is None else arrays
    feed = TrainFeed(
        splits.train, batch=train.batch, seed=train.seed + (phase_number << 32), placement=train.placement, workers=train.workers,
        part=jax.process_index(), parts=jax.process_count(),
    )  # fmt: skip
    gather = splits.train.gather if train.placement == "device" else None
    rate = optimizer.schedule(engine.optimizer, steps_per_epoch)
    call = steps.train_call(
        task,
        template,
        transform,
        rate,
        gather,
        accumulate=train.accumulate,
        ema=train.ema,
        first_step=first_step,
        out_shardings=(shardings, layout.replicated()),
    )
    example = feed.make(feed.order[0])
    # XLA folds a single slot away and rounds that program differently: with two, steps_per_call changes no bit.
    slots = max(2, train.steps_per_call)
    inputs = {k: jax.ShapeDtypeStruct((slots, train.batch, *v.shape[1:]), v.dtype, sharding=layout.batch(1)) for k, v in example.items()}
    valid = Source(splits.valid, arrays, train.placement, engine.eval.batch, layout)
    scorer = Scorer(task, template, train.placement, valid.gather, layout)
    # Drawn once: a hundred random draws compile four times as fast unoptimised (24 s -> 6 s of a transformer's start on CPU).
    once: Any = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    initialise = jax.jit(create, out_shardings=shardings, compiler_options=once)
    total = duration(train.duration, steps_per_epoch, "train.duration")
    return Program(
        template, abstract, initialise, call, inputs, arrays, feed, valid, scorer, total, steps_per_epoch, slots,
    )  # fmt: skip


def restore_or_initialise(
    program: Program, checkpoints: Checkpoints, latest: int | None, carried: tuple[Params, Params] | None, layout: Layout, first_step: int
) -> TrainState:
    """The latest checkpoint, or a fresh state, or a fresh optimizer around the weights of the phase or run before."""
    if latest is not None:
        return checkpoints.restore(latest, program.abstract)
    state = program.initialise()
    if carried is not None:
        params, model_state = layout.put(carried, layout.replicated())
        # Constants of the model (statistics) are this run's own; running averages come along with the weights.
        keep = {k: model_state[k] for k in program.template.running}
        shardings = jax.tree.map(lambda x: x.sharding, program.abstract)
        state = jax.jit(steps.restart, out_shardings=shardings)(state, params, keep)
    if first_step:
        state = replace(state, step=layout.put(np.int32(first_step), layout.replicated()))
    return state


def compiled_facts(task: Task, train: Any, compiled: Any) -> dict[str, Any]:
    """FLOPs and memory of the training program."""
    return {
        "flops_per_step": profile.flops_per_step(task.flops_per_example(), train.batch, compiled),
        "program_memory": profile.program_memory(compiled),
    }


def start_up(program: Program, part: Part, facts: Mapping[str, Any], clock: Clock) -> str:
    """Devices, parameters with shapes, data, compiled memory."""
    splits, layout, train, epochs = part.splits, part.layout, part.phase.engine.train, program.total_steps / program.steps_per_epoch
    processes = f", {jax.process_count()} processes" if jax.process_count() > 1 else ""
    sizes = ", ".join(f"{name} {len(d):,}" for name, d in splits.named().items())
    arrays = format_bytes(sum(a.nbytes for a in splits.train.arrays.values()))
    compiled = [f"{clock.seconds['compile']:.1f} s", *(f"{name} {format_bytes(size)}" for name, size in facts["program_memory"].items())]
    if facts["flops_per_step"]:
        compiled.append(f"{facts['flops_per_step'] / 1e9:.3g} GFLOP per step")
    return "\n".join([
        parameter_table(program.abstract.params),
        f"devices     {layout.devices} x {jax.devices()[0].device_kind}{processes}, {train.precision}",
        f"data        {sizes} examples; arrays {arrays} on the {train.placement}",
        *(f"note        {note}" for note in splits.notes),
        f"training    {program.total_steps:,} steps of {train.batch} ({epochs:.1f} epochs), {train.steps_per_call} per call",
        f"compiled    {', '.join(compiled)}",
    ])  # fmt: skip
