"""Weights of the earlier Keras program -> the parameters of the `baseline` of `models.convlstm`. NumPy only.

Its cells are ours unchanged (Wx, Wh, b with gates i, f, g, o); its norms and its 1x1 product are renamed. Names are as in the program
("encoder_1/conv_lstm_cell/kernel"), or none at all: in a weight file of Keras layers are known by their order and shapes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxtrain.errors import UserError

Arrays = Mapping[str, np.ndarray]
CELLS = {"encoder_1": "body/encoder/0", "encoder_2": "body/encoder/1", "decoder": "body/decoder"}
NORMS = {"encoder_bn_1": "body/between/0/norm", "encoder_bn_2": "body/between/1/norm", "decoder_bn": "body/between/2/norm"}
CELL_PARTS = {"kernel": "inputs/kernel", "recurrent_kernel": "recurrent/kernel", "bias": "bias"}
NORM_PARTS = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
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
    """The network inside `arrays`, named as in the earlier program or in Keras' order of layers ("layers/conv_lstm2d_1/...").

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
    """Arrays of a Keras weight file under the earlier program's names: groups by shape, in the order of their numbers.

    Three arrays (kh, kw, Cin, 4H), (kh, kw, H, 4H), (4H,) are a cell, four of (H,) a norm, a kernel with a last axis of 1 and its
    bias the output. Whatever belongs to none of these is an error.
    """
    groups: dict[str, list[tuple[str, np.ndarray]]] = {}
    for name, value in arrays.items():
        if value.dtype.kind == "f":
            groups.setdefault(_layer(name), []).append((name, value))
    cells, norms, outputs, rest = [], [], [], []
    for layer in sorted(groups, key=_order):
        values = [value for _, value in sorted(groups[layer], key=lambda item: _order(item[0]))]
        ranks = [value.ndim for value in values]
        kinds = {(4, 4, 1): cells, (1, 1, 1, 1): norms, (5, 1): outputs, (4, 1): outputs, (2, 1): outputs}
        kinds.get(tuple(ranks), rest).append((layer, values))
    if rest or (len(cells), len(norms), len(outputs)) != (3, 3, 1):
        left = "; ".join(f"{layer} {[v.shape for v in values]}" for layer, values in rest) or "none"
        raise UserError(
            f"imported weights: {len(cells)} cells, {len(norms)} norms and {len(outputs)} output layers, expected 3, 3 and 1; "
            f"left over: {left}"
        )
    named: dict[str, np.ndarray] = {}
    for name, (_, values) in zip(CELLS, cells, strict=True):
        named |= {f"{name}/conv_lstm_cell/{part}": value for part, value in zip(CELL_PARTS, values, strict=True)}
    for name, (_, values) in zip(NORMS, norms, strict=True):
        named |= {f"{name}/{part}": value for part, value in zip(NORM_PARTS, values, strict=True)}
    kernel, bias = outputs[0][1]
    return named | {"output/kernel": kernel.reshape(1, 1, 1, *kernel.shape[-2:]), "output/bias": bias}


def _layer(name: str) -> str:
    """'_layer_checkpoint_dependencies/conv_lstm2d_1/cell/vars/0' -> what comes before the cell and its variables."""
    return re.sub(r"(/(cell|conv_lstm_cell|layer|_layer|vars|\d+|\w*kernel|bias|gamma|beta|moving_\w+)(:0)?)+$", "", name)


def _order(name: str) -> tuple[str, int, int]:
    """Sort key: the name without its last number, that number (0 where there is none), and the place among Keras' own variables."""
    numbered = re.match(r"^(.*?)_?(\d*)$", name.removesuffix(":0"))
    assert numbered is not None
    stem, number = numbered.groups()
    parts: Sequence[str] = (*CELL_PARTS, *NORM_PARTS)
    last = stem.rsplit("/", 1)[-1]
    place = next((i for i, part in enumerate(parts) if part == last), 0)
    return ("" if place else stem, int(number or 0), place)


def _compare(arrays: Arrays, expected: Mapping[str, tuple[int, ...]]) -> None:
    faults = [f"'{name}' {shape} is missing" for name, shape in expected.items() if name not in arrays]
    faults += [f"'{name}' {value.shape} is unknown" for name, value in arrays.items() if name not in expected]
    faults += [f"'{name}' is {arrays[name].shape}, expected {shape}" for name, shape in expected.items()
               if name in arrays and arrays[name].shape != shape]  # fmt: skip
    if faults:
        raise UserError(f"imported weights do not fit, {len(faults)} arrays: {'; '.join(faults)}")
