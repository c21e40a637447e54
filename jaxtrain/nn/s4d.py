"""S4D: diagonal state spaces as convolutions (Gu, Gupta, Goel and Re, arXiv 2206.11893), in one or both directions.

Letters: B batch, n samples, C channels, P conjugate pairs of states (half of the N states that a size is quoted by).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.nn.draws import Dice, dropped, split
from jaxtrain.nn.layers import LayerNorm, Seeds, dense, gelu


def legs_frequencies(states: int) -> np.ndarray:
    """Positive imaginary parts of the eigenvalues of the normal part of HiPPO-LegS, ascending: (states / 2,) float64."""
    root = np.sqrt(2 * np.arange(states) + 1.0)
    skew = 0.5 * root[:, None] * root[None]
    skew = np.triu(skew, 1) - np.tril(skew, -1)
    return np.sort(np.linalg.eigvals(skew).imag)[states // 2 :]


def kernels(dt: jax.Array, a: jax.Array, b: jax.Array, c: jax.Array, length: int) -> jax.Array:
    """K_l = 2 Re sum_p c_p ((e^{dt A_p} - 1) / A_p) e^{l dt A_p} with A = -a + i b: (D, C, length) float32.

    dt (C,) > 0, a (C, P) > 0, b (C, P), c (D, C, P, 2) real and imaginary parts; D kernels share dt and A. In real numbers, so that
    the same program serves compilers without complex ones.
    """
    step, turn = -dt[:, None] * a, dt[:, None] * b
    decay = jnp.exp(step)
    # (e^{dt A} - 1) / A = conj(A) (e^{dt A} - 1) / |A|^2, and expm1 keeps the digits that e^x - 1 would lose at small steps.
    gain_re = jnp.expm1(step) * jnp.cos(turn) - 2 * jnp.square(jnp.sin(turn / 2))
    gain_im = decay * jnp.sin(turn)
    size = a * a + b * b
    gain_re, gain_im = (b * gain_im - a * gain_re) / size, -(a * gain_im + b * gain_re) / size
    weight_re = 2 * (c[..., 0] * gain_re - c[..., 1] * gain_im)
    weight_im = -2 * (c[..., 0] * gain_im + c[..., 1] * gain_re)
    times = jnp.arange(length, dtype=jnp.float32)
    amplitude, phase = jnp.exp(step[..., None] * times), turn[..., None] * times
    basis = jnp.concatenate([amplitude * jnp.cos(phase), amplitude * jnp.sin(phase)], axis=1)  # (C, 2 P, length)
    weights = jnp.concatenate([weight_re, weight_im], axis=2)
    return jnp.einsum("dcp,cpl->dcl", weights, basis, precision=jax.lax.Precision.HIGHEST)


def circle(kernel: jax.Array) -> jax.Array:
    """(1 or 2, C, n) -> (C, 2 n): what a sample hears at distance 0, 1, .. n-1, then -n, .. -1 (0 without a second kernel)."""
    backward = kernel[1, :, ::-1] if len(kernel) == 2 else jnp.zeros_like(kernel[0])
    return jnp.concatenate([kernel[0], backward], axis=-1)


def toeplitz(around: jax.Array) -> jax.Array:
    """(C, 2 n) of `circle` -> (C, n, n): [c, j, i] is what output i hears of input j.

    A row longer by one than its neighbour moves on by one: reshaping does what a gather would, and its gradient is a sum.
    """
    channels, n = around.shape[0], around.shape[1] // 2
    rows = jnp.broadcast_to(around[:, None], (channels, n, 2 * n)).reshape(channels, -1)
    return rows[:, : n * (2 * n - 1)].reshape(channels, n, 2 * n - 1)[:, :, :n]


def convolve_toeplitz(u: jax.Array, kernel: jax.Array) -> jax.Array:
    """u (B, n, C), kernel (1 or 2, C, n) float32 -> (B, n, C): y_i = sum_{j <= i} K^f_{i-j} u_j + sum_{j > i} K^b_{j-i-1} u_j."""
    matrix = toeplitz(circle(kernel)).astype(u.dtype)
    return jnp.einsum("bjc,cji->bic", u, matrix)


def convolve_fft(u: jax.Array, kernel: jax.Array) -> jax.Array:
    """As `convolve_toeplitz`, in O(n log n) and float32: for long signals."""
    n = u.shape[1]
    spectrum = jnp.fft.rfft(circle(kernel), axis=-1).T
    heard = jnp.fft.rfft(u.astype(jnp.float32), n=2 * n, axis=1) * spectrum
    return jnp.fft.irfft(heard, n=2 * n, axis=1)[:, :n].astype(u.dtype)


class S4D(nnx.Module):
    """(B, n, C) -> (B, n, C): y = K u + D u, each channel a state space of its own.

    A = -exp(log_a) + i b starts at -1/2 + i pi p (init `lin`) or at the modes of HiPPO-LegS (`legs`), dt log-uniform in `dt_range`,
    C complex normal with variance 1, D normal. Parameters, kernel and their gradients are float32.
    """

    def __init__(
        self, channels: int, states: int, seeds: Seeds, *, init: str, bidirectional: bool, conv: str, dt_range: tuple[float, float]
    ):
        pairs = states // 2
        frequencies = legs_frequencies(states) if init == "legs" else math.pi * np.arange(pairs)
        low, high = (math.log(dt) for dt in dt_range)
        self.convolve = {"toeplitz": convolve_toeplitz, "fft": convolve_fft}[conv]
        self.log_dt = nnx.Param(low + (high - low) * seeds.params().uniform((channels,)))
        self.log_a = nnx.Param(jnp.full((channels, pairs), math.log(0.5)))
        self.b = nnx.Param(jnp.broadcast_to(jnp.asarray(frequencies, jnp.float32), (channels, pairs)))
        self.c = nnx.Param(math.sqrt(0.5) * seeds.params().normal((2 if bidirectional else 1, channels, pairs, 2)))
        self.d = nnx.Param(seeds.params().normal((channels,)))

    def kernel(self, length: int) -> jax.Array:
        """(1 or 2, C, length) float32: forward and backward."""
        return kernels(jnp.exp(self.log_dt[...]), jnp.exp(self.log_a[...]), self.b[...], self.c[...], length)

    def __call__(self, u: jax.Array) -> jax.Array:
        return self.convolve(u, self.kernel(u.shape[1])) + u * self.d[...].astype(u.dtype)


class S4DLayer(nnx.Module):
    """h + Drop(GLU(Dense(Drop(GELU(S4D(LN h)))))): (B, n, C) -> (B, n, C); options: those of `S4D`."""

    def __init__(self, channels: int, states: int, dropout: float, seeds: Seeds, *, dtype: Any, **options: Any):
        self.rate = dropout
        self.norm = LayerNorm(channels, dtype)
        self.ssm = S4D(channels, states, seeds, **options)
        self.output = dense(channels, 2 * channels, seeds, dtype=dtype)

    def __call__(self, h: jax.Array, draws: Dice = None) -> jax.Array:
        inner, outer = split(draws, 2)
        y = dropped(gelu(self.ssm(self.norm(h))), self.rate, inner)
        value, gate = jnp.split(self.output(y), 2, axis=-1)
        return h + dropped(value * jax.nn.sigmoid(gate), self.rate, outer)
