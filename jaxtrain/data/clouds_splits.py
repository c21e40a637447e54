"""Which labelled windows exist, and which of them train, stop and score.

Two questions in one run: held-out flights ask whether the model works on a flight it has never seen, cycles with gaps cut
from the other flights whether it works between its own blocks. Windows of different parts are at least `gap_s` apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxtrain.data.clouds_config import DataConfig
from jaxtrain.data.clouds_flight import Flight, contiguous, take
from jaxtrain.data.clouds_frames import ImageFrames
from jaxtrain.errors import UserError

TRAIN, VALID_BLOCKED, TEST_BLOCKED, VALID_FLIGHT, TEST_FLIGHT, CALIBRATION, CALIBRATION_GAP = range(7)
ROLES = ("train", "valid-blocked", "test-blocked", "valid-flight", "test-flight", "calibration", "calibration gap")
VALID_ROLES = {"both": (VALID_BLOCKED, VALID_FLIGHT), "blocked": (VALID_BLOCKED,), "flight": (VALID_FLIGHT,)}
TEST_ROLES = (TEST_BLOCKED, TEST_FLIGHT, CALIBRATION, CALIBRATION_GAP)
UNUSED = -1
SHORT_S = 600  # a shorter flight only trains
MIN_TRAIN_ROWS = 20


@dataclass(frozen=True)
class Windows:
    """centres: (n,) frame numbers within the flight; dropped: windows left out by reason."""

    centres: np.ndarray
    dropped: dict[str, int]


def labelled_frames(config: DataConfig, flight: Flight) -> np.ndarray:
    """(N,) bool: frames with a label inside `base_km`."""
    low, high = config.base_km
    return (flight.height_km >= np.float32(low)) & (flight.height_km <= np.float32(high))


def whole_windows(config: DataConfig, flight: Flight, centre: np.ndarray) -> Windows:
    """Windows around the frames `centre` (N,) bool that lie in the flight, cross no gap and have the angles they need.

    A window is frames c - T//2 ... c - T//2 + T-1.
    """
    centres = np.flatnonzero(centre)
    starts = centres - config.lead
    inside = (starts >= 0) & (starts + config.temporal_frames <= len(flight))
    centres, starts = centres[inside], starts[inside]
    closed = contiguous(flight.time, flight.step_s, config.temporal_frames)[starts]
    lit = np.ones(len(centres), bool)
    for angle in config.needed_angles:
        lit &= np.isfinite(getattr(flight, angle)[centres])
    dropped = {
        "leave the file": int((~inside).sum()),
        "cross a gap": int((~closed).sum()),
        "lack an angle": int((closed & ~lit).sum()),
    }
    return Windows(centres[closed & lit], dropped)


def used_frames(config: DataConfig, centres: np.ndarray) -> np.ndarray:
    """(m,) frames that some window needs, each once, in order."""
    steps = centres[:, None] - config.lead + np.arange(config.temporal_frames)
    return np.unique(steps)


def take_used(config: DataConfig, flight: Flight, windows: Windows) -> tuple[Flight, Windows]:
    """A flight whose images are still in their file, with only the frames that windows need, read now; another as it is.

    Raises UserError where they take more than `max_gib`: only prepared files can be mapped.
    """
    if not isinstance(flight.frames, ImageFrames):
        return flight, windows
    rows = used_frames(config, windows.centres)
    gib = len(rows) * flight.frames.nbytes / max(1, len(flight)) / 2**30
    if gib > config.max_gib:
        raise UserError(f"{flight.source}: {len(rows)} frames take {gib:.1f} GiB, more than data.max_gib {config.max_gib:g}; prepare the "
                        "flight with scripts/prepare_cbh.py, which can be mapped, or raise data.reduce")  # fmt: skip
    return take(flight, rows), Windows(np.searchsorted(rows, windows.centres), windows.dropped)


def clear_windows(config: DataConfig, windows: Windows, bad: np.ndarray) -> Windows:
    """Those windows that hold no bad frame (N,) bool."""
    steps = windows.centres[:, None] - config.lead + np.arange(config.temporal_frames)
    clear = ~bad[steps].any(1)
    return Windows(windows.centres[clear], {**windows.dropped, "hold a bad frame": int((~clear).sum())})


def roles(config: DataConfig, flights: Sequence[Flight], centres: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Role of every labelled window, per flight; UNUSED in the gaps and on flights that are neither named nor held out.

    Raises UserError for a gap that is shorter than a window.
    """
    found = []
    for flight, mine in zip(flights, centres, strict=True):
        time = flight.time[mine]
        if flight.name == config.test_flight:
            found.append(held_out_roles(config.calibration_labels, config.gap_s, time))
        elif flight.name == config.valid_flight:
            found.append(np.full(len(mine), VALID_FLIGHT, np.int32))
        elif config.train_flights and flight.name not in config.train_flights:
            found.append(np.full(len(mine), UNUSED, np.int32))
        else:
            found.append(cycle_roles(config, time, flight.span))
        reach = (config.temporal_frames - 1) * flight.step_s
        if config.gap_s <= reach:
            raise UserError(f"config.data.gap_s: {config.gap_s:g} s is no longer than a window of {config.temporal_frames} frames "
                            f"({reach:g} s, flight {flight.name}): parts would share frames; raise it")  # fmt: skip
    return found


