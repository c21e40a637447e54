"""The network's door: frames in sensor units become standardised channels, the sun's angles its features.

Letters: B windows, T frames, H rows along track, W columns, C channels (1 or 2), S sun features (2 or 3).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.clouds_config import DataConfig
from jaxtrain.data.dataset import Statistics
from jaxtrain.models.cbh import Config

CHANNELS = {"frame": 1, "both": 2}  # of model.intensity
SUN_FEATURES = {"scaled": 2, "vector": 3}  # of model.sun
USED = {"both": (True, True), "sza_only": (True, False), "saa_only": (False, True), "none": (False, False)}  # zenith, azimuth


def channels(intensity: str, statistics: Statistics, frames: Any) -> jax.Array:
    """(B, T, H, W, C) float32 of frames (B, T, H, W) in sensor units.

    The last channel is each frame to mean 0 and standard deviation 1 (0 where a frame is constant): free of the camera's gain.
    With intensity "both" the first is in units of the training pixels: the level itself.
    """
    x = (jnp.asarray(frames, jnp.float32) - statistics["pixel_mean"]) / statistics["pixel_std"]
    centred = x - x.mean((2, 3), keepdims=True)
    spread = jnp.sqrt((centred**2).mean((2, 3), keepdims=True))
    # What float32 leaves of a constant frame is not to be blown up to 1.
    own = jnp.where(spread > 1e-5, centred / jnp.maximum(spread, 1e-5), 0.0)
    return (jnp.stack([x, own], -1) if intensity == "both" else own[..., None]).astype(jnp.float32)


def sun_features(form: str, angles: str, statistics: Statistics, sun: Any) -> jax.Array:
    """(B, S) float32 of zenith and azimuth (B, 2), degrees. angles: data.angles; one that is not used may be NaN.

    scaled: both less their training mean, by their standard deviation, 0 where not used; vector: (cos z, sin z cos a, sin z sin a),
    with the zenith alone (cos z, sin z, 0), with the azimuth alone (0, cos a, sin a), with neither 0.
    """
    sun = jnp.asarray(sun, jnp.float32)
    if form == "scaled":
        scaled = (sun - statistics["sun_mean"]) / statistics["sun_std"]
        return jnp.where(np.array(USED[angles]), scaled, 0.0).astype(jnp.float32)
    zenith, azimuth = jnp.deg2rad(sun[:, 0]), jnp.deg2rad(sun[:, 1])
    none = jnp.zeros(len(sun))
    if angles == "both":
        parts = [jnp.cos(zenith), jnp.sin(zenith) * jnp.cos(azimuth), jnp.sin(zenith) * jnp.sin(azimuth)]
    elif angles == "sza_only":
        parts = [jnp.cos(zenith), jnp.sin(zenith), none]
    elif angles == "saa_only":
        parts = [none, jnp.cos(azimuth), jnp.sin(azimuth)]
    else:
        parts = [none, none, none]
    return jnp.stack(parts, 1).astype(jnp.float32)


def model_inputs(data: DataConfig, model: Config, statistics: Statistics, frames: Any, sun: Any) -> dict[str, jax.Array]:
    """What the network takes: frames (B, T, H, W, C) and sun (B, S)."""
    return {
        "frames": channels(model.intensity, statistics, frames),
        "sun": sun_features(model.sun, data.angles, statistics, sun),
    }
