"""HDF5 files with their faults in one line: what is missing, what was found beside it, how large the file is."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxtrain.data.traffic_tables import existing_file
from jaxtrain.errors import UserError


@contextlib.contextmanager
def opened(path: str) -> Iterator[Any]:
    """The open file. Raises UserError for a file that is absent, truncated or not HDF5, also while it is read."""
    import h5py

    file = existing_file(path)
    try:
        with h5py.File(file, "r") as content:
            yield content
    except (OSError, RuntimeError, KeyError) as fault:
        reason = " ".join(str(fault).split())
        if isinstance(fault, PermissionError) or "ermission denied" in reason:
            raise UserError(f"{path}: may not be read (permission denied); change its permissions") from None
        raise UserError(f"{path}: {file.stat().st_size:,} bytes, not a readable HDF5 file ({reason}); copy or download it again") from None


def has(file: Any, key: str) -> bool:
    """Whether a dataset of this name is there."""
    return key in file and hasattr(file[key], "shape")


def dataset(file: Any, path: str, key: str) -> Any:
    """The dataset of numbers under `key` ("group/name"). Raises UserError with the keys found beside it."""
    if not has(file, key):
        group, missing = file, key.split("/")
        while len(missing) > 1 and missing[0] in group and hasattr(group[missing[0]], "keys"):
            group = group[missing.pop(0)]
        if key in file:
            raise UserError(f"{path}: {key}: is a group that holds {', '.join(file[key]) or 'nothing'}, not a dataset; name one in it")
        raise UserError(f"{path}: {key}: not there; {group.name} holds {', '.join(group) or 'nothing'}")
    found = file[key]
    if found.dtype.kind not in "fiub":
        raise UserError(f"{path}: {key}: holds {found.dtype}, not numbers; name another dataset, or write it as plain numbers")
    return found


def column(file: Any, path: str, key: str) -> np.ndarray:
    """A dataset (n,) or (n, k) as its first column (n,), in its own type."""
    found = dataset(file, path, key)
    if found.ndim not in (1, 2) or (found.ndim == 2 and not found.shape[1]):
        raise UserError(f"{path}: {key}: expected (n,) or (n, k), found {found.shape}")
    return found[:] if found.ndim == 1 else found[:, 0]