def cycle_roles(config: DataConfig, time: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """(n,) roles of a training flight: in every cycle of length c with gap g train [0, 0.7c-3g), valid [0.7c-2g, 0.85c-2g) and
    test [0.85c-g, c-g); nothing in between. A flight shorter than 600 s only trains."""
    start, duration = span[0], span[1] - span[0]
    if duration < SHORT_S:
        return np.full(len(time), TRAIN, np.int32)
    gap = config.gap_s
    cycles = max(1, round(duration / config.cycle_s))
    cycle = duration / cycles
    # The last frame of all belongs to the last cycle.
    since = time - start - cycle * np.minimum(np.floor((time - start) / cycle), cycles - 1)
    role = np.full(len(time), UNUSED, np.int32)
    role[since < 0.7 * cycle - 3 * gap] = TRAIN
    role[(since >= 0.7 * cycle - 2 * gap) & (since < 0.85 * cycle - 2 * gap)] = VALID_BLOCKED
    role[(since >= 0.85 * cycle - gap) & (since < cycle - gap)] = TEST_BLOCKED
    return role


def held_out_roles(labels: int, gap_s: float, time: np.ndarray) -> np.ndarray:
    """(n,) roles of a test flight: the first labels, at most a third, then what lies within `gap_s` of them, then the rest."""
    count = min(labels, len(time) // 3)
    role = np.full(len(time), TEST_FLIGHT, np.int32)
    if count:
        role[time < time[count - 1] + gap_s] = CALIBRATION_GAP
        role[:count] = CALIBRATION
    return role


def check_roles(config: DataConfig, flights: Sequence[Flight], found: Sequence[np.ndarray], where: str) -> None:
    """Raises UserError for fewer than 20 training windows, or an empty valid or test part."""
    counts = np.array([[(role == k).sum() for k in range(len(ROLES))] for role in found])
    total = counts.sum(0)
    needed = [*VALID_ROLES[config.valid_rows], TEST_FLIGHT]
    needed += [TEST_BLOCKED] if config.valid_rows != "flight" else []
    empty = [ROLES[k] for k in needed if not total[k]]
    if total[TRAIN] >= MIN_TRAIN_ROWS and not empty:
        return
    rows = "; ".join(
        f"{flight.name}: {', '.join(f'{ROLES[k]} {n}' for k, n in enumerate(row) if n) or 'none'}"
        for flight, row in zip(flights, counts, strict=True)
    )
    what = f"no window is {' or '.join(empty)}" if empty else f"{total[TRAIN]} training windows are fewer than {MIN_TRAIN_ROWS}"
    raise UserError(f"{where}: {what} (windows: {rows}); change data.cycle_s ({config.cycle_s:g}), data.gap_s ({config.gap_s:g}) or the "
                    "flights held out")  # fmt: skip
