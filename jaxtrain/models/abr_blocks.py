"""Blocks of the U-Net for brainstem responses: convolutions, FiLM, encoder and decoder levels, bottleneck.

Letters: B batch, n samples of a level, C its channels, E condition width. Activations are (B, n, C), conditions (B, E).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.models.abr_config import Config
from jaxtrain.nn.draws import Dice, dropped, split
from jaxtrain.nn.linear import Linear
from jaxtrain.nn.rotary import RotaryAttention
from jaxtrain.nn.s4d import S4DLayer, gelu
from jaxtrain.nn.stack import Stack

RESIDUAL_SCALE = 0.1  # of the second kernel of a residual block at the start
FILM_SD = 0.02


class Conv(nnx.Module):
    """Convolution over samples, (B, n, inputs) -> (B, n / stride, outputs): 'same', or 4 taps at every second sample, padded by one."""

    def __init__(self, inputs: int, outputs: int, taps: int, *, stride: int = 1, scale: float = 1.0, dtype: Any, rngs: nnx.Rngs):
        self.stride, self.dtype = stride, dtype
        init = nnx.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")
        self.kernel = nnx.Param(init(rngs.params(), (taps, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        run = convolve_products if jax.default_backend() == "cpu" else convolve
        return run(x, kernel, self.stride) + self.bias[...].astype(self.dtype)


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """x (B, n, C), kernel (taps, C, outputs), padded by (taps - 1) // 2 -> (B, n / stride, outputs)."""
    pad = (len(kernel) - 1) // 2
    return jax.lax.conv_general_dilated(x, kernel, (stride,), [(pad, pad)], dimension_numbers=("NWC", "WIO", "NWC"))


def convolve_products(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """As `convolve`, as one product of matrices: on CPU its gradient is several times faster than a convolution's."""
    taps, channels, outputs = kernel.shape
    pad, length = (taps - 1) // 2, x.shape[1] // stride
    padded = jnp.pad(x, ((0, 0), (pad, pad), (0, 0)))
    reach = (length - 1) * stride + 1
    seen = jnp.concatenate([padded[:, k : k + reach : stride] for k in range(taps)], axis=-1)
    return (seen.reshape(-1, taps * channels) @ kernel.reshape(-1, outputs)).reshape(len(x), length, outputs)


def doubled(x: jax.Array) -> jax.Array:
    """(B, n, C) -> (B, 2 n, C): linear interpolation between the middles of samples, constant beyond the ends."""
    before = jnp.concatenate([x[:, :1], x[:, :-1]], axis=1)
    after = jnp.concatenate([x[:, 1:], x[:, -1:]], axis=1)
    pairs = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=2)
    return pairs.reshape(x.shape[0], -1, x.shape[2])


def layer_norm(width: int, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)


class ResBlock(nnx.Module):
    """h + Conv(Drop(GELU(LN(Conv(GELU(LN h))))))."""

    def __init__(self, channels: int, taps: int, dropout: float, *, dtype: Any, rngs: nnx.Rngs):
        self.rate = dropout
        self.norm_in, self.norm_out = layer_norm(channels, dtype, rngs), layer_norm(channels, dtype, rngs)
        self.conv_in = Conv(channels, channels, taps, dtype=dtype, rngs=rngs)
        self.conv_out = Conv(channels, channels, taps, scale=RESIDUAL_SCALE, dtype=dtype, rngs=rngs)

    def __call__(self, h: jax.Array, draws: Dice = None) -> jax.Array:
        inner = gelu(self.norm_out(self.conv_in(gelu(self.norm_in(h)))))
        return h + self.conv_out(dropped(inner, self.rate, draws))


class FiLM(nnx.Module):
    """h (1 + gamma) + beta, gamma and beta linear in the condition (Perez et al., arXiv 1709.07871)."""

    def __init__(self, condition: int, channels: int, *, dtype: Any, rngs: nnx.Rngs):
        self.scale_shift = Linear(condition, 2 * channels, kernel_init=nnx.initializers.normal(FILM_SD), dtype=dtype, rngs=rngs)

    def __call__(self, h: jax.Array, condition: jax.Array) -> jax.Array:
        gamma, beta = jnp.split(self.scale_shift(condition)[:, None], 2, axis=-1)
        return h * (1 + gamma) + beta


class FeedForward(nnx.Module):
    """Drop(Dense(Drop(GELU(Dense x))))."""

    def __init__(self, width: int, factor: int, dropout: float, *, dtype: Any, rngs: nnx.Rngs):
        self.rate = dropout
        self.expand = Linear(width, factor * width, dtype=dtype, rngs=rngs)
        self.contract = Linear(factor * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, draws: Dice = None) -> jax.Array:
        inner, outer = split(draws, 2)
        return dropped(self.contract(dropped(gelu(self.expand(x)), self.rate, inner)), self.rate, outer)


