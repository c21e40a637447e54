"""S4D: kernels, their three ways through a signal, directions, initial modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.nn.draws import Draws
from jaxtrain.nn.layers import Seeds
from jaxtrain.nn.s4d import S4D, S4DLayer, circle, convolve_fft, convolve_toeplitz, kernels, legs_frequencies, toeplitz

N, CHANNELS, STATES = 26, 3, 8


def seeds(n=0):
    return Seeds(Draws.of(jax.random.key(n)))


def layer(**changes):
    how = {"init": "lin", "bidirectional": True, "conv": "toeplitz", "dt_range": (1e-2, 1e-1)} | changes
    return S4D(CHANNELS, STATES, seeds(), **how)


def signal(seed=1):
    return np.random.default_rng(seed).normal(size=(2, N, CHANNELS)).astype(np.float32)


def modes(ssm):
    """dt (C, 1), A and C (directions, C, P), complex128."""
    dt = np.exp(np.asarray(ssm.log_dt[...], np.float64))[:, None]
    a = -np.exp(np.asarray(ssm.log_a[...], np.float64)) + 1j * np.asarray(ssm.b[...], np.float64)
    c = np.asarray(ssm.c[...], np.float64)
    return dt, a, c[..., 0] + 1j * c[..., 1]


def recurrence(dt, a, c, u):
    """y_l = 2 Re C x_l with x_l = e^{dt A} x_{l-1} + ((e^{dt A} - 1) / A) u_l, u (B, n, C)."""
    x, y = np.zeros((len(u), *a.shape), complex), []
    for now in np.moveaxis(u.astype(np.float64), 1, 0):
        x = np.exp(dt * a) * x + (np.exp(dt * a) - 1) / a * now[..., None]
        y.append(2 * (c * x).sum(-1).real)
    return np.stack(y, axis=1)


@pytest.mark.parametrize("conv", ["toeplitz", "fft"])
def test_both_directions_are_recurrences(conv):
    ssm, u = layer(conv=conv), signal()
    dt, a, c = modes(ssm)
    forward = recurrence(dt, a, c[0], u)
    backward = recurrence(dt, a, c[1], u[:, ::-1])[:, ::-1]  # hears samples after its own: one later
    expected = forward + np.concatenate([backward[:, 1:], 0 * backward[:, :1]], axis=1) + u * np.asarray(ssm.d[...])
    np.testing.assert_allclose(jax.jit(ssm)(u), expected, atol=1e-5)


def test_one_direction_hears_no_later_sample():
    ssm, u = layer(bidirectional=False), signal()
    other = u.copy()
    other[:, 10:] += 1
    run = jax.jit(ssm)
    before, after = run(u), run(other)
    np.testing.assert_array_equal(before[:, :10], after[:, :10])
    dt, a, c = modes(ssm)
    np.testing.assert_allclose(before, recurrence(dt, a, c[0], u) + u * np.asarray(ssm.d[...]), atol=1e-5)


def test_toeplitz_fourier_and_direct_sums_agree():
    kernel, u = np.array(layer().kernel(N)), signal()
    expected = np.zeros((2, N, CHANNELS))
    for i in range(N):
        for j in range(N):
            k = kernel[0, :, i - j] if i >= j else kernel[1, :, j - i - 1]
            expected[:, i] += k * u[:, j]
    for convolve in (convolve_toeplitz, convolve_fft):
        np.testing.assert_allclose(convolve(jnp.asarray(u), jnp.asarray(kernel)), expected, atol=1e-5)


def test_the_matrix_is_a_gather_and_its_gradient_a_sum():
    around = jnp.asarray(np.random.default_rng(0).normal(size=(CHANNELS, 2 * N)), jnp.float32)
    distance = np.arange(N)[None, :] - np.arange(N)[:, None]  # of output i and input j at [j, i]
    gathered = lambda s: s[:, distance % (2 * N)]  # noqa: E731
    np.testing.assert_array_equal(toeplitz(around), gathered(around))
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(CHANNELS, N, N)), jnp.float32)
    one, other = (jax.grad(lambda s, f=f: (f(s) * weight).sum())(around) for f in (toeplitz, gathered))
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_reversed_time_swaps_the_directions():
    # The backward kernel starts one sample later than the forward one, so the swapped matrix lies one sample off.
    kernel = layer().kernel(N)
    one, other = np.asarray(toeplitz(circle(kernel))), np.asarray(toeplitz(circle(kernel[::-1])))
    np.testing.assert_allclose(one[:, ::-1, ::-1][:, :-1], other[:, 1:], atol=1e-5)
    assert np.abs(one[:, :-1] - other[:, 1:]).max() > 0.01


def test_modes_of_legs():
    found = legs_frequencies(64)
    assert found.shape == (32,)
    np.testing.assert_allclose(found[[0, 1, 2, 31]], [0.263857, 0.905859, 1.702968, 1303.274], rtol=1e-4)
    root = np.sqrt(2 * np.arange(64) + 1.0)
    hippo = -np.tril(np.outer(root, root), -1) - np.diag(np.arange(64) + 1.0)
    normal = hippo + 0.5 * np.outer(root, root)  # the normal part of normal plus low rank
    np.testing.assert_allclose(np.diag(normal), -0.5, rtol=1e-9)
    imaginary = np.sort(np.linalg.eigvals(normal + 0.5 * np.eye(64)).imag)
    np.testing.assert_allclose(imaginary[32:], found, rtol=1e-6)


@pytest.mark.parametrize(("init", "highest"), [("lin", np.pi * 3), ("legs", legs_frequencies(STATES)[-1])])
def test_modes_at_the_start(init, highest):
    ssm = layer(init=init)
    dt, a, _ = modes(ssm)
    np.testing.assert_allclose(a.real, -0.5, rtol=1e-6)
    np.testing.assert_allclose(a.imag.max(axis=1), highest, rtol=1e-6)
    assert (dt > 0.99e-2).all() and (dt < 1.01e-1).all() and len(np.unique(dt)) == CHANNELS


@pytest.mark.parametrize("init", ["lin", "legs"])
@pytest.mark.parametrize("length", [13, 104])
def test_kernels_of_full_size_are_the_closed_form(init, length):
    ssm = S4D(64, 64, seeds(), init=init, bidirectional=True, conv="toeplitz", dt_range=(1e-3, 1e-1))
    dt, a, c = modes(ssm)
    expected = 2 * ((c * (np.expm1(dt * a) / a))[..., None] * np.exp(np.arange(length) * (dt * a)[..., None])).sum(2).real
    np.testing.assert_allclose(jax.jit(ssm.kernel, static_argnums=0)(length), expected, atol=1e-5)


def test_small_steps_keep_their_digits():
    ssm = layer()
    dt, a, c = modes(ssm)
    dt = dt * 1e-4
    arguments = [jnp.asarray(x, jnp.float32) for x in (dt[:, 0], -a.real, a.imag)]
    found = kernels(*arguments, ssm.c[...], 5)
    expected = 2 * ((c * (np.expm1(dt * a) / a))[..., None] * np.exp(np.arange(5) * (dt * a)[..., None])).sum(2).real
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_kernel_stays_float32_in_a_two_byte_layer():
    def run():
        how = {"init": "lin", "bidirectional": True, "conv": "toeplitz", "dt_range": (1e-2, 1e-1)}
        block = S4DLayer(4, STATES, 0.0, seeds(), dtype=jnp.bfloat16, **how)
        return block.ssm.kernel(N), block(jnp.ones((2, N, 4), jnp.bfloat16))

    kernel, h = jax.eval_shape(run)
    assert (kernel.shape, kernel.dtype) == ((2, 4, N), jnp.float32) and (h.shape, h.dtype) == ((2, N, 4), jnp.bfloat16)
