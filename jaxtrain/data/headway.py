"""Train headways on a rail line: windows over shared fields, split by service day, with statistics of the training days.

Letters: B batch, L lookback rows, F horizon rows, S stations, D directions, K terminal channels, R rows. A batch holds, for
every field of `data.inputs` and the target, `headway` and `age` (B, L, S, D) float32 minutes (0 where unknown) with
`headway_known`, `age_known` bool; planned (B, F, D, K) minutes with planned_known: the plan of the target rows, never an
observed departure; target (B, F, S, D) minutes with target_known; when (B, 2) int32, day type and minute of the service day
of the first target row.
"""

import functools
from typing import Any

import numpy as np

from jaxtrain.data.dataset import Arrays, Batch, Dataset
from jaxtrain.data.headway_config import FIELDS, DataConfig
from jaxtrain.data.headway_field import Line


def gather(arrays: Arrays, rows: Any, *, lookback: int, horizon: int, inputs: tuple[str, ...], target: str) -> Batch:
    """The windows that start at rows (B, 1): see the module's docstring. Works on NumPy and on jax arrays alike."""
    steps = rows + np.arange(lookback + horizon, dtype=np.int32)
    past, future, first = steps[:, :lookback], steps[:, lookback:], steps[:, lookback]
    batch = {}
    for name in FIELDS:
        known = f"{name}_known"
        if name == target:
            values, mask = arrays[name][steps], arrays[known][steps]
            batch |= {name: values[:, :lookback], known: mask[:, :lookback]}
            batch |= {"target": values[:, lookback:], "target_known": mask[:, lookback:]}
        elif name in inputs:
            batch |= {name: arrays[name][past], known: arrays[known][past]}
    batch["planned"], batch["planned_known"] = arrays["planned"][future], arrays["planned_known"][future]
    batch["when"] = arrays["when"][first]
    return batch


def shared_arrays(line: Line) -> dict[str, np.ndarray]:
    """The shared arrays: headway, age, planned float32 minutes (0 where unknown), headway_known, age_known, planned_known bool,
    when (R, 2), day_type, minute (R,) int32, time (R,) int64."""
    arrays: dict[str, np.ndarray] = {}
    for name in (*FIELDS, "planned"):
        values = getattr(line, name)
        known = np.isfinite(values)
        arrays |= {name: np.where(known, values, np.float32(0)), f"{name}_known": known}
    arrays |= {"day_type": line.day_type, "minute": line.minute, "when": np.stack([line.day_type, line.minute], axis=1), "time": line.time}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def dataset(config: DataConfig, arrays: dict[str, np.ndarray], starts: np.ndarray) -> Dataset:
    """Windows that start at these rows (n,)."""
    bound = functools.partial(gather, lookback=config.lookback, horizon=config.horizon, inputs=config.inputs, target=config.target)
    return Dataset(arrays, starts[:, None].astype(np.int32), bound)
