"""Convolutional LSTM along a line: one scan over time, with a gradient of its own.

Where steps cost more than memory (accelerators), the inputs of all steps are multiplied at once before the scan and the kernels'
gradients formed at once behind it (hoisted). On CPU every step does all of its own, while its arrays are in the cache.

The grid is (S stations, D directions). Rows of it are (..., D, S, X) for a kernel one direction wide, every direction a line of its
own with X = C channels, and (..., S, X) for a wider kernel, which sees all directions at once, X = D C: a 'same' kernel on so narrow an
axis would spend a third and more of its multiplications on padding. Letters: T steps, B batch, H width, kh stations of a kernel.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

CACHE_BYTES = 640 * 1024  # of the gates of one step, on CPU: half of a core's own cache
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


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """'Same' convolution along stations, (..., S, X) by (kh, X, Y) -> (..., S, Y)."""
    kh, width, outputs = kernel.shape
    flat = shifted(x, kh).reshape(-1, kh * width)
    return (flat @ kernel.reshape(kh * width, outputs)).reshape(*x.shape[:-1], outputs)


def _input_gradient(d: jax.Array, kernel: jax.Array) -> jax.Array:
    """d (..., S, Y) of `convolve` -> (..., S, X)."""
    kh, width, outputs = kernel.shape
    pulled = d.reshape(-1, outputs) @ kernel.reshape(kh * width, outputs).T
    return gathered(pulled.reshape(*d.shape[:-1], kh * width), kh)


def _kernel_gradient(x: jax.Array, d: jax.Array, kh: int) -> jax.Array:
    """x (..., S, X) and d (..., S, Y) -> (kh, X, Y) float32."""
    flat = shifted(x, kh).reshape(-1, kh * x.shape[-1])
    return jnp.matmul(flat.T, d.reshape(len(flat), -1), preferred_element_type=jnp.float32).reshape(kh, x.shape[-1], -1)


class How(NamedTuple):
    """hoisted: multiply the inputs of all steps at once; unroll: steps in one turn of the scan's loop."""

    activation: str
    hoisted: bool
    unroll: int


class ConvLSTM(nnx.Module):
    """Shi et al. (2015) without peepholes: [i f g o] = conv(x; Wx) + conv(h; Wh) + b; c' = sig(f) c + sig(i) act(g); h' = sig(o) act(c').

    kernel (kh, kw): 'same', over stations and directions. activation tanh or relu (its state is clipped to +-20). Wx is Glorot
    uniform, Wh orthogonal as a (kh kw H, 4 H) matrix, b 0 with the forget part 1.
    """

    def __init__(
        self, inputs: int, hidden: int, kernel: tuple[int, int], directions: int, how: How, *, remat: bool, dtype: Any, rngs: nnx.Rngs
    ):
        kh, kw = kernel
        self.directions, self.channels, self.folded = directions, inputs, kw > 1
        self.how, self.remat, self.dtype = how, remat, dtype
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

    def __call__(
        self, x: jax.Array, *, kernel: jax.Array | None = None, constant: jax.Array | None = None, state: State | None = None
    ) -> tuple[jax.Array, State]:
        """x (T, B, ..., S, X) -> h of every step (T, B, ..., S, Y), last state.

        kernel (kh, X, 4 Y): the part of `kernels` that x meets, if it is not all channels; constant (B or 1, ..., S, 4 Y): products of
        the others, which no step changes. state: None starts from zeros.
        """
        dtype = self.dtype
        kernel = self.kernels(self.channels)[0] if kernel is None else kernel
        recurrent = fold_kernel(self.recurrent["kernel"][...].astype(dtype), self.directions)
        bias = self.bias[...].astype(dtype)
        bias = jnp.tile(bias.reshape(4, 1, -1), (1, self.directions, 1)).reshape(-1) if self.folded else bias
        constant = bias if constant is None else constant.astype(dtype) + bias
        if state is None:
            zeros = jnp.zeros((*x.shape[1:-1], recurrent.shape[1]), jnp.float32)
            state = zeros, zeros
        scan = partial(conv_lstm, how=self.how)
        return (jax.checkpoint(scan) if self.remat else scan)(x.astype(dtype), kernel, recurrent, constant, state)


