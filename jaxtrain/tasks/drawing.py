"""What the figures of all systems begin with."""

from typing import Any

import numpy as np


def axes(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, np.ndarray]:
    """A matplotlib figure of width x height inches, and its axes (rows, columns) with a light grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    found = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in found.ravel():
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    return figure, found
