"""Reference forecasts of evoked responses, from the training statistics alone.

`jaxtrain.data.evoked_naive` computes them with NumPy; here they run inside the scoring programs. Letters: B records, L samples.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data import evoked_naive
from jaxtrain.data.dataset import Batch, Statistics
from jaxtrain.data.evoked_config import SAMPLE_MS, STATICS
from jaxtrain.tasks.task import Forecast

LEAST_P = 1e-3  # of a class or of a peak: a share of 0 among ten records is no certainty


def forecasts(statistics: Statistics, batch: Batch) -> dict[str, Forecast]:
    """majority (a flat wave, the commonest class, training means), mean (the same with the mean wave of the level), identity (the record
    as it is, its highest sample, peaks where FMP > 1), table (medians of like records) and wiener (a linear filter; else as table)."""
    signal = jnp.asarray(batch["signal"], jnp.float32)
    usual = _means(statistics, len(signal))
    like = _table(statistics, batch)
    filtered = wiener(statistics, batch)
    return {
        "majority": {**usual, "signal": jnp.zeros_like(signal)},
        "mean": {**usual, "signal": _level_wave(statistics, batch)},
        "identity": {"signal": signal, **_highest(signal), "existence": _quality_logit(batch)},
        "table": like,
        "wiener": {**like, "signal": filtered, **_highest(filtered)},
    }


def _logit(p: jax.Array) -> jax.Array:
    p = jnp.clip(p, LEAST_P, 1 - LEAST_P)
    return jnp.log(p / (1 - p))


def _log_shares(shares: jax.Array) -> jax.Array:
    clipped = jnp.maximum(shares, LEAST_P)
    return jnp.log(clipped / clipped.sum(-1, keepdims=True))


def _means(statistics: Statistics, count: int) -> Forecast:
    found = {name: jnp.full(count, np.float32(statistics[f"{part}_mean"])) for part, name in
             (("latency", "latency_ms"), ("amplitude", "amplitude_uv"), ("threshold", "threshold_db"))}  # fmt: skip
    shares = jnp.asarray(statistics["class_share"], jnp.float32)
    found["class_logp"] = jnp.broadcast_to(_log_shares(shares), (count, shares.shape[0]))
    found["existence"] = jnp.full(count, _logit(jnp.float32(statistics["present_share"])))
    return found


def _level_wave(statistics: Statistics, batch: Batch) -> jax.Array:
    """(B, 200) mean target of the level; of all records where the level is missing."""
    level = evoked_naive.cells(jnp.asarray(batch["statics"], jnp.float32), jnp.asarray(batch["statics_ok"], bool))[0]
    return jnp.asarray(statistics["level_wave"], jnp.float32)[level]


def _quality_logit(batch: Batch) -> jax.Array:
    """2 ln FMP, 0 where it is missing: a peak where the signal's power exceeds the noise's."""
    index = STATICS.index("fmp")
    fmp, ok = jnp.asarray(batch["statics"], jnp.float32)[:, index], jnp.asarray(batch["statics_ok"], bool)[:, index]
    return jnp.where(ok, 2 * jnp.log(jnp.maximum(fmp, 1e-3)), 0.0)


def _table(statistics: Statistics, batch: Batch) -> Forecast:
    cell = evoked_naive.cells(jnp.asarray(batch["statics"], jnp.float32), jnp.asarray(batch["statics_ok"], bool))
    found = {name: jnp.asarray(statistics[f"table_{name}"], jnp.float32)[cell] for name in ("latency_ms", "amplitude_uv", "threshold_db")}
    found["existence"] = _logit(jnp.asarray(statistics["table_present"], jnp.float32)[cell])
    found["class_logp"] = _log_shares(jnp.asarray(statistics["table_class"], jnp.float32)[cell])
    return found


def wiener(statistics: Statistics, batch: Batch) -> jax.Array:
    """(B, 200) uV, as `evoked_naive.wiener`."""
    signal = jnp.asarray(batch["signal"], jnp.float32)
    statics, ok = jnp.asarray(batch["statics"], jnp.float32), jnp.asarray(batch["statics_ok"], bool)
    variance, fmp = signal.var(-1), STATICS.index("fmp")
    share = float(statistics["wiener_share"])
    noise = variance * share if share > 0 else jnp.where(ok[:, fmp], variance / (statics[:, fmp] + 1), np.float32(statistics["wiener_v"]))
    group = evoked_naive.groups(statics, ok)
    mean, d, inner, outer = (jnp.asarray(statistics[f"wiener_{name}"], jnp.float32)[group] for name in ("mean", "d", "in", "out"))
    weight = jnp.einsum("bml,bl->bm", inner, signal - mean) * d / (d + noise[:, None])
    return mean + jnp.einsum("bm,bml->bl", weight, outer)


def _highest(wave: jax.Array) -> Forecast:
    """latency_ms and amplitude_uv (B,) of the largest sample in 4.8-9.75 ms."""
    first, last = (round(ms / SAMPLE_MS) for ms in evoked_naive.PEAK_MS)
    part = wave[:, first : last + 1]
    return {"latency_ms": SAMPLE_MS * (first + part.argmax(-1)).astype(jnp.float32), "amplitude_uv": part.max(-1)}
