"""Random views of a window inside the training step: camera level, mirrors with their sun, erased boxes. Frames stay float.

One draw per window, shared by its T frames: what changes from frame to frame is cloud motion, and must stay that.
Letters: B windows, T frames, H rows along track, W columns across track.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.engine.config import nearest
from jaxtrain.errors import UserError
from jaxtrain.nn.stored import stored

GAIN, OFFSET = 0.1, 0.5  # own: standard deviations of gain and of offset in pixel standard deviations: the unknown camera
SEED_RANGE = 0.2  # seed: gain and offset are uniform within it
MIRROR = 0.5  # probability of each mirror
SEED_ERASE = 0.5  # seed: probability of an erased box, its share of the area and its aspect
ERASED_AREA, ERASED_ASPECT = (0.02, 0.10), (0.3, 3.3)


@dataclass(frozen=True)
class AugmentConfig:
    kind: str  # own | seed
    strength: float  # multiplies every amplitude and probability; 0 = off

    def __post_init__(self) -> None:
        if self.kind not in ("own", "seed"):
            raise UserError(f"config.augment.kind: {self.kind!r} is not supported{nearest(self.kind, ('own', 'seed'))}")
        if self.strength < 0:
            raise UserError(f"config.augment.strength: must be at least 0, got {self.strength:g}")


@dataclass(frozen=True)
class View:
    """One draw for a batch, (B,) each: frames become centre + gain (frames - centre) + offset; kept is 0 in erased boxes."""

    gain: jax.Array
    offset: jax.Array  # in pixel standard deviations
    across: jax.Array  # bool: columns reversed
    along: jax.Array  # bool: rows and order of frames reversed
    kept: jax.Array | None  # (B, H, W), where boxes are erased


def draw(config: AugmentConfig, rngs: nnx.Rngs, shape: tuple[int, ...], *, mirrors: bool) -> View:
    """A view of frames of shape (B, T, H, W). mirrors: whether the sun's azimuth can follow a mirror, or is not used.

    The mirror along the track needs an odd T: the label belongs to the middle frame.
    """
    windows, frames, height, width = shape
    strength, chance = config.strength, min(config.strength, 1.0)
    level, mirror, box = jax.random.split(rngs.default(), 3)
    if config.kind == "own":
        gain, offset = jax.random.normal(level, (2, windows)) * jnp.array([[GAIN], [OFFSET]])
    else:
        gain, offset = jax.random.uniform(level, (2, windows), minval=-SEED_RANGE, maxval=SEED_RANGE)
    gain, offset = stored(jnp.stack([1 + strength * gain, strength * offset], 1)).T
    chosen = jax.random.uniform(mirror, (2, windows)) < MIRROR * chance * mirrors
    across, along = stored(chosen.T.astype(jnp.float32)).T > 0.5
    along = along & (config.kind == "own" and frames % 2 == 1)
    kept = None
    if config.kind == "seed":
        kept = 1.0 - boxes(box, windows, height, width) * (jax.random.uniform(rngs.default(), (windows, 1, 1)) < SEED_ERASE * chance)
    return View(gain, offset, across, along, kept)


def boxes(key: jax.Array, windows: int, height: int, width: int) -> jax.Array:
    """(B, H, W) float32: 1 inside one box per window, of 2-10 % of the area and an aspect (height to width) of 0.3-3.3."""
    area, aspect, top, left = jax.random.uniform(key, (4, windows))
    pixels = (ERASED_AREA[0] + area * (ERASED_AREA[1] - ERASED_AREA[0])) * height * width
    low, high = (math.log(bound) for bound in ERASED_ASPECT)
    ratio = jnp.exp(low + aspect * (high - low))
    tall = jnp.clip(jnp.round(jnp.sqrt(pixels * ratio)), 1, height)
    wide = jnp.clip(jnp.round(jnp.sqrt(pixels / ratio)), 1, width)

    def inside(size: int, place: jax.Array, extent: jax.Array) -> jax.Array:
        start = jnp.floor(place * (size - extent + 1))[:, None]
        cells = jnp.arange(size)
        return (cells >= start) & (cells < start + extent[:, None])

    return (inside(height, top, tall)[:, :, None] & inside(width, left, wide)[:, None, :]).astype(jnp.float32)


def seen(view: View, frames: jax.Array, sun: jax.Array, pixel_std: jax.Array, centre: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Frames (B, T, H, W) and sun (B, 2) degrees (zenith, azimuth from the aircraft's heading) of a view, but for erased boxes.

    centre: (B,) or () level that the gain turns about, sensor units like pixel_std ().
    """

    def each(values: jax.Array) -> jax.Array:
        return values.reshape(-1, 1, 1, 1)

    frames = each(centre) + each(view.gain) * (frames - each(centre)) + each(view.offset * pixel_std)
    frames = jnp.where(each(view.across), frames[..., ::-1], frames)
    frames = jnp.where(each(view.along), frames[:, ::-1, ::-1], frames)
    azimuth = jnp.where(view.across, 360 - sun[:, 1], sun[:, 1])
    azimuth = jnp.where(view.along, 180 - azimuth, azimuth)
    return frames, jnp.stack([sun[:, 0], azimuth], axis=1)


def erased(view: View, channels: jax.Array) -> jax.Array:
    """Standardised channels (B, T, H, W, C), 0 (their mean) in the erased boxes."""
    return channels if view.kept is None else channels * view.kept[:, None, :, :, None]
