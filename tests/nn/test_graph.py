"""Graph attention by hand, the scatter-free gather, dropout bits, and running on parts of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxtrain.nn import edges as edge_lists
from jaxtrain.nn import graph as graphs
from jaxtrain.nn.attention import MultiHeadAttention
from jaxtrain.nn.dropout import Dropout, bernoulli
from jaxtrain.nn.edges import collect, gatv2_weights, reverse_table, spread
from jaxtrain.nn.graph import GATv2, Graph, GraphAttention, PairBias, over_batch, table_graph

LISTS = [[0, 1, 4], [1, 0], [2], [3, 2, 0, 1], [4, 3]]  # node 2 hears nobody; sources of each node, itself first


def make_graph(every_pair: bool = False, slots: int = 4) -> Graph:
    neighbors = np.array([row + [row[0]] * (slots - len(row)) for row in LISTS], np.int32)
    mask = np.array([[slot < len(row) for slot in range(slots)] for row in LISTS])
    relation = np.where(np.arange(slots) == 0, 0, 1 + (neighbors + np.arange(slots)) % 3).astype(np.int32)
    weight = np.where(np.arange(slots) == 0, 1.0, 1 / (1.0 + np.arange(slots))).astype(np.float32) * np.ones((5, 1), np.float32)
    tables = table_graph({"neighbors": neighbors, "relation": relation, "neighbor_weight": weight, "neighbor_mask": mask}, every_pair)
    return Graph.of({name: jnp.asarray(table) for name, table in tables.items()})


def randomise(module: nnx.Module) -> None:
    for number, (_, leaf) in enumerate(nnx.to_flat_state(nnx.state(module, nnx.Param))):
        leaf[...] = jax.random.normal(jax.random.key(number), leaf.shape) * 0.5


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max())
    return e / e.sum()


def test_gatv2_on_five_nodes_by_hand() -> None:
    width, heads, graph = 4, 2, make_graph()
    layer = GATv2(width, heads, 0.0, PairBias(heads, True, True, 0.0), dtype=jnp.float32, rngs=nnx.Rngs(0))
    randomise(layer)
    x = np.random.default_rng(0).normal(size=(2, 5, 3, width)).astype(np.float32)
    ws, bs = np.asarray(layer.source.kernel[...]), np.asarray(layer.source.bias[...])
    wt, bt = np.asarray(layer.own.kernel[...]), np.asarray(layer.own.bias[...])
    a, bias = np.asarray(layer.attention[...]), np.asarray(layer.bias[...])
    assert layer.pair_bias.relation is not None and layer.pair_bias.edge is not None
    beta, lam = np.asarray(layer.pair_bias.relation[...]), np.asarray(layer.pair_bias.edge[...])
    relation, log_weight = np.asarray(graph.relation), np.asarray(graph.log_weight)
    want = np.zeros_like(x)
    for b, i, t in np.ndindex(2, 5, 3):
        for h in range(heads):
            cols = slice(h * width, (h + 1) * width)
            values = [x[b, j, t] @ ws[:, cols] + bs[cols] for j in LISTS[i]]
            own = x[b, i, t] @ wt[:, cols] + bt[cols]
            scores = [a[h] @ np.where(v + own > 0, v + own, 0.2 * (v + own)) + beta[relation[i, s], h] + lam[h] * log_weight[i, s]
                      for s, v in enumerate(values)]  # fmt: skip
            want[b, i, t] += softmax(np.array(scores)) @ np.array(values) / heads
    np.testing.assert_allclose(layer(jnp.asarray(x), graph, layer.pair_bias(graph, None)), want + bias, atol=1e-5)


@pytest.mark.parametrize("every_pair", [False, True])
def test_dot_attention_by_hand(every_pair: bool) -> None:
    width, heads, graph = 4, 2, make_graph(every_pair)
    layer = GraphAttention(width, heads, 0.0, PairBias(heads, True, True, 0.0), dtype=jnp.float32, rngs=nnx.Rngs(0))
    randomise(layer)
    x = np.random.default_rng(0).normal(size=(2, 5, 3, width)).astype(np.float32)
    q, k, v = np.split(x @ np.asarray(layer.inputs.kernel[...]) + np.asarray(layer.inputs.bias[...]), 3, axis=-1)
    assert layer.pair_bias.relation is not None and layer.pair_bias.edge is not None
    beta, lam = np.asarray(layer.pair_bias.relation[...]), np.asarray(layer.pair_bias.edge[...])
    mixed = np.zeros_like(x)
    for b, i, t in np.ndindex(2, 5, 3):
        sources = list(range(5)) if every_pair else LISTS[i]
        for h in range(heads):
            cols = slice(h * 2, h * 2 + 2)
            scores = []
            for s, j in enumerate(sources):
                slot = j if every_pair else s
                pair = beta[np.asarray(graph.relation)[i, slot], h] + lam[h] * np.asarray(graph.log_weight)[i, slot]
                scores.append(q[b, i, t, cols] @ k[b, j, t, cols] / np.sqrt(2) + pair)
            mixed[b, i, t, cols] = softmax(np.array(scores)) @ np.array([v[b, j, t, cols] for j in sources])
    want = mixed @ np.asarray(layer.output.kernel[...]) + np.asarray(layer.output.bias[...])
    np.testing.assert_allclose(layer(jnp.asarray(x), graph, layer.pair_bias(graph, None)), want, atol=1e-5)
    weights = layer.weights(jnp.asarray(x), graph)
    assert weights.shape == (2, 5, 5 if every_pair else 4, 3, heads)
    np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-6)


def test_dense_relations_say_none_where_no_list_names_the_pair() -> None:
    dense, lists = make_graph(every_pair=True), make_graph()
    for i, row in enumerate(LISTS):
        for j in range(5):
            want = lists.relation[i, row.index(j)] if j in row else graphs.NONE
            assert int(dense.relation[i, j]) == int(want)


@pytest.mark.parametrize("unrolled", [0, 32])
def test_spread_and_collect_are_each_other_s_gradient_without_scatter(monkeypatch: pytest.MonkeyPatch, unrolled: int) -> None:
    monkeypatch.setattr(edge_lists, "UNROLLED", unrolled)
    edges = make_graph().edges
    assert edges is not None
    ends, table = edges.source, edges.reverse
    x, y = jax.random.normal(jax.random.key(0), (2, 5, 3, 4)), jax.random.normal(jax.random.key(1), (2, len(ends), 3, 4))
    pairs = [
        (lambda x: jnp.sum(y * jnp.sin(spread(x, ends, table))), lambda x: jnp.sum(y * jnp.sin(x[:, ends])), x),
        (lambda y: jnp.sum(x * jnp.sin(collect(y, ends, table))), lambda y: jnp.sum(x * jnp.sin(jnp.zeros_like(x).at[:, ends].add(y))), y),
    ]
    for ours, theirs, value in pairs:
        ours, theirs = jax.jit(jax.value_and_grad(ours)), jax.jit(jax.value_and_grad(theirs))
        for found, want in zip(ours(value), theirs(value), strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-5, atol=2e-6)
        assert "scatter" in theirs.lower(value).as_text() and "scatter" not in ours.lower(value).as_text()


def test_reverse_table_lists_every_edge_once() -> None:
    edges = make_graph().edges
    assert edges is not None
    table = reverse_table(np.asarray(edges.source), 5)
    np.testing.assert_array_equal(np.sort(table[table < 12]), np.arange(12))
    for node, row in enumerate(table):
        assert all(int(edges.source[edge]) == node for edge in row if edge < 12)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_gatv2_gradient_is_autodiff_without_scatter(monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    monkeypatch.setattr(graphs, "CACHE_FLOATS", 1)  # parts of one example in both: the same dropout
    graph, heads, width = make_graph(), 2, 4
    layer = GATv2(width, heads, rate, PairBias(heads, True, True, 0.0), dtype=jnp.float32, rngs=nnx.Rngs(0))
    randomise(layer)
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    x = jax.random.normal(jax.random.key(0), (3, 5, 2, width))
    assert graph.edges is not None
    edges = graph.edges

    def ours(params: nnx.State, x: jax.Array) -> jax.Array:
        layer = nnx.merge(graphdef, params, rest)
        return jnp.sum(jnp.sin(layer(x, graph, layer.pair_bias(graph, None), nnx.Rngs(dropout=3))))

    def theirs(params: nnx.State, x: jax.Array) -> jax.Array:
        layer = nnx.merge(graphdef, params, rest)

        def part(x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
            source, rows = layer.source(x), graph.edge_rows(layer.pair_bias(graph, None))
            weights = gatv2_weights(source, layer.own(x), layer.attention[...], rows, edges)
            heard = source.reshape(*source.shape[:-1], heads, width)[:, edges.source]
            mixed = (layer.dropout(weights, rngs=rngs)[..., None] * heard).mean(axis=-2)
            return jnp.zeros_like(x).at[:, edges.target].add(mixed) + layer.bias[...]

        return jnp.sum(jnp.sin(over_batch(part, x, nnx.Rngs(dropout=3), floats=1)))

    ours, theirs = jax.jit(jax.value_and_grad(ours, argnums=(0, 1))), jax.jit(jax.value_and_grad(theirs, argnums=(0, 1)))
    for found, want in zip(jax.tree.leaves(ours(params, x)), jax.tree.leaves(theirs(params, x)), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
    assert "scatter" in theirs.lower(params, x).as_text() and "scatter" not in ours.lower(params, x).as_text()


def test_drop_edge_keeps_self_and_the_right_share() -> None:
    graph = make_graph()
    bias = PairBias(1, False, False, 0.3)
    open_slots = np.mean([np.asarray(bias(graph, nnx.Rngs(dropout=seed))[..., 0] > -1) for seed in range(300)], axis=0)
    mask = np.asarray(graph.mask)
    assert (open_slots[:, 0] == 1).all() and (open_slots[~mask] == 0).all()
    links = mask.copy()
    links[:, 0] = False
    assert np.abs(open_slots[links] - 0.7).max() < 0.1
    np.testing.assert_array_equal(nnx.view(bias, deterministic=True)(graph, None)[..., 0] > -1, mask)


def test_parts_of_a_batch_give_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x = jax.random.normal(jax.random.key(0), (6, 5, 3, 4))

    def function(x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        return jnp.tanh(x) * jnp.arange(1.0, 6)[:, None, None]

    found = {}
    for floats in (1, 2**20, 2**40):
        apply = jax.value_and_grad(lambda x, floats=floats: jnp.sum(over_batch(function, x, None, floats) ** 2))
        found[floats] = (over_batch(function, x, None, floats), apply(x)[1])
    monkeypatch.setattr(jax, "device_count", lambda: 4)  # 6 examples on 4 devices: no part fits, all at once
    found["uneven"] = (over_batch(function, x, None, 2**40), found[1][1])
    for value, grad in found.values():
        np.testing.assert_allclose(value, function(x, None), rtol=1e-6)
        np.testing.assert_allclose(grad, found[1][1], rtol=1e-5)


def test_parts_of_a_batch_draw_different_dropout() -> None:
    drop = Dropout(0.5)
    x = jnp.ones((4, 5, 3, 4))
    out = np.asarray(over_batch(lambda x, rngs: drop(x, rngs=rngs), x, nnx.Rngs(0), floats=2**40))
    assert len({row.tobytes() for row in out}) == 4


def test_dropout_bits() -> None:
    kept = np.asarray(bernoulli(jax.random.key(0), 0.9, (64, 1000, 25)))
    other = np.asarray(bernoulli(jax.random.key(1), 0.9, (64, 1000, 25)))
    assert kept.mean() == pytest.approx(0.9, abs=1e-3)
    assert np.abs(kept.mean(axis=(1, 2)) - 0.9).max() < 0.01 and np.abs(kept.mean(axis=(0, 1)) - 0.9).max() < 0.01
    flat = kept.reshape(-1)
    for lag in (1, 25, 1000):
        assert abs(np.corrcoef(flat[:-lag], flat[lag:])[0, 1]) < 0.005
    assert abs(np.corrcoef(flat, other.reshape(-1))[0, 1]) < 0.005
    dropped = Dropout(0.25)(jnp.ones((1000, 50)), rngs=nnx.Rngs(0))
    assert float(dropped.mean()) == pytest.approx(1, abs=0.01) and set(np.unique(dropped)) == {0, np.float32(1 / 0.75)}
    with pytest.raises(ValueError, match="rngs"):
        Dropout(0.25)(jnp.ones(3))


def test_attention_over_a_memory_by_hand() -> None:
    layer = MultiHeadAttention(4, 2, 0.0, dtype=jnp.float32, rngs=nnx.Rngs(0))
    randomise(layer)
    rng = np.random.default_rng(0)
    x, memory = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    kernel, bias = np.asarray(layer.inputs.kernel[...]), np.asarray(layer.inputs.bias[...])
    q, k, v = x @ kernel[:, :4] + bias[:4], memory @ kernel[:, 4:8] + bias[4:8], memory @ kernel[:, 8:] + bias[8:]
    mixed = np.zeros((3, 4))
    for t in range(3):
        for cols in (slice(0, 2), slice(2, 4)):
            mixed[t, cols] = softmax(k[:, cols] @ q[t, cols] / np.sqrt(2)) @ v[:, cols]
    want = mixed @ np.asarray(layer.output.kernel[...]) + np.asarray(layer.output.bias[...])
    np.testing.assert_allclose(layer(jnp.asarray(x), jnp.asarray(memory)), want, atol=1e-5)
    np.testing.assert_allclose(layer(jnp.asarray(x)), layer(jnp.asarray(x), jnp.asarray(x)), atol=1e-5)
