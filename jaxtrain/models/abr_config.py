"""Sizes and choices of the network for auditory brainstem responses."""

import difflib
from dataclasses import dataclass

from jaxtrain.errors import UserError

SAMPLES = 200  # of a record: 10 ms at 20 kHz
SAMPLE_MS = 0.05
CLASSES = 5
STATICS = 4  # age, level, rate, FMP
HEAD_WIDTH = 64  # of the vector that each head reads
STEP_WIDTH = 256  # of the sinusoid of the diffusion step
END_KERNEL = 7  # taps of the convolutions beside input and output; elsewhere 3

CHOICES = {
    "objective": ("predict", "generate"),
    "s4_init": ("lin", "legs"),
    "s4_conv": ("toeplitz", "fft"),
    "attention": ("auto", "xla", "cudnn"),
    "remat": ("none", "levels"),
}
HEADS = ("signal", "peak", "class", "threshold")


@dataclass(frozen=True)
class Config:
    """The network; CHOICES lists the words allowed."""

    objective: str
    channels: tuple[int, ...]  # of the levels, finest first
    res_blocks: int  # of an encoder level
    s4_layers: int  # of an encoder level
    s4_state: int  # N: half as many conjugate pairs
    s4_init: str
    s4_bidirectional: bool
    s4_conv: str
    dt_range: tuple[float, float]  # of the S4 step at the start
    transformer_layers: int  # of a decoder level
    bottleneck_layers: int
    cross_attention: bool
    head_width: int  # of one attention head
    ffn_factor: int
    cond_width: int  # E
    dropout: float
    film_dropout: float  # share of samples that train without condition
    heads: tuple[str, ...]  # of objective predict; generate has the signal alone
    attention: str
    remat: str  # levels: recompute each level in the backward pass

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            _one_of(f"model.{name}", getattr(self, name), allowed)
        for head in self.heads:
            _one_of("model.heads", head, HEADS)
        if "signal" not in self.heads or len(set(self.heads)) < len(self.heads):
            raise UserError(f"model.heads {list(self.heads)}: signal and any of {', '.join(HEADS[1:])}, each once, are needed")
        for name in ("res_blocks", "s4_layers", "transformer_layers", "bottleneck_layers", "ffn_factor"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be 1 or more")
        for name in ("s4_state", "head_width", "cond_width"):
            if getattr(self, name) < 2 or getattr(self, name) % 2:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be even and 2 or more")
        if not 1 <= len(self.channels) <= 5 or any(c < 1 or c % self.head_width for c in self.channels):
            raise UserError(f"model.channels {list(self.channels)}: one to five multiples of model.head_width {self.head_width} are needed")
        for name in ("dropout", "film_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: a probability in [0, 1) is needed")
        if len(self.dt_range) != 2 or not 0 < self.dt_range[0] <= self.dt_range[1]:
            raise UserError(f"model.dt_range {list(self.dt_range)}: two ascending steps above 0 are needed")

    @property
    def padded(self) -> int:
        """Samples after padding to the next multiple of 2^levels."""
        return -(-SAMPLES // 2 ** len(self.channels)) * 2 ** len(self.channels)

    def length(self, level: int) -> int:
        """Samples of a level before its convolution halves them."""
        return self.padded >> level


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)
        raise UserError(f"{key} '{value}' is unknown: did you mean '{near[0]}'? (choices: {', '.join(allowed)})")
