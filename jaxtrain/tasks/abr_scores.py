"""Scores of evoked-response forecasts: every record counts once, all kinds of sums in one matrix per group of records.

Letters: B records, V kinds of sums, P patients, E ears, L samples. Waveforms are compared without their window mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.dataset import Batch, Statistics
from jaxtrain.data.evoked_config import STATICS
from jaxtrain.engine import metrics
from jaxtrain.tasks.task import Forecast, Sums

CLASSES = 5
LEVELS = tuple(range(-20, 131, 10))  # lower edges of the level groups, dB
FMP_EDGES = (0.1, 0.5, 1.0, 2.0, 5.0)
FMP_NAMES = ("<0.1", "0.1-0.5", "0.5-1", "1-2", "2-5", ">=5", "missing")
WITHIN = {"latency": 0.5, "amplitude": 0.1, "threshold": 15.0}  # ms, uV, dB
UNITS = {"latency": "ms", "amplitude": "uv", "threshold": "db"}
FIELDS = {"latency": "latency_ms", "amplitude": "amplitude_uv", "threshold": "threshold_db"}
VALID = {"latency": "peak_ok", "amplitude": "peak_ok", "threshold": "threshold_ok"}
Z80, Z95 = 1.2815515655446004, 1.959963984540054
ROC_BINS, ROC_LOGIT, ROC_FINE = 4096, 12.0, 0.05  # bins; the logits of the outermost; below this size bins are equal
SERIES_DB = tuple(range(-20, 131, 5))  # levels of an ear's series, rounded to 5 dB

SIGNAL = ("signal/n", "signal/sq", "signal/identity_sq", "signal/r", "signal/r_n", "signal/half_n")
EXISTENCE = tuple(f"existence/{kind}" for kind in ("n", "brier", "tp", "fp", "fn", "tn"))
MEASURES = tuple(
    f"{name}/{kind}" for name in WITHIN for kind in ("n", "abs", "sq", "err", "y", "yy", "within", "sd_n", "in80", "in95", "crps")
)
CLASS = ("class/n", "class/nll", *(f"class/{true}{told}" for true in range(CLASSES) for told in range(CLASSES)))
KINDS = (*SIGNAL, *EXISTENCE, *MEASURES, *CLASS)
PATIENT_KINDS = (*KINDS, *(f"class/logp{c}" for c in range(CLASSES)))  # what a patient's class follows from
BOOTSTRAPPED = ("gain_db", "latency_mae_ms", "amplitude_mae_uv", "threshold_mae_db", "brier", "f1_macro", "balanced_accuracy")
GROUPED = ("gain_db", "r", "latency_mae_ms", "amplitude_mae_uv", "threshold_mae_db", "brier", "accuracy")  # scores shown by group


@dataclass(frozen=True)
class Layout:
    """What the scores need besides the sums: names and how often patients are drawn."""

    class_names: tuple[str, ...]
    bootstraps: int


# Inside jit ---------------------------------------------------------------------------------------------


def forecast_sums(statistics: Statistics, forecast: Forecast, batch: Batch) -> Sums:
    """Sums of whatever the forecast holds: signal (B, 200) uV, existence (B,) logit, latency_ms, amplitude_uv, threshold_db (B,), each
    perhaps with its _sd, class_logp (B, 5).

    all (V,), class (5, V), level (16, V), fmp (7, V), roc (2, 4096); of a batch that says whose records they are also patient (P, V + 5)
    and ear (E, 31, 2) with ear_threshold (E, 2).
    """
    mask = jnp.asarray(batch["mask"], jnp.float32)
    found = {kind: jnp.zeros_like(mask) for kind in PATIENT_KINDS}
    found |= _signal(forecast, batch, mask) | _existence(forecast, batch, mask) | _class(forecast, batch, mask)
    for name in WITHIN:
        found |= _measure(name, statistics, forecast, batch, mask)
    # Whatever a padded row holds, it must not spread: NaN x 0 is NaN.
    matrix = jnp.where(mask[:, None] > 0, jnp.stack([found[kind] for kind in PATIENT_KINDS], -1), 0.0)  # (B, V + 5)
    sums = {name: _grouped(member, matrix[:, : len(KINDS)]) for name, member in groups(batch).items()}
    sums["all"] = matrix[:, : len(KINDS)].sum(0)
    if "existence" in forecast:
        ok = mask * batch["present_ok"]
        event = jnp.asarray(batch["present"], bool)
        sums["roc"] = jnp.stack([_histogram(forecast["existence"], ok * (event == yes)) for yes in (False, True)])
    if "patient_member" in batch:
        sums["patient"] = _grouped(batch["patient_member"], matrix)
        if "existence" in forecast:
            sums |= _series(forecast, batch, mask)
    return sums


def _grouped(member: jax.Array, matrix: jax.Array) -> jax.Array:
    """(G, V) of member (B, G) bool and values (B, V)."""
    return jnp.matmul(jnp.asarray(member, jnp.float32).T, matrix, precision=jax.lax.Precision.HIGHEST)


def groups(batch: Batch) -> dict[str, jax.Array]:
    """{class (B, 5), level (B, 16), fmp (B, 7)} bool: which group a record belongs to; unknown class or level: none."""
    statics, ok = jnp.asarray(batch["statics"], jnp.float32), jnp.asarray(batch["statics_ok"], bool)
    level, fmp = STATICS.index("intensity_db"), STATICS.index("fmp")
    step = jnp.floor((statics[:, level] - LEVELS[0]) / 10).astype(jnp.int32)
    step = jnp.where(ok[:, level], jnp.clip(step, 0, len(LEVELS) - 1), -1)
    quality = jnp.where(ok[:, fmp], (statics[:, fmp][:, None] >= np.array(FMP_EDGES)).sum(-1), len(FMP_EDGES) + 1)
    return {
        "class": jnp.asarray(batch["label"])[:, None] == np.arange(CLASSES) if "label" in batch else jnp.zeros((len(step), CLASSES), bool),
        "level": step[:, None] == np.arange(len(LEVELS)),
        "fmp": quality[:, None] == np.arange(len(FMP_NAMES)),
    }


def _histogram(logit: jax.Array, weight: jax.Array) -> jax.Array:
    """Bins that grow with the logit: those of a network that has hardly learned lie close together, around 0 at first."""
    most = float(np.arcsinh(ROC_LOGIT / ROC_FINE))
    return metrics.histogram(jnp.arcsinh(logit / ROC_FINE), weight, ROC_BINS, -most, most)


def _signal(forecast: Forecast, batch: Batch, mask: jax.Array) -> dict[str, jax.Array]:
    if "signal" not in forecast or "target" not in batch:
        return {}
    mask = mask * batch["target_ok"]
    told, target, seen = (_centred(x) for x in (forecast["signal"], batch["target"], batch["signal"]))
    spread = jnp.sqrt((told**2).mean(-1) * (target**2).mean(-1))
    defined = mask * (spread > 1e-12)
    values = {
        "n": mask,
        "sq": mask * ((told - target) ** 2).mean(-1),
        "identity_sq": mask * ((seen - target) ** 2).mean(-1),
        "r": defined * (told * target).mean(-1) / jnp.maximum(spread, 1e-12),
        "r_n": defined,
        "half_n": mask * batch["paired"],
    }
    return {f"signal/{kind}": value for kind, value in values.items()}


def _centred(wave: Any) -> jax.Array:
    wave = jnp.asarray(wave, jnp.float32)
    return wave - wave.mean(-1, keepdims=True)


def _existence(forecast: Forecast, batch: Batch, mask: jax.Array) -> dict[str, jax.Array]:
    if "existence" not in forecast:
        return {}
    ok, event = mask * batch["present_ok"], jnp.asarray(batch["present"], jnp.float32)
    told = jnp.asarray(forecast["existence"] >= 0, jnp.float32)
    values = {
        "n": ok,
        "brier": ok * (jax.nn.sigmoid(forecast["existence"]) - event) ** 2,
        "tp": ok * told * event,
        "fp": ok * told * (1 - event),
        "fn": ok * (1 - told) * event,
        "tn": ok * (1 - told) * (1 - event),
    }
    return {f"existence/{kind}": value for kind, value in values.items()}


def _measure(name: str, statistics: Statistics, forecast: Forecast, batch: Batch, mask: jax.Array) -> dict[str, jax.Array]:
    if FIELDS[name] not in forecast:
        return {}
    valid = jnp.asarray(batch[VALID[name]], bool)
    y = jnp.where(valid, jnp.asarray(batch[FIELDS[name]], jnp.float32), 0.0)
    error = jnp.asarray(forecast[FIELDS[name]], jnp.float32) - y
    shifted = y - np.float32(statistics[f"{name}_mean"])
    values = {"n": 1.0, "abs": jnp.abs(error), "sq": error**2, "err": error, "y": shifted, "yy": shifted**2,
              "within": jnp.abs(error) <= WITHIN[name]}  # fmt: skip
    sd_field = f"{name}_sd"
    if sd_field in forecast:
        sd = forecast[sd_field]
        values |= {"sd_n": 1.0, "in80": jnp.abs(error) <= Z80 * sd, "in95": jnp.abs(error) <= Z95 * sd, "crps": gaussian_crps(error, sd)}
    ok = mask * valid
    return {f"{name}/{kind}": jnp.where(ok > 0, ok * value, 0.0) for kind, value in values.items()}


def gaussian_crps(error: jax.Array, sd: jax.Array) -> jax.Array:
    """CRPS of a Gaussian at a distance `error` from its mean, closed form (Gneiting et al. 2005)."""
    z = error / sd
    density = jnp.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return sd * (z * jax.lax.erf(z / np.sqrt(2)) + 2 * density - 1 / np.sqrt(np.pi))


def _class(forecast: Forecast, batch: Batch, mask: jax.Array) -> dict[str, jax.Array]:
    if "class_logp" not in forecast:
        return {}
    logp, label = forecast["class_logp"], jnp.asarray(batch["label"], jnp.int32)
    ok = mask * (label >= 0)
    actual, told = jnp.maximum(label, 0), jnp.argmax(logp, -1)
    values = {"class/n": ok, "class/nll": -ok * jnp.take_along_axis(logp, actual[:, None], 1)[:, 0]}
    cell = ok[:, None] * jax.nn.one_hot(CLASSES * actual + told, CLASSES**2)
    values |= {f"class/{i // CLASSES}{i % CLASSES}": cell[:, i] for i in range(CLASSES**2)}
    return values | {f"class/logp{c}": ok * logp[:, c] for c in range(CLASSES)}


def _series(forecast: Forecast, batch: Batch, mask: jax.Array) -> Sums:
    """Per ear and level: records and their summed probability; per ear: its measured threshold, summed and counted."""
    level = STATICS.index("intensity_db")
    step = jnp.round((jnp.asarray(batch["statics"], jnp.float32)[:, level] - SERIES_DB[0]) / 5).astype(jnp.int32)
    at = (step[:, None] == np.arange(len(SERIES_DB))) * (mask * batch["statics_ok"][:, level])[:, None]
    p = jnp.where(mask > 0, jax.nn.sigmoid(forecast["existence"]), 0.0)
    ok = mask * batch["threshold_ok"]
    label = jnp.where(ok > 0, jnp.asarray(batch["threshold_db"], jnp.float32), 0.0)
    values = jnp.concatenate([at, at * p[:, None], (ok * label)[:, None], ok[:, None]], -1)
    sums = _grouped(batch["ear_member"], values)
    count = len(SERIES_DB)
    return {"ear": jnp.stack([sums[:, :count], sums[:, count : 2 * count]], -1), "ear_threshold": sums[:, 2 * count :]}


# On the host --------------------------------------------------------------------------------------------


def summarize(layout: Layout, sums: Mapping[str, Any]) -> dict[str, float]:
    """Scores of everything the sums hold; a score that nothing counts for is absent.

    gain_db, rmse_uv, r (waveform against its target; gain over the record itself); gain_corrected_db (halves: the noise of the other half
    taken out); auc, brier, peak_f1, false_peaks, missed_peaks; latency_mae_ms, _rmse_ms, _bias_ms, latency_r2, latency_within (0.5 ms),
    likewise amplitude (uV, 0.1) and threshold (dB, 15); coverage_80/NAME, coverage_95/NAME, crps/NAME; accuracy, balanced_accuracy,
    f1_macro, f1_weighted, f1/CLASS, class_nll; SCORE/class/NAME, SCORE/level/DB, SCORE/fmp/BIN; patient_f1_macro, patient_accuracy;
    series_threshold_mae_db (ears with at least four levels); SCORE/low and SCORE/high: 95 % of draws of patients; records.
    """
    everything = {name: np.asarray(value, np.float64) for name, value in sums.items()}
    found = pooled(layout, everything["all"])
    if "roc" in everything:
        found |= metrics.present({"auc": auc(everything["roc"])})
    names = {"class": layout.class_names, "level": tuple(f"{level:g}" for level in LEVELS), "fmp": FMP_NAMES}
    for group, members in names.items():
        for name, row in zip(members, everything[group], strict=True):
            part = pooled(layout, row)
            found |= {f"{score}/{group}/{name}": part[score] for score in GROUPED if score in part}
    if "patient" in everything:
        found |= patient_scores(everything["patient"]) | intervals(layout, everything["patient"])
    if "ear" in everything:
        error = series_errors(everything["ear"], everything["ear_threshold"])
        found |= {"series_threshold_mae_db": float(np.abs(error).mean()), "series": float(len(error))} if len(error) else {}
    return found


def pooled(layout: Layout, row: np.ndarray) -> dict[str, float]:
    """Scores of one group's sums (V,)."""
    kinds = dict(zip(KINDS, row, strict=True))
    found: dict[str, float | None] = {"records": max(kinds["signal/n"], kinds["existence/n"], kinds["class/n"]) or None}
    found |= _wave_scores(kinds) | _peak_scores(kinds)
    for name, unit in UNITS.items():
        part = {kind: kinds[f"{name}/{kind}"] for kind in ("n", "abs", "sq", "err", "y", "yy")}
        scores = metrics.error_scores(part) if part["n"] else {}
        found |= {f"{name}_{score}" + ("" if score == "r2" else f"_{unit}"): value for score, value in scores.items()}
        found[f"{name}_within"] = metrics.divide(kinds[f"{name}/within"], kinds[f"{name}/n"])
        for kind, score in (("in80", "coverage_80"), ("in95", "coverage_95"), ("crps", "crps")):
            found[f"{score}/{name}"] = metrics.divide(kinds[f"{name}/{kind}"], kinds[f"{name}/sd_n"])
    table = np.array([[kinds[f"class/{true}{told}"] for told in range(CLASSES)] for true in range(CLASSES)])
    found |= class_scores(layout.class_names, table)
    found["class_nll"] = metrics.divide(kinds["class/nll"], kinds["class/n"])
    return metrics.present(found)


