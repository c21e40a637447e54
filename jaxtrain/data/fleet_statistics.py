"""What the training rows teach: vocabularies, centres and scales, levels, caps and quantiles of every group.

Letters: G groups with a measured training cell, R targets, O observed and K known columns, S_r static columns, Q levels.
g is the transform of a column (identity or log1p): centres and scales are those of g(value), the rest is in file units.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxtrain.data.dataset import Statistics
from jaxtrain.data.fleet_config import DataConfig, Roles, roles
from jaxtrain.data.fleet_grid import Fleet
from jaxtrain.data.fleet_splits import Part
from jaxtrain.errors import UserError

SHRINK_STEPS = 96  # a new group's values are those of the whole fleet until it has about so many steps
SMALLEST_LEVEL_STD = 1e-3  # its logarithm is an input
MOST_CELLS = 10_000_000  # of a target, that the quantiles of the whole fleet are taken from
MAX_NAMED = 3  # names shown in a message


@dataclass(frozen=True)
class Moments:
    """Count, mean and variance of the finite cells; 0 where there is none."""

    count: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """Per column of values (n, F)."""
        finite = np.isfinite(values)
        count = finite.sum(axis=0)
        mean = np.where(finite, values, 0).sum(axis=0, dtype=np.float64) / np.maximum(count, 1)
        variance = (np.where(finite, values - mean, 0) ** 2).sum(axis=0) / np.maximum(count, 1)
        return cls(count, mean, variance)

    @classmethod
    def stack(cls, parts: Sequence["Moments"]) -> "Moments":
        return cls(*(np.stack([getattr(p, name) for p in parts]) for name in ("count", "mean", "variance")))

    def merged(self) -> "Moments":
        """(G, F) -> (F,): of all cells together."""
        count = self.count.sum(axis=0)
        mean = (self.count * self.mean).sum(axis=0) / np.maximum(count, 1)
        spread = self.variance + (self.mean - mean) ** 2
        return Moments(count, mean, (self.count * spread).sum(axis=0) / np.maximum(count, 1))

    @property
    def scale(self) -> np.ndarray:
        """Standard deviation with its floor."""
        return np.maximum(np.sqrt(self.variance), np.maximum(1e-6, 1e-3 * np.abs(self.mean)))


@dataclass(frozen=True)
class GroupFacts:
    """What one group's training rows say."""

    target: Moments
    column: Moments  # observed and known columns
    binary: np.ndarray  # (O+K,) bool: nothing but 0 and 1
    least: np.ndarray  # (R,) file units, inf where never measured
    cap: np.ndarray  # (R,) greatest value, -inf where never measured
    total_abs: np.ndarray  # (R,) sum of |y|
    quantiles: np.ndarray  # (R, Q) of the filled values, as the window forecast takes them; NaN where never measured
    sample: np.ndarray  # (n, R) filled values of the targets
    codes: tuple[np.ndarray, ...]  # per categorical column: (V+1,) bool, which codes occur


