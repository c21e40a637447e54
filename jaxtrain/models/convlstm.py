"""Forecasts of a field on a rail line: ConvLSTM, Conv3D and attention variants over one readout.

Letters: B batch, L lookback rows, F horizon rows, S stations, D directions, C input channels, H hidden width, K terminal channels,
J upstream stations looked at.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.errors import UserError
from jaxtrain.models.convlstm_parallel import REACH, STEPS, Conv3d, OverCells, OverMinutes
from jaxtrain.models.convlstm_readout import Readout
from jaxtrain.models.convlstm_variants import Baseline, Paper, Seq2seq
from jaxtrain.nn.dropout import Source

CHOICES = {
    "variant": ("baseline", "paper", "seq2seq", "conv3d", "attention"),
    "activation": ("tanh", "relu"),
    "norm": ("none", "batch", "layer"),
    "readout": ("copy", "add", "plain"),
    "head": ("point", "gaussian", "quantile"),
    "remat": ("none", "cell"),
    "attention_over": ("cells", "minutes"),
}
VALUES_ALONE = ("baseline", "paper")  # variants that read no mask, no place and no forecast of a readout
RECURRENT = ("baseline", "paper", "seq2seq")


@dataclass(frozen=True)
class Config:
    """The network; CHOICES lists the words allowed."""

    variant: str
    hidden: int  # H
    kernel: tuple[int, int]  # stations, directions: odd
    activation: str  # of the cells; relu clips their state to +-20
    norm: str  # between recurrent layers
    dropout: float  # whole channels per sequence
    place: int  # width of the learned vector per station and direction, 0 = none
    readout: str
    upstream: int  # J
    head: str
    levels: tuple[float, ...]  # of head quantile, 0.5 in the middle
    remat: str
    unroll: int  # steps of the scan in one turn of its loop
    width: int  # of attention
    heads: int
    blocks: int
    attention_over: str

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            _one_of(f"model.{name}", getattr(self, name), allowed)
        for name in ("hidden", "unroll", "width", "heads", "blocks"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be 1 or more")
        for name in ("place", "upstream"):
            if getattr(self, name) < 0:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be 0 or more")
        if len(self.kernel) != 2 or any(size < 1 or size % 2 == 0 for size in self.kernel):
            raise UserError(f"model.kernel {list(self.kernel)}: two odd sizes are needed (stations, directions), for example 3,1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout is {self.dropout}: a probability in [0, 1) is needed")
        if self.width % self.heads:
            raise UserError(f"model.width {self.width} must be divisible by model.heads {self.heads}")
        middle = len(self.levels) // 2
        ascending = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
        if len(self.levels) % 2 == 0 or not ascending or self.levels[middle] != 0.5 or not 0 < self.levels[0] <= self.levels[-1] < 1:
            raise UserError(f"model.levels {list(self.levels)}: ascending levels in (0, 1) with 0.5 in the middle are needed")
        if self.variant in VALUES_ALONE and self.place:
            raise UserError(f"model.variant '{self.variant}' has no place vectors: set model.place to 0")
        if self.variant not in RECURRENT and self.norm != "none":
            raise UserError(f"model.norm '{self.norm}' belongs to the recurrent variants: set model.norm to none")
        if self.variant == "attention" and self.attention_over == "minutes" and self.place:
            raise UserError("model.attention_over 'minutes' has no place vectors: set model.place to 0")


@dataclass(frozen=True)
class Sizes:
    """What the data decide. channels = 2 x fields (value and mask of each) + clock channels."""

    lookback: int  # L
    horizon: int  # F
    stations: int  # S
    directions: int  # D
    terminal: int  # K
    channels: int  # C of `fields`
    fields: int  # input fields in the channels
    target: str  # headway | age: what is forecast, and how candidates move on
    cap_minutes: float
    step_minutes: float
    auxiliary: bool  # forecast the other input field too


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)
        raise UserError(f"{key} '{value}' is unknown: did you mean '{near[0]}'? (choices: {', '.join(allowed)})")


class Network(nnx.Module):
    """One variant and its readout: inputs of the last L rows and the plan -> the next F rows.

    travel_minutes (D, S): minutes from where trains come in, in grid order. Parameters are float32 and computed in `dtype`; cell
    states, softmax, norms and heads are float32 in every dtype. Raises UserError when model.upstream reaches beyond the line.
    """

    def __init__(self, config: Config, sizes: Sizes, travel_minutes: np.ndarray, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        if config.readout != "plain" and config.upstream >= sizes.stations:
            raise UserError(f"model.upstream {config.upstream} reaches beyond the {sizes.stations} stations: lower it")
        self.config, self.sizes = config, sizes
        self.readout = Readout(config, sizes, np.asarray(travel_minutes))
        attention = OverCells if config.attention_over == "cells" else OverMinutes
        bodies = {"baseline": Baseline, "paper": Paper, "seq2seq": Seq2seq, "conv3d": Conv3d, "attention": attention}
        self.body = bodies[config.variant](config, sizes, self.readout, dtype=dtype, rngs=rngs)

    def __call__(self, inputs: Mapping[str, jax.Array], rngs: Source | None = None) -> dict[str, jax.Array]:
        """{y, sigma, quantiles, other}: (B, F, S, D) in units of the cap, float32, unclipped; quantiles (B, F, S, D, Q).

        inputs: fields (B, L, S, D, C) value / cap (0 unknown) and mask of every input field in turn, then clock channels;
        target_history (B, L, S, D) value / cap of the target field and target_known bool; planned (B, F, D, K) value / cap
        (0 unknown) and planned_known; fallback (S, D) the place's mean / cap. sigma, quantiles and other come with their heads.
        rngs: the source of dropout; not needed in a deterministic view.
        """
        s = self.sizes
        assert inputs["fields"].shape[1:] == (s.lookback, s.stations, s.directions, s.channels), inputs["fields"].shape
        assert inputs["planned"].shape[1:] == (s.horizon, s.directions, s.terminal), inputs["planned"].shape
        candidates = self.readout.candidates(inputs)
        raw = self.body(inputs, candidates.base, rngs)
        return self.readout(raw, candidates)


def flops_per_window(config: Config, sizes: Sizes) -> float:
    """Floating-point operations of one forward pass of one window; training is 3 x that. Products alone, a multiply-add as two.

    Only useful ones: no zeros beyond the grid's two directions, an input that no step changes (state, place) once.
    """
    counts = {"baseline": _baseline_flops, "paper": _paper_flops, "seq2seq": _seq2seq_flops, "conv3d": _conv3d_flops}
    outputs = Readout(config, sizes, np.zeros((sizes.directions, sizes.stations))).outputs
    return 2.0 * counts.get(config.variant, _attention_flops)(config, sizes, outputs)


def _per_channel(config: Config, sizes: Sizes) -> int:
    """Multiply-adds of one step of a cell, of one input channel."""
    reach = config.kernel[1] // 2
    pairs = sum(abs(d - other) <= reach for d in range(sizes.directions) for other in range(sizes.directions))
    return sizes.stations * config.kernel[0] * pairs * 4 * config.hidden


def _encoder_flops(config: Config, sizes: Sizes, channels: int) -> int:
    return _per_channel(config, sizes) * sizes.lookback * (channels + 3 * config.hidden)


def _baseline_flops(config: Config, sizes: Sizes, outputs: int) -> int:
    encoder = _encoder_flops(config, sizes, sizes.channels - sizes.fields)
    decoder = _per_channel(config, sizes) * (config.hidden + sizes.horizon * (sizes.terminal + config.hidden))
    return encoder + decoder + _cells(sizes) * sizes.horizon * config.hidden * outputs


def _paper_flops(config: Config, sizes: Sizes, outputs: int) -> int:
    features = _cells(sizes) * config.hidden + sizes.horizon * sizes.directions * sizes.terminal
    return _encoder_flops(config, sizes, sizes.channels - sizes.fields) + features * sizes.horizon * _cells(sizes) * outputs


def _seq2seq_flops(config: Config, sizes: Sizes, outputs: int) -> int:
    place = 2 * _per_channel(config, sizes) * config.place
    decoder = _per_channel(config, sizes) * sizes.horizon * (sizes.terminal + 1 + 3 * config.hidden)
    emit = _cells(sizes) * sizes.horizon * 2 * config.hidden * outputs
    return _encoder_flops(config, sizes, sizes.channels) + place + decoder + emit


def _conv3d_flops(config: Config, sizes: Sizes, outputs: int) -> int:
    hidden, wide = config.hidden, 2 * config.hidden
    convolutions = sizes.lookback * STEPS * REACH * hidden * (sizes.channels + config.place + hidden)
    join = (wide + sizes.horizon * (sizes.terminal + 1)) * wide
    return _cells(sizes) * (convolutions + sizes.lookback * hidden * wide + join + wide * sizes.horizon * outputs)


def _attention_flops(config: Config, sizes: Sizes, outputs: int) -> int:
    width, cells = config.width, _cells(sizes)
    if config.attention_over == "cells":
        tokens = cells + sizes.directions
        doors = cells * (sizes.lookback * sizes.channels + sizes.horizon) + sizes.directions * sizes.horizon * sizes.terminal
        emitted = cells * sizes.horizon
    else:
        tokens = sizes.lookback + sizes.horizon
        doors = sizes.lookback * cells * sizes.channels + sizes.horizon * sizes.directions * sizes.terminal
        emitted = sizes.horizon * cells
    blocks = config.blocks * tokens * (8 * width * width + 2 * tokens * width)
    return blocks + width * (doors + emitted * outputs)


def _cells(sizes: Sizes) -> int:
    return sizes.stations * sizes.directions
