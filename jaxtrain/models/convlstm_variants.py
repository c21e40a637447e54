"""The recurrent networks between the inputs and the readout: the users' two, and an encoder-decoder that keeps its state.

A body takes the inputs of `models.convlstm.Network` and the base forecast (F, B, D, S), and emits (outputs, F, B, D, S) float32.
Inside, sequences are rows (T, B, ..., S, X) as in `nn.conv_lstm`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.models.convlstm_readout import Readout
from jaxtrain.nn.conv_lstm import ConvLSTM, How, convolve, rows_of, unfold
from jaxtrain.nn.dropout import Dropout, Source

Inputs = Mapping[str, jax.Array]
PLACE_SCALE = 0.5
EPSILON, MOMENTUM = 1e-3, 0.99  # of batch norm


class Between(nnx.Module):
    """What may stand between recurrent layers: a norm over H, then dropout of whole channels per sequence.

    Batch norm takes biased statistics over batch, steps and places (Ioffe and Szegedy 2015); training batches are never padded.
    """

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        self.norm = _norm(config, rngs)
        self.dropout = Dropout(config.dropout)
        self.hidden = config.hidden

    def __call__(self, x: jax.Array, rngs: Source | None) -> jax.Array:
        """x (T, B, ..., S, X)."""
        if self.norm is not None:
            x = self.norm(x.reshape(-1, self.hidden)).reshape(x.shape).astype(x.dtype)
        if self.dropout.deterministic or self.dropout.rate == 0:
            return x
        kept = self.dropout(jnp.ones((x.shape[1], x.shape[-1]), x.dtype), rngs=rngs)
        return x * kept.reshape(len(kept), *(1 for _ in x.shape[2:-1]), -1)


def _norm(config: Any, rngs: nnx.Rngs) -> nnx.BatchNorm | nnx.LayerNorm | None:
    if config.norm == "batch":
        return nnx.BatchNorm(config.hidden, momentum=MOMENTUM, epsilon=EPSILON, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)
    return nnx.LayerNorm(config.hidden, dtype=jnp.float32, rngs=rngs) if config.norm == "layer" else None


class Emit(nnx.Module):
    """The product that ends a network: (..., features) -> (outputs, ..., groups), float32; groups are the minutes, or one."""

    def __init__(self, features: int, readout: Readout, groups: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(readout.kernel(rngs.params(), features, groups))
        self.bias = nnx.Param(readout.bias(groups))
        self.groups = groups

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(jnp.float32)
        flat = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        out = jax.lax.dot_general(kernel, flat, (((0,), (1,)), ((), ()))) + self.bias[...].astype(jnp.float32)[:, None]
        return jnp.moveaxis(out.reshape(self.groups, -1, *x.shape[:-1]), 0, -1)


def values_of(fields: jax.Array, sizes: Any) -> jax.Array:
    """fields (B, L, S, D, C) without the masks."""
    return jnp.concatenate([fields[..., : 2 * sizes.fields : 2], fields[..., 2 * sizes.fields :]], axis=-1)


def _everywhere(planned: jax.Array, stations: int) -> jax.Array:
    """planned (B, F, D, K) -> (B, F, S, D, K), the same at every station."""
    return jnp.broadcast_to(planned[:, :, None], (*planned.shape[:2], stations, *planned.shape[2:]))


def _cell(config: Any, sizes: Any, inputs: int, dtype: Any, rngs: nnx.Rngs) -> ConvLSTM:
    how = How(config.activation, hoisted=jax.default_backend() != "cpu", unroll=config.unroll)
    remat = config.remat == "cell"
    return ConvLSTM(inputs, config.hidden, config.kernel, sizes.directions, how, remat=remat, dtype=dtype, rngs=rngs)


class Baseline(nnx.Module):
    """Two encoder layers; the last state, seen 15 times beside the plan, drives a decoder that starts from zero; 1x1 product."""

    def __init__(self, config: Any, sizes: Any, readout: Readout, *, dtype: Any, rngs: nnx.Rngs):
        self.sizes, self.dtype, self.hidden = sizes, dtype, config.hidden
        values = sizes.channels - sizes.fields
        self.encoder = nnx.List([_cell(config, sizes, n, dtype, rngs) for n in (values, config.hidden)])
        self.decoder = _cell(config, sizes, config.hidden + sizes.terminal, dtype, rngs)
        self.between = nnx.List([Between(config, rngs=rngs) for _ in range(3)])
        self.emit = Emit(config.hidden, readout, 1, rngs=rngs)

    def __call__(self, inputs: Inputs, base: jax.Array, rngs: Source | None = None) -> jax.Array:
        first, second = self.encoder
        x = rows_of(values_of(inputs["fields"], self.sizes), first.folded)
        h, _ = first(x)
        h = self.between[0](h, rngs)
        h, _ = second(h)
        state = self.between[1](h[-1:], rngs)[0]
        of_state, of_plan = self.decoder.kernels(self.hidden, self.sizes.terminal)
        plan = rows_of(_everywhere(inputs["planned"], self.sizes.stations), self.decoder.folded)
        h, _ = self.decoder(plan, kernel=of_plan, constant=convolve(state, of_state))
        h = self.between[2](h, rngs)
        return self.emit(unfold(h, self.sizes.directions))[..., 0]


class Paper(nnx.Module):
    """Usama and Koutsopoulos (2025): two layers, the last state and the plan flattened into one dense layer."""

    def __init__(self, config: Any, sizes: Any, readout: Readout, *, dtype: Any, rngs: nnx.Rngs):
        self.sizes, self.dtype, self.hidden = sizes, dtype, config.hidden
        values = sizes.channels - sizes.fields
        self.encoder = nnx.List([_cell(config, sizes, n, dtype, rngs) for n in (values, config.hidden)])
        self.between = Between(config, rngs=rngs)
        cells = sizes.stations * sizes.directions
        features = cells * config.hidden + sizes.horizon * sizes.directions * sizes.terminal
        self.emit = Emit(features, readout, sizes.horizon * cells, rngs=rngs)

    def __call__(self, inputs: Inputs, base: jax.Array, rngs: Source | None = None) -> jax.Array:
        s, (first, second) = self.sizes, self.encoder
        x = rows_of(values_of(inputs["fields"], s), first.folded)
        h, _ = first(x)
        h = self.between(h, rngs)
        h, _ = second(h)
        state = unfold(h[-1:], s.directions)[0].swapaxes(1, 2)  # (B, S, D, H)
        flat = jnp.concatenate([state.reshape(len(state), -1), inputs["planned"].astype(self.dtype).reshape(len(state), -1)], axis=-1)
        out = self.emit(flat)  # (outputs, B, F S D)
        return out.reshape(len(out), -1, s.horizon, s.stations, s.directions).transpose(0, 2, 1, 4, 3)


class Seq2seq(nnx.Module):
    """Two encoder and two decoder layers; decoder layer l starts from (h, c) of encoder layer l (Shi et al. 2015).

    The decoder hears the plan, the base forecast and the place; the readout hears both of its layers.
    """

    def __init__(self, config: Any, sizes: Any, readout: Readout, *, dtype: Any, rngs: nnx.Rngs):
        self.sizes, self.dtype, self.hidden, self.place_width = sizes, dtype, config.hidden, config.place
        self.place = Place((sizes.stations, sizes.directions, config.place), rngs=rngs) if config.place else None
        encoder = (sizes.channels + config.place, config.hidden)
        decoder = (sizes.terminal + 1 + config.place, config.hidden)
        self.encoder = nnx.List([_cell(config, sizes, n, dtype, rngs) for n in encoder])
        self.decoder = nnx.List([_cell(config, sizes, n, dtype, rngs) for n in decoder])
        self.between = nnx.List([Between(config, rngs=rngs) for _ in range(2)])
        self.emit = Emit(2 * config.hidden, readout, 1, rngs=rngs)

    def __call__(self, inputs: Inputs, base: jax.Array, rngs: Source | None = None) -> jax.Array:
        s, (first, second) = self.sizes, self.encoder
        of_fields, of_place = first.kernels(s.channels, self.place_width)
        h, start = first(rows_of(inputs["fields"], first.folded), kernel=of_fields, constant=self._placed(of_place, first))
        h, start_second = second(self.between[0](h, rngs))
        first, second = self.decoder
        of_future, of_place = first.kernels(s.terminal + 1, self.place_width)
        future = jnp.concatenate([_everywhere(inputs["planned"], s.stations), base.transpose(1, 0, 3, 2)[..., None]], axis=-1)
        low, _ = first(rows_of(future, first.folded), kernel=of_future, constant=self._placed(of_place, first), state=start)
        high, _ = second(self.between[1](low, rngs), state=start_second)
        both = jnp.concatenate([unfold(low, s.directions), unfold(high, s.directions)], axis=-1)
        return self.emit(both)[..., 0]

    def _placed(self, kernel: jax.Array, cell: ConvLSTM) -> jax.Array | None:
        """The product of the place vectors, which no step and no example changes."""
        if self.place is None:
            return None
        return convolve(rows_of(self.place.vectors[...][None, None].astype(self.dtype), cell.folded)[0], kernel)


class Place(nnx.Module):
    """One learned vector per station and direction: running times differ by link."""

    def __init__(self, shape: tuple[int, int, int], *, rngs: nnx.Rngs):
        self.vectors = nnx.Param(PLACE_SCALE * jax.random.normal(rngs.params(), shape))
