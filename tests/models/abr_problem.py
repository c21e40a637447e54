"""Small networks for brainstem responses, and inputs for them."""

from dataclasses import replace

import jax
import numpy as np
from compiling import UNOPTIMISED
from flax import nnx

from jaxtrain.models.abr import Config, Network

FULL = Config(
    objective="predict", channels=(64, 128, 256, 512), res_blocks=2, s4_layers=2, s4_state=64, s4_init="lin", s4_bidirectional=True,
    s4_conv="toeplitz", dt_range=(1e-3, 1e-1), transformer_layers=3, bottleneck_layers=2, cross_attention=True, head_width=32,
    ffn_factor=4, cond_width=128, dropout=0.1, film_dropout=0.15, heads=("signal", "peak", "class", "threshold"), attention="auto",
    remat="none",
)  # fmt: skip
ONE_OF_EACH = {"res_blocks": 1, "s4_layers": 1, "transformer_layers": 1, "bottleneck_layers": 1, "head_width": 8, "ffn_factor": 2}
BASE = replace(FULL, channels=(64, 96, 128, 192))
DEMO = replace(FULL, channels=(16, 24, 32, 48), s4_state=16, cond_width=32, **ONE_OF_EACH)
SMOKE = replace(FULL, channels=(8, 16), s4_state=8, cond_width=16, **ONE_OF_EACH)
BATCH = 6


def inputs(objective="predict", batch=BATCH, seed=0):
    """All classes, one of them unknown; one dropped condition; one missing value."""
    rng = np.random.default_rng(seed)
    real = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    shared = {"x": real(batch, 200), "statics": real(batch, 4), "statics_ok": np.ones((batch, 4), bool), "null": np.arange(batch) == 1}
    shared["statics_ok"][0, 1] = False
    if objective == "predict":
        return {**shared, "scale": real(batch, 2)}
    return {**shared, "t": rng.integers(0, 1000, batch, np.int32), "label": np.arange(batch, dtype=np.int32) - 1}


def network(config, seed=0):
    """(graph, params, other state) of a network in training mode, built in one compiled program."""
    state = jax.jit(lambda: nnx.split(Network(config, nnx.Rngs(seed)), nnx.Param, ...)[1:])()
    return nnx.split(nnx.eval_shape(lambda: Network(config, nnx.Rngs(seed))), nnx.Param, ...)[0], *state


def replaced(inputs, name, place, value):
    """The inputs with one number changed."""
    changed = inputs[name].copy()
    changed[place] = value
    return {**inputs, name: changed}


def weighted(outputs, seed=1):
    """One number in which every output counts."""
    rng = np.random.default_rng(seed)
    return sum((value * rng.normal(size=value.shape).astype(np.float32)).sum() for _, value in sorted(outputs.items()))


def program(config):
    """(run, params): run(inputs, params, key) -> outputs and the gradient of every parameter, compiled once."""
    graph, params, rest = network(config)

    def loss(params, inputs, key):
        outputs = nnx.merge(graph, params, rest)(inputs, nnx.Rngs(dropout=key))
        return weighted(outputs), outputs

    def both(inputs, params, key):
        gradients, outputs = jax.grad(loss, has_aux=True)(params, inputs, key)
        return outputs, gradients

    run = jax.jit(both, compiler_options=UNOPTIMISED)
    return lambda inputs, params=params, seed=0: jax.device_get(run(inputs, params, jax.random.key(seed))), params
