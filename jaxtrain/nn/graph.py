"""Attention over the neighbours of a graph's nodes: GATv2 and scaled dot product, on lists or on all pairs.

A graph is a constant table `neighbors` (N, D) of the nodes that each node listens to, itself in slot 0. Nodes are the
second axis of every array (B, N, T, ...), so that one neighbour's whole history is one contiguous piece of memory.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.nn import pairwise
from jaxtrain.nn.dropout import Dropout
from jaxtrain.nn.linear import Linear

RELATIONS = 5  # self, upstream, downstream, both, none
NONE = 4
MASKED = -1e30  # finite: a softmax row of masked slots must not become nan
CACHE_FLOATS = 2**21
PART_FLOATS = 2**29


class Buffer(nnx.Variable):
    """A constant array that travels with the model (statistics, tables) and is never trained."""


@dataclass(frozen=True)
class Graph:
    """Who listens to whom; L = D slots (`reach="neighbours"`) or N nodes (`"all"`).

    neighbors (N, D) int32 and reverse (N, R) int32 for the gather, both None when all pairs attend; mask (N, L) bool,
    relation (N, L) int32, log_weight (N, L) float32.
    """

    neighbors: jax.Array | None
    reverse: jax.Array | None
    mask: jax.Array
    relation: jax.Array
    log_weight: jax.Array


def reverse_table(neighbors: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Where each node stands in the flattened table: (N, R) int32, R the largest count, padded with N D.

    Slots outside `mask` (N, D) are left out: nothing may flow back through them.
    """
    nodes, slots = neighbors.shape
    flat = np.flatnonzero(mask.reshape(-1))
    sources = neighbors.reshape(-1)[flat]
    order = np.argsort(sources, kind="stable")
    counts = np.bincount(sources, minlength=nodes)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    table = np.full((nodes, max(1, int(counts.max(initial=0)))), nodes * slots, np.int32)
    table[sources[order], np.arange(len(flat)) - starts[sources[order]]] = flat[order]
    return table


def gather_neighbors(x: jax.Array, graph: Graph) -> jax.Array:
    """x (B, N, ...) -> (B, N, D, ...): the values of every node's neighbours.

    The gradient gathers through `reverse_table` instead of scattering: deterministic, and fast where scatters are slow.
    """
    assert graph.neighbors is not None and graph.reverse is not None
    return _gather(x, graph.neighbors, graph.reverse)


@jax.custom_vjp
def _gather(x: jax.Array, neighbors: jax.Array, reverse: jax.Array) -> jax.Array:
    del reverse
    return jnp.take(x, neighbors, axis=1, mode="clip")


