"""What is read off the features of a record: denoised waveform, wave V, class and threshold. All float32."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.models.abr_config import CLASSES, HEAD_WIDTH, SAMPLE_MS, SAMPLES, Config
from jaxtrain.nn.draws import Dice, dropped, split
from jaxtrain.nn.layers import Seeds, dense, gelu


class Heads(nnx.Module):
    """The heads of `config.heads`: features f (B, L, C), bottleneck (B, n, C') -> {name: array}; see `models.abr.Network`."""

    def __init__(self, config: Config, seeds: Seeds):
        channels = config.channels[0]
        self.signal = dense(channels, 1, seeds)
        readers = [name for name in config.heads if name != "signal" and config.objective == "predict"]
        self.bottom = dense(config.channels[-1], HEAD_WIDTH, seeds) if readers else None
        outputs = {"class": CLASSES, "threshold": 2}
        self.readers = nnx.Dict({name: Reader(channels, outputs.get(name), config.dropout, seeds) for name in readers})
        self.peak = Peak(channels, seeds) if "peak" in readers else None

    def __call__(self, x: jax.Array, f: jax.Array, bottleneck: jax.Array, draws: Dice = None) -> dict[str, jax.Array]:
        """x (B, L): the network's input, whose value at the peak is one reading of its amplitude."""
        f = f.astype(jnp.float32)
        found = {"signal": self.signal(f)[..., 0]}
        if self.bottom is None:
            return found
        b = self.bottom(bottleneck.astype(jnp.float32).mean(axis=1))
        read = {name: reader(f, b, one) for (name, reader), one in zip(self.readers.items(), split(draws, len(self.readers)), strict=True)}
        if self.peak is not None:
            found |= self.peak(read["peak"], f, x, found["signal"])
        if "class" in read:
            found["class_logits"] = read["class"]
        if "threshold" in read:
            found["threshold_z"], found["threshold_ln_sd"] = read["threshold"][:, 0], read["threshold"][:, 1]
        return found


class Reader(nnx.Module):
    """v = Drop(GELU(Dense[attention pool of f, b])), (B, HEAD_WIDTH), and Dense v if `outputs` are given.

    The last map into the softmax over time has no bias: it would shift all samples alike.
    """

    def __init__(self, channels: int, outputs: int | None, dropout: float, seeds: Seeds):
        self.rate = dropout
        self.score_in = dense(channels, channels // 2, seeds)
        self.score_out = dense(channels // 2, 1, seeds, bias=False)
        self.inner = dense(channels + HEAD_WIDTH, HEAD_WIDTH, seeds)
        self.output = dense(HEAD_WIDTH, outputs, seeds) if outputs else None

    def __call__(self, f: jax.Array, b: jax.Array, draws: Dice = None) -> jax.Array:
        share = jax.nn.softmax(self.score_out(jnp.tanh(self.score_in(f)))[..., 0], axis=-1)
        pool = jnp.einsum("bl,blc->bc", share, f)
        v = dropped(gelu(self.inner(jnp.concatenate([pool, b], axis=-1))), self.rate, draws)
        return v if self.output is None else self.output(v)


class Peak(nnx.Module):
    """Wave V: an existence logit, and latency and amplitude as means under one distribution over samples, plus a correction from v."""

    def __init__(self, channels: int, seeds: Seeds):
        self.existence = dense(HEAD_WIDTH, 1, seeds)
        self.place = dense(channels, 1, seeds, bias=False)
        self.latency = dense(HEAD_WIDTH, 2, seeds)
        self.amplitude = dense(HEAD_WIDTH, 2, seeds)
        self.mix = nnx.Param(jnp.full((2,), 0.5))

    def __call__(self, v: jax.Array, f: jax.Array, x: jax.Array, y: jax.Array) -> dict[str, Any]:
        p = jax.nn.softmax(self.place(f)[..., 0], axis=-1)
        latency, amplitude = self.latency(v), self.amplitude(v)
        raw, denoised = (p * x).sum(axis=-1), (p * y).sum(axis=-1)
        return {
            "existence": self.existence(v)[:, 0],
            "latency_ms": p @ (SAMPLE_MS * jnp.arange(SAMPLES, dtype=jnp.float32)) + latency[:, 0],
            "latency_ln_sd": latency[:, 1],
            "amplitude_z": self.mix[0] * raw + self.mix[1] * denoised + amplitude[:, 0],
            "amplitude_ln_sd": amplitude[:, 1],
        }
