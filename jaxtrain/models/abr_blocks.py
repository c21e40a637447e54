"""Blocks of the U-Net for brainstem responses: convolutions, FiLM, encoder and decoder levels, bottleneck.

Letters: B batch, n samples of a level, C its channels, E condition width. Activations are (B, n, C), conditions (B, E).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.models.abr_config import Config
from jaxtrain.nn.draws import Dice, dropped, split
from jaxtrain.nn.layers import LayerNorm, Seeds, dense, fan_in_normal, gelu
from jaxtrain.nn.linear import add_bias
from jaxtrain.nn.rotary import RotaryAttention
from jaxtrain.nn.s4d import S4DLayer
from jaxtrain.nn.stack import Stack

RESIDUAL_SCALE = 0.1  # of the second kernel of a residual block at the start
FILM_SD = 0.02


class Conv(nnx.Module):
    """Convolution over samples, (B, n, inputs) -> (B, n / stride, outputs): 'same', or 4 taps at every second sample, padded by one."""

    def __init__(self, inputs: int, outputs: int, taps: int, seeds: Seeds, *, stride: int = 1, scale: float = 1.0, dtype: Any):
        self.stride, self.dtype = stride, dtype
        self.kernel = nnx.Param(fan_in_normal(seeds.params(), (taps, inputs, outputs), scale))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        run = convolve_products if jax.default_backend() == "cpu" else convolve
        return add_bias(run(x, kernel, self.stride), self.bias[...].astype(self.dtype))


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


class ResBlock(nnx.Module):
    """h + Conv(Drop(GELU(LN(Conv(GELU(LN h))))))."""

    def __init__(self, channels: int, taps: int, dropout: float, seeds: Seeds, *, dtype: Any):
        self.rate = dropout
        self.norm_in, self.norm_out = LayerNorm(channels, dtype), LayerNorm(channels, dtype)
        self.conv_in = Conv(channels, channels, taps, seeds, dtype=dtype)
        self.conv_out = Conv(channels, channels, taps, seeds, scale=RESIDUAL_SCALE, dtype=dtype)

    def __call__(self, h: jax.Array, draws: Dice = None) -> jax.Array:
        inner = gelu(self.norm_out(self.conv_in(gelu(self.norm_in(h)))))
        return h + self.conv_out(dropped(inner, self.rate, draws))


class FiLM(nnx.Module):
    """h (1 + gamma) + beta, gamma and beta linear in the condition (Perez et al., arXiv 1709.07871)."""

    def __init__(self, condition: int, channels: int, seeds: Seeds, *, dtype: Any):
        self.scale_shift = dense(condition, 2 * channels, seeds, dtype=dtype, sd=FILM_SD)

    def __call__(self, h: jax.Array, condition: jax.Array) -> jax.Array:
        gamma, beta = jnp.split(self.scale_shift(condition)[:, None], 2, axis=-1)
        return h * (1 + gamma) + beta


class FeedForward(nnx.Module):
    """Drop(Dense(Drop(GELU(Dense x))))."""

    def __init__(self, width: int, factor: int, dropout: float, seeds: Seeds, *, dtype: Any):
        self.rate = dropout
        self.expand = dense(width, factor * width, seeds, dtype=dtype)
        self.contract = dense(factor * width, width, seeds, dtype=dtype)

    def __call__(self, x: jax.Array, draws: Dice = None) -> jax.Array:
        inner, outer = split(draws, 2)
        return dropped(self.contract(dropped(gelu(self.expand(x)), self.rate, inner)), self.rate, outer)


class TransformerLayer(nnx.Module):
    """h + Drop(SelfAttn(LN h)); with `cross`, h + Drop(CrossAttn(LN h, memory)); h + FFN(LN h)."""

    def __init__(self, width: int, config: Config, seeds: Seeds, *, cross: bool, dtype: Any):
        self.rate = config.dropout
        self.norm_attention = LayerNorm(width, dtype)
        self.attention = RotaryAttention(width, config.head_width, config.attention, seeds, cross=False, dtype=dtype)
        self.norm_cross = LayerNorm(width, dtype) if cross else None
        self.cross = RotaryAttention(width, config.head_width, config.attention, seeds, cross=True, dtype=dtype) if cross else None
        self.norm_ffn = LayerNorm(width, dtype)
        self.ffn = FeedForward(width, config.ffn_factor, config.dropout, seeds, dtype=dtype)

    def __call__(self, h: jax.Array, stride: int, memory: jax.Array | None, draws: Dice = None) -> jax.Array:
        """stride: samples between two rows of h; those of the memory are twice as far apart."""
        attend, look, feed = split(draws, 3)
        h = h + dropped(self.attention(self.norm_attention(h), stride), self.rate, attend)
        if self.cross is not None and self.norm_cross is not None:
            h = h + dropped(self.cross(self.norm_cross(h), stride, memory, 2 * stride), self.rate, look)
        return h + self.ffn(self.norm_ffn(h), feed)


def state_spaces(n: int, channels: int, config: Config, seeds: Seeds, *, dtype: Any) -> Stack:
    options: dict[str, Any] = dict(
        init=config.s4_init, bidirectional=config.s4_bidirectional, conv=config.s4_conv, dt_range=config.dt_range, dtype=dtype
    )
    return Stack(n, lambda seeds: S4DLayer(channels, config.s4_state, config.dropout, seeds, **options), seeds)


class EncoderLevel(nnx.Module):
    """(B, n, inputs) -> skip (B, n, C) and memory (B, n / 2, C), which is also the next level's input."""

    def __init__(self, inputs: int, channels: int, config: Config, seeds: Seeds, *, dtype: Any):
        self.widen = dense(inputs, channels, seeds, dtype=dtype) if inputs != channels else None
        self.blocks = Stack(config.res_blocks, lambda seeds: ResBlock(channels, 3, config.dropout, seeds, dtype=dtype), seeds)
        self.down = Conv(channels, channels, 4, seeds, stride=2, dtype=dtype)
        self.state_spaces = state_spaces(config.s4_layers, channels, config, seeds, dtype=dtype)
        self.film = FiLM(config.cond_width, channels, seeds, dtype=dtype)
        self.norm = LayerNorm(channels, dtype)

    def __call__(self, h: jax.Array, condition: jax.Array, draws: Dice = None) -> tuple[jax.Array, jax.Array]:
        first, second = split(draws, 2)
        skip = self.blocks(h if self.widen is None else self.widen(h), first)
        h = self.state_spaces(self.down(skip), second)
        return skip, self.norm(self.film(h, condition))


