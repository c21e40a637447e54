"""Dropout attention over all pairs, with a backward pass of its own.

The scores of N x N pairs outweigh everything else that such a layer touches, so what counts is how often memory is walked
through. The backward pass recomputes the weights from the saved normaliser (no second maximum and sum) and takes the inner
products of gradient and output (N, c) in place of those of gradient and weights (N, N) (Dao et al. 2022).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.nn.dropout import Seed, bernoulli

Residuals = tuple[jax.Array, ...]


def scores(query: jax.Array, key: jax.Array, bias: jax.Array) -> jax.Array:
    """query (B, N, H, c), already scaled; key (B, M, H, c); bias (H, N, M) -> (B, H, N, M) float32."""
    return jnp.einsum("bnhc,bmhc->bhnm", query, key, preferred_element_type=jnp.float32) + bias


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_pairs(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, seed: jax.Array | Seed | None, rate: float
) -> jax.Array:
    """Dropout(softmax(scores)) value, (B, N, H, c); shapes as in `scores`.

    seed: a key for the dropout of the weights at `rate`; None: nothing is dropped.
    """
    return _forward(query, key, value, bias, seed, rate)[0]


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, seed: jax.Array | Seed | None, rate: float
) -> tuple[jax.Array, Residuals]:
    s = scores(query, key, bias)
    highest = jax.lax.stop_gradient(s.max(axis=-1, keepdims=True))
    e = _signed(jnp.exp(s - highest), seed, rate)
    total = jnp.abs(e).sum(axis=-1, keepdims=True)
    mixed = jnp.einsum("bhnm,bmhc->bnhc", _kept(e, seed).astype(value.dtype), value, preferred_element_type=jnp.float32)
    out = (mixed * ((1 / (1 - rate) if seed is not None else 1) / total[..., 0].transpose(0, 2, 1)[..., None])).astype(value.dtype)
    return out, (query, key, value, bias, seed, out, highest + jnp.log(total))  # pyright: ignore[reportReturnType]


def _backward(rate: float, saved: Residuals, g: jax.Array) -> tuple[jax.Array | np.ndarray | None, ...]:
    query, key, value, bias, seed, out, normaliser = saved
    p = _signed(jnp.exp(scores(query, key, bias) - normaliser), seed, rate)
    scaled = g if seed is None else g * (1 / (1 - rate))
    d_value = jnp.einsum("bhnm,bnhc->bmhc", _kept(p, seed).astype(g.dtype), scaled)
    d_weights = jnp.einsum("bnhc,bmhc->bhnm", scaled, value, preferred_element_type=jnp.float32)
    d_weights = d_weights if seed is None else jnp.where(p > 0, d_weights, 0)
    own = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1).transpose(0, 2, 1)[..., None]
    d_scores = jnp.abs(p) * (d_weights - own)
    d_bias = d_scores.sum(axis=0)
    d_scores = d_scores.astype(query.dtype)
    d_query = jnp.einsum("bhnm,bmhc->bnhc", d_scores, key)
    d_key = jnp.einsum("bhnm,bnhc->bmhc", d_scores, query)
    return d_query, d_key, d_value, d_bias, None


def _signed(x: jax.Array, seed: jax.Array | Seed | None, rate: float) -> jax.Array:
    """x >= 0, negative where dropped; kept in memory, so that two uses do not compute exponentials and random bits twice."""
    return jax.lax.optimization_barrier(x if seed is None else jnp.where(bernoulli(seed, 1 - rate, x.shape), x, -x))


def _kept(x: jax.Array, seed: jax.Array | Seed | None) -> jax.Array:
    return x if seed is None else jnp.maximum(x, 0)


attend_pairs.defvjp(_forward, _backward)
