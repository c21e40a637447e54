"""Tide levels at three gauges: a toy sixth system that shows how little a system needs.

    python -m jaxtrain.main --config configs/tides.py --workdir runs/tides

Presets (`configs/tides.py:NAME`; `NAME+NAME` applies several, left to right):
    default     60 steps, seconds
    accumulate  the same batch in four micro-batches
    host        batches built on the host
    weighted    recent examples drawn more often
    long        200 steps with an evaluation and a checkpoint every 10
    two         two phases, the second slower; averaged weights
"""

from ml_collections import ConfigDict

from jaxtrain.engine.config import engine_defaults, nearest
from jaxtrain.errors import UserError

PRESETS = {
    "default": {},
    "accumulate": {"train.accumulate": 4},
    "host": {"train.placement": "host", "train.workers": "0"},
    "weighted": {"data.weights": "recent"},
    "long": {"train.duration": "200st", "eval.every": "10st", "optimizer.decay": "200st",
             "report.log_every": "10st", "checkpoint.keep_best": 2},
    "two": {"eval.every": "10st", "train.ema": 0.9, "phases": (
        {"name": "coarse", "train": {"duration": "100st"}, "optimizer": {"decay": "100st"}},
        {"name": "fine", "carry": "last", "train": {"duration": "80st"}, "optimizer": {"lr": 1e-3, "schedule": "constant"}},
    )},
}  # fmt: skip


def get_config(preset: str = "default") -> ConfigDict:
    """The resolved configuration; raises UserError for an unknown preset."""
    config = engine_defaults()
    config.update({
        "task": "tides",
        "data": {"path": "", "rows": 400, "noise": 0.1, "in_steps": 8, "out_steps": 4, "weights": "none", "seed": 0,
                 "split": "time", "folds": 2, "fold": 0},
        "model": {"width": 16, "dropout": 0.1, "norm": True},
        "groups": {"freeze": ""},
        "train": {"batch": 16, "duration": "60st", "steps_per_call": 5},
        "optimizer": {"lr": 1e-2, "warmup": "5st", "decay": "60st", "weight_decay": 1e-3},
        "eval": {"batch": 32, "every": "20st"},
        "report": {"log_every": "5st", "tensorboard": False, "figures": False},
    })
    config.lock()
    for name in preset.split("+"):
        if name not in PRESETS:
            raise UserError(f"configs/tides.py: unknown preset {name!r}{nearest(name, PRESETS)}")
        for key, value in PRESETS[name].items():
            config.update_from_flattened_dict({key: value})
    config.preset = preset
    return config
