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

from jaxtrain.nn.gated import GatedResidual, elu
from jaxtrain.nn.packed import Draw, PackedGatedResidual, normalize
from jaxtrain.nn.parts import over_examples


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


class VariableSelection(nnx.Module):
    """sum_i w_i GRN_i(e_i) with w = softmax(GRN([e_1 .. e_m], c)); one variable has weight 1 and no weight network.

    collapsed: no non-linearity lies between an embedding and the first map of its networks, W1 (x E + b) = x (E W1) + b W1, so
    these small products are taken once per call and the m H-wide embeddings never enter a product.
    """

    def __init__(
        self, m: int, width: int, *, context: bool, dropout: float, collapsed: bool, remat: bool, dtype: Any, rngs: nnx.Rngs
    ):
        self.m, self.width, self.collapsed, self.remat, self.dtype = m, width, collapsed, remat, dtype
        self.variables = PackedGatedResidual(m, width, dropout=dropout, dtype=dtype, rngs=rngs)
        c = width if context else 0
        self.weights = GatedResidual(m * width, width, m, context=c, dropout=0.0, dtype=dtype, rngs=rngs) if m > 1 else None

    def __call__(
        self, features: jax.Array, embedding: jax.Array, c: jax.Array | None = None, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """features (B, T, K), embedding (m, K + 1, H) of `blocks`, c (B, H) -> (B, T, H) and weights (B, T, m) float32."""
        batch, steps, _ = features.shape
        ones = jnp.ones((batch, steps, 1), features.dtype)
        parts: dict[str, jax.Array] = {"x": jnp.concatenate([features, ones], axis=-1).astype(self.dtype)}
        if self.weights is not None and self.weights.context is not None and c is not None:
            parts["context"] = self.weights.context(c)
        seed = self.variables.dropout.seed(rngs)
        draw = None
        if seed is not None:
            assert isinstance(seed, jax.Array)
            draw = Draw.of(seed, batch)
            parts["start"] = draw.start
        maps = self._maps(embedding.astype(self.dtype))

        def select(part: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            x = part["x"].reshape(-1, part["x"].shape[-1]).T
            embedded = _product(maps["embedding"], x)
            u = _product(maps["inner"], x) if self.collapsed else self.variables.inner(embedded)
            weights = jnp.ones((1, x.shape[1]), jnp.float32)
            if self.weights is not None:
                joint = maps["joint"].T @ (x if self.collapsed else embedded.reshape(-1, embedded.shape[-1]))
                weights = self._weigh(joint, part.get("context"), steps)
            own = draw and Draw(part["start"], draw.shared)
            out = self.variables.weighted_sum(u, embedded, weights, own, steps)
            return out.T.reshape(-1, steps, self.width), weights.T.reshape(-1, steps, self.m)

        return over_examples(select, parts, self.m * self.width * steps, self.remat)

    def _maps(self, embedding: jax.Array) -> dict[str, jax.Array]:
        """What features are multiplied with; `joint` holds the first map of the weight network and its skip."""
        inner = self.variables.inner
        maps = {"embedding": embedding}
        if self.collapsed:
            folded = jnp.einsum("mkh,mho->mko", embedding, inner.kernel[...].astype(self.dtype))
            maps["inner"] = folded.at[:, -1].add(inner.bias[...].astype(self.dtype))
        if self.weights is not None and self.weights.skip is not None:
            kernel = jnp.concatenate([self.weights.inner.kernel[...], self.weights.skip.kernel[...]], axis=1).astype(self.dtype)
            if self.collapsed:
                kernel = jnp.einsum("mkh,mho->ko", embedding, kernel.reshape(self.m, self.width, -1))
            maps["joint"] = kernel
        return maps

    def _weigh(self, joint: jax.Array, context: jax.Array | None, steps: int) -> jax.Array:
        """joint (H + m, N), context (b, H) -> (m, N) float32."""
        network = self.weights
        assert network is not None and network.skip is not None
        u = joint[: self.width] + _column(network.inner.bias)
        if context is not None:
            u = (u.reshape(self.width, -1, steps) + context.T[..., None]).reshape(u.shape)
        v = network.outer.kernel[...].astype(u.dtype).T @ elu(u) + _column(network.outer.bias)
        gate, norm = network.finish.gate, network.finish.norm
        value, gate = jnp.split(gate.kernel[...].astype(u.dtype).T @ v + _column(gate.bias), 2)
        skip = joint[self.width :] + _column(network.skip.bias)
        assert norm.scale is not None and norm.bias is not None
        return jax.nn.softmax(normalize(skip + value * jax.nn.sigmoid(gate), norm.scale[...], norm.bias[...]), axis=0)


def _column(bias: Any) -> jax.Array:
    return bias[...][:, None]


def _product(matrix: jax.Array, x: jax.Array) -> jax.Array:
    """matrix (m, K, H), x (K, N) -> (m, H, N)."""
    m, k, h = matrix.shape
    return (jnp.swapaxes(matrix, 1, 2).reshape(m * h, k) @ x).reshape(m, h, -1)
