"""Traffic speeds on a road graph: windows over one shared series, split in time, with statistics of the training rows.

Letters: B batch, T input steps, P output steps, N nodes, R rows, S slots per day. A batch holds
speed (B, T, N) float32 filled causally, observed (B, T, N) bool, slot and dow (B, T+P) int32 (Monday 0),
weather (B, T, 3) float32 degC, km/h, mm/h where there is any, target (B, P, N) float32 (0 where unobserved) and
target_mask (B, P, N) float32. Speeds are in the unit of the input.
"""

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from jaxtrain.data.dataset import Arrays, Batch, Dataset, Splits, Statistics
from jaxtrain.data.traffic_config import DataConfig, SyntheticConfig, check_config
from jaxtrain.data.traffic_files import read_series
from jaxtrain.data.traffic_graph import edge_weights, neighbor_lists
from jaxtrain.data.traffic_graph_files import read_graph
from jaxtrain.data.traffic_series import Series
from jaxtrain.data.traffic_statistics import calendar, fill_causally, hold, training_statistics, weather_statistics
from jaxtrain.data.traffic_synthetic import oracle, positions, world
from jaxtrain.errors import UserError

__all__ = ["DataConfig", "SyntheticConfig", "gather", "oracle", "splits"]
MAX_NAMED = 3  # ids shown in a message


def splits(config: DataConfig, congestion_fraction: float) -> Splits:
    """Train, valid and test windows of `config.path`, or of the embedded network when it is unset.

    congestion_fraction: of the free-flow speed, below which a reading counts as jammed (`congestion_frequency`).
    Raises UserError for every fault of the input.
    """
    check_config(config)
    series = _embedded(config) if not config.path else _with_graph(read_series(config, config.path, config.weather_path), config)
    where = config.path or "embedded network"
    train_rows, index = _split_rows(config, len(series.time), where)
    _check_observed(series, train_rows, index, config, where)

    statistics = training_statistics(series.speed[:train_rows], series.time[:train_rows], config, congestion_fraction)
    statistics["node_ids"] = series.ids
    notes = []
    if series.weather is not None:
        statistics |= weather_statistics(series.weather[:train_rows])
    if series.pairs is not None:
        statistics["node_pairs"] = series.pairs
    if series.positions is not None:
        statistics["positions"] = series.positions
    weights = series.weights
    if weights is None:
        weights = np.zeros((len(series.ids), len(series.ids)), np.float32)
        notes.append("no graph: nodes exchange no messages; set data.graph_path")
    lists, dropped = neighbor_lists(weights, config.directed, config.max_neighbors)
    statistics |= lists
    if dropped:
        notes.append(f"{dropped} neighbours beyond data.max_neighbors={config.max_neighbors} dropped (smallest weights)")
    unseen = series.ids[~statistics["trained"]]
    if len(unseen):
        notes.append(f"{len(unseen)} of {len(series.ids)} nodes are unobserved in training: {_some(unseen)}")
    if config.split == "windows":
        notes.append('split="windows": neighbouring splits share target rows; for comparison with published figures only')

    arrays = _arrays(series, config, statistics)
    bound = functools.partial(gather, in_steps=config.in_steps, out_steps=config.out_steps)
    train, valid, test = (Dataset(arrays, rows, bound) for rows in index)
    return Splits(train, valid, test, statistics, notes=tuple(notes))


def gather(arrays: Arrays, rows: Any, *, in_steps: int, out_steps: int) -> Batch:
    """The windows that start at rows (B, 1): see the module's docstring. Works on NumPy and on jax arrays alike."""
    steps = rows + np.arange(in_steps + out_steps, dtype=np.int32)
    past, future = steps[:, :in_steps], steps[:, in_steps:]
    observed = arrays["observed"][future]
    batch = {
        "speed": arrays["speed"][past],
        "observed": arrays["observed"][past],
        "slot": arrays["slot"][steps],
        "dow": arrays["dow"][steps],
        "target": arrays["speed"][future] * observed,
        "target_mask": observed.astype(np.float32),
    }
    if "weather" in arrays:
        batch["weather"] = arrays["weather"][past]
    return batch


