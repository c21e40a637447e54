"""LSTM over time: a `lax.scan` forward and a backward scan whose weight gradients are single products."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.linear import Linear, row_sum

State = tuple[jax.Array, jax.Array]  # h, c (B, H)


class LSTM(nnx.Module):
    """Gates i, f, g, o in this order, one bias; forget bias 1, orthogonal recurrent matrices. The state is float32.

    hoisted: multiply the inputs of all steps at once, before the scan; else step by step, together with h.
    """

    def __init__(self, inputs: int, width: int, *, hoisted: bool, dtype: Any, rngs: nnx.Rngs):
        self.hoisted, self.dtype = hoisted, dtype
        self.inputs = Linear(inputs, 4 * width, kernel_init=nnx.initializers.glorot_uniform(), bias_init=_forget_one, rngs=rngs)
        self.recurrent = Linear(width, 4 * width, use_bias=False, kernel_init=_orthogonal_gates, rngs=rngs)

    def __call__(self, x: jax.Array, state: State, mask: jax.Array | None = None) -> tuple[jax.Array, State]:
        """x (B, T, inputs) -> h of every step (B, T, H) and the last state; where mask (B, T) is False the state is held."""
        assert self.inputs.bias is not None
        parts = (self.inputs.kernel[...], self.recurrent.kernel[...], self.inputs.bias[...])
        wx, wh, b = (part.astype(self.dtype) for part in parts)
        steps = jnp.swapaxes(x.astype(self.dtype), 0, 1)
        kept = None if mask is None else mask.T[..., None]
        h0, c0 = (part.astype(jnp.float32) for part in state)
        found: Any = scan_lstm(steps, wx, wh, b, h0, c0, kept, self.hoisted)
        return jnp.swapaxes(found[0], 0, 1), found[1]


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def scan_lstm(
    x: jax.Array, wx: jax.Array, wh: jax.Array, b: jax.Array, h: jax.Array, c: jax.Array, mask: jax.Array | None, hoisted: bool
) -> tuple[jax.Array, State]:
    """x (T, B, I), wx (I, 4H), wh (H, 4H), b (4H,), h and c (B, H) float32, mask (T, B, 1) or None -> (T, B, H), last (h, c)."""
    return _forward(x, wx, wh, b, h, c, mask, hoisted)[0]


def _forward(x, wx, wh, b, h, c, mask, hoisted):  # type: ignore[no-untyped-def]
    rows = (x.reshape(-1, x.shape[-1]) @ wx + b).reshape(*x.shape[:2], -1) if hoisted else x
    both = None if hoisted else jnp.concatenate([wx, wh])

    def step(state: State, now: Any) -> Any:
        (h, c), (row, kept) = state, now
        z = row + h.astype(wh.dtype) @ wh if both is None else jnp.concatenate([row, h.astype(wh.dtype)], axis=-1) @ both + b
        i, f, g, o = jnp.split(z.astype(jnp.float32), 4, axis=-1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        new_c = f * c + i * g
        new_h = o * jnp.tanh(new_c)
        if kept is not None:
            new_h, new_c = jnp.where(kept, new_h, h), jnp.where(kept, new_c, c)
        return (new_h, new_c), (new_h, new_c, jnp.concatenate([i, f, g, o], axis=-1).astype(wh.dtype))

    last, (hs, cs, gates) = jax.lax.scan(step, (h, c), (rows, mask))
    out = hs.astype(x.dtype)
    return (out, last), (x, wx, wh, h, c, mask, out, cs, gates)


def _backward(hoisted, saved, cotangents):  # type: ignore[no-untyped-def]
    x, wx, wh, h0, c0, mask, hs, cs, gates = saved
    d_out, (d_h, d_c) = cotangents
    previous = jnp.concatenate([c0[None], cs[:-1]])
    wh_t = wh.T

    def step(carry: State, now: Any) -> Any:
        d_h, d_c = carry
        d_new, c, c_before, gate, kept = now
        d_h = d_h + d_new.astype(jnp.float32)
        i, f, g, o = jnp.split(gate.astype(jnp.float32), 4, axis=-1)
        t = jnp.tanh(c)
        d_state = d_c + d_h * o * (1 - t * t)
        d_z = jnp.concatenate(
            [d_state * g * i * (1 - i), d_state * c_before * f * (1 - f), d_state * i * (1 - g * g), d_h * t * o * (1 - o)], axis=-1
        )
        if kept is not None:
            d_z = jnp.where(kept, d_z, 0)
        d_z = d_z.astype(wh.dtype)
        new_d_h, new_d_c = (d_z @ wh_t).astype(jnp.float32), d_state * f
        if kept is not None:
            new_d_h, new_d_c = jnp.where(kept, new_d_h, d_h), jnp.where(kept, new_d_c, d_c)
        return (new_d_h, new_d_c), d_z

    (d_h, d_c), d_z = jax.lax.scan(step, (d_h, d_c), (d_out, cs, previous, gates, mask), reverse=True)
    flat = d_z.reshape(-1, d_z.shape[-1])
    before = jnp.concatenate([h0[None].astype(hs.dtype), hs[:-1]]).reshape(-1, hs.shape[-1])
    d_x = (flat @ wx.T).reshape(x.shape)
    d_wx, d_wh = x.reshape(-1, x.shape[-1]).T @ flat, before.T @ flat
    return d_x, d_wx, d_wh, row_sum(flat.astype(jnp.float32)).astype(wx.dtype), d_h, d_c, None


scan_lstm.defvjp(_forward, _backward)


def _orthogonal_gates(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    width = shape[0]
    make = nnx.initializers.orthogonal()
    return jnp.concatenate([make(k, (width, width), dtype) for k in jax.random.split(key, shape[1] // width)], axis=1)


def _forget_one(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    width = shape[0] // 4
    return jnp.zeros(shape, dtype).at[width : 2 * width].set(1)
