"""Weights of the earlier PyTorch program for cloud base height -> the reference graph of `models.cbh`. NumPy only.

A convolution (out, in, 3, 3) becomes (3, 3, in, out), a linear layer (out, in) is transposed, norms are renamed; running variances are
kept as they are (evaluation reads them alone). Names as in the program ("cnn_layers.0.weight"); without pixel gate, temporal attention
or FiLM the network had none.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxtrain.errors import UserError

Arrays = Mapping[str, np.ndarray]
PREFIX, COUNTER = "_orig_mod.", ".num_batches_tracked"
WEIGHTS = {"weight": "kernel", "bias": "bias"}
NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
MAPS = {  # their layer -> ours
    **{f"cnn_layers.{5 * block}": f"encoder/blocks/{block}/conv" for block in range(3)},
    "film_layers.0.film_mlp.0": "film/first",
    "film_layers.0.film_mlp.2": "film/last",
    "dense_layers.0": "head/dense/0",
    "dense_layers.4": "head/dense/1",
    "output": "head/output",
    "spatial_attention.conv1": "encoder/gate/conv",
    "spatial_attention.conv2": "encoder/gate",
    "temporal_attention.fc1": "attention/first",
    "temporal_attention.fc2": "attention/last",
}
NORMS = {
    **{f"cnn_layers.{5 * block + 1}": f"encoder/blocks/{block}/norm" for block in range(3)},
    "dense_layers.1": "head/norms/0",
    "dense_layers.5": "head/norms/1",
}
PATHS = {  # their name -> ours
    **{f"{theirs}.{part}": f"{ours}/{name}" for theirs, ours in MAPS.items() for part, name in WEIGHTS.items()},
    **{f"{theirs}.{part}": f"{ours}/{name}" for theirs, ours in NORMS.items() for part, name in NORM.items()},
}


class Imported(NamedTuple):
    """Keys of `models.cbh.Config` that the arrays decide, and the arrays: params and running statistics by path, float32."""

    model: dict[str, Any]
    params: dict[str, np.ndarray]
    model_state: dict[str, np.ndarray]


def import_weights(arrays: Arrays) -> Imported:
    """The network inside `arrays`. Raises UserError naming every array that is missing, left over or of another shape."""
    named = {name.removeprefix(PREFIX): value for name, value in arrays.items() if not name.endswith(COUNTER)}
    ends = [_shape(named, layer) for layer in ("cnn_layers.0", "cnn_layers.5", "cnn_layers.10", "dense_layers.0", "dense_layers.4")]
    if any(len(shape) != rank for shape, rank in zip(ends, (4, 4, 4, 2, 2), strict=True)):
        found = ", ".join(f"'{name}' {np.shape(value)}" for name, value in list(named.items())[:4]) or "nothing"
        raise UserError(f"imported weights: no cnn_layers.0, 5, 10 of 4 axes and dense_layers.0, 4 of 2 (found {found}): is this the "
                        "earlier network?")  # fmt: skip
    channels, dense = tuple(shape[0] for shape in ends[:3]), tuple(shape[0] for shape in ends[3:])
    film = _shape(named, "film_layers.0.film_mlp.0")
    hidden = film[0] if len(film) == 2 else 0
    expected = _core(channels, dense)
    for prefix, shapes in _optional(channels, hidden).items():
        if any(name.startswith(f"{prefix}.") for name in named):
            expected |= {f"{prefix}.{name}": shape for name, shape in shapes.items()}
    _compare(named, expected)
    values = {PATHS[name]: _ours(name, value) for name, value in named.items()}
    running = {path: value for path, value in values.items() if path.endswith(("/mean", "/var"))}
    has = {prefix: any(name.startswith(prefix) for name in named) for prefix in ("film", "spatial", "temporal")}
    model = {
        "channels": channels, "dense": dense, "film_hidden": hidden or 1, "film": "plain" if has["film"] else "none",
        "spatial_attention": has["spatial"], "temporal_attention": has["temporal"],
    }  # fmt: skip
    return Imported(model, {path: value for path, value in values.items() if path not in running}, running)


def _shape(arrays: Arrays, layer: str) -> tuple[int, ...]:
    weight = arrays.get(f"{layer}.weight")
    return () if weight is None else weight.shape


def _core(channels: tuple[int, ...], dense: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Arrays that every such network has, with their shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for block, (inputs, outputs) in enumerate(zip((1, *channels), channels, strict=False)):
        shapes |= _layer(f"cnn_layers.{5 * block}", (outputs, inputs, 3, 3))
        shapes |= {f"cnn_layers.{5 * block + 1}.{part}": (outputs,) for part in NORM}
    for layer, (inputs, outputs) in enumerate(zip((channels[-1], *dense), dense, strict=False)):
        shapes |= _layer(f"dense_layers.{4 * layer}", (outputs, inputs))
        shapes |= {f"dense_layers.{4 * layer + 1}.{part}": (outputs,) for part in NORM}
    return shapes | _layer("output", (1, dense[-1]))


def _optional(channels: tuple[int, ...], hidden: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Arrays of the parts that may have been switched off."""
    features = channels[-1]
    return {
        "film_layers": _layer("0.film_mlp.0", (hidden, 2)) | _layer("0.film_mlp.2", (2 * channels[0], hidden)),
        "spatial_attention": _layer("conv1", (1, 1, 3, 3)) | _layer("conv2", (1, 1, 1, 1)),
        "temporal_attention": _layer("fc1", (features // 2, features)) | _layer("fc2", (1, features // 2)),
    }


def _layer(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _ours(name: str, value: np.ndarray) -> np.ndarray:
    if name == "spatial_attention.conv2.weight":
        value = value.reshape(1)
    elif value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
    return np.ascontiguousarray(value.T if value.ndim == 2 else value, dtype=np.float32)


def _compare(arrays: Arrays, expected: Mapping[str, tuple[int, ...]]) -> None:
    faults = [f"'{name}' {shape} is missing" for name, shape in expected.items() if name not in arrays]
    faults += [f"'{name}' {value.shape} is left over" for name, value in arrays.items() if name not in expected]
    faults += [f"'{name}' is {arrays[name].shape}, expected {shape}" for name, shape in expected.items()
               if name in arrays and arrays[name].shape != shape]  # fmt: skip
    if faults:
        raise UserError(f"imported weights do not fit, {len(faults)} arrays: {'; '.join(faults)}")