def _wave_scores(kinds: Mapping[str, float]) -> dict[str, float | None]:
    n, error, identity = kinds["signal/n"], kinds["signal/sq"], kinds["signal/identity_sq"]
    found: dict[str, float | None] = {
        "rmse_uv": float(np.sqrt(error / n)) if n else None,
        "gain_db": decibel(identity, error),
        "r": metrics.divide(kinds["signal/r"], kinds["signal/r_n"]),
    }
    if kinds["signal/half_n"] and kinds["signal/half_n"] == n:
        found["gain_corrected_db"] = decibel(identity / 2, error - identity / 2)  # E (a - b)^2 / 2 is the noise of one half
    return found


def decibel(reference: float, error: float) -> float | None:
    """10 log10 of reference / error; None unless both are above 0."""
    return float(10 * np.log10(reference / error)) if reference > 0 and error > 0 else None


def _peak_scores(kinds: Mapping[str, float]) -> dict[str, float | None]:
    tp, fp, fn, tn = (kinds[f"existence/{kind}"] for kind in ("tp", "fp", "fn", "tn"))
    return {
        "brier": metrics.divide(kinds["existence/brier"], kinds["existence/n"]),
        "peak_f1": metrics.divide(2 * tp, 2 * tp + fp + fn),
        "false_peaks": metrics.divide(fp, fp + tn),
        "missed_peaks": metrics.divide(fn, fn + tp),
    }


