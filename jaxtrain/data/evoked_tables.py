"""From the columns of a file to records: names become codes, values are checked against what is possible."""

import unicodedata
from collections.abc import Sequence

import numpy as np

from jaxtrain.data.evoked_config import CLASSES, SAMPLES, STATICS
from jaxtrain.data.evoked_files import Table
from jaxtrain.data.evoked_records import Records
from jaxtrain.errors import UserError

# Least and most that is possible, in the unit of the column.
RANGES = {
    "age_years": (0, 120), "intensity_db": (-20, 130), "rate_hz": (1, 100), "fmp": (0, np.inf), "v_latency_ms": (0, 25),
    "threshold_db": (-10, 130),
}  # fmt: skip
SIDES = ("L", "R")
LEAST_LATENCY_MS = 0.1  # of the median wave V; less are seconds


def records(table: Table, class_names: Sequence[str], *, units: str = "", waveforms: bool = True) -> Records:
    """The records of a table, their labels and values checked; the waveforms are not.

    units: of a file without attributes. waveforms: False reads conditions alone, with a signal of zeros.
    Raises UserError naming row, column and value.
    """
    table.require(*(("signal", "patient_id") if waveforms else ()))
    waves = {name: table.columns.get(name) if waveforms else None for name in ("signal", "half_a", "half_b", "clean")}
    signal = waves["signal"] if waves["signal"] is not None else np.zeros((table.rows, SAMPLES), np.float32)
    statics = np.stack([_ranged(table, name) for name in STATICS], axis=1)
    a, b = waves["half_a"], waves["half_b"]
    if "fmp" not in table and a is not None and b is not None:
        statics[:, 3] = fmp_from_halves(signal, a, b)
    present, latency, amplitude = _peaks(table)
    patient, patients = _patients(table, required=waveforms)
    return Records(
        where=table.path, row=np.arange(table.rows), signal=signal, half_a=a, half_b=b, clean=waves["clean"],
        statics=statics.astype(np.float32), label=_labels(table, class_names), present=present, latency_ms=latency.astype(np.float32),
        amplitude_uv=amplitude.astype(np.float32), threshold_db=_ranged(table, "threshold_db").astype(np.float32), patient=patient,
        patients=patients, ear=_ears(table), ears=np.array(SIDES), record=table.texts("record"),
        units=table.attributes.get("units", units),
    )  # fmt: skip


def fmp_from_halves(signal: np.ndarray, half_a: np.ndarray, half_b: np.ndarray) -> np.ndarray:
    """(R,) recording quality: variance of the average over that of its noise, less one, at least 0; NaN without noise."""
    noise = ((half_a - half_b) / 2).var(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(noise > 0, np.maximum(signal.var(1) / noise - 1, 0), np.nan)


def plain(name: str) -> str:
    """A class name without case, diacritics and surrounding space."""
    letters = unicodedata.normalize("NFKD", name.strip())
    return "".join(c for c in letters if not unicodedata.combining(c)).upper()


def _ranged(table: Table, name: str) -> np.ndarray:
    values = table.numbers(name)
    low, high = RANGES[name]
    wrong = (values < low) | (values > high) | np.isinf(values)
    if not wrong.any():
        return values
    row = int(np.argmax(wrong))
    known = values[np.isfinite(values)]
    if name in STATICS and len(known) > 1 and abs(known.mean()) < 0.1 and abs(known.std() - 1) < 0.1:
        raise UserError(f"{table.place(row, name)}: {values[row]:g}: the column looks standardised (mean {known.mean():.2f}, SD "
                        f"{known.std():.2f}); give raw units")  # fmt: skip
    span = f"at least {low:g}" if np.isinf(high) else f"{low:g} to {high:g}"
    raise UserError(f"{table.place(row, name)}: {values[row]:g} is out of range ({span}; so in {wrong.sum()} rows); mend it or leave it "
                    "empty")  # fmt: skip


def _labels(table: Table, class_names: Sequence[str]) -> np.ndarray:
    """(R,) int32 codes, -1 where empty."""
    texts = table.texts("class")
    codes = {"": -1} | {str(code): code for code in range(len(CLASSES))} | {plain(name): code for code, name in enumerate(class_names)}
    unique, inverse = np.unique(texts, return_inverse=True)
    for text in unique:
        if plain(str(text)) not in codes:
            row = int(np.argmax(texts == text))
            raise UserError(f"{table.place(row, 'class')}: {str(text)!r} is unknown; use {', '.join(class_names)} or 0 to 4")
    return np.array([codes[plain(str(text))] for text in unique], np.int32)[inverse]


def _peaks(table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """((R,) int8 present 1, 0, -1, (R,) latency, (R,) amplitude)."""
    latency, amplitude = _ranged(table, "v_latency_ms"), table.numbers("v_amplitude_uv")
    if np.isfinite(latency).any() and np.nanmedian(latency) < LEAST_LATENCY_MS:
        raise UserError(f"{table.path}: v_latency_ms: the median is {np.nanmedian(latency):.3g}: looks like seconds; multiply it by 1000")
    if np.isinf(amplitude).any():
        raise UserError(f"{table.place(int(np.argmax(np.isinf(amplitude))), 'v_amplitude_uv')}: not finite; leave it empty where unknown")
    if "v_present" not in table:
        return np.where(np.isfinite(latency) & np.isfinite(amplitude), 1, -1).astype(np.int8), latency, amplitude
    values = table.numbers("v_present")
    strange = np.isfinite(values) & (values != 0) & (values != 1)
    if strange.any():
        row = int(np.argmax(strange))
        raise UserError(f"{table.place(row, 'v_present')}: {values[row]:g} is no truth value; use true, false or empty")
    absent = (values == 0) & np.isfinite(latency)
    if absent.any():
        row = int(np.argmax(absent))
        raise UserError(f"{table.place(row, 'v_latency_ms')}: {latency[row]:g} ms where v_present is false (so in {absent.sum()} rows); "
                        "empty one of them")  # fmt: skip
    return np.where(np.isfinite(values), values, -1).astype(np.int8), latency, amplitude


def _patients(table: Table, required: bool) -> tuple[np.ndarray, np.ndarray]:
    texts = table.texts("patient_id")
    if required and (texts == "").any():
        row = int(np.argmax(texts == ""))
        raise UserError(f"{table.place(row, 'patient_id')} is empty; every record needs one (it keeps patients in one split)")
    patients, code = np.unique(texts, return_inverse=True)
    return code.astype(np.int32), patients


def _ears(table: Table) -> np.ndarray:
    """(R,) int32: 0 left, 1 right, -1 unknown."""
    texts = table.texts("ear")
    unique, inverse = np.unique(texts, return_inverse=True)
    codes = []
    for text in unique:
        side = str(text).upper()
        if side not in ("", "L", "R", "LEFT", "RIGHT"):
            row = int(np.argmax(texts == text))
            raise UserError(f"{table.place(row, 'ear')}: {str(text)!r} is neither L nor R; leave it empty if unknown")
        codes.append(SIDES.index(side[0]) if side else -1)
    return np.array(codes, np.int32)[inverse]
