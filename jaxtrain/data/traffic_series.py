"""What every reader of traffic files returns: one series of readings per node, on a grid of rows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxtrain.errors import UserError


@dataclass(frozen=True)
class Series:
    """R rows in time order, N nodes.

    time (R,) int64 local epoch seconds; speed (R, N) float32, NaN = unobserved; ids (N,) unicode;
    named: the file gave the ids (else they are positions "0", "1", ...); weights (N, N) float32, see traffic_graph;
    weather (R, 3) float32 degC, km/h, mm/h, NaN = unknown; positions (N, 2) float32 lat, lon, NaN = unknown;
    pairs (N, 2) unicode: from and to of each node, where nodes are road segments.
    """

    time: np.ndarray
    speed: np.ndarray
    ids: np.ndarray
    named: bool
    weights: np.ndarray | None = None
    weather: np.ndarray | None = None
    positions: np.ndarray | None = None
    pairs: np.ndarray | None = None


def check_speeds(path: str, speed: np.ndarray, max_value: float, label: Callable[[int], str], name: Callable[[int], str]) -> None:
    """Raises UserError naming the first reading of (R, C) that is negative, infinite or above `max_value`."""
    wrong = np.argwhere((speed < 0) | (speed > max_value))
    if not len(wrong):
        return
    row, column = (int(i) for i in wrong[0])
    place = f"{path}: {label(row)}, {name(column)}: {speed[row, column]:g}"
    if speed[row, column] < 0:
        raise UserError(f"{place} is negative; a missing reading is an empty cell, or set data.null_value")
    raise UserError(f"{place} is above {max_value:g}: is the unit right? raise data.max_value if so")
