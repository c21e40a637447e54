"""A config of the evoked-response data, and small files of its layout, for tests."""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxtrain.data import evoked_noise
from jaxtrain.data.evoked_config import CLASSES, DataConfig

DEFAULT = DataConfig(
    path="", patients=800, seed=42, target="clean", corrupt_sd=(0.3, 1.0), late_peak="mask", threshold="column", test_fraction=0.15,
    valid_fraction=0.20, split_seed=42, groups={}, class_names=CLASSES, balanced_sampler=False, augment=False, shift_samples=3,
    gain=(0.95, 1.05), noise_sd=0.02, statics_sd=0.05, hide_statics=0.1,
)  # fmt: skip
ATTRIBUTES = {"sample_rate_hz": "20000", "units": "uV", "layout": "abr-1"}


def config(**changes: Any) -> DataConfig:
    """The default of the specification with some keys changed."""
    return replace(DEFAULT, **changes)


def columns(patients: int = 8, rows: int = 3, *, seed: int = 0) -> dict[str, Any]:
    """All columns of the layout: `rows` records of each patient, the first half of the patients NORMAL, the others SNIK."""
    rng = np.random.default_rng(seed)
    count = patients * rows
    patient = np.repeat(np.arange(patients), rows)
    clean = 0.2 * np.exp(-(((np.arange(200) - rng.uniform(120, 150, (count, 1))) / 10) ** 2)).astype(np.float32)
    half_a, half_b = (clean + np.float32(0.05) * evoked_noise.draw(rng, count) for _ in range(2))
    return {
        "signal": (half_a + half_b) / 2, "half_a": half_a, "half_b": half_b, "clean": clean,
        "age_years": np.where(patient % 4 == 1, np.nan, patient % 3).astype(np.float32),
        "intensity_db": np.tile(np.arange(rows), patients).astype(np.float32) * 20 + 20, "rate_hz": np.full(count, 33.1, np.float32),
        "fmp": rng.gamma(1.0, 1.0, count).astype(np.float32), "class": ["NORMAL" if p < patients / 2 else "SNIK" for p in patient],
        "v_present": [bool(r) for r in np.tile(np.arange(rows) > 0, patients)],
        "v_latency_ms": np.where(np.arange(count) % rows > 0, 6.5, np.nan).astype(np.float32),
        "v_amplitude_uv": np.where(np.arange(count) % rows > 0, 0.2, np.nan).astype(np.float32),
        "threshold_db": np.repeat(rng.integers(0, 10, patients) * 5.0, rows).astype(np.float32),
        "patient_id": [f"p{p}" for p in patient], "ear": ["L"] * count, "record": [f"r{i}" for i in range(count)],
    }  # fmt: skip


def changed(found: Mapping[str, Any], name: str, row: int, value: Any) -> dict[str, Any]:
    """The same columns with one other cell."""
    column = found[name].copy()
    column[row] = value
    return {**found, name: column}


def write_parquet(path: Path, found: Mapping[str, Any], attributes: Mapping[str, str] = ATTRIBUTES) -> str:
    fields = {}
    for name, values in found.items():
        waves = isinstance(values, np.ndarray) and values.ndim == 2
        fields[name] = pa.array(list(values), pa.list_(pa.float32())) if waves else pa.array(values)
    pq.write_table(pa.table(fields).replace_schema_metadata(attributes), path)
    return str(path)


def write_hdf5(path: Path, found: Mapping[str, Any], attributes: Mapping[str, Any] = ATTRIBUTES) -> str:
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        for name, values in found.items():
            file[name] = values
    return str(path)


def write_json(path: Path, found: Mapping[str, Any]) -> str:
    """Requests: the four values as `static`, null where missing."""

    def cell(value: Any) -> Any:
        value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        return None if isinstance(value, float) and value != value else value

    statics = ("age_years", "intensity_db", "rate_hz", "fmp")
    rows = range(len(found["patient_id"]))
    others = [name for name in found if name not in statics]
    entries = [{"static": [cell(found[n][i]) for n in statics], **{n: cell(found[n][i]) for n in others}} for i in rows]
    path.write_text(json.dumps(entries))
    return str(path)


def script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().parents[2] / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