def _gather_forward(x: jax.Array, neighbors: jax.Array, reverse: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.take(x, neighbors, axis=1, mode="clip"), reverse


def _gather_backward(reverse: jax.Array, g: jax.Array) -> tuple[jax.Array, None, None]:
    flat = g.reshape(g.shape[0], g.shape[1] * g.shape[2], *g.shape[3:])
    arrived = jnp.take(flat, reverse, axis=1, mode="fill", fill_value=0)
    return arrived.sum(axis=2, dtype=jnp.float32).astype(g.dtype), None, None


_gather.defvjp(_gather_forward, _gather_backward)


class PairBias(nnx.Module):
    """What a score owes to the kind and the weight of a link: beta[relation] + lambda ln w, per head.

    Also drops links: one Bernoulli draw per slot, self never dropped, shared by batch and time (DropEdge, Rong et al. 2020).
    """

    def __init__(self, heads: int, relation_bias: bool, edge_bias: bool, drop_edge: float):
        self.heads = heads
        self.relation = nnx.Param(jnp.zeros((RELATIONS, heads))) if relation_bias else None
        self.edge = nnx.Param(jnp.zeros((heads,))) if edge_bias else None
        self.drop_edge = Dropout(drop_edge)

    def __call__(self, graph: Graph, rngs: nnx.Rngs | None) -> jax.Array:
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

    def __call__(self, x: jax.Array, graph: Graph, bias: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """bias (N, L, H): `self.pair_bias(graph, rngs)`, drawn by the caller so that all parts of a batch share it."""
        assert graph.neighbors is not None

        def attend(x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
            gathered, weights = self._attend(x, graph, bias)
            weights = self.dropout(weights, rngs=rngs).astype(gathered.dtype)
            gathered = gathered.reshape(*gathered.shape[:-1], self.heads, -1)
            return jnp.einsum("bndth,bndthc->bntc", weights, gathered) / self.heads

        slots = graph.neighbors.shape[1]
        out = over_batch(attend, x, rngs, floats=slots * self.heads * x[0].size)
        return out + self.bias[...].astype(out.dtype)

    def weights(self, x: jax.Array, graph: Graph) -> jax.Array:
        """Attention weights (B, N, D, T, H) without dropout, float32."""
        return self._attend(x, graph, self.pair_bias(graph, None))[1]

    def _attend(self, x: jax.Array, graph: Graph, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Gathered W_s x (B, N, D, T, H d), and the weights (B, N, D, T, H) float32."""
        gathered = gather_neighbors(self.source(x), graph)
        z = gathered + self.own(x)[:, :, None]
        scores = _per_head_dot(jnp.maximum(z, 0.2 * z), self.attention[...].astype(z.dtype))
        return gathered, jax.nn.softmax(scores + bias[:, :, None], axis=2)


def _per_head_dot(x: jax.Array, a: jax.Array) -> jax.Array:
    """x (..., H d) . a (H, d) -> (..., H) float32."""
    heads, width = a.shape
    if jax.default_backend() == "cpu":
        # One product with a block-diagonal matrix: a reduction over the last axis is scalar code there, 1.5 times slower.
        # Its rows are the heads, and x is one matrix: the gradient is ten times faster than that of (H d, H), measured.
        rows = (jnp.eye(heads, dtype=a.dtype)[:, :, None] * a).reshape(heads, heads * width)
        flat = jnp.einsum("nc,hc->nh", x.reshape(-1, heads * width), rows, preferred_element_type=jnp.float32)
        return flat.reshape(*x.shape[:-1], heads)
    return (x * a.reshape(-1)).reshape(*x.shape[:-1], heads, width).sum(axis=-1, dtype=jnp.float32)


class GraphAttention(nnx.Module):
    """Scaled dot-product attention over neighbours or over all nodes, (B, N, T, d) -> (B, N, T, d), with pair biases."""

    def __init__(self, width: int, heads: int, dropout: float, bias: PairBias, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.inputs = Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.output = Linear(width, width, dtype=dtype, rngs=rngs)
        self.pair_bias = bias
        self.dropout = Dropout(dropout)

    def __call__(self, x: jax.Array, graph: Graph, bias: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        """bias (N, L, H): `self.pair_bias(graph, rngs)`, drawn by the caller so that all parts of a batch share it."""

        if graph.neighbors is None:
            return self._all_pairs(x, bias, rngs)

        def attend(x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
            value, weights = self._neighbours(x, graph, bias)
            weights = self.dropout(weights, rngs=rngs).astype(value.dtype)
            return self.output(jnp.einsum("bndth,bndthc->bnthc", weights, value).reshape(x.shape))

        return over_batch(attend, x, rngs, floats=graph.mask.size * x.shape[2] * 2 * x.shape[3])

    def weights(self, x: jax.Array, graph: Graph) -> jax.Array:
        """Attention weights (B, N, L, T, H) without dropout, float32."""
        bias = self.pair_bias(graph, None)
        if graph.neighbors is not None:
            return self._neighbours(x, graph, bias)[1]
        query, key, _ = self._maps(x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[-1]))
        weights = jax.nn.softmax(pairwise.scores(query, key, bias.transpose(2, 0, 1)), axis=-1)
        return weights.reshape(len(x), x.shape[2], *weights.shape[1:]).transpose(0, 3, 4, 1, 2)

    def _maps(self, x: jax.Array) -> list[jax.Array]:
        """Query (scaled), key and value (..., H, c)."""
        query, key, value = (part.reshape(*x.shape[:-1], self.heads, -1) for part in jnp.split(self.inputs(x), 3, axis=-1))
        return [query / math.sqrt(query.shape[-1]), key, value]

    def _all_pairs(self, x: jax.Array, bias: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        pair_bias = bias.transpose(2, 0, 1)

        def attend(maps: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
            return pairwise.attend_pairs(maps[:, 0], maps[:, 1], maps[:, 2], pair_bias, self.dropout.seed(rngs), self.dropout.rate)

        steps = x.swapaxes(1, 2)  # every step of every example is a graph of its own
        maps = jnp.stack(self._maps(steps.reshape(-1, *steps.shape[2:])), axis=1)
        mixed = over_batch(attend, maps, rngs, floats=4 * bias.size, recompute=False)
        return self.output(mixed.reshape(steps.shape)).swapaxes(1, 2)

    def _neighbours(self, x: jax.Array, graph: Graph, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Values (B, N, D, T, H, c) and weights (B, N, D, T, H)."""
        query, key, value = self._maps(x)
        key, value = gather_neighbors(key, graph), gather_neighbors(value, graph)
        scores = jnp.einsum("bnthc,bndthc->bndth", query, key, preferred_element_type=jnp.float32)
        return value, jax.nn.softmax(scores + bias[:, :, None], axis=2)


def over_batch(
    function: Callable[[jax.Array, nnx.Rngs | None], jax.Array],
    x: jax.Array,
    rngs: nnx.Rngs | None,
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
    key = None if rngs is None else rngs.dropout()
    limit = max(1, (CACHE_FLOATS if jax.default_backend() == "cpu" else PART_FLOATS) // floats)
    # A part takes examples from every device's share of the batch, so the loop runs over the inner factor of B.
    sizes = [size for size in range(devices, examples + 1, devices) if examples % size == 0]
    size = max([s for s in sizes if s <= limit * devices] or sizes[:1] or [examples])
    parts = examples // size

    def run(x: jax.Array, part: jax.Array) -> jax.Array:
        return function(x, None if key is None else nnx.Rngs(dropout=jax.random.fold_in(key, part)))

    run = jax.checkpoint(run) if recompute else run
    if parts == 1:
        return run(x, jnp.zeros((), jnp.int32))
    inner = jnp.moveaxis(x.reshape(size, parts, *x.shape[1:]), 1, 0)
    out = jax.lax.map(lambda pair: run(*pair), (inner, jnp.arange(parts)))
    return jnp.moveaxis(out, 0, 1).reshape(examples, *out.shape[2:])


def table_graph(statistics: Mapping[str, np.ndarray], every_pair: bool) -> dict[str, np.ndarray]:
    """The arrays of a `Graph` from lists: neighbors, relation, neighbor_weight, neighbor_mask, each (N, D).

    every_pair: the lists become (N, N) tables, `none` where no list names the pair.
    """
    neighbors, mask = np.asarray(statistics["neighbors"], np.int32), np.asarray(statistics["neighbor_mask"], bool)
    relation = np.where(mask, statistics["relation"], NONE).astype(np.int32)
    log_weight = np.where(mask, np.log(np.maximum(statistics["neighbor_weight"], 1e-6)), 0.0).astype(np.float32)
    if not every_pair:
        return {"neighbors": neighbors, "reverse": reverse_table(neighbors, mask), "mask": mask, "relation": relation,
                "log_weight": log_weight}
    nodes = len(neighbors)
    rows, cols = np.nonzero(mask)[0], neighbors[mask]
    dense_relation, dense_weight = np.full((nodes, nodes), NONE, np.int32), np.zeros((nodes, nodes), np.float32)
    dense_relation[rows, cols], dense_weight[rows, cols] = relation[mask], log_weight[mask]
    return {"mask": np.ones((nodes, nodes), bool), "relation": dense_relation, "log_weight": dense_weight}
