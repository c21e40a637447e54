"""Attention over the neighbours of a graph's nodes: GATv2 and scaled dot product, on lists or on all pairs.

A graph is a constant table (N, D) of slots, the nodes that each node listens to, itself in slot 0; what is heavy works on the
list of the E used ones. Nodes are the second axis of every array (B, N, T, ...), so that one neighbour's whole history is one
contiguous piece of memory.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.nn import edges as edge_lists
from jaxtrain.nn import pairwise
from jaxtrain.nn.dropout import Dropout, PartRngs, Seed, Source
from jaxtrain.nn.edges import MASKED, Edges, collect, reverse_table, spread
from jaxtrain.nn.linear import Linear

RELATIONS = 5  # self, upstream, downstream, both, none
NONE = 4
CACHE_FLOATS = 2**21
PART_FLOATS = 2**29
KEPT_FLOATS = 2**25  # what one layer keeps for its backward pass before it recomputes instead


class Buffer(nnx.Variable):
    """A constant array that travels with the model (statistics, tables) and is never trained."""


@dataclass(frozen=True)
class Graph:
    """Who listens to whom; L = D slots (`reach="neighbours"`) or N nodes (`"all"`).

    edges: the used slots as a list, and used (E,) int32 their places in the flattened table; both None when all pairs attend.
    mask (N, L) bool, relation (N, L) int32, log_weight (N, L) float32.
    """

    edges: Edges | None
    used: jax.Array | None
    mask: jax.Array
    relation: jax.Array
    log_weight: jax.Array

    @classmethod
    def of(cls, tables: Mapping[str, jax.Array]) -> "Graph":
        """From the arrays of `table_graph`."""
        edges = Edges(**{name: tables[name] for name in Edges._fields}) if "source" in tables else None
        return cls(edges, tables.get("used"), tables["mask"], tables["relation"], tables["log_weight"])

    def edge_rows(self, slots: jax.Array) -> jax.Array:
        """slots (N, D, ...) -> (E, ...)."""
        assert self.edges is not None and self.used is not None
        return spread(slots.reshape(1, -1, *slots.shape[2:]), self.used, self.edges.slots.reshape(-1, 1))[0]

    def slot_rows(self, rows: jax.Array) -> jax.Array:
        """rows (B, E, ...) -> (B, N, D, ...), 0 in unused slots; not for gradients."""
        assert self.edges is not None
        return jnp.take(rows, self.edges.slots, axis=1, mode="fill", fill_value=0)


class PairBias(nnx.Module):
    """What a score owes to the kind and the weight of a link: beta[relation] + lambda ln w, per head.

    Also drops links: one Bernoulli draw per slot, self never dropped, shared by batch and time (DropEdge, Rong et al. 2020).
    """

    def __init__(self, heads: int, relation_bias: bool, edge_bias: bool, drop_edge: float):
        self.heads = heads
        self.relation = nnx.Param(jnp.zeros((RELATIONS, heads))) if relation_bias else None
        self.edge = nnx.Param(jnp.zeros((heads,))) if edge_bias else None
        self.drop_edge = Dropout(drop_edge)

    def __call__(self, graph: Graph, rngs: Source | None) -> jax.Array:
        """(N, L, H) float32, -1e30 where a slot is unused or dropped."""
        bias = jnp.zeros((*graph.mask.shape, self.heads), jnp.float32)
        if self.relation is not None:
            # A product with one-hot rows: the gradient of an indexed read would be a scatter.
            bias += jax.nn.one_hot(graph.relation, RELATIONS) @ self.relation[...].astype(jnp.float32)
        if self.edge is not None:
            bias += graph.log_weight[..., None] * self.edge[...].astype(jnp.float32)
        kept = self.drop_edge(jnp.ones(graph.mask.shape, jnp.float32), rngs=rngs) > 0
        open_slot = graph.mask & (kept | (graph.relation == 0))
        return jnp.where(open_slot[..., None], bias, MASKED)


class GATv2(nnx.Module):
    """Graph attention after Brody et al. 2022, (B, N, T, d) -> (B, N, T, d); every head is d wide, heads are averaged.

    score_ij = a . LeakyReLU_0.2(W_s x_j + b_s + W_t x_i + b_t) + bias_ij; out_i = mean_h sum_j softmax_j(score) (W_s x_j + b_s) + b.
    """

    def __init__(self, width: int, heads: int, dropout: float, bias: PairBias, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.source = Linear(width, heads * width, dtype=dtype, rngs=rngs)
        self.own = Linear(width, heads * width, dtype=dtype, rngs=rngs)
        self.attention = nnx.Param(nnx.initializers.glorot_uniform()(rngs.params(), (heads, width)))
        self.bias = nnx.Param(jnp.zeros((width,)))
        self.pair_bias = bias
        self.dropout = Dropout(dropout)

    def __call__(self, x: jax.Array, graph: Graph, bias: jax.Array, rngs: Source | None = None) -> jax.Array:
        """bias (N, L, H): `self.pair_bias(graph, rngs)`, drawn by the caller so that all parts of a batch share it."""
        edges, a, rows = graph.edges, self.attention[...], graph.edge_rows(bias)
        assert edges is not None

        def attend(x: jax.Array, rngs: Source | None) -> jax.Array:
            seed, rate = self.dropout.seed(rngs), self.dropout.rate
            return edge_lists.attend_gatv2(self.source(x), self.own(x), a, rows, seed, edges, rate)

        floats = 2 * len(edges.source) * self.heads * x[0, 0].size
        out = over_batch(attend, x, rngs, floats, recompute=2 * self.heads * x.size > KEPT_FLOATS)
        return out + self.bias[...].astype(out.dtype)

    def weights(self, x: jax.Array, graph: Graph) -> jax.Array:
        """Attention weights (B, N, D, T, H) without dropout, float32."""
        assert graph.edges is not None
        rows = graph.edge_rows(self.pair_bias(graph, None))
        return graph.slot_rows(edge_lists.gatv2_weights(self.source(x), self.own(x), self.attention[...], rows, graph.edges))


class GraphAttention(nnx.Module):
    """Scaled dot-product attention over neighbours or over all nodes, (B, N, T, d) -> (B, N, T, d), with pair biases."""

    def __init__(self, width: int, heads: int, dropout: float, bias: PairBias, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.inputs = Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.output = Linear(width, width, dtype=dtype, rngs=rngs)
        self.pair_bias = bias
        self.dropout = Dropout(dropout)

    def __call__(self, x: jax.Array, graph: Graph, bias: jax.Array, rngs: Source | None = None) -> jax.Array:
        """bias (N, L, H): `self.pair_bias(graph, rngs)`, drawn by the caller so that all parts of a batch share it."""

        edges = graph.edges
        if edges is None:
            return self._all_pairs(x, bias, rngs)
        rows = graph.edge_rows(bias)

        def attend(x: jax.Array, rngs: Source | None) -> jax.Array:
            value, weights = self._neighbours(x, edges, rows)
            weights = self.dropout(weights, rngs=rngs).astype(value.dtype)
            return self.output(collect(weights[..., None] * value, edges.target, edges.slots).reshape(x.shape))

        return over_batch(attend, x, rngs, floats=3 * len(edges.source) * x[0, 0].size)

    def weights(self, x: jax.Array, graph: Graph) -> jax.Array:
        """Attention weights (B, N, L, T, H) without dropout, float32."""
        bias = self.pair_bias(graph, None)
        if graph.edges is not None:
            return graph.slot_rows(self._neighbours(x, graph.edges, graph.edge_rows(bias))[1])
        query, key, _ = self._maps(x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[-1]))
        weights = jax.nn.softmax(pairwise.scores(query, key, bias.transpose(2, 0, 1)), axis=-1)
        return weights.reshape(len(x), x.shape[2], *weights.shape[1:]).transpose(0, 3, 4, 1, 2)

    def _maps(self, x: jax.Array) -> list[jax.Array]:
        """Query (scaled), key and value (..., H, c)."""
        query, key, value = (part.reshape(*x.shape[:-1], self.heads, -1) for part in jnp.split(self.inputs(x), 3, axis=-1))
        return [query / math.sqrt(query.shape[-1]), key, value]

    def _all_pairs(self, x: jax.Array, bias: jax.Array, rngs: Source | None) -> jax.Array:
        pair_bias = bias.transpose(2, 0, 1)

        def attend(maps: jax.Array, rngs: Source | None) -> jax.Array:
            return pairwise.attend_pairs(maps[:, 0], maps[:, 1], maps[:, 2], pair_bias, self.dropout.seed(rngs), self.dropout.rate)

        steps = x.swapaxes(1, 2)  # every step of every example is a graph of its own
        maps = jnp.stack(self._maps(steps.reshape(-1, *steps.shape[2:])), axis=1)
        mixed = over_batch(attend, maps, rngs, floats=4 * bias.size, recompute=False)
        return self.output(mixed.reshape(steps.shape)).swapaxes(1, 2)

    def _neighbours(self, x: jax.Array, edges: Edges, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Values (B, E, T, H, c) and weights (B, E, T, H); bias (E, H)."""
        query, key, value = self._maps(x)
        query = spread(query, edges.target, edges.slots)
        key, value = (spread(part, edges.source, edges.reverse) for part in (key, value))
        scores = jnp.sum(query * key, axis=-1, dtype=jnp.float32)
        return value, edge_lists.softmax(scores + bias[:, None], edges)


