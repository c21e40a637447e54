"""The training objective of evoked responses: seven terms, each a masked sum over a constant denominator.

Letters: B records, L samples, C classes. Residuals are in units of the training SD of what is forecast; those of the waveform in
units of the record's scale. A term's denominator is B x (share of training records that have such a label): a batch that is cut
into parts then gives the gradient of the whole exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.data.dataset import Batch, Statistics
from jaxtrain.engine import metrics
from jaxtrain.engine.config import nearest
from jaxtrain.errors import UserError
from jaxtrain.models import abr as network

KINDS = ("mse", "huber", "l1")
CLASS_WEIGHTS = ("none", "sqrt", "balanced", "focal")
TERMS = ("signal", "existence", "latency", "amplitude", "classes", "threshold", "uncertainty")
HEADS = {"signal": "signal", "existence": "peak", "latency": "peak", "amplitude": "peak", "classes": "class", "threshold": "threshold"}
HUBER_DELTA = 1.0
FOCAL_POWER = 2


@dataclass(frozen=True)
class LossConfig:
    kind: str  # mse | huber | l1, of waveform, latency, amplitude, threshold
    signal: float  # weights of the terms; 0 = off
    existence: float
    latency: float
    amplitude: float
    classes: float
    threshold: float
    uncertainty: float
    class_weights: str  # none | sqrt (share^-1/2) | balanced (1 / share) | focal ((1 - p)^2 in place of weights)
    label_smoothing: float
    curriculum: bool
    starts: tuple[float, float, float]  # epochs at which class, peak and threshold terms enter
    ramp: float  # epochs from there to their full weight

    def __post_init__(self) -> None:
        for key, known in (("kind", KINDS), ("class_weights", CLASS_WEIGHTS)):
            if getattr(self, key) not in known:
                raise UserError(f"config.loss.{key}: {getattr(self, key)!r} is not supported{nearest(getattr(self, key), known)}")
        for key in TERMS:
            if getattr(self, key) < 0:
                raise UserError(f"config.loss.{key}: must be at least 0, got {getattr(self, key):g}")
        if not any(getattr(self, key) for key in HEADS):
            raise UserError("config.loss: every weight is 0; give one of them a value")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"config.loss.label_smoothing: must lie in [0, 1), got {self.label_smoothing:g}")
        if self.ramp <= 0 or min(self.starts) < 0:
            raise UserError(f"config.loss.ramp: must be more than 0 and starts at least 0, got {self.ramp:g} and {self.starts}")


class CountingNetwork(network.Network):
    """Counts the examples it was trained on: `seen` () int32, which a curriculum goes by."""

    def __init__(self, config: network.Config, rngs: nnx.Rngs, dtype: Any = jnp.float32):
        super().__init__(config, rngs, dtype)
        self.seen = nnx.BatchStat(jnp.zeros((), jnp.int32))


def rho(kind: str, residual: jax.Array) -> jax.Array:
    """mse e^2, l1 |e|, huber e^2/2 up to 1 and |e| - 1/2 beyond."""
    size = jnp.abs(residual)
    if kind == "mse":
        return residual**2
    if kind == "l1":
        return size
    return jnp.where(size <= HUBER_DELTA, size**2 / 2, HUBER_DELTA * (size - HUBER_DELTA / 2))


def class_weights(kind: str, share: np.ndarray) -> np.ndarray:
    """(C,) float32 with sum share x weight = 1; 0 for a class that training does not have."""
    share = np.asarray(share, np.float64)
    power = {"none": 0.0, "focal": 0.0, "sqrt": -0.5, "balanced": -1.0}[kind]
    raw = np.where(share > 0, np.maximum(share, 1e-12) ** power, 0.0)
    return (raw / (share * raw).sum()).astype(np.float32)


def ramps(config: LossConfig, epoch: jax.Array | float) -> dict[str, jax.Array]:
    """Factor of every term at an epoch (a real number): clip((epoch - start + 1) / ramp, 0, 1)."""
    classes, peak, threshold = (jnp.clip((epoch - start + 1) / config.ramp, 0.0, 1.0) for start in config.starts)
    one = jnp.ones(())
    return {"signal": one, "existence": peak, "latency": peak, "amplitude": peak, "classes": classes, "threshold": threshold,
            "uncertainty": peak}  # fmt: skip


def cross_entropy(logits: jax.Array, label: jax.Array, weights: np.ndarray, smoothing: float, *, focal: bool) -> jax.Array:
    """(B,) of logits (B, C) and label (B,), any value where the label is unknown (-1)."""
    known = jnp.maximum(label, 0)
    log_p = jax.nn.log_softmax(logits)
    target = (1 - smoothing) * jax.nn.one_hot(known, logits.shape[-1]) + smoothing / logits.shape[-1]
    loss = -(target * log_p).sum(-1)
    if focal:
        p = jnp.exp(jnp.take_along_axis(log_p, known[:, None], 1)[:, 0])
        return (1 - p) ** FOCAL_POWER * loss
    return jnp.asarray(weights)[known] * loss


def gaussian_nll(error: jax.Array, ln_sd: jax.Array) -> jax.Array:
    """error^2 / (2 sd^2) + ln sd, the constant left out."""
    return error**2 * jnp.exp(-2 * ln_sd) / 2 + ln_sd


def terms(config: LossConfig, statistics: Statistics, found: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
    """{term: () float32} before weights and ramps, of those that the network's heads and the weights allow.

    found: what the network gives (float32) plus center and scale (B,) uV of its input; batch: as gathered, with its mask.
    """
    mask = jnp.asarray(batch["mask"], jnp.float32)
    center, scale = found["center"], found["scale"]

    def mean(values: jax.Array, valid: Any, share: Any) -> jax.Array:
        """Masked sum over a constant; nothing where training has no such label."""
        return metrics.total(values, mask * valid) / (jnp.maximum(mask.sum(), 1.0) * np.maximum(np.float32(share), 1e-6))

    losses: dict[str, jax.Array] = {}
    if "signal" in found and config.signal:
        target = (jnp.asarray(batch["target"], jnp.float32) - center[:, None]) / scale[:, None]
        losses["signal"] = mean(rho(config.kind, found["signal"] - target).mean(-1), batch["target_ok"], 1.0)
    if "existence" in found and config.existence:
        event = jnp.asarray(batch["present"], jnp.float32)
        bce = jax.nn.softplus(found["existence"]) - event * found["existence"]
        losses["existence"] = mean(bce, batch["present_ok"], statistics["valid_share_present"])
    if "class_logits" in found and config.classes:
        weights = class_weights(config.class_weights, statistics["class_share"])
        label = jnp.asarray(batch["label"], jnp.int32)
        entropy = cross_entropy(found["class_logits"], label, weights, config.label_smoothing, focal=config.class_weights == "focal")
        losses["classes"] = mean(entropy, label >= 0, statistics["valid_share_class"])
    spread = jnp.zeros(())
    for name, (value, ln_sd, label, valid, share) in measured(statistics, found, batch).items():
        sd = np.float32(max(float(statistics[f"{name}_std"]), 1e-6))
        error = (value - label) / sd
        if getattr(config, name):
            losses[name] = mean(rho(config.kind, error), valid, share)
        spread = spread + mean(gaussian_nll(jax.lax.stop_gradient(error), ln_sd - np.log(sd)), valid, share)
    if config.uncertainty and ("latency_ms" in found or "threshold_db" in found):
        losses["uncertainty"] = spread
    return losses


def measured(statistics: Statistics, found: Mapping[str, jax.Array], batch: Batch) -> dict[str, tuple[Any, Any, jax.Array, Any, Any]]:
    """{latency | amplitude | threshold: (forecast (B,), ln of its SD (B,), label (B,), valid (B,), share of training records)}.

    In ms, uV (zscore files: units of the record) and dB; labels that are not valid are 0.
    """
    parts = {}
    for name, key, valid in (
        ("latency", "latency_ms", "peak_ok"), ("amplitude", "amplitude_uv", "peak_ok"), ("threshold", "threshold_db", "threshold_ok"),
    ):  # fmt: skip
        if key in found:
            ok = jnp.asarray(batch[valid], bool)
            label = jnp.where(ok, jnp.asarray(batch[key], jnp.float32), 0.0)
            share = statistics["valid_share_peak" if valid == "peak_ok" else "valid_share_threshold"]
            parts[name] = (found[key], found[f"{name}_ln_sd"], label, ok, share)
    return parts


def objective(config: LossConfig, losses: Mapping[str, jax.Array], epoch: jax.Array | float | None) -> jax.Array:
    """Sum of weight x ramp x term; without an epoch every ramp is 1."""
    ramp: Mapping[str, Any] = ramps(config, epoch) if epoch is not None else dict.fromkeys(TERMS, 1.0)
    return jnp.asarray(sum(getattr(config, name) * ramp[name] * loss for name, loss in losses.items()), jnp.float32)
