"""Mixture formulas against numerical integration and closed Gaussian forms."""

import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.nn import mixture as mixtures
from jaxtrain.nn.mixture import Mixture

WEIGHTS, MEANS, STDS = np.array([0.5, 0.3, 0.2]), np.array([-1.0, 0.4, 2.5]), np.array([0.5, 0.2, 1.1])
GRID = np.linspace(-12, 14, 400_001)


def example() -> Mixture:
    return Mixture(*(jnp.asarray(x, jnp.float32) for x in (np.log(WEIGHTS), MEANS, STDS)))


def reference_cdf(y: np.ndarray) -> np.ndarray:
    erf = np.vectorize(math.erf)
    return sum(w * 0.5 * (1 + erf((y - m) / s / math.sqrt(2))) for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True))


@pytest.fixture(scope="module")
def distribution() -> np.ndarray:
    return reference_cdf(GRID)


@pytest.mark.parametrize("y", [-3.0, 0.1, 0.4, 4.0])
def test_crps_is_the_integral_of_squared_errors_of_the_cdf(distribution: np.ndarray, y: float) -> None:
    integral = np.trapezoid((distribution - (GRID >= y)) ** 2, GRID)
    assert float(mixtures.crps(example(), jnp.float32(y))) == pytest.approx(integral, abs=3e-5)


def test_quantiles_invert_the_cdf(distribution: np.ndarray) -> None:
    levels = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    np.testing.assert_allclose(mixtures.quantile(example(), levels), np.interp(levels, distribution, GRID), atol=1e-4)
    np.testing.assert_allclose(mixtures.cdf(example(), jnp.float32(0.3)), reference_cdf(np.array(0.3)), atol=1e-6)


def test_moments_likelihood_and_spread(distribution: np.ndarray) -> None:
    density = np.gradient(distribution, GRID)
    center = np.trapezoid(density * GRID, GRID)
    assert float(mixtures.mean(example())) == pytest.approx(center, abs=1e-5)
    assert float(mixtures.std(example())) == pytest.approx(np.sqrt(np.trapezoid(density * (GRID - center) ** 2, GRID)), abs=1e-4)
    assert float(mixtures.nll(example(), jnp.float32(0.3))) == pytest.approx(-np.log(np.interp(0.3, GRID, density)), abs=1e-4)
    assert float(mixtures.spread(example())) == pytest.approx(np.std(MEANS, ddof=1), abs=1e-6)
    assert float(mixtures.negative_entropy(example())) == pytest.approx(np.sum(WEIGHTS * np.log(WEIGHTS)), abs=1e-6)


def test_one_component_is_the_gaussian() -> None:
    mean, std, y = 1.5, 0.7, np.array([-1.0, 1.4, 3.0], np.float32)
    single = Mixture(jnp.zeros((3, 1)), jnp.full((3, 1), mean), jnp.full((3, 1), std))
    normal, z = NormalDist(), (y - mean) / std
    closed = [std * (v * (2 * normal.cdf(v) - 1) + 2 * normal.pdf(v) - 1 / math.sqrt(math.pi)) for v in z]  # Gneiting and Raftery 2007
    np.testing.assert_allclose(mixtures.crps(single, jnp.asarray(y)), closed, atol=1e-6)
    np.testing.assert_allclose(mixtures.gaussian_crps(single, jnp.asarray(y)), closed, atol=1e-6)
    inverse = [NormalDist(mean, std).inv_cdf(p) for p in (0.1, 0.5)]
    np.testing.assert_allclose(mixtures.quantile(single, (0.1, 0.5)), [inverse] * 3, atol=1e-5)
    assert mixtures.spread(single).tolist() == [0, 0, 0]


def test_split_component_changes_nothing() -> None:
    doubled = Mixture(jnp.log(jnp.asarray([0.25, 0.25, 0.3, 0.2])), *(jnp.asarray(np.r_[x[0], x], jnp.float32) for x in (MEANS, STDS)))
    for score in (mixtures.crps, mixtures.gaussian_crps, mixtures.nll, mixtures.cdf):
        np.testing.assert_allclose(score(doubled, jnp.float32(0.7)), score(example(), jnp.float32(0.7)), atol=2e-6)


def test_affine_scales_scores() -> None:
    shift, scale, y = 18.7, 7.0, 0.3
    moved = mixtures.affine(example(), jnp.float32(shift), jnp.float32(scale))
    there = jnp.float32(y * scale + shift)
    assert float(mixtures.crps(moved, there)) == pytest.approx(scale * float(mixtures.crps(example(), jnp.float32(y))), rel=1e-5)
    assert float(mixtures.nll(moved, there)) == pytest.approx(float(mixtures.nll(example(), jnp.float32(y))) + math.log(scale), rel=1e-5)


def test_gradients_are_finite_where_components_coincide() -> None:
    same = Mixture(jnp.log(jnp.full((3,), 1 / 3)), jnp.ones(3), jnp.full((3,), 0.02))

    def total(m: Mixture) -> jax.Array:
        return mixtures.crps(m, jnp.float32(50)) + mixtures.nll(m, jnp.float32(50)) + mixtures.spread(m) + mixtures.negative_entropy(m)

    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(jax.grad(total)(same)))
