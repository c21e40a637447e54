"""Several runs of one config trained in one program: other seeds, or other learning rates; each an ordinary run folder."""

import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.engine import config as configs
from jaxtrain.engine import profile, report, steps
from jaxtrain.engine.checkpoint import Checkpoints, holds_checkpoint
from jaxtrain.engine.clock import Clock, Meter, Stop
from jaxtrain.engine.loop import Result, Rhythm, TrainLogs, monitored, rhythm
from jaxtrain.engine.program import Program, compiled_facts, prepare, restore_or_initialise, start_up
from jaxtrain.engine.run import CONFIG, SUMMARY, checkpoint_folder, save_statistics
from jaxtrain.engine.standing import Standing, guard, observe
from jaxtrain.engine.start import start_jax
from jaxtrain.engine.testing import Part, draw
from jaxtrain.engine.train import check_folder, check_statistics, conclude, hold, initial_weights, open_checkpoints, prepare_parts
from jaxtrain.errors import UserError

POPULATION = "population.json"
KEEP_LATEST = 2  # members save one after the other: a kill between two of them leaves one step that all of them have
Summary = dict[str, Any]


@dataclass
class Member:
    """One run of the population, and where it stands."""

    name: str
    values: Mapping[str, Any]
    folder: Path
    part: Part
    rate_scale: float  # its learning rate over the first member's
    program: Program
    checkpoints: Checkpoints
    standing: Standing
    logs: TrainLogs | None = None


def variants(values: Mapping[str, Any], members: int, rates: Sequence[float]) -> list[tuple[str, dict[str, Any]]]:
    """(name, resolved config) of every member: seeds from `train.seed` on, or one for each learning rate with the same seed.

    With rates the floor `optimizer.min_lr` keeps its share of the rate, so that a member's schedule is the first one's, scaled.
    """
    if not rates:
        first = values["train"]["seed"]
        return [(f"seed-{first + i}", configs.with_changes(values, {"train.seed": first + i})) for i in range(members)]
    share = values["optimizer"]["min_lr"] / values["optimizer"]["lr"]
    return [(f"lr-{r:g}", configs.with_changes(values, {"optimizer.lr": r, "optimizer.min_lr": share * r})) for r in rates]


def train_population(values: Mapping[str, Any], members: int, rates: Sequence[float], workdir: Path) -> Summary | None:
    """Train, test and compare the members; writes `population.json`. None when interrupted (repeat to go on).

    Raises UserError for a config of several phases and where several processes run; and whatever an ordinary run raises.
    """
    began = time.perf_counter()
    named = variants(values, members, rates)
    folders = [workdir / name for name, _ in named]
    others = sorted(p.parent.name for p in workdir.glob(f"*/{CONFIG}") if p.parent not in folders) if workdir.is_dir() else []
    if others:
        raise UserError(f"--workdir {workdir}: holds {others[0]}, which is none of these {len(named)} members; name another folder")
    phases = [configs.phases(changed) for _, changed in named]
    if len(phases[0]) > 1:
        raise UserError(f"config.phases: a population trains configs of one phase, this one has {len(phases[0])}; use --config.phases=()")
    finished = [check_folder(changed, folder) for folder, (_, changed) in zip(folders, named, strict=True)]
    if not all(finished):
        start_jax()
        if jax.process_count() > 1:
            raise UserError("a population trains in one process; start it without JAX_NUM_PROCESSES")
        with Stop() as stop:
            trained = train_and_test_members(named, folders, phases, Clock(), stop, began)
        if trained is None:
            return None
        finished = trained
    found = compare([name for name, _ in named], [s for s in finished if s is not None])
    report.write_json(workdir / POPULATION, found)
    print(render(found), flush=True)
    return found


