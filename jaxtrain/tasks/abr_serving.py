"""Serving evoked responses at the edges: options, arrays given by hand, tables of records and of level series."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxtrain.data.dataset import Batch, Dataset, Statistics
from jaxtrain.data.evoked_config import SAMPLES, STATICS
from jaxtrain.data.evoked_serving import SERIES_LEVELS, series_threshold
from jaxtrain.engine.config import nearest
from jaxtrain.errors import UserError
from jaxtrain.tasks.abr_inputs import calibrated
from jaxtrain.tasks.options import check, whole

PRESENT = 0.5  # probability from which a wave V is reported
CATEGORIES = ((25.0, "normal"), (40.0, "mild"), (55.0, "moderate"), (70.0, "moderately severe"), (90.0, "severe"))  # up to so many dB
WORST_CATEGORY = "profound"
SAMPLING = ("count", "guidance", "steps", "seed")
TARGETS = ("clean", "other_half")


def more_statistics(train: Dataset) -> Statistics:
    """train_records (), examples of an epoch, and present_share () of the records that a reader has looked at."""
    record = train.index[:, 0]
    present, ok = (np.asarray(train.arrays[name])[record] for name in ("present", "present_ok"))
    share = present[ok].mean() if ok.any() else 0.5
    return {"train_records": np.asarray(len(train), np.float32), "present_share": np.asarray(share, np.float32)}


# Options --------------------------------------------------------------------------------------------------


def check_options(options: Mapping[str, str], generates: bool, *, labelled: bool = False) -> None:
    """Raises UserError for an option that this kind of run does not have, or a value that is none of its own."""
    known = ("statics", *(("samples",) if labelled and generates else ("target",) if labelled else SAMPLING if generates else ()))
    check(options, known)
    if options.get("statics", "none") != "none":
        raise UserError(f"--option statics={options['statics']}: unknown; leave it out, or give none to use none of the four values")
    if options.get("target", TARGETS[0]) not in TARGETS:
        raise UserError(f"--option target={options['target']}: unknown{nearest(options['target'], TARGETS)}")


def sampling_options(options: Mapping[str, str]) -> dict[str, Any]:
    """guidance (float >= 0), steps and seed, those that are given."""
    found: dict[str, Any] = {name: whole(options, name, least, least) for name, least in (("steps", 1), ("seed", 0)) if name in options}
    if found.get("seed", 0) >= 2**63:
        raise UserError(f"--option seed={options['seed']}: expected a whole number below 2^63")
    if "guidance" in options:
        try:
            found["guidance"] = float(options["guidance"])
        except ValueError:
            found["guidance"] = -1.0
        if not 0 <= found["guidance"] < 100:
            raise UserError(f"--option guidance={options['guidance']}: expected a number from 0 (1 = off) to 100")
    return found


def complete(batch: Batch, *, generates: bool) -> Batch:
    """A batch from arrays given by hand: signal (B, 200) (not for `generate`), statics (B, 4) raw with NaN where missing (all missing when
    not given), label (B,) of `generate` (-1 = unknown, as when not given).

    Raises UserError naming the array, the shape expected and what was given.
    """
    known = ("statics", "label") if generates else ("signal", "statics")
    unknown = sorted(batch.keys() - set(known))
    if unknown:
        raise UserError(f"predict: this run takes no {', '.join(unknown)}; it takes {', '.join(known)}")
    needed = "statics" if generates else "signal"
    if needed not in batch:
        raise UserError(f"predict: {needed} is missing; give an array (B, {len(STATICS) if generates else SAMPLES})")
    count = len(np.atleast_1d(batch[needed]))
    shapes = {"signal": (count, SAMPLES), "statics": (count, len(STATICS)), "label": (count,)}
    for name, values in batch.items():
        if np.shape(values) != shapes[name]:
            raise UserError(f"predict: {name} has shape {np.shape(values)}, this run expects {shapes[name]}")
    statics = np.asarray(batch.get("statics", np.full(shapes["statics"], np.nan)), np.float32)
    ok = np.isfinite(statics)
    found: Batch = {"statics": np.where(ok, statics, 0).astype(np.float32), "statics_ok": ok, "row": np.arange(count, dtype=np.int32)}
    if generates:
        return {**found, "label": np.asarray(batch.get("label", np.full(count, -1)), np.int32)}
    signal = np.asarray(batch["signal"], np.float32)
    if not np.isfinite(signal).all():
        raise UserError(f"predict: signal holds NaN or Inf in row {int(np.argmin(np.isfinite(signal).all(1)))}; leave such records out")
    return {**found, "signal": signal}


# Tables ---------------------------------------------------------------------------------------------------


def category(threshold_db: np.ndarray) -> np.ndarray:
    """Degree of hearing loss, unicode: up to 25 dB normal, 40 mild, 55 moderate, 70 moderately severe, 90 severe, else profound."""
    names = np.array([*(name for _, name in CATEGORIES), WORST_CATEGORY])
    return names[np.searchsorted([limit for limit, _ in CATEGORIES], np.asarray(threshold_db))]


def table(statistics: Statistics, dataset: Dataset, forecast: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One row per record: row, patient_id, ear, record, then what the heads say (`predicted_columns`); of `generate` one row per waveform
    with the values it was drawn for, and signal (n, 200)."""
    record = dataset.index[:, 0]
    arrays = {name: np.asarray(dataset.arrays[name]) for name in ("file_row", "patient_id", "ear_name", "record_name")}
    columns = {"row": arrays["file_row"][record], "patient_id": arrays["patient_id"][record]}
    columns |= {"ear": arrays["ear_name"][record], "record": arrays["record_name"][record]}
    if "generated_uv" in forecast:
        return columns | _conditions(statistics, dataset, record) | {"signal": np.asarray(forecast["generated_uv"])}
    return columns | predicted_columns(statistics, forecast)


