"""The network's door: batches in minutes become inputs in units of the cap, and forecasts are fed back for a rollout.

Letters as in `convlstm`: B windows, L lookback rows, F horizon rows, S stations, D directions, K terminal channels, C input channels.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.dataset import Arrays, Batch, Dataset, Gather, Statistics
from jaxtrain.data.headway_config import DAY_MINUTES, FIELDS, DataConfig
from jaxtrain.models.convlstm import Network, Sizes
from jaxtrain.models.convlstm_readout import copy_weights

PLACE = "place/vectors"  # path of the learned vectors per station and direction
CLOCK_PERIODS = (DAY_MINUTES, 7 * DAY_MINUTES)  # of the clock channels: sine and cosine of each


def other_field(data: DataConfig) -> str:
    """The input field that is not forecast as the target; "" without one."""
    return next((name for name in data.inputs if name != data.target), "")


def sizes(data: DataConfig, statistics: Statistics, auxiliary: bool) -> Sizes:
    """What the data decide of the network."""
    directions, stations = statistics["stations"].shape
    channels = 2 * len(data.inputs) + (2 * len(CLOCK_PERIODS) if data.clock else 0)
    return Sizes(
        lookback=data.lookback, horizon=data.horizon, stations=stations, directions=directions, terminal=_terminal(data, statistics),
        channels=channels, fields=len(data.inputs), target=data.target, cap_minutes=data.cap_minutes, step_minutes=data.step_minutes,
        auxiliary=auxiliary,
    )  # fmt: skip


def _terminal(data: DataConfig, statistics: Statistics) -> int:
    """K: one channel, or one for every origin of the direction that has most."""
    if data.terminal == "merged" or "plan_lag_direction" not in statistics:
        return 1
    return max(1, *np.unique(statistics["plan_lag_direction"], return_counts=True)[1].tolist())


def model_inputs(data: DataConfig, statistics: Statistics, batch: Batch) -> dict[str, jax.Array]:
    """The arrays that `models.convlstm.Network` takes, float32, values / cap and 0 where unknown."""
    cap = data.cap_minutes
    channels = []
    for name in data.inputs:
        known = jnp.asarray(batch[f"{name}_known"], bool)
        channels += [jnp.where(known, batch[name], 0.0) / cap, known]
    fields = jnp.stack([jnp.asarray(channel, jnp.float32) for channel in channels], axis=-1)
    if data.clock:
        clock = jnp.asarray(batch["clock"], jnp.float32)[:, :, None, None]
        fields = jnp.concatenate([fields, jnp.broadcast_to(clock, (*fields.shape[:-1], clock.shape[-1]))], axis=-1)
    planned_known = jnp.asarray(batch["planned_known"], bool)
    history, target_known = dated(data, batch)
    return {
        "fields": fields,
        "target_history": history / cap,
        "target_known": target_known,
        "planned": jnp.where(planned_known, batch["planned"], 0.0).astype(jnp.float32) / cap,
        "planned_known": planned_known,
        "fallback": jnp.asarray(statistics["place_mean"], jnp.float32) / cap,
    }


def dated(data: DataConfig, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The target field's past (B, L, S, D) minutes, 0 where unknown, and where it tells of a train.

    An age at the cap says no more than "at least so old": the newest age below it, and the rows since then, date that train exactly.
    """
    known = jnp.asarray(batch[f"{data.target}_known"], bool)
    history = jnp.where(known, batch[data.target], 0.0).astype(jnp.float32)
    if data.target == "age":
        known = known & (history < data.cap_minutes)
        history = jnp.where(known, history, 0.0)
    return history, known


def outputs(data: DataConfig, statistics: Statistics, call: Callable[[Any], dict[str, jax.Array]], batch: Batch) -> dict[str, jax.Array]:
    """What the network (`call`) says of every target row, as `Network` returns it.

    Where a batch has a multiple of F target rows, F forecast rows at a time are appended to the input as known, the oldest dropped,
    and the next F follow from them and the plan of their own rows.
    """
    blocks, rest = divmod(batch["planned"].shape[1], data.horizon)
    assert blocks and not rest, f"{batch['planned'].shape[1]} target rows are no multiple of {data.horizon}"
    if blocks == 1:
        return call(model_inputs(data, statistics, batch))
    fields = sorted({*data.inputs, data.target})
    history = {name: jnp.asarray(batch[name]) for name in (*fields, *(f"{f}_known" for f in fields), *(("clock",) if data.clock else ()))}
    plans = {name: _blocks(batch[name], blocks) for name in ("planned", "planned_known")}

    def block(history: Any, plan: Any) -> tuple[Any, Any]:
        found = call(model_inputs(data, statistics, {**history, **plan}))
        return _fed_back(data, history, found), found

    _, found = jax.lax.scan(block, history, plans)
    return {name: jnp.moveaxis(value, 0, 1).reshape(value.shape[1], -1, *value.shape[3:]) for name, value in found.items()}


