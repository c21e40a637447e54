"""Config files become frozen dataclasses; an unknown key, a missing key or a wrong type is one clear line. No JAX here.

A config file defines `get_config(preset="default") -> ConfigDict`. It starts from `engine_defaults()` and adds the
sections of its task, each key with its default: the config file is the one place where a task's defaults live.
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxtrain.errors import UserError


@dataclass(frozen=True)
class TrainConfig:
    batch: int = 64  # examples of one optimizer step, over all devices and micro-batches
    duration: str = "100ep"  # "10ep" epochs or "500st" optimizer steps
    accumulate: int = 1  # micro-batches that a batch is cut into, for memory; the same result up to random draws
    precision: str = "float32"  # float32 | mixed_bfloat16 | bfloat16
    steps_per_call: int = 20  # optimizer steps in one dispatch to the device
    placement: str = "device"  # device: arrays in accelerator memory | host: batches built by Grain
    workers: str = "auto"  # loader processes with host placement: "auto" or a number; 0 = a thread
    seed: int = 0
    ema: float = 0.0  # decay of the averaged weights that are evaluated and served; 0 = off
    monitor: str = ""  # score to stop and to keep checkpoints by, e.g. "valid/mae"; "" = the task's
    monitor_mode: str = "min"  # min | max, read with `monitor`
    select: str = "best"  # weights that are tested and served: best (by the monitored score) | last
    patience: int = 0  # evaluations without gain, after the warm-up, before stopping; 0 = never
    min_delta: float = 0.0  # a smaller gain does not count
    max_skipped: int = 10  # non-finite steps in a row that are skipped before the run stops
    shard_mib: float = 64.0  # parameters of at least this size are sharded over the devices


@dataclass(frozen=True)
class OptimizerConfig:
    name: str = "adamw"  # adamw | adam | sgd | lion
    lr: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9  # sgd
    weight_decay: float = 0.0  # decoupled, on leaves named `kernel` unless the task says otherwise
    schedule: str = "cosine"  # constant | cosine | warm_restarts | plateau
    warmup: str = "0st"  # linear, from 0
    decay: str = "100ep"  # cosine: length including the warm-up; constant at min_lr afterwards
    min_lr: float = 0.0
    restart_period: str = "5ep"  # warm_restarts: T_0
    restart_mult: float = 1.0  # warm_restarts: T_mult, any real number >= 1
    plateau_factor: float = 0.5  # plateau: multiply the rate by this ...
    plateau_patience: int = 4  # ... after more than so many evaluations without gain
    clip: float = 1.0  # global norm; 0 = off


@dataclass(frozen=True)
class EvalConfig:
    batch: int = 64
    every: str = "1ep"


@dataclass(frozen=True)
class CheckpointConfig:
    keep_best: int = 1  # besides the latest
    every: str = "0st"  # further saves between evaluations; 0 = none


@dataclass(frozen=True)
class ReportConfig:
    log_every: str = "20st"
    tensorboard: bool = True
    histograms: bool = False  # of the parameters, at every evaluation
    figures: bool = True


@dataclass(frozen=True)
class ProfileConfig:
    start: int = 20  # first optimizer step of the window
    steps: int = 0  # 0 = no profile


ENGINE_SECTIONS: dict[str, type] = {
    "train": TrainConfig,
    "optimizer": OptimizerConfig,
    "eval": EvalConfig,
    "checkpoint": CheckpointConfig,
    "report": ReportConfig,
    "profile": ProfileConfig,
}
T = typing.TypeVar("T")
PHASE_KEYS = ("name", "carry")
CHOICES = {
    ("train", "precision"): ("float32", "mixed_bfloat16", "bfloat16"),
    ("train", "placement"): ("device", "host"),
    ("train", "monitor_mode"): ("min", "max"),
    ("train", "select"): ("best", "last"),
    ("optimizer", "name"): ("adamw", "adam", "sgd", "lion"),
    ("optimizer", "schedule"): ("constant", "cosine", "warm_restarts", "plateau"),
}
AT_LEAST = {
    ("train", "batch"): 1, ("train", "accumulate"): 1, ("train", "steps_per_call"): 1, ("train", "patience"): 0, ("train", "seed"): 0,
    ("train", "max_skipped"): 1, ("train", "ema"): 0, ("train", "min_delta"): 0, ("train", "shard_mib"): 0,
    ("optimizer", "lr"): 0, ("optimizer", "min_lr"): 0, ("optimizer", "eps"): 0, ("optimizer", "weight_decay"): 0, ("optimizer", "clip"): 0,
    ("optimizer", "restart_mult"): 1, ("optimizer", "plateau_factor"): 0, ("optimizer", "plateau_patience"): 0,
    ("eval", "batch"): 1, ("checkpoint", "keep_best"): 1, ("profile", "start"): 0, ("profile", "steps"): 0,
}  # fmt: skip


def engine_defaults() -> ConfigDict:
    """The engine's keys with their defaults; a config file sets `task` and adds its own sections."""
    sections = {name: ConfigDict(dataclasses.asdict(cls())) for name, cls in ENGINE_SECTIONS.items()}
    return ConfigDict({"task": "", "name": "", "preset": "", "init_from": "", "phases": (), **sections})


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean `x`?)', or the known names when nothing is near."""
    names = sorted(known)
    match = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else f" (known: {', '.join(names)})"


