"""jaxtrain: train, resume, evaluate and serve five forecasting systems in JAX."""

from pathlib import Path
from typing import TYPE_CHECKING

from jaxtrain import xla_faults

if TYPE_CHECKING:
    from jaxtrain.engine.run import Run

__version__ = "0.1.0"
xla_faults.avoid()


def load(workdir: str | Path) -> "Run":
    """Open a trained run from its folder alone: `load("runs/x").predict(**batch)`, arrays as the task names them.

    Raises jaxtrain.errors.UserError when the folder is no run or holds no complete checkpoint.
    """
    from jaxtrain.engine.run import open_run  # imports JAX, which `--help` need not wait for

    return open_run(workdir)
