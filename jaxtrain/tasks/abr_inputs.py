"""What the network sees of a batch of evoked responses: standardised records, normalised values, noise and augmentation.

Letters: B records, L samples. Batches are as `jaxtrain.data.evoked` gathers them: waveforms in uV, statics in raw units.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.dataset import Arrays, Batch, Dataset, Statistics
from jaxtrain.data.evoked_config import GAIN_SHARE, NOISE_SHARE, SAMPLE_MS, SAMPLES, SHIFT_SHARE, STATICS_SHARE, DataConfig
from jaxtrain.data.evoked_noise import POINTS, spectrum

LEAST_SCALE_UV = 0.01  # of a record: flat ones are not blown up
MOST_FMP = 50.0  # recording quality counts no further


def calibrated(statistics: Statistics) -> bool:
    """Whether waveforms are in uV; records that were z-scored one by one have lost their amplitude."""
    return str(statistics["units"]) == "uV"


def record_scale(statistics: Statistics, signal: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and scale (B,) uV of records (B, 200): their SD, at least 0.01 uV; 0 and 1 for z-scored files."""
    if not calibrated(statistics):
        return jnp.zeros(signal.shape[0]), jnp.ones(signal.shape[0])
    return signal.mean(-1), jnp.maximum(signal.std(-1), LEAST_SCALE_UV)


def normalised_statics(statistics: Statistics, statics: jax.Array, ok: jax.Array) -> jax.Array:
    """(B, 4) of age years, level dB, rate 1/s and FMP: ln(1 + age), level, rate, ln(1 + min(FMP, 50)) in training SDs; 0 where missing."""
    age, level, rate, fmp = (statics[:, i] for i in range(4))
    raw = jnp.stack([jnp.log1p(jnp.maximum(age, 0)), level, rate, jnp.log1p(jnp.clip(fmp, 0, MOST_FMP))], -1)
    mean, std = (np.asarray(statistics[f"statics_{name}"], np.float32) for name in ("mean", "std"))
    return jnp.where(ok, (raw - mean) / np.maximum(std, 1e-6), 0.0)


def network_inputs(statistics: Statistics, batch: Batch) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """Inputs of `predict` (x (B, 200), statics (B, 4), statics_ok (B, 4), scale (B, 2)), and center and scale (B,) uV of the records."""
    signal = jnp.asarray(batch["signal"], jnp.float32)
    center, scale = record_scale(statistics, signal)
    reference = np.float32(statistics["sigma_ref"])
    inputs = {
        "x": (signal - center[:, None]) / scale[:, None],
        **conditions(statistics, batch),
        "scale": jnp.stack([center / reference, jnp.log(scale / reference)], -1),
    }
    if "no_statics" in batch:  # served without the four values: the condition that training drops now and then
        inputs["null"] = jnp.asarray(batch["no_statics"], bool)
    return inputs, center, scale


def conditions(statistics: Statistics, batch: Batch) -> dict[str, jax.Array]:
    """statics (B, 4) normalised and statics_ok (B, 4) bool."""
    ok = jnp.asarray(batch["statics_ok"], bool)
    values = normalised_statics(statistics, jnp.asarray(batch["statics"], jnp.float32), ok)
    if "statics_noise" in batch:
        values = values + jnp.where(ok, batch["statics_noise"], 0.0)
    return {"statics": values, "statics_ok": ok}


# Noise and augmentation ---------------------------------------------------------------------------------


def coloured(white: jax.Array) -> jax.Array:
    """Unit-variance noise (..., 200) with the power density of averaged recordings, from white (..., 129, 2)."""
    share = spectrum()
    scale = POINTS * np.sqrt(share / 4)
    scale[[0, -1]] = POINTS * np.sqrt(share[[0, -1]])  # counted once in a real FFT, the others twice
    parts = white * scale[:, None].astype(np.float32)
    return jnp.fft.irfft(jax.lax.complex(parts[..., 0], parts[..., 1]), POINTS)[..., :SAMPLES]


