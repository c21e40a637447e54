"""The peers of `scripts/peers`: other programs for the same job, asked to time the sizes of a config.

A peer runs in a process and an interpreter of its own and prints one JSON line per measurement:
program, mode (train | infer | input), batch, parameters, wall_s {median, min, max} and cpu_s per step, windows_per_s, and where it
says so peak_memory_bytes, the most that its process had held until then.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data.dataset import Statistics
from jaxtrain.errors import UserError

Values = Mapping[str, Any]  # a resolved config
Sizes = dict[str, Any]  # option -> value, or several


@dataclass(frozen=True)
class Peer:
    """script: in `scripts/peers`; sizes: (config, statistics, scratch folder) -> the script's options."""

    script: str
    sizes: Callable[[Values, Statistics, Path], Sizes]


def check(python: str, task: str, precisions: Sequence[str]) -> None:
    """Before anything is measured: raises UserError for an interpreter that is not there and for a task without a peer."""
    if task not in PEERS:
        raise UserError(f"--peers: there is none for {task} (there is for {', '.join(PEERS)}); leave --peers out")
    if shutil.which(python) is None:
        raise UserError(f"--peers {python}: no such program; name the interpreter that has the packages of scripts/peers")
    if "float32" not in precisions:
        raise UserError(f"--precisions {' '.join(precisions)}: peers compute in float32; add float32 to compare with them")


def run(python: str, values: Values, steps: int, more: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The measurements of the task's peer over `steps` steps; `more` options come last and win."""
    from jaxtrain.engine import config as configs
    from jaxtrain.engine.run import make_task

    peer = PEERS[values["task"]]
    statistics = make_task(values["task"], configs.phases(values)[0].task).splits().statistics
    with tempfile.TemporaryDirectory() as folder:
        options = peer.sizes(values, statistics, Path(folder)) | {"batch": values["train"]["batch"], "steps": steps}
        words = [str(Path(__file__).parent / "peers" / peer.script)]
        for name, value in options.items():
            words += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
        done = subprocess.run([python, *words, *more], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"--peers: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f'exit code {done.returncode}'}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _stmgt(values: Values, statistics: Statistics, folder: Path) -> Sizes:
    nodes, slots = np.nonzero(statistics["neighbor_mask"][:, 1:])
    edges = np.stack([statistics["neighbors"][nodes, slots + 1], nodes])
    np.savez(folder / "graph.npz", edge_index=edges, node_list=statistics["node_ids"])
    sizes = {name: values["model"][name] for name in ("width", "heads", "blocks", "components")}
    sizes |= {"in-steps": values["data"]["in_steps"], "out-steps": values["data"]["out_steps"]}
    return {"bench": (), "io": folder / "graph.npz", "nodes": len(statistics["neighbors"]), **sizes}


def _tft(values: Values, statistics: Statistics, folder: Path) -> Sizes:
    from jaxtrain.data.fleet_config import DataConfig, roles
    from jaxtrain.engine.config import section

    data, model = section(DataConfig, values["data"], "data"), values["model"]
    by_role, cores = roles(data), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "threads": sorted({1, cores}, reverse=True),
        "targets": len(by_role.targets),
        "observed-real": len(by_role.observed_real) + data.present_as_observed,
        "observed-categorical": len(by_role.observed_categorical),
        # Hour and weekday are categories there, which the library runs faster than numbers.
        "known-real": len(by_role.known_real) + sum(name not in HOUR_AND_WEEKDAY for name in by_role.calendar),
        "known-categorical": len(by_role.known_categorical) + sum(name in HOUR_AND_WEEKDAY for name in by_role.calendar),
        "relative": int(data.relative_step_as_known),
        "static-real": len(by_role.static_real),
        "static-categorical": len(by_role.static_categorical) + data.group_as_static,
        "groups": len(statistics["group_names"]),
        "step-seconds": data.step_seconds,
        "context": data.context_steps,
        "horizon": data.horizon_steps,
        "normalise": "group" if set(data.normalise.values()) == {"group"} else "global",
        "quantiles": model["quantiles"],
        "hidden": model["hidden"],
        "heads": model["heads"],
        "dropout": model["dropout"],
        "accumulate": values["train"]["accumulate"],
        "learning-rate": values["optimizer"]["lr"],
        "clip": values["optimizer"]["clip"],
    }


def _convlstm(values: Values, statistics: Statistics, folder: Path) -> Sizes:
    """The network of the preset `baseline` in these sizes, whatever the config's variant."""
    data, model = values["data"], values["model"]
    own = model["variant"] == "baseline"
    return {
        "lookback": data["lookback"],
        "horizon": data["horizon"],
        "stations": statistics["stations"].shape[1],
        "hidden": model["hidden"],
        "kernel": tuple(model["kernel"]) if own else (3, 3),
        "learning-rate": values["optimizer"]["lr"],
    }


def _abr(values: Values, statistics: Statistics, folder: Path) -> Sizes:
    """The function of ours: both S4 directions, all heads and cross-attention, whatever the config leaves out."""
    names = ("objective", "channels", "res_blocks", "s4_layers", "s4_state", "transformer_layers", "bottleneck_layers", "head_width")
    names += ("ffn_factor", "cond_width", "dropout", "film_dropout")
    sizes = {name.replace("_", "-"): values["model"][name] for name in names}
    return {"bench": (), **sizes, "accumulate": values["train"]["accumulate"]}


def _cbh(values: Values, statistics: Statistics, folder: Path) -> Sizes:
    """The attention network in these sizes, whatever the config's variant."""
    data, model = values["data"], values["model"]
    height, width = (int(size) for size in statistics["frame_shape"])
    names = ("channels", "dense", "dropout", "norm", "film", "pool", "frames")
    return {
        "bench": (),
        **{name: model[name] for name in names},
        "film-hidden": model["film_hidden"],
        "gate": int(model["spatial_attention"]),
        "temporal": int(model["temporal_attention"]),
        "position": int(model["position"]),
        "remat": int(model["remat"]),
        "temporal-frames": data["temporal_frames"],
        "height": height,
        "width": width,
        "inputs": 2 if model["intensity"] == "both" else 1,
        "sun": 3 if model["sun"] == "vector" else 2,
    }


HOUR_AND_WEEKDAY = ("hour_of_day", "day_of_week")
PEERS = {
    "stmgt": Peer("stmgt_torch.py", _stmgt),
    "tft": Peer("tft_forecasting.py", _tft),
    "convlstm": Peer("convlstm_keras.py", _convlstm),
    "cbh": Peer("cbh_torch.py", _cbh),
    "abr": Peer("abr_torch.py", _abr),
}
