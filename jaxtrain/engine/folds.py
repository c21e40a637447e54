"""Validation over several folds: one ordinary run each, then one table of all of them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import jax

from jaxtrain.engine import config as configs
from jaxtrain.engine import report
from jaxtrain.engine.run import make_task
from jaxtrain.engine.train import train_and_test
from jaxtrain.errors import UserError

VALIDATION = "validation.json"
Scores = Mapping[str, float | None]


def validate(values: Mapping[str, Any], kind: str, n: int | None, workdir: Path) -> dict[str, Any] | None:
    """Train and test every fold, print the table and write `validation.json`; None when interrupted (repeat to go on)."""
    folds = make_task(values["task"], configs.phases(values)[-1].task).folds(kind, n)
    runs = [(workdir / fold.name, configs.with_changes(values, fold.changes)) for fold in folds]
    check_others(workdir, [folder.name for folder, _ in runs])
    summaries = []
    for number, (folder, changed) in enumerate(runs, 1):
        if jax.process_index() == 0:
            print(f"{kind} {number} of {len(runs)}: {folder}", flush=True)
        summary = train_and_test(changed, folder)
        if summary["status"] != "finished":
            return None
        summaries.append(summary)
    found = compare(kind, [fold.name for fold in folds], summaries)
    if jax.process_index() == 0:
        report.write_json(workdir / VALIDATION, found)
        print(render(found))
    return found


def check_others(workdir: Path, names: Sequence[str]) -> None:
    """A folder that holds another number of folds is another validation."""
    others = sorted(p.name for p in workdir.glob("fold-*") if p.name not in names) if workdir.is_dir() else []
    if others:
        raise UserError(f"--workdir {workdir}: holds {others[0]}, which is none of these {len(names)} folds; name another folder")


def compare(kind: str, names: Sequence[str], summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every fold's test scores of the model and the naive forecasts, and their mean and standard deviation over the folds."""
    headline = summaries[0]["headline"]
    folds = [
        {"name": name, "examples": s["examples"]["test"], "scores": {"model": s["test"], **s["naive"]}, "notes": s["notes"]}
        for name, s in zip(names, summaries, strict=True)
    ]
    forecasters = [f for f in folds[0]["scores"] if all(f in fold["scores"] for fold in folds)]
    mean: dict[str, dict[str, float]] = {}
    spread: dict[str, dict[str, float]] = {}
    for forecaster in forecasters:
        columns = [fold["scores"][forecaster] for fold in folds]
        shared = [k for k in columns[0] if all(usable(c.get(k)) for c in columns)]
        mean[forecaster] = {k: fmean(c[k] for c in columns) for k in shared}
        spread[forecaster] = {k: stdev(c[k] for c in columns) for k in shared}
    return {"kind": kind, "headline": headline, "folds": folds, "mean": mean, "standard_deviation": spread}


def usable(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def render(found: Mapping[str, Any]) -> str:
    """One block of rows per fold, model first and naive forecasts after it, then the means and the model's spread."""
    rows: dict[str, Scores] = {}
    for fold in found["folds"]:
        rows |= {f"{fold['name']} ({fold['examples']:,})  {name}": scores for name, scores in fold["scores"].items()}
    rows |= {f"mean  {name}": scores for name, scores in found["mean"].items()}
    rows["standard deviation  model"] = found["standard_deviation"]["model"]
    notes = list(dict.fromkeys(note for fold in found["folds"] for note in fold["notes"]))
    title = f"{found['kind']}, {len(found['folds'])} folds"
    return report.score_table(title, rows, found["headline"]) + "".join(f"\nnote: {note}" for note in notes)  # type: ignore[arg-type]
