"""Auditory brainstem responses: S4 and transformer U-Net that denoises a record, reads wave V, class and threshold, or draws waveforms.

    python -m jaxtrain.main --config configs/abr.py --workdir runs/abr
    python -m jaxtrain.main --config configs/abr.py:lean --config.data.path=ARCHIVE.parquet --workdir runs/clinic

Presets (`configs/abr.py:NAME`; `NAME+NAME` applies several, left to right):
    default     a synthetic clinic of 800 patients, 38 M parameters, 100 epochs of batch 32
    fast        the same network in 50 epochs of 128 (two micro-batches), Huber loss, restarts of growing length
    ultra_fast  25 epochs of 512 (four micro-batches)
    benchmark   one epoch of `fast` on 2,038 patients, for timing
    full        the network of `default` on 2,038 patients, the size of a clinical archive
    lean        7.3 M parameters of the same depth and features, averaged weights
    generate    waveforms for an age, level, rate, recording quality and class, by diffusion
    cpu         254 k parameters, the default clinic, 8 epochs, for a machine without a GPU
    demo        the same network, 400 patients, 2 epochs: minutes on two CPU cores
    smoke       39 k parameters, 60 patients, 1 epoch: half a minute with compilation
    human       trains and scores on halves of averages (data.target=other_half), for files without a clean waveform
`generate+demo` and `generate+smoke` are small runs of `generate`. Out of memory: train.accumulate=4, then model.remat=levels.

Expected metrics, hardware and time: measured, see README.
"""

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
            raise UserError(f"configs/abr.py: unknown preset {name!r}{nearest(name, PRESETS)}")
        for key, value in PRESETS[name].items():
            config.update_from_flattened_dict({key: value})
    config.preset = preset or "default"
    return config


def _default() -> ConfigDict:
    config = engine_defaults()
    config.update({
        "task": "abr",
        "data": {
            "path": "",  # records (.parquet, .h5); unset: the synthetic clinic of `patients` and `seed`
            "patients": 800,
            "seed": 42,
            "target": "clean",  # clean | other_half | corrupt: what a record is to be turned into
            "corrupt_sd": (0.3, 1.0),  # noise added under `corrupt`, SDs of the record
            "late_peak": "mask",  # mask | keep: a wave V later than 9.75 ms
            "threshold": "column",  # column | derive | none
            "test_fraction": 0.15,  # of the patients of each class
            "valid_fraction": 0.20,
            "split_seed": 42,
            "groups": {},  # {"test": (patient ids), "valid": (patient ids)}
            "class_names": ("NORMAL", "NOROPATI", "SNIK", "TOTAL", "ITIK"),
            "balanced_sampler": False,
            "augment": False,
            "shift_samples": 3,
            "gain": (0.95, 1.05),
            "noise_sd": 0.02,  # SDs of the record
            "statics_sd": 0.05,  # training SDs
            "hide_statics": 0.1,  # each of the four values is marked missing this often in training
        },
        "model": {
            "objective": "predict",  # predict | generate
            "channels": (64, 128, 256, 512),  # full; base is (64, 96, 128, 192)
            "res_blocks": 2,
            "s4_layers": 2,
            "s4_state": 64,
            "s4_init": "lin",  # lin | legs
            "s4_bidirectional": True,
            "s4_conv": "toeplitz",  # toeplitz | fft
            "dt_range": (1e-3, 1e-1),
            "transformer_layers": 3,
            "bottleneck_layers": 2,
            "cross_attention": True,
            "head_width": 32,
            "ffn_factor": 4,
            "cond_width": 128,
            "dropout": 0.1,
            "film_dropout": 0.15,
            "heads": ("signal", "peak", "class", "threshold"),
            "attention": "auto",  # auto | xla | cudnn
            "remat": "none",  # none | levels
        },
        "loss": {
            "kind": "mse",  # mse | huber | l1
            "signal": 1.0,
            "existence": 0.5,
            "latency": 1.0,
            "amplitude": 1.0,
            "classes": 1.5,
            "threshold": 0.8,
            "uncertainty": 0.1,
            "class_weights": "sqrt",  # none | sqrt | balanced | focal
            "label_smoothing": 0.0,
            "curriculum": False,  # class, peak and threshold enter at `starts` epochs, over `ramp` epochs
            "starts": (3.0, 5.0, 10.0),
            "ramp": 5.0,
        },
        "rates": {"s4": 1.0},  # optimizer.lr times this for step sizes and eigenvalues of the S4 layers: 1e-3 at most
        "sampling": {"guidance": 2.0, "steps": 50, "records": 256, "seed": 0},  # of `generate`
        "score": {"bootstraps": 500},  # of patients, for 95 % intervals
        "train": {
            "batch": 32,
            "accumulate": 1,
            "duration": "100ep",
            "precision": "mixed_bfloat16",
            "steps_per_call": 20,
            "placement": "device",
            "workers": "4",
            "seed": 42,
            "patience": 15,
        },
        "optimizer": {
            "name": "adamw",
            "lr": 1e-4,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.01,
            "schedule": "warm_restarts",
            "restart_period": "10ep",
            "restart_mult": 2.0,
            "warmup": "0st",
            "decay": "100ep",
            "min_lr": 1e-6,
            "clip": 1.0,
        },
        "eval": {"batch": 128, "every": "1ep"},
        "checkpoint": {"keep_best": 1, "every": "10ep"},
    })
    return config.lock()  # a preset cannot add a key


