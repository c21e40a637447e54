"""Small fleets for tests: a config of the data section, and tables as files of any kind."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data.fleet_config import DataConfig, SyntheticConfig

START = 1_736_121_600  # 2025-01-06 00:00 UTC
STEP = 300
DEFAULTS: dict[str, Any] = {
    "path": "", "format": "auto", "time": "timestamp", "time_unit": "s", "groups": ("server",), "file_step_seconds": STEP,
    "step_seconds": STEP, "snap_tolerance": 0.1, "timezone": "UTC", "fill_steps": 2, "targets": ("cpu",), "observed_real": (),
    "observed_categorical": (), "known_real": (), "known_categorical": (), "static_real": (), "static_categorical": (),
    "calendar": ("hour_of_day", "day_of_week", "is_weekend"), "lags": (), "rolling": (), "interactions": (), "peers": (),
    "static_change": "error", "group_as_static": True, "level_as_static": True, "present_as_observed": True,
    "relative_step_as_known": True, "transform": {}, "normalise": {}, "bounds": {}, "clip": False, "cap": True, "context_steps": 8,
    "horizon_steps": 4, "min_history_steps": 4, "split": "time", "valid_fraction": 0.2, "test_fraction": 0.2, "gap_steps": None,
    "valid_blocks": 1, "block_steps": 8, "folds": 5, "fold": 0, "fold_steps": 8, "train_steps": None, "train_stride": 1, "eval_stride": 1,
    "max_train_windows": None, "max_valid_windows": None, "weight": "uniform", "season_steps": (4, 8), "alerts": {}, "known_default": {},
    "synthetic": SyntheticConfig(kind="fleet", servers=2, days=2, seed=0),
}  # fmt: skip
Rows = dict[str, list[Any]]


def config(path: str | Path | tuple[str, ...] = "", **changes: Any) -> DataConfig:
    return DataConfig(**{**DEFAULTS, "path": path if isinstance(path, tuple) else str(path), **changes})


def iso(step: float, zone: str = "Z") -> str:
    return str(np.datetime64(int(START + STEP * step), "s")) + zone


def table(groups: dict[str, range] | None = None, **more: Any) -> Rows:
    """Rows of groups (name -> steps) with a target `cpu`; further columns as (name, step) -> value."""
    groups = {"a": range(12), "b": range(3, 10)} if groups is None else groups
    cells = [(name, step) for name, steps in groups.items() for step in steps]
    rows: Rows = {"timestamp": [iso(step) for _, step in cells], "server": [name for name, _ in cells]}
    rows["cpu"] = [round(20 + 10 * np.sin(1.3 * step + len(name) + ord(name[0])), 3) for name, step in cells]
    return rows | {column: [value(name, step) for name, step in cells] for column, value in more.items()}


def changed(rows: Rows, column: str, row: int, value: Any) -> Rows:
    return {**rows, column: [value if i == row else v for i, v in enumerate(rows[column])]}


def write(path: Path, rows: Rows, row_group_size: int | None = None) -> Path:
    """A file of the kind its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(rows), path, row_group_size=row_group_size)
    elif path.name.endswith((".csv", ".csv.gz")):
        with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(rows)
            writer.writerows(zip(*rows.values(), strict=True))
    else:
        records = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        path.write_text("\n".join(map(json.dumps, records)) if path.suffix == ".jsonl" else json.dumps(records))
    return path
