"""Fleet metrics, several targets at once, as quantiles: Temporal Fusion Transformer (arXiv 1912.09363).

    python -m jaxtrain.main --config configs/tft.py --workdir runs/tft
    python -m jaxtrain.main --config configs/tft.py:bitbrains --config.data.path=FILE.parquet --workdir runs/bitbrains

Presets (`configs/tft.py:NAME`; `NAME+NAME` applies several, left to right):
    default        the embedded fleet, 48 servers x 28 days of 5-minute steps, 24 h -> 8 h, 181 k parameters
    demo           the same fleet as 15-minute means, 24 h -> 6 h, hidden 16, 600 steps: minutes on two CPU cores
    smoke          8 servers x 6 days, 20 steps: seconds
    seed           the earlier plan: 8 heads, small batches, mixed_bfloat16, rate falling on a plateau
    single         `seed` with cpu_percent as its only target, float32
    features       lags of a week, rolling statistics, an interaction and the peers' mean as further columns
    walk_forward   four folds of three days, one after the other (`data.fold` says which)
    new_hosts      servers of the test split were never seen in training
    bitbrains      154 virtual machines (GWA-T-12 Bitbrains), 5-minute steps
    bitbrains15    the same as 15-minute means, hidden 16, 3,000 steps
    bitbrains_cpu  the same, sized for two CPU cores
    electricity    hourly consumption of 369 customers, 168 h -> 24 h, hidden 128; a stand-in of that shape where data.path is unset
The presets `bitbrains*` name a file below `data/`; give your own with --config.data.path.

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
            raise UserError(f"configs/tft.py: unknown preset {name!r}{nearest(name, PRESETS)}")
        for key, value in PRESETS[name].items():
            _set(config, key, value)
    config.preset = preset or "default"
    return config


def _set(config: ConfigDict, key: str, value: Any) -> None:
    """One key "section.name"; a mapping (column -> value) is replaced as a whole, the columns it names are new."""
    if isinstance(value, dict):
        section, name = key.split(".")
        getattr(config, section)[name] = ConfigDict(value)
    else:
        config.update_from_flattened_dict({key: value})


def _default() -> ConfigDict:
    config = engine_defaults()
    config.update({
        "task": "tft",
        "data": {
            "path": "",  # unset: the embedded data of `synthetic`
            "format": "auto",  # auto | parquet | csv | json | jsonl | prepared
            "time": "timestamp",
            "time_unit": "s",  # s | ms, for integer epochs
            "groups": ("server",),  # columns whose joined values name a series; () = one series
            "file_step_seconds": 300,  # of the file; checked
            "step_seconds": 300,  # of the model: a multiple, then bins are averaged
            "snap_tolerance": 0.1,  # of a step
            "timezone": "UTC",  # of the calendar features
            "fill_steps": 12,  # how long a last value stands in for missing ones
            "targets": ("cpu_percent", "memory_percent", "disk_percent", "load_average"),
            "observed_real": ("upstream_cpu_percent",),  # known up to now
            "observed_categorical": ("status",),
            "known_real": ("maintenance",),  # known for the future as well
            "known_categorical": (),
            "static_real": ("cores",),
            "static_categorical": ("profile",),
            "calendar": ("hour_of_day", "day_of_week", "is_weekend"),
            "lags": (),  # (column, steps)
            "rolling": (),  # (column, width, mean | std | min | max, shift)
            "interactions": (),  # (column, column)
            "peers": (),  # (column, static column or "")
            "static_change": "error",  # error | train
            "group_as_static": True,
            "level_as_static": True,
            "present_as_observed": True,
            "relative_step_as_known": True,
            "transform": {"load_average": "log1p", "cores": "log1p"},
            "normalise": {},  # target -> global (default) | group | window
            "bounds": {"cpu_percent": (0, 100), "memory_percent": (0, 100), "disk_percent": (0, 100), "load_average": (0, None)},
            "clip": False,  # values outside `bounds` are clipped, else refused
            "cap": True,  # forecasts stay below the largest value seen
            "context_steps": 288,
            "horizon_steps": 96,
            "min_history_steps": 144,
            "split": "time",  # time | group | walk_forward | cross | leave_out
            "valid_fraction": 0.2,
            "test_fraction": 0.2,
            "gap_steps": placeholder(int),  # unset: horizon_steps
            "valid_blocks": 1,
            "block_steps": 864,  # stretches of valid and test that are scored on their own
            "folds": 5,
            "fold": 0,
            "fold_steps": 864,
            "train_steps": placeholder(int),  # walk_forward: unset = everything before
            "train_stride": 1,
            "eval_stride": 12,
            "max_train_windows": placeholder(int),
            "max_valid_windows": placeholder(int),
            "weight": "uniform",  # uniform | group
            "season_steps": (288, 2016),  # the naive forecasts "day" and "week"
            "alerts": {},  # target -> threshold whose exceedance is forecast
            "known_default": {},  # known column -> value for missing future rows
            "synthetic": {"kind": "fleet", "servers": 48, "days": 28, "seed": 42},  # kind: fleet | electricity
        },
        "model": {
            "hidden": 32,
            "heads": 4,
            "dropout": 0.1,
            "unknown_dropout": 0.05,  # chance that a static category is hidden in training
            "quantiles": (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98),
            "attention": "causal",  # causal | full
            "anchor": "none",  # none | last
            "lstm": "auto",
            "vsn": "collapsed",  # collapsed | plain
            "remat": "none",  # none | vsn
            "head": "independent",  # independent | monotone
        },
        "loss": {"units_weight": 0.1, "target_weights": (1.0, 1.0, 1.0, 1.0)},
        "score": {
            "steps": (1, 12, 48, 96),  # horizon steps with a column of their own
            "combine": (),  # targets whose forecasts are shifted towards the last value and the day before, as validation likes
            "reference_median": (),  # of these, those whose P50 is made of the last value and the day before alone
        },
        "train": {
            "batch": 256,
            "duration": "12ep",
            "accumulate": 1,
            "precision": "float32",
            "steps_per_call": 10,
            "placement": "device",
            "seed": 42,
            "patience": 5,
            "min_delta": 1e-4,
            "ema": 0.0,
        },
        "optimizer": {
            "name": "adam",
            "lr": 2e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "schedule": "cosine",
            "warmup": "0.6ep",
            "decay": "12ep",
            "min_lr": 2e-5,
            "clip": 1.0,
        },
        "eval": {"batch": 1024, "every": "1ep"},
        "checkpoint": {"keep_best": 3},
    })
    return config.lock()  # a preset cannot add a key


# What each preset changes, as "section.key".
SEED: dict[str, Any] = {
    "model.heads": 8, "model.dropout": 0.15, "loss.units_weight": 0.0,
    "train.batch": 128, "train.accumulate": 4, "train.duration": "20ep", "train.patience": 8, "train.precision": "mixed_bfloat16",
    "optimizer.lr": 0.01, "optimizer.clip": 0.1, "optimizer.schedule": "plateau", "optimizer.warmup": "0st",
    "optimizer.plateau_factor": 0.5, "optimizer.plateau_patience": 4, "optimizer.min_lr": 1e-5, "report.log_every": "50st",
}
DEMO: dict[str, Any] = {
    "data.step_seconds": 900, "data.context_steps": 96, "data.horizon_steps": 24, "data.fill_steps": 4, "data.season_steps": (96, 672),
    "data.eval_stride": 4, "data.block_steps": 288, "data.min_history_steps": 48, "score.steps": (1, 4, 12, 24),
    "model.hidden": 16, "model.dropout": 0.05, "train.batch": 64, "train.duration": "600st",
    "optimizer.lr": 5e-3, "optimizer.warmup": "30st", "optimizer.decay": "600st", "optimizer.min_lr": 5e-5, "eval.every": "300st",
}
BITBRAINS: dict[str, Any] = {
    "data.path": "data/bitbrains_2013_08.parquet", "data.timezone": "Europe/Amsterdam",
    "data.targets": ("cpu_percent", "memory_percent", "disk_kb_s", "network_kb_s"),
    "data.observed_real": (), "data.observed_categorical": (), "data.known_real": (),
    "data.static_real": ("cores", "memory_capacity_gb"), "data.static_categorical": (), "data.static_change": "train",
    "data.transform": {"disk_kb_s": "log1p", "network_kb_s": "log1p", "cores": "log1p", "memory_capacity_gb": "log1p"},
    "data.bounds": {"cpu_percent": (0, 100), "memory_percent": (0, 100), "disk_kb_s": (0, None), "network_kb_s": (0, None)},
    "data.valid_fraction": 0.1, "data.max_train_windows": 450_000, "model.anchor": "last",
    "train.batch": 512, "train.duration": "8ep", "optimizer.warmup": "0.4ep", "optimizer.decay": "8ep",
}
BITBRAINS15: dict[str, Any] = {
    **BITBRAINS,
    "data.step_seconds": 900, "data.context_steps": 96, "data.horizon_steps": 32, "data.fill_steps": 4, "data.season_steps": (96, 672),
    "data.eval_stride": 4, "data.block_steps": 288, "data.fold_steps": 288, "data.min_history_steps": 48, "score.steps": (1, 4, 16, 32),
    "model.hidden": 16, "train.batch": 64, "train.duration": "3000st",
    "optimizer.lr": 5e-3, "optimizer.warmup": "150st", "optimizer.decay": "3000st", "optimizer.min_lr": 5e-5, "eval.every": "1000st",
}
# Two cores, half an hour. Without the group as a variable: what a machine usually does misleads once it does something else.
# A day and a week before are known over the whole horizon. What a machine is, one that repeats itself or one that stays where it is,
# three stretches of the month decide (`score.combine`): the one before the test may be like none of its days.
BITBRAINS_CPU: dict[str, Any] = {
    **BITBRAINS15,
    "data.group_as_static": False,
    "data.lags": (("disk_kb_s", 96), ("network_kb_s", 96), ("disk_kb_s", 672), ("network_kb_s", 672)),
    "data.valid_fraction": 0.2, "data.valid_blocks": 3,
    "score.combine": BITBRAINS15["data.targets"], "score.reference_median": ("cpu_percent",),
    "train.duration": "6000st", "train.ema": 0.998, "eval.every": "2000st",
    "optimizer.lr": 3e-3, "optimizer.decay": "6000st", "optimizer.min_lr": 3e-5,
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "seed": SEED,
    "single": {
        **SEED,
        "data.targets": ("cpu_percent",),
        "data.observed_real": ("upstream_cpu_percent", "memory_percent", "disk_percent", "load_average"),
        "data.bounds": {"cpu_percent": (0, 100)}, "loss.target_weights": (1.0,),
        "train.batch": 32, "train.accumulate": 1, "train.precision": "float32", "optimizer.schedule": "constant",
    },
    "features": {
        "data.lags": tuple((name, 2016) for name in ("cpu_percent", "memory_percent", "disk_percent", "load_average")),
        "data.rolling": (("cpu_percent", 12, "mean", 0), ("cpu_percent", 12, "std", 0), ("cpu_percent", 288, "max", 96)),
        "data.interactions": (("cpu_percent", "memory_percent"),), "data.peers": (("cpu_percent", "profile"),),
    },
    "walk_forward": {"data.split": "walk_forward", "data.folds": 4},
    "new_hosts": {"data.split": "group", "data.group_as_static": False},
    "bitbrains": BITBRAINS,
    "bitbrains15": BITBRAINS15,
    "bitbrains_cpu": BITBRAINS_CPU,
    "electricity": {
        "data.groups": ("id",), "data.file_step_seconds": 3600, "data.step_seconds": 3600, "data.targets": ("power_usage",),
        "data.observed_real": (), "data.observed_categorical": (), "data.known_real": ("hour", "day_of_week", "hours_from_start"),
        "data.static_real": (), "data.static_categorical": (), "data.calendar": (), "data.level_as_static": False,
        "data.present_as_observed": False, "data.relative_step_as_known": False, "data.transform": {}, "data.bounds": {},
        "data.normalise": {"power_usage": "group"}, "data.context_steps": 168, "data.horizon_steps": 24, "data.season_steps": (24, 168),
        "data.block_steps": 168, "data.max_train_windows": 450_000, "data.max_valid_windows": 50_000,
        "data.synthetic.kind": "electricity", "data.synthetic.servers": 369, "data.synthetic.days": 365, "score.steps": (1, 6, 12, 24),
        "model.hidden": 128, "model.quantiles": (0.1, 0.5, 0.9), "loss.units_weight": 0.0, "loss.target_weights": (1.0,),
        "train.batch": 1024, "train.precision": "mixed_bfloat16", "optimizer.lr": 1e-3, "optimizer.min_lr": 1e-5, "optimizer.clip": 0.0,
    },
    "demo": DEMO,
    "smoke": {
        **DEMO,
        "data.synthetic.servers": 8, "data.synthetic.days": 6, "data.context_steps": 24, "data.horizon_steps": 8,
        "data.season_steps": (96, 192), "data.block_steps": 96, "data.min_history_steps": 12, "score.steps": (1, 4, 8),
        "model.hidden": 8, "model.heads": 2, "train.batch": 16, "train.duration": "20st",
        "optimizer.warmup": "2st", "optimizer.decay": "20st", "eval.every": "10st",
    },
}
