"""The `baseline` as a plain port of the earlier program: 2-D convolutions of [x, h] inside the scan, a tiled decoder input."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.models.convlstm import Network
from jaxtrain.models.convlstm_import import PATHS

Arrays = Mapping[str, jax.Array]


def earlier_names(model: Network) -> dict[str, jax.Array]:
    """The arrays of a baseline under the earlier program's names."""
    ours = {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(model))}
    return {name: ours[path] for name, path in PATHS.items()}


def forward(weights: Arrays, headway: jax.Array, planned: jax.Array, training: bool) -> jax.Array:
    """headway (B, L, S, D, 1), planned (B, F, D, K) -> (B, F, S, D) in [0, 1]."""
    horizon, stations = planned.shape[1], headway.shape[2]
    h = _norm(weights, "encoder_bn_1", _lstm(weights, "encoder_1", headway), training)
    state = _norm(weights, "encoder_bn_2", _lstm(weights, "encoder_2", h)[:, -1], training)
    tiled = jnp.tile(state[:, None], (1, horizon, 1, 1, 1))
    plan = jnp.tile(planned[:, :, None], (1, 1, stations, 1, 1))
    h = _norm(weights, "decoder_bn", _lstm(weights, "decoder", jnp.concatenate([tiled, plan], axis=-1)), training)
    kernel = weights["output/kernel"].reshape(h.shape[-1], 1)
    return jax.nn.sigmoid((h @ kernel)[..., 0] + weights["output/bias"])


def _lstm(weights: Arrays, layer: str, x: jax.Array) -> jax.Array:
    parts = {name: weights[f"{layer}/conv_lstm_cell/{name}"] for name in ("kernel", "recurrent_kernel", "bias")}
    kernel = jnp.concatenate([parts["kernel"], parts["recurrent_kernel"]], axis=2)

    def step(state: Any, x: jax.Array) -> Any:
        h, c = state
        both = jnp.concatenate([x, h], axis=-1)
        z = jax.lax.conv_general_dilated(both, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        i, f, g, o = jnp.split(z + parts["bias"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[0], *x.shape[2:4], kernel.shape[-1] // 4))
    return jax.lax.scan(step, (zeros, zeros), x.swapaxes(0, 1))[1].swapaxes(0, 1)


def _norm(weights: Arrays, layer: str, x: jax.Array, training: bool) -> jax.Array:
    gamma, beta, mean, variance = (weights[f"{layer}/{name}"] for name in ("gamma", "beta", "moving_mean", "moving_variance"))
    if training:
        axes = tuple(range(x.ndim - 1))
        mean, variance = x.mean(axes), x.var(axes)
    return gamma * (x - mean) / jnp.sqrt(variance + 1e-3) + beta