class Bottleneck(nnx.Module):
    """S4D, transformer layers beside it, both merged: (B, n, C) -> (B, n, C)."""

    def __init__(self, channels: int, config: Config, seeds: Seeds, *, dtype: Any):
        self.rate, self.stride = config.dropout, 2 ** len(config.channels)
        self.state_spaces = state_spaces(1, channels, config, seeds, dtype=dtype)
        self.layers = Stack(
            config.bottleneck_layers, lambda seeds: TransformerLayer(channels, config, seeds, cross=False, dtype=dtype), seeds
        )
        self.norm_layers = LayerNorm(channels, dtype)
        self.merge_in = dense(2 * channels, 2 * channels, seeds, dtype=dtype)
        self.merge_out = dense(2 * channels, channels, seeds, dtype=dtype)
        self.film = FiLM(config.cond_width, channels, seeds, dtype=dtype)
        self.norm = LayerNorm(channels, dtype)

    def __call__(self, h: jax.Array, condition: jax.Array, draws: Dice = None) -> jax.Array:
        first, second, third = split(draws, 3)
        h = self.state_spaces(h, first)
        t = self.layers(h, second, lambda layer, h, draws: layer(h, self.stride, None, draws))
        both = jnp.concatenate([h, self.norm_layers(t)], axis=-1)
        h = h + self.merge_out(dropped(gelu(self.merge_in(both)), self.rate, third))
        return self.norm(self.film(h, condition))


class DecoderLevel(nnx.Module):
    """(B, n / 2, inputs), skip (B, n, C), memory (B, n / 2, C) -> (B, n, C)."""

    def __init__(self, inputs: int, channels: int, stride: int, config: Config, seeds: Seeds, *, dtype: Any):
        self.stride = stride
        self.join = Conv(inputs + channels, channels, 3, seeds, dtype=dtype)
        self.layers = Stack(
            config.transformer_layers,
            lambda seeds: TransformerLayer(channels, config, seeds, cross=config.cross_attention, dtype=dtype),
            seeds,
        )
        self.film = FiLM(config.cond_width, channels, seeds, dtype=dtype)
        self.block = ResBlock(channels, 3, config.dropout, seeds, dtype=dtype)

    def __call__(self, h: jax.Array, skip: jax.Array, memory: jax.Array, condition: jax.Array, draws: Dice = None) -> jax.Array:
        first, second = split(draws, 2)
        h = self.join(jnp.concatenate([doubled(h), skip], axis=-1))
        h = self.layers(h, first, lambda layer, h, draws: layer(h, self.stride, memory, draws))
        return self.block(self.film(h, condition), second)
