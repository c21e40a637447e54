"""Turn a legacy joblib file of evoked responses into the record layout, without running anything from it.

    python scripts/convert_abr_pickle.py --input OLD.pkl --output NEW.parquet

The file holds a dict: `data`, a list of {patient_id, static_params (4,), signal (200,), v_peak (2,), v_peak_mask (2,), target};
`scaler` and `label_encoder` of scikit-learn; `metadata`. The four values are put back into raw units with the scaler's mean and
scale, class names come from the encoder, and a peak counts as present where both bits of its mask are true.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.cli import check_new_file
from jaxtrain.data import legacy_pickle
from jaxtrain.data.evoked_checks import ZSCORE_TOLERANCE
from jaxtrain.data.evoked_config import LAYOUT, SAMPLE_RATE_HZ, SAMPLES, STATICS
from jaxtrain.errors import UserError

KEYS = ("patient_id", "static_params", "signal", "v_peak", "v_peak_mask", "target")
LENGTHS = {"static_params": len(STATICS), "signal": SAMPLES, "v_peak": 2, "v_peak_mask": 2}
ROUNDING = 1e-3  # below 0 so much is what standardising left of a 0
INVENTED = "clinical_threshold"


def columns(content: Any, where: str) -> tuple[dict[str, np.ndarray], str, tuple[str, ...]]:
    """(columns of the layout, units, notes) of a loaded legacy file. Raises UserError naming the record."""
    if not isinstance(content, Mapping) or not isinstance(content.get("data"), list) or not content["data"]:
        raise UserError(f"{where}: holds no dict with a list 'data'; not converted")
    entries = content["data"]
    arrays = {name: _stacked(entries, name, where) for name in LENGTHS}
    unnamed = [row for row, entry in enumerate(entries) if not _is_name(entry["patient_id"])]
    if unnamed:
        raise UserError(f"{where}: record {unnamed[0]}, patient_id: {entries[unnamed[0]]['patient_id']!r} is no name (so in {len(unnamed)} "
                        "records), and it keeps patients in one split; not converted")  # fmt: skip
    present = arrays["v_peak_mask"].astype(bool).all(axis=1)
    latency, amplitude = np.where(present.reshape(-1, 1), arrays["v_peak"], np.nan).T
    statics = _raw_statics(arrays["static_params"], content.get("scaler"), where)
    found = {
        "patient_id": np.array([str(entry["patient_id"]) for entry in entries]),
        "signal": arrays["signal"].astype(np.float32),
        "class": _class_names([entry["target"] for entry in entries], content.get("label_encoder"), where),
        "v_present": present, "v_latency_ms": latency.astype(np.float32), "v_amplitude_uv": amplitude.astype(np.float32),
    }  # fmt: skip
    found |= {name: statics[:, i].astype(np.float32) for i, name in enumerate(STATICS)}
    scaled = bool((np.abs(arrays["signal"].std(1) - 1) < ZSCORE_TOLERANCE).all())
    holders = (content, content.get("metadata"), entries[0])
    invented = any(isinstance(part, Mapping) and INVENTED in part for part in holders)
    notes = (f"{INVENTED} dropped: it was computed from the other labels plus noise, it is no measurement",) if invented else ()
    return found, "zscore" if scaled else "uV", notes


def _is_name(value: Any) -> bool:
    return value is not None and value == value and bool(str(value).strip())


def _stacked(entries: Sequence[Any], name: str, where: str) -> np.ndarray:
    """(R, n) of every record's array of this name."""
    rows = []
    for number, entry in enumerate(entries):
        missing = [key for key in KEYS if key not in entry] if isinstance(entry, Mapping) else list(KEYS)
        if missing:
            raise UserError(f"{where}: record {number}: {', '.join(missing)} missing; not converted")
        try:
            row = np.asarray(entry[name], np.float64).ravel()
        except (TypeError, ValueError):
            raise UserError(f"{where}: record {number}, {name}: holds what is no number; not converted") from None
        if len(row) != LENGTHS[name]:
            raise UserError(f"{where}: record {number}, {name}: {len(row)} values, expected {LENGTHS[name]}; not converted")
        rows.append(row)
    return np.stack(rows)


def _raw_statics(scaled: np.ndarray, scaler: Any, where: str) -> np.ndarray:
    state = [np.asarray(getattr(scaler, name, None), np.float64).ravel() for name in ("mean_", "scale_")]
    if any(len(values) != len(STATICS) or not np.isfinite(values).all() for values in state):
        raise UserError(f"{where}: the scaler holds no mean_ and scale_ of {len(STATICS)} values; not converted")
    raw = scaled * state[1] + state[0]
    for name in ("age_years", "fmp"):
        column = raw[:, STATICS.index(name)]
        column[(column < 0) & (column > -ROUNDING)] = 0
    return raw


def _class_names(targets: Sequence[Any], encoder: Any, where: str) -> np.ndarray:
    names = [str(name) for name in np.asarray(getattr(encoder, "classes_", ())).ravel()]
    result = []
    for number, target in enumerate(targets):
        if isinstance(target, str):
            result.append(target)
            continue
        try:
            code = float(np.asarray(target).ravel()[0])
        except (TypeError, ValueError, IndexError):
            code = np.nan
        if not (code.is_integer() and 0 <= code < len(names)):
            raise UserError(f"{where}: record {number}, target: {target!r} is no class of the encoder ({', '.join(names)}); not converted")
        result.append(names[int(code)])
    return np.array(result)


def write(found: Mapping[str, np.ndarray], units: str, output: Path) -> None:
    """Whole or not at all: a temporary file beside it, then a rename."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = {name: pa.array(values) for name, values in found.items() if name != "signal"}
    fields["signal"] = pa.FixedSizeListArray.from_arrays(pa.array(found["signal"].ravel()), SAMPLES)
    table = pa.table(fields).replace_schema_metadata({"sample_rate_hz": str(SAMPLE_RATE_HZ), "units": units, "layout": LAYOUT})
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        pq.write_table(table, temporary)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Turn a legacy joblib file of evoked responses into the record layout.")
    parser.add_argument("--input", type=Path, required=True, help="legacy .pkl or .joblib file")
    parser.add_argument("--output", type=Path, required=True, help="Parquet file to write")
    options = parser.parse_args(arguments)
    try:
        check_new_file(options.output, options.input, (".parquet",))
        found, units, notes = columns(legacy_pickle.load(options.input), str(options.input))
        write(found, units, options.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename2 or error.filename or options.output}: {error.strerror or error}; nothing was written", file=sys.stderr)
        return 2
    for note in notes:
        print(note)
    print(f"{options.output}: {len(found['signal'])} records of {len(np.unique(found['patient_id']))} patients, units {units}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
