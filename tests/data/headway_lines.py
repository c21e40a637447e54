"""A config of the headway data and a line made by hand, for tests."""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxtrain.data.headway_config import DataConfig, SyntheticConfig
from jaxtrain.data.headway_tables import Line

DEFAULT = DataConfig(
    path="", snapshots="", stations="", timetable="", schedule="", start="", columns={}, events=(), routes=(), sunday_dates=(),
    timezone="UTC", service_day_start="04:00", step_minutes=1, lookback=30, horizon=15, target="headway", inputs=("headway", "age"),
    clock=False, terminal="merged", align="travel", cap_minutes=30, max_gap_minutes=90, max_age_minutes=60, stale_minutes=3,
    trunk_share=0.9, min_known=0.5, zero_run=3, stride=1, split="time", cuts=(0.70, 0.85), folds=5, fold=0, fraction=1.0,
    max_windows=None, check_clock=True, synthetic=SyntheticConfig(66, 28, 0),
)  # fmt: skip


def config(**changes: Any) -> DataConfig:
    """The default of the specification with some keys changed; synthetic as (stations, days, seed)."""
    if isinstance(changes.get("synthetic"), tuple):
        changes["synthetic"] = SyntheticConfig(*changes["synthetic"])
    return replace(DEFAULT, **changes)


def line(days: int, *, day_rows: int = 1440, stations: int = 3, dated: bool = True, seed: int = 0) -> Line:
    """Random known fields of `days` service days from Thursday 2025-01-02, 04:00 UTC; one run without dates."""
    rng = np.random.default_rng(seed)
    rows = days * day_rows
    first = np.datetime64("2025-01-02")
    day = np.repeat(np.arange(days, dtype=np.int32), day_rows) if dated else np.zeros(rows, np.int32)
    weekday = (3 + day) % 7
    minute = np.tile(np.arange(day_rows, dtype=np.int32), days)
    names = np.array([f"s{s}" for s in range(stations)])
    return Line(
        directions=np.array(["out", "in"]),
        stations=np.stack([names, names[::-1]]),
        headway=rng.uniform(2, 12, (rows, stations, 2)).astype(np.float32),
        age=rng.uniform(0.5, 12, (rows, stations, 2)).astype(np.float32),
        planned=rng.uniform(4, 10, (rows, 2, 1)).astype(np.float32),
        time=first.astype("datetime64[s]").astype(np.int64) + (day.astype(np.int64) * 1440 + minute + 240) * 60,
        day=day,
        day_type=np.maximum(weekday - 4, 0).astype(np.int32),
        minute=minute,
        service_dates=(first + np.arange(days)).astype(str) if dated else np.array([], str),
    )
