"""Multi-head attention whose positions are rotations (Su et al., arXiv 2104.09864), on a time axis that coarser memories share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.nn.layers import Seeds, dense

FASTEST = 0.5  # radians per sample of the first pair of features
SLOWEST = 1000.0  # how much slower the last pair would turn
OUTPUT_SCALE = 0.3  # of the output kernel at the start


def angles(length: int, stride: int, width: int) -> np.ndarray:
    """(length, width / 2) float32: position i, the middle of `stride` samples, is at (i + 1/2) stride - 1/2."""
    positions = (np.arange(length) + 0.5) * stride - 0.5
    return (positions[:, None] * FASTEST * SLOWEST ** (-2 * np.arange(width // 2) / width)).astype(np.float32)


def rotate(x: jax.Array, turn: np.ndarray) -> jax.Array:
    """x (B, T, H, d), turn (T, d / 2): feature k and feature k + d/2 are a point of the plane; computed in float32."""
    cosine, sine = np.cos(turn)[:, None], np.sin(turn)[:, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cosine - b * sine, a * sine + b * cosine], axis=-1).astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str) -> jax.Array:
    """softmax(q k / sqrt(d)) v, (B, Q, H, d) and (B, S, H, d) -> (B, Q, H, d).

    implementation: xla | cudnn | auto, which takes cuDNN's fused kernel where there is one (on NVIDIA, for two-byte types), and
    `attend_products` on CPU in float32.
    """
    if implementation == "auto":
        if jax.default_backend() == "cpu" and q.dtype == jnp.float32:
            return attend_products(q, k, v)
        fused = jax.default_backend() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16)
        implementation = "cudnn" if fused else "xla"
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if implementation == "cudnn" else "xla")


@jax.custom_vjp
def attend_products(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """`attend` with sums over keys as products, forward and backward; float32.

    XLA's CPU compiler reduces the last axis one number at a time. Here a column of ones beside v gives the softmax's
    denominator, and beside the gradient it takes off the mean: 2.4 times faster at 208 rows with heads of 8 (measured).
    Scores stand as (B, H, S, Q), so that the largest of a query is found across rows, many queries at once: 10 % more.
    """
    return _attend(q, k, v)[0]


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
    q, k, v = (_heads_first(x) for x in (q * q.shape[-1] ** -0.5, k, v))
    scores = jnp.einsum("bhsd,bhqd->bhsq", k, q)
    p = jnp.exp(scores - scores.max(axis=-2, keepdims=True))
    mixed = jnp.einsum("bhsq,bhsd->bhqd", p, _with_ones(v))
    inverse = 1 / mixed[..., -1:]
    out = mixed[..., :-1] * inverse
    return _heads_first(out), (q, k, v, p, inverse, out)


def _attend_gradient(saved: Any, g: jax.Array) -> tuple[jax.Array, ...]:
    q, k, v, p, inverse, out = saved
    g = _heads_first(g) * inverse
    mean = (g * out).sum(axis=-1, keepdims=True)
    d_v = jnp.einsum("bhsq,bhqd->bhsd", p, g)
    d_scores = p * jnp.einsum("bhsd,bhqd->bhsq", _with_ones(v), jnp.concatenate([g, -mean], axis=-1))
    d_q = jnp.einsum("bhsq,bhsd->bhqd", d_scores, k) * q.shape[-1] ** -0.5
    d_k = jnp.einsum("bhsq,bhqd->bhsd", d_scores, q)
    return _heads_first(d_q), _heads_first(d_k), _heads_first(d_v)


attend_products.defvjp(_attend, _attend_gradient)


def _heads_first(x: jax.Array) -> jax.Array:
    return x.swapaxes(1, 2)


def _with_ones(x: jax.Array) -> jax.Array:
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


class RotaryAttention(nnx.Module):
    """(B, Q, C) over itself, or over a memory (B, S, C) if `cross` -> (B, Q, C). Maps have no bias but for the output's."""

    def __init__(self, width: int, head_width: int, implementation: str, seeds: Seeds, *, cross: bool, dtype: Any):
        self.head_width, self.implementation = head_width, implementation
        if cross:
            self.query = dense(width, width, seeds, dtype=dtype, bias=False)
            self.memory = dense(width, 2 * width, seeds, dtype=dtype, bias=False)
        else:
            self.inputs = dense(width, 3 * width, seeds, dtype=dtype, bias=False)
        self.output = dense(width, width, seeds, dtype=dtype, scale=OUTPUT_SCALE)
        self.cross = cross

    def __call__(self, x: jax.Array, stride: int, memory: jax.Array | None = None, memory_stride: int = 0) -> jax.Array:
        """stride, memory_stride: samples between two rows of x and of memory."""
        if self.cross:
            assert memory is not None and memory_stride, "cross-attention needs a memory"
            q, (k, v) = self.query(x), jnp.split(self.memory(memory), 2, axis=-1)
        else:
            q, k, v = jnp.split(self.inputs(x), 3, axis=-1)
            memory_stride = stride
        q, k, v = (part.reshape(*part.shape[:2], -1, self.head_width) for part in (q, k, v))
        q = rotate(q, angles(q.shape[1], stride, self.head_width))
        k = rotate(k, angles(k.shape[1], memory_stride, self.head_width))
        return self.output(attend(q, k, v, self.implementation).reshape(x.shape))


def attention_products(queries: int, keys: int, width: int) -> int:
    """Multiply-adds of `RotaryAttention` per example: its four maps, scores and their use."""
    return 2 * width * width * (queries + keys) + 2 * queries * keys * width