# What each preset changes, as "section.key".
HUBER: dict[str, Any] = {
    "loss.kind": "huber", "loss.existence": 0.3, "loss.latency": 0.8, "loss.amplitude": 0.8, "loss.classes": 2.0, "loss.threshold": 0.6,
    "loss.label_smoothing": 0.05, "loss.starts": (1.0, 2.0, 4.0), "loss.ramp": 3.0,
}  # fmt: skip
FAST: dict[str, Any] = {
    **HUBER, "data.valid_fraction": 0.15, "train.batch": 128, "train.accumulate": 2, "train.duration": "50ep", "train.workers": "8",
    "optimizer.lr": 2e-4, "optimizer.betas": (0.9, 0.95), "optimizer.restart_period": "5ep", "optimizer.restart_mult": 1.5,
    "optimizer.warmup": "2ep", "eval.every": "2ep", "train.patience": 4, "checkpoint.every": "5ep",
}  # fmt: skip
BASE: dict[str, Any] = {"model.channels": (64, 96, 128, 192)}
SMALL: dict[str, Any] = {
    "model.res_blocks": 1, "model.s4_layers": 1, "model.transformer_layers": 1, "model.bottleneck_layers": 1, "model.head_width": 8,
    "model.ffn_factor": 2, "data.valid_fraction": 0.15, "train.precision": "float32", "train.workers": "0", "train.patience": 0,
    "eval.every": "1ep", "checkpoint.every": "0st",
}  # fmt: skip
TINY: dict[str, Any] = {
    **HUBER, **SMALL, "data.patients": 400, "model.channels": (16, 24, 32, 48), "model.s4_state": 16, "model.cond_width": 32,
    "model.dropout": 0.0, "loss.existence": 1.0, "loss.latency": 1.0, "loss.classes": 1.5, "train.batch": 16, "train.duration": "2ep",
    "train.select": "last", "train.ema": 0.99, "optimizer.lr": 2.5e-3, "optimizer.betas": (0.9, 0.98), "optimizer.schedule": "cosine",
    "optimizer.warmup": "40st", "optimizer.decay": "2ep", "rates.s4": 0.4, "sampling.records": 64,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": FAST,
    "ultra_fast": {
        **FAST, "data.valid_fraction": 0.10, "train.batch": 512, "train.accumulate": 4, "train.duration": "25ep", "train.workers": "12",
        "eval.every": "3ep", "train.patience": 2,
    },
    "benchmark": {
        **FAST, "data.patients": 2038, "train.duration": "1ep", "eval.every": "1ep", "train.patience": 8,
        "checkpoint.every": "1ep",
    },
    "full": {"data.patients": 2038},
    "lean": {
        **BASE, **HUBER, "data.valid_fraction": 0.15, "train.batch": 64, "train.duration": "40ep", "train.ema": 0.999, "train.patience": 4,
        "optimizer.lr": 5e-4, "optimizer.betas": (0.9, 0.98), "optimizer.schedule": "cosine", "optimizer.warmup": "2ep",
        "optimizer.decay": "40ep", "eval.every": "2ep",
    },
    "generate": {
        **BASE, "model.objective": "generate", "data.valid_fraction": 0.15, "train.batch": 64, "train.ema": 0.999, "train.patience": 4,
        "optimizer.lr": 2e-4, "optimizer.betas": (0.9, 0.99), "optimizer.schedule": "cosine", "optimizer.warmup": "1000st",
        "eval.every": "5ep",
    },
    "cpu": {
        **TINY, "data.patients": 800, "train.duration": "8ep", "train.ema": 0.999, "optimizer.warmup": "100st", "optimizer.decay": "8ep",
        "eval.every": "2ep", "sampling.records": 256,
    },
    "demo": TINY,
    "smoke": {
        **HUBER, **SMALL, "data.patients": 60, "model.channels": (8, 16), "model.s4_state": 8, "model.cond_width": 16,
        "train.batch": 16, "train.accumulate": 2, "train.duration": "1ep", "optimizer.lr": 1e-3, "optimizer.betas": (0.9, 0.95),
        "optimizer.schedule": "warm_restarts", "optimizer.restart_period": "1ep", "optimizer.restart_mult": 1.5,
        "optimizer.warmup": "2st", "sampling.records": 16, "sampling.steps": 10,
    },
    "human": {"data.target": "other_half"},
}  # fmt: skip
