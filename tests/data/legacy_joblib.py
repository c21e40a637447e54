"""Writes joblib's uncompressed file format, as its pickler does: raw numbers of an array stand behind the pickle of a wrapper."""

import io
import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

ALIGNMENT = 16


@contextmanager
def packages() -> Iterator[dict[str, type]]:
    """Classes of joblib and scikit-learn under their real names while a file is written."""
    places = {
        "NumpyArrayWrapper": "joblib.numpy_pickle", "StandardScaler": "sklearn.preprocessing._data",
        "LabelEncoder": "sklearn.preprocessing._label",
    }  # fmt: skip
    made: dict[str, Any] = {}
    before = dict(sys.modules)
    for name, module in places.items():
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
        made[name] = type(name, (), {"__module__": module})
        setattr(sys.modules[module], name, made[name])
    try:
        yield made
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]


class Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """joblib.numpy_pickle.NumpyPickler without memory maps and compression."""

    def __init__(self, file: io.BytesIO, wrapper: type, alignment: int | None):
        super().__init__(file, protocol=4)
        self.handle, self.wrapper, self.alignment = file, wrapper, alignment

    def save(self, obj: Any, *args: Any, **kwargs: Any) -> None:
        if type(obj) is not np.ndarray:
            return super().save(obj, *args, **kwargs)
        wrapper = self.wrapper()
        fortran = obj.flags.f_contiguous and not obj.flags.c_contiguous
        wrapper.__dict__.update(subclass=np.ndarray, shape=obj.shape, order="F" if fortran else "C", dtype=obj.dtype, allow_mmap=True)
        if self.alignment:
            wrapper.__dict__["numpy_array_alignment_bytes"] = self.alignment
        super().save(wrapper)
        self.framer.commit_frame(force=True)
        if obj.dtype.hasobject:
            pickle.dump(obj, self.handle, protocol=2)
            return None
        if self.alignment:
            padding = self.alignment - (self.handle.tell() + 1) % self.alignment
            self.handle.write(bytes([padding]) + b"\xff" * padding)
        self.handle.write(obj.tobytes("F" if fortran else "C"))
        return None


def dumped(content: Any, wrapper: type, alignment: int | None = ALIGNMENT) -> bytes:
    """The bytes of joblib.dump(content)."""
    file = io.BytesIO()
    Pickler(file, wrapper, alignment).dump(content)
    return file.getvalue()


def instance(kind: type, **state: Any) -> Any:
    found = kind()
    found.__dict__.update(state)
    return found
