"""Auditory brainstem responses: an S4 and transformer U-Net with FiLM and cross-attention, for prediction and for generation.

Letters: B batch, L samples of a record (200), C channels of a level, E condition width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.models.abr_blocks import Bottleneck, Conv, DecoderLevel, EncoderLevel, ResBlock
from jaxtrain.models.abr_condition import Condition
from jaxtrain.models.abr_config import END_KERNEL, SAMPLES
from jaxtrain.models.abr_config import Config as Config
from jaxtrain.models.abr_flops import flops_per_example as flops_per_example
from jaxtrain.models.abr_heads import Heads
from jaxtrain.nn.draws import Dice, Draws, split
from jaxtrain.nn.dropout import Dropout
from jaxtrain.nn.layers import LayerNorm, Seeds


class Network(nnx.Module):
    """The network of `config`; parameters are float32, products are computed in `dtype`, condition and heads in float32."""

    def __init__(self, config: Config, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config, self.dtype = config, dtype
        seeds = Seeds(Draws.of(rngs.params()))
        channels = config.channels
        self.condition = Condition(config, seeds)
        self.stem = Conv(1, channels[0], END_KERNEL, seeds, dtype=dtype)
        self.stem_block = ResBlock(channels[0], END_KERNEL, config.dropout, seeds, dtype=dtype)
        inputs = (channels[0], *channels)
        self.encoder = nnx.List([EncoderLevel(inputs[i], channels[i], config, seeds, dtype=dtype) for i in range(len(channels))])
        self.bottleneck = Bottleneck(channels[-1], config, seeds, dtype=dtype)
        inputs = (*channels, channels[-1])
        levels = reversed(range(len(channels)))
        self.decoder = nnx.List([DecoderLevel(inputs[i + 1], channels[i], 2**i, config, seeds, dtype=dtype) for i in levels])
        self.output_block = ResBlock(channels[0], END_KERNEL, config.dropout, seeds, dtype=dtype)
        self.output_norm = LayerNorm(channels[0], dtype)
        self.heads = Heads(config, seeds)
        self.switch = Dropout(config.dropout)  # off in a deterministic view, and with it every draw

    def __call__(self, inputs: Mapping[str, jax.Array], rngs: nnx.Rngs | None = None) -> dict[str, jax.Array]:
        """Float32 arrays by name.

        inputs, predict: x (B, L) = (signal - m) / s, scale (B, 2) = (m / sigma_ref, ln(s / sigma_ref)); generate: x (B, L) = x_t,
        t (B,), label (B,) int32, outside 0..4 = unknown; both: statics (B, 4) normalised, statics_ok (B, 4) bool, and optional null
        (B,) bool = without condition. rngs: the source of dropout, also of the condition's; not needed in a deterministic view.

        predict: signal (B, L) in units of x, existence (B,) logit, latency_ms, latency_ln_sd, amplitude_z (in units of x, as signal),
        amplitude_ln_sd, class_logits (B, 5), threshold_z, threshold_ln_sd (B,), of the heads that there are; generate: v (B, L).
        """
        x = inputs["x"].astype(jnp.float32)
        assert x.shape[1:] == (SAMPLES,), f"x {x.shape}: expected (B, {SAMPLES})"
        draws = split(self._draws(rngs), 5)
        condition = self.condition(inputs, draws[0]).astype(self.dtype)
        f, bottleneck = self._trunk(x, condition, *draws[1:4])
        found = self.heads(x, f, bottleneck, draws[4])
        return {"v": found["signal"]} if self.config.objective == "generate" else found

    def _trunk(self, x: jax.Array, condition: jax.Array, encode: Dice, decode: Dice, ends: Dice) -> tuple[jax.Array, jax.Array]:
        """Features (B, L, C_0) and the bottleneck (B, n, C_last)."""
        run: Callable[..., Any] = jax.checkpoint if self.config.remat == "levels" else lambda function: function
        levels, pad = len(self.config.channels), (self.config.padded - SAMPLES) // 2
        first, middle, last = split(ends, 3)
        h = self.stem_block(self.stem(jnp.pad(x, ((0, 0), (pad, pad)))[..., None]), first)
        kept = []
        for level, dice in zip(self.encoder, split(encode, levels), strict=True):
            skip, h = run(level)(h, condition, dice)
            kept.append((skip, h))
        h = bottleneck = run(self.bottleneck)(h, condition, middle)
        for level, dice in zip(self.decoder, split(decode, levels), strict=True):
            skip, memory = kept.pop()
            h = run(level)(h, skip, memory, condition, dice)
        h = self.output_norm(self.output_block(h, last))
        return h[:, pad : pad + SAMPLES], bottleneck

    def _draws(self, rngs: nnx.Rngs | None) -> Dice:
        """None when nothing is dropped."""
        if self.switch.deterministic or not (self.config.dropout or self.config.film_dropout):
            return None
        if rngs is None:
            raise ValueError("dropout is active: call the model with rngs, or use nnx.view(model, deterministic=True)")
        return Draws.of(rngs.dropout())
