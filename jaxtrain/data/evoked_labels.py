"""Which labels of a record count: late peaks masked, thresholds taken, derived from each ear's levels, or left out."""

from dataclasses import dataclass, replace

import numpy as np

from jaxtrain.data.evoked_config import WINDOW_END_MS, DataConfig
from jaxtrain.data.evoked_records import Records
from jaxtrain.errors import UserError


@dataclass(frozen=True)
class Labels:
    """(R,) values, 0 where not ok; label int32 (-1 unknown), present bool, the others float32; *_ok bool."""

    label: np.ndarray
    present: np.ndarray
    present_ok: np.ndarray
    latency_ms: np.ndarray
    amplitude_uv: np.ndarray
    peak_ok: np.ndarray
    threshold_db: np.ndarray
    threshold_ok: np.ndarray
    notes: tuple[str, ...] = ()


def labels(config: DataConfig, found: Records) -> Labels:
    """The labels that `late_peak` and `threshold` leave."""
    notes = []
    present, present_ok = found.present == 1, found.present >= 0
    peak_ok = present & np.isfinite(found.latency_ms) & np.isfinite(found.amplitude_uv)
    late = present & (found.latency_ms > WINDOW_END_MS)
    if config.late_peak == "mask" and late.any():
        present_ok, peak_ok = present_ok & ~late, peak_ok & ~late
        notes.append(f"{late.sum()} waves V later than {WINDOW_END_MS} ms ({late.sum() / present.sum():.0%}) are masked (data.late_peak)")
    db = _thresholds(config, found)
    known = np.isfinite(db)
    return Labels(
        label=found.label, present=present, present_ok=present_ok, latency_ms=_filled(found.latency_ms, peak_ok),
        amplitude_uv=_filled(found.amplitude_uv, peak_ok), peak_ok=peak_ok, threshold_db=_filled(db, known), threshold_ok=known,
        notes=tuple(notes),
    )  # fmt: skip


def _thresholds(config: DataConfig, found: Records) -> np.ndarray:
    if config.threshold == "column":
        return found.threshold_db
    return (derived_thresholds(found) if config.threshold == "derive" else np.full(len(found), np.nan)).astype(np.float32)


def _filled(values: np.ndarray, ok: np.ndarray) -> np.ndarray:
    return np.where(ok, values, np.float32(0))


def derived_thresholds(found: Records) -> np.ndarray:
    """(R,) dB: per ear the lowest level with a wave V, if all higher levels have one too and a lower one was tested without; else NaN.

    A level has a wave V where any of its records does. Records without ear, level or a reader's word take no part. Raises UserError
    where no record has an ear.
    """
    level = found.statics[:, 1]
    if not (found.ear >= 0).any():
        raise UserError(
            f"{found.where}: config.data.threshold 'derive' needs the column ear, which is absent or empty; add it, or choose none"
        )
    usable = (found.ear >= 0) & np.isfinite(level) & (found.present >= 0)
    ear = found.patient.astype(np.int64) * len(found.ears) + found.ear
    threshold = np.full(len(found), np.nan)
    for one in np.unique(ear[usable]):
        rows = np.flatnonzero(ear == one)
        tested = rows[usable[rows]]
        levels, place = np.unique(level[tested], return_inverse=True)
        heard = np.bincount(place, found.present[tested] == 1) > 0
        silent = np.flatnonzero(~heard)
        # All above the highest silent level are heard; there must be one of each.
        if len(silent) and silent[-1] + 1 < len(levels) and not heard[: silent[-1]].any():
            threshold[rows] = levels[silent[-1] + 1]
    return threshold


def without_fmp(found: Records) -> Records:
    """The same with FMP missing: it is computed from both halves, so it would tell one about the other."""
    statics = found.statics.copy()
    statics[:, 3] = np.nan
    return replace(found, statics=statics)