class TransformerLayer(nnx.Module):
    """h + Drop(SelfAttn(LN h)); with `cross`, h + Drop(CrossAttn(LN h, memory)); h + FFN(LN h)."""

    def __init__(self, width: int, config: Config, *, cross: bool, dtype: Any, rngs: nnx.Rngs):
        self.rate = config.dropout
        how: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.norm_attention = layer_norm(width, **how)
        self.attention = RotaryAttention(width, config.head_width, config.attention, cross=False, **how)
        self.norm_cross = layer_norm(width, **how) if cross else None
        self.cross = RotaryAttention(width, config.head_width, config.attention, cross=True, **how) if cross else None
        self.norm_ffn = layer_norm(width, **how)
        self.ffn = FeedForward(width, config.ffn_factor, config.dropout, **how)

    def __call__(self, h: jax.Array, stride: int, memory: jax.Array | None, draws: Dice = None) -> jax.Array:
        """stride: samples between two rows of h; those of the memory are twice as far apart."""
        attend, look, feed = split(draws, 3)
        h = h + dropped(self.attention(self.norm_attention(h), stride), self.rate, attend)
        if self.cross is not None and self.norm_cross is not None:
            h = h + dropped(self.cross(self.norm_cross(h), stride, memory, 2 * stride), self.rate, look)
        return h + self.ffn(self.norm_ffn(h), feed)


def state_spaces(n: int, channels: int, config: Config, *, dtype: Any, rngs: nnx.Rngs) -> Stack:
    options: dict[str, Any] = dict(
        init=config.s4_init, bidirectional=config.s4_bidirectional, conv=config.s4_conv, dt_range=config.dt_range, dtype=dtype, rngs=rngs
    )
    return Stack(n, lambda: S4DLayer(channels, config.s4_state, config.dropout, **options))


class EncoderLevel(nnx.Module):
    """(B, n, inputs) -> skip (B, n, C) and memory (B, n / 2, C), which is also the next level's input."""

    def __init__(self, inputs: int, channels: int, config: Config, *, dtype: Any, rngs: nnx.Rngs):
        how: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.widen = Linear(inputs, channels, **how) if inputs != channels else None
        self.blocks = Stack(config.res_blocks, lambda: ResBlock(channels, 3, config.dropout, **how))
        self.down = Conv(channels, channels, 4, stride=2, **how)
        self.state_spaces = state_spaces(config.s4_layers, channels, config, **how)
        self.film = FiLM(config.cond_width, channels, **how)
        self.norm = layer_norm(channels, **how)

    def __call__(self, h: jax.Array, condition: jax.Array, draws: Dice = None) -> tuple[jax.Array, jax.Array]:
        first, second = split(draws, 2)
        skip = self.blocks(h if self.widen is None else self.widen(h), first)
        h = self.state_spaces(self.down(skip), second)
        return skip, self.norm(self.film(h, condition))


class Bottleneck(nnx.Module):
    """S4D, transformer layers beside it, both merged: (B, n, C) -> (B, n, C)."""

    def __init__(self, channels: int, config: Config, *, dtype: Any, rngs: nnx.Rngs):
        how: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.rate, self.stride = config.dropout, 2 ** len(config.channels)
        self.state_spaces = state_spaces(1, channels, config, **how)
        self.layers = Stack(config.bottleneck_layers, lambda: TransformerLayer(channels, config, cross=False, **how))
        self.norm_layers = layer_norm(channels, **how)
        self.merge_in = Linear(2 * channels, 2 * channels, **how)
        self.merge_out = Linear(2 * channels, channels, **how)
        self.film = FiLM(config.cond_width, channels, **how)
        self.norm = layer_norm(channels, **how)

    def __call__(self, h: jax.Array, condition: jax.Array, draws: Dice = None) -> jax.Array:
        first, second, third = split(draws, 3)
        h = self.state_spaces(h, first)
        t = self.layers(h, second, lambda layer, h, draws: layer(h, self.stride, None, draws))
        both = jnp.concatenate([h, self.norm_layers(t)], axis=-1)
        h = h + self.merge_out(dropped(gelu(self.merge_in(both)), self.rate, third))
        return self.norm(self.film(h, condition))


class DecoderLevel(nnx.Module):
    """(B, n / 2, inputs), skip (B, n, C), memory (B, n / 2, C) -> (B, n, C)."""

    def __init__(self, inputs: int, channels: int, stride: int, config: Config, *, dtype: Any, rngs: nnx.Rngs):
        how: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.stride = stride
        self.join = Conv(inputs + channels, channels, 3, **how)
        self.layers = Stack(config.transformer_layers, lambda: TransformerLayer(channels, config, cross=config.cross_attention, **how))
        self.film = FiLM(config.cond_width, channels, **how)
        self.block = ResBlock(channels, 3, config.dropout, **how)

    def __call__(self, h: jax.Array, skip: jax.Array, memory: jax.Array, condition: jax.Array, draws: Dice = None) -> jax.Array:
        first, second = split(draws, 2)
        h = self.join(jnp.concatenate([doubled(h), skip], axis=-1))
        h = self.layers(h, first, lambda layer, h, draws: layer(h, self.stride, memory, draws))
        return self.block(self.film(h, condition), second)
