"""Cloud base height from airborne camera frames: a small CNN over five frames and the sun's angles, checked on held-out flights.

    python -m jaxtrain.main --config configs/cbh.py --workdir runs/cbh
    python -m jaxtrain.validate --config configs/cbh.py:demo+honest --folds leave_one_out --workdir runs/flights
    python -m jaxtrain.main --config configs/cbh.py:default+campaign --config.data.path=DATA --workdir runs/campaign

Presets (`configs/cbh.py:NAME`; `NAME+NAME` applies several, left to right):
    default    five embedded flights, pretrained on A, then all flights that are not held out; 145 k parameters
    original   the earlier network and its training: per-frame intensity, batch norm, plain FiLM, 50 + 50 epochs; 537 k parameters
    tuned      `original` with a lower rate, a true warm-up of 500 steps and an earlier stop
    demo       one phase, channels 16/32/64: minutes on two CPU cores
    smoke      3 frames of 16 x 24, four steps: seconds
Overlays, put behind a preset:
    small      channels 32/64/128, dense 128/64
    t4         windows of 4 frames
    mae        absolute error instead of Huber
    notemporal the mean of the frames instead of temporal attention
    decay08    weight decay 0.08
    lr3e-4     learning rate 0.0003
    honest     for leave_one_out: one phase of 30 epochs per held-out flight
    campaign   the six flights of autumn 2024 and February 2025 below `data/`

The sections below stand for `default`; expected metrics, hardware and time: docs/cbh.md.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from jaxtrain.engine.config import engine_defaults, nearest
from jaxtrain.errors import UserError


def get_config(preset: str = "default") -> ConfigDict:
    """The resolved configuration of a preset, or of several joined with "+" and applied left to right.

    Raises UserError for an unknown preset, naming the nearest.
    """
    config = _default()
    for name in (preset or "default").split("+"):
        if name not in PRESETS:
            raise UserError(f"configs/cbh.py: unknown preset {name!r}{nearest(name, PRESETS)}")
        changes = PRESETS[name]
        for key, value in (changes(config) if callable(changes) else changes).items():
            config.update_from_flattened_dict({key: value})
    config.preset = preset or "default"
    return config


def _phases(flight: str, length: str, carry: str) -> tuple[dict[str, Any], ...]:
    """The protocol: one flight between its own blocks, then all flights that are not held out, from its `carry` weights."""
    pretrain = {
        "name": "pretrain",
        "data": {"train_flights": [flight], "valid_rows": "blocked", "overweight_flight": "", "overweight_factor": 1.0},
        "train": {"duration": length},
        "optimizer": {"decay": length},
    }
    return pretrain, {"name": "final", "carry": carry}


def _default() -> ConfigDict:
    config = engine_defaults()
    config.update({
        "task": "cbh",
        "phases": _phases("A", "20ep", "last"),
        "data": {
            "path": "",  # folder of `flights`; unset: the embedded flights of `synthetic`
            "flights": (),  # {name, images, lidar, nav} or, prepared, {name, file}; optional year, nav_time, nav_heading
            "rows": (0, 0),  # image rows kept, from and to; (0, 0) = all
            "reduce": 1,  # block mean over so many pixels
            "temporal_frames": 5,  # of a window, the label belongs to its centre
            "base_km": (0.1, 2.0),  # lidar bases kept
            "match_s": 0.5,  # most between a lidar profile and its frame
            "nav_gap_s": 2.0,  # longer gaps of the navigation leave its angles unknown
            "angles": "both",  # both | sza_only | saa_only | none
            "train_flights": (),  # () = all that are not held out
            "valid_flight": "D",  # held out whole
            "test_flight": "C",  # held out whole
            "valid_rows": "both",  # both | blocked | flight: rows of the valid split
            "cycle_s": 1200.0,  # train, valid and test blocks repeat with this period
            "gap_s": 60.0,  # between blocks
            "calibration_labels": 30,  # first labels of the test flight, for the interval alone
            "overweight_flight": "A",
            "overweight_factor": 2.0,  # its rows are drawn so many times as often
            "boost": True,  # boosted trees among the references
            "max_gib": 8.0,  # frames above this stay memory-mapped; take train.placement=host for them
            "synthetic": {"seed": 0, "height": 32, "width": 48, "label_factor": 1.0, "extra_flights": 0},
        },
        "model": {
            "variant": "attention",  # attention | cnn | gru | ssm
            "channels": (32, 64, 128),  # of the three convolution blocks
            "dense": (128, 64),
            "film_hidden": 256,
            "intensity": "both",  # frame (each frame to mean 0, std 1) | both (a second channel in units of the training pixels)
            "norm": "group",  # group | batch
            "film": "identity",  # none | plain | identity: how the sun's angles modulate the first block
            "sun": "vector",  # scaled (two standardised degrees) | vector (direction of the sun)
            "pool": "nadir",  # mean | nadir (where the lidar looks)
            "position": True,  # the attention over frames knows their order
            "spatial_attention": False,  # pixel gate
            "temporal_attention": True,
            "dropout": (0.1, 0.2, 0.2),  # blocks, first and second dense layer
            "output_init": (0.01, 0.0),  # standard deviation, bias
            "frames": "together",  # together (folded into the batch) | each (one after the other, as remat needs)
            "remat": False,  # recompute the encoder in the backward pass: less memory, more time
        },
        "augment": {
            "kind": "own",  # own | seed (the earlier amplitudes, with erased boxes)
            "strength": 1.0,  # multiplies every amplitude and probability; 0 = off
        },
        "loss": {
            "kind": "huber",  # huber | mse_mae | mae | huber_mae | weighted_huber | weighted_huber_mae
            "alpha": 0.5,  # share of the first term of a mixed loss
            "delta": 1.0,  # Huber's corner, in standard deviations of the height
            "gamma": 1.5,  # exponent of the second term of huber_mae
            "under_weight": 1.0,  # of forecasts that are too low, weighted_huber alone
            "hard_fraction": 0.0,  # share of a batch that counts hard_weight times; 0 = no hard mining
            "hard_weight": 1.5,
            "decay_all": False,  # weight decay on biases and norms too
        },
        "train": {
            "batch": 20,
            "duration": "40ep",
            "select": "last",  # ten effective validation labels choose an epoch by luck
            "steps_per_call": 20,
            "placement": "device",
            "seed": 0,
        },
        "optimizer": {
            "name": "adamw",
            "lr": 2e-3,
            "weight_decay": 0.01,
            "schedule": "cosine",
            "warmup": "50st",  # optimizer steps
            "decay": "40ep",
            "clip": 1.0,
        },
        "eval": {"batch": 64, "every": "1ep"},
    })
    return config.lock()  # a preset cannot add a key


ORIGINAL: dict[str, Any] = {
    "phases": _phases("A", "50ep", "best"), "data.overweight_factor": 3.5,
    "model.channels": (64, 128, 256), "model.dense": (256, 128), "model.intensity": "frame", "model.norm": "batch", "model.film": "plain",
    "model.sun": "scaled", "model.pool": "mean", "model.position": False, "model.spatial_attention": True,
    "model.dropout": (0.25, 0.5, 0.3), "model.output_init": (0.5, 0.1), "model.frames": "each", "model.remat": True,
    "augment.kind": "seed", "loss.hard_fraction": 0.35, "loss.decay_all": True,
    "train.duration": "50ep", "train.select": "best", "train.patience": 15, "train.min_delta": 0.00025,
    "optimizer.lr": 1e-3, "optimizer.weight_decay": 0.04, "optimizer.schedule": "plateau", "optimizer.plateau_patience": 7,
    "optimizer.min_lr": 1e-6, "optimizer.warmup": "2000st", "optimizer.clip": 0.0,
}  # fmt: skip
CAMPAIGN = {  # flight -> campaign, date, sortie
    "10Feb25": ("GLOVE2025", "20250210", "259015"),
    "30Oct24": ("WHYMSIE2024", "20241030", "259006"),
    "04Nov24": ("WHYMSIE2024", "20241104", "259008"),
    "23Oct24": ("WHYMSIE2024", "20241023", "259004"),
    "18Feb25": ("GLOVE2025", "20250218", "259017"),
    "12Feb25": ("GLOVE2025", "20250212", "259016"),
}


def _campaign(config: Any) -> dict[str, Any]:
    """The campaign's flights; what names flight A of the embedded five names 30Oct24."""
    phases = tuple(dict(phase) for phase in config.phases)
    for phase in phases:
        if phase.get("data", {}).get("train_flights"):
            phase["data"] = {**phase["data"], "train_flights": ["30Oct24"]}
    return {
        "phases": phases, "data.path": "data", "data.rows": (40, 480), "data.valid_flight": "23Oct24", "data.test_flight": "12Feb25",
        "data.overweight_flight": "30Oct24" if config.data.overweight_flight else "",
        "data.flights": tuple(
            {
                "name": name, "images": f"{name}/{campaign}_IRAI_L1B_Rev-_{date}.h5",
                "lidar": f"{name}/CPL_L2_V1-02_01kmLay_{sortie}_{name.lower()}.hdf5", "nav": f"{name}/CRS_{date}_nav.hdf",
            }
            for name, (campaign, date, sortie) in CAMPAIGN.items()
        ),
    }  # fmt: skip


