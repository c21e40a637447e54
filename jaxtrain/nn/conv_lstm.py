"""Convolutional LSTM along a line: the products of all inputs outside the scan, recurrence and gates inside, and its own gradient.

The grid is (S stations, D directions). Rows of it are (..., D, S, X) for a kernel one direction wide, every direction a line of its
own with X = C channels, and (..., S, X) for a wider kernel, which sees all directions at once, X = D C: a 'same' kernel on so narrow an
axis would spend a third and more of its multiplications on padding. Letters: T steps, B batch, H width, kh stations of a kernel.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

CLIP = 20.0  # of a relu cell's state: unclipped it grows without bound
State = tuple[jax.Array, jax.Array]  # h, c: rows (B, ..., S, X), float32


def rows_of(x: jax.Array, folded: bool) -> jax.Array:
    """(B, T, S, D, C) -> (T, B, D, S, C), or (T, B, S, D C) if folded."""
    return x.swapaxes(0, 1).reshape(x.shape[1], x.shape[0], x.shape[2], -1) if folded else x.transpose(1, 0, 3, 2, 4)


def unfold(x: jax.Array, directions: int) -> jax.Array:
    """Rows (T, B, ..., S, X) -> (T, B, D, S, C)."""
    return x if x.ndim == 5 else x.reshape(*x.shape[:3], directions, -1).swapaxes(2, 3)


def fold_kernel(kernel: jax.Array, directions: int) -> jax.Array:
    """(kh, kw, C, 4 H) with gates i, f, g, o -> (kh, X, 4 Y), Y = H or D H: gates outermost, then directions, then H.

    W'[:, d C + c, d' H + n] = W[:, d - d' + kw // 2, c, n] where |d - d'| <= kw // 2, else 0, for every gate.
    """
    kh, kw, channels, gates = kernel.shape
    if kw == 1:
        return kernel[:, 0]
    blocks = [[_block(kernel, d - other) for other in range(directions)] for d in range(directions)]
    whole = jnp.stack([jnp.stack(row, axis=3) for row in blocks], axis=1)  # (kh, d, C, 4, d', H)
    return whole.reshape(kh, directions * channels, gates * directions)


def _block(kernel: jax.Array, offset: int) -> jax.Array:
    """What one direction hears of another: (kh, C, 4, H)."""
    kh, kw, channels, gates = kernel.shape
    if abs(offset) > kw // 2:
        return jnp.zeros((kh, channels, 4, gates // 4), kernel.dtype)
    return kernel[:, offset + kw // 2].reshape(kh, channels, 4, gates // 4)


def shifted(x: jax.Array, kh: int) -> jax.Array:
    """(..., S, X) -> (..., S, kh X): each station beside its neighbours, zeros beyond the ends."""
    return jnp.concatenate([_moved(x, i - kh // 2) for i in range(kh)], axis=-1)


def gathered(x: jax.Array, kh: int) -> jax.Array:
    """The transpose of `shifted`: (..., S, kh X) -> (..., S, X)."""
    parts = jnp.split(x, kh, axis=-1)
    return sum((_moved(part, kh // 2 - i) for i, part in enumerate(parts) if i != kh // 2), parts[kh // 2])


def _moved(x: jax.Array, offset: int) -> jax.Array:
    """Station s + offset of x (..., S, X) at station s, zeros beyond the ends."""
    stations = x.shape[-2]
    offset = max(-stations, min(stations, offset))
    kept = jax.lax.slice_in_dim(x, max(0, offset), stations + min(0, offset), axis=-2)
    return jnp.pad(kept, [(0, 0)] * (x.ndim - 2) + [(max(0, -offset), max(0, offset)), (0, 0)])


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """'Same' convolution along stations, (..., S, X) by (kh, X, Y) -> (..., S, Y)."""
    kh, width, outputs = kernel.shape
    flat = shifted(x, kh).reshape(-1, kh * width)
    return (flat @ kernel.reshape(kh * width, outputs)).reshape(*x.shape[:-1], outputs)


def _convolve_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel), (x, kernel)


def _convolve_backward(saved: tuple[jax.Array, jax.Array], d: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return _input_gradient(d, kernel), _kernel_gradient(x, d, len(kernel))


convolve.defvjp(_convolve_forward, _convolve_backward)


def _input_gradient(d: jax.Array, kernel: jax.Array) -> jax.Array:
    """d (..., S, Y) of `convolve` -> (..., S, X)."""
    kh, width, outputs = kernel.shape
    pulled = d.reshape(-1, outputs) @ kernel.reshape(kh * width, outputs).T
    return gathered(pulled.reshape(*d.shape[:-1], kh * width), kh)


def _kernel_gradient(x: jax.Array, d: jax.Array, kh: int) -> jax.Array:
    """x (..., S, X) and d (..., S, Y) -> (kh, X, Y): a product per tap, which on CPU beats one of `shifted` by up to a third."""
    flat = d.reshape(-1, d.shape[-1])
    return jnp.stack([_moved(x, i - kh // 2).reshape(-1, x.shape[-1]).T @ flat for i in range(kh)])


def convolve_uniform(x: jax.Array, kernel: jax.Array, stations: int) -> jax.Array:
    """`convolve` of (..., X) that is the same at every station -> (..., S, Y): only the ends differ, by the taps that fall off."""
    kh, width, outputs = kernel.shape
    heard = np.arange(stations)[:, None] + np.arange(kh) - kh // 2
    taps = ((heard >= 0) & (heard < stations)).astype(np.float32)  # (S, kh)
    sums = (jnp.asarray(taps, kernel.dtype) @ kernel.reshape(kh, -1)).reshape(stations, width, outputs).swapaxes(0, 1)
    flat = x.reshape(-1, width) @ sums.reshape(width, stations * outputs)
    return flat.reshape(*x.shape[:-1], stations, outputs)


class ConvLSTM(nnx.Module):
    """Shi et al. (2015) without peepholes: [i f g o] = conv(x; Wx) + conv(h; Wh) + b; c' = sig(f) c + sig(i) act(g); h' = sig(o) act(c').

    kernel (kh, kw): 'same', over stations and directions. activation tanh or relu (its state is clipped to +-20). Wx is Glorot
    uniform, Wh orthogonal as a (kh kw H, 4 H) matrix, b 0 with the forget part 1.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        kernel: tuple[int, int],
        directions: int,
        *,
        activation: str,
        remat: bool,
        unroll: int,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        kh, kw = kernel
        self.directions, self.channels, self.folded = directions, inputs, kw > 1
        self.activation, self.remat, self.unroll, self.dtype = activation, remat, unroll, dtype
        glorot, orthogonal = nnx.initializers.glorot_uniform(), nnx.initializers.orthogonal()
        recurrent = orthogonal(rngs.params(), (kh * kw * hidden, 4 * hidden), jnp.float32)
        self.inputs = nnx.Dict(kernel=nnx.Param(glorot(rngs.params(), (kh, kw, inputs, 4 * hidden), jnp.float32)))
        self.recurrent = nnx.Dict(kernel=nnx.Param(recurrent.reshape(kh, kw, hidden, 4 * hidden)))
        self.bias = nnx.Param(jnp.zeros(4 * hidden).at[hidden : 2 * hidden].set(1))

    def kernels(self, *widths: int) -> Sequence[jax.Array]:
        """The input kernel as kernels of rows, cut into parts of these many channels, in order: each (kh, X, 4 Y)."""
        whole = self.inputs["kernel"][...].astype(self.dtype)
        assert sum(widths) == whole.shape[2], f"{widths} are not the {whole.shape[2]} channels of this cell"
        starts = [sum(widths[:i]) for i in range(len(widths))]
        return [fold_kernel(whole[:, :, start : start + width], self.directions) for start, width in zip(starts, widths, strict=True)]

    def gate_bias(self) -> jax.Array:
        """(4 Y,)."""
        bias = self.bias[...].astype(self.dtype)
        return jnp.tile(bias.reshape(4, 1, -1), (1, self.directions, 1)).reshape(-1) if self.folded else bias

    def project(self, x: jax.Array) -> jax.Array:
        """x (..., S, X) of all channels -> their product, gates (..., S, 4 Y)."""
        return convolve(x, self.kernels(self.channels)[0])

    def __call__(self, x_gates: jax.Array, constant: jax.Array | None = None, state: State | None = None) -> tuple[jax.Array, State]:
        """x_gates (T, B, ..., S, 4 Y), the input products of every step -> h of every step (T, B, ..., S, Y), last state.

        constant (B or 1, ..., S, 4 Y): products of inputs that no step changes; the bias comes on top. state: None starts from zeros.
        """
        bias = self.gate_bias()
        constant = bias if constant is None else constant.astype(self.dtype) + bias
        recurrent = fold_kernel(self.recurrent["kernel"][...].astype(self.dtype), self.directions)
        if state is None:
            zeros = jnp.zeros((*x_gates.shape[1:-1], x_gates.shape[-1] // 4), jnp.float32)
            state = zeros, zeros
        scan = partial(conv_lstm, activation=self.activation, unroll=self.unroll)
        scan = jax.checkpoint(scan) if self.remat else scan
        return scan(recurrent, x_gates.astype(self.dtype), constant, state)


def conv_lstm(
    recurrent: jax.Array, x_gates: jax.Array, constant: jax.Array, state: State, *, activation: str = "tanh", unroll: int = 1
) -> tuple[jax.Array, State]:
    """h of every step (T, ..., S, Y) and the last state.

    recurrent (kh, Y, 4 Y); x_gates (T, ..., S, 4 Y) and constant, whatever broadcasts to one step of it, are added to the product of
    h; state h, c (..., S, Y) float32.
    """
    return _scan(x_gates, constant, recurrent, *state, activation, unroll)


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _scan(
    x_gates: jax.Array, constant: jax.Array, kernel: jax.Array, h: jax.Array, c: jax.Array, activation: str, unroll: int
) -> tuple[jax.Array, State]:
    def step(state: State, now: jax.Array) -> tuple[State, jax.Array]:
        _, c, h = _cell(now, constant, kernel, *state, activation)
        return (h, c), h.astype(kernel.dtype)

    last, hs = jax.lax.scan(step, (h, c), x_gates, unroll=unroll)
    return hs, last


def _cell(
    now: jax.Array, constant: jax.Array, kernel: jax.Array, h: jax.Array, c: jax.Array, activation: str
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """One step: gates i, f, g, o after their activations, new c and h."""
    z = convolve(h.astype(kernel.dtype), kernel).astype(jnp.float32) + now.astype(jnp.float32) + constant.astype(jnp.float32)
    i, f, g, o = jnp.split(z, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), _act(g, activation), jax.nn.sigmoid(o)
    c = f * c + i * g
    c = jnp.clip(c, -CLIP, CLIP) if activation == "relu" else c
    return [i, f, g, o], c, o * _act(c, activation)


def _forward(x_gates, constant, kernel, h, c, activation, unroll):  # type: ignore[no-untyped-def]
    # The gates' activations take the place of their inputs, step by step: one buffer less to fill, and to hold.
    def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
        h, c, gates, hs, cs = carry
        parts, c, h = _cell(_at(gates, t), constant, kernel, h, c, activation)
        gates = _put(gates, jnp.concatenate(parts, axis=-1), t)
        return (h, c, gates, _put(hs, h, t + 1), _put(cs, c, t + 1)), None

    steps = len(x_gates)
    hs = jnp.zeros((steps + 1, *h.shape), kernel.dtype).at[0].set(h.astype(kernel.dtype))
    cs = jnp.zeros((steps + 1, *c.shape), jnp.float32).at[0].set(c)
    (h, c, gates, hs, cs), _ = jax.lax.scan(step, (h, c, x_gates, hs, cs), jnp.arange(steps), unroll=unroll)
    return (hs[1:], (h, c)), (constant, kernel, gates, hs, cs)


def _backward(activation, unroll, saved, cotangents):  # type: ignore[no-untyped-def]
    constant, kernel, gates, hs, cs = saved
    d_hs, (d_h, d_c) = cotangents

    def step(carry: State, t: jax.Array) -> tuple[State, jax.Array]:
        d_h, d_c = carry
        d_h = d_h + _at(d_hs, t).astype(jnp.float32)
        i, f, g, o = jnp.split(_at(gates, t).astype(jnp.float32), 4, axis=-1)
        c = _at(cs, t + 1)
        a = _act(c, activation)
        d_c = d_c + d_h * o * _slope(a, activation)
        d_c = jnp.where(jnp.abs(c) < CLIP, d_c, 0) if activation == "relu" else d_c
        d_z = [d_c * g * i * (1 - i), d_c * _at(cs, t) * f * (1 - f), d_c * i * _slope(g, activation), d_h * a * o * (1 - o)]
        d_z = jnp.concatenate(d_z, axis=-1).astype(kernel.dtype)
        return (_input_gradient(d_z, kernel).astype(jnp.float32), d_c * f), d_z

    (d_h, d_c), d_z = jax.lax.scan(step, (d_h, d_c), jnp.arange(len(gates)), reverse=True, unroll=unroll)
    return d_z, _summed(d_z, constant), _kernel_gradient(hs[:-1], d_z, len(kernel)), d_h, d_c


def _summed(x: jax.Array, like: jax.Array) -> jax.Array:
    """The gradient of `like`, which was broadcast to x (T, ...): leading axes by a product, ten times as fast on CPU as a sum."""
    shape = (1,) * (x.ndim - like.ndim) + like.shape
    leading = next((i for i, (size, own) in enumerate(zip(x.shape, shape, strict=True)) if size == own != 1), x.ndim)
    flat = x.reshape(math.prod(x.shape[:leading]), -1)
    total = jnp.ones((1, len(flat)), x.dtype) @ flat
    return total.reshape(shape[:leading] + x.shape[leading:]).reshape(like.shape)


_scan.defvjp(_forward, _backward)


def _at(x: jax.Array, t: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, t, keepdims=False)


def _put(x: jax.Array, value: jax.Array, t: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(x, value.astype(x.dtype), t, 0)


def _act(x: jax.Array, activation: str) -> jax.Array:
    return jnp.tanh(x) if activation == "tanh" else jnp.maximum(x, 0)


def _slope(y: jax.Array, activation: str) -> jax.Array:
    """Derivative of the activation, from its value."""
    return 1 - y * y if activation == "tanh" else (y > 0).astype(y.dtype)