def duration(text: str, steps_per_epoch: float, where: str) -> int:
    """Whole optimizer steps of "10ep" (epochs, fractions allowed) or "500st" (steps)."""
    return round(length(text, steps_per_epoch, where))


def length(text: str, steps_per_epoch: float, where: str) -> float:
    """As `duration`, with the fraction of a step that epochs may end in."""
    if (match := re.fullmatch(r"(\d+(?:\.\d+)?)(ep|st)", text)) is None:
        raise UserError(f'config.{where}: {text!r} is not a duration; write epochs as "10ep" or steps as "500st"')
    return float(match[1]) * (steps_per_epoch if match[2] == "ep" else 1)


def section(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass from a section's values.

    Every field without a default must be there and nothing else may be; lists become tuples, nested mappings nested
    dataclasses. Raises UserError naming the key, the type expected and the value found.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise UserError(f"config.{where}.{key}: unknown key{nearest(key, fields)}")
    built = {}
    for key, field in fields.items():
        if key in values:
            built[key] = _convert(hints[key], values[key], f"{where}.{key}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"config.{where}.{key}: missing; give it a value in the config file")
    return cls(**built)


def sections(classes: Mapping[str, type], values: Mapping[str, Any]) -> dict[str, Any]:
    """A task's sections as frozen dataclasses by name: exactly those of `classes`, each by `section`. Raises UserError."""
    for name in values:
        if name not in classes:
            raise UserError(f"config.{name}: unknown section{nearest(name, classes)}")
    for name in classes:
        if name not in values:
            raise UserError(f"config.{name}: missing; the section belongs to the config file")
    return {name: section(cls, values[name], name) for name, cls in classes.items()}


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise UserError(f"config.{where}: expected a section of keys, got {value!r}")
        return section(typing.cast(type, kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for option in arguments:
            if option is not type(None):
                try:
                    return _convert(option, value, where)
                except UserError:
                    continue
    elif origin is tuple and isinstance(value, (list, tuple)):
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], v, where) for v in value)
        if len(arguments) == len(value):
            return tuple(_convert(a, v, where) for a, v in zip(arguments, value, strict=True))
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif kind is str and where == "train.workers" and isinstance(value, int):
        return str(value)
    elif kind in (bool, str) and isinstance(value, kind):
        return value
    elif origin is dict and isinstance(value, Mapping):
        return {k: _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    elif kind is Any:
        return value
    name = getattr(kind, "__name__", None) if origin is None else None
    raise UserError(f"config.{where}: expected {name or str(kind).replace('typing.', '')}, got {value!r}")


@dataclass(frozen=True)
class Engine:
    """The engine's sections of one phase."""

    train: TrainConfig
    optimizer: OptimizerConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    report: ReportConfig
    profile: ProfileConfig


@dataclass(frozen=True)
class Phase:
    """What one phase trains with; a run without `phases` is one phase called `train`."""

    name: str
    carry: str  # best | last | none: which weights of the phase before it starts from
    engine: Engine
    task: Mapping[str, Any]  # the task's sections, as plain values


def engine_config(values: Mapping[str, Any]) -> Engine:
    """The engine's sections, checked for types, choices and ranges."""
    built = {name: section(cls, values[name], name) for name, cls in ENGINE_SECTIONS.items()}
    for (name, key), known in CHOICES.items():
        value = getattr(built[name], key)
        if value not in known:
            why = " (float16 would need loss scaling and gains nothing over bfloat16)" if value == "float16" else nearest(value, known)
            raise UserError(f"config.{name}.{key}: {value!r} is not supported{why}")
    for (name, key), least in AT_LEAST.items():
        value = getattr(built[name], key)
        if value < least:
            raise UserError(f"config.{name}.{key}: must be at least {least}, got {value}")
    engine = Engine(**built)
    train, optimizer = engine.train, engine.optimizer
    if train.batch % train.accumulate:
        raise UserError(f"config.train.accumulate: {train.accumulate} micro-batches do not divide train.batch {train.batch}")
    if train.workers != "auto" and not train.workers.isdigit():
        raise UserError(f'config.train.workers: {train.workers!r} is neither "auto" nor a number')
    if not 0 <= train.ema < 1:
        raise UserError(f"config.train.ema: must lie in [0, 1), got {train.ema}")
    if len(optimizer.betas) != 2 or not all(0 <= b < 1 for b in optimizer.betas):
        raise UserError(f"config.optimizer.betas: expected two numbers in [0, 1), got {optimizer.betas}")
    if train.monitor and "/" not in train.monitor:
        raise UserError(f'config.train.monitor: {train.monitor!r} names no split; write it as "valid/{train.monitor}"')
    for name, key in (
        ("train", "duration"),
        ("optimizer", "warmup"),
        ("optimizer", "decay"),
        ("optimizer", "restart_period"),
        ("eval", "every"),
        ("checkpoint", "every"),
        ("report", "log_every"),
    ):
        duration(getattr(built[name], key), 1.0, f"{name}.{key}")
    for name, key in (("train", "duration"), ("eval", "every")):
        if duration(getattr(built[name], key), 1e9, f"{name}.{key}") < 1:
            raise UserError(f"config.{name}.{key}: must be more than nothing, got {getattr(built[name], key)!r}")
    return engine


def task_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """The task's part of a resolved config: every section that is not the engine's."""
    return {k: v for k, v in values.items() if isinstance(v, Mapping) and k not in ENGINE_SECTIONS}


def phases(values: Mapping[str, Any]) -> list[Phase]:
    """The phases in order, each with its overrides applied; all of it checked."""
    result = []
    for number, override in enumerate(values["phases"] or ({"name": "train"},)):
        where = f"phases[{number}]"
        if not isinstance(override, Mapping) or "name" not in override:
            raise UserError(f"config.{where}: expected a section with a name, got {override!r}")
        if not re.fullmatch(r"[\w.-]+", str(override["name"])):
            raise UserError(f"config.{where}.name: {override['name']!r} names a folder; use letters, digits, '-', '_' and '.'")
        merged = json.loads(json.dumps({k: v for k, v in values.items() if k != "phases"}))
        for key, part in override.items():
            if key in PHASE_KEYS:
                continue
            if key == "model":
                raise UserError(f"config.{where}.model: a phase carries the weights over, so it cannot change the model")
            if not isinstance(merged.get(key), dict) or not isinstance(part, Mapping):
                raise UserError(
                    f"config.{where}.{key}: unknown section{nearest(key, [k for k, v in merged.items() if isinstance(v, dict)])}"
                )
            _merge(merged[key], part, f"{where}.{key}")
        carry = override.get("carry", "best")
        if carry not in ("best", "last", "none"):
            raise UserError(f"config.{where}.carry: {carry!r} is not supported (known: best, last, none)")
        result.append(Phase(str(override["name"]), carry, engine_config(merged), task_sections(merged)))
    names = [p.name for p in result]
    if len(set(names)) < len(names):
        raise UserError(f"config.phases: every phase needs a name of its own, got {', '.join(names)}")
    return result


def _merge(target: dict[str, Any], part: Mapping[str, Any], where: str) -> None:
    for key, value in part.items():
        if key not in target:
            raise UserError(f"config.{where}.{key}: unknown key{nearest(key, target)}")
        if isinstance(target[key], dict) and isinstance(value, Mapping):
            _merge(target[key], value, f"{where}.{key}")
        else:
            target[key] = value


def load(argument: str, overrides: Mapping[str, str]) -> dict[str, Any]:
    """The resolved config of "configs/x.py[:preset]" or "run/config.json" as plain values.

    overrides: {"train.batch": "32"}, texts as typed; read as Python literals (also true/false/none), else as text.
    Raises UserError for a missing file, an unknown preset or key, or a value of another type than the default's.
    """
    path_text, _, preset = argument.partition(":")
    path = Path(path_text)
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"config file {path_text}: not found{nearest(path.name, siblings) if siblings else ''}")
    if path.suffix == ".json":
        try:
            values = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"config file {path_text}: not valid JSON ({error})") from None
        known = engine_defaults()
        if not isinstance(values, dict) or (missing := [k for k in known if k not in values]):
            raise UserError(
                f"config file {path_text}: not a resolved config (missing {', '.join(missing) if isinstance(values, dict) else 'all keys'})"
            )
    else:
        values = _from_python(path, preset or "default")
    for key, text in overrides.items():
        _override(values, key, text)
    if not values["task"]:
        raise UserError(f"config file {path_text}: get_config must set config.task")
    phases(values)
    return values


