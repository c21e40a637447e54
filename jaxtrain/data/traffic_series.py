"""What every reader of traffic files returns: one series of readings per node, on a grid of rows."""

from dataclasses import dataclass

import numpy as np


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
