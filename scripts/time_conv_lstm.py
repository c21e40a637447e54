"""Time one ConvLSTM layer of `configs/convlstm.py:baseline`: python scripts/time_conv_lstm.py [--batch 32] [--channels 64] [--steps 30]

CPU milliseconds of loss and gradient, least and median of interleaved rounds: the batch in one piece, in blocks that leave a step in a
core's cache (what training does), and the layer's matrix products alone, which no program of this shape can do without. On one core:
XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 python scripts/time_conv_lstm.py
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.nn import conv_lstm

STATIONS, DIRECTIONS, HIDDEN, KERNEL = 66, 2, 32, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 32), ("channels", 64), ("steps", 30), ("rounds", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rng, width = np.random.default_rng(0), DIRECTIONS * HIDDEN

    def array(*size: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=size), jnp.float32)

    x = array(options.steps, options.batch, STATIONS, options.channels)
    kernel, recurrent, bias = 0.05 * array(KERNEL, options.channels, 4 * width), 0.05 * array(KERNEL, width, 4 * width), array(4 * width)
    weight, zeros = array(*x.shape[:3], width), jnp.zeros((*x.shape[1:3], width))
    rows, columns = options.batch * STATIONS, KERNEL * (options.channels + width)
    heard, both, d_z = array(options.steps, rows, columns), array(columns, 4 * width), array(options.steps, rows, 4 * width)

    def layer(x: jax.Array, kernel: jax.Array, recurrent: jax.Array, bias: jax.Array, weight: jax.Array) -> jax.Array:
        how = conv_lstm.How("tanh", hoisted=False, unroll=1)
        return (conv_lstm.conv_lstm(x, kernel, recurrent, bias, (zeros, zeros), how)[0] * weight).sum()

    def products(heard: jax.Array, both: jax.Array, d_z: jax.Array) -> Any:
        forward = jax.lax.scan(lambda none, now: (none, now @ both), None, heard)[1]
        backward = jax.lax.scan(lambda total, now: (total + now[0].T @ now[1], now[1] @ both.T), jnp.zeros_like(both), (heard, d_z))
        return forward, backward

    arguments = x, kernel, recurrent, bias, weight
    block = conv_lstm.CACHE_BYTES
    programs: dict[str, Any] = {}
    for name, size in (("one piece", 1 << 60), ("blocks", block)):
        conv_lstm.CACHE_BYTES = size
        made = jax.jit(lambda *a: jax.value_and_grad(layer, argnums=(0, 1, 2, 3))(*a)).lower(*arguments).compile()
        programs[name] = made, arguments
    programs["products"] = jax.jit(products).lower(heard, both, d_z).compile(), (heard, both, d_z)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(options.rounds + 1):
        for name, (program, given) in programs.items():
            began = time.process_time()
            jax.block_until_ready(program(*given))
            seconds[name].append(time.process_time() - began)
    for name, found in seconds.items():
        print(f"{name:10s} least {1e3 * min(found[1:]):7.1f} ms, median {1e3 * statistics.median(found[1:]):7.1f} ms")


if __name__ == "__main__":
    main()