# What each preset changes, as "section.key".
PRESETS: dict[str, dict[str, Any] | Callable[[Any], dict[str, Any]]] = {
    "default": {},
    "original": ORIGINAL,
    "tuned": {
        **ORIGINAL, "data.overweight_factor": 2.0, "train.patience": 10, "train.min_delta": 0.0005,
        "optimizer.lr": 5e-4, "optimizer.plateau_patience": 5, "optimizer.warmup": "500st",
    },
    "demo": {
        "phases": (), "data.overweight_flight": "", "data.overweight_factor": 1.0, "model.channels": (16, 32, 64), "model.dense": (64, 32),
    },
    "smoke": {
        "phases": _phases("A", "2st", "last"), "data.temporal_frames": 3, "data.synthetic.height": 16, "data.synthetic.width": 24,
        "data.synthetic.label_factor": 0.3, "model.channels": (8, 8, 16), "model.dense": (16, 8), "model.norm": "batch",
        "model.frames": "each", "model.remat": True, "loss.kind": "weighted_huber_mae", "loss.under_weight": 1.2,
        "loss.hard_fraction": 0.35, "train.batch": 8, "train.accumulate": 2, "train.duration": "2st", "optimizer.lr": 1e-3,
        "optimizer.warmup": "1st", "optimizer.decay": "2st", "eval.every": "1st",
    },
    "small": {"model.channels": (32, 64, 128), "model.dense": (128, 64)},
    "t4": {"data.temporal_frames": 4},
    "mae": {"loss.kind": "mse_mae", "loss.alpha": 0.0},
    "notemporal": {"model.temporal_attention": False},
    "decay08": {"optimizer.weight_decay": 0.08},
    "lr3e-4": {"optimizer.lr": 3e-4},
    "honest": {"phases": (), "train.duration": "30ep", "optimizer.decay": "30ep"},
    "campaign": _campaign,
}  # fmt: skip
