"""Variable selection of the Temporal Fusion Transformer (arXiv 1912.09363, 4.2): every variable embedded, transformed and weighted.

Letters: m variables, N tokens (examples x steps), K features (columns of all variables, one-hot for categories, and a one), H width.
Inside, tokens are the last axis, (m, H, N): sums over H or m then run along whole vectors of tokens, several times faster on CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.nn.dropout import Dropout, Source
from jaxtrain.nn.gated import EPSILON, GatedResidual, elu

packed_glorot = nnx.initializers.glorot_uniform(batch_axis=(0,))


@dataclass(frozen=True)
class Variable:
    """One input of a selection network: a category of `categories` known values (index 0: unknown), or `width` real columns."""

    name: str
    width: int = 1
    categories: int = 0


class Embedding(nnx.Module):
    """Variables of one kind, categories first: a table (categories + 1, H) each, and x E + b for the real ones."""

    def __init__(self, variables: Sequence[Variable], width: int, *, rngs: nnx.Rngs):
        tables, reals = [v for v in variables if v.categories], [v for v in variables if not v.categories]
        assert [*tables, *reals] == list(variables), "categories stand before real variables"
        self.variables = tuple(variables)
        normal, uniform = nnx.initializers.normal(width**-0.5), nnx.initializers.glorot_uniform()
        self.tables = nnx.Dict({v.name: nnx.Param(normal(rngs.params(), (v.categories + 1, width))) for v in tables})
        if reals:
            self.kernel = nnx.Param(jnp.concatenate([uniform(rngs.params(), (v.width, width)) for v in reals]))
            self.bias = nnx.Param(jnp.zeros((len(reals), width)))

    def columns(self) -> list[int]:
        """How many features each variable has."""
        return [v.categories + 1 if v.categories else v.width for v in self.variables]

    def features(self, categories: jax.Array | None, reals: jax.Array | None) -> jax.Array:
        """categories (..., C) int32, reals (..., W) -> (..., K) float32."""
        parts = [jax.nn.one_hot(categories[..., i], len(t)) for i, t in enumerate(self.tables.values())] if categories is not None else []
        return jnp.concatenate([*parts, *([] if reals is None else [reals])], axis=-1)

    def matrix(self) -> tuple[jax.Array, jax.Array]:
        """What features are multiplied with (K, H), and the bias of every variable (m, H), 0 for categories."""
        tables = [table[...] for table in self.tables.values()]
        width = tables[0].shape[1] if tables else self.kernel.shape[1]
        biases = [jnp.zeros((len(tables), width))]
        if len(tables) < len(self.variables):
            tables, biases = [*tables, self.kernel[...]], [*biases, self.bias[...]]
        return jnp.concatenate(tables), jnp.concatenate(biases)


def blocks(embeddings: Sequence[Embedding]) -> jax.Array:
    """The embeddings of all variables as one array (m, K + 1, H), zero where a feature is another variable's; the last row is the bias."""
    columns = [n for embedding in embeddings for n in embedding.columns()]
    matrices, biases = zip(*(embedding.matrix() for embedding in embeddings), strict=True)
    own = np.repeat(np.eye(len(columns), dtype=np.float32), columns, axis=1)  # (m, K)
    return jnp.concatenate([own[..., None] * jnp.concatenate(matrices), jnp.concatenate(biases)[:, None]], axis=1)


