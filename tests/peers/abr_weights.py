"""Weights and outputs of our network for brainstem responses, in files for another program."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.models.abr import Config, Network

SMALL = dict(
    channels=(8, 16), res_blocks=2, s4_layers=1, s4_state=8, s4_init="lin", s4_bidirectional=True, s4_conv="toeplitz",
    dt_range=(1e-3, 1e-1), transformer_layers=2, bottleneck_layers=1, cross_attention=True, head_width=8, ffn_factor=2, cond_width=16,
    dropout=0.0, film_dropout=0.0, heads=("signal", "peak", "class", "threshold"), attention="xla", remat="none",
)  # fmt: skip


def write(folder: Path, objective: str) -> tuple[Path, Path]:
    """(weights, inputs and outputs) as .npz files."""
    config = Config(objective=objective, **SMALL)
    rng = np.random.default_rng(0)
    inputs = {name: rng.normal(size=(4, n)).astype(np.float32) for name, n in (("x", 200), ("statics", 4), ("scale", 2))}
    inputs |= {"statics_ok": rng.random((4, 4)) < 0.8, "null": np.arange(4) == 1}
    inputs |= {"label": np.array([0, 4, -1, 5], np.int32), "t": np.array([0, 999, 400, 30], np.int32)}

    def run(x):
        graph, params = nnx.split(Network(config, nnx.Rngs(0)), nnx.Param)
        # Vectors start at 0 or 1, where a mistaken bias or scale would not show.
        moved = [leaf + 0.1 * jnp.sin(jnp.arange(leaf.size) + i).reshape(leaf.shape) for i, leaf in enumerate(jax.tree.leaves(params))]
        params = jax.tree.unflatten(jax.tree.structure(params), moved)
        return params, nnx.merge(graph, params)(x)

    params, outputs = jax.jit(run)(inputs)
    weights = {"/".join(map(str, path)): np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(params)}
    np.savez(folder / "weights.npz", **weights)
    np.savez(folder / "io.npz", **{f"in/{k}": v for k, v in inputs.items()}, **{f"out/{k}": np.asarray(v) for k, v in outputs.items()})
    return folder / "weights.npz", folder / "io.npz"
