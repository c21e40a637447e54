"""The `h5` layout: a pandas frame written in fixed format (METR-LA, PEMS-BAY), read without pandas."""

from typing import Any

import numpy as np

from jaxtrain.data.traffic_tables import existing_file
from jaxtrain.data.traffic_time import localize
from jaxtrain.errors import UserError

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # of an epoch, per second


def read_frame(path: str, key: str, timezone: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(node ids (N,) unicode, time (R,) int64 local epoch seconds, values (R, N) float64)."""
    import h5py

    try:
        with h5py.File(existing_file(path), "r") as file:
            return _frame(path, _group(path, file, key), timezone)
    except OSError as error:
        raise UserError(f"{path}: not an HDF5 file ({error})") from None


def _group(path: str, file: Any, key: str) -> Any:
    groups = [name for name in file if hasattr(file[name], "keys")]
    if key and key not in groups:
        raise UserError(f"{path}: group {key!r} is not there; set data.key (found: {', '.join(groups) or 'no groups'})")
    if not key and len(groups) != 1:
        raise UserError(f"{path}: set data.key to one of its groups: {', '.join(groups) or 'none found'}")
    name = key or groups[0]
    group = file[name]
    if "table" in group:
        raise UserError(f"{path}: group {name!r} is in table format; write it in fixed format: frame.to_hdf(path, key={name!r})")
    blocks = [part for part in group if part.startswith("block") and part.endswith("_values")]
    if "axis0" not in group or "axis1" not in group or not blocks:
        raise UserError(f"{path}: group {name!r} is no pandas frame in fixed format (it holds {', '.join(group)})")
    return group


def _frame(path: str, group: Any, timezone: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = _texts(group["axis0"][:])
    rows = len(group["axis1"])
    column = {name: index for index, name in enumerate(ids)}
    values = np.full((rows, len(ids)), np.nan)
    for name in group:
        if name.startswith("block") and name.endswith("_values"):
            items = _texts(group[name.replace("_values", "_items")][:])
            block = group[name][:]
            if block.dtype.kind not in "fiu":
                raise UserError(f"{path}: {name} holds {block.dtype}; keep numeric columns only")
            block = block if block.shape == (rows, len(items)) else block.T
            values[:, [column[item] for item in items]] = block
    return np.array(ids, str), _times(path, group["axis1"], timezone), values


def _times(path: str, axis: Any, timezone: str) -> np.ndarray:
    kind, zone = _attribute(axis, "kind"), _attribute(axis, "tz")
    if axis.dtype.kind != "i" or (kind and not kind.startswith("datetime64")):
        raise UserError(f"{path}: axis1 holds {kind or axis.dtype}, not times; give the frame a DatetimeIndex")
    unit = kind.partition("[")[2].rstrip("]") or "ns"
    if unit not in UNITS:
        raise UserError(f"{path}: axis1 counts in {unit!r}, known are {', '.join(UNITS)}")
    seconds = axis[:] // UNITS[unit]
    return localize(seconds, timezone, path) if zone else seconds.astype(np.int64)


def _attribute(axis: Any, name: str) -> str:
    """An attribute as text; "" where it is absent or a pickled None ("N.")."""
    value = axis.attrs.get(name, "")
    text = value.decode("latin1") if isinstance(value, bytes) else str(value)
    return "" if text == "N." else text


def _texts(values: np.ndarray) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