def _with_graph(series: Series, config: DataConfig) -> Series:
    if not config.graph_path:
        return series
    return replace(series, weights=read_graph(config, series.ids, series.named))


def _embedded(config: DataConfig) -> Series:
    drawn = world(config.synthetic, config.step_minutes)
    nodes = config.synthetic.nodes
    ids = np.array([f"n{i:0{len(str(nodes - 1))}d}" for i in range(nodes)])
    weights = edge_weights(drawn.network.edges, nodes)
    return Series(drawn.time, drawn.speed, ids, True, weights, drawn.weather, positions(nodes))


def _arrays(series: Series, config: DataConfig, statistics: Statistics) -> dict[str, np.ndarray]:
    """The shared arrays: speed (R, N) filled, observed (R, N), slot, dow (R,), time (R,), weather (R, 3)."""
    slot, dow = calendar(series.time, config.step_seconds)
    arrays = {
        "speed": fill_causally(series.speed, series.time, config, statistics),
        "observed": np.isfinite(series.speed),
        "slot": slot,
        "dow": dow,
        "time": series.time,
    }
    if series.weather is not None:
        arrays["weather"] = hold(series.weather, statistics["weather_mean"])
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _split_rows(config: DataConfig, rows: int, where: str) -> tuple[int, list[np.ndarray]]:
    """(training rows, index (n, 1) of train, valid and test)."""
    if config.split == "windows":
        total = rows - config.window + 1
        train, test = round(config.fractions[0] * total), round(config.fractions[2] * total)
        cuts = [0, train, total - test, total]
        starts = [np.arange(a, b, dtype=np.int32) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        needed, present = [config.window] * 3, [rows] * 3
        train_rows = train + config.window - 1
    else:
        # The small term keeps 0.7 + 0.1 = 0.7999999... of 160 rows from becoming 127.
        shares = np.cumsum([0, *config.fractions])
        cuts = [int(share * rows + 1e-6) for share in shares[:-1]] + [rows]
        starts = [_windows_between(a, b, config) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        needed = [config.window] + [config.gap + config.out_steps] * 2
        present = [b - a for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        train_rows = cuts[1]
    names = ("train", "valid", "test")
    short = [f"{n} needs {a} rows, has {b}" for n, s, a, b in zip(names, starts, needed, present, strict=True) if not len(s)]
    if short:
        raise UserError(f"{where}: {rows} rows are too few: {', '.join(short)}; "
                        "lower data.in_steps, data.out_steps or data.gap_steps, or change data.fractions")  # fmt: skip
    return train_rows, [s[:, None] for s in starts]


def _windows_between(first: int, end: int, config: DataConfig) -> np.ndarray:
    """First input rows of the windows whose targets lie in rows [first, end), `gap` rows after a cut."""
    targets = first + config.gap if first else config.in_steps
    return np.arange(max(targets - config.in_steps, 0), end - config.window + 1, dtype=np.int32)


def _check_observed(series: Series, train_rows: int, index: list[np.ndarray], config: DataConfig, where: str) -> None:
    """Nothing to learn from, or nothing to score, is a fault of the input."""
    observed = np.isfinite(series.speed)
    train = series.speed[:train_rows][observed[:train_rows]]
    if not len(train) or np.ptp(train) == 0:
        values = "no reading" if not len(train) else f"{len(train)} readings, all {train[0]:g}"
        raise UserError(f"{where}: training rows 0-{train_rows - 1} hold {values}; check data.null_value, data.start and data.fractions")
    unseen = ~observed[:train_rows].any(axis=0)
    if np.mean(unseen) > 0.5:
        raise UserError(f"{where}: {unseen.sum()} of {len(unseen)} nodes are unobserved in the {train_rows} training rows "
                        f"({_some(series.ids[unseen])}); check data.null_value")  # fmt: skip
    for name, rows in zip(("train", "valid", "test"), index, strict=True):
        first, last = int(rows[0, 0]) + config.in_steps, int(rows[-1, 0]) + config.window
        if not observed[first:last].any():
            raise UserError(f"{where}: no reading among the targets of {name} (rows {first}-{last - 1}); change data.fractions")


def _some(ids: Any) -> str:
    """Up to three ids, and how many more."""
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return ", ".join(str(i) for i in list(ids)[:MAX_NAMED]) + more