class PackedLinear(nnx.Module):
    """m linear maps side by side: kernel (m, inputs, outputs), bias (m, outputs)."""

    def __init__(self, m: int, inputs: int, outputs: int, *, dtype: Any, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = nnx.Param(packed_glorot(rngs.params(), (m, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros((m, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """(m, inputs, N) -> (m, outputs, N)."""
        y = jnp.einsum("mio,min->mon", self.kernel[...].astype(self.dtype), x.astype(self.dtype))
        return y + self.bias[...].astype(self.dtype)[..., None]


class PackedNorm(nnx.Module):
    """Layer norm of each (m, width, N) over `width`; computed in float32."""

    def __init__(self, m: int, width: int):
        self.scale, self.bias = nnx.Param(jnp.ones((m, width))), nnx.Param(jnp.zeros((m, width)))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        mean = y.mean(axis=1, keepdims=True)
        variance = jnp.maximum(jnp.square(y).mean(axis=1, keepdims=True) - jnp.square(mean), 0)
        y = (y - mean) * jax.lax.rsqrt(variance + EPSILON) * self.scale[...][..., None] + self.bias[...][..., None]
        return y.astype(x.dtype)


class PackedGatedResidual(nnx.Module):
    """m gated residual networks side by side, without context and with skip = identity: (m, H, N) -> (m, H, N)."""

    def __init__(self, m: int, width: int, *, dropout: float, dtype: Any, rngs: nnx.Rngs):
        self.inner = PackedLinear(m, width, width, dtype=dtype, rngs=rngs)
        self.outer = PackedLinear(m, width, width, dtype=dtype, rngs=rngs)
        self.gate = PackedLinear(m, width, 2 * width, dtype=dtype, rngs=rngs)
        self.norm = PackedNorm(m, width)
        self.dropout = Dropout(dropout)

    def __call__(self, a: jax.Array, rngs: Source | None = None) -> jax.Array:
        return self.from_inner(self.inner(a), a, rngs)

    def from_inner(self, u: jax.Array, skip: jax.Array, rngs: Source | None) -> jax.Array:
        """The rest after W1 a + b1."""
        value, gate = jnp.split(self.gate(self.dropout(self.outer(elu(u)), rngs=rngs)), 2, axis=1)
        return self.norm(skip + value * jax.nn.sigmoid(gate))


class VariableSelection(nnx.Module):
    """sum_i w_i GRN_i(e_i) with w = softmax(GRN([e_1 .. e_m], c)); one variable has weight 1 and no weight network.

    collapsed: no non-linearity lies between an embedding and the first map of its networks, W1 (x E + b) = x (E W1) + b W1, so
    these small products are taken once per call and the m H-wide embeddings never enter a product.
    """

    def __init__(self, m: int, width: int, *, context: bool, dropout: float, collapsed: bool, dtype: Any, rngs: nnx.Rngs):
        self.m, self.collapsed, self.dtype = m, collapsed, dtype
        self.variables = PackedGatedResidual(m, width, dropout=dropout, dtype=dtype, rngs=rngs)
        c = width if context else 0
        self.weights = GatedResidual(m * width, width, m, context=c, dropout=0.0, dtype=dtype, rngs=rngs) if m > 1 else None

    def __call__(
        self, features: jax.Array, embedding: jax.Array, c: jax.Array | None = None, rngs: Source | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """features (..., K), embedding (m, K + 1, H) of `blocks`, c broadcasting to (..., H) -> (..., H) and weights (..., m) float32."""
        steps = features.shape[:-1]
        ones = jnp.ones((*steps, 1), features.dtype)
        x = jnp.concatenate([features, ones], axis=-1).reshape(-1, features.shape[-1] + 1).T.astype(self.dtype)
        embedding = embedding.astype(self.dtype)
        embedded = _product(embedding, x)
        if self.collapsed:
            folded = jnp.einsum("mkh,mho->mko", embedding, self.variables.inner.kernel[...].astype(self.dtype))
            folded = folded.at[:, -1].add(self.variables.inner.bias[...].astype(self.dtype))
            chosen = self.variables.from_inner(_product(folded, x), embedded, rngs)
        else:
            chosen = self.variables(embedded, rngs)
        if self.weights is None:
            out = chosen[0].T.reshape(*steps, -1)
            return out, jnp.ones((*steps, 1), jnp.float32)
        weights = jax.nn.softmax(self._weigh(x, embedding, embedded, steps, c, rngs).astype(jnp.float32), axis=-1)
        per_token = weights.reshape(-1, self.m).T.astype(self.dtype)
        return jnp.sum(per_token[:, None] * chosen, axis=0).T.reshape(*steps, -1), weights

    def _weigh(
        self, x: jax.Array, embedding: jax.Array, embedded: jax.Array, steps: tuple[int, ...], c: jax.Array | None, rngs: Source | None
    ) -> jax.Array:
        assert self.weights is not None and self.weights.skip is not None
        if not self.collapsed:
            joined = jnp.moveaxis(embedded, -1, 0).reshape(*steps, -1)
            return self.weights(joined, c, rngs)
        first, skip = self.weights.inner, self.weights.skip
        kernel = jnp.concatenate([first.kernel[...], skip.kernel[...]], axis=1).astype(self.dtype)
        folded = jnp.einsum("mkh,mho->ko", embedding, kernel.reshape(*embedding.shape[::2], -1))
        assert first.bias is not None and skip.bias is not None
        both = x.T @ folded + jnp.concatenate([first.bias[...], skip.bias[...]]).astype(self.dtype)
        width = first.kernel.shape[1]
        return self.weights.from_inner(both[:, :width].reshape(*steps, -1), both[:, width:].reshape(*steps, -1), c, rngs)


def _product(matrix: jax.Array, x: jax.Array) -> jax.Array:
    """matrix (m, K, H), x (K, N) -> (m, H, N)."""
    m, k, h = matrix.shape
    return (jnp.swapaxes(matrix, 1, 2).reshape(m * h, k) @ x).reshape(m, h, -1)