def class_scores(names: tuple[str, ...], table: np.ndarray) -> dict[str, float | None]:
    """Of counts (5, 5), rows actual; means over the classes that occur."""
    actual, told, right = table.sum(1), table.sum(0), np.diag(table)
    if actual.sum() == 0:
        return {}
    occurs = actual > 0
    f1 = 2 * right / np.maximum(actual + told, 1e-12)
    return {
        "accuracy": float(right.sum() / actual.sum()),
        "balanced_accuracy": float((right[occurs] / actual[occurs]).mean()),
        "f1_macro": float(f1[occurs].mean()),
        "f1_weighted": float((f1 * actual).sum() / actual.sum()),
        **{f"f1/{name}": float(value) for name, value, there in zip(names, f1, occurs, strict=True) if there},
    }


def auc(histograms: np.ndarray) -> float | None:
    """Area under the ROC curve of counts (2, bins) without and with the event; a shared bin counts half."""
    negative, positive = histograms
    if negative.sum() == 0 or positive.sum() == 0:
        return None
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (negative.sum() * positive.sum()))


def patient_scores(rows: np.ndarray) -> dict[str, float]:
    """Of sums (P, V + 5): the class with the largest mean log-probability against the patient's most frequent class."""
    table = rows[:, [PATIENT_KINDS.index(f"class/{true}{told}") for true in range(CLASSES) for told in range(CLASSES)]]
    counts = table.reshape(-1, CLASSES, CLASSES).sum(2)
    logp = rows[:, [PATIENT_KINDS.index(f"class/logp{c}") for c in range(CLASSES)]]
    known = (counts.sum(1) > 0) & (logp != 0).any(1)
    if not known.any():
        return {}
    cells = np.zeros((CLASSES, CLASSES))
    np.add.at(cells, (counts[known].argmax(1), logp[known].argmax(1)), 1)
    scores = class_scores(tuple(map(str, range(CLASSES))), cells)
    found = {f"patient_{name}": scores.get(name) for name in ("f1_macro", "accuracy", "balanced_accuracy")}
    return metrics.present({**found, "patients": float(known.sum())})


