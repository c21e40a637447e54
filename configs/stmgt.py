"""Traffic speed on a road graph: Spatial-Temporal Multi-Modal Graph Transformer with a Gaussian-mixture output.

    python -m jaxtrain.main --config configs/stmgt.py --workdir runs/stmgt
    python -m jaxtrain.main --config configs/stmgt.py:los --config.data.path=LOS.csv --config.data.graph_path=ADJ.csv --workdir runs/los

Presets (`configs/stmgt.py:NAME`; `NAME+NAME` applies several, left to right):
    default        the embedded road network with spill-back, 64 nodes x 28 days, 872 k parameters
    demo           the same data, 86 k parameters, 800 steps: minutes on two CPU cores
    smoke          16 nodes x 4 days, 20 steps: seconds
    normalized_v1  the earlier network on honest data (one-way messages, mean readout, no anchor, likelihood loss)
    seed64, seed128, v3   its smaller, wider and retuned variants
    strong         adaptive and slot embeddings, attention over all nodes, mixed_bfloat16, averaged weights
    metr_la        `strong` on METR-LA (HDF5 frame `df`) under the field's split, for published comparisons
    los            Los-loop: one week of METR-LA (CSV matrix without times), mph
    hcmc           sparse 30-minute snapshots of directed road edges (parquet), km/h
The last three name files below `data/`; give your own with --config.data.path and --config.data.graph_path.

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
            raise UserError(f"configs/stmgt.py: unknown preset {name!r}{nearest(name, PRESETS)}")
        for key, value in PRESETS[name].items():
            config.update_from_flattened_dict({key: value})
    config.preset = preset or "default"
    return config


def _default() -> ConfigDict:
    config = engine_defaults()
    config.update({
        "task": "stmgt",
        "data": {
            "path": "",  # unset: the embedded network of `synthetic`
            "layout": "auto",  # auto | edges | matrix | npz | h5
            "key": "",  # array or group inside .npz / .h5; unset: `data`, or the only group
            "feature": 0,  # channel of an (R, N, F) array
            "start": "",  # ISO time of the first row, for matrix files without times
            "step_minutes": 5.0,
            "in_steps": 12,
            "out_steps": 12,
            "grid": "regular",  # regular | runs (one snapshot = one step)
            "aggregate": "mean",  # mean | last | segment: what a node of `edges` data is
            "unit": "km/h",  # a label
            "graph_path": "",
            "graph_kind": "auto",  # auto | weights | distance
            "directed": False,
            "threshold": 0.1,  # smaller distance weights are dropped
            "max_neighbors": 32,
            "weather_path": "",
            "locations_path": "",
            "null_value": placeholder(float),  # unset: 0 in matrix layouts, none in `edges`
            "max_value": 200.0,  # catches wrong units
            "fill": "carry",  # carry | profile | zero
            "max_fill_minutes": 60.0,
            "split": "time",  # time | windows | walk_forward | blocked
            "fractions": (0.7, 0.1, 0.2),
            "folds": 5,  # of walk_forward and blocked; python -m jaxtrain.validate runs them all
            "fold": 0,
            "gap_steps": placeholder(int),  # unset: in_steps
            "scale": "global",  # global | node
            "timezone": "",  # what zone-aware stamps are converted to
            "synthetic": {"nodes": 64, "days": 28, "seed": 0},
        },
        "model": {
            "width": 96,
            "heads": 4,
            "blocks": 3,
            "components": 5,
            "ffn": 4,  # hidden width of the feed-forward network, times `width`
            "dropout": 0.1,
            "drop_edge": 0.1,
            "spatial": "gatv2",  # gatv2 | dot
            "reach": "neighbours",  # neighbours | all
            "relation_bias": True,
            "edge_bias": False,
            "inputs": ("speed", "observed", "deviation"),
            "hour": "fraction",  # fraction | integer
            "position": True,
            "slot_embedding": False,
            "adaptive_dim": 0,
            "adaptive_per_step": True,
            "readout": "horizon",  # horizon | mean
            "anchor": "damped",  # damped | last | none
            "sigma": "softplus",  # softplus | clip
            "output_space": "normalized",  # normalized | raw (imported weights only)
            "remat": False,
        },
        "loss": {"crps": 1.0, "nll": 0.0, "mse": 0.0, "spread": 0.0, "entropy": 0.0},
        "augment": {"mask_nodes": 0.0, "noise_std": 0.0},
        "score": {
            "horizons_minutes": (15.0, 30.0, 60.0),
            "congestion_fraction": 0.5,  # of the free-flow speed
            "quantiles": (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95),
        },
        "train": {
            "batch": 64,
            "duration": "100ep",
            "accumulate": 1,
            "precision": "float32",
            "steps_per_call": 20,
            "placement": "device",
            "seed": 0,
            "patience": 15,
            "ema": 0.0,
        },
        "optimizer": {
            "name": "adamw",
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 1e-4,
            "schedule": "cosine",
            "warmup": "500st",
            "decay": "100ep",
            "min_lr": 1e-5,
            "clip": 1.0,
        },
        "eval": {"batch": 64, "every": "1ep"},
    })
    return config.lock()  # a preset cannot add a key


# What each preset changes, as "section.key".
NORMALIZED_V1: dict[str, Any] = {
    "data.directed": True,
    "model.inputs": ("speed",), "model.hour": "integer", "model.position": False, "model.relation_bias": False,
    "model.readout": "mean", "model.anchor": "none", "model.sigma": "clip", "model.dropout": 0.2, "model.drop_edge": 0.28,
    "loss.crps": 0.0, "loss.nll": 1.0, "loss.mse": 0.4, "loss.spread": 0.01, "loss.entropy": 0.001,
    "train.duration": "200ep", "optimizer.warmup": "0st",
}
STRONG: dict[str, Any] = {
    "model.spatial": "dot", "model.reach": "all", "model.slot_embedding": True, "model.adaptive_dim": 32,
    "train.ema": 0.999, "train.precision": "mixed_bfloat16", "train.duration": "60ep",
    "optimizer.weight_decay": 1e-2, "optimizer.decay": "60ep",
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "normalized_v1": NORMALIZED_V1,
    "seed64": {**NORMALIZED_V1, "model.width": 64, "model.components": 3, "train.batch": 32},
    "seed128": {**NORMALIZED_V1, "model.width": 128},
    "v3": {
        **NORMALIZED_V1, "loss.mse": 0.35, "model.drop_edge": 0.32, "train.patience": 20,
        "optimizer.lr": 8e-4, "optimizer.weight_decay": 1.5e-4, "optimizer.min_lr": 1e-6,
    },
    "strong": STRONG,
    "metr_la": {
        **STRONG, "data.path": "data/metr-la.h5", "data.graph_path": "data/adj_mx.pkl",
        "data.key": "df", "data.unit": "mph", "data.split": "windows", "model.edge_bias": True, "train.patience": 20,
    },
    "los": {
        "data.path": "data/los_speed.csv", "data.graph_path": "data/los_adj.csv",
        "data.layout": "matrix", "data.start": "2012-03-01T00:00", "data.unit": "mph",
        "model.spatial": "dot", "model.reach": "all", "model.edge_bias": True, "model.width": 64, "model.blocks": 2,
        "model.components": 3, "model.adaptive_dim": 16, "model.adaptive_per_step": False, "model.dropout": 0.2,
        "train.batch": 32, "train.duration": "10ep", "train.patience": 6,
        "optimizer.weight_decay": 1e-2, "optimizer.warmup": "100st", "optimizer.decay": "10ep",
    },
    "hcmc": {
        "data.path": "data/hcmc_speed.parquet", "data.step_minutes": 30.0, "data.out_steps": 8, "data.gap_steps": 0,
        "data.max_fill_minutes": 120.0, "model.width": 32, "model.blocks": 2, "model.components": 3, "model.dropout": 0.3,
        "augment.mask_nodes": 0.1, "train.batch": 16, "train.duration": "60ep",
        "optimizer.warmup": "50st", "optimizer.decay": "60ep", "score.horizons_minutes": (30.0, 60.0, 120.0, 240.0),
    },
    "demo": {
        "model.width": 32, "model.blocks": 2, "model.components": 3, "model.spatial": "dot", "model.dropout": 0.0,
        "train.batch": 16, "train.duration": "800st", "optimizer.lr": 3e-3, "optimizer.warmup": "40st",
        "optimizer.decay": "800st", "optimizer.min_lr": 3e-5, "eval.every": "400st",
    },
    "smoke": {
        "data.synthetic.nodes": 16, "data.synthetic.days": 4, "data.in_steps": 6, "data.out_steps": 4,
        "model.width": 16, "model.heads": 2, "model.blocks": 1, "model.components": 2,
        "train.batch": 4, "train.duration": "20st", "optimizer.warmup": "2st", "optimizer.decay": "20st",
        "eval.every": "10st", "score.horizons_minutes": (10.0, 20.0),
    },
}
