"""The compiled training call: accumulation, steps per call, skipped steps, averages, padded evaluation."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sixth_problem

from jaxtrain.engine import config as configs
from jaxtrain.engine import steps
from jaxtrain.engine.checkpoint import Checkpoints
from jaxtrain.engine.program import Program, prepare, restore_or_initialise
from jaxtrain.engine.run import make_task
from jaxtrain.engine.sharding import Layout, layout
from jaxtrain.engine.standing import Standing, guard
from jaxtrain.engine.state import TrainState
from jaxtrain.errors import UserError
from jaxtrain.tasks.task import Task

KEY = jax.random.key(0)


@dataclass(frozen=True)
class Bench:
    task: Task
    program: Program
    calls: int  # steps of one call
    devices: Layout

    def batches(self, first: int, count: int) -> dict[str, np.ndarray]:
        self.program.feed.start(first)
        taken = self.program.feed.take(count, self.program.slots)
        self.program.feed.close()
        return taken

    def call(self, state: TrainState, inputs: Any, count: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        state, logs = self.program.call(state, self.program.arrays, inputs, np.int32(count), np.float32(1), KEY)
        return state, {k: np.asarray(v)[:count] for k, v in logs.items()}

    def train(self, total: int) -> tuple[TrainState, np.ndarray]:
        """From the start, in calls of `calls` steps and a shorter last one; (state, loss of every step)."""
        state, losses = self.program.initialise(), []
        for first in range(0, total, self.calls):
            count = min(self.calls, total - first)
            state, logs = self.call(state, self.batches(first, count), count)
            losses.append(logs["loss"])
        return state, np.concatenate(losses)


@functools.cache  # what is compiled for one test serves the others
def bench(preset: str = "default", **overrides: Any) -> Bench:
    values = sixth_problem.values(preset, **overrides)
    phase = configs.phases(values)[0]
    task = make_task(values["task"], phase.task)
    splits = task.splits()
    task = task.with_statistics(splits.statistics)
    train = phase.engine.train
    devices = layout(train.batch, phase.engine.eval.batch, train.accumulate)
    return Bench(task, prepare(task, phase.engine, splits, devices, 0, 0), train.steps_per_call, devices)


def host(state: TrainState) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def test_where_a_run_is_cut_into_calls_changes_no_bit() -> None:
    one, losses = bench(train__ema=0.9, train__steps_per_call=1).train(40)
    for calls in (7, 20):
        other, again = bench(train__ema=0.9, train__steps_per_call=calls).train(40)
        sixth_problem.assert_same(host(one), host(other))
        np.testing.assert_array_equal(losses, again)
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()


def uneven(slots: int, batch: int) -> dict[str, np.ndarray]:
    """Host batches whose examples carry very different numbers of observed targets, some none, some under mask 0."""
    random = np.random.default_rng(1)
    shape = (slots, batch)
    observed = random.random((*shape, 4, 3)) < np.linspace(0, 1, batch)[None, :, None, None]
    return {
        "level": random.standard_normal((*shape, 8, 3)).astype(np.float32),
        "target": random.standard_normal((*shape, 4, 3)).astype(np.float32),
        "target_mask": observed.astype(np.float32),
        "mask": (random.random(shape) < 0.8).astype(np.float32),
    }


def test_accumulation_equals_the_undivided_batch() -> None:
    plain = {"model__norm": False, "model__dropout": 0.0, "optimizer__name": "sgd", "optimizer__clip": 0.1, "train__steps_per_call": 5}
    whole, divided = (bench("host", train__accumulate=k, **plain) for k in (1, 4))
    inputs = uneven(5, 16)
    a, logs_a = whole.call(whole.program.initialise(), inputs, 5)
    b, logs_b = divided.call(divided.program.initialise(), inputs, 5)
    moved = host(whole.program.initialise())
    for name, left in host(a).items():
        np.testing.assert_allclose(left, host(b)[name], rtol=1e-6, atol=1e-6, err_msg=name)
    assert any(np.abs(left - moved[name]).max() > 1e-3 for name, left in host(a).items() if "kernel" in name or "packed" in name)
    for name in logs_a:
        np.testing.assert_allclose(logs_a[name], logs_b[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_under_mask_zero_nothing_counts() -> None:
    plain = {"model__norm": False, "train__steps_per_call": 1}
    one = bench("host", **plain)
    inputs = uneven(2, 16)
    spoiled = {**inputs, "target": np.where(inputs["mask"][..., None, None] > 0, inputs["target"], 1e6).astype(np.float32)}
    a, _ = one.call(one.program.initialise(), inputs, 1)
    b, _ = one.call(one.program.initialise(), spoiled, 1)
    sixth_problem.assert_same(host(a), host(b))


def test_a_step_that_is_not_finite_changes_nothing_but_the_step_number() -> None:
    one = bench("host", train__ema=0.9, train__steps_per_call=3)
    warm, _ = one.call(one.program.initialise(), uneven(3, 16), 3)
    before = host(warm)
    inputs = uneven(3, 16)
    inputs["level"][1, 2, 0, 0] = np.inf
    alone = {k: np.roll(v, -1, axis=0) for k, v in inputs.items()}  # the bad batch first
    after, logs = one.call(warm, alone, 1)
    assert logs["skipped"].tolist() == [1.0] and not np.isfinite(logs["loss"][0])
    found = host(after)
    assert found.pop(".step") == before.pop(".step") + 1
    sixth_problem.assert_same(before, found)
    _, logs = one.call(after, inputs, 3)
    assert logs["skipped"].tolist() == [0.0, 1.0, 0.0]


def test_a_bad_micro_batch_skips_its_whole_step() -> None:
    one = bench("host", train__accumulate=4, train__steps_per_call=1)
    inputs = uneven(2, 16)
    inputs["level"][0, 5, 0, 0] = np.nan  # only the first of the two slots is run
    state = one.program.initialise()
    before = host(state)
    after, logs = one.call(state, inputs, 1)
    assert logs["skipped"].tolist() == [1.0]
    sixth_problem.assert_same({k: v for k, v in before.items() if k != ".step"}, {k: v for k, v in host(after).items() if k != ".step"})


def test_so_many_bad_steps_in_a_row_stop_the_run_and_name_the_steps() -> None:
    bad, fine = np.ones(3, np.float32), np.zeros(1, np.float32)
    nan = np.full(3, np.nan, np.float32)
    standing = guard(Standing(0), bad, nan, 40, 5, 40)
    assert (standing.skipped_in_a_row, standing.skipped) == (3, 3)
    recovered = guard(standing, np.concatenate([fine, bad]), np.full(4, np.nan), 43, 5, 40)
    assert (recovered.skipped_in_a_row, recovered.skipped) == (3, 6)
    with pytest.raises(UserError, match=r"steps 41-45.* 5 times in a row .*step 40"):
        guard(standing, bad, nan, 43, 5, 40)


def test_averaged_weights_equal_a_plain_loop() -> None:
    one = bench(train__ema=0.9, train__steps_per_call=1)
    state = one.program.initialise()
    average = {k: np.asarray(v, np.float64) for k, v in jax.device_get(state.params).items()}
    for step in range(25):
        state, _ = one.call(state, one.batches(step, 1), 1)
        decay = min(0.9, (1 + step) / (10 + step))
        average = {k: decay * v + (1 - decay) * np.asarray(state.params[k], np.float64) for k, v in average.items()}
    for name, expected in average.items():
        np.testing.assert_allclose(np.asarray(state.ema[name]), expected, rtol=1e-5, atol=1e-6)
    assert any(np.abs(np.asarray(state.ema[k] - state.params[k])).max() > 1e-3 for k in average)
    assert steps.weights(state) is state.ema


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_averages_and_originals_share_no_buffer_with_the_donated_parameters(precision: str) -> None:
    """At the start, and around the weights that a phase hands on."""
    one = bench(train__precision=precision, train__ema=0.9)
    state = one.program.initialise()
    carried = restore_or_initialise(one.program, _NoCheckpoints(), None, (state.ema, state.model_state), one.devices, 7)
    assert int(carried.step) == 7
    for each in (state, carried):
        places = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(each)]
        assert len(set(places)) == len(places)
        begun = {k: np.asarray(v).copy() for k, v in each.ema.items()}
        after, _ = one.call(each, one.batches(0, 5), 5)
        assert all((np.asarray(after.ema[k]) != begun[k]).any() for k in begun if "kernel" in k)


class _NoCheckpoints(Checkpoints):
    def __init__(self) -> None:
        """A folder without checkpoints."""


def test_running_statistics_move_in_training_and_not_in_evaluation() -> None:
    one = bench(train__ema=0.9, train__steps_per_call=1)
    state = one.program.initialise()
    before = {k: np.asarray(v).copy() for k, v in state.model_state.items()}
    scorer, valid = one.program.scorer, one.program.valid
    first = scorer.model(valid, state.params, state.model_state)
    second = scorer.model(valid, state.params, state.model_state)
    sixth_problem.assert_same({**first, **before}, {**second, **{k: np.asarray(v) for k, v in state.model_state.items()}})
    other = scorer.model(valid, state.params, {k: v * 4 + 1 for k, v in state.model_state.items()})
    assert other["abs"] != first["abs"]  # an evaluation uses them, not the statistics of its own batch
    state, _ = one.call(state, one.batches(0, 2), 2)
    running = [k for k in before if k in one.program.template.running]
    assert running and all(np.abs(np.asarray(state.model_state[k]) - before[k]).max() > 1e-3 for k in running)


def test_padding_of_the_last_evaluation_batch_counts_nowhere() -> None:
    """49 examples in batches of 32, and in one batch of 49 without padding."""
    padded, whole = bench(train__ema=0.9, train__steps_per_call=1), bench(eval__batch=49)
    state = padded.program.initialise()
    a, b = (x.program.scorer.model(x.program.valid, state.params, state.model_state) for x in (padded, whole))
    assert len(padded.program.valid.dataset) == 49 and a["n"] == b["n"] > 500
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-4)


def test_parameters_keep_the_types_that_the_precision_promises() -> None:
    stored_types = {"float32": jnp.float32, "mixed_bfloat16": jnp.float32, "bfloat16": jnp.bfloat16}
    losses = {}
    for precision, stored in stored_types.items():
        state, curve = bench(train__precision=precision, train__ema=0.9).train(60)
        losses[precision] = curve[-10:].mean()
        assert {v.dtype for v in state.params.values()} == {jnp.dtype(stored)}
        floats = {x.dtype for x in jax.tree.leaves((state.opt_state, state.ema)) if jnp.issubdtype(x.dtype, jnp.floating)}
        assert floats == {jnp.dtype(jnp.float32)}
    assert losses["mixed_bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert losses["bfloat16"] != losses["mixed_bfloat16"] != losses["float32"]


def test_the_master_copy_keeps_updates_that_bfloat16_loses() -> None:
    slow = bench(train__precision="bfloat16", optimizer__lr=1e-5, optimizer__min_lr=1e-6, optimizer__warmup="0st")
    before, (state, _) = slow.program.initialise(), slow.train(40)
    masters = state.opt_state.params
    for name, stored in state.params.items():
        np.testing.assert_array_equal(stored, masters[name].astype(jnp.bfloat16), err_msg=name)
    kernel = next(name for name in masters if name.endswith("kernel"))
    one, all_steps = 1e-5, np.abs(np.asarray(masters[kernel] - before.opt_state.params[kernel]))
    spacing = np.asarray(2.0 ** (jnp.floor(jnp.log2(jnp.abs(masters[kernel]))) - 7))  # of bfloat16 numbers
    lost = spacing > 2 * one  # a step alone rounds to nothing
    assert lost.mean() > 0.9 and all_steps[lost].max() > 20 * one
    assert (np.asarray(state.params[kernel] != before.params[kernel]) & lost).any()


def test_python_runs_through_network_and_loss_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing is most of what a start waits for when the compiled program is in the cache."""
    made = bench()
    runs = {"build": 0, "loss": 0}
    for name in runs:
        plain = getattr(type(made.task), name)

        def counted(self: Task, *arguments: Any, name: str = name, plain: Any = plain) -> Any:
            runs[name] += 1
            return plain(self, *arguments)

        monkeypatch.setattr(type(made.task), name, counted)
    values = sixth_problem.values()
    program = prepare(made.task, configs.phases(values)[0].engine, made.task.splits(), made.devices, 0, 0)
    state = program.initialise()
    assert runs["build"] == 1, "for structure, shapes and initial values together"
    program.call.lower(state, program.arrays, program.inputs, np.int32(1), np.float32(1), KEY)
    assert runs["loss"] == 1