def intervals(layout: Layout, rows: np.ndarray) -> dict[str, float]:
    """SCORE/low and SCORE/high: 2.5 and 97.5 % of draws of as many patients with replacement."""
    rows = rows[rows.any(1)][:, : len(KINDS)]
    if len(rows) < 2 or layout.bootstraps < 2:
        return {}
    times = np.random.default_rng(0).multinomial(len(rows), np.full(len(rows), 1 / len(rows)), layout.bootstraps)
    draws = [pooled(layout, row) for row in times @ rows]
    found = {}
    for score in BOOTSTRAPPED:
        values = [draw[score] for draw in draws if score in draw]
        if len(values) > layout.bootstraps / 2:
            found[f"{score}/low"], found[f"{score}/high"] = (float(q) for q in np.quantile(values, (0.025, 0.975)))
    return found


def series_errors(ears: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Threshold from the series minus the measured one, dB, of ears (E, 31, 2) with at least four levels and labels (E, 2)."""
    from jaxtrain.data.evoked_serving import series_threshold

    errors = []
    for (count, p), (label, known) in zip(np.moveaxis(ears, 2, 1), labels, strict=True):
        tested = count > 0
        if known and tested.sum() >= 4:
            levels = np.repeat(np.array(SERIES_DB, float)[tested], count[tested].astype(int))
            mean = np.repeat(p[tested] / count[tested], count[tested].astype(int))
            errors.append(series_threshold(levels, mean) - label / known)
    return np.array(errors)