def conv_lstm(
    x: jax.Array, kernel: jax.Array, recurrent: jax.Array, constant: jax.Array, state: State, how: How
) -> tuple[jax.Array, State]:
    """h of every step (T, ..., S, Y) and the last state.

    x (T, ..., S, X) meets kernel (kh, X, 4 Y), h meets recurrent (kh, Y, 4 Y), all of one type; constant, whatever broadcasts to
    (..., S, 4 Y), is added to the products; state h, c (..., S, Y) float32.
    """
    return _scan(x, kernel, recurrent, constant, *state, how)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _scan(
    x: jax.Array, kernel: jax.Array, recurrent: jax.Array, constant: jax.Array, h: jax.Array, c: jax.Array, how: How
) -> tuple[jax.Array, State]:
    product = _product(kernel, recurrent, constant, how)

    def step(state: State, now: jax.Array) -> tuple[State, jax.Array]:
        _, c, h = _cell(product(now, state[0]), state[1], how)
        return (h, c), h.astype(recurrent.dtype)

    last, hs = jax.lax.scan(step, (h, c), convolve(x, kernel) if how.hoisted else x, unroll=how.unroll)
    return hs, last


def _product(kernel: jax.Array, recurrent: jax.Array, constant: jax.Array, how: How) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(this step's input, or its product if hoisted, and h) -> the gates before their activations, float32."""
    both = jnp.concatenate([recurrent, kernel], axis=1)
    bias = constant.astype(jnp.float32)

    def product(now: jax.Array, h: jax.Array) -> jax.Array:
        h = h.astype(recurrent.dtype)
        if how.hoisted:
            return convolve(h, recurrent).astype(jnp.float32) + now.astype(jnp.float32) + bias
        return convolve(jnp.concatenate([h, now], axis=-1), both).astype(jnp.float32) + bias

    return product


def _cell(z: jax.Array, c: jax.Array, how: How) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One step: gates i, f, g, o after their activations in one array, new c and h."""
    i, f, g, o = jnp.split(z, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), _act(g, how.activation), jax.nn.sigmoid(o)
    c = f * c + i * g
    c = jnp.clip(c, -CLIP, CLIP) if how.activation == "relu" else c
    return jnp.concatenate([i, f, g, o], axis=-1), c, o * _act(c, how.activation)


def _forward(x, kernel, recurrent, constant, h, c, how):  # type: ignore[no-untyped-def]
    steps, dtype, size = len(x), recurrent.dtype, _together(x, kernel, how)

    def block(buffers: Any, first: jax.Array) -> tuple[Any, State]:
        product = _product(kernel, recurrent, _examples(constant, x, first, size), how)

        def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
            h, c, gates, hs, cs = carry
            opened, c, h = _cell(product(_at(gates if how.hoisted else x, t, first, size), h), c, how)
            return (h, c, _put(gates, opened, t, first), _put(hs, h, t + 1, first), _put(cs, c, t + 1, first)), None

        start = *(jax.lax.dynamic_slice_in_dim(part, first, size) for part in (h, c)), *buffers
        (h_last, c_last, *buffers), _ = jax.lax.scan(step, start, jnp.arange(steps), unroll=how.unroll)
        return tuple(buffers), (h_last, c_last)

    # Hoisted, the gates' activations take the place of their inputs, step by step: one buffer less to fill, and to hold.
    gates = convolve(x, kernel) if how.hoisted else jnp.zeros((*x.shape[:-1], kernel.shape[-1]), dtype)
    hs = jnp.zeros((steps + 1, *h.shape), dtype).at[0].set(h.astype(dtype))
    cs = jnp.zeros((steps + 1, *c.shape), jnp.float32).at[0].set(c)
    (gates, hs, cs), last = _over_blocks(block, (gates, hs, cs), x.shape[1], size)
    return (hs[1:], last), (x, kernel, recurrent, constant, gates, hs, cs)


def _backward(how, saved, cotangents):  # type: ignore[no-untyped-def]
    x, kernel, recurrent, constant, gates, hs, cs = saved
    d_hs, (d_h, d_c) = cotangents
    kh, width, _ = recurrent.shape
    both = jnp.concatenate([recurrent, kernel], axis=1)

    def gates_gradient(d_h: jax.Array, d_c: jax.Array, t: jax.Array, first: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        d_h = d_h + _at(d_hs, t, first, size).astype(jnp.float32)
        i, f, g, o = jnp.split(_at(gates, t, first, size).astype(jnp.float32), 4, axis=-1)
        c = _at(cs, t + 1, first, size)
        a = _act(c, how.activation)
        d_c = d_c + d_h * o * _slope(a, how.activation)
        d_c = jnp.where(jnp.abs(c) < CLIP, d_c, 0) if how.activation == "relu" else d_c
        before = _at(cs, t, first, size)
        d_z = [d_c * g * i * (1 - i), d_c * before * f * (1 - f), d_c * i * _slope(g, how.activation), d_h * a * o * (1 - o)]
        return jnp.concatenate(d_z, axis=-1).astype(recurrent.dtype), d_c * f

    order = {"xs": jnp.arange(len(x)), "reverse": True, "unroll": how.unroll}
    if how.hoisted:

        def step_hoisted(carry: State, t: jax.Array) -> tuple[State, jax.Array]:
            d_z, d_c = gates_gradient(*carry, t, jnp.int32(0), x.shape[1])
            return (_input_gradient(d_z, recurrent).astype(jnp.float32), d_c), d_z

        (d_h, d_c), d_z = jax.lax.scan(step_hoisted, (d_h, d_c), **order)
        d_kernel, d_recurrent = _kernel_gradient(x, d_z, kh), _kernel_gradient(hs[:-1], d_z, kh)
        d_x, d_constant = _input_gradient(d_z, kernel), _summed(d_z, constant)
        return _typed(d_x, d_kernel, d_recurrent, d_constant, d_h, d_c, saved)

    size = _together(x, kernel, how)
    own = _examples(constant, x, jnp.int32(0), size)  # what one block of examples hears of it

    def block(sums: Any, first: jax.Array) -> tuple[Any, Any]:
        def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
            d_h, d_c, d_both, d_constant, d_x = carry
            d_z, d_c = gates_gradient(d_h, d_c, t, first, size)
            heard = jnp.concatenate([_at(hs, t, first, size), _at(x, t, first, size)], axis=-1)
            d_both, d_constant = d_both + _kernel_gradient(heard, d_z, kh), d_constant + _summed(d_z, own)
            pulled = _input_gradient(d_z, both)
            return (pulled[..., :width].astype(jnp.float32), d_c, d_both, d_constant, _put(d_x, pulled[..., width:], t, first)), None

        d_both, d_x = sums
        start = *(jax.lax.dynamic_slice_in_dim(part, first, size) for part in (d_h, d_c)), d_both, jnp.zeros(own.shape, jnp.float32), d_x
        (d_h_first, d_c_first, d_both, d_constant, d_x), _ = jax.lax.scan(step, start, **order)
        return (d_both, d_x), (d_h_first, d_c_first, d_constant)

    sums = jnp.zeros(both.shape, jnp.float32), jnp.zeros(x.shape, x.dtype)
    (d_both, d_x), (d_h, d_c, d_constant) = _over_blocks(block, sums, x.shape[1], size, shared=own.shape == constant.shape)
    return _typed(d_x, d_both[:, width:], d_both[:, :width], d_constant, d_h, d_c, saved)


def _typed(d_x, d_kernel, d_recurrent, d_constant, d_h, d_c, saved):  # type: ignore[no-untyped-def]
    """Gradients of the arguments of `_scan`, in their types."""
    _, kernel, recurrent, constant, *_ = saved
    return d_x, d_kernel.astype(kernel.dtype), d_recurrent.astype(recurrent.dtype), d_constant.astype(constant.dtype), d_h, d_c


def _together(x: jax.Array, kernel: jax.Array, how: How) -> int:
    """How many examples go through all steps together: all, or as many as leave a step's gates in a core's cache."""
    examples = x.shape[1]
    if how.hoisted or jax.device_count() > 1:  # a batch that is spread over devices is not cut again
        return examples
    gates = math.prod(x.shape[2:-1]) * kernel.shape[-1] * kernel.dtype.itemsize
    return max((n for n in range(1, examples + 1) if examples % n == 0 and n * gates <= CACHE_BYTES), default=1)


def _over_blocks(
    block: Callable[[Any, jax.Array], tuple[Any, Any]], carry: Any, examples: int, size: int, shared: bool = False
) -> tuple[Any, Any]:
    """`block` for every `size` examples in turn; what it gives is put together again (of the last part the sum, if shared)."""
    if size == examples:
        return block(carry, jnp.int32(0))
    carry, parts = jax.lax.scan(block, carry, jnp.arange(0, examples, size))
    joined = [part.reshape(examples, *part.shape[2:]) for part in (parts[:-1] if shared else parts)]
    return carry, (*joined, parts[-1].sum(0)) if shared else tuple(joined)


def _examples(constant: jax.Array, x: jax.Array, first: jax.Array, size: int) -> jax.Array:
    """The part of `constant` that these examples hear; all of it, if it does not differ between examples."""
    differs = constant.ndim == x.ndim - 1 and constant.shape[0] == x.shape[1] > size
    return jax.lax.dynamic_slice_in_dim(constant, first, size) if differs else constant


_scan.defvjp(_forward, _backward)


def _summed(x: jax.Array, like: jax.Array) -> jax.Array:
    """The gradient of `like`, which was broadcast to x, float32: leading axes by a product, ten times as fast on CPU as a sum."""
    shape = (1,) * (x.ndim - like.ndim) + like.shape
    leading = next((i for i, (size, own) in enumerate(zip(x.shape, shape, strict=True)) if size == own != 1), x.ndim)
    if leading == 0:
        return x.reshape(like.shape).astype(jnp.float32)
    flat = x.reshape(math.prod(x.shape[:leading]), -1)
    total = jnp.matmul(jnp.ones((1, len(flat)), x.dtype), flat, preferred_element_type=jnp.float32)
    return total.reshape(shape[:leading] + x.shape[leading:]).reshape(like.shape)


def _at(x: jax.Array, t: jax.Array, first: jax.Array, size: int) -> jax.Array:
    """Step t of `size` examples from `first` on."""
    zeros = (jnp.int32(0),) * (x.ndim - 2)
    return jax.lax.dynamic_slice(x, (t, first, *zeros), (1, size, *x.shape[2:]))[0]


def _put(x: jax.Array, value: jax.Array, t: jax.Array, first: jax.Array) -> jax.Array:
    zeros = (jnp.int32(0),) * (x.ndim - 2)
    return jax.lax.dynamic_update_slice(x, value.astype(x.dtype)[None], (t, first, *zeros))


def _act(x: jax.Array, activation: str) -> jax.Array:
    return jnp.tanh(x) if activation == "tanh" else jnp.maximum(x, 0)


def _slope(y: jax.Array, activation: str) -> jax.Array:
    """Derivative of the activation, from its value."""
    return 1 - y * y if activation == "tanh" else (y > 0).astype(y.dtype)