def _conditions(statistics: Statistics, dataset: Dataset, record: np.ndarray) -> dict[str, np.ndarray]:
    statics, ok = (np.asarray(dataset.arrays[name])[record] for name in ("statics", "statics_ok"))
    values = np.where(ok, statics, np.nan)
    names = np.append(statistics["class_names"], "")
    return {**{name: values[:, i] for i, name in enumerate(STATICS)}, "class": names[np.asarray(dataset.arrays["label"])[record]]}


def predicted_columns(statistics: Statistics, forecast: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """v_probability, v_present, v_latency_ms, v_latency_sd_ms, v_amplitude_uv, v_amplitude_sd_uv (NaN where V is absent), class, p_NAME,
    threshold_db, threshold_sd_db, category, denoised_uv (n, 200); those of the heads there are. Of z-scored records amplitude and
    waveform are called _uncalibrated."""
    unit = "uv" if calibrated(statistics) else "uncalibrated"
    columns: dict[str, np.ndarray] = {}
    if "v_probability" in forecast:
        present = np.asarray(forecast["v_probability"]) >= PRESENT
        columns |= {"v_probability": np.asarray(forecast["v_probability"]), "v_present": present}
        for name, shown in (("v_latency_ms", "v_latency_ms"), ("v_latency_sd_ms", "v_latency_sd_ms"),
                            ("v_amplitude_uv", f"v_amplitude_{unit}"), ("v_amplitude_sd_uv", f"v_amplitude_sd_{unit}")):  # fmt: skip
            columns[shown] = np.where(present, forecast[name], np.nan)
    if "class_probability" in forecast:
        p = np.asarray(forecast["class_probability"])
        columns["class"] = statistics["class_names"][p.argmax(1)]
        columns |= {f"p_{name}": p[:, c] for c, name in enumerate(statistics["class_names"])}
    if "threshold_mean_db" in forecast:
        threshold = np.asarray(forecast["threshold_mean_db"])
        columns |= {"threshold_db": threshold, "threshold_sd_db": np.asarray(forecast["threshold_sd_db"]), "category": category(threshold)}
    return columns | {f"denoised_{unit}": np.asarray(forecast["denoised_uv"])}


def series_tables(statistics: Statistics, dataset: Dataset, forecast: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """{"series": one row per patient and ear with at least four levels}: threshold_db from the probabilities of V over level, category,
    and the class with the largest mean log-probability; nothing where no ear has so many."""
    if "v_probability" not in forecast:
        return {}
    record = dataset.index[:, 0]
    statics, ok = (np.asarray(dataset.arrays[name])[record] for name in ("statics", "statics_ok"))
    level = np.where(ok[:, 1], statics[:, 1], np.nan)
    owner = np.stack([np.asarray(dataset.arrays[name])[record].astype(np.str_) for name in ("patient_id", "ear_name")], axis=1)
    ears, which = np.unique(owner, axis=0, return_inverse=True)
    rows: list[tuple[Any, ...]] = []
    for ear, (patient, side) in enumerate(ears):
        mine = np.flatnonzero(which.ravel() == ear)
        levels = np.unique(level[mine][np.isfinite(level[mine])])
        if len(levels) >= SERIES_LEVELS:
            threshold = series_threshold(level[mine], np.asarray(forecast["v_probability"])[mine])
            rows.append((patient, side, len(mine), len(levels), threshold, _series_class(statistics, forecast, mine)))
    if not rows:
        return {}
    names = ("patient_id", "ear", "records", "levels", "threshold_db", "class")
    found = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    if "class_probability" not in forecast:
        del found["class"]
    return {"series": found | {"category": category(found["threshold_db"])}}


def _series_class(statistics: Statistics, forecast: Mapping[str, np.ndarray], rows: np.ndarray) -> str:
    if "class_probability" not in forecast:
        return ""
    return str(statistics["class_names"][np.log(np.asarray(forecast["class_probability"])[rows] + 1e-12).mean(0).argmax()])
