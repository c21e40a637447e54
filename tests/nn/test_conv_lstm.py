"""The cell against a textbook: 2-D convolutions of x and h, one step after another, differentiated by JAX."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxtrain.nn.conv_lstm import ConvLSTM, How, conv_lstm, convolve, fold_kernel, gathered, rows_of, shifted, unfold

HIDDEN, CHANNELS, STEPS, BATCH = 3, 2, 4, 2
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def textbook(params: Any, x: jax.Array, h: jax.Array, c: jax.Array, activation: str) -> jax.Array:
    """x (B, T, S, D, C), h and c (B, S, D, H) -> (B, T, S, D, H)."""
    act = jnp.tanh if activation == "tanh" else jax.nn.relu
    conv = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=DIMENSIONS)

    def step(state: Any, x: jax.Array) -> Any:
        h, c = state
        i, f, g, o = jnp.split(conv(x, params["wx"]) + conv(h, params["wh"]) + params["b"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * act(g)
        c = jnp.clip(c, -20, 20) if activation == "relu" else c
        h = jax.nn.sigmoid(o) * act(c)
        return (h, c), h

    return jax.lax.scan(step, (h, c), x.swapaxes(0, 1))[1].swapaxes(0, 1)


def ours(params: Any, x: jax.Array, h: jax.Array, c: jax.Array, activation: str, **options: Any) -> jax.Array:
    cell = make(params, x.shape[3], activation=activation, **options)
    state = tuple(rows_of(s[:, None], cell.folded)[0] for s in (h, c))
    out, _ = cell(rows_of(x, cell.folded), state=state)
    return unfold(out, x.shape[3]).transpose(1, 0, 3, 2, 4)


def make(
    params: Any,
    directions: int,
    activation: str = "tanh",
    hoisted: bool = False,
    unroll: int = 1,
    remat: bool = False,
    dtype: Any = jnp.float32,
) -> ConvLSTM:
    kh, kw, channels, gates = params["wx"].shape
    how = How(activation, hoisted, unroll)
    cell = nnx.eval_shape(lambda: ConvLSTM(channels, gates // 4, (kh, kw), directions, how, remat=remat, dtype=dtype, rngs=nnx.Rngs(0)))
    cell.inputs["kernel"], cell.recurrent["kernel"] = nnx.Param(params["wx"]), nnx.Param(params["wh"])
    cell.bias = nnx.Param(params["b"])
    return cell


def problem(kernel: tuple[int, int], directions: int, stations: int, scale: float = 0.5) -> tuple[Any, ...]:
    r = np.random.default_rng(0)

    def shape(*size: int) -> jax.Array:
        return jnp.asarray(scale * r.normal(size=size), jnp.float32)

    params = {"wx": shape(*kernel, CHANNELS, 4 * HIDDEN), "wh": shape(*kernel, HIDDEN, 4 * HIDDEN), "b": shape(4 * HIDDEN)}
    state = shape(BATCH, stations, directions, HIDDEN), shape(BATCH, stations, directions, HIDDEN)
    return params, shape(BATCH, STEPS, stations, directions, CHANNELS), *state


def loss_of(run: Any, activation: str, **options: Any) -> Any:
    def loss(*args: Any) -> Any:
        out = run(*args, activation, **options)
        return jnp.sum(out * jnp.sin(jnp.arange(out.size).reshape(out.shape))), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))


def close(found: Any, expected: Any, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


# Every size of kernel and of line, and every number of directions (kh, kw, D, S).
@pytest.mark.parametrize("kh, kw, directions, stations, activation, options", [
    (3, 1, 2, 66, "tanh", {"hoisted": True}), (5, 3, 3, 5, "relu", {"remat": True, "unroll": 2}), (1, 3, 1, 1, "tanh", {"hoisted": True}),
])  # fmt: skip
def test_outputs_gradients_and_one_adam_step(
    kh: int, kw: int, directions: int, stations: int, activation: str, options: dict[str, Any]
) -> None:
    scale = 1.0 if activation == "relu" else 0.5  # states reach 20
    args = problem((kh, kw), directions, stations, scale)
    with jax.default_matmul_precision("highest"):
        (_, expected), gradients = loss_of(textbook, activation)(*args)
        (_, found), found_gradients = loss_of(ours, activation, **options)(*args)
    assert activation == "tanh" or float(expected.max()) > 19.9
    close(found, expected, 1e-5)
    close(found_gradients, gradients, 1e-5)
    adam = optax.adam(1e-3)
    step = jax.jit(lambda params, g: optax.apply_updates(params, adam.update(g, adam.init(params))[0]))
    close(step(args[0], found_gradients[0]), step(args[0], gradients[0]), 1e-5)


@pytest.mark.parametrize("kernel, activation", [pytest.param((3, 3), "relu", marks=pytest.mark.slow), ((3, 1), "tanh")])
def test_blocks_of_examples_change_nothing(monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, int], activation: str) -> None:
    """Constants of every example and of all, states given, gradients of everything, last states too."""
    r = np.random.default_rng(0)
    lead, width, gates = ((5,), 6, 24) if kernel[1] > 1 else ((2, 5), 3, 12)

    def array(*size: int) -> jax.Array:
        return jnp.asarray(r.normal(size=size), jnp.float32)

    x, state = array(STEPS, 6, *lead, 4), (array(6, *lead, width), array(6, *lead, width))
    arguments = x, array(3, 4, gates), array(3, width, gates)
    how = How(activation, hoisted=False, unroll=1)

    def loss(x: Any, kernel: Any, recurrent: Any, constant: Any, state: Any) -> Any:
        found, last = conv_lstm(x, kernel, recurrent, constant, state, how)
        return sum(jnp.sum(part * jnp.cos(jnp.arange(part.size).reshape(part.shape))) for part in (found, *last)), (found, last)

    bytes_of_one = math.prod(lead) * gates * 4
    for constant in (array(gates), array(1, *lead, gates), array(6, *lead, gates)):
        results, ran = [], []
        for together in (6, 2, 1):
            monkeypatch.setattr("jaxtrain.nn.conv_lstm.CACHE_BYTES", together * bytes_of_one)
            run = jax.jit(jax.value_and_grad(lambda *a: loss(*a), argnums=(0, 1, 2, 3, 4), has_aux=True))
            ran.append(str(jax.make_jaxpr(run)(*arguments, constant, state)).count(f"f32[{together},{','.join(map(str, lead))},{gates}]"))
            results.append(run(*arguments, constant, state))
        assert all(ran), "steps run on so many examples"
        close(results[1], results[0], 1e-5)
        close(results[2], results[0], 1e-5)


def test_relu_states_are_clipped_to_20() -> None:
    x, kernel, recurrent = jnp.ones((50, 1, 2, 1)), jnp.full((1, 1, 4), 10.0), jnp.zeros((1, 1, 4))
    zeros = jnp.zeros((1, 2, 1))
    _, (_, c) = conv_lstm(x, kernel, recurrent, jnp.zeros(4), (zeros, zeros), How("relu", False, 1))
    np.testing.assert_allclose(c, 20.0)


def test_bfloat16_is_near() -> None:
    args = problem((3, 3), 2, 5)
    found = jax.jit(lambda *args: ours(*args, "tanh", dtype=jnp.bfloat16))(*args)
    close(found.astype(jnp.float32), jax.jit(lambda *args: textbook(*args, "tanh"))(*args), 2e-2)


def test_one_station_and_one_tap_is_a_plain_lstm() -> None:
    params, x, h, c = problem((1, 1), 1, 1)
    wx, wh, b = (np.asarray(params[name], np.float64).reshape(-1, 4 * HIDDEN) for name in ("wx", "wh", "b"))
    xs, h, c = np.asarray(x)[:, :, 0, 0], np.asarray(h)[:, 0, 0], np.asarray(c)[:, 0, 0]
    out = jax.jit(lambda h, c: ours(params, x, h[:, None, None], c[:, None, None], "tanh"))(h, c)
    found = np.asarray(out)[:, :, 0, 0]
    for t in range(STEPS):
        i, f, g, o = np.split(xs[:, t] @ wx + h @ wh + b, 4, axis=-1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        np.testing.assert_allclose(found[:, t], h, atol=1e-6)


def test_state_carries_over_two_halves() -> None:
    params, x, _, _ = problem((3, 3), 2, 5)

    @jax.jit
    def runs(x: jax.Array) -> Any:
        cell = make(params, 2)
        rows = rows_of(x, cell.folded)
        first, state = cell(rows[:2])
        second, last = cell(rows[2:], state=state)
        return cell(rows), (jnp.concatenate([first, second]), last)

    whole, halves = runs(x)
    close(halves, whole, 1e-6)


@pytest.mark.parametrize("kernel, hoisted", [((3, 1), False), ((5, 3), True)])
def test_channels_that_no_step_changes_are_multiplied_once(kernel: tuple[int, int], hoisted: bool) -> None:
    """Outputs and gradients as if they had been repeated for every step."""
    params, x, _, _ = problem(kernel, 2, 4)
    constant, moving = x[:, :1, :, :, :1], x[..., 1:]

    def once(params: Any, constant: jax.Array) -> jax.Array:
        cell = make(params, 2, hoisted=hoisted)
        of_constant, of_moving = cell.kernels(1, 1)
        product = convolve(rows_of(constant, cell.folded)[0], of_constant)
        return cell(rows_of(moving, cell.folded), kernel=of_moving, constant=product)[0]

    def repeated(params: Any, constant: jax.Array) -> jax.Array:
        cell = make(params, 2, hoisted=hoisted)
        return cell(rows_of(jnp.concatenate([jnp.broadcast_to(constant, moving.shape), moving], axis=-1), cell.folded))[0]

    @jax.jit
    def runs(params: Any, constant: jax.Array) -> Any:
        return [jax.value_and_grad(lambda *a, run=run: jnp.sum(jnp.sin(9 * run(*a))), (0, 1))(params, constant) for run in (once, repeated)]

    found, expected = runs(params, constant)
    close(found, expected, 1e-5)


def test_a_folded_kernel_is_the_2d_convolution() -> None:
    params, x, _, _ = problem((3, 3), 3, 5)

    @jax.jit
    def runs(x: jax.Array, kernel: jax.Array) -> Any:
        rows, folded = x.reshape(BATCH, 5, -1), fold_kernel(kernel, 3)
        by_gate = convolve(rows, folded).reshape(BATCH, 5, 4, 3, HIDDEN).transpose(0, 1, 3, 2, 4)
        as_conv1d = jax.lax.conv_general_dilated(rows, folded, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        plain = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)
        return by_gate.reshape(plain.shape), plain, convolve(rows, folded), as_conv1d

    found, plain, rows, as_conv1d = runs(x[:, 0], params["wx"])
    np.testing.assert_allclose(found, plain, atol=1e-5)
    np.testing.assert_allclose(rows, as_conv1d, atol=1e-5)


def test_gathered_is_the_transpose_of_shifted() -> None:
    r = np.random.default_rng(0)
    x, y = (jnp.asarray(r.normal(size=(2, 4, n)), jnp.float32) for n in (3, 15))
    assert float(jnp.vdot(shifted(x, 5), y)) == pytest.approx(float(jnp.vdot(x, gathered(y, 5))), rel=1e-5)


def test_first_weights() -> None:
    cell = ConvLSTM(2, 4, (3, 1), 2, How("tanh", False, 1), remat=False, dtype=jnp.float32, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(cell.bias[...], [0] * 4 + [1] * 4 + [0] * 8)
    wh = np.asarray(cell.recurrent["kernel"][...]).reshape(12, 16)
    np.testing.assert_allclose(wh @ wh.T, np.eye(12), atol=1e-5)
    limit = np.sqrt(6 / (3 * (2 + 16)))  # Glorot: fans times kh kw
    assert 0.8 * limit < np.abs(cell.inputs["kernel"][...]).max() <= limit
