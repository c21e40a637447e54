"""From camera frames to one vector each: pixel gate, three convolution blocks with FiLM, a pool that looks below the aircraft.

Letters: N frames, B windows of T frames, H rows (along track), W columns, C channels, D features per frame.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.conv import Conv3x3, uniform
from jaxtrain.nn.norm import BatchNorm, GroupNorm
from jaxtrain.nn.norm_pool import Modulation, norm_pool, pool_known

GROUPS = 8
SLOPE = 0.01  # of LeakyReLU
SHARPNESS = 4.0  # of the nadir pool's prior
Pair = tuple[jax.Array, jax.Array]


class Encoded(NamedTuple):
    """features (N, D) float32; map of where the frame was looked at (N, h, w) float32, None without gate and nadir pool."""

    features: jax.Array
    map: jax.Array | None


class PixelGate(nnx.Module):
    """sigmoid(conv 1x1(relu(conv 3x3(x)))), both to one channel: (N, H, W, C) -> (N, H, W, 1)."""

    def __init__(self, channels: int, *, dtype: Any, rngs: nnx.Rngs):
        self.conv = Conv3x3(channels, 1, dtype=dtype, rngs=rngs)
        self.kernel = nnx.Param(nnx.initializers.normal(2**0.5)(rngs.params(), (1,)))
        self.bias = nnx.Param(uniform(rngs.params(), 1, 1.0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(jax.nn.relu(self.conv(x)) * self.kernel[...] + self.bias[...])


class Block(nnx.Module):
    """Convolution, norm, LeakyReLU, FiLM where there is one, max-pool, dropout of whole channels."""

    def __init__(self, inputs: int, outputs: int, norm: str, *, dtype: Any, rngs: nnx.Rngs):
        self.conv = Conv3x3(inputs, outputs, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(outputs) if norm == "batch" else GroupNorm(outputs, GROUPS)

    def __call__(self, x: jax.Array, film: Pair | None, kept: jax.Array) -> jax.Array:
        """x (N, H, W, inputs), film: gain and offset (N, outputs), kept (N, outputs) -> (N, H // 2, W // 2, outputs)."""
        norm = self.norm
        # A dropped channel is one with gain and offset 0.
        gain, offset = (kept, jnp.zeros_like(kept)) if film is None else (kept * film[0], kept * film[1])
        x, how = self.conv.unbiased(x), Modulation(self.conv.bias[...], norm.scale[...], norm.bias[...], gain, offset)
        if isinstance(norm, GroupNorm):
            return norm_pool(x, how, norm.groups, SLOPE)[0]
        if norm.use_running_average:
            return pool_known(x, how, norm.running(), SLOPE)
        y, moments = norm_pool(x, how, 0, SLOPE)
        norm.move(moments)
        return y


class NadirPool(nnx.Module):
    """Softmax over the map of v.x / sqrt(D) - 4 softplus(b) ((r - 1/2 + d j)^2 + (c - 1/2)^2), r, c in [0, 1] at cell centres.

    The lidar sees one point, which lies in another row of each frame: j is the frame's offset from the window's centre.
    """

    def __init__(self, features: int):
        self.content = nnx.Param(jnp.zeros(features))  # v
        self.narrow = nnx.Param(jnp.zeros(()))  # b
        self.drift = nnx.Param(jnp.zeros(()))  # d

    def __call__(self, x: jax.Array, offset: jax.Array) -> Encoded:
        """x (N, h, w, D), offset (N,) or ()."""
        height, width, features = x.shape[1:]
        wide = x.astype(jnp.float32)
        row = (jnp.arange(height) + 0.5) / height - 0.5 + self.drift[...] * offset.reshape(-1, 1)
        column = (jnp.arange(width) + 0.5) / width - 0.5
        away = row[:, :, None] ** 2 + column**2
        logits = wide @ self.content[...].astype(jnp.float32) / features**0.5 - SHARPNESS * jax.nn.softplus(self.narrow[...]) * away
        weights = jax.nn.softmax(logits, axis=(1, 2))
        # Maps as rows of one matrix each: of four axes XLA's CPU compiler makes a transposed copy, value by value.
        rows = wide.reshape(len(wide), -1, features)
        return Encoded(jnp.matmul(weights.reshape(len(wide), 1, -1), rows)[:, 0], weights)


class Encoder(nnx.Module):
    """(N, H, W, C) -> Encoded."""

    def __init__(self, config: Any, channels: int, *, dtype: Any, rngs: nnx.Rngs):
        self.gate = PixelGate(channels, dtype=dtype, rngs=rngs) if config.spatial_attention else None
        widths = (channels, *config.channels)
        self.blocks = nnx.List([Block(*sizes, config.norm, dtype=dtype, rngs=rngs) for sizes in zip(widths, widths[1:], strict=False)])
        self.pool = NadirPool(widths[-1]) if config.pool == "nadir" else None

    @property
    def moves(self) -> bool:
        """Whether a call moves running statistics."""
        return any(isinstance(block.norm, BatchNorm) and not block.norm.use_running_average for block in self.blocks)

    def __call__(self, x: jax.Array, offset: jax.Array, film: Pair | None, kept: tuple[jax.Array, ...]) -> Encoded:
        """offset (N,) or (): of the frame from the window's centre; film: of the first block; kept: (N, C) of every block."""
        gate = None
        if self.gate is not None:
            gate = self.gate(x)
            x = x * gate
        for number, (block, factors) in enumerate(zip(self.blocks, kept, strict=True)):
            x = block(x, film if number == 0 else None, factors)
        if self.pool is not None:
            return self.pool(x, offset)
        return Encoded(x.astype(jnp.float32).mean((1, 2)), None if gate is None else gate[..., 0].astype(jnp.float32))


def encode_together(encoder: Encoder, x: jax.Array, film: Pair | None, kept: tuple[jax.Array, ...]) -> Encoded:
    """All frames at once: x (B, T, H, W, C), film (B, C), kept (B, T, C) -> Encoded of (B, T, ...)."""
    windows, frames = x.shape[:2]
    image, *factors = (a.reshape(-1, *a.shape[2:]) for a in (x, *kept))
    film = None if film is None else (jnp.repeat(film[0], frames, 0), jnp.repeat(film[1], frames, 0))
    found = encoder(image, jnp.tile(offsets(frames), windows), film, tuple(factors))
    return jax.tree.map(lambda a: a.reshape(windows, frames, *a.shape[1:]), found)


def encode_each(encoder: Encoder, x: jax.Array, film: Pair | None, kept: tuple[jax.Array, ...], remat: bool) -> Encoded:
    """Frame by frame, as `encode_together`; batch norm sees one frame of every window at a time and moves its statistics T times.

    remat: the backward pass computes a frame again instead of keeping its maps. The statistics travel in the scan's carry, so the
    second computation does not move them a second time.
    """
    graph, running, others = nnx.split(encoder, nnx.BatchStat, ...)

    def frame(running: nnx.State, inputs: Any) -> tuple[nnx.State, Encoded]:
        image, offset, factors = inputs
        twin = nnx.merge(graph, running, others, copy=True)
        found = twin(image, offset, film, factors)
        return nnx.state(twin, nnx.BatchStat), found

    by_frame = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (x, kept))
    # Inside a scan nothing can be merged across iterations anyway.
    step = jax.checkpoint(frame, prevent_cse=False) if remat else frame
    running, found = jax.lax.scan(step, running, (by_frame[0], offsets(x.shape[1]), by_frame[1]))
    if encoder.moves:
        nnx.update(encoder, running)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), found)


def offsets(frames: int) -> jax.Array:
    """(T,) float32: of every frame from the window's centre."""
    return jnp.arange(frames, dtype=jnp.float32) - frames // 2
