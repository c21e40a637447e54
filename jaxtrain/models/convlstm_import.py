"""Weights of the earlier Keras program -> the parameters of the `baseline` of `models.convlstm`. NumPy only.

Its cells are ours unchanged (Wx, Wh, b with gates i, f, g, o); its norms and its 1x1 product are renamed. Names are as in the program
("encoder_1/conv_lstm_cell/kernel"), or none at all: in a weight file of Keras layers are known by their order and shapes.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxtrain.errors import UserError

Arrays = Mapping[str, np.ndarray]
CELLS = {"encoder_1": "body/encoder/0", "encoder_2": "body/encoder/1", "decoder": "body/decoder"}
NORMS = {"encoder_bn_1": "body/between/0/norm", "encoder_bn_2": "body/between/1/norm", "decoder_bn": "body/between/2/norm"}
CELL_PARTS = {"kernel": "inputs/kernel", "recurrent_kernel": "recurrent/kernel", "bias": "bias"}
NORM_PARTS = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
WRAPPERS = ("vars", "cell", "conv_lstm_cell")  # what stands between a layer and its arrays in a Keras file
PATHS = {  # their name -> ours
    **{f"{layer}/conv_lstm_cell/{theirs}": f"{path}/{ours}" for layer, path in CELLS.items() for theirs, ours in CELL_PARTS.items()},
    **{f"{layer}/{theirs}": f"{path}/{ours}" for layer, path in NORMS.items() for theirs, ours in NORM_PARTS.items()},
    "output/kernel": "body/emit/kernel",
    "output/bias": "body/emit/bias",
}


class Imported(NamedTuple):
    """What the shapes say of the network, and its arrays: params and running statistics by path, float32."""

    hidden: int
    kernel: tuple[int, int]
    terminal: int
    params: dict[str, np.ndarray]
    model_state: dict[str, np.ndarray]


def import_weights(arrays: Arrays) -> Imported:
    """The network inside `arrays`, named as in the earlier program or as in a Keras file ("layers/conv_lstm2d_1/cell/vars/0").

    Raises UserError naming every array that is missing, unknown or of another shape.
    """
    named = dict(arrays) if "encoder_1/conv_lstm_cell/kernel" in arrays else by_layer(arrays)
    first = named.get("encoder_1/conv_lstm_cell/kernel")
    fusion = named.get("decoder/conv_lstm_cell/kernel")
    if first is None or first.ndim != 4 or fusion is None or fusion.ndim != 4:
        found = ", ".join(f"'{name}' {np.shape(value)}" for name, value in list(arrays.items())[:4]) or "nothing"
        raise UserError(f"imported weights: no encoder_1 and decoder cell with kernels of 4 axes (found {found}): is this the baseline?")
    kh, kw, channels, gates = first.shape
    hidden = gates // 4
    terminal = fusion.shape[2] - hidden
    expected: dict[str, tuple[int, ...]] = {}
    for name, inputs in zip(CELLS, (channels, hidden, hidden + terminal), strict=True):
        shapes = {"kernel": (kh, kw, inputs, gates), "recurrent_kernel": (kh, kw, hidden, gates), "bias": (gates,)}
        expected |= {f"{name}/conv_lstm_cell/{part}": shape for part, shape in shapes.items()}
    expected |= {f"{name}/{part}": (hidden,) for name in NORMS for part in NORM_PARTS}
    expected |= {"output/kernel": (1, 1, 1, hidden, 1), "output/bias": (1,)}
    _compare(named, expected)
    named["output/kernel"] = named["output/kernel"].reshape(hidden, 1)
    values = {PATHS[name]: np.ascontiguousarray(value, dtype=np.float32) for name, value in named.items()}
    running = {name: value for name, value in values.items() if name.endswith(("/mean", "/var"))}
    params = {name: value for name, value in values.items() if name not in running}
    return Imported(hidden, (kh, kw), terminal, params, running)


def by_layer(arrays: Arrays) -> dict[str, np.ndarray]:
    """Arrays of a Keras weight file under the earlier program's names: layers by their shapes, in the order of their numbers.

    Three arrays (kh, kw, Cin, 4H), (kh, kw, H, 4H), (4H,) are a cell, four of (H,) a norm, a 1x1 kernel and its bias the output;
    what an optimizer keeps is passed over. Raises UserError for whatever belongs to none of these.
    """
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, value in arrays.items():
        if not name.startswith("optimizer"):
            layer, place = _place(name)
            layers.setdefault(layer, {})[place] = value
    kinds: dict[tuple[int, ...], list[list[np.ndarray]]] = {(4, 4, 1): [], (1, 1, 1, 1): [], (5, 1): []}
    left = []
    for layer in sorted(layers, key=_number):
        values = [layers[layer][place] for place in sorted(layers[layer])]
        found = kinds.get(tuple(value.ndim for value in values))
        found.append(values) if found is not None else left.append(f"{layer} {[value.shape for value in values]}")
    cells, norms, outputs = kinds.values()
    if left or (len(cells), len(norms), len(outputs)) != (3, 3, 1):
        raise UserError(
            f"imported weights: {len(cells)} cells, {len(norms)} norms and {len(outputs)} output layers, where 3, 3 and 1 make the "
            f"baseline; left over: {'; '.join(left) or 'nothing'}"
        )
    named: dict[str, np.ndarray] = {}
    for name, values in zip(CELLS, cells, strict=True):
        named |= {f"{name}/conv_lstm_cell/{part}": value for part, value in zip(CELL_PARTS, values, strict=True)}
    for name, values in zip(NORMS, norms, strict=True):
        named |= {f"{name}/{part}": value for part, value in zip(NORM_PARTS, values, strict=True)}
    return named | {"output/kernel": outputs[0][0], "output/bias": outputs[0][1]}


def _place(name: str) -> tuple[str, int]:
    """'layers/conv_lstm2d_1/cell/vars/2' and 'conv_lstm2d_1/conv_lstm_cell/bias:0' -> ('conv_lstm2d_1', 2)."""
    *path, last = name.removesuffix(":0").split("/")
    while path and path[-1] in WRAPPERS:
        path.pop()
    parts = list(CELL_PARTS) if last in CELL_PARTS else list(NORM_PARTS)
    place = int(last) if last.isdigit() else parts.index(last) if last in parts else len(parts)
    return path[-1] if path else name, place


def _number(layer: str) -> tuple[bool, int]:
    """Sort key of a layer's name: the number at its end, 0 where there is none; named decoders after encoders."""
    number = re.search(r"_(\d+)$", layer)
    return "decoder" in layer, int(number[1]) if number else 0


def _compare(arrays: Arrays, expected: Mapping[str, tuple[int, ...]]) -> None:
    faults = [f"'{name}' {shape} is missing" for name, shape in expected.items() if name not in arrays]
    faults += [f"'{name}' {value.shape} is unknown" for name, value in arrays.items() if name not in expected]
    faults += [f"'{name}' is {arrays[name].shape}, expected {shape}" for name, shape in expected.items()
               if name in arrays and arrays[name].shape != shape]  # fmt: skip
    if faults:
        raise UserError(f"imported weights do not fit, {len(faults)} arrays: {'; '.join(faults)}")
