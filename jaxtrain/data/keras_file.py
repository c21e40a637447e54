"""Named weight arrays from the files that Keras writes: HDF5 (.h5, .hdf5) and the archive around one (.keras)."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.errors import UserError

SUFFIXES = (".keras", ".h5", ".hdf5")
INSIDE = "model.weights.h5"


def read_keras(path: str | Path) -> dict[str, np.ndarray]:
    """{"layers/conv_lstm2d/cell/vars/0": array} of every dataset in the file. Raises UserError for a missing or broken one."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: not found; name a weight file of Keras ({', '.join(SUFFIXES)})")
    try:
        if path.suffix != ".keras":
            return _arrays(path)
        with zipfile.ZipFile(path) as archive:
            return _arrays(io.BytesIO(archive.read(INSIDE)))
    except KeyError:
        raise UserError(f"{path}: holds no {INSIDE}; save the model again with model.save or model.save_weights") from None
    except (OSError, zipfile.BadZipFile) as fault:
        raise UserError(f"{path}: not a readable file of Keras ({fault}); save the weights again") from None


def _arrays(source: Any) -> dict[str, np.ndarray]:
    import h5py

    found: dict[str, np.ndarray] = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu":
            found[name] = np.asarray(item[()])

    with h5py.File(source, "r") as file:
        file.visititems(take)
    return found