def over_batch(
    function: Callable[[jax.Array, Source | None], jax.Array],
    x: jax.Array,
    rngs: Source | None,
    floats: int,
    recompute: bool = True,
) -> jax.Array:
    """function(x (B, ...), rngs) -> (B, ...), recomputed in the backward pass and run on parts of the batch where that pays.

    recompute: False where `function` has a backward pass of its own that recomputes.
    floats: how many `function` holds per example besides its input and output. What a graph layer gathers is many times
    its input: kept for the backward pass it would be most of a run's memory. On CPU a part is small, so that it stays in
    the cache (three times faster, measured); elsewhere as much as fits PART_FLOATS.
    """
    examples, devices = len(x), jax.device_count()
    key, numbers = _numbered(rngs, examples)
    limit = max(1, (CACHE_FLOATS if jax.default_backend() == "cpu" else PART_FLOATS) // floats)
    # A part takes examples from every device's share of the batch, so the loop runs over the inner factor of B.
    sizes = [size for size in range(devices, examples + 1, devices) if examples % size == 0]
    size = max([s for s in sizes if s <= limit * devices] or sizes[:1] or [examples])
    parts = examples // size

    def run(x: jax.Array, numbers: jax.Array) -> jax.Array:
        return function(x, None if key is None else PartRngs(key, numbers))

    run = jax.checkpoint(run) if recompute else run
    if parts == 1:
        return run(x, numbers)
    inner = jnp.moveaxis(x.reshape(size, parts, *x.shape[1:]), 1, 0)
    out = jax.lax.map(lambda pair: run(*pair), (inner, numbers.reshape(size, parts).T))
    return jnp.moveaxis(out, 0, 1).reshape(examples, *out.shape[2:])


def _numbered(rngs: Source | None, examples: int) -> tuple[jax.Array | None, jax.Array]:
    """(key, number of every example in the whole batch (B,)); rows of an example that is cut further count on from its own."""
    seed = None if rngs is None else rngs.dropout()
    if not isinstance(seed, Seed):
        return seed, jnp.arange(examples, dtype=jnp.uint32)
    rows = examples // len(seed.examples)
    return seed.key, (seed.examples[:, None] * jnp.uint32(rows) + jnp.arange(rows, dtype=jnp.uint32)).reshape(-1)


def table_graph(statistics: Mapping[str, np.ndarray], every_pair: bool) -> dict[str, np.ndarray]:
    """The arrays for `Graph.of` from lists: neighbors, relation, neighbor_weight, neighbor_mask, each (N, D).

    every_pair: the lists become (N, N) tables, `none` where no list names the pair.
    """
    neighbors, mask = np.asarray(statistics["neighbors"], np.int32), np.asarray(statistics["neighbor_mask"], bool)
    relation = np.where(mask, statistics["relation"], NONE).astype(np.int32)
    log_weight = np.where(mask, np.log(np.maximum(statistics["neighbor_weight"], 1e-6)), 0.0).astype(np.float32)
    nodes = len(neighbors)
    rows, cols = np.nonzero(mask)[0].astype(np.int32), neighbors[mask]
    if not every_pair:
        slots = np.full(mask.shape, len(rows), np.int32)
        slots[mask] = np.arange(len(rows))
        return {"source": cols, "target": rows, "slots": slots, "reverse": reverse_table(cols, nodes),
                "used": np.flatnonzero(mask).astype(np.int32), "mask": mask, "relation": relation, "log_weight": log_weight}
    dense_relation, dense_weight = np.full((nodes, nodes), NONE, np.int32), np.zeros((nodes, nodes), np.float32)
    dense_relation[rows, cols], dense_weight[rows, cols] = relation[mask], log_weight[mask]
    return {"mask": np.ones((nodes, nodes), bool), "relation": dense_relation, "log_weight": dense_weight}
