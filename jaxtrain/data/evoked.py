"""Averaged auditory brainstem responses: records split by patient, with statistics of the training patients.

Letters: B batch, R records; 200 samples = 10 ms. A batch holds signal (B, 200) float32 and target (B, 200), both uV (or SDs,
where the units are z-scores), with target_ok (B,) bool and paired (B,) bool: signal and target are two halves, so that the
target has noise of its own; statics (B, 4) float32 raw age years, level dB, rate 1/s, FMP, 0 where missing, with statics_ok
(B, 4) bool; label (B,) int32, -1 unknown; present (B,) bool with present_ok; latency_ms, amplitude_uv (B,) with peak_ok;
threshold_db (B,) with threshold_ok; patient, ear (B,) int32 codes (ear 0 left, 1 right, -1 unknown); row (B,) int32 record.
"""

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from jaxtrain.data.dataset import Arrays, Batch, Dataset, Splits, Statistics
from jaxtrain.data.evoked_checks import check_leak, check_waveforms
from jaxtrain.data.evoked_config import CLASSES, DataConfig, check_config
from jaxtrain.data.evoked_files import read_table
from jaxtrain.data.evoked_labels import labels, without_fmp
from jaxtrain.data.evoked_records import Records
from jaxtrain.data.evoked_serving import readable, served
from jaxtrain.data.evoked_splits import NAMES, split_records
from jaxtrain.data.evoked_statistics import training_statistics
from jaxtrain.data.evoked_synthetic import clinic
from jaxtrain.data.evoked_tables import records

BY_RECORD = (
    "target_ok", "paired", "statics", "statics_ok", "label", "present", "present_ok", "latency_ms", "amplitude_uv", "peak_ok",
    "threshold_db", "threshold_ok", "patient", "ear",
)  # fmt: skip


def splits(config: DataConfig) -> Splits:
    """Train, valid and test records of `config.path`, or of the synthetic clinic when it is unset.

    Raises UserError for every fault of the input.
    """
    check_config(config)
    found = load(config)
    rows = split_records(config, found)
    arrays = shared_arrays(config, found, config.target)
    datasets = [_dataset(arrays, some, config.target) for some in rows]
    train = datasets[0]
    statistics = training_statistics(config, train.gather(train.arrays, train.index), found.take(rows[0]))
    if config.balanced_sampler:
        train = replace(train, weights=class_weights(arrays["label"][train.index[:, 0]]))
    notes = (*found.notes, *labels(config, found).notes, _split_note(found, rows))
    return Splits(train, datasets[1], datasets[2], statistics, notes=notes)


def load(config: DataConfig) -> Records:
    """The records of the file, checked; or the synthetic ones. With the target `other_half` FMP is missing."""
    if config.path:
        found = check_waveforms(records(read_table(config.path), config.class_names), config.target)
        check_leak(found)
    else:
        found = clinic(config.patients, config.seed)[0]
    return without_fmp(found) if config.target == "other_half" else found


def inputs(
    config: DataConfig, statistics: Statistics, path: str, *, statics: str = "", labelled: bool = False, waveforms: bool = True
) -> Dataset:
    """What a finished run reads: records of the layout (or JSON) without labels, each once, in the order of the file.

    statics: "none" marks all four values missing. labelled: with targets, as far as the file has them: the run's own kind, else
    its other halves, else target_ok is false. waveforms: False reads conditions alone (to generate from).
    The arrays hold besides: patient_id, ear_name, record_name (R,) unicode and file_row (R,) int64, notes (n,) unicode.
    Raises UserError where the file does not fit the run.
    """
    known = records(read_table(path, served=True), config.class_names, units=str(statistics["units"]), waveforms=waveforms)
    found, target = served(config, statistics, known, statics=statics, labelled=labelled, waveforms=waveforms)
    arrays = shared_arrays(config, found, target) | readable(found)
    if not labelled:
        arrays.pop("target", None)
    if not waveforms:
        arrays.pop("signal")
    return _dataset(arrays, np.arange(len(found)), target)


def shared_arrays(config: DataConfig, found: Records, target: str) -> dict[str, np.ndarray]:
    """The shared arrays by record. target: clean | other_half | corrupt, or "" for a signal without one.

    signal (R, 200), of `clean` also target; of `other_half` in place of both halves (R, 2, 200); and those of a batch.
    """
    known = labels(config, found)
    statics_ok = np.isfinite(found.statics)
    arrays = {name: getattr(known, name) for name in BY_RECORD if hasattr(known, name)}
    arrays |= {"statics": np.where(statics_ok, found.statics, np.float32(0)), "statics_ok": statics_ok}
    arrays |= {"patient": found.patient, "ear": found.ear}
    arrays |= {"target_ok": np.full(len(found), target != ""), "paired": np.full(len(found), target == "other_half")}
    if target == "other_half":
        assert found.half_a is not None and found.half_b is not None
        arrays["halves"] = np.stack([found.half_a, found.half_b], axis=1)
    else:
        arrays["signal"] = found.signal
        if target == "clean":
            assert found.clean is not None
            arrays["target"] = found.clean
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def gather(arrays: Arrays, rows: Any, *, target: str) -> Batch:
    """The records of rows (B, 1), or of (record, direction) rows (B, 2): see the module's docstring. NumPy or jax arrays alike."""
    record = rows[:, 0]
    batch = {name: arrays[name][record] for name in BY_RECORD}
    batch["row"] = record
    if target == "other_half":
        return batch | {"signal": arrays["halves"][record, rows[:, 1]], "target": arrays["halves"][record, 1 - rows[:, 1]]}
    if "signal" in arrays:
        batch["signal"] = arrays["signal"][record]
        if target:
            # Under `corrupt` the loss adds noise to the signal, and the average itself is the target.
            batch["target"] = arrays["target"][record] if target == "clean" else batch["signal"]
    return batch


def class_weights(label: np.ndarray) -> np.ndarray:
    """(n,) float64 sampling weights 1 / count of the class; records without one form a class of their own."""
    counts = np.bincount(label + 1)
    return 1.0 / counts[label + 1]


def _dataset(arrays: dict[str, np.ndarray], rows: np.ndarray, target: str) -> Dataset:
    index = rows.astype(np.int32)[:, None]
    if target == "other_half":
        index = np.stack([np.repeat(index[:, 0], 2), np.tile(np.array([0, 1], np.int32), len(index))], axis=1)
    return Dataset(arrays, index, functools.partial(gather, target=target))


def _split_note(found: Records, rows: tuple[np.ndarray, ...]) -> str:
    parts = []
    for name, some in zip(NAMES, rows, strict=True):
        counts = np.bincount(found.label[some] + 1, minlength=len(CLASSES) + 1)[1:]
        parts.append(f"{name} {len(np.unique(found.patient[some]))} ({'/'.join(str(n) for n in counts)})")
    return f"patients of each split (records by class): {', '.join(parts)}"
