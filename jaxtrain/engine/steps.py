"""The compiled programs: several training steps in one call, scoring, naive forecasts, prediction. The only jit here."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxtrain.data.dataset import Batch, Gather
from jaxtrain.engine import optimizer as opt
from jaxtrain.engine.packing import Packing
from jaxtrain.engine.state import Params, Template, TrainState, cast, model_state_of
from jaxtrain.tasks.task import Forecast, Sums, Task

PRECISIONS = {  # name -> (stored parameters, computation)
    "float32": (jnp.float32, jnp.float32),
    "mixed_bfloat16": (jnp.float32, jnp.bfloat16),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
}

BUSY = 1e8  # floating-point operations of a step beyond which two cores gain nothing from other members (measured between 3e7 and 2e9)


def initial_state(params: Params, model_state: Params, transform: opt.Transform, *, precision: str, ema: bool) -> TrainState:
    """Step 0. With `bfloat16` the parameters are rounded and the optimizer keeps the float32 originals.

    EMA and master copies are arrays of their own: the state is donated to every step, and one buffer cannot go twice.
    """
    stored = PRECISIONS[precision][0]
    inner = transform.init(transform.packing.pack(params))
    opt_state = inner if stored == jnp.float32 else opt.Master(jax.tree.map(jnp.copy, params), inner)
    average = jax.tree.map(jnp.copy, params) if ema else {}
    return TrainState(jnp.zeros((), jnp.int32), cast(params, stored), model_state, opt_state, average)


def restart(state: TrainState, params: Params, model_state: Params) -> TrainState:
    """A fresh state around given weights: master copy and averages start from them."""
    params32 = {k: params[k].astype(jnp.float32) for k in state.params}
    opt_state = opt.Master(params32, state.opt_state.inner) if isinstance(state.opt_state, opt.Master) else state.opt_state
    stored = {k: params32[k].astype(v.dtype) for k, v in state.params.items()}
    average = {k: jnp.copy(params32[k]) for k in state.ema}  # an array of its own, as in `initial_state`
    return TrainState(state.step, stored, {**state.model_state, **model_state}, opt_state, average)


def weights(state: TrainState) -> Params:
    """What is evaluated and served: the averaged weights where they are kept."""
    return state.ema or state.params


def train_call(
    task: Task,
    template: Template,
    transform: opt.Transform,
    rate: opt.Schedule,
    gather: Gather | None,
    *,
    accumulate: int,
    ema: float,
    first_step: int,
    out_shardings: Any = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted call `(state, arrays, inputs, count, rate_scale, key) -> (state, logs)`; state is donated.

    inputs: {"rows": (S, B, k) int32} gathered here when `gather` is given, else whole batches {name: (S, B, ...)}
    count:  () int32, how many of the S steps to run. One program serves every count, so that where a run is cut into
            calls (or was killed) cannot change a single bit of it.
    logs:   {name: (S,) float32}; entries from `count` on are zero. A step whose loss or gradient is not finite changes
            nothing but the step number and logs skipped = 1.
    """

    def objective(params: Params, model_state: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        model = template.join(params, model_state, training=True)
        loss, logs = task.loss(model, batch, nnx.Rngs(key))
        return loss, (logs, model_state_of(model))

    gradient = jax.value_and_grad(objective, has_aux=True)

    def divided(params: Params, model_state: Params, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        # Micro-batch m takes every accumulate-th example: each device then keeps its own examples.
        parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1), batch)

        def body(carry: Any, part_number: Any) -> tuple[Any, Any]:
            grads, total, weight, model_state = carry
            part, number = part_number
            (loss, (logs, model_state)), g = gradient(params, model_state, part, jax.random.fold_in(key, number))
            w = logs.get("weight", jnp.ones(()))
            grads = jax.tree.map(lambda a, b: a + w * b.astype(jnp.float32), grads, g)
            return (grads, total + w * loss, weight + w, model_state), (logs, w)

        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        start = (zeros, jnp.zeros(()), jnp.zeros(()), model_state)
        (grads, total, weight, model_state), (logs, w) = jax.lax.scan(body, start, (parts, jnp.arange(accumulate)))
        scale = 1 / jnp.maximum(weight, 1e-30)
        logs = {k: weight if k == "weight" else jnp.sum(v * w) * scale for k, v in logs.items()}
        return (total * scale, (logs, model_state)), jax.tree.map(lambda g: g * scale, grads)

    def one(state: TrainState, batch: Batch, rate_scale: jax.Array, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        step_key = jax.random.fold_in(key, state.step)
        compute = gradient if accumulate == 1 else divided
        (loss, (logs, model_state)), grads = compute(state.params, state.model_state, batch, step_key)
        grads = _packed(transform.packing, jax.tree.map(lambda g: g.astype(jnp.float32), grads), loss)
        norm = optax.tree.norm(grads)
        lr = rate(state.step - first_step) * rate_scale
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        master = isinstance(state.opt_state, opt.Master)
        original, inner = (state.opt_state.params, state.opt_state.inner) if master else (state.params, state.opt_state)

        def stay(grads: Params, model_state: Params) -> Any:
            return transform.packing.pack(original), state.model_state, inner, transform.packing.pack(state.ema) if ema else {}

        def move(grads: Params, model_state: Params) -> Any:
            params, _, _, average = stay(grads, model_state)
            params, moments = opt.descend(transform, grads, inner, params, lr)
            if ema:
                decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
                average = {k: decay * v + (1 - decay) * params[k] for k, v in average.items()}
            return params, model_state, moments, average

        packed, model_state, inner, average = _either(finite, move, stay, grads, model_state)
        original, average = transform.packing.unpack(packed), transform.packing.unpack(average) if ema else {}
        params = {k: v.astype(state.params[k].dtype) for k, v in original.items()}
        opt_state = opt.Master(original, inner) if master else inner
        skipped = 1.0 - finite
        logs = {**{k: jnp.where(finite, v, 0.0) for k, v in logs.items()}, "loss": loss, "grad_norm": norm, "lr": lr, "skipped": skipped}
        logs = {k: jnp.asarray(v, jnp.float32) for k, v in logs.items()}
        return TrainState(state.step + 1, params, model_state, opt_state, average), logs

    one = jax.jit(one, inline=True)  # asked for twice, for its shapes and for the loop: traced once

    def call(state: TrainState, arrays: Any, inputs: Any, count: jax.Array, rate_scale: jax.Array, key: jax.Array) -> Any:
        def batch_at(i: Any) -> Batch:
            chosen = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), inputs)
            return batch_of(gather, arrays, chosen)

        def body(i: Any, carry: Any) -> Any:
            state, logs = carry
            state, now = one(state, batch_at(i), rate_scale, key)
            return state, {k: v.at[i].set(now[k]) for k, v in logs.items()}

        slots = jax.tree.leaves(inputs)[0].shape[0]
        shapes = jax.eval_shape(lambda s: one(s, batch_at(0), rate_scale, key)[1], state)
        return jax.lax.fori_loop(0, count, body, (state, {k: jnp.zeros((slots,), jnp.float32) for k in shapes}))

    return jax.jit(call, donate_argnums=0, out_shardings=out_shardings)


