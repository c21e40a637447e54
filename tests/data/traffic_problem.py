"""Small traffic files and configs for the tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data.traffic import DataConfig, SyntheticConfig

CONFIG = DataConfig(
    path="", layout="auto", key="", feature=0, start="", step_minutes=5.0, in_steps=6, out_steps=4, grid="regular", aggregate="mean",
    unit="km/h", graph_path="", graph_kind="auto", directed=False, threshold=0.1, max_neighbors=32, weather_path="", locations_path="",
    null_value=None, max_value=200.0, fill="carry", max_fill_minutes=60.0, split="time", fractions=(0.7, 0.1, 0.2),
    folds=5, fold=0, gap_steps=None,
    scale="global", timezone="", synthetic=SyntheticConfig(16, 4, 0),
)  # fmt: skip


def config(**changes: Any) -> DataConfig:
    return replace(CONFIG, **changes)


def readings(rows: int = 200, nodes: int = 3, seed: int = 0) -> np.ndarray:
    """(rows, nodes) plausible speeds with two decimals."""
    return np.random.default_rng(seed).uniform(20, 60, (rows, nodes)).round(2)


def write_matrix(path: Path, values: np.ndarray, header: str = "", times: list[str] | None = None) -> str:
    lines = [header] if header else []
    for row, value in enumerate(values):
        cells = [f"{v:g}" for v in value]
        lines.append(",".join([times[row], *cells] if times else cells))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def stamps(rows: int, step_minutes: int = 5, start: str = "2024-01-01T00:00") -> list[str]:
    return [str(s) for s in np.datetime64(start) + np.arange(rows) * np.timedelta64(step_minutes, "m")]


def write_edges(path: Path, lines: list[str], header: str = "timestamp,node_a_id,node_b_id,speed_kmh") -> str:
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)
