"""Fleets of servers and other groups of series: windows over shared flat arrays, with statistics of the training rows.

Letters: B batch, k past steps, tau future steps, T = k + tau, R targets, O observed and K known real columns, G groups,
N rows of all groups, L steps of the common axis, Q quantile levels. Values are in the units of the file. An index row is (row of
the origin in the flat arrays, group, history, block): the origin is the first forecast step, history the number of the group's rows
before it, at most k, and block the number of the stretch of block_steps in valid or test (0 in train). A batch holds
past (B, k, R+O) float32, NaN = unknown; past_cat (B, k, C_o) int32, 0 = missing or never seen in training;
past_mask (B, k) bool, False left of a group's first row, where the other arrays mean nothing; present (B, k) float32,
measured share of the targets; known (B, T, K), known_cat (B, T, C_k), calendar (B, T, n_cal, 2); static_real (B, S_r),
static_cat (B, S_c); group (B,) int32, 0 = not in training; level (B, 2R); center, scale, cap (B, R);
target (B, tau, R) float32, 0 where unmeasured, and target_mask (B, tau, R) float32;
when (B, 4) int32: group (row of the (G, ..) arrays), step of the origin, history, block.
For evaluation also season (B, tau, R, len(season_steps)): the value so many steps before the target step, or the next multiple
where that is not past yet, NaN where nothing is known; and train_quantiles (B, R, Q). Keys without columns are absent.
"""

import functools
from collections.abc import Sequence

import numpy as np

from jaxtrain.data import fleet_embedded, fleet_files
from jaxtrain.data.dataset import Dataset, Splits
from jaxtrain.data.fleet_config import DataConfig, check_config
from jaxtrain.data.fleet_grid import Fleet
from jaxtrain.data.fleet_serving import inputs
from jaxtrain.data.fleet_splits import Part, group_weights, parts, subset, training_steps, windows
from jaxtrain.data.fleet_statistics import some, training_statistics
from jaxtrain.data.fleet_windows import bound_gather, gather, shared_arrays
from jaxtrain.errors import UserError

__all__ = ["DataConfig", "gather", "group_names", "inputs", "splits"]


def splits(config: DataConfig, quantiles: Sequence[float]) -> Splits:
    """Train, valid and test windows of `config.path`, or of the embedded fleet when it is unset.

    quantiles: levels of the training quantiles. Raises UserError for every fault of the input.
    """
    fleet = _read(config)
    where = _where(config)
    notes = [*fleet.notes, *_check_lengths(fleet, config, where)]
    cut = parts(config, fleet.steps, fleet.groups)
    index = {name: windows(fleet, part, config, _stride(config, name), blocks=name != "train") for name, part in cut.items()}
    _check_windows(index, cut, fleet, config, where)
    index["train"] = subset(index["train"], config.max_train_windows)
    index["valid"] = subset(index["valid"], config.max_valid_windows)
    statistics, more = training_statistics(fleet, config, cut["train"], quantiles, where)
    if config.split == "cross":
        more.append("split=cross trains on later data as well: for the choice of a model only")

    arrays = shared_arrays(fleet, config, statistics, np.concatenate([index["valid"], index["test"]]))
    weights = group_weights(index["train"]) if config.weight == "group" else None
    train = Dataset(arrays, index["train"], bound_gather(config, evaluation=False), weights)
    valid, test = (Dataset(arrays, index[name], bound_gather(config, evaluation=True)) for name in ("valid", "test"))
    return Splits(train, valid, test, statistics, notes=tuple(notes + more))


def group_names(config: DataConfig) -> tuple[str, ...]:
    """The groups of `config.path`, or of the embedded fleet when it is unset. Raises UserError for every fault of the input."""
    return _read(config).groups


def _read(config: DataConfig) -> Fleet:
    check_config(config)
    training = functools.partial(training_steps, config)
    return fleet_files.read(config, training=training) if config.path else fleet_embedded.fleet(config)


def _stride(config: DataConfig, split: str) -> int:
    return config.train_stride if split == "train" else config.eval_stride


def _where(config: DataConfig) -> str:
    return "embedded fleet" if not config.path else config.path if isinstance(config.path, str) else ", ".join(config.path)


def _check_lengths(fleet: Fleet, config: DataConfig, where: str) -> list[str]:
    """A note on groups too short for one window; a fault if all are."""
    needed, lengths = config.min_history_steps + config.horizon_steps, np.diff(fleet.row0)
    short = [name for name, length in zip(fleet.groups, lengths, strict=True) if length < needed]
    if len(short) == len(fleet.groups):
        raise UserError(f"{where}: the longest group has {lengths.max()} steps, a window needs {needed} (data.min_history_steps + "
                        "data.horizon_steps); lower them or give more rows")  # fmt: skip
    return [f"{len(short)} of {len(fleet.groups)} groups are shorter than a window of {needed} steps: {some(short)}"] if short else []


def _check_windows(index: dict[str, np.ndarray], cut: dict[str, Part], fleet: Fleet, config: DataConfig, where: str) -> None:
    empty = [name for name, rows in index.items() if not len(rows)]
    if empty:
        sizes = [f"{name} {sum(b - a for a, b in p.intervals)} steps of {p.groups.sum()} groups" for name, p in cut.items()]
        raise UserError(f"{where}: no window in {', '.join(empty)}; of {fleet.steps} steps {', '.join(sizes)}; gap {config.gap}, horizon "
                        f"{config.horizon_steps}; lower data.horizon_steps or data.gap_steps, or split otherwise")  # fmt: skip
