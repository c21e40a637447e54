"""STMGT: spatial and temporal attention side by side, fused by a gate, with a Gaussian-mixture head.

Letters: B batch, T input steps, P output steps, N nodes, d width, H heads, K components, D neighbour slots,
S slots per day. Inside, activations are (B, N, T, d): a node's history is contiguous for the neighbour gather, the
temporal attention and the readout alike.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.errors import UserError
from jaxtrain.nn import mixture as mixtures
from jaxtrain.nn.attention import MultiHeadAttention
from jaxtrain.nn.dropout import Dropout, Source
from jaxtrain.nn.graph import Buffer, GATv2, Graph, GraphAttention, PairBias, over_batch, table_graph
from jaxtrain.nn.linear import Linear
from jaxtrain.nn.mixture import Mixture

CHOICES = {
    "spatial": ("gatv2", "dot"),
    "reach": ("neighbours", "all"),
    "hour": ("fraction", "integer"),
    "readout": ("horizon", "mean"),
    "anchor": ("damped", "last", "none"),
    "sigma": ("softplus", "clip"),
    "output_space": ("normalized", "raw"),
}
CHANNELS = ("speed", "observed", "deviation")
SAVED_PER_TOKEN = 30  # activations that a block keeps for its backward pass, in units of d
SIGMA_FLOOR = 0.02
SIGMA_CLIP = (0.1, 10.0)
SIGMA_BIAS = -0.4844  # 0.02 + softplus(-0.4844) = 0.5


@dataclass(frozen=True)
class Config:
    """The network. Unset: adaptive_dim 0. All names as in `configs/stmgt.py`; CHOICES lists the words allowed."""

    width: int
    heads: int
    blocks: int
    components: int
    ffn: int  # the feed-forward layer is ffn x width wide
    dropout: float
    drop_edge: float
    spatial: str
    reach: str
    relation_bias: bool
    edge_bias: bool
    inputs: tuple[str, ...]
    hour: str
    position: bool
    slot_embedding: bool
    adaptive_dim: int
    adaptive_per_step: bool
    readout: str
    anchor: str
    sigma: str
    output_space: str
    remat: bool

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            _one_of(f"model.{name}", getattr(self, name), allowed)
        for channel in self.inputs:
            _one_of("model.inputs", channel, CHANNELS)
        if "speed" not in self.inputs or len(set(self.inputs)) != len(self.inputs):
            raise UserError(f"model.inputs {list(self.inputs)}: name each of {list(CHANNELS)} at most once, speed always")
        for name in ("width", "heads", "blocks", "components", "ffn"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: it must be 1 or more")
        if self.width % self.heads or self.width % 4:
            raise UserError(f"model.width {self.width} must be divisible by model.heads {self.heads} and by 4")
        for name in ("dropout", "drop_edge"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: a probability in [0, 1) is needed")
        if self.adaptive_dim < 0:
            raise UserError(f"model.adaptive_dim is {self.adaptive_dim}: 0 (off) or more is needed")
        if self.spatial == "gatv2" and self.reach == "all":
            raise UserError("model.reach 'all' needs model.spatial 'dot' (gatv2 compares neighbours only)")
        if self.output_space == "raw" and self.anchor != "none":
            raise UserError(f"model.output_space 'raw' needs model.anchor 'none', not '{self.anchor}'")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)
        raise UserError(f"{key} '{value}' is unknown: did you mean '{near[0]}'? (choices: {', '.join(allowed)})")


class Block(nnx.Module):
    """Graph attention and temporal attention of the same input, fused by a gate: (B, N, T, d) -> (B, N, T, d)."""

    def __init__(self, config: Config, *, dtype: Any, rngs: nnx.Rngs):
        d = config.width
        bias = PairBias(config.heads, config.relation_bias, config.edge_bias, config.drop_edge)
        spatial = GATv2 if config.spatial == "gatv2" else GraphAttention
        self.spatial = spatial(d, config.heads, config.dropout, bias, dtype=dtype, rngs=rngs)
        self.temporal = MultiHeadAttention(d, config.heads, config.dropout, dtype=dtype, rngs=rngs)
        self.expand = Linear(d, config.ffn * d, dtype=dtype, rngs=rngs)
        self.contract = Linear(config.ffn * d, d, dtype=dtype, rngs=rngs)
        self.gate = Linear(2 * d, d, dtype=dtype, rngs=rngs)
        self.norm_spatial = _norm(d, dtype, rngs)
        self.norm_temporal = _norm(d, dtype, rngs)
        self.norm_ffn = _norm(d, dtype, rngs)
        self.norm_fusion = _norm(d, dtype, rngs)
        self.dropout = Dropout(config.dropout)

    def __call__(self, x: jax.Array, graph: Graph, bias: jax.Array, rngs: Source | None = None) -> tuple[jax.Array, jax.Array]:
        """The fused activations, and the gate's mean () (1 = all spatial); bias: `spatial.pair_bias(graph, rngs)`."""
        s = self.norm_spatial(self.spatial(x, graph, bias, rngs))
        m = self.norm_temporal(x + self.dropout(self.temporal(x, rngs=rngs), rngs=rngs))
        hidden = self.dropout(_gelu(self.expand(m)), rngs=rngs)
        m = self.norm_ffn(m + self.dropout(self.contract(hidden), rngs=rngs))
        g = jax.nn.sigmoid(self.gate(jnp.concatenate([s, m], axis=-1)))
        return self.norm_fusion(g * s + (1 - g) * m + x), jnp.mean(g, dtype=jnp.float32)


