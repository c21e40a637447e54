"""How training went, read from the curves of a finished phase: where it was best, and what the steps after that were worth."""

import json
from pathlib import Path
from typing import Any


def course(metrics: Path, phase: str, monitor: str, mode: str, first_step: int, steps_per_epoch: float) -> dict[str, Any]:
    """Of one phase in metrics.jsonl: best_epoch, stop_epoch, epochs_after_best; largest_setback of the monitored score below its best,
    in its unit; train_valid_gap, the monitored loss less the training loss last logged before, where the monitor is "valid/loss".

    monitor: "valid/mae"; mode: "min" or "max"; empty where nothing was evaluated.
    """
    rows = [row for row in map(json.loads, metrics.read_text().splitlines()) if row.get("phase") == phase]
    seen = [(row["step"], row[monitor]) for row in rows if row.get(monitor) is not None]
    if not seen:
        return {}
    sign = 1.0 if mode == "min" else -1.0
    best_step, best = min(reversed(seen), key=lambda found: sign * found[1])  # of equals the later
    last = max(row["step"] for row in rows)
    after = [sign * (value - best) for step, value in seen if step >= best_step]
    found = {
        "best_epoch": (best_step - first_step) / steps_per_epoch,
        "stop_epoch": (last - first_step) / steps_per_epoch,
        "epochs_after_best": (last - best_step) / steps_per_epoch,
        "largest_setback": max(after),
    }
    trained = [row["train/loss"] for row in rows if row["step"] <= best_step and row.get("train/loss") is not None]
    if monitor == "valid/loss" and trained:
        found["train_valid_gap"] = best - trained[-1]
    return {name: round(value, 6) for name, value in found.items()}
