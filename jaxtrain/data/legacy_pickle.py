"""Joblib and pickle files of plain data, read without running anything from them.

Only NumPy's rebuild functions, plain containers and a few scikit-learn transformers are known; the transformers become
records that keep their state and can do nothing. Arrays that joblib wrote behind their wrapper are read here, as raw numbers.
Everything else is refused by its name and byte offset.
"""

import bz2
import collections
import gzip
import io
import lzma
import math
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxtrain.errors import UserError

KINDS = "biufSU"  # of arrays: numbers, truth values and text
COMPRESSED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ": lzma.decompress, b"\x78": zlib.decompress,
}  # fmt: skip
BUILTINS = ("builtins", "__builtin__")
PYTHON_PICKLER: Any = pickle._Unpickler  # type: ignore[attr-defined]  # in Python, so that raw arrays can be read between opcodes


class Inert(SimpleNamespace):
    """The state of an object of another package, as attributes."""


class Wrapper(SimpleNamespace):
    """What joblib writes before the raw numbers of an array: shape, order, dtype and the alignment of the numbers."""


def load(path: str | Path) -> Any:
    """The content of a .pkl or .joblib file. Raises UserError naming what is forbidden, or where the file ends too early."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: not found; name the file to convert")
    raw = path.read_bytes()
    try:
        for magic, decompress in COMPRESSED.items():
            if raw.startswith(magic):
                raw = decompress(raw)
                break
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as fault:
        raise UserError(f"{path}: cannot be decompressed ({fault}); not converted") from None
    reader = _Unpickler(io.BytesIO(raw))
    try:
        return reader.load()
    except _Refusal as refusal:
        raise UserError(f"{path}: {refusal}, which is forbidden, at byte {reader.offset()}; not converted") from None
    except EOFError:
        raise UserError(f"{path}: ends too early, at byte {len(raw)}: the file is truncated; not converted") from None
    except Exception as fault:  # a broken pickle may raise anything
        text = " ".join(str(fault).split())[:200]
        truncated = " (truncated?)" if "truncated" in text or reader.offset() >= len(raw) else ""
        raise UserError(f"{path}: broken at byte {reader.offset()}{truncated} ({type(fault).__name__}: {text}); not converted") from None


class _Refusal(Exception):
    """Names what is forbidden; the reader stands right behind it."""


class _Unpickler(PYTHON_PICKLER):
    dispatch = dict(PYTHON_PICKLER.dispatch)

    def __init__(self, file: io.BytesIO):
        super().__init__(file, encoding="latin1")
        self._handle = file

    def offset(self) -> int:
        """Bytes read so far; a frame is read ahead of its opcodes."""
        frame = getattr(getattr(self, "_unframer", None), "current_frame", None)
        ahead = len(frame.getbuffer()) - frame.tell() if frame else 0
        return self._handle.tell() - ahead

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise _Refusal(f"its pickle asks for '{module}.{name}'")
        return KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refusal(f"its pickle refers to '{pid!r:.60}' outside the file")

    def load_build(self) -> None:
        """Sets an object's state. An array of joblib's stands behind the state of its wrapper."""
        state, instance = self.stack[-1], self.stack[-2]
        if isinstance(instance, np.dtype):
            _check_dtype_state(instance, state)
        elif isinstance(instance, np.ndarray):
            if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], np.dtype)):
                raise _Refusal("an array with a state of unknown form")
            _plain(state[2])
        elif not isinstance(instance, (Inert, Wrapper)) or not isinstance(state, dict):
            raise _Refusal(f"its pickle sets the state of '{type(instance).__name__}'")
        PYTHON_PICKLER.load_build(self)
        if isinstance(instance, Wrapper):
            self.stack[-1] = self._raw_array(instance)

    dispatch[pickle.BUILD[0]] = load_build

    def _raw_array(self, wrapper: Wrapper) -> np.ndarray:
        dtype, shape = wrapper.dtype, wrapper.shape
        if not isinstance(dtype, np.dtype):
            raise _Refusal("an array without a dtype")
        _plain(dtype)
        if getattr(wrapper, "numpy_array_alignment_bytes", None) is not None:
            padding = self._handle.read(1)
            self._handle.read(padding[0] if padding else 0)
        size = math.prod(shape) * dtype.itemsize
        raw = self._handle.read(size)
        if len(raw) < size:
            raise EOFError
        return np.ndarray(shape, dtype, raw, order="F" if wrapper.order == "F" else "C")


def _check_dtype_state(dtype: np.dtype, state: Any) -> None:
    """(version, byte order, subarray, names, fields, size, ...): only the byte order may say anything."""
    if not (isinstance(state, tuple) and len(state) >= 6 and state[2:5] == (None, None, None) and state[5] in (-1, dtype.itemsize)):
        raise _Refusal("an array of structures")


def _plain(dtype: np.dtype) -> None:
    if dtype.hasobject or dtype.kind not in KINDS:
        raise _Refusal(f"an array of {'structures' if dtype.kind == 'V' else 'objects' if dtype.hasobject else dtype}")


def _dtype(text: str, *_: Any) -> np.dtype:
    if not isinstance(text, str):
        raise _Refusal("a dtype that is not named by text")
    dtype = np.dtype(text, False, True)  # a copy: its state is set later
    _plain(dtype)
    return dtype


def _empty(*_: Any) -> np.ndarray:
    return np.ndarray(0, np.int8)  # its state, with shape and dtype, follows


def _scalar(dtype: np.dtype, raw: bytes | str) -> Any:
    _plain(dtype)
    return np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, dtype, 1)[0]


def _from_buffer(raw: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    _plain(dtype)
    return np.ndarray(shape, dtype, raw, order="F" if order == "F" else "C")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How bytes are written where a pickle has none."""
    if encoding not in ("latin1", "latin-1"):
        raise _Refusal(f"bytes in the encoding '{encoding}'")
    return text.encode(encoding)


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "ndarray"): "ndarray",  # named by rebuild functions, never called
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): Wrapper,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    **{(b, kind.__name__): kind for b in BUILTINS for kind in (set, frozenset, complex, int, float, str, bool, list, dict, tuple)},
    **{(b, "bytes"): lambda: b"" for b in BUILTINS},  # of a given number they could fill the memory
    **{(f"sklearn.preprocessing.{module}", "StandardScaler"): Inert for module in ("_data", "data")},
    **{(f"sklearn.preprocessing.{module}", "LabelEncoder"): Inert for module in ("_label", "label")},
}
