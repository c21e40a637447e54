"""What the training records teach: scales, shares of labels, principal components, and the naive tables and filters."""

from collections.abc import Mapping

import numpy as np

from jaxtrain.data import evoked_naive as naive
from jaxtrain.data import evoked_noise
from jaxtrain.data.dataset import Batch, Statistics
from jaxtrain.data.evoked_config import CLASSES, DataConfig
from jaxtrain.data.evoked_records import Records

MOST_FMP = 50.0
COMPONENTS = 20
CLIP_QUANTILE = 0.9999


def training_statistics(config: DataConfig, batch: Batch, found: Records) -> Statistics:
    """All statistics of a run, from the gathered training examples and their records (for the noise between halves).

    statics_mean, statics_std (4,) of `transformed`; sigma_ref () uV, RMS of the SDs of signals; class_share (5,);
    {latency_ms, amplitude_uv, threshold_db -> latency, amplitude, threshold}_mean, _std (); valid_share_{class, present, peak,
    threshold} (); sigma_data () uV and clip () of the target; train_mean (200,), train_cov (200, 200) uV, uV^2; pca_mean (200,),
    pca (20, 200); level_values (31,) dB, level_wave (32, 200) uV, the last for a missing level; table_* and wiener_* of
    `evoked_naive`; class_names (5,), units ().
    """
    signal, target = batch["signal"], batch["target"]
    mean, std = _moments(transformed(batch["statics"]), batch["statics_ok"])
    labelled = batch["label"] >= 0
    counts = np.bincount(batch["label"][labelled], minlength=len(CLASSES))
    share = counts / max(int(counts.sum()), 1)
    statistics = {
        "statics_mean": mean, "statics_std": std, "sigma_ref": np.sqrt((signal.std(1, dtype=np.float64) ** 2).mean()),
        "class_share": share, "valid_share_class": labelled.mean(), "valid_share_present": batch["present_ok"].mean(),
        "valid_share_peak": batch["peak_ok"].mean(), "valid_share_threshold": batch["threshold_ok"].mean(),
    }  # fmt: skip
    for name, column, ok in (("latency", "latency_ms", "peak_ok"), ("amplitude", "amplitude_uv", "peak_ok"),
                             ("threshold", "threshold_db", "threshold_ok")):  # fmt: skip
        one_mean, one_std = _moments(batch[column][:, None], batch[ok][:, None])
        statistics |= {f"{name}_mean": one_mean[0], f"{name}_std": one_std[0]}
    statistics |= _target_statistics(target) | _level_waves(batch)
    statistics |= naive.table_statistics(batch, share) | _wiener(config, batch, found)
    texts = {"class_names": np.array(config.class_names), "units": np.array(found.units)}
    return {name: np.asarray(value, np.float32) for name, value in statistics.items()} | texts


def transformed(statics: np.ndarray) -> np.ndarray:
    """(B, 4) ln(1 + age), level, rate, ln(1 + min(FMP, 50)): what is normalised."""
    age, level, rate, fmp = statics.T.astype(np.float64)
    return np.stack([np.log1p(age), level, rate, np.log1p(np.minimum(fmp, MOST_FMP))], axis=1)


def _moments(values: np.ndarray, ok: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and SD of each column (n, k) where ok; 0 and 1 without values, and SD 1 of a constant."""
    count = np.maximum(ok.sum(0), 1)
    kept = np.where(ok, values, 0).astype(np.float64)
    mean = kept.sum(0) / count
    std = np.sqrt((np.where(ok, kept - mean, 0) ** 2).sum(0) / count)
    return mean, np.where(std > 1e-6, std, 1.0)


def _target_statistics(target: np.ndarray) -> Statistics:
    sigma = target.std(dtype=np.float64)
    mean, cov = target.mean(0, dtype=np.float64), naive.signal_covariance(target, target)
    vectors = np.linalg.eigh(cov)[1][:, : -COMPONENTS - 1 : -1].T
    clip = np.quantile(np.abs(target), CLIP_QUANTILE) / sigma
    return {"sigma_data": sigma, "clip": clip, "train_mean": mean, "train_cov": cov, "pca_mean": mean, "pca": vectors}


def _level_waves(batch: Mapping[str, np.ndarray]) -> Statistics:
    """Mean target of each level; the mean of all where a level has no record."""
    level = naive.cells(batch["statics"], batch["statics_ok"])[0]
    waves = np.tile(batch["target"].mean(0, dtype=np.float64), (naive.LEVELS + 1, 1))
    for one in np.unique(level[level < naive.LEVELS]):
        waves[one] = batch["target"][level == one].mean(0, dtype=np.float64)
    return {"level_values": naive.LOWEST_DB + naive.LEVEL_STEP_DB * np.arange(naive.LEVELS), "level_wave": waves}


def _wiener(config: DataConfig, batch: Batch, found: Records) -> Statistics:
    """The filters, wiener_v (): median noise variance of a signal, uV^2, and wiener_share (): v / var(signal) where it is fixed, else 0."""
    signal, target, statics, ok = (batch[name] for name in ("signal", "target", "statics", "statics_ok"))
    k = naive.noise_covariance(found.half_a, found.half_b) if config.path else evoked_noise.covariance()
    share, v = 0.0, np.median(signal.var(1))
    s_of = naive.signal_covariance
    if config.target == "other_half":
        s_of, v = naive.common_covariance, np.median((signal - target).var(1)) / 2
    elif config.target == "corrupt":  # var(x) = var(signal) (1 + k^2), k uniform
        low, high = config.corrupt_sd
        square = (low**2 + low * high + high**2) / 3
        share = square / (1 + square)
    elif ok[:, 3].any():
        v = np.median((signal.var(1) / (statics[:, 3] + 1))[ok[:, 3]])
    filters = naive.wiener_statistics(signal, target, statics, ok, k, s_of)
    return {**filters, "wiener_v": np.asarray(v), "wiener_share": np.asarray(share)}
