"""Cloud base height from a few camera frames and the sun's angles.

Letters: B windows, T frames, H rows (along track), W columns, C image channels, S numbers for the sun, D features per frame.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.errors import UserError
from jaxtrain.models.cbh_encoder import GROUPS, Encoded, Encoder, encode_each, encode_together
from jaxtrain.models.cbh_head import FrameAttention, FrameGRU, FrameStates, Head
from jaxtrain.models.cbh_variants import MeanFrame
from jaxtrain.nn.dropout import Dropout, Source
from jaxtrain.nn.film import FiLM
from jaxtrain.nn.stored import stored

POOLINGS = 3
CHOICES = {
    "variant": ("attention", "cnn", "gru", "ssm"),
    "intensity": ("frame", "both"),
    "norm": ("batch", "group"),
    "film": ("none", "plain", "identity"),
    "sun": ("scaled", "vector"),
    "pool": ("mean", "nadir"),
    "frames": ("each", "together"),
}


@dataclass(frozen=True)
class Config:
    """The network; CHOICES lists the words allowed."""

    variant: str  # attention over frames; instead of it gru: its last state, ssm: state spaces' mean; cnn: the frames' mean, no angles
    channels: tuple[int, ...]  # of the three blocks
    dense: tuple[int, ...]  # of the head
    film_hidden: int
    intensity: str  # frame: each frame to mean 0 and std 1; both: beside it the scale of the training split
    norm: str  # batch; group: of 8 groups, layer norm in the head
    film: str  # of the first block by the sun; plain: gamma x + beta; identity: (1 + gamma) x + beta
    sun: str  # scaled: two standardised degrees; vector: three components
    pool: str  # mean over the map; nadir: learned weights around the point below the aircraft
    position: bool  # of a frame in its window, in the score of temporal attention
    spatial_attention: bool  # pixel gate
    temporal_attention: bool  # else the mean over frames
    dropout: tuple[float, ...]  # whole channels of blocks, then the head's two layers
    output_init: tuple[float, ...]  # std of the weights, bias
    frames: str  # each: a scan over T, batch norm by frame; together: T folded into the batch
    remat: bool  # with frames each: maps are computed again in the backward pass

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            _one_of(f"model.{name}", getattr(self, name), allowed)
        for name, count in (("channels", POOLINGS), ("dense", 2), ("dropout", 3), ("output_init", 2)):
            if len(getattr(self, name)) != count:
                raise UserError(f"model.{name} {list(getattr(self, name))}: {count} numbers are needed")
        if min(*self.channels, *self.dense, self.film_hidden) < 1:
            raise UserError(f"model.channels {list(self.channels)}, dense {list(self.dense)}, film_hidden {self.film_hidden}: "
                            "1 or more is needed")  # fmt: skip
        if self.norm == "group" and any(count % GROUPS for count in self.channels):
            raise UserError(f"model.channels {list(self.channels)}: group norm needs multiples of {GROUPS}; or set model.norm to batch")
        if any(not 0 <= rate < 1 for rate in self.dropout):
            raise UserError(f"model.dropout {list(self.dropout)}: probabilities in [0, 1) are needed")
        if self.output_init[0] < 0:
            raise UserError(f"model.output_init {list(self.output_init)}: a standard deviation of at least 0 is needed")
        if self.remat and self.frames != "each":
            raise UserError("model.remat works frame by frame: set model.frames to each, or model.remat to False")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)
        raise UserError(f"{key} '{value}' is unknown: did you mean '{near[0]}'? (choices: {', '.join(allowed)})")


class Network(nnx.Module):
    """One variant. channels: 1 or 2 of the images; sun: 2 or 3 numbers.

    Parameters are float32 and convolutions and products computed in `dtype`; norms, softmax and the output are float32 in every dtype.
    """

    def __init__(self, config: Config, frames: int, channels: int, sun: int, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config, self.sizes = config, (frames, channels, sun)
        if config.variant == "cnn":
            self.body = MeanFrame(config, channels, dtype=dtype, rngs=rngs)
            return
        features = config.channels[-1]
        self.encoder = Encoder(config, channels, dtype=dtype, rngs=rngs)
        self.film = _film(config, sun, dtype, rngs) if config.film != "none" else None
        self.dropout = Dropout(config.dropout[0])
        mixers = {"gru": FrameGRU, "ssm": FrameStates}
        self.mixer = mixers[config.variant](features, dtype=dtype, rngs=rngs) if config.variant in mixers else None
        weighed = config.variant == "attention" and config.temporal_attention
        self.attention = FrameAttention(features, frames, config.position, dtype=dtype, rngs=rngs) if weighed else None
        self.head = Head(config, features, dtype=dtype, rngs=rngs)

    def __call__(self, inputs: Mapping[str, jax.Array], rngs: Source | None = None, explain: bool = False) -> dict[str, jax.Array]:
        """{y}: standardised height (B,) float32; with `explain` also frame_weights (B, T), NaN with gru and ssm, and map.

        inputs: frames (B, T, H, W, C) and sun (B, S), both standardised float32. map (B, T, h, w): the nadir pool's weights, else the
        pixel gate; absent where the network has neither. rngs: the source of dropout; not needed in a deterministic view.
        """
        x, sun = inputs["frames"], inputs["sun"]
        frames, channels, components = self.sizes
        assert x.ndim == 5 and x.shape[1] == frames and x.shape[4] == channels, x.shape
        assert min(x.shape[2:4]) >= 2**POOLINGS, f"three poolings need {2**POOLINGS} pixels, got {x.shape[2:4]}"
        assert sun.shape == (len(x), components), sun.shape
        if self.config.variant == "cnn":
            found = {"y": self.body(x)}
            return found | ({"frame_weights": _even(x)} if explain else {})
        encoded = self.encode(x, sun, rngs)
        context, weights = self.combine(encoded.features)
        found = {"y": self.head(context, rngs)}
        if explain:
            found["frame_weights"] = weights
            if encoded.map is not None:
                found["map"] = encoded.map
        return found

    def encode(self, x: jax.Array, sun: jax.Array, rngs: Source | None = None) -> Encoded:
        """Features (B, T, D) and map (B, T, h, w) of every frame."""
        # Drawn for all frames at once: the same masks whether frames go together, each, or each twice.
        shape = x.shape[:2]
        kept = tuple(stored(self.dropout(jnp.ones((*shape, count)), rngs=rngs)) for count in self.config.channels)
        film = None if self.film is None else self.film(sun)
        if self.config.frames == "together":
            return encode_together(self.encoder, x, film, kept)
        return encode_each(self.encoder, x, film, kept, self.config.remat)

    def combine(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Features (B, T, D) -> the window's context (B, D), and the weights of its frames (B, T)."""
        if self.mixer is not None:
            return self.mixer(features), jnp.full(features.shape[:2], jnp.nan)
        weights = _even(features) if self.attention is None else self.attention(features)
        return jnp.einsum("bt,btd->bd", weights, features), weights


def _film(config: Config, sun: int, dtype: Any, rngs: nnx.Rngs) -> FiLM:
    return FiLM(sun, config.film_hidden, config.channels[0], config.film == "identity", dtype=dtype, rngs=rngs)


def _even(x: jax.Array) -> jax.Array:
    return jnp.full(x.shape[:2], 1 / x.shape[1], jnp.float32)


def flops_per_window(config: Config, frames: int, height: int, width: int, channels: int) -> float:
    """Floating-point operations of training on one window: convolutions alone, a multiply-add as two; the rest is below 1 %.

    Three times the forward pass, four times with remat. A `cnn` sees one frame per window.
    """
    first, second, third = config.channels
    forward = 18 * height * width * (channels * first + first * second / 4 + second * third / 16)
    if config.variant == "cnn":
        return 3 * forward
    if config.spatial_attention:
        forward += (18 * channels + 2) * height * width
    return (4 if config.remat else 3) * frames * forward