def corrupted(data: DataConfig, batch: Batch, key: jax.Array | None) -> Batch:
    """Under data.target=corrupt: k SD(signal) of coloured noise on the signal, k uniform in data.corrupt_sd.

    key: None draws by the record's row, the same in every evaluation.
    """
    if data.target != "corrupt":
        return batch
    signal = jnp.asarray(batch["signal"], jnp.float32)
    rows = jnp.asarray(batch["row"], jnp.int32)
    first = jax.random.key(0) if key is None else key
    numbers = rows if key is None else jnp.arange(len(rows))

    def draw(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        amount, noise = jax.random.split(jax.random.fold_in(first, number))
        low, high = data.corrupt_sd
        return jax.random.uniform(amount, (), minval=low, maxval=high), jax.random.normal(noise, (POINTS // 2 + 1, 2))

    k, white = jax.vmap(draw)(numbers)
    noisy = signal + (k * signal.std(-1))[:, None] * coloured(white)
    return {**batch, "signal": noisy}


def augmented(data: DataConfig, batch: Batch, key: jax.Array) -> Batch:
    """A training batch with some of its four values hidden (always) and, with data.augment, shift, gain and noise; labels move along.

    A shift of k samples repeats the edge values and adds 0.05 k ms to the latency; a gain multiplies signal, target and amplitude.
    """
    hide, *keys = jax.random.split(key, 6)
    hidden = jax.random.bernoulli(hide, data.hide_statics, batch["statics_ok"].shape)
    batch = {**batch, "statics_ok": jnp.asarray(batch["statics_ok"], bool) & ~hidden}
    if not data.augment:
        return batch
    count = len(batch["row"])
    shares = np.array([SHIFT_SHARE, GAIN_SHARE, NOISE_SHARE, STATICS_SHARE])
    shift, gain, noise, statics = jax.random.bernoulli(keys[0], shares, (count, 4)).T
    samples = jax.random.randint(keys[1], (count,), -data.shift_samples, data.shift_samples + 1)
    low, high = data.gain
    factor = jax.random.uniform(keys[2], (count,), minval=low, maxval=high)
    batch = amplified(shifted(batch, jnp.where(shift, samples, 0)), jnp.where(gain, factor, 1.0))
    if "signal" in batch:
        size = jnp.where(noise, data.noise_sd, 0.0) * batch["signal"].std(-1)
        batch["signal"] = batch["signal"] + size[:, None] * jax.random.normal(keys[3], batch["signal"].shape)
    return {**batch, "statics_noise": jnp.where(statics, data.statics_sd, 0.0)[:, None] * jax.random.normal(keys[4], (count, 4))}


def shifted(batch: Batch, samples: jax.Array) -> Batch:
    """Waveforms moved later by samples (B,) int, latency with them."""
    source = jnp.clip(jnp.arange(SAMPLES) - samples[:, None], 0, SAMPLES - 1)
    moved = {name: jnp.take_along_axis(batch[name], source, 1) for name in ("signal", "target") if name in batch}
    return {**batch, **moved, "latency_ms": batch["latency_ms"] + SAMPLE_MS * samples}


def amplified(batch: Batch, gain: jax.Array) -> Batch:
    """Waveforms and amplitude times gain (B,)."""
    waves = {name: batch[name] * gain[:, None] for name in ("signal", "target") if name in batch}
    return {**batch, **waves, "amplitude_uv": batch["amplitude_uv"] * gain}


# Marks that tell the scores of a split more about its records ------------------------------------------------


def with_patients(splits: list[Dataset], scored: list[Dataset]) -> tuple[list[Dataset], list[Dataset]]:
    """The same datasets; batches of `scored` also say which patient (B, P) and which ear (B, E) a record belongs to, one-hot.

    P and E are the largest numbers of patients and ears among `scored`, and which of its lists a batch goes by stands in a further column
    of the index: one program then serves all. All datasets share the arrays, so all get the two further ones.
    """
    arrays, owners = scored[0].arrays, []
    for dataset in scored:
        patient, ear = (np.asarray(arrays[name])[dataset.index[:, 0]] for name in ("patient", "ear"))
        owners.append((np.unique(patient), np.unique(_ear_code(patient, ear))))
    patients, ears = zip(*owners, strict=True)
    arrays = {**arrays, "scored_patients": _padded(patients), "scored_ears": _padded(ears)}
    marked = []
    for number, dataset in enumerate(scored):
        index = np.pad(dataset.index, ((0, 0), (0, 1)), constant_values=number)
        marked.append(replace(dataset, arrays=arrays, index=index, gather=partial(_gather_members, dataset.gather)))
    return [replace(dataset, arrays=arrays) for dataset in splits], marked


def _padded(codes: Sequence[np.ndarray]) -> np.ndarray:
    """(S, n) int32: one list a row, filled up with -1, which nobody has."""
    longest = max(len(row) for row in codes)
    return np.stack([np.pad(row.astype(np.int32), (0, longest - len(row)), constant_values=-1) for row in codes])


def _ear_code(patient: Any, ear: Any) -> Any:
    return 3 * patient + ear + 1  # ear -1, 0, 1


def _gather_members(gather: Any, arrays: Arrays, rows: Any) -> Batch:
    batch, number = gather(arrays, rows[:, :-1]), rows[0, -1]
    ear = _ear_code(batch["patient"], batch["ear"])
    return {
        **batch,
        "patient_member": batch["patient"][:, None] == arrays["scored_patients"][number],
        "ear_member": ear[:, None] == arrays["scored_ears"][number],
    }


def without_statics(dataset: Dataset) -> Dataset:
    """The dataset whose batches ask for the condition that training drops now and then."""
    return replace(dataset, gather=partial(_gather_bare, dataset.gather))


def _gather_bare(gather: Any, arrays: Arrays, rows: Any) -> Batch:
    return {**gather(arrays, rows), "no_statics": rows[:, 0] >= 0}


def repeated(dataset: Dataset, count: int) -> Dataset:
    """Every row `count` times, with a number of its own as a further column: what `generate` draws noise by."""
    index = np.repeat(dataset.index, count, axis=0)
    numbered = np.concatenate([index, np.arange(len(index), dtype=np.int32)[:, None]], axis=1)
    return replace(dataset, index=numbered, gather=partial(_gather_numbered, dataset.gather))


def _gather_numbered(gather: Any, arrays: Arrays, rows: Any) -> Batch:
    return {**gather(arrays, rows[:, :-1]), "draw": rows[:, -1]}