def train_and_test_members(
    named: Sequence[tuple[str, dict[str, Any]]], folders: Sequence[Path], phases: Sequence[list[configs.Phase]], clock: Clock,
    stop: Stop, began: float,
) -> list[Summary | None] | None:  # fmt: skip
    """The members' summaries, None when interrupted."""
    progress = report.Progress()
    part = prepare_parts(named[0][1], phases[0])[0]
    trained = [holds_checkpoint(checkpoint_folder(folder, own, 0)) for folder, own in zip(folders, phases, strict=True)]
    # Once all of them have checkpoints of their own, the run they started from may be gone.
    carried = None if all(trained) else initial_weights(named[0][1], part)
    locks, made = [], []
    for folder, has in zip(folders, trained, strict=True):
        check_statistics(folder, part.task.statistics, has)
    for (name, changed), folder, own in zip(named, folders, phases, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        locks.append(hold(folder))
        report.write_json(folder / CONFIG, changed)
        save_statistics(folder, part.task.statistics)
        engine = own[0].engine
        mine = replace(part, phase=own[0])
        placed = made[0].program.arrays if made else None
        program = prepare(part.task, engine, part.splits, part.layout, 0, 0, arrays=placed)
        if made:  # one set of scoring programs for all of them
            program = replace(program, scorer=made[0].program.scorer)
        scale = engine.optimizer.lr / named[0][1]["optimizer"]["lr"]
        made.append(Member(name, changed, folder, mine, scale, program, open_checkpoints(folder, own, mine, KEEP_LATEST), Standing(0)))
    results = train_members(made, carried, progress, clock, stop)
    summaries: list[Summary | None] = []
    for member, own, result in zip(made, phases, results, strict=True):
        summary, tested = conclude(member.values, member.folder, own, member.part, result, clock, stop)
        clock.seconds["total"] = time.perf_counter() - began
        summary |= {"seconds": dict(clock.seconds), "peak_memory_bytes": profile.peak_memory_bytes(), "members": len(made)}
        report.write_json(member.folder / SUMMARY, summary)
        summaries.append(summary)
        show = member.part.phase.engine.report
        if tested is not None and show.figures and stop.signal is None:
            draw(member.folder, tested, result.step, tensorboard=show.tensorboard)
    if any(summary is None or summary["status"] != "finished" for summary in summaries):
        progress.say("interrupted; saved. Repeat the command to go on.")
        return None
    return summaries


def common_step(members: Sequence[Member]) -> int | None:
    """The newest step that every member still in training has saved; what lies beyond is deleted. None: none has any."""
    training = [m for _, m in live(members)]
    common = min((m.checkpoints.latest() or -1 for m in training), default=-1)  # -1: killed before each had saved for the first time
    without = [m for m in training if common >= 0 and common not in m.checkpoints.steps()]
    if without:
        raise UserError(f"{without[0].folder}: has no checkpoint of step {common}, which the others go on from; start in a new folder")
    for member in training:
        member.checkpoints.discard_after(common)
    return common if common >= 0 else None


def train_members(members: Sequence[Member], carried: Any, progress: report.Progress, clock: Clock, stop: Stop) -> list[Result]:
    """Train all members to the end in one program: evaluate -> save -> next -> step -> log, as `loop.train_phase` does for one.

    A member that its patience has stopped is evaluated and saved no more; it goes along until the last one is done.
    """
    first = members[0]
    layout, engine, task = first.part.layout, first.part.phase.engine, first.part.task
    for member in members:  # who has stopped is known before the common step is looked for
        latest = member.checkpoints.latest()
        member.standing = Standing(0) if latest is None else Standing(**member.checkpoints.meta(latest)["standing"])
    latest = common_step(members)
    states, ends = [], []
    for member in members:
        own = member.checkpoints.latest() if member.standing.stopped else latest
        if own is not None:
            member.standing = Standing(**member.checkpoints.meta(own)["standing"])
        states.append(restore_or_initialise(member.program, member.checkpoints, own, carried, layout, 0))
        ends.append(int(states[-1].step))
    step = restored = max((end for end, m in zip(ends, members, strict=True) if not m.standing.stopped), default=max(ends))
    due = rhythm(engine, first.program, 0)
    state = steps.stack_members(states)
    del states
    keys = jax.vmap(jax.random.key)(jnp.asarray([m.part.phase.engine.train.seed for m in members], jnp.uint32))
    facts: dict[str, Any] = {"parameters": sum(math.prod(p.shape) for p in first.program.abstract.params.values())}
    meter = Meter(clock, step)
    call = None
    if step < due.end and live(members):
        with clock.measure("compile"):
            call = compile_call(first.program, state, len(members), keys, step_flops(first))
        facts |= compiled_facts(task, engine.train, call)
        progress.say(start_up(first.program, first.part, facts, clock))
        progress.say(f"members     {len(members)} in one program: {', '.join(m.name for m in members)}")
    name, mode = monitored(task, engine)
    quiet = report.Progress(quiet=True)
    for member in members:
        log = report.Log(member.folder, tensorboard=engine.report.tensorboard, resume_step=restored)
        own_meter = meter if member is first else Meter(clock, step)
        shown = progress if member is first else quiet
        member.logs = TrainLogs(member.part.phase.name, due, engine.train.batch, first.program.steps_per_epoch, own_meter, log, shown)
        if call is not None:
            member.program.feed.start(step)
    pending: tuple[int, int, Any] | None = None
    trained = step
    try:
        while True:
            evaluating, values = step > restored and due.evaluates(step), {}
            if evaluating:
                pending = settle(members, pending, clock)
                for number, member in live(members):
                    values[member.name] = evaluate(member, steps.take_member(state, np.int32(number)), due, step, name, mode, clock)
            stopping = stop.asked()
            if step > restored and (evaluating or due.saves(step) or stopping):
                pending = settle(members, pending, clock)
                with clock.measure("checkpoint"):
                    for number, member in enumerate(members):
                        if member.standing.stopped and member.name not in values:
                            continue  # its last checkpoint is that of the evaluation that stopped it
                        meta = {"step": step, "phase": member.part.phase.name, "standing": asdict(member.standing)}
                        member.checkpoints.save(step, steps.take_member(state, np.int32(number)), meta, values.get(member.name))
                        ends[number] = step
            if step >= due.end or not live(members) or stopping:
                break
            assert call is not None
            count = due.next_boundary(step, ()) - step
            with clock.measure("input_wait"):
                batches = [m.program.feed.take(count, m.program.slots) for m in members]
            with clock.measure("step"):
                inputs = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *batches), layout.batch(2))
                scales = np.asarray([m.rate_scale * m.standing.plateau[0] for m in members], np.float32)
                state, current = call(state, first.program.arrays, inputs, np.int32(count), scales, keys)
            pending = settle(members, pending, clock)
            pending = (step, count, current)
            step += count
        settle(members, pending, clock)
        trained = step - restored
        if trained:
            each = meter.busy_seconds() / trained / len(members)
            progress.say(f"{len(members)} members: {1e3 * each * len(members):.3g} ms per step together, {1e3 * each:.3g} ms per member")
        with clock.measure("checkpoint"):
            for member in members:
                member.checkpoints.wait()
    finally:
        for member in members:
            member.program.feed.close()
            member.checkpoints.close()
            if member.logs is not None:
                member.logs.log.close()
    facts |= {"steps_done": trained, "samples_per_second": meter.overall(trained, engine.train.batch) if trained else None, "mfu": None}
    facts["input_wait"] = meter.wait_share()
    results = []
    for number, member in enumerate(members):
        over = step >= due.end or member.standing.stopped
        mine = steps.take_member(state, np.int32(number))
        also = {**facts, "skipped_steps": member.standing.skipped}
        results.append(Result("finished" if over else "interrupted", mine, member.standing, ends[number], also, member.program))
    return results


