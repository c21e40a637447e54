"""The networks without a recurrence: convolutions over time and line, and attention over places or minutes.

A body takes the inputs of `models.convlstm.Network` and the base forecast (F, B, D, S), and emits (outputs, F, B, D, S) float32.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.models.convlstm_readout import Readout
from jaxtrain.models.convlstm_variants import PLACE_SCALE, Emit, Inputs, Place
from jaxtrain.nn.attention import MultiHeadAttention
from jaxtrain.nn.dropout import Dropout, Source
from jaxtrain.nn.linear import Linear

REACH = 5  # stations of a kernel
STEPS = 3  # rows of a kernel


class Conv(nnx.Module):
    """'Same' convolution over (rows, stations) as one product: (N, T, S, C) -> (N, T, S, features)."""

    def __init__(self, inputs: int, features: int, dilation: int, *, dtype: Any, rngs: nnx.Rngs):
        shape = (STEPS, REACH, inputs, features)
        self.kernel = nnx.Param(nnx.initializers.lecun_normal(in_axis=(0, 1, 2))(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features))
        self.dilation, self.dtype = dilation, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(self.dtype)
        stations, reach = x.shape[-2], REACH // 2 * self.dilation
        wide = jnp.pad(x, ((0, 0), (0, 0), (reach, reach), (0, 0)))
        wide = jnp.concatenate([wide[:, :, i * self.dilation : i * self.dilation + stations] for i in range(REACH)], axis=-1)
        products = wide.reshape(-1, wide.shape[-1])
        total = jnp.zeros((*x.shape[:-1], kernel.shape[-1]), self.dtype)
        for step in range(STEPS):
            offset = step - STEPS // 2
            part = (products @ kernel[step].reshape(-1, kernel.shape[-1])).reshape(total.shape)
            total += _moved(part, offset)
        return total + self.bias[...].astype(self.dtype)


def _moved(x: jax.Array, offset: int) -> jax.Array:
    """Row t + offset of x (N, T, S, C) at row t, zeros beyond the ends."""
    rows = x.shape[1]
    kept = jax.lax.slice_in_dim(x, max(0, offset), rows + min(0, offset), axis=1)
    return jnp.pad(kept, ((0, 0), (max(0, -offset), max(0, offset)), (0, 0), (0, 0)))


class Conv3d(nnx.Module):
    """Convolutions over (time, station) of every direction by itself; all rows collapse in one kernel, the last filters are the minutes."""

    def __init__(self, config: Any, sizes: Any, readout: Readout, *, dtype: Any, rngs: nnx.Rngs):
        self.sizes, self.dtype = sizes, dtype
        hidden, wide = config.hidden, 2 * config.hidden
        self.place = Place((sizes.stations, sizes.directions, config.place), rngs=rngs) if config.place else None
        self.near = Conv(sizes.channels + config.place, hidden, 1, dtype=dtype, rngs=rngs)
        self.far = Conv(hidden, hidden, 3, dtype=dtype, rngs=rngs)
        self.collapse = Linear(sizes.lookback * hidden, wide, dtype=dtype, rngs=rngs)
        self.join = Linear(wide + sizes.horizon * (sizes.terminal + 1), wide, dtype=dtype, rngs=rngs)
        self.emit = Emit(wide, readout, sizes.horizon, rngs=rngs)
        self.dropout = Dropout(config.dropout)

    def __call__(self, inputs: Inputs, base: jax.Array, rngs: Source | None = None) -> jax.Array:
        x = inputs["fields"].transpose(0, 3, 1, 2, 4).astype(self.dtype)  # (B, D, L, S, C)
        batch, directions, lookback, stations, _ = x.shape
        if self.place is not None:
            place = self.place.vectors[...].astype(self.dtype).swapaxes(0, 1)[:, None]
            x = jnp.concatenate([x, jnp.broadcast_to(place, (*x.shape[:-1], place.shape[-1]))], axis=-1)
        x = x.reshape(-1, *x.shape[2:])
        x = self._dropped(_gelu(self.far(self._dropped(_gelu(self.near(x)), batch, rngs))), batch, rngs)
        x = x.swapaxes(1, 2).reshape(batch, directions, stations, -1)
        x = _gelu(self.collapse(x))
        plan = inputs["planned"].astype(self.dtype).swapaxes(1, 2).reshape(batch, directions, 1, -1)
        plan = jnp.broadcast_to(plan, (batch, directions, stations, plan.shape[-1]))
        x = _gelu(self.join(jnp.concatenate([x, plan, base.transpose(1, 2, 3, 0).astype(self.dtype)], axis=-1)))
        return jnp.moveaxis(self.emit(x), -1, 1)

    def _dropped(self, x: jax.Array, batch: int, rngs: Source | None) -> jax.Array:
        """Whole channels of x (B D, L, S, C) dropped per example."""
        if self.dropout.deterministic or self.dropout.rate == 0:
            return x
        kept = self.dropout(jnp.ones((batch, x.shape[-1]), x.dtype), rngs=rngs)
        return x * jnp.repeat(kept, len(x) // batch, axis=0)[:, None, None]


class Block(nnx.Module):
    """Pre-norm attention and a twice as wide feed-forward layer over (B, tokens, width)."""

    def __init__(self, config: Any, *, dtype: Any, rngs: nnx.Rngs):
        width = config.width
        self.norm_attention, self.norm_ffn = (nnx.LayerNorm(width, dtype=dtype, rngs=rngs) for _ in range(2))
        self.attention = MultiHeadAttention(width, config.heads, config.dropout, dtype=dtype, rngs=rngs)
        self.expand = Linear(width, 2 * width, dtype=dtype, rngs=rngs)
        self.contract = Linear(2 * width, width, dtype=dtype, rngs=rngs)
        self.dropout = Dropout(config.dropout)

    def __call__(self, x: jax.Array, rngs: Source | None) -> jax.Array:
        x = x + self.dropout(self.attention(self.norm_attention(x), rngs=rngs), rngs=rngs)
        hidden = self.dropout(_gelu(self.expand(self.norm_ffn(x))), rngs=rngs)
        return x + self.dropout(self.contract(hidden), rngs=rngs)


class OverCells(nnx.Module):
    """A token per station and direction and one per terminal: information moves along the line in one hop."""

    def __init__(self, config: Any, sizes: Any, readout: Readout, *, dtype: Any, rngs: nnx.Rngs):
        self.sizes, self.dtype, width = sizes, dtype, config.width
        self.place = Place((sizes.stations, sizes.directions, width), rngs=rngs) if config.place else None
        self.cells = Linear(sizes.lookback * sizes.channels + sizes.horizon, width, dtype=dtype, rngs=rngs)
        self.terminals = Linear(sizes.horizon * sizes.terminal, width, dtype=dtype, rngs=rngs)
        self.direction = nnx.Param(PLACE_SCALE * jax.random.normal(rngs.params(), (sizes.directions, width)))
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.blocks)])
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.emit = Emit(width, readout, sizes.horizon, rngs=rngs)

    def __call__(self, inputs: Inputs, base: jax.Array, rngs: Source | None = None) -> jax.Array:
        s = self.sizes
        history = inputs["fields"].transpose(0, 3, 2, 1, 4).astype(self.dtype)
        history = history.reshape(*history.shape[:3], -1)  # (B, D, S, L C)
        tokens = self.cells(jnp.concatenate([history, base.transpose(1, 2, 3, 0).astype(self.dtype)], axis=-1))
        if self.place is not None:
            tokens += self.place.vectors[...].astype(self.dtype).swapaxes(0, 1)
        plan = inputs["planned"].astype(self.dtype).swapaxes(1, 2)
        terminals = self.terminals(plan.reshape(*plan.shape[:2], -1)) + self.direction[...].astype(self.dtype)
        cells = s.directions * s.stations
        x = jnp.concatenate([tokens.reshape(len(tokens), cells, -1), terminals], axis=1)
        for block in self.blocks:
            x = block(x, rngs)
        x = self.norm(x[:, :cells]).reshape(tokens.shape)
        return jnp.moveaxis(self.emit(x), -1, 1)


class OverMinutes(nnx.Module):
    """A token per past row and per future minute, the latter from the plan; a future token becomes the whole line of its minute."""

    def __init__(self, config: Any, sizes: Any, readout: Readout, *, dtype: Any, rngs: nnx.Rngs):
        self.sizes, self.dtype, width = sizes, dtype, config.width
        cells = sizes.stations * sizes.directions
        self.past = Linear(cells * sizes.channels, width, dtype=dtype, rngs=rngs)
        self.future = Linear(sizes.directions * sizes.terminal, width, dtype=dtype, rngs=rngs)
        self.position = nnx.Param(PLACE_SCALE * jax.random.normal(rngs.params(), (sizes.lookback + sizes.horizon, width)))
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.blocks)])
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.emit = Emit(width, readout, cells, rngs=rngs)

    def __call__(self, inputs: Inputs, base: jax.Array, rngs: Source | None = None) -> jax.Array:
        s = self.sizes
        fields, plan = inputs["fields"].astype(self.dtype), inputs["planned"].astype(self.dtype)
        past = self.past(fields.reshape(*fields.shape[:2], -1))
        future = self.future(plan.reshape(*plan.shape[:2], -1))
        x = jnp.concatenate([past, future], axis=1) + self.position[...].astype(self.dtype)
        for block in self.blocks:
            x = block(x, rngs)
        out = self.emit(self.norm(x[:, s.lookback :]))  # (outputs, B, F, S D)
        return out.reshape(*out.shape[:3], s.stations, s.directions).transpose(0, 2, 1, 4, 3)


def _gelu(x: jax.Array) -> jax.Array:
    """The exact GELU; jax.nn.gelu writes it with erfc, which costs twice as much on CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))
