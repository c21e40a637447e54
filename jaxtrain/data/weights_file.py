"""Named weight arrays from .npz, .safetensors and PyTorch .pt files, without PyTorch. NumPy only.

A .pt file is a zip of one pickle and raw storages. The unpickler knows tensors, parameters and plain containers, and
refuses every other global: reading a file never runs code from it.
"""

import codecs
import collections
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtrain.data.array_files import read_npz
from jaxtrain.errors import UserError

Weights = dict[str, np.ndarray]
STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "BFloat16Storage": "bfloat16", "LongStorage": "<i8",
    "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
STATE_NAMES = ("model_state_dict", "state_dict", "model_state", "model", "weights")
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name


def read_weights(path: str | Path) -> Weights:
    """{name: array} of a file's state dict. Raises UserError for another suffix, a broken file, or no state dict inside."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: not found; name a .npz, .safetensors or .pt file")
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors, ".pt": _read_torch, ".pth": _read_torch}
    if path.suffix not in readers:
        raise UserError(f"{path}: suffix '{path.suffix}' is unknown; weights are read from {', '.join(readers)}")
    return {_unwrapped(name): value for name, value in readers[path.suffix](path).items()}


def _read_npz(path: Path) -> Weights:
    weights: Weights = {}
    for name, array in read_npz(path).items():
        if array is None:
            raise UserError(f"{path}: {name} is an object array, which is refused; save plain numbers with numpy.savez")
        weights[name] = array
    return weights


def _read_safetensors(path: Path) -> Weights:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise UserError(f"{path}: reading .safetensors needs the package safetensors: pip install 'jaxtrain[export]'") from None
    try:
        return load_file(path)
    except SafetensorError as fault:
        raise UserError(f"{path}: not a readable .safetensors file ({fault})") from None


def _read_torch(path: Path) -> Weights:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickled = next((name for name in names if name == "data.pkl" or name.endswith("/data.pkl")), None)
            if pickled is None:
                raise UserError(f"{path}: holds no data.pkl; save it again with torch.save(model.state_dict(), ...)")
            with archive.open(pickled) as file:
                content = _Unpickler(file, archive, pickled.removesuffix("data.pkl")).load()
    except zipfile.BadZipFile:
        raise UserError(f"{path}: not a zip archive (older .pt format?); save it again with torch.save of PyTorch 1.6 or later") from None
    except UserError as fault:
        raise UserError(f"{path}: {str(fault).removeprefix(f'{path}: ')}") from None
    except Exception as fault:  # a broken pickle may raise anything
        raise UserError(f"{path}: not a readable PyTorch file ({type(fault).__name__}: {fault}); save the state dict again") from None
    state = _state_dict(content)
    if state is None:
        raise UserError(f"{path}: holds no state dict; save it with torch.save(model.state_dict(), ...)")
    return state


def _state_dict(content: Any, depth: int = 0) -> Weights | None:
    """The mapping of names to arrays: the content itself, or inside a training checkpoint."""
    if not isinstance(content, Mapping) or depth > 3:
        return None
    if content and all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in content.items()):
        return dict(content)
    preferred = [content[name] for name in STATE_NAMES if name in content]
    return next((found for part in preferred if (found := _state_dict(part, depth + 1)) is not None), None)


def _unwrapped(name: str) -> str:
    for prefix in WRAPPERS:
        name = name.removeprefix(prefix)
    return name


class _StorageType(NamedTuple):
    dtype: str


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str):
        super().__init__(file, encoding="latin1")
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return _StorageType(STORAGES[name])
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch", "Size"): tuple,
            ("torch", "device"): str,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): codecs.encode,  # how NumPy scalars of a checkpoint's figures carry their bytes
            **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
            **{("torch", dtype): dtype for dtype in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")},
        }
        if (module, name) not in known:
            raise UserError(f"its pickle asks for '{module}.{name}', which is not allowed; save torch.save(model.state_dict(), ...) alone")
        return known[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage, key, _, count = pid
        if kind != "storage" or not isinstance(storage, _StorageType):
            raise UserError(f"unknown storage {pid[:2]}; save the state dict again")
        raw = self._archive.read(f"{self._folder}data/{key}")
        if storage.dtype == "bfloat16":  # the upper half of a float32
            return (np.frombuffer(raw, "<u2", count).astype("<u4") << 16).view("<f4")
        return np.frombuffer(raw, storage.dtype, count)


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> np.ndarray:
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (offset < 0 or min(stride, default=0) < 0 or last >= len(storage)):
        raise UserError(f"a tensor of shape {tuple(size)} reaches beyond its storage: the file is broken")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False).copy()


def _scalar(dtype: np.dtype, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype, 1)[0]  # refuses object dtypes


def _parameter(data: np.ndarray, *_: Any) -> np.ndarray:
    return data
