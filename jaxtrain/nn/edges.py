"""Attention over a graph's list of edges, with a backward pass of its own.

Arrays over edges are (B, E, T, ...), sorted by target; E rows, where a padded table of slots would have several times as many.
Values travel from nodes to edges (`spread`) and are summed back (`collect`); each is the other's gradient, so nothing scatters:
deterministic, and fast where scatters are slow.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.nn.dropout import Seed, bernoulli

MASKED = -1e30  # finite: a softmax row of masked slots must not become nan
UNROLLED = 32  # columns of a table that are summed one by one


class Edges(NamedTuple):
    """source, target (E,) int32: the node that is heard and the one that listens; slots (N, D) and reverse (N, R) int32: where
    the edges into and out of a node stand in the list, padded with E."""

    source: jax.Array
    target: jax.Array
    slots: jax.Array
    reverse: jax.Array


def reverse_table(ends: np.ndarray, nodes: int) -> np.ndarray:
    """Where each node stands in ends (E,): (N, R) int32, R the largest count, padded with E."""
    order = np.argsort(ends, kind="stable")
    counts = np.bincount(ends, minlength=nodes)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    table = np.full((nodes, max(1, int(counts.max(initial=0)))), len(ends), np.int32)
    table[ends[order], np.arange(len(ends)) - starts[ends[order]]] = order
    return table


@jax.custom_vjp
def spread(x: jax.Array, ends: jax.Array, table: jax.Array) -> jax.Array:
    """x (B, N, ...) -> (B, E, ...): the values at ends (E,); table (N, R) is where each node stands in `ends`."""
    del table
    return jnp.take(x, ends, axis=1, mode="clip")


@jax.custom_vjp
def collect(y: jax.Array, ends: jax.Array, table: jax.Array) -> jax.Array:
    """y (B, E, ...) -> (B, N, ...): the sum over each node's edges, accumulated in float32."""
    del ends
    if table.shape[1] > UNROLLED:
        return jnp.take(y, table, axis=1, mode="fill", fill_value=0).sum(axis=2, dtype=jnp.float32).astype(y.dtype)
    # Column by column the gathers fuse into one pass over the sums: two to three times faster on CPU, measured.
    columns = (jnp.take(y, table[:, k], axis=1, mode="fill", fill_value=0).astype(jnp.float32) for k in range(table.shape[1]))
    return sum(columns, start=jnp.zeros((), jnp.float32)).astype(y.dtype)


spread.defvjp(
    lambda x, ends, table: (spread(x, ends, table), (ends, table)),
    lambda saved, g: (collect(g, *saved), None, None),
)
collect.defvjp(
    lambda y, ends, table: (collect(y, ends, table), (ends, table)),
    lambda saved, g: (spread(g, *saved), None, None),
)


def softmax(scores: jax.Array, edges: Edges) -> jax.Array:
    """Softmax over the edges into each node; scores (B, E, T, H) float32."""
    padded = jnp.take(jax.lax.stop_gradient(scores), edges.slots, axis=1, mode="fill", fill_value=MASKED)
    e = jnp.exp(scores - jnp.take(padded.max(axis=2), edges.target, axis=1, mode="clip"))
    return e / spread(collect(e, edges.target, edges.slots), edges.target, edges.slots)


def gatv2_weights(source: jax.Array, own: jax.Array, a: jax.Array, bias: jax.Array, edges: Edges) -> jax.Array:
    """softmax(a . LeakyReLU_0.2(source_j + own_i) + bias): (B, E, T, H) float32; shapes as in `attend_gatv2`."""
    z = _meet(source, own, edges)
    return softmax(per_head_dot(jnp.maximum(z, 0.2 * z), a.astype(z.dtype)) + bias[:, None], edges)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def attend_gatv2(
    source: jax.Array, own: jax.Array, a: jax.Array, bias: jax.Array, seed: jax.Array | Seed | None, edges: Edges, rate: float
) -> jax.Array:
    """The mean over heads of sum_j Dropout(weights) source_j, (B, N, T, c).

    source, own (B, N, T, H c); a (H, c); bias (E, H) float32. seed: a key for the dropout at `rate`; None: nothing is dropped.
    """
    return _forward(source, own, a, bias, seed, edges, rate)[0]


Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | Seed | None, Edges]