def _packed(packing: Packing, grads: Params, loss: jax.Array) -> Params:
    """The gradient with its small arrays packed; not a number where the loss is none."""

    def nothing(grads: Params) -> Params:
        return jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), jax.eval_shape(packing.join, grads))

    return _either(jnp.isfinite(loss), packing.join, nothing, grads) | packing.rest(grads)


def _either(choice: jax.Array, one: Callable[..., Any], other: Callable[..., Any], *operands: Any) -> Any:
    """What one or the other makes of the operands.

    On CPU a branch, whose operands are in memory: packing small arrays is then a copy, not one loop over everything that made
    them. Elsewhere both are computed and chosen from: a branch would wait for the host.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.cond(choice, one, other, *operands)
    return jax.tree.map(lambda a, b: jnp.where(choice, a, b), one(*operands), other(*operands))


def population_call(call: Callable[..., Any], flops_per_step: float | None) -> Callable[..., Any]:
    """`train_call`'s program for several members at once: `(states, arrays, inputs, count, rate_scales, keys)`; states are donated.

    States, inputs, rate scales and keys have a leading axis of members; arrays and count are shared. Members go through every operation
    together; on CPU, where a step of one keeps the cores busy already, one after the other in the same program.
    """

    def in_turn(states: TrainState, arrays: Any, inputs: Any, count: jax.Array, rate_scales: jax.Array, keys: jax.Array) -> Any:
        return jax.lax.map(lambda own: call(own[0], arrays, own[1], count, *own[2:]), (states, inputs, rate_scales, keys))

    busy = jax.default_backend() == "cpu" and (flops_per_step or 0) > BUSY
    return jax.jit(in_turn if busy else jax.vmap(call, in_axes=(0, None, 0, None, 0, 0)), donate_argnums=0)


@jax.jit
def stack_members(states: list[TrainState]) -> TrainState:
    """One state with a leading axis of members."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@jax.jit
def take_member(states: TrainState, number: jax.Array) -> TrainState:
    """The state of one member, in arrays of its own."""
    return jax.tree.map(lambda x: x[number], states)


def batch_of(gather: Gather | None, arrays: Any, inputs: Any) -> Batch:
    """A batch inside jit: gathered from rows, or as it came; `mask` is 1 where the loader gave none."""
    batch = gather(arrays, inputs["rows"]) if gather else {k: v for k, v in inputs.items() if k != "mask"}
    mask = inputs.get("mask")
    return {**batch, "mask": jnp.ones(next(iter(batch.values())).shape[:1], jnp.float32) if mask is None else mask}


def score_call(task: Task, template: Template, gather: Gather | None, out_sharding: Any = None) -> Callable[..., Sums]:
    """Jitted `(params, model_state, arrays, inputs) -> sums` of the model over one padded batch."""

    def call(params: Params, model_state: Params, arrays: Any, inputs: Any) -> Sums:
        model = template.join(params, model_state, training=False)
        return task.score(model, batch_of(gather, arrays, inputs))

    return jax.jit(call, out_shardings=out_sharding)


def naive_call(task: Task, gather: Gather | None, out_sharding: Any = None) -> Callable[..., dict[str, Sums]]:
    """Jitted `(arrays, inputs) -> {name: sums}` of every naive forecast over one padded batch."""

    def call(arrays: Any, inputs: Any) -> dict[str, Sums]:
        batch = batch_of(gather, arrays, inputs)
        return {name: task.score_forecast(forecast, batch) for name, forecast in task.naive(batch).items()}

    return jax.jit(call, out_shardings=out_sharding)


def forecast_score_call(task: Task) -> Callable[[Forecast, Batch], Sums]:
    """Jitted `(forecast, batch) -> sums`, for forecasts made outside the model."""
    return jax.jit(task.score_forecast)


def predict_call(task: Task, template: Template, **options: Any) -> Callable[..., Forecast]:
    """Jitted `(params, model_state, batch) -> forecast` in physical units; options go to the task's `predict`."""

    def call(params: Params, model_state: Params, batch: Batch) -> Forecast:
        return task.predict(template.join(params, model_state, training=False), batch, **options)

    return jax.jit(call)
