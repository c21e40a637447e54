"""Weights of the earlier PyTorch program -> the parameters of `models.stmgt.STMGT`. NumPy only.

The earlier network is one member of our family: speed as only input, whole hours, one-way messages, mean readout.
Linear weights are (out, in) there and (in, out) here.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxtrain.errors import UserError
from jaxtrain.models.stmgt import Config

Shape = tuple[int, ...]
IGNORED = ("weather_encoder.",)  # created by the earlier program, never called
NORMALISERS = ("speed_normalizer", "weather_normalizer")
EPSILON = 1e-8  # the earlier program divides by std + 1e-8


class Imported(NamedTuple):
    """config of the network; params {"blocks/0/gate/kernel": float32 array}; the scale part of the statistics."""

    config: Config
    params: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]


class Sizes(NamedTuple):
    width: int
    heads: int
    blocks: int
    ffn: int
    outputs: int  # out_steps x components


class Target(NamedTuple):
    """Where one source array goes: shape it must have, parameter it fills, and how."""

    shape: Shape
    name: str
    convert: Callable[[np.ndarray], np.ndarray]


def import_weights(arrays: Mapping[str, np.ndarray], out_steps: int = 12, output_space: str = "normalized") -> Imported:
    """The network inside `arrays` (names and shapes of the earlier program's state dict).

    Width, heads, blocks, feed-forward width and components are read off the shapes; `out_steps` P splits the P x K rows
    of the head. Raises UserError naming every array that is missing, unknown or of another shape.
    """
    arrays = {name: np.asarray(value) for name, value in arrays.items() if not name.startswith(IGNORED)}
    sizes = _sizes(arrays)
    table = _table(sizes)
    scale_shapes = {f"{owner}.{part}": shape for owner, shape in zip(NORMALISERS, ((), (3,)), strict=True) for part in ("mean", "std")}
    expected = {name: target.shape for name, target in table.items()} | scale_shapes
    _compare(arrays, expected)
    if sizes.outputs % out_steps:
        raise UserError(f"imported weights: output_head.mu_head.weight has {sizes.outputs} rows, no multiple of {out_steps} steps; "
                        "give the number of output steps the weights were trained for")
    parts: dict[str, list[np.ndarray]] = {}
    for name, target in table.items():
        parts.setdefault(target.name, []).append(target.convert(arrays[name].astype(np.float32)))
    params = {name: np.ascontiguousarray(np.concatenate(found, axis=-1)) for name, found in parts.items()}
    statistics = {name.replace("_normalizer.", "_"): arrays[name].astype(np.float32).reshape(shape) for name, shape in scale_shapes.items()}
    for owner in ("speed", "weather"):
        statistics[f"{owner}_std"] = statistics[f"{owner}_std"] + np.float32(EPSILON)
    return Imported(_config(sizes, out_steps, output_space), params, statistics)


def _sizes(arrays: Mapping[str, np.ndarray]) -> Sizes:
    def shape(name: str, rank: int) -> Shape:
        if name not in arrays:
            found = ", ".join(sorted(arrays)[:3]) or "nothing"
            raise UserError(f"imported weights: '{name}' is missing (found {found} ...): is this a state dict of the earlier program?")
        if arrays[name].ndim != rank:
            raise UserError(f"imported weights: '{name}' has shape {arrays[name].shape}, expected {rank} axes")
        return arrays[name].shape

    width = shape("traffic_encoder.weight", 2)[0]
    blocks = len({name.split(".")[1] for name in arrays if name.startswith("st_blocks.")})
    return Sizes(
        width=width,
        heads=shape("st_blocks.0.gat.att", 3)[1],
        blocks=blocks,
        ffn=max(1, shape("st_blocks.0.temporal_ffn.0.weight", 2)[0] // max(1, width)),
        outputs=shape("output_head.mu_head.weight", 2)[0],
    )


def _table(sizes: Sizes) -> dict[str, Target]:
    d, heads = sizes.width, sizes.heads
    table: dict[str, Target] = {}

    def linear(source: str, target: str, inputs: int, outputs: int, joint: str = ".") -> None:
        table[f"{source}{joint}weight"] = Target((outputs, inputs), f"{target}/kernel", np.transpose)
        table[f"{source}{joint}bias"] = Target((outputs,), f"{target}/bias", _same)

    def norm(source: str, target: str) -> None:
        table[f"{source}.weight"] = Target((d,), f"{target}/scale", _same)
        table[f"{source}.bias"] = Target((d,), f"{target}/bias", _same)

    def attention(source: str, target: str) -> None:
        linear(f"{source}.in_proj", f"{target}/inputs", d, 3 * d, joint="_")
        linear(f"{source}.out_proj", f"{target}/output", d, d)

    linear("traffic_encoder", "embedding/channels", 1, d)
    table["temporal_encoder.dow_embedding.weight"] = Target((7, d // 2), "embedding/weekday", _same)
    table["temporal_encoder.weekend_embedding.weight"] = Target((2, d // 4), "embedding/weekend", _same)
    linear("temporal_encoder.proj", "embedding/calendar", 2 + d // 2 + d // 4, d)
    for i in range(sizes.blocks):
        source, target = f"st_blocks.{i}", f"blocks/{i}"
        linear(f"{source}.gat.lin_l", f"{target}/spatial/source", d, heads * d)
        linear(f"{source}.gat.lin_r", f"{target}/spatial/own", d, heads * d)
        table[f"{source}.gat.att"] = Target((1, heads, d), f"{target}/spatial/attention", lambda x: x[0])
        table[f"{source}.gat.bias"] = Target((d,), f"{target}/spatial/bias", _same)
        attention(f"{source}.temporal_attn", f"{target}/temporal")
        linear(f"{source}.temporal_ffn.0", f"{target}/expand", d, sizes.ffn * d)
        linear(f"{source}.temporal_ffn.3", f"{target}/contract", sizes.ffn * d, d)
        linear(f"{source}.fusion_gate", f"{target}/gate", 2 * d, d)
        for old, new in (("spatial", "spatial"), ("temporal1", "temporal"), ("temporal2", "ffn"), ("fusion", "fusion")):
            norm(f"{source}.ln_{old}", f"{target}/norm_{new}")
    linear("weather_cross_attn.weather_proj", "weather/inputs", 3, d)
    attention("weather_cross_attn.cross_attn", "weather/attention")
    norm("weather_cross_attn.norm", "weather/norm")
    for part in ("mu", "sigma", "pi"):  # three maps there, the columns of one here, in this order
        linear(f"output_head.{part}_head", "head", d, sizes.outputs)
    return table


def _compare(arrays: Mapping[str, np.ndarray], expected: Mapping[str, Shape]) -> None:
    faults = [f"'{name}' {shape} is missing" for name, shape in expected.items() if name not in arrays]
    faults += [f"'{name}' {value.shape} is unknown" for name, value in arrays.items() if name not in expected]
    for name, shape in expected.items():
        if name in arrays and arrays[name].shape != shape and not (shape == () and arrays[name].size == 1):
            faults.append(f"'{name}' is {arrays[name].shape}, expected {shape}")
    if faults:
        raise UserError(f"imported weights do not fit, {len(faults)} arrays: {'; '.join(faults)}")


def _config(sizes: Sizes, out_steps: int, output_space: str) -> Config:
    return Config(
        width=sizes.width, heads=sizes.heads, blocks=sizes.blocks, components=sizes.outputs // out_steps, ffn=sizes.ffn,
        dropout=0.2, drop_edge=0.28, spatial="gatv2", reach="neighbours", relation_bias=False, edge_bias=False,
        inputs=("speed",), hour="integer", position=False, slot_embedding=False, adaptive_dim=0, adaptive_per_step=True,
        readout="mean", anchor="none", sigma="clip", output_space=output_space, remat=False,
    )  # fmt: skip


def _same(x: np.ndarray) -> np.ndarray:
    return x
