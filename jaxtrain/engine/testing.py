"""After training: the best weights, the naive forecasts and the oracle on the same examples, as scores, table and figures."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxtrain.data.dataset import Dataset
from jaxtrain.engine import report
from jaxtrain.engine.checkpoint import Checkpoints
from jaxtrain.engine.program import Part, Program
from jaxtrain.engine.run import save_statistics
from jaxtrain.engine.scoring import HostSums, Scorer, skill
from jaxtrain.engine.state import Params
from jaxtrain.tasks.task import Task

FIGURE_BATCH = 16  # examples drawn at once: what a figure asks for may be large


@dataclass(frozen=True)
class Tested:
    """What `draw` needs of the test split."""

    scorer: Scorer
    dataset: Dataset
    params: Params
    model_state: Params
    sums: Mapping[str, HostSums]
    naive_valid: Mapping[str, Mapping[str, float]]  # scores of the naive forecasts on the validation split


def test(workdir: Path, part: Part, checkpoints: Checkpoints, program: Program) -> tuple[dict[str, Any], Tested]:
    """Scores of the selected weights (`train.select`) and the naive forecasts on every split but train; calibrates first.

    program: what trained them; its arrays and compiled scores serve again.
    """
    task, splits, engine = part.task, part.splits, part.phase.engine
    step = checkpoints.selected(engine.train.select)
    assert step is not None
    model, scorer = part.model, program.scorer
    params, model_state = checkpoints.restore_weights(step, model.params, model.model_state, sharding=part.layout.replicated())
    scores: dict[str, Any] = {}
    tested = None
    for name, dataset in {"valid": splits.valid, "test": splits.test, **splits.more}.items():
        source = replace(program.valid, dataset=dataset)
        if scorer.task is not task or scorer.gather != source.gather:
            scorer = replace(scorer, task=task, gather=source.gather)
        sums = {"model": scorer.model(source, params, model_state), **scorer.naive(source)}
        sampled = scorer.oracle(source, params, model_state) if name == "test" and jax.process_count() == 1 else None
        scores[name] = scored(task, sums, sampled, scorer.oracle_every(source))
        if name == "valid" and (calibration := task.calibrate(sums["model"])):
            task = task.with_statistics(calibration)
            if jax.process_index() == 0:
                save_statistics(workdir, task.statistics)
        if name == "test":
            every = {**sums, "oracle": sampled["oracle"]} if sampled else sums
            tested = Tested(scorer, dataset, params, model_state, every, scores["valid"]["naive"])
    assert tested is not None
    extra = {name: s for name, s in scores.items() if name not in ("valid", "test")}
    found = {
        **scores["test"],
        "tested_step": step,
        "valid": scores["valid"]["test"],
        "headline": list(task.headline),
        "examples": {k: len(v) for k, v in splits.named().items()},
        **({"more": extra} if extra else {}),
    }
    return found, tested


def scored(task: Task, sums: Mapping[str, HostSums], sampled: Mapping[str, HostSums] | None, every: int) -> dict[str, Any]:
    """{"test": scores, "naive": {name: scores}} of one split; with a sample also "oracle" and "skill"."""
    result: dict[str, Any] = {
        "test": task.summarize(sums["model"]),
        "naive": {name: task.summarize(s) for name, s in sums.items() if name != "model"},
    }
    if sampled:
        result["oracle"] = {"every": every, "scores": task.summarize(sampled["oracle"])}
        result["skill"] = skill(task, sampled)
    return result


def draw(workdir: Path, tested: Tested, step: int, *, tensorboard: bool) -> list[Path]:
    """The task's figures below `figures/` and in TensorBoard, with the naive forecasts' scores as constant lines."""
    if tensorboard:
        report.constant_lines(workdir, tested.naive_valid, "valid", step)
    scorer = replace(tested.scorer, placement="host", gather=None)
    params, model_state = jax.device_get((tested.params, tested.model_state))
    predict = scorer.predict(tested.dataset, params, model_state, FIGURE_BATCH)
    log = report.Log(workdir, tensorboard=tensorboard, resume_step=step)
    try:
        return report.save_figures(workdir, scorer.task.figures(predict, tested.dataset, tested.sums), log, step)
    finally:
        log.close()


def render(summary: Mapping[str, Any]) -> str:
    """The printed tables: the model, the naive forecasts and the oracle on the same test examples; then every further split."""
    text = _split_table("test", summary, summary)
    if summary.get("skill"):
        s, every = summary["skill"], summary["oracle"]["every"]
        text += f"\nskill {s['skill']:.2f} on 1 of {every} examples: "
        text += f"model {s['model']:.3f}, best naive {s['naive']:.3f}, oracle {s['oracle']:.3f}"
    for name, found in summary.get("more", {}).items():
        text += "\n" + _split_table(name, found, summary)
    return text + "".join(f"\nnote: {note}" for note in summary["notes"])


def _split_table(name: str, found: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """found: {"test": scores, "naive": {name: scores}, maybe "oracle"} of one split; best naive forecast first."""
    naive, key = found["naive"], summary["headline"][0]
    ordered = sorted(naive, key=lambda n: naive[n].get(key) if naive[n].get(key) is not None else float("inf"))
    rows = {"model": found["test"], **{n: naive[n] for n in ordered}}
    if "oracle" in found:
        rows[f"oracle (1 of {found['oracle']['every']})"] = found["oracle"]["scores"]
    return report.score_table(f"{name}, {summary['examples'][name]:,} examples", rows, summary["headline"])