def _from_python(path: Path, preset: str) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location(f"jaxtrain_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {path}: not a Python file; a config ends in .py or .json")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"config file {path}: cannot be read ({type(error).__name__}: {error})") from None
    if not hasattr(module, "get_config"):
        raise UserError(f"config file {path}: defines no get_config(preset)")
    config = module.get_config(preset)
    values = json.loads(json.dumps(config.to_dict(), default=list))
    for key in values:
        if key not in engine_defaults() and not isinstance(values[key], dict):
            raise UserError(f"config.{key}: unknown key{nearest(key, engine_defaults())}")
    return {**values, "name": values["name"] or path.stem, "preset": values["preset"] or preset}


def _override(values: dict[str, Any], key: str, text: str) -> None:
    *parents, last = key.split(".")
    target: Any = values
    for depth, name in enumerate([*parents, last]):
        if not isinstance(target, dict) or name not in target:
            known = target if isinstance(target, dict) else ()
            raise UserError(f"--config.{key}: unknown key{nearest('.'.join(key.split('.')[depth:]), known)}")
        if depth < len(parents):
            target = target[name]
    default = target[last]
    if isinstance(default, dict):
        # A mapping of free names (columns of a file) is given whole; what a section misses is found with its dataclass.
        given = _mapping(text)
        if given is None:
            raise UserError(f"--config.{key}: is a section; set one of its keys ({', '.join(default)}), or all of it as {{'key': value}}")
        target[last] = given
        return
    target[last] = _literal(text, default, key)


