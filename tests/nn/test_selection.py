"""Variable selection against the paper's equations in NumPy float64, and its collapsed form against the plain one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.nn.selection import Embedding, Variable, VariableSelection, blocks

H, BATCH, STEPS = 6, 3, 4
VARIABLES = (Variable("status", categories=3), Variable("hour", width=2), Variable("load"))


def parts(collapsed: bool) -> tuple[Embedding, VariableSelection, jax.Array, jax.Array]:
    rngs = nnx.Rngs(4)
    embedding = Embedding(VARIABLES, H, rngs=rngs)
    embedding.bias[...] = jax.random.normal(jax.random.key(9), embedding.bias.shape)
    layer = VariableSelection(3, H, context=True, dropout=0.0, collapsed=collapsed, remat=False, dtype=jnp.float32, rngs=rngs)
    rng = np.random.default_rng(0)
    features = embedding.features(
        jnp.asarray(rng.integers(0, 4, (BATCH, STEPS, 1))), jnp.asarray(rng.normal(size=(BATCH, STEPS, 3)), jnp.float32)
    )
    return embedding, layer, features, jnp.asarray(rng.normal(size=(BATCH, H)), jnp.float32)


def float64(module: nnx.Module) -> dict[str, np.ndarray]:
    leaves = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {"/".join(map(str, path)): np.asarray(leaf.get_value(), np.float64) for path, leaf in leaves}


def layer_norm(y: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-3) * scale + bias


def grn(a: np.ndarray, w: dict[str, Any], skip: np.ndarray, c: np.ndarray | float = 0.0) -> np.ndarray:
    """LayerNorm(skip + GLU(W1 ELU(W2 a + W3 c))), equations (2) to (5) of the paper."""
    u = a @ w["inner/kernel"] + w["inner/bias"] + c
    gate = (np.where(u > 0, u, np.expm1(u)) @ w["outer/kernel"] + w["outer/bias"]) @ w["gate/kernel"] + w["gate/bias"]
    value, gate = np.split(gate, 2, axis=-1)
    return layer_norm(skip + value / (1 + np.exp(-gate)), w["norm/scale"], w["norm/bias"])


def test_selection_of_the_paper() -> None:
    embedding, layer, features, c = parts(collapsed=True)
    w = {name.replace("finish/", ""): value for name, value in float64(layer).items()}
    one_hot, table = np.asarray(features, np.float64), float64(embedding)
    embedded = [one_hot[..., :4] @ table["tables/status"], one_hot[..., 4:6] @ table["kernel"][:2] + table["bias"][0],
                one_hot[..., 6:] @ table["kernel"][2:] + table["bias"][1]]  # fmt: skip
    joint = np.concatenate(embedded, axis=-1)
    network = {name.removeprefix("weights/"): value for name, value in w.items() if name.startswith("weights/")}
    context = (np.asarray(c, np.float64) @ network["context/kernel"])[:, None]
    logits = grn(joint, network, joint @ network["skip/kernel"] + network["skip/bias"], context)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    own = {name.removeprefix("variables/"): value for name, value in w.items() if name.startswith("variables/")}
    changed = [grn(e, {name: value[i] for name, value in own.items()}, e) for i, e in enumerate(embedded)]
    expected = sum(weights[..., i : i + 1] * part for i, part in enumerate(changed))
    found, found_weights = layer(features, blocks([embedding]), c)
    np.testing.assert_allclose(found_weights, weights, atol=1e-6)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_collapsed_and_plain_selection_are_one_function() -> None:
    (embedding, collapsed, features, c), (_, plain, _, _) = parts(True), parts(False)
    probe = jax.random.normal(jax.random.key(1), (BATCH, STEPS, H))

    def value(layers: tuple[Embedding, VariableSelection]) -> tuple[jax.Array, jax.Array]:
        out, weights = layers[1](features, blocks([layers[0]]), c)
        return (out * probe).sum() + weights[..., 0].sum(), out

    (_, a), slope_a = nnx.value_and_grad(value, has_aux=True)((embedding, collapsed))
    (_, b), slope_b = nnx.value_and_grad(value, has_aux=True)((embedding, plain))
    np.testing.assert_allclose(a, b, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), slope_a, slope_b)