def live(members: Sequence[Member]) -> list[tuple[int, Member]]:
    """The members that are still in training, with their numbers."""
    return [(number, member) for number, member in enumerate(members) if not member.standing.stopped]


def step_flops(member: Member) -> float | None:
    """Floating-point operations of one member's step, None where nobody counted them."""
    return profile.flops_per_step(member.part.task.flops_per_example(), member.part.phase.engine.train.batch, None)


def compile_call(program: Program, state: Any, members: int, keys: jax.Array, flops: float | None) -> Any:
    """The program of all members for these shapes; flops: of one member's step."""
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    inputs = jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), program.inputs)
    count, scales = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((members,), jnp.float32)
    return steps.population_call(program.call, flops).lower(abstract, program.arrays, inputs, count, scales, keys).compile()


def settle(members: Sequence[Member], pending: tuple[int, int, Any] | None, clock: Clock) -> None:
    """Wait for the dispatch before and give every member its part of the logs; its skipped steps are counted."""
    if pending is None:
        return
    first, count, logs = pending
    with clock.measure("step"):
        fetched = jax.device_get(logs)
    for number, member in enumerate(members):
        assert member.logs is not None
        member.logs.pending = (first, count, {k: v[number] for k, v in fetched.items()})
        limit, saved = member.part.phase.engine.train.max_skipped, member.checkpoints.latest()
        member.standing = member.logs.collect(member.standing, functools.partial(guard, limit=limit, last_checkpoint=saved))


def evaluate(member: Member, state: Any, due: Rhythm, step: int, name: str, mode: str, clock: Clock) -> float:
    """The monitored score of one member; its standing takes note."""
    assert member.logs is not None
    program, task, engine = member.program, member.part.task, member.part.phase.engine
    with clock.measure("eval"):
        sums = program.scorer.model(program.valid, steps.weights(state), state.model_state)
    scores = {f"valid/{k}": v for k, v in task.summarize(sums).items()}
    if name not in scores:
        raise UserError(f"config.train.monitor: no score is called {name!r}{configs.nearest(name, scores)}")
    member.standing = observe(member.standing, engine, step, scores[name], mode, warming=step < due.warm)
    member.logs.evaluation(step, scores, name, best=member.standing.best_step == step)
    return scores[name]


def compare(names: Sequence[str], summaries: Sequence[Mapping[str, Any]]) -> Summary:
    """Every member's test scores, their mean and standard deviation; the naive forecasts are the same for all."""
    scores = {name: s["test"] for name, s in zip(names, summaries, strict=True)}
    columns = list(scores.values())
    shared = [k for k in columns[0] if all(c.get(k) is not None and math.isfinite(c[k]) for c in columns)]
    return {
        "headline": summaries[0]["headline"],
        "examples": summaries[0]["examples"]["test"],
        "members": scores,
        "mean": {k: fmean(c[k] for c in columns) for k in shared},
        "standard_deviation": {k: stdev(c[k] for c in columns) for k in shared} if len(columns) > 1 else {},
        "naive": summaries[0]["naive"],
        "notes": list(dict.fromkeys(note for s in summaries for note in s["notes"])),
    }


def render(found: Mapping[str, Any]) -> str:
    """A row per member, then mean, standard deviation and the naive forecasts."""
    rows = {**found["members"], "mean": found["mean"], "standard deviation": found["standard_deviation"], **found["naive"]}
    title = f"test, {found['examples']:,} examples"
    return report.score_table(title, rows, found["headline"]) + "".join(f"\nnote: {note}" for note in found["notes"])
