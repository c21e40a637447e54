"""Attention with rotations: a softmax like any other, whose logits see differences of time alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.nn.draws import Draws
from jaxtrain.nn.layers import Seeds
from jaxtrain.nn.rotary import RotaryAttention, angles, attend, attend_products, rotate

B, Q, S, WIDTH, HEAD = 2, 8, 4, 16, 8


def turned(x, stride):
    """x (B, n, H, d) as complex numbers, turned by the angle of each sample's time."""
    n, d = x.shape[1], x.shape[-1]
    time = (np.arange(n) + 0.5) * stride - 0.5
    turn = np.exp(1j * time[:, None] * 0.5 * 1000.0 ** (-2 * np.arange(d // 2) / d))
    return (x[..., : d // 2] + 1j * x[..., d // 2 :]) * turn[:, None]


@pytest.mark.parametrize("cross", [False, True])
def test_explicit_softmax(cross):
    layer = RotaryAttention(WIDTH, HEAD, "auto", Seeds(Draws.of(jax.random.key(0))), cross=cross, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    x, memory = rng.normal(size=(B, Q, WIDTH)), rng.normal(size=(B, S, WIDTH))
    if cross:
        q, (k, v) = x @ np.asarray(layer.query.kernel[...]), np.split(memory @ np.asarray(layer.memory.kernel[...]), 2, axis=-1)
    else:
        q, k, v = np.split(x @ np.asarray(layer.inputs.kernel[...]), 3, axis=-1)
    q, k, v = (part.reshape(B, -1, WIDTH // HEAD, HEAD) for part in (q, k, v))
    q, k = turned(q, 2), turned(k, 4 if cross else 2)
    scores = np.einsum("bqhd,bshd->bhqs", q, k.conj()).real / np.sqrt(HEAD)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = np.einsum("bhqs,bshd->bqhd", weights, v).reshape(B, Q, WIDTH)
    found = jax.jit(lambda x, memory: layer(x, 2, memory, 4))(jnp.asarray(x, jnp.float32), jnp.asarray(memory, jnp.float32))
    np.testing.assert_allclose(found, mixed @ np.asarray(layer.output.kernel[...]) + np.asarray(layer.output.bias[...]), atol=1e-5)


def test_logits_depend_on_time_differences_alone():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(np.broadcast_to(rng.normal(size=HEAD), (1, 32, 1, HEAD)), jnp.float32) for _ in range(2))
    logits = np.einsum("bqhd,bshd->qs", rotate(q, angles(32, 1, HEAD)), rotate(k, angles(32, 1, HEAD)))
    for difference in (-5, 0, 9):
        assert np.ptp(np.diag(logits, difference)) < 1e-4
    assert np.ptp(logits[0]) > 0.1


def test_a_coarser_memory_shares_the_time_axis():
    fine, coarse = angles(16, 1, HEAD), angles(4, 4, HEAD)
    np.testing.assert_allclose(coarse, fine.reshape(4, 4, -1).mean(1), atol=1e-6)
    np.testing.assert_allclose(fine[:, 0], 0.5 * np.arange(16), atol=1e-6)


def test_products_are_the_library_s_attention_in_value_and_gradient():
    rng = np.random.default_rng(0)
    q, k, v, weight = (3 * rng.normal(size=(B, n, 2, HEAD)).astype(np.float32) for n in (Q, S, S, Q))

    @jax.jit
    def both(q, k, v):
        library = lambda q, k, v: attend(q, k, v, "xla")  # noqa: E731
        slopes = lambda run: jax.grad(lambda *a: (run(*a) * weight).sum(), (0, 1, 2))(q, k, v)  # noqa: E731
        return [(run(q, k, v), slopes(run)) for run in (attend_products, library)]

    for one, other in zip(*map(jax.tree.leaves, both(q, k, v)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())
        assert np.abs(other).max() > 0.1


def test_the_fused_kernel_is_asked_for_by_name_alone_without_nvidia():
    q = jnp.ones((1, 4, 1, 8), jnp.bfloat16)
    assert attend(q, q, q, "auto").shape == q.shape
    if jax.default_backend() == "cpu":
        with pytest.raises(Exception, match="(?i)cudnn"):
            attend(q, q, q, "cudnn")
    else:
        np.testing.assert_allclose(attend(q, q, q, "cudnn"), attend(q, q, q, "xla"), atol=2e-2)
