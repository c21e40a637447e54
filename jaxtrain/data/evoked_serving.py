"""What a finished run reads: whether a file fits it, what it can be scored against, and the threshold of a level series."""

from dataclasses import replace

import numpy as np

from jaxtrain.data.dataset import Statistics
from jaxtrain.data.evoked_checks import check_waveforms
from jaxtrain.data.evoked_config import DataConfig
from jaxtrain.data.evoked_labels import without_fmp
from jaxtrain.data.evoked_records import Records
from jaxtrain.errors import UserError

SERIES_LEVELS = 4  # different levels of an ear that make a series
GRID_DB = np.arange(-10, 111)
SLOPE_DB = 5.0


def served(
    config: DataConfig, statistics: Statistics, found: Records, *, statics: str, labelled: bool, waveforms: bool
) -> tuple[Records, str]:
    """(records, kind of their target: clean | other_half | corrupt | "" for none). Raises UserError where they do not fit the run."""
    if statics not in ("", "none"):
        raise UserError(f"--option statics={statics}: unknown; leave it out, or give none to mark age, level, rate and FMP as missing")
    target = _target(config, found) if labelled else ""
    if waveforms:
        units = str(statistics["units"])
        if found.units != units:
            raise UserError(f"{found.where}: units is {found.units}, the run was trained on {units}; give records in {units}")
        found = check_waveforms(found, target, drop_flat=labelled)
    if labelled and not (target or _has_labels(found)):
        raise UserError(f"{found.where}: holds nothing to score against; add clean, half_a and half_b, or labels")
    if statics == "none":
        found = replace(found, statics=np.full_like(found.statics, np.nan))
    # FMP knows both halves: a run that never saw it must not, nor may it help to forecast one half from the other.
    return without_fmp(found) if config.target == "other_half" or target == "other_half" else found, target


def _target(config: DataConfig, found: Records) -> str:
    """The run's own kind of target where the file has it, else its halves, else none."""
    halves = found.half_a is not None and found.half_b is not None
    if config.target == "clean" and found.clean is None:
        return "other_half" if halves else ""
    if config.target == "other_half" and not halves:
        return "clean" if found.clean is not None else ""
    return config.target


def _has_labels(found: Records) -> bool:
    return bool((found.label >= 0).any() or (found.present >= 0).any() or np.isfinite(found.threshold_db).any())


def readable(found: Records) -> dict[str, np.ndarray]:
    """Names for the tables of a forecast: patient_id, ear_name ("" unknown), record_name (R,), file_row (R,), notes (n,)."""
    return {
        "patient_id": found.patients[found.patient],
        "ear_name": np.append(found.ears, "")[found.ear],
        "record_name": found.record,
        "file_row": found.row,
        "notes": np.array(found.notes, np.str_),
    }


def series_threshold(level_db: np.ndarray, v_probability: np.ndarray) -> float:
    """dB: the theta on a 1-dB grid in -10..110 whose logistic((level - theta)/5) has the least cross-entropy with the probabilities.

    level_db, v_probability (n,). NaN with fewer than 4 different levels.
    """
    known = np.isfinite(level_db)
    level, p = level_db[known].astype(np.float64), v_probability[known].astype(np.float64)
    if len(np.unique(level)) < SERIES_LEVELS:
        return float("nan")
    logit = (level - GRID_DB[:, None]) / SLOPE_DB
    # -p ln q - (1 - p) ln(1 - q) with q = logistic(x) is ln(1 + e^-x) + (1 - p) x.
    loss = (np.logaddexp(0, -logit) + (1 - p) * logit).sum(1)
    return float(GRID_DB[loss.argmin()])
