"""Weights of the published PyTorch implementation -> the parameters of `models.tft.TFT`. NumPy only.

The published network is one member of our family: one target, collapsed or plain selection, no anchor. Linear weights are
(out, in) there and (in, out) here; its tables have no row for unknown, ours is their mean; of its two LSTM biases only the sum counts.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxtrain.errors import UserError
from jaxtrain.models.tft_config import Config, Variables
from jaxtrain.nn.selection import Variable

Arrays = Mapping[str, np.ndarray]
LEVELS = (0.1, 0.5, 0.9)
KINDS = {"static": ("s_cat", "s_cont"), "observed": ("t_cat_o", "t_cont_o"), "known": ("t_cat_k", "t_cont_k"), "targets": ("", "t_tgt")}
LIBRARY_MARKS = ("multi_horizon_attn.", "static_variable_selection.", "lstm_encoder.")  # of the library the earlier system was built on


class Imported(NamedTuple):
    """config and variables of the network; params {"head/kernel": float32 array}."""

    config: Config
    variables: Variables
    params: dict[str, np.ndarray]


def import_weights(arrays: Arrays, quantiles: tuple[float, ...] = LEVELS) -> Imported:
    """The network inside `arrays` (names and shapes of the published implementation's state dict).

    Width, heads and variables are read off the shapes. Raises UserError naming every array that is missing, unknown or of
    another shape, and saying so when the weights are another library's.
    """
    source = _Source(arrays)
    params: dict[str, np.ndarray] = {}
    roles = {kind: _embedding(source, kind, *names, params) for kind, names in KINDS.items()}
    variables = Variables(**roles)
    static = bool(variables.static)
    width = source.read("TFTpart2.input_gate_ln.weight", 1).shape[0]
    if static:
        source.ignore("static_encoder.vsn.joint_grn.lin_c.weight")  # created there, never used: this selection has no context
        _selection(source, "static_encoder.vsn", "static_selection", len(variables.static), params)
        _stack(source, [f"static_encoder.context_grns.{i}" for i in range(4)], "contexts", params)
    for theirs, ours, found in (("history", "past", variables.past), ("future", "future", variables.known)):
        _selection(source, f"TFTpart2.{theirs}_vsn", f"{ours}_selection", len(found), params)
    for theirs, ours in (("history", "encoder"), ("future", "decoder")):
        _lstm(source, f"TFTpart2.{theirs}_encoder", ours, params)
    for theirs, ours in (("input_gate", "lstm_gate"), ("attention_gate", "attention_gate"), ("decoder_gate", "output_gate")):
        _linear(source, f"TFTpart2.{theirs}.lin", f"{ours}/gate", params)
        _norm(source, "TFTpart2." + ("input_gate_ln" if theirs == "input_gate" else theirs.replace("gate", "ln")), f"{ours}/norm", params)
    for theirs, ours in (("enrichment_grn", "enrichment"), ("positionwise_grn", "positionwise")):
        _residual(source, f"TFTpart2.{theirs}", ours, params)
    heads = _attention(source, width, params)
    _linear(source, "TFTpart2.quantile_proj", "head", params)
    if params["head/bias"].size != len(quantiles):
        raise UserError(f"imported weights: quantile_proj has {params['head/bias'].size} rows, {len(quantiles)} levels were given")
    source.finish()
    config = Config(
        hidden=width, heads=heads, dropout=0.1, unknown_dropout=0.0, quantiles=tuple(quantiles), attention="causal", anchor="none",
        lstm="auto", vsn="collapsed", remat="none", head="independent",
    )  # fmt: skip
    return Imported(config, variables, {name: np.ascontiguousarray(value, np.float32) for name, value in params.items()})


class _Source:
    """The arrays, remembering which were read."""

    def __init__(self, arrays: Arrays):
        self._arrays, self._read = {name: np.asarray(value) for name, value in arrays.items()}, set[str]()
        if any(mark in name for name in self._arrays for mark in LIBRARY_MARKS):
            raise UserError("imported weights: these are another library's (interpolated widths, categories that bypass their network): "
                            "another function, which this network cannot compute; train anew")  # fmt: skip

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def count(self, prefix: str, suffix: str) -> int:
        """How many of prefix0suffix, prefix1suffix, .. there are."""
        n = 0
        while f"{prefix}{n}{suffix}" in self._arrays:
            n += 1
        return n

    def read(self, name: str, rank: int) -> np.ndarray:
        if name not in self._arrays:
            found = ", ".join(sorted(self._arrays)[:3]) or "nothing"
            raise UserError(f"imported weights: '{name}' is missing (found {found} ...): is this a state dict of the published network?")
        value = self._arrays[name]
        if value.ndim != rank:
            raise UserError(f"imported weights: '{name}' has shape {value.shape}, expected {rank} axes")
        self._read.add(name)
        return value.astype(np.float32)

    def ignore(self, prefix: str) -> None:
        """Forget the arrays whose names begin so."""
        self._arrays = {name: value for name, value in self._arrays.items() if not name.startswith(prefix)}

    def finish(self) -> None:
        unknown = sorted(set(self._arrays) - self._read)
        if unknown:
            raise UserError(f"imported weights: {len(unknown)} arrays are unknown: {', '.join(unknown)}")


def _embedding(source: _Source, kind: str, cat: str, cont: str, params: dict[str, np.ndarray]) -> tuple[Variable, ...]:
    variables = []
    for i in range(source.count(f"embedding.{cat}_embed.", ".weight") if cat else 0):
        table = source.read(f"embedding.{cat}_embed.{i}.weight", 2)
        variables.append(Variable(f"{kind}_cat_{i}", categories=len(table)))
        params[f"embeddings/{kind}/tables/{kind}_cat_{i}"] = np.concatenate([table.mean(0, keepdims=True), table])
    if f"embedding.{cont}_embedding_vectors" in source:
        kernel = source.read(f"embedding.{cont}_embedding_vectors", 2)
        params[f"embeddings/{kind}/kernel"], params[f"embeddings/{kind}/bias"] = kernel, source.read(f"embedding.{cont}_embedding_bias", 2)
        variables += [Variable(f"{kind}_{i}") for i in range(len(kernel))]
    return tuple(variables)


def _linear(source: _Source, theirs: str, ours: str, params: dict[str, np.ndarray], bias: bool = True) -> None:
    params[f"{ours}/kernel"] = source.read(f"{theirs}.weight", 2).T
    if bias:
        params[f"{ours}/bias"] = source.read(f"{theirs}.bias", 1)


def _norm(source: _Source, theirs: str, ours: str, params: dict[str, np.ndarray]) -> None:
    params[f"{ours}/scale"], params[f"{ours}/bias"] = source.read(f"{theirs}.weight", 1), source.read(f"{theirs}.bias", 1)


def _residual(source: _Source, theirs: str, ours: str, params: dict[str, np.ndarray]) -> None:
    _linear(source, f"{theirs}.lin_a", f"{ours}/inner", params)
    if f"{theirs}.lin_c.weight" in source:
        _linear(source, f"{theirs}.lin_c", f"{ours}/context", params, bias=False)
    _linear(source, f"{theirs}.lin_i", f"{ours}/outer", params)
    _linear(source, f"{theirs}.glu.lin", f"{ours}/finish/gate", params)
    _norm(source, f"{theirs}.layer_norm.ln", f"{ours}/finish/norm", params)
    if f"{theirs}.out_proj.weight" in source:
        _linear(source, f"{theirs}.out_proj", f"{ours}/skip", params)


def _stack(source: _Source, each: list[str], ours: str, params: dict[str, np.ndarray]) -> None:
    """Networks without context, side by side along a first axis."""
    parts: dict[str, list[np.ndarray]] = {}
    for theirs in each:
        one: dict[str, np.ndarray] = {}
        _residual(source, theirs, "", one)
        for name, value in one.items():
            parts.setdefault(name.removeprefix("/").replace("finish/", ""), []).append(value)
    params |= {f"{ours}/{name}": np.stack(found) for name, found in parts.items()}


def _selection(source: _Source, theirs: str, ours: str, m: int, params: dict[str, np.ndarray]) -> None:
    if m > 1:
        _residual(source, f"{theirs}.joint_grn", f"{ours}/weights", params)
    else:
        source.ignore(f"{theirs}.joint_grn.")  # the softmax of one weight is 1, whatever this network says
    _stack(source, [f"{theirs}.var_grns.{i}" for i in range(m)], f"{ours}/variables", params)


def _lstm(source: _Source, theirs: str, ours: str, params: dict[str, np.ndarray]) -> None:
    params[f"{ours}/inputs/kernel"] = source.read(f"{theirs}.weight_ih_l0", 2).T
    params[f"{ours}/recurrent/kernel"] = source.read(f"{theirs}.weight_hh_l0", 2).T
    params[f"{ours}/inputs/bias"] = source.read(f"{theirs}.bias_ih_l0", 1) + source.read(f"{theirs}.bias_hh_l0", 1)


def _attention(source: _Source, width: int, params: dict[str, np.ndarray]) -> int:
    """The number of heads: qkv holds n queries, n keys and one value of d = width / n rows each."""
    packed = source.read("TFTpart2.attention.qkv_linears.weight", 2)
    d = len(packed) - 2 * width
    if d < 1 or width % d:
        raise UserError(f"imported weights: attention.qkv_linears {packed.shape} fits no number of heads of width {width}")
    for name, rows in zip(("query", "key", "value"), np.split(packed, [width, 2 * width]), strict=True):
        params[f"attention/{name}/kernel"] = rows.T
    _linear(source, "TFTpart2.attention.out_proj", "attention/output", params, bias=False)
    return width // d