def _mapping(text: str) -> dict[str, Any] | None:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None
    return json.loads(json.dumps(value)) if isinstance(value, dict) and all(isinstance(k, str) for k in value) else None


def with_changes(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a resolved config with dotted keys ("data.fold") set to these values; the whole is checked again."""
    changed = json.loads(json.dumps(values))
    for key, value in changes.items():
        *parents, last = key.split(".")
        target = changed
        for name in parents:
            target = target[name]
        if last not in target:
            raise UserError(f"config.{key}: missing; the folds of a validation are told to the data by this key")
        target[last] = value
    phases(changed)
    return changed


def _literal(text: str, default: Any, key: str) -> Any:
    if isinstance(default, str):
        return text
    lowered = {"true": True, "yes": True, "false": False, "no": False, "none": None}
    if text.lower() in lowered:
        value = lowered[text.lower()]
    else:
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
    if isinstance(default, list) and isinstance(value, (int, float, str)):
        value = [value] if text else []
    if isinstance(value, tuple):
        value = list(value)
    fits = (
        default is None
        or isinstance(default, bool) == isinstance(value, bool)
        and isinstance(value, type(default))
        or isinstance(default, float)
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
    )
    if not fits:
        raise UserError(f"--config.{key}: expected {type(default).__name__}, got {text!r}")
    return value


def differences(a: Mapping[str, Any], b: Mapping[str, Any], where: str = "") -> list[str]:
    """Dotted names of the keys whose values differ."""
    names = []
    for key in sorted({*a, *b}):
        left, right = a.get(key), b.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            names += differences(left, right, f"{where}{key}.")
        elif left != right or (key in a) != (key in b):
            names.append(f"{where}{key}")
    return names
