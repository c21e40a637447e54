"""Diffusion: the schedule's printed values, v and back, sampling of a Gaussian, guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.models.abr_diffusion import abar_table, ddim, diffuse, guided, levels, sampling_steps

MEAN, SD = 0.7, 0.4


def test_schedule():
    abar = abar_table()
    assert abar.dtype == np.float64 and abar.shape == (1000,) and (np.diff(abar) < 0).all()
    np.testing.assert_allclose(abar[[0, 499]], [0.99995872, 0.49384359], rtol=1e-6)
    np.testing.assert_allclose(abar[[998, 999]], [2.42877e-6, 2.42877e-9], rtol=2e-6)  # printed with six digits


def test_v_leads_back_to_both():
    rng = np.random.default_rng(0)
    x0, noise = rng.normal(size=(2, 4, 200)).astype(np.float32)
    t = jnp.asarray([0, 300, 900, 999])
    x, v = diffuse(x0, noise, t)
    a, g = (level[:, None] for level in levels(t))
    np.testing.assert_allclose(a * x - g * v, x0, atol=1e-5)
    np.testing.assert_allclose(g * x + a * v, noise, atol=1e-5)
    np.testing.assert_allclose(x[0], x0[0], atol=0.05)
    np.testing.assert_allclose(x[3], noise[3], atol=1e-3)


def test_steps_go_down_from_noise():
    np.testing.assert_array_equal(sampling_steps(50), np.arange(999, 0, -20))
    np.testing.assert_array_equal(sampling_steps(1000), np.arange(999, -1, -1))
    for steps in (0, 1001):
        with pytest.raises(UserError, match="1 to 1000"):
            sampling_steps(steps)


def exact(x, t):
    """v of data N(MEAN, SD^2): the best guess of noise and data from x_t."""
    a, g = (level[:, None] for level in levels(t))
    x0 = MEAN + a * SD**2 / (a**2 * SD**2 + g**2) * (x - a * MEAN)
    return a * (x - a * x0) / g - g * x0


@pytest.mark.parametrize(("steps", "sd"), [(10, 0.332), (50, 0.385), (250, 0.397), (1000, 0.399)])
def test_sampling_a_gaussian_with_the_exact_velocity(steps, sd):
    # Each step is linear in x, so three noises tell mean and SD without sampling error.
    noise = jnp.asarray([[-1.0], [0.0], [1.0]])
    low, middle, high = np.asarray(jax.jit(lambda z: ddim(exact, z, steps, 10.0))(noise))[:, 0]
    assert middle == pytest.approx(MEAN, abs=1e-3) and (high - low) / 2 == pytest.approx(sd, abs=1e-3)
    assert low + high == pytest.approx(2 * middle, abs=1e-4)


def test_clipping_is_at_the_given_value():
    run = jax.jit(lambda z, clip: ddim(exact, z, 10, clip))
    assert float(run(jnp.full((1, 1), 8.0), 2.0)[0, 0]) == pytest.approx(2.0)
    assert float(run(jnp.full((1, 1), 8.0), 10.0)[0, 0]) == pytest.approx(MEAN + 8 * 0.332, abs=0.01)


def test_guidance():
    seen = []

    def model(x):
        seen.append(len(x["x"]))
        null = x.get("null", jnp.zeros(len(x["x"]), bool))[:, None]
        return jnp.where(null, 2.0 * x["x"], x["statics"][:, :1] + x["x"] + x["t"][:, None])

    conditions = {"statics": jnp.asarray([[1.0], [2.0]]), "statics_ok": jnp.ones((2, 1), bool), "label": jnp.asarray([0, 5])}
    x, t = jnp.asarray([[3.0], [5.0]]), jnp.asarray([7, 7])
    conditional, without = np.asarray([[11.0], [14.0]]), np.asarray([[6.0], [10.0]])
    np.testing.assert_allclose(guided(model, conditions, 2.0)(x, t), without + 2 * (conditional - without))
    np.testing.assert_allclose(guided(model, conditions, 0.0)(x, t), without)
    np.testing.assert_allclose(guided(model, conditions, 1)(x, t), conditional)
    assert seen == [4, 4, 2]
