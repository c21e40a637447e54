"""Camera frames in memory or left in their files, and what is wrong with them. NumPy only.

Frames are anything with `shape` (N, H, W), `dtype`, `nbytes` and `frames[rows]`, rows an integer array of any shape.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtrain.data.clouds_hdf5 import opened
from jaxtrain.errors import UserError

BLOCK_BYTES = 2**22  # of frames handled at a time: what is made of them stays in cache
MAX_BAD_SHARE = 0.05  # of a frame's pixels; a frame with more is not used
MAX_SATURATED_SHARE = 0.01  # of a flight's pixels before it is said


class FileFrames:
    """Frames that lie uncompressed in a file: mapped on first use, in whatever process uses them."""

    def __init__(self, path: str, offset: int, dtype: np.dtype, shape: tuple[int, int, int]) -> None:
        self.path, self.offset, self.dtype, self.shape = path, offset, dtype, shape
        self._map: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # a loader process maps the file itself

    def __getitem__(self, rows: Any) -> np.ndarray:
        if self._map is None:
            self._map = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        return np.asarray(self._map[rows])


class ImageFrames:
    """Frames of an HDF5 dataset (N, rows, columns): rows cut, pixels averaged in blocks, read when they are asked for."""

    def __init__(self, path: str, key: str, count: int, rows: tuple[int, int], columns: int, reduce: int, dtype: np.dtype) -> None:
        self.path, self.key, self.rows, self.reduce = path, key, rows, reduce
        self.shape = (count, (rows[1] - rows[0]) // reduce, columns // reduce)
        # A mean has no place in a whole number.
        self.dtype = dtype if reduce == 1 and dtype in (np.uint16, np.float32) else np.dtype(np.float32)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Frames `rows` (n,), increasing: whole stretches are read at once."""
        rows = np.asarray(rows)
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        borders = np.flatnonzero(np.diff(rows) != 1) + 1
        with opened(self.path) as file:
            images = file[self.key]
            for stretch in np.split(np.arange(len(rows)), borders):
                for some in blocks(stretch, self):
                    first, last = rows[some[0]], rows[some[-1]]
                    block = images[first : last + 1, self.rows[0] : self.rows[1]]
                    found[some[0] : some[-1] + 1] = self._reduced(block)
        return found

    def _reduced(self, block: np.ndarray) -> np.ndarray:
        if self.reduce == 1:
            return block
        height, width = self.shape[1:]
        cut = block[:, : height * self.reduce, : width * self.reduce].astype(np.float32)
        return cut.reshape(len(block), height, self.reduce, width, self.reduce).mean((2, 4))


class JoinedFrames:
    """The frames of several flights as one array that stays in its files; non-finite pixels become `fill` (N,) of their frame."""

    def __init__(self, parts: Sequence[Any], fill: np.ndarray) -> None:
        self.parts = tuple(parts)
        self.fill = fill
        self.borders = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape = (int(self.borders[-1]), *parts[0].shape[1:])
        self.dtype = np.result_type(*(part.dtype for part in parts))
        self.ndim = 3

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        rows = np.asarray(rows)
        flat = rows.reshape(-1)
        found = np.empty((len(flat), *self.shape[1:]), self.dtype)
        for part, first, end in zip(self.parts, self.borders[:-1], self.borders[1:], strict=True):
            here = (flat >= first) & (flat < end)
            if here.any():
                found[here] = part[flat[here] - first]
        fill = self.fill[flat]
        if np.isfinite(fill).any():
            found = np.where(np.isfinite(found), found, fill[:, None, None])
        return found.reshape(*rows.shape, *self.shape[1:])

    @property
    def __jax_array__(self) -> Any:
        # Looked up when the arrays are put on a device, which these would not fit.
        raise UserError(f"config.data.max_gib: the frames take {self.nbytes / 2**30:.1f} GiB and stay in their files; set "
                        "train.placement=host, or raise data.max_gib")  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """What a look at every used frame of a flight found.

    bad:      (N,) bool, more than 5 % of the pixels are not finite
    fill:     (N,) float32 median of a frame's finite pixels where some are not finite, else NaN
    constant: frames without any contrast; saturated: share of pixels at the largest value
    used:     frames looked at
    """

    bad: np.ndarray
    fill: np.ndarray
    constant: int
    saturated: float
    used: int


