"""The records of a clinic in memory: waveforms, the values that go with them, and labels."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np


@dataclass(frozen=True)
class Records:
    """R averaged responses; rows of all arrays belong together. NaN, -1 or "" stands for missing.

    where: file, or what stands in for it in messages
    row: (R,) int64 row of the file
    signal: (R, 200) float32, the full average; half_a, half_b, clean: the same or None
    statics: (R, 4) float32 age years, level dB, rate 1/s, recording quality FMP
    label: (R,) int32 class code; present: (R,) int8 1 yes, 0 no, -1 nobody looked
    latency_ms, amplitude_uv, threshold_db: (R,) float32
    patient: (R,) int32 code into patients (unicode); ear: (R,) int32 into ears; record: (R,) unicode
    units: "uV" or "zscore"
    """

    where: str
    row: np.ndarray
    signal: np.ndarray
    half_a: np.ndarray | None
    half_b: np.ndarray | None
    clean: np.ndarray | None
    statics: np.ndarray
    label: np.ndarray
    present: np.ndarray
    latency_ms: np.ndarray
    amplitude_uv: np.ndarray
    threshold_db: np.ndarray
    patient: np.ndarray
    patients: np.ndarray
    ear: np.ndarray
    ears: np.ndarray
    record: np.ndarray
    units: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.signal)

    def take(self, rows: np.ndarray | Sequence[int], *notes: str) -> "Records":
        """These rows only (indices, or one bool per record), with further notes; patients keep their codes."""
        whole = ("where", "patients", "ears", "units", "notes")
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in whole}
        chosen = {name: None if array is None else array[rows] for name, array in chosen.items()}
        return replace(self, **chosen, notes=(*self.notes, *notes))