class Embedding(nnx.Module):
    """Channels, calendar, position in the window, and the optional memories of slot and place -> (B, N, T, d)."""

    def __init__(self, config: Config, nodes: int, in_steps: int, slots: int, *, dtype: Any, rngs: nnx.Rngs):
        d = config.width
        self.hour, self.dtype = config.hour, dtype
        self.channels = Linear(len(config.inputs), d, dtype=dtype, rngs=rngs)
        self.weekday = _table((7, d // 2), rngs)
        self.weekend = _table((2, d // 4), rngs)
        self.calendar = Linear(2 + d // 2 + d // 4, d, dtype=dtype, rngs=rngs)
        self.position = _table((in_steps, d), rngs) if config.position else None
        self.slot = _table((slots, d), rngs) if config.slot_embedding else None
        steps = in_steps if config.adaptive_per_step else 1
        self.adaptive = _table((nodes, steps, config.adaptive_dim), rngs) if config.adaptive_dim else None
        self.adaptive_map = Linear(config.adaptive_dim, d, dtype=dtype, rngs=rngs) if config.adaptive_dim else None

    def __call__(self, channels: jax.Array, slot: jax.Array, dow: jax.Array, hours: jax.Array) -> jax.Array:
        """channels (B, N, T, C); slot, dow (B, T) int32; hours (B, T) float32 with their fraction."""
        if self.hour == "integer":
            hours = jnp.floor(hours + 1e-4)  # slots x minutes / 60 may fall just short of the hour
        angle = hours[..., None] * (2 * math.pi / 24)
        weekday = jax.nn.one_hot(dow, 7) @ self.weekday[...].astype(jnp.float32)
        weekend = jax.nn.one_hot((dow >= 5).astype(jnp.int32), 2) @ self.weekend[...].astype(jnp.float32)
        per_step = self.calendar(jnp.concatenate([jnp.sin(angle), jnp.cos(angle), weekday, weekend], axis=-1))
        if self.position is not None:
            per_step += self.position[...].astype(self.dtype)
        if self.slot is not None:
            per_step += (jax.nn.one_hot(slot, self.slot.shape[0]) @ self.slot[...].astype(jnp.float32)).astype(self.dtype)
        x = self.channels(channels) + per_step[:, None]
        if self.adaptive is not None and self.adaptive_map is not None:
            x += self.adaptive_map(self.adaptive[...])
        return x


class Weather(nnx.Module):
    """Cross-attention from traffic tokens (B, ..., d) to the weather history (B, T, 3), in z-scores."""

    def __init__(self, config: Config, *, dtype: Any, rngs: nnx.Rngs):
        self.inputs = Linear(3, config.width, dtype=dtype, rngs=rngs)
        self.attention = MultiHeadAttention(config.width, config.heads, config.dropout, dtype=dtype, rngs=rngs)
        self.norm = _norm(config.width, dtype, rngs)
        self.dropout = Dropout(config.dropout)

    def __call__(self, x: jax.Array, weather: jax.Array, rngs: Source | None = None) -> jax.Array:
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        found = self.attention(tokens, self.inputs(weather), rngs=rngs).reshape(x.shape)
        return self.norm(x + self.dropout(found, rngs=rngs))


class STMGT(nnx.Module):
    """The network of `config` on the graph, scale and profile of `statistics`.

    statistics: speed_mean, speed_std () or (N,); weather_mean, weather_std (3,) only with weather; neighbors, relation,
    neighbor_weight, neighbor_mask (N, D); profile (2, S, N); damping (P,); step_minutes (). Parameters are float32 and
    computed in `dtype`; softmax, norms' moments, head and mixture are float32 in every dtype.
    """

    def __init__(self, config: Config, statistics: Mapping[str, np.ndarray], in_steps: int, out_steps: int, 
                 rngs: nnx.Rngs, dtype: Any = jnp.float32):
        self.config, self.in_steps, self.out_steps = config, in_steps, out_steps
        self.nodes = len(statistics["neighbors"])
        graph = table_graph(statistics, config.reach == "all")
        self.graph = nnx.Dict({name: Buffer(jnp.asarray(value)) for name, value in graph.items()})
        names = ["speed_mean", "speed_std", "profile", "damping", "step_minutes"]
        names += ["weather_mean", "weather_std"] if "weather_mean" in statistics else []
        self.constants = nnx.Dict({name: Buffer(jnp.asarray(statistics[name], jnp.float32)) for name in names})
        slots = statistics["profile"].shape[1]
        self.embedding = Embedding(config, self.nodes, in_steps, slots, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.blocks)])
        self.weather = Weather(config, dtype=dtype, rngs=rngs) if "weather_mean" in statistics else None
        features = config.width * (in_steps if config.readout == "horizon" else 1)
        self.head = Linear(features, 3 * out_steps * config.components, dtype=jnp.float32, rngs=rngs,
                               kernel_init=nnx.initializers.variance_scaling(0.01, "fan_in", "truncated_normal"),
                               bias_init=_head_bias(out_steps, config.components))

    def __call__(self, batch: Mapping[str, jax.Array], rngs: Source | None = None) -> Mixture:
        """Mixture of arrays (B, P, N, K) in normalised units (in the data's unit if output_space is raw).

        batch: speed (B, T, N), observed (B, T, N), slot and dow (B, T + P), weather (B, T, 3) if the statistics know it.
        rngs: the source of dropout; not needed in a deterministic view.
        """
        x = self._embed(batch)
        graph = self._graph()
        for block in self.blocks:
            x = self._run(block, x, graph, rngs)
        return self._read(x, batch, rngs)

    def inspect(self, batch: Mapping[str, jax.Array], node: int = 0) -> dict[str, jax.Array]:
        """What the blocks did: activations (L, B, N, T, d), gate (L,) and attention (L, B, T, slots, H) of `node`."""
        x, graph = self._embed(batch), self._graph()
        activations, gates, attention = [], [], []
        for block in self.blocks:
            attention.append(jnp.moveaxis(block.spatial.weights(x, graph)[:, node], 1, 2))
            x, gate = block(x, graph, block.spatial.pair_bias(graph, None))
            activations.append(x)
            gates.append(gate)
        return {"activations": jnp.stack(activations), "gate": jnp.stack(gates), "attention": jnp.stack(attention)}

    def physical(self, mixture: Mixture) -> Mixture:
        """The mixture in the data's unit."""
        if self.config.output_space == "raw":
            return mixture
        return mixtures.affine(mixture, self.constants["speed_mean"][...], self.constants["speed_std"][...])

    def normalize(self, speed: jax.Array) -> jax.Array:
        """Speeds (..., N) in the unit of the mixture."""
        if self.config.output_space == "raw":
            return speed
        return self._standardize(speed)

    def _standardize(self, speed: jax.Array) -> jax.Array:
        return (speed - self.constants["speed_mean"][...]) / self.constants["speed_std"][...]

    def _graph(self) -> Graph:
        return Graph.of({name: buffer[...] for name, buffer in self.graph.items()})

    def _embed(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        speed = batch["speed"]
        assert speed.shape[1:] == (self.in_steps, self.nodes), f"speed {speed.shape}: expected (B, {self.in_steps}, {self.nodes})"
        slot, dow = batch["slot"][:, : self.in_steps], batch["dow"][:, : self.in_steps]
        z, observed = self._standardize(speed), batch["observed"].astype(jnp.float32)
        channels = {"speed": z, "observed": observed}
        if "deviation" in self.config.inputs:
            usual = self.constants["profile"][...][(dow >= 5).astype(jnp.int32), slot]
            channels["deviation"] = observed * (z - self._standardize(usual))
        stacked = jnp.stack([channels[name].transpose(0, 2, 1) for name in self.config.inputs], axis=-1)
        return self.embedding(stacked, slot, dow, slot * (self.constants["step_minutes"][...] / 60))

    def _run(self, block: Block, x: jax.Array, graph: Graph, rngs: Source | None) -> jax.Array:
        bias = block.spatial.pair_bias(graph, rngs)
        if not self.config.remat:
            return block(x, graph, bias, rngs)[0]
        return over_batch(lambda x, rngs: block(x, graph, bias, rngs)[0], x, rngs, floats=SAVED_PER_TOKEN * x[0].size)

    def _read(self, x: jax.Array, batch: Mapping[str, jax.Array], rngs: Source | None) -> Mixture:
        pooled = x.mean(axis=2) if self.config.readout == "mean" else x
        if self.weather is not None:
            weather = (batch["weather"] - self.constants["weather_mean"][...]) / self.constants["weather_std"][...]
            pooled = self.weather(pooled, weather, rngs)
        raw = self.head(pooled.reshape(*pooled.shape[:2], -1).astype(jnp.float32))
        raw = raw.reshape(*raw.shape[:2], 3, self.out_steps, self.config.components).transpose(2, 0, 3, 1, 4)
        means, scale, logits = raw[0], raw[1], raw[2]
        if self.config.sigma == "softplus":
            stds = SIGMA_FLOOR + jax.nn.softplus(scale)
        else:
            stds = jnp.exp(jnp.clip(scale, math.log(SIGMA_CLIP[0]), math.log(SIGMA_CLIP[1])))
        if self.config.anchor != "none":
            naive = naive_forecasts(batch, self.constants["profile"][...], self.constants["damping"][...])
            means += self._standardize(naive[self.config.anchor])[..., None]
        return Mixture(jax.nn.log_softmax(logits, axis=-1), means, stds)


def naive_forecasts(batch: Mapping[str, jax.Array], profile: jax.Array, damping: jax.Array) -> dict[str, jax.Array]:
    """{last, tod, damped} (B, P, N) in the data's unit; profile (2, S, N): weekday, weekend; damping (P,).

    last: the newest value of the filled window; tod: the usual value of that slot; damped: tod(t+h) + rho_h (last - tod(t)).
    """
    steps, horizon = batch["speed"].shape[1], damping.shape[0]
    now = batch["speed"][:, -1:]
    usual = profile[(batch["dow"][:, steps - 1 :] >= 5).astype(jnp.int32), batch["slot"][:, steps - 1 :]]  # (B, 1 + P, N)
    tod = usual[:, 1 : 1 + horizon]
    return {"last": jnp.broadcast_to(now, tod.shape), "tod": tod, "damped": tod + damping[:, None] * (now - usual[:, :1])}


def flops_per_window(config: Config, nodes: int, in_steps: int, out_steps: int, slots_used: int, weather: bool = True) -> float:
    """Floating-point operations of one forward pass of one window; training is 3 x that.

    slots_used: used neighbour slots of the whole graph, self included. Counts the products of every token (input maps, blocks),
    the weather attention and the head, a multiply-add as two.
    """
    d, heads, tokens = config.width, config.heads, nodes * in_steps
    slots = nodes if config.reach == "all" else slots_used / nodes
    spatial = 2 * heads * d * d + 2 * heads * d * slots if config.spatial == "gatv2" else 4 * d * d + 2 * d * slots
    temporal = 4 * d * d + 2 * in_steps * d
    block = spatial + temporal + 2 * config.ffn * d * d + 2 * d * d
    weather_tokens = (tokens if config.readout == "horizon" else nodes) if weather else 0
    features = d * (in_steps if config.readout == "horizon" else 1)
    head = 3 * out_steps * config.components * features * nodes
    embedding = (len(config.inputs) + config.adaptive_dim) * d
    return 2.0 * ((config.blocks * block + embedding) * tokens + weather_tokens * (2 * d * d + 2 * in_steps * d) + head)


def _norm(width: int, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)


def _gelu(x: jax.Array) -> jax.Array:
    """The exact GELU; jax.nn.gelu writes it with erfc, which costs twice as much on CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _table(shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))


def _head_bias(out_steps: int, components: int) -> Callable[..., jax.Array]:
    """Components spread over one unit, sigma 0.5, equal weights."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
        means = jnp.broadcast_to(jnp.linspace(-0.5, 0.5, components) if components > 1 else 0.0, (out_steps, components))
        parts = jnp.stack([means, jnp.full_like(means, SIGMA_BIAS), jnp.zeros_like(means)])
        return parts.reshape(shape).astype(dtype)

    return init