def blocks(rows: np.ndarray, frames: Any) -> Iterator[np.ndarray]:
    """The row numbers in order, in blocks of about 4 MiB of frames."""
    size = max(1, BLOCK_BYTES // max(1, int(np.prod(frames.shape[1:])) * frames.dtype.itemsize))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def scan(frames: Any, rows: np.ndarray) -> Scan:
    """A look at the frames `rows` (n,), in blocks."""
    bad = np.zeros(frames.shape[0], bool)
    fill = np.full(frames.shape[0], np.nan, np.float32)
    exact = frames.dtype.kind in "iu"
    top: Any = np.iinfo(frames.dtype).max if exact else -np.inf  # a float has no largest value but the one seen
    constant, at_top, pixels = 0, 0, 0
    for some in blocks(rows, frames):
        block = frames[some].reshape(len(some), -1)
        highest, lowest = block.max(1), block.min(1)  # NaN where any pixel is
        for k in np.flatnonzero(~np.isfinite(highest) | ~np.isfinite(lowest)):
            finite = block[k][np.isfinite(block[k])]
            bad[some[k]] = len(finite) < (1 - MAX_BAD_SHARE) * block.shape[1]
            fill[some[k]] = np.median(finite) if len(finite) else np.nan
            highest[k], lowest[k] = (finite.max(), finite.min()) if len(finite) else (-np.inf, np.inf)
        constant += int((highest == lowest).sum())
        if not exact and highest.max(initial=-np.inf) > top:
            top, at_top = highest.max(), 0
        for k in np.flatnonzero(highest == top):
            at_top += int((block[k] == top).sum())
        pixels += block.size
    return Scan(bad, fill, constant, at_top / max(1, pixels), len(rows))


def check_scan(found: Scan, source: str, name: str) -> tuple[str, ...]:
    """Notes about constant and saturated frames. Raises UserError when more than half of the frames are constant."""
    if found.used and found.constant > found.used / 2:
        raise UserError(f"{source}: flight {name}: {found.constant} of {found.used} frames are constant (one value in all pixels); "
                        "is it the right dataset, and did the camera run?")  # fmt: skip
    notes = []
    if found.constant:
        notes.append(f"flight {name}: {found.constant} of {found.used} frames are constant")
    if found.saturated > MAX_SATURATED_SHARE:
        notes.append(f"flight {name}: {found.saturated:.1%} of the pixels are saturated (at the largest value)")
    repaired = int(np.isfinite(found.fill[~found.bad]).sum())
    if repaired:
        notes.append(f"flight {name}: {repaired} frames with up to {MAX_BAD_SHARE:.0%} non-finite pixels, which became the frame's median")
    return tuple(notes)


def join(parts: Sequence[Any], fills: Sequence[np.ndarray], max_gib: float) -> Any:
    """One (N, H, W) array of all flights, repaired; left in the files where it would take more than `max_gib`."""
    joined = JoinedFrames(parts, np.concatenate(fills))
    if joined.nbytes > max_gib * 2**30:
        return joined
    whole = np.empty(joined.shape, joined.dtype)
    for part, first, end in zip(parts, joined.borders[:-1], joined.borders[1:], strict=True):
        if isinstance(part, np.ndarray):
            whole[first:end] = part
            continue
        for rows in blocks(np.arange(end - first), part):
            whole[first + rows[0] : first + rows[-1] + 1] = part[rows[0] : rows[-1] + 1]
    for frame in np.flatnonzero(np.isfinite(joined.fill)):
        whole[frame] = np.where(np.isfinite(whole[frame]), whole[frame], joined.fill[frame])
    whole.flags.writeable = False
    return whole
