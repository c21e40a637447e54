"""The fused norm, LeakyReLU, FiLM and max-pool against the same written step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.nn.conv import max_pool
from jaxtrain.nn.norm import BatchNorm
from jaxtrain.nn.norm_pool import EPSILON, Modulation, Moments, norm_pool, pool_known

SLOPE = 0.1
SHAPE = (3, 5, 6, 4)  # an odd row


def problem() -> tuple[jax.Array, Modulation]:
    r = np.random.default_rng(0)
    sizes = ((4,), (4,), (4,), (3, 4), (3, 4))  # scales and gains of both signs
    arrays = [jnp.asarray(r.normal(size=size), jnp.float32) for size in sizes]
    return jnp.asarray(2 + r.normal(size=SHAPE), jnp.float32), Modulation(*arrays)


def step_by_step(x: jax.Array, m: Modulation, groups: int) -> tuple[jax.Array, Moments]:
    x = x + m.conv_bias
    if groups:
        grouped = x.reshape(3, 5, 6, groups, -1)
        moments = [jnp.repeat(f(grouped, (1, 2, 4)), 4 // groups, 1) for f in (jnp.mean, jnp.var)]
        center, var = (value[:, None, None] for value in moments)
    else:
        moments = [jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))]
        center, var = moments
    v = (x - center) / jnp.sqrt(var + EPSILON) * m.scale + m.bias
    y = jnp.where(v >= 0, v, SLOPE * v) * m.gain[:, None, None] + m.offset[:, None, None]
    return max_pool(y), Moments(*moments)


@pytest.mark.parametrize("groups", [0, 2])
def test_value_and_gradients(groups: int) -> None:
    x, m = problem()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2, 3, 4)), jnp.float32)

    def all_of(function):
        def total(x, m):
            y, moments = function(x, m)
            return jnp.sum(jnp.sin(y) * weights), (y, moments)

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(x, m)

    found = all_of(lambda x, m: norm_pool(x, m, groups, SLOPE))
    expected = all_of(lambda x, m: step_by_step(x, m, groups))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def test_known_moments() -> None:
    x, m = problem()
    y, moments = norm_pool(x, m, 0, SLOPE)
    np.testing.assert_allclose(pool_known(x, m, moments, SLOPE), y, rtol=1e-5, atol=1e-5)
    other = moments._replace(var=4 * moments.var)
    assert float(jnp.abs(pool_known(x, m, other, SLOPE) - y).max()) > 0.1


def test_equal_values_share_a_gradient() -> None:
    """A flat map has a gradient of the right sum: every block's value counts once, not four times."""
    m = Modulation(jnp.zeros(1), jnp.ones(1), jnp.zeros(1), jnp.ones((1, 1)), jnp.zeros((1, 1)))
    x = jnp.asarray([[[[0.0], [0.0], [1.0], [2.0]], [[0.0], [0.0], [3.0], [4.0]]]])

    def picked(x):
        y, moments = norm_pool(x, m, 1, 1.0)  # slope 1: no kink
        return jnp.sum(y), moments

    (_, moments), gradient = jax.value_and_grad(picked, has_aux=True)(x)
    rate = float(jax.lax.rsqrt(moments.var[0, 0] + EPSILON))
    normed = (np.asarray(x)[0, :, :, 0] - float(moments.mean[0, 0])) * rate
    raw = np.array([[0.25, 0.25, 0, 0], [0.25, 0.25, 0, 1]])
    expected = rate * (raw - raw.mean() - normed * (raw * normed).mean())
    np.testing.assert_allclose(gradient[0, :, :, 0], expected, rtol=1e-4, atol=1e-6)


def test_running_statistics_move_by_a_tenth() -> None:
    norm, x = BatchNorm(2), jnp.asarray([[1.0, 2.0], [3.0, 8.0]])
    np.testing.assert_allclose(norm(x), [[-1, -1], [1, 1]], atol=1e-4)
    np.testing.assert_allclose(norm.mean[...], [0.2, 0.5], rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], [1.0, 1.8], rtol=1e-6)
    norm.set_view(use_running_average=True)
    np.testing.assert_allclose(norm(x), (x - jnp.asarray([0.2, 0.5])) / jnp.sqrt(jnp.asarray([1.0, 1.8])), rtol=1e-4)
    np.testing.assert_allclose(norm.mean[...], [0.2, 0.5], rtol=1e-6)
