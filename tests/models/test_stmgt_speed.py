"""A whole training step of the network costs no more processor time than a plain form of it, and gives the same numbers."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import built
from flax import nnx
from stmgt_problem import batch, config, statistics

from jaxtrain.models.stmgt import SIGMA_FLOOR, STMGT
from jaxtrain.nn import mixture as mixtures

FACTOR = 1.25  # of the plain form's time: for a busy machine
NODES, STEPS, WIDTH, HEADS, EXAMPLES = 40, 12, 32, 4, 8

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="forms chosen for CPU")
Step = Callable[..., Any]


def norm(layer: Any, x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * layer.scale[...] + layer.bias[...]


def linear(layer: Any, x: jax.Array) -> jax.Array:
    return x @ layer.kernel[...] + layer.bias[...]


def attend(layer: Any, x: jax.Array, memory: jax.Array) -> jax.Array:
    """Multi-head attention of x (..., Q, d) to memory (..., S, d)."""
    query = linear(layer.inputs, x)[..., :WIDTH]
    key, value = jnp.split(linear(layer.inputs, memory)[..., WIDTH:], 2, axis=-1)
    query, key, value = (part.reshape(*part.shape[:-1], HEADS, -1) for part in (query, key, value))
    weights = jax.nn.softmax(jnp.einsum("...qhc,...shc->...hqs", query, key) / (WIDTH // HEADS) ** 0.5)
    return linear(layer.output, jnp.einsum("...hqs,...shc->...qhc", weights, value).reshape(x.shape))


def plain(model: STMGT, inputs: dict[str, jax.Array], tables: dict[str, np.ndarray]) -> mixtures.Mixture:
    """The network in einsums, with a padded table of neighbours."""
    x = model._embed(inputs)
    neighbors, mask = tables["neighbors"], tables["neighbor_mask"]
    for block in model.blocks:
        spatial: Any = block.spatial
        source, own = (linear(layer, x).reshape(*x.shape[:-1], HEADS, WIDTH) for layer in (spatial.source, spatial.own))
        heard = source[:, neighbors]  # (B, N, D, T, H, d)
        scores = jnp.sum(jax.nn.leaky_relu(heard + own[:, :, None], 0.2) * spatial.attention[...], axis=-1)
        bias = jnp.where(mask[..., None], spatial.pair_bias.relation[...][tables["relation"]], -1e30)
        weights = jax.nn.softmax(scores + bias[:, :, None], axis=2)
        s = norm(block.norm_spatial, jnp.einsum("bndth,bndthc->bntc", weights, heard) / HEADS + spatial.bias[...])
        m = norm(block.norm_temporal, x + attend(block.temporal, x, x))
        m = norm(block.norm_ffn, m + linear(block.contract, jax.nn.gelu(linear(block.expand, m), approximate=False)))
        gate = jax.nn.sigmoid(linear(block.gate, jnp.concatenate([s, m], axis=-1)))
        x = norm(block.norm_fusion, gate * s + (1 - gate) * m + x)
    weather = (inputs["weather"] - model.constants["weather_mean"][...]) / model.constants["weather_std"][...]
    assert model.weather is not None
    found = attend(model.weather.attention, x.reshape(len(x), -1, WIDTH), linear(model.weather.inputs, weather))
    x = norm(model.weather.norm, x + found.reshape(x.shape))
    raw = linear(model.head, x.reshape(*x.shape[:2], -1)).reshape(*x.shape[:2], 3, STEPS, -1).transpose(2, 0, 3, 1, 4)
    return mixtures.Mixture(jax.nn.log_softmax(raw[2]), raw[0], SIGMA_FLOOR + jax.nn.softplus(raw[1]))


def crps(mixture: mixtures.Mixture, y: jax.Array) -> jax.Array:
    """All pairs of components."""

    def distance(m: jax.Array, s: jax.Array) -> jax.Array:
        return 2 * s * jax.scipy.stats.norm.pdf(m / s) + m * (2 * jax.scipy.stats.norm.cdf(m / s) - 1)

    weights, means, variances = jnp.exp(mixture.log_weights), mixture.means, jnp.square(mixture.stds)
    apart = distance(means[..., :, None] - means[..., None, :], jnp.sqrt(variances[..., :, None] + variances[..., None, :]))
    accuracy = jnp.sum(weights * distance(y[..., None] - means, mixture.stds), axis=-1)
    return accuracy - 0.5 * jnp.einsum("...k,...l,...kl->...", weights, weights, apart)


def steps() -> tuple[Step, Step, Any]:
    """Ours, the plain one, and what both take; each returns (params, optimizer state, loss, gradients)."""
    tables = statistics(NODES, STEPS)
    chosen = config(width=WIDTH, heads=HEADS, blocks=1, dropout=0.0, drop_edge=0.0, anchor="none")
    graphdef, params, rest = nnx.split(built(lambda: STMGT(chosen, tables, STEPS, STEPS, nnx.Rngs(0))), nnx.Param, ...)
    inputs = {name: jnp.asarray(value) for name, value in batch(EXAMPLES, STEPS, STEPS, NODES).items()}
    target = jax.random.normal(jax.random.key(1), (EXAMPLES, STEPS, NODES))
    adam = optax.adamw(1e-3)

    def step(loss: Callable[[STMGT, dict[str, jax.Array], jax.Array], jax.Array]) -> Step:
        def run(params: Any, moments: Any, inputs: dict[str, jax.Array], target: jax.Array) -> Any:
            value, gradient = jax.value_and_grad(lambda p: loss(nnx.merge(graphdef, p, rest), inputs, target))(params)
            updates, moments = adam.update(gradient, moments, params)
            return optax.apply_updates(params, updates), moments, value, gradient

        return jax.jit(run)

    ours = step(lambda model, inputs, target: mixtures.crps(model(inputs), target).mean())
    reference = step(lambda model, inputs, target: crps(plain(model, inputs, tables), target).mean())
    return ours, reference, (params, adam.init(params), inputs, target)


@pytest.mark.slow
def test_step() -> None:
    ours, reference, start = steps()
    found, expected = ours(*start), reference(*start)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(jax.device_get(found[3])), jax.tree.leaves(jax.device_get(expected[3])), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(1e-2, float(np.abs(b).max())))
    best = [np.inf, np.inf]
    for _ in range(12):  # taking turns, so that both see the same machine
        for which, call in enumerate((ours, reference)):
            began = time.process_time()
            jax.block_until_ready(call(*start))
            best[which] = min(best[which], time.process_time() - began)
    assert best[0] <= FACTOR * best[1], f"{1e3 * best[0]:.1f} ms, plain form {1e3 * best[1]:.1f} ms"
