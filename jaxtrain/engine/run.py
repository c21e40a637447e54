"""The run folder: what a run writes once, and how a finished run is opened again without its training data."""

import importlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxtrain.data.dataset import Dataset, Statistics
from jaxtrain.engine import config as configs
from jaxtrain.engine import optimizer, steps
from jaxtrain.engine.checkpoint import Checkpoints, check_leaves
from jaxtrain.engine.program import build_model
from jaxtrain.engine.report import write_json
from jaxtrain.engine.scoring import Scorer
from jaxtrain.engine.sharding import Layout
from jaxtrain.engine.state import Params, Template, flatten
from jaxtrain.errors import UserError
from jaxtrain.tasks.task import Task

CONFIG, STATISTICS, SUMMARY, CHECKPOINTS = "config.json", "statistics.npz", "summary.json", "checkpoints"


def make_task(name: str, sections: Mapping[str, Any], statistics: Statistics | None = None) -> Task:
    """The task `name`: jaxtrain.tasks.NAME, or a module of your own written with dots ("my_package.tides")."""
    module_name = name if "." in name else f"jaxtrain.tasks.{name}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        known = sorted(p.stem for p in Path(__file__).parents[1].joinpath("tasks").glob("*.py") if p.stem not in ("__init__", "task"))
        raise UserError(f"config.task: {name!r} is not a task{configs.nearest(name, known)}") from None
    if not hasattr(module, "make_task"):
        raise UserError(f"config.task: {module_name} defines no make_task(sections, statistics), so it is not a task")
    return module.make_task(sections, statistics or {})


def checkpoint_folder(workdir: Path, phases: list[configs.Phase], number: int) -> Path:
    """`checkpoints/`, or one folder below it for each phase of a run that has several."""
    return workdir / CHECKPOINTS if len(phases) == 1 else workdir / CHECKPOINTS / f"{number}-{phases[number].name}"


def save_statistics(workdir: Path, statistics: Statistics) -> None:
    """Whole or not at all."""
    temporary = workdir / f".{STATISTICS}"
    with temporary.open("wb") as file:
        np.savez(file, **statistics)  # type: ignore[arg-type]
    temporary.replace(workdir / STATISTICS)


def load_statistics(workdir: Path) -> Statistics:
    path = workdir / STATISTICS
    try:
        with np.load(path, allow_pickle=False) as file:
            return {k: file[k] for k in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); is {workdir} a run folder?") from None


def read_config(workdir: Path) -> dict[str, Any]:
    """The resolved config of a run folder."""
    path = workdir / CONFIG
    if not path.is_file():
        raise UserError(
            f"{workdir}: not a run folder (no {CONFIG}); train one with python -m jaxtrain.main --config ... --workdir {workdir}"
        )
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


@dataclass(frozen=True)
class Run:
    """A trained model with everything that prediction needs; from `open_run` or `jaxtrain.load`."""

    workdir: Path
    values: Mapping[str, Any]
    task: Task
    template: Template
    params: Params
    model_state: Params
    scorer: Scorer
    step: int
    eval_batch: int

    def predict(self, *arrays: Any, **named: Any) -> dict[str, np.ndarray]:
        """Forecast for arrays as in the task's batches, by name or in the order of `task.signature`; physical units.

        None counts as not given; texts and booleans are options of the task's `predict`. Raises UserError when an
        array is missing, unknown or fits no other in length.
        """
        given = {**dict(zip(self.task.signature, arrays, strict=False)), **named}
        if len(arrays) > len(self.task.signature):
            raise UserError(
                f"predict: at most {len(self.task.signature)} arrays without a name ({', '.join(self.task.signature)}), got {len(arrays)}"
            )
        given = {k: v for k, v in given.items() if v is not None}
        options = {k: v for k, v in given.items() if isinstance(v, (bool, str))}
        batch = self.task.complete({k: np.asarray(v) for k, v in given.items() if k not in options})
        call = self.scorer.predict_call(**options)
        return {k: np.asarray(v) for k, v in jax.device_get(call(self.params, self.model_state, batch)).items()}

    def forecast(self, dataset: Dataset, **options: Any) -> dict[str, np.ndarray]:
        """Forecast for every row of a dataset, in order, with the gathered inputs beside it; options of the task's `predict`."""
        return self.scorer.predict(dataset, self.params, self.model_state, self.eval_batch)(dataset.index, **options)


def open_run(workdir: str | Path) -> Run:
    """The best checkpoint of a run folder, or the last one where `train.select` says so.

    Raises UserError when the folder is no run or holds no checkpoint.
    """
    folder = Path(workdir)
    values = read_config(folder)
    phases = configs.phases(values)
    last = phases[-1]
    task = make_task(values["task"], last.task, load_statistics(folder))
    template, params, model_state, _ = build_model(task, last.engine.train.precision)
    for number in reversed(range(len(phases))):
        place = checkpoint_folder(folder, phases, number)
        if not place.is_dir():
            continue
        checkpoints = Checkpoints(place, keep_best=1, mode=_mode(task, phases[number]), read_only=True)
        try:
            step = checkpoints.selected(phases[number].engine.train.select)
            if step is not None:
                params, model_state = checkpoints.restore_weights(step, params, model_state)
                break
        finally:
            checkpoints.close()
    else:
        raise UserError(f"{folder / CHECKPOINTS}: holds no complete checkpoint; repeat the training command, it goes on from the start")
    one = single_device()
    return Run(folder, values, task, template, params, model_state, Scorer(task, template, "host", None, one), step, last.engine.eval.batch)


def write_run(
    workdir: str | Path, values: Mapping[str, Any], statistics: Statistics, params: Mapping[str, Any],
    running: Mapping[str, Any] | None = None,
) -> None:
    """A run folder around given weights (converted from elsewhere): `predict` and `evaluate` then work on it.

    values: a resolved config (`configs.load`); params: "a/b/kernel" -> array; running: running averages likewise, where the model
    keeps some. Raises UserError naming every leaf that does not fit the config's model.
    """
    folder = Path(workdir)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: exists and is not empty; name another folder")
    phase = configs.phases(values)[-1]
    task = make_task(values["task"], phase.task, statistics)
    template, wanted, _, _ = build_model(task, "float32")
    check_leaves("weights", wanted, params)
    compute = steps.PRECISIONS["float32"][1]
    _, _, others = nnx.split(task.build(nnx.Rngs(0), compute), nnx.Param, ...)
    model_state = flatten(others)
    if running is not None:
        check_leaves("running averages", {k: model_state[k] for k in template.running}, running)
        model_state |= {k: jax.numpy.asarray(v, model_state[k].dtype) for k, v in running.items()}
    placed = {k: jax.numpy.asarray(v, wanted[k].dtype) for k, v in params.items()}
    state = steps.initial_state(
        placed, model_state, optimizer.direction(phase.engine.optimizer, wanted, task.groups()), precision="float32", ema=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, values)
    save_statistics(folder, statistics)
    checkpoints = Checkpoints(folder / CHECKPOINTS, keep_best=1, mode=_mode(task, phase))
    checkpoints.save(0, state, {"step": 0, "phase": phase.name, "standing": {"first_step": 0}}, None)
    checkpoints.wait()
    checkpoints.close()


def single_device() -> Layout:
    """A layout for commands that serve: one device."""
    return Layout(jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.local_devices()[:1]))


def _mode(task: Task, phase: configs.Phase) -> str:
    return phase.engine.train.monitor_mode if phase.engine.train.monitor else task.monitor[1]