def training_statistics(
    fleet: Fleet, config: DataConfig, train: Part, quantiles: Sequence[float], where: str
) -> tuple[Statistics, list[str]]:
    """Everything that later steps use, from the rows of `train` alone, and notes on groups with nothing to learn.

    group_names (G,), vocabulary/COLUMN (n,) text; center, scale, cap (G, R), level (G, 2R) = mean and log deviation of the
    globally scaled targets, train_quantiles (G, R, Q); the same of the whole fleet: global_center, global_scale,
    global_cap, target_mean_abs = mean |y| (R,), global_quantiles (R, Q); observed_center, observed_scale (O,), known_* (K,),
    static_* (S_r,); start, step_seconds, log1p (R+O+K,), static_log1p (S_r,).
    Raises UserError for a target that is never measured, or constant, in all of the training rows.
    """
    names = roles(config)
    rows = sum(s.stop - s.start for g in range(len(fleet.groups)) for s in stretches(fleet, train, g))
    every = max(1, -(-rows // MOST_CELLS))
    facts = {g: _facts(fleet, train, g, names, quantiles, every) for g in range(len(fleet.groups))}
    facts = {g: found for g, found in facts.items() if found.target.count.any()}
    notes = _check_targets(facts, fleet, config, train, where)

    def of(name: str) -> np.ndarray:
        return np.stack([getattr(f, name) for f in facts.values()])

    of_group, column = Moments.stack([f.target for f in facts.values()]), Moments.stack([f.column for f in facts.values()]).merged()
    whole = of_group.merged()
    sample = np.concatenate([f.sample for f in facts.values()])
    global_cap, global_quantiles = of("cap").max(axis=0), _quantiles(sample, quantiles)
    groups = list(facts)
    result: Statistics = {
        "group_names": np.array([fleet.groups[g] for g in groups]),
        "global_center": whole.mean,
        "global_scale": whole.scale,
        "global_cap": global_cap,
        "global_quantiles": global_quantiles,
        "cap": np.where(np.isfinite(of("cap")), of("cap"), global_cap),
        "train_quantiles": np.where(np.isfinite(of("quantiles")), of("quantiles"), global_quantiles),
        "target_mean_abs": of("total_abs").sum(axis=0) / whole.count,
        "start": np.asarray(fleet.start, np.int64),
        "step_seconds": np.asarray(fleet.step_seconds, np.int32),
        "log1p": np.array(fleet.log1p),
        "static_log1p": np.array(fleet.static_log1p),
    }
    result |= group_values(of_group, result, config, shrink_steps=0)
    binary, observed = of("binary").all(axis=0), len(names.observed_real)
    center, scale = np.where(binary, 0, column.mean), np.where(binary, 1, column.scale)
    result |= {"observed_center": center[:observed], "observed_scale": scale[:observed]}
    result |= {"known_center": center[observed:], "known_scale": scale[observed:]}
    static, binary = Moments.of(transformed(fleet.static_real[groups], fleet.static_log1p)), _is_binary(fleet.static_real[groups])
    result |= {"static_center": np.where(binary, 0, static.mean), "static_scale": np.where(binary, 1, static.scale)}
    for i, name in enumerate(names.categorical):
        seen = np.any([f.codes[i] for f in facts.values()], axis=0)
        result[f"vocabulary/{name}"] = _texts(fleet, name, np.flatnonzero(seen))
    for i, name in enumerate(names.static_categorical):
        result[f"vocabulary/{name}"] = _texts(fleet, name, np.unique(fleet.static_cat[groups, i]))
    return {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in result.items()}, notes


def group_values(own: Moments, statistics: Statistics, config: DataConfig, shrink_steps: int) -> dict[str, np.ndarray]:
    """center, scale (G, R) and level (G, 2R) float32 of groups with these moments of g(target) (G, R).

    Shrunk to the values of the whole fleet with weight n / (n + shrink_steps), n measured cells. A target normalised by
    window gets the fleet's pair: only its window knows its own.
    """
    center, scale = statistics["global_center"], statistics["global_scale"]
    weight = own.count / np.maximum(own.count + shrink_steps, 1)
    per_group = np.array([config.normalise.get(name) == "group" for name in config.targets])
    std = np.maximum(np.sqrt(own.variance) / scale, SMALLEST_LEVEL_STD)
    level = np.concatenate([weight * (own.mean - center) / scale, weight * np.log(std)], axis=1)
    found = {
        "center": np.where(per_group, weight * own.mean + (1 - weight) * center, center),
        "scale": np.where(per_group, weight * own.scale + (1 - weight) * scale, scale),
        "level": level,
    }
    return {name: value.astype(np.float32) for name, value in found.items()}


def measured_targets(fleet: Fleet, rows: slice) -> np.ndarray:
    """(n, R) float32, file units: measured cells of some rows, NaN elsewhere."""
    seen = np.asarray(fleet.seen[rows]) > 0
    return np.where(seen, fleet.real[rows, : seen.shape[1]], np.float32(np.nan))


def transformed(values: np.ndarray, log1p: np.ndarray) -> np.ndarray:
    """g of the columns of values (n, F), float64."""
    result = np.asarray(values, np.float64).copy()
    result[:, log1p] = np.log1p(result[:, log1p])
    return result


def stretches(fleet: Fleet, part: Part, group: int) -> Iterator[slice]:
    """Rows of a group that lie in the steps of a part."""
    first, end, step0 = int(fleet.row0[group]), int(fleet.row0[group + 1]), int(fleet.step0[group])
    for start, stop in part.intervals:
        a, b = max(start - step0, 0), min(stop - step0, end - first)
        if part.groups[group] and b > a:
            yield slice(first + a, first + b)


def _facts(fleet: Fleet, train: Part, group: int, names: Roles, quantiles: Sequence[float], every: int) -> GroupFacts:
    targets, rows = len(names.targets), list(stretches(fleet, train, group)) or [slice(0, 0)]
    measured = np.concatenate([measured_targets(fleet, s) for s in rows])
    real = np.concatenate([np.asarray(fleet.real[s]) for s in rows])
    filled, others = real[:, :targets], real[:, targets:]
    finite = np.isfinite(measured)
    cat = np.concatenate([np.asarray(fleet.cat[s]) for s in rows])
    return GroupFacts(
        target=Moments.of(transformed(measured, fleet.log1p[:targets])),
        column=Moments.of(transformed(others, fleet.log1p[targets:])),
        binary=_is_binary(others),
        least=np.min(measured, axis=0, initial=np.inf, where=finite),
        cap=np.max(measured, axis=0, initial=-np.inf, where=finite),
        total_abs=np.where(finite, np.abs(measured), 0).sum(axis=0, dtype=np.float64),
        quantiles=_quantiles(filled, quantiles),
        sample=filled[::every],
        codes=tuple(np.bincount(cat[:, i], minlength=1 + len(fleet.vocabularies[name])) > 0 for i, name in enumerate(names.categorical)),
    )


def _is_binary(values: np.ndarray) -> np.ndarray:
    """Per column of values (n, F): nothing but 0, 1 and missing."""
    return ((values == 0) | (values == 1) | np.isnan(values)).all(axis=0)


def _quantiles(values: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """(R, Q) of the finite cells of values (n, R); NaN without any."""
    result = np.full((values.shape[1], len(levels)), np.nan)
    for r, column in enumerate(values.T):
        column = column[np.isfinite(column)]
        if len(column):
            result[r] = np.quantile(column, levels)
    return result


def _texts(fleet: Fleet, name: str, codes: np.ndarray) -> np.ndarray:
    """The categories of a column that have these codes; 0 is no category."""
    return np.array([fleet.vocabularies[name][c - 1] for c in codes if c > 0], dtype=np.str_)


def _check_targets(facts: dict[int, GroupFacts], fleet: Fleet, config: DataConfig, train: Part, where: str) -> list[str]:
    """A target without anything to learn is a fault in the whole fleet, and a note in some groups."""
    spans = ", ".join(f"{show(fleet, a)} to {show(fleet, b - 1)}" for a, b in train.intervals)
    notes = []
    for r, name in enumerate(config.targets):
        least, cap = (np.array([getattr(f, key)[r] for f in facts.values()]) for key in ("least", "cap"))
        if not np.isfinite(cap).any():
            raise UserError(f"{where}: target {name} is never measured in the training part ({spans}); check data.targets and the split")
        if least.min() == cap.max():
            raise UserError(f"{where}: target {name} is always {cap.max():g} in the training part ({spans}); drop it from data.targets")
        idle = [fleet.groups[g] for g, a, b in zip(facts, least, cap, strict=True) if b <= a]
        if idle:
            notes.append(f"{name} is constant or never measured in training for {len(idle)} of {len(facts)} groups: {some(idle)}")
    return notes


def show(fleet: Fleet, step: int) -> str:
    """A step of the common axis as a UTC time."""
    return str(np.datetime64(fleet.start + step * fleet.step_seconds, "s")).replace("T", " ") + " UTC"


def some(names: Sequence[str]) -> str:
    """Up to three names, and how many more."""
    return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else "")
