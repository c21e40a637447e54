"""Plain arrays from .npy and .npz files: nothing is unpickled, and a damaged file is one clear line. NumPy only."""

from pathlib import Path

import numpy as np

from jaxtrain.errors import UserError

OBJECTS = "Object arrays"  # how NumPy's refusal to unpickle one begins


def read_npy(path: str | Path) -> np.ndarray:
    """The array of a .npy file. Raises UserError for a damaged file, an object array, or an archive under this name."""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        found.close()
    except Exception as fault:  # a damaged file may raise anything
        raise UserError(f"{path}: not a readable .npy of one plain array ({_reason(fault)}); save it again with numpy.save") from None
    raise UserError(f"{path}: holds an archive of arrays, not one array; give the file the suffix .npz")


def read_npz(path: str | Path) -> dict[str, np.ndarray | None]:
    """{name: array} of a .npz file; None stands for an object array. Raises UserError for a damaged file or a bare array."""
    arrays: dict[str, np.ndarray | None] = {}
    place = ""
    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise ValueError("it holds one bare array, as numpy.save writes it")
        with found:
            for name in found.files:
                place = f"{name}: "
                arrays[name] = _member(found, name)
    except Exception as fault:  # a damaged file may raise anything
        raise UserError(f"{path}: not a readable .npz of arrays ({place}{_reason(fault)}); save it again with numpy.savez") from None
    return arrays


def _member(archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray | None:
    try:
        array = archive[name]
    except ValueError as fault:
        if str(fault).startswith(OBJECTS):
            return None
        raise
    if not isinstance(array, np.ndarray):  # NumPy hands out the bytes of what is no array
        raise ValueError("no array")
    return array


def _reason(fault: Exception) -> str:
    return " ".join(str(fault).split()) or type(fault).__name__
