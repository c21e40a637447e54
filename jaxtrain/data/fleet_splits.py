"""Which steps and groups belong to train, valid and test, and the windows whose targets lie there.

L steps of the common axis, G groups, k past steps, tau horizon steps. A target step belongs to one split only, with
`gap_steps` between two; inputs may reach back over a cut, because that history is known when the forecast is made.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxtrain.data.fleet_config import DataConfig
from jaxtrain.data.fleet_grid import Fleet

Intervals = tuple[tuple[int, int], ...]  # [first, end) steps, ascending


@dataclass(frozen=True)
class Part:
    """One split: target steps, and (G,) bool groups."""

    intervals: Intervals
    groups: np.ndarray


def parts(config: DataConfig, steps: int, groups: Sequence[str]) -> dict[str, Part]:
    """train, valid and test of an axis of `steps` steps, as `config.split` says."""
    everyone = np.ones(len(groups), bool)
    if config.split == "walk_forward":
        cuts = _walk_forward(config, steps)
    elif config.split == "cross":
        cuts = _cross(config, steps)
    else:
        cuts = _by_time(config, steps)
    members = dict.fromkeys(cuts, everyone)
    if config.split == "group":
        count = len(groups)
        test, valid = round(config.test_fraction * count), round(config.valid_fraction * count)
        members = _shares(groups, np.repeat([0, 1, 2], [count - valid - test, valid, test]))
    elif config.split == "leave_out":
        share = np.arange(len(groups)) * config.folds // len(groups)
        away = (share - config.fold) % config.folds  # 0 = test, 1 = the next share
        members = _shares(groups, np.select([away == 0, away == 1], [2, 1], 0))
    return {name: Part(tuple((a, b) for a, b in cuts[name] if b > a), members[name]) for name in cuts}


def training_steps(config: DataConfig, steps: int, groups: Sequence[str]) -> np.ndarray:
    """(steps,) bool: the target steps of train."""
    chosen = np.zeros(steps, bool)
    for first, end in parts(config, steps, groups)["train"].intervals:
        chosen[first:end] = True
    return chosen


def _shares(groups: Sequence[str], share: np.ndarray) -> dict[str, np.ndarray]:
    """share (G,): 0 train, 1 valid, 2 test for the groups in the order of the sha256 of their names."""
    order = sorted(range(len(groups)), key=lambda g: hashlib.sha256(groups[g].encode()).hexdigest())
    of_group = np.empty(len(groups), int)
    of_group[order] = share
    return {name: of_group == i for i, name in enumerate(("train", "valid", "test"))}


def _by_time(config: DataConfig, steps: int) -> dict[str, Intervals]:
    """Train, valid, test one after the other; or validation blocks at the ends of equal stretches before the test."""
    first = round((1 - config.valid_fraction - config.test_fraction) * steps)
    second = round((1 - config.test_fraction) * steps)
    blocks = config.valid_blocks
    length = (second - first) // blocks
    ends = [round((i + 1) * second / blocks) for i in range(blocks)]
    marks = [(0, "train")]
    for end in ends:
        marks += [(end - length, "valid"), (end, "train")]
    return _intervals([*marks[:-1], (second, "test")], steps, config.gap)


def _walk_forward(config: DataConfig, steps: int) -> dict[str, Intervals]:
    """Test = fold f of the last F blocks of fold_steps, valid = the block before it, train = what is earlier."""
    test = steps - (config.folds - config.fold) * config.fold_steps
    valid = test - config.fold_steps
    cuts = _intervals([(0, "train"), (valid, "valid"), (test, "test")], test + config.fold_steps, config.gap)
    first = 0 if config.train_steps is None else max(0, valid - config.train_steps)
    return {**cuts, "train": ((first, valid),)}


def _cross(config: DataConfig, steps: int) -> dict[str, Intervals]:
    """F equal blocks: block f tests, the next one validates, the others train (later ones too)."""
    role = {config.fold: "test", (config.fold + 1) % config.folds: "valid"}
    return _intervals([(round(i * steps / config.folds), role.get(i, "train")) for i in range(config.folds)], steps, config.gap)


def _intervals(marks: Sequence[tuple[int, str]], end: int, gap: int) -> dict[str, Intervals]:
    """Stretches that begin at marks (step, split); the later of two splits gives the gap away."""
    found: dict[str, list[tuple[int, int]]] = {"train": [], "valid": [], "test": []}
    ends = [first for first, _ in marks[1:]] + [end]
    before = ""
    for (first, name), last in zip(marks, ends, strict=True):
        if name == before:
            found[name][-1] = (found[name][-1][0], last)
        else:
            found[name].append((first + gap if before else first, last))
        before = name
    return {name: tuple(intervals) for name, intervals in found.items()}


def windows(fleet: Fleet, part: Part, config: DataConfig, stride: int, *, blocks: bool) -> np.ndarray:
    """Index rows (row of the origin, group, history, block) (n, 4) int32 of a part, group by group.

    Origins stand every `stride` steps from the beginning of each interval. A window has min_history_steps rows before its
    origin, all of its horizon inside the interval and the group's rows, and at least one measured target cell. history = rows
    before the origin, at most k; block = number of the stretch of block_steps, from the part's first step, if `blocks`.
    """
    found = [np.zeros((0, 4), np.int32)]
    beginning = part.intervals[0][0] if part.intervals else 0
    for group in np.flatnonzero(part.groups):
        first, last = int(fleet.row0[group]), int(fleet.row0[group + 1])
        step0 = int(fleet.step0[group])
        origins = _origins(part.intervals, stride, config.horizon_steps, step0 + config.min_history_steps, step0 + last - first)
        rows = origins - step0
        measured = np.concatenate([[0], np.cumsum(np.asarray(fleet.seen[first:last]).any(axis=1))])
        some = measured[rows + config.horizon_steps] > measured[rows]
        origins, rows = origins[some], rows[some]
        block = (origins - beginning) // config.block_steps if blocks else np.zeros_like(rows)
        history = np.minimum(rows, config.context_steps)
        found.append(np.stack([rows + first, np.full_like(rows, group), history, block], axis=1).astype(np.int32))
    return np.concatenate(found)


def _origins(intervals: Intervals, stride: int, horizon: int, first: int, end: int) -> np.ndarray:
    """Steps at which a horizon may begin, not before `first`, ending at `end` at the latest."""
    found = [np.zeros(0, np.int64)]
    for start, stop in intervals:
        late = max(0, -(-(first - start) // stride))  # strides until the group has history enough
        found.append(np.arange(start + late * stride, min(stop, end) - horizon + 1, stride, dtype=np.int64))
    return np.concatenate(found)


def subset(index: np.ndarray, most: int | None) -> np.ndarray:
    """At most so many rows, drawn always alike, in their order."""
    if most is None or len(index) <= most:
        return index
    return index[np.sort(np.random.default_rng(0).choice(len(index), most, replace=False))]


def group_weights(index: np.ndarray) -> np.ndarray:
    """(n,) sampling weights that make every group equally likely."""
    return 1 / np.bincount(index[:, 1])[index[:, 1]]
