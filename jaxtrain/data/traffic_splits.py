"""Which rows teach and which windows are scored: one cut in time, rolling origins, or blocks; a gap after every border."""

from dataclasses import dataclass

import numpy as np

from jaxtrain.data.traffic_config import DataConfig
from jaxtrain.errors import UserError

NAMES = ("train", "valid", "test")
Span = tuple[int, int]  # rows [first, end)


@dataclass(frozen=True)
class Cut:
    """training: rows that statistics may use; starts: first input rows of the train, valid and test windows, each (n,) int32."""

    training: tuple[Span, ...]
    starts: tuple[np.ndarray, ...]

    def training_rows(self, rows: int) -> np.ndarray:
        """(R,) bool."""
        chosen = np.zeros(rows, bool)
        for first, end in self.training:
            chosen[first:end] = True
        return chosen


def cut(config: DataConfig, rows: int, where: str) -> Cut:
    """The splits of `rows` rows. Raises UserError when one of them would hold no window."""
    if config.split == "windows":
        return _by_windows(config, rows, where)
    spans = {"time": _by_time, "walk_forward": _walk_forward, "blocked": _blocked}[config.split](config, rows)
    starts = tuple(np.concatenate([_windows_between(a, b, config) for a, b in part]) for part in spans)
    if not all(len(s) for s in starts):
        present = [max(b - a for a, b in part) if part else 0 for part in spans]
        raise _too_short(config, starts, [config.window] + [config.gap + config.out_steps] * 2, present, rows, where)
    return Cut(tuple(spans[0]), starts)


def _by_time(config: DataConfig, rows: int) -> list[list[Span]]:
    # The small term keeps 0.7 + 0.1 = 0.7999999... of 160 rows from becoming 127.
    shares = np.cumsum([0, *config.fractions])
    cuts = [int(share * rows + 1e-6) for share in shares[:-1]] + [rows]
    return [[span] for span in zip(cuts[:-1], cuts[1:], strict=True)]


def _walk_forward(config: DataConfig, rows: int) -> list[list[Span]]:
    """Rolling origin: what follows the first training share is cut into folds + 1 blocks; fold f is tested on block f + 1,
    stops by block f and learns from everything before."""
    borders = np.linspace(int(config.fractions[0] * rows + 1e-6), rows, config.folds + 2).round().astype(int)
    train, valid, test = (int(b) for b in borders[config.fold : config.fold + 3])
    return [[(0, train)], [(train, valid)], [(valid, test)]]


def _blocked(config: DataConfig, rows: int) -> list[list[Span]]:
    """Equal blocks: one for test, the next (cyclic) for valid, the others for training."""
    borders = [int(b) for b in np.linspace(0, rows, config.folds + 1).round()]
    blocks = list(zip(borders[:-1], borders[1:], strict=True))
    test, valid = config.fold, (config.fold + 1) % config.folds
    train: list[Span] = []
    for number, (first, end) in enumerate(blocks):
        if number in (test, valid):
            continue
        if train and train[-1][1] == first:
            first = train.pop()[0]
        train.append((first, end))
    return [train, [blocks[valid]], [blocks[test]]]


def _by_windows(config: DataConfig, rows: int, where: str) -> Cut:
    """The field's usual split of the list of windows, which lets neighbouring splits share rows."""
    total = rows - config.window + 1
    train, test = round(config.fractions[0] * total), round(config.fractions[2] * total)
    cuts = [0, train, total - test, total]
    starts = tuple(np.arange(a, b, dtype=np.int32) for a, b in zip(cuts[:-1], cuts[1:], strict=True))
    if not all(len(s) for s in starts):
        raise _too_short(config, starts, [config.window] * 3, [rows] * 3, rows, where)
    return Cut(((0, train + config.window - 1),), starts)


def _windows_between(first: int, end: int, config: DataConfig) -> np.ndarray:
    """First input rows of the windows whose targets lie in rows [first, end), `gap` rows after a border."""
    targets = first + config.gap if first else config.in_steps
    return np.arange(max(targets - config.in_steps, 0), end - config.window + 1, dtype=np.int32)


def _too_short(
    config: DataConfig, starts: tuple[np.ndarray, ...], needed: list[int], present: list[int], rows: int, where: str
) -> UserError:
    short = [f"{n} needs {a} rows, has {b}" for n, s, a, b in zip(NAMES, starts, needed, present, strict=True) if not len(s)]
    key = "data.folds" if config.split in ("walk_forward", "blocked") else "data.fractions"
    return UserError(
        f"{where}: {rows} rows are too few: {', '.join(short)}; lower data.in_steps, data.out_steps or data.gap_steps, or change {key}"
    )
