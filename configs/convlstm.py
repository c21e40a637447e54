"""Train headways on a rail line: ConvLSTM after Usama and Koutsopoulos (arXiv 2510.03121), with Conv3D and attention variants.

    python -m jaxtrain.main --config configs/convlstm.py --workdir runs/convlstm
    python -m jaxtrain.main --config configs/convlstm.py:dart --config.data.path=ARRIVALS.parquet \
        --config.data.snapshots=SNAPSHOTS.parquet --workdir runs/dart

Presets (`configs/convlstm.py:NAME`; `NAME+NAME` applies several, left to right):
    default    the embedded line, 66 stations x 28 days, 30 minutes -> 15, encoder-decoder with a copying readout, 85 k parameters
    demo       16 stations x 14 days, hidden width 12: minutes on two CPU cores
    smoke      6 stations x 5 days, 16 steps: seconds
    baseline   the earlier network and its training: 3x3 kernels, batch norm, sigmoid, plateau; the reference run
    track1     `baseline` for a GPU: batch 256, mixed_bfloat16, cosine (out of memory: train.batch=128, train.accumulate=2)
    paper      the published network: two ReLU layers, state and plan flattened into one dense layer, 8.5 M parameters
    conv3d     convolutions over time and line in place of the recurrence
    attention  a token per station and direction in place of the recurrence
    quantile   80 % interval from quantiles 0.1, 0.5, 0.9 (pinball loss)
    gaussian   mean and standard deviation (likelihood loss)
    age        minutes since the last train instead of the gap between the last two
    rollout    forecasts fed back up to an hour ahead, scored by quarter hours; the other field is forecast too
    dart       Dublin's DART line: arrivals and snapshots, local time Europe/Dublin
    dart_cpu   the same with half the width and 1,200 steps, averaged weights: a quarter of an hour on two CPU cores
    speed      `track1` on 158,506 windows of 200 days, 3 epochs
The preset `dart` names files below `data/`; give your own with --config.data.path and --config.data.snapshots.

Expected metrics, hardware and time: measured, see README.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxtrain.engine.config import engine_defaults, nearest
from jaxtrain.errors import UserError


def get_config(preset: str = "default") -> ConfigDict:
    """The resolved configuration of a preset, or of several joined with "+" and applied left to right.

    Raises UserError for an unknown preset, naming the nearest.
    """
    config = _default()
    for name in (preset or "default").split("+"):
        if name not in PRESETS:
            raise UserError(f"configs/convlstm.py: unknown preset {name!r}{nearest(name, PRESETS)}")
        for key, value in PRESETS[name].items():
            config.update_from_flattened_dict({key: value})
    config.preset = preset or "default"
    return config


def _default() -> ConfigDict:
    config = engine_defaults()
    config.update({
        "task": "convlstm",
        "data": {
            "path": "",  # arrivals, or a prepared array (.npy); unset: the embedded line of `synthetic`
            "snapshots": "",  # times at which the feed was read
            "stations": "",  # stations in line order; unset: derived
            "timetable": "",  # unset: rebuilt from the training days
            "schedule": "",  # planned headway beside a prepared array
            "start": "",  # ISO time with zone of a prepared array's first row
            "columns": {},  # column -> its name in the files
            "events": (),  # values of the column `event` that count; () = all
            "routes": (),
            "sunday_dates": (),  # dates with Sunday service
            "timezone": "UTC",
            "service_day_start": "04:00",
            "step_minutes": 1,
            "lookback": 30,  # rows
            "horizon": 15,  # rows
            "target": "headway",  # headway (gap between the last two trains) | age (minutes since the last train)
            "inputs": ("headway", "age"),
            "clock": False,  # sine and cosine of the local day and week as further channels
            "terminal": "merged",  # planned departures: merged | per_origin
            "align": "travel",  # travel: index 0 is where trains come from | line: one station per index
            "cap_minutes": 30.0,
            "max_gap_minutes": 90.0,
            "max_age_minutes": 60.0,
            "stale_minutes": 3.0,
            "trunk_share": 0.9,
            "min_known": 0.5,
            "zero_run": 3,  # prepared arrays: so many zeros in a row are unknown
            "stride": 1,
            "split": "time",  # time | walk_forward | blocked, in whole service days
            "cuts": (0.70, 0.85),
            "folds": 5,  # of walk_forward and blocked; python -m jaxtrain.validate runs them all
            "fold": 0,
            "fraction": 1.0,  # newest share of the training windows
            "max_windows": placeholder(int),  # newest training windows
            "check_clock": True,
            "synthetic": {"stations": 66, "days": 28, "seed": 0},
        },
        "model": {
            "variant": "seq2seq",  # baseline | paper | seq2seq | conv3d | attention
            "hidden": 32,
            "kernel": (3, 1),  # stations, directions
            "activation": "tanh",  # tanh | relu
            "norm": "none",  # none | batch | layer
            "dropout": 0.0,  # whole channels per sequence
            "place": 8,  # width of the learned vector per station and direction
            "readout": "copy",  # copy | add | plain
            "upstream": 10,  # stations that a cell may copy from
            "head": "point",  # point | gaussian | quantile
            "levels": (0.1, 0.5, 0.9),
            "remat": "none",  # none | cell
            "unroll": 1,
            "width": 128,  # of attention
            "heads": 4,
            "blocks": 3,
            "attention_over": "cells",  # cells | minutes
        },
        "loss": {
            "kind": "mse",  # mse | mae | huber (head point), nll (gaussian), pinball (quantile)
            "masked": True,  # False counts unknown cells as 0, as earlier runs did
            "huber_minutes": 2.0,
            "auxiliary": 0.0,  # weight of forecasting the other input field, which a rollout must feed back
        },
        "score": {
            "minutes": (1, 5, 10, 15),  # minutes ahead with a column of their own
            "rollout_minutes": (),  # ends of the rows that a rollout is scored at, for example (15, 30, 45, 60)
        },
        "targets": {"rmse_s": 90.0, "loss": 0.01},  # lines that earlier runs were held against: shown, passed or not
        "train": {
            "batch": 64,
            "duration": "20ep",
            "accumulate": 1,
            "precision": "float32",
            "steps_per_call": 20,
            "placement": "device",
            "seed": 0,
            "patience": 6,
        },
        "optimizer": {
            "name": "adamw",
            "lr": 2e-3,
            "betas": (0.9, 0.95),
            "eps": 1e-8,
            "weight_decay": 1e-4,
            "schedule": "cosine",
            "warmup": "1ep",
            "decay": "20ep",
            "min_lr": 2e-5,
            "clip": 1.0,
        },
        "eval": {"batch": 256, "every": "1ep"},
        "checkpoint": {"keep_best": 2},
    })
    return config.lock()  # a preset cannot add a key


# What each preset changes, as "section.key".
BASELINE: dict[str, Any] = {
    "data.inputs": ("headway",), "data.align": "line", "data.cuts": (0.6, 0.8),
    "model.variant": "baseline", "model.kernel": (3, 3), "model.norm": "batch", "model.readout": "plain", "model.place": 0,
    "train.batch": 32, "train.duration": "100ep", "train.patience": 50,
    "optimizer.name": "adam", "optimizer.lr": 1e-3, "optimizer.betas": (0.9, 0.999), "optimizer.eps": 1e-7,
    "optimizer.weight_decay": 0.0, "optimizer.clip": 0.0, "optimizer.warmup": "0st", "optimizer.decay": "100ep", "optimizer.min_lr": 0.0,
    "optimizer.schedule": "plateau", "optimizer.plateau_factor": 0.5, "optimizer.plateau_patience": 3,
}  # fmt: skip
TRACK1: dict[str, Any] = {
    **BASELINE, "train.batch": 256, "train.duration": "30ep", "train.precision": "mixed_bfloat16",
    "optimizer.lr": 2e-3, "optimizer.schedule": "cosine", "optimizer.warmup": "2ep", "optimizer.decay": "30ep",
    "optimizer.min_lr": 2e-5, "optimizer.clip": 1.0,
}  # fmt: skip
DART: dict[str, Any] = {
    "data.path": "data/dart_arrivals.parquet", "data.snapshots": "data/dart_snapshots.parquet", "data.timezone": "Europe/Dublin",
    "train.duration": "30ep", "optimizer.warmup": "1.5ep", "optimizer.decay": "30ep",
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "baseline": BASELINE,
    "track1": TRACK1,
    "paper": {
        "data.inputs": ("headway",), "data.align": "line",
        "model.variant": "paper", "model.readout": "plain", "model.activation": "relu", "model.place": 0,
        "train.batch": 32, "train.duration": "100ep", "train.patience": 50,
        "optimizer.name": "adam", "optimizer.lr": 1e-3, "optimizer.weight_decay": 0.0, "optimizer.warmup": "1ep",
        "optimizer.decay": "100ep", "optimizer.min_lr": 1e-5,
    },
    "conv3d": {"model.variant": "conv3d", "train.batch": 128},
    "attention": {
        "model.variant": "attention", "model.dropout": 0.1, "train.batch": 128, "optimizer.lr": 5e-4, "optimizer.min_lr": 5e-6,
    },
    "quantile": {"model.head": "quantile", "loss.kind": "pinball"},
    "gaussian": {"model.head": "gaussian", "loss.kind": "nll"},
    "age": {"data.target": "age"},
    "rollout": {"loss.auxiliary": 0.3, "score.rollout_minutes": (15, 30, 45, 60)},
    "dart": DART,
    "dart_cpu": {
        **DART, "model.hidden": 16, "train.batch": 32, "train.duration": "1200st", "train.ema": 0.99, "eval.every": "400st",
        "optimizer.lr": 4e-3, "optimizer.min_lr": 4e-5, "optimizer.warmup": "60st", "optimizer.decay": "1200st",
    },
    "speed": {
        **TRACK1, "data.synthetic.days": 200, "data.cuts": (0.70, 0.85), "data.max_windows": 158_506,
        "train.duration": "3ep", "optimizer.warmup": "0.2ep", "optimizer.decay": "3ep",
    },
    "smoke": {
        "data.synthetic.stations": 6, "data.synthetic.days": 5, "data.cuts": (0.6, 0.8), "data.lookback": 10, "data.horizon": 5,
        "data.max_windows": 128, "model.hidden": 4, "model.upstream": 3, "model.width": 8, "model.heads": 2, "model.blocks": 1,
        "score.minutes": (1, 5), "train.batch": 16, "train.duration": "2ep", "optimizer.warmup": "1st", "optimizer.decay": "2ep",
    },
    "demo": {
        "data.synthetic.stations": 16, "data.synthetic.days": 14, "data.stride": 3, "model.hidden": 12, "train.batch": 32,
        "train.duration": "6ep", "optimizer.lr": 4e-3, "optimizer.min_lr": 4e-5, "optimizer.warmup": "0.3ep", "optimizer.decay": "6ep",
    },
}  # fmt: skip