def _forward(
    source: jax.Array, own: jax.Array, a: jax.Array, bias: jax.Array, seed: jax.Array | Seed | None, edges: Edges, rate: float
) -> tuple[jax.Array, Residuals]:
    weights = gatv2_weights(source, own, a, bias, edges)
    used, heard = _drop(weights, seed, rate), jnp.take(source, edges.source, axis=1, mode="clip")
    heads, width = a.shape
    # Slices of whole heads: a sum over an axis that is not the last would not be vectorised on CPU.
    mixed = sum(used[..., h : h + 1] * heard[..., h * width : (h + 1) * width] for h in range(heads))
    out = collect(jnp.asarray(mixed), edges.target, edges.slots) * (1 / heads)
    return out.astype(source.dtype), (source, own, a, weights, seed, edges)


def _backward(rate: float, saved: Residuals, g: jax.Array) -> tuple[jax.Array | None, ...]:
    source, own, a, weights, seed, edges = saved
    heads, width = a.shape
    dtype = source.dtype
    arrived = jnp.take(g * (1 / heads), edges.target, axis=1, mode="clip")[..., None, :]
    heard = jnp.take(source, edges.source, axis=1, mode="clip").reshape(*weights.shape, width)
    d_weights = per_head_dot((heard * arrived).reshape(*weights.shape[:-1], heads * width), jnp.ones_like(a, dtype))
    d_weights = _drop(d_weights, seed, rate)
    weighted = weights * d_weights
    d_scores = weighted - weights * spread(collect(weighted, edges.target, edges.slots), edges.target, edges.slots)
    z = _meet(source, own, edges)
    # Products of matrices as they lie in memory, (H, n) (n, H c): the transposed product takes four times as long on CPU.
    flat_scores, slope = d_scores.reshape(-1, heads).astype(dtype), jnp.maximum(z, 0.2 * z).reshape(-1, heads * width)
    d_a = jnp.einsum("nh,nc->hc", flat_scores, slope, preferred_element_type=jnp.float32).reshape(heads, heads, width)
    d_a = jnp.einsum("hhc->hc", d_a).astype(a.dtype)
    d_z = (flat_scores.reshape(weights.shape)[..., None] * a.astype(dtype)).reshape(z.shape) * jnp.where(z > 0, 1, 0.2).astype(dtype)
    d_z = jax.lax.optimization_barrier(d_z)  # used twice
    d_heard = d_z + (_drop(weights, seed, rate).astype(dtype)[..., None] * arrived).reshape(z.shape)
    d_source = collect(d_heard, edges.source, edges.reverse)
    return d_source, collect(d_z, edges.target, edges.slots), d_a, d_scores.sum(axis=(0, 2)), None, None


attend_gatv2.defvjp(_forward, _backward)


def _meet(source: jax.Array, own: jax.Array, edges: Edges) -> jax.Array:
    return jnp.take(source, edges.source, axis=1, mode="clip") + jnp.take(own, edges.target, axis=1, mode="clip")


def _drop(weights: jax.Array, seed: jax.Array | Seed | None, rate: float) -> jax.Array:
    return weights if seed is None else jnp.where(bernoulli(seed, 1 - rate, weights.shape), weights * (1 / (1 - rate)), 0)


def per_head_dot(x: jax.Array, a: jax.Array) -> jax.Array:
    """x (..., H d) . a (H, d) -> (..., H) float32."""
    heads, width = a.shape
    if jax.default_backend() == "cpu":
        # One product with a block-diagonal matrix: a reduction over the last axis is scalar code there, 1.5 times slower.
        # Its rows are the heads, and x is one matrix: the gradient is ten times faster than that of (H d, H), measured.
        rows = (jnp.eye(heads, dtype=a.dtype)[:, :, None] * a).reshape(heads, heads * width)
        flat = jnp.einsum("nc,hc->nh", x.reshape(-1, heads * width), rows, preferred_element_type=jnp.float32)
        return flat.reshape(*x.shape[:-1], heads)
    return (x * a.reshape(-1)).reshape(*x.shape[:-1], heads, width).sum(axis=-1, dtype=jnp.float32)