def with_copy_weights(model: Network) -> Callable[[Any], dict[str, jax.Array]]:
    """The network, saying also copy_weights (B, F, S, D, J + 2): where its copying readout looks."""

    def call(inputs: Any) -> dict[str, jax.Array]:
        candidates = model.readout.candidates(inputs)
        raw = model.body(inputs, candidates.base)
        shares = copy_weights(raw[: len(candidates.prior)], candidates)  # (J + 2, F, B, D, S)
        return {**model.readout(raw, candidates), "copy_weights": shares.transpose(2, 1, 4, 3, 0)}

    return call


def _blocks(values: Any, blocks: int) -> jax.Array:
    """(B, n F, ...) -> (n, B, F, ...)."""
    values = jnp.asarray(values)
    return jnp.moveaxis(values.reshape(len(values), blocks, -1, *values.shape[2:]), 1, 0)


def _fed_back(data: DataConfig, history: Batch, found: dict[str, jax.Array]) -> Batch:
    """The input F rows later: forecasts stand where nothing is known yet."""
    moved = {}
    for name, said in ((data.target, found["y"]), (other_field(data), found.get("other"))):
        if name and said is not None:
            value = jnp.clip(said, 0, 1) * data.cap_minutes
            known = jnp.ones(value.shape, bool)
            moved[name] = jnp.concatenate([history[name], value.astype(history[name].dtype)], axis=1)[:, -data.lookback :]
            moved[f"{name}_known"] = jnp.concatenate([history[f"{name}_known"], known], axis=1)[:, -data.lookback :]
    if data.clock:
        moved["clock"] = _turned(history["clock"], data.horizon * data.step_minutes)
    return moved


def _turned(clock: jax.Array, minutes: float) -> jax.Array:
    """The clock channels (B, L, 4) so many minutes later."""
    parts = []
    for i, period in enumerate(CLOCK_PERIODS):
        sine, cosine = clock[..., 2 * i], clock[..., 2 * i + 1]
        turn = 2 * np.pi * minutes / period
        parts += [sine * np.cos(turn) + cosine * np.sin(turn), cosine * np.cos(turn) - sine * np.sin(turn)]
    return jnp.stack(parts, axis=-1)


def with_other(dataset: Dataset, data: DataConfig) -> Dataset:
    """Batches also hold other_target, other_known (B, F, S, D): the future of the input field that is not the target."""
    gather = partial(gather_other, inner=dataset.gather, field=other_field(data), lookback=data.lookback)
    return replace(dataset, gather=gather)


def gather_other(arrays: Arrays, rows: Any, *, inner: Gather, field: str, lookback: int) -> Batch:
    """`inner`'s batch of windows that start at rows (B, 1), and the field's target rows."""
    batch = inner(arrays, rows)
    future = rows + lookback + np.arange(batch["target"].shape[1], dtype=np.int32)
    return {**batch, "other_target": arrays[field][future], "other_known": arrays[f"{field}_known"][future]}


def with_own_plan(changed: Dataset, own: Dataset, lookback: int) -> Dataset:
    """Windows under a changed plan, beside them own_planned, own_planned_known (B, F, D, K): the plan of the run itself."""
    arrays = {**changed.arrays, **{f"own_{name}": own.arrays[name] for name in ("planned", "planned_known")}}
    return Dataset(arrays, changed.index, partial(gather_own_plan, inner=changed.gather, lookback=lookback))


def gather_own_plan(arrays: Arrays, rows: Any, *, inner: Gather, lookback: int) -> Batch:
    """`inner`'s batch of windows that start at rows (B, 1), and the run's own plan of its target rows."""
    batch = inner(arrays, rows)
    future = rows + lookback + np.arange(batch["planned"].shape[1], dtype=np.int32)
    return {**batch, **{f"own_{name}": arrays[f"own_{name}"][future] for name in ("planned", "planned_known")}}


def array_shapes(data: DataConfig, size: Sizes, windows: int) -> dict[str, tuple[int, ...]]:
    """name -> shape of the arrays that a caller may give by hand: fields, the plan, and with data.clock the clock channels."""
    fields = tuple(name for name in FIELDS if name in data.inputs or name == data.target)
    shapes: dict[str, tuple[int, ...]] = {name: (windows, size.lookback, size.stations, size.directions) for name in fields}
    shapes["planned"] = (windows, size.horizon, size.directions, size.terminal)
    return {**shapes, **({"clock": (windows, size.lookback, 2 * len(CLOCK_PERIODS))} if data.clock else {})}


def moved_places(params: dict[str, Any], other: Statistics, own: Statistics) -> dict[str, Any]:
    """Weights of a run with the statistics `other` for a line with the statistics `own`: the place vectors, (S, D, width), move by
    the names of station and direction. A place that the other run did not know starts at the mean of all."""
    known = {(str(d), str(station)): (s, k) for k, d in enumerate(other["directions"]) for s, station in enumerate(other["stations"][k])}
    found = dict(params)
    for path in [path for path in params if path.endswith(PLACE)]:
        vectors = np.asarray(params[path])
        if vectors.shape[:2] != other["stations"].T.shape:
            continue
        usual = vectors.mean((0, 1))
        rows = [[known.get((str(d), str(station))) for d, station in zip(own["directions"], column, strict=True)]
                for column in own["stations"].T]  # fmt: skip
        found[path] = np.stack([np.stack([usual if place is None else vectors[place] for place in row]) for row in rows])
    return found
