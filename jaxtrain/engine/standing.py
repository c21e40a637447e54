"""Where a run stands besides its arrays: best score, patience, plateau, skipped steps."""

import math
from dataclasses import dataclass, replace

import numpy as np

from jaxtrain.engine.config import Engine
from jaxtrain.engine.optimizer import Plateau
from jaxtrain.errors import UserError


@dataclass(frozen=True)
class Standing:
    """Where a phase stands besides its arrays; saved with every checkpoint."""

    first_step: int
    best_step: int | None = None
    best_value: float | None = None
    reference: float | None = None  # the value that the next gain is measured from
    waited: int = 0  # evaluations without gain
    plateau: tuple[float, float | None, int] = (1.0, None, 0)
    skipped_in_a_row: int = 0
    skipped: int = 0
    stopped: bool = False  # early, by patience


def observe(standing: Standing, engine: Engine, step: int, value: float, mode: str, *, warming: bool = False) -> Standing:
    """Best score, patience and plateau after an evaluation; a NaN is never a gain.

    warming: the learning rate still rises; patience and plateau do not count yet.
    """
    sign = 1.0 if mode == "min" else -1.0
    score = sign * value if not math.isnan(value) else math.inf
    best, reference = (math.inf if v is None else sign * v for v in (standing.best_value, standing.reference))
    # Measured from the last gain, not from the best: many gains smaller than min_delta add up to one.
    gain = score < reference - engine.train.min_delta if math.isfinite(reference) else math.isfinite(score)
    waited = 0 if gain or warming else standing.waited + 1
    if gain:
        standing = replace(standing, reference=value)
    if math.isfinite(score) and score <= best:  # of equals the later, as the checkpoints keep them
        standing = replace(standing, best_step=step, best_value=value)
    if engine.optimizer.schedule == "plateau" and not warming:
        scale, top, count = standing.plateau
        p = Plateau(scale, math.inf if top is None else top, count).observe(score, engine.optimizer)
        standing = replace(standing, plateau=(p.scale, p.best if math.isfinite(p.best) else None, p.waited))
    return replace(standing, waited=waited, stopped=bool(engine.train.patience) and waited >= engine.train.patience)


def guard(standing: Standing, skipped: np.ndarray, losses: np.ndarray, first: int, limit: int, last_checkpoint: int | None) -> Standing:
    """Count the skipped steps of one call; raise UserError after `limit` in a row."""
    row = standing.skipped_in_a_row
    for i, flag in enumerate(skipped):
        row = row + 1 if flag else 0
        if row >= limit:
            last_good = f"the last checkpoint is step {last_checkpoint}" if last_checkpoint is not None else "no checkpoint was written yet"
            raise UserError(
                f"steps {first + i - row + 2}-{first + i + 1}: loss or gradient not finite {row} times in a row (loss {losses[i]}); "
                f"lower optimizer.lr or optimizer.clip, or look for extreme values in the data; {last_good}"
            )
    return replace(standing, skipped_in_a_row=row, skipped=standing.skipped + int(np.sum(skipped)))
