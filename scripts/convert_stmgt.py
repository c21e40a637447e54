"""Turn weights of the earlier PyTorch traffic program into a run folder that `predict` and `evaluate` understand.

    python scripts/convert_stmgt.py --weights model.pt --data hcmc.parquet --workdir runs/converted
    python -m jaxtrain.predict --workdir runs/converted --input hcmc.parquet --output forecast.csv

--weights: .npz, .safetensors or .pt (no PyTorch needed). --data: the edges file (.parquet, .csv) the network was trained on,
which also gives calendar profile, free-flow speeds and damping; or an .npz with `edge_index` (2, E) and `node_list` (N,),
whose run knows no other usual speed than the mean, and which `evaluate` scores with --input FILE alone. Scale and offset of
speeds and weather come with the weights.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain import cli
from jaxtrain.data.dataset import Statistics
from jaxtrain.data.traffic import DataConfig, splits
from jaxtrain.data.traffic_graph import edge_weights, neighbor_lists
from jaxtrain.data.weights_file import read_weights
from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError
from jaxtrain.models.stmgt_import import Imported, import_weights

BASE = Path(__file__).resolve().parents[1] / "configs" / "stmgt.py"
RAW_MEDIAN = 5.0  # in normalised space a typical component mean is within a few units of 0


def convert(weights: Path, data: Path, workdir: Path, out_steps: int, output_space: str, overrides: Mapping[str, str]) -> str:
    """Write the run folder; returns what it holds in one line. Raises UserError."""
    imported = import_weights(read_weights(weights), out_steps)
    values = _config(imported, out_steps, overrides)
    graph_alone = data.suffix == ".npz"
    if not graph_alone:
        values["data"]["path"] = str(data.resolve())  # `evaluate` reads the splits again
    data_config = configs.section(DataConfig, values["data"], "data")
    fraction = values["score"]["congestion_fraction"]
    statistics = _graph_statistics(data, data_config) if graph_alone else splits(data_config, fraction).statistics
    statistics |= imported.statistics
    statistics |= _typical(statistics, data_config)
    found = _typical_mean(imported, statistics, data_config)
    raw = abs(found) > RAW_MEDIAN
    space = ("raw" if raw else "normalized") if output_space == "auto" else output_space
    if raw and space == "normalized":
        print(f"warning: component means are around {found:.1f} in normalised space: these weights emit raw speeds; "
              "use --output-space raw", file=sys.stderr)  # fmt: skip
    values["model"]["output_space"] = space

    from jaxtrain.engine.run import write_run

    write_run(workdir, values, statistics, imported.params)
    c = imported.config
    nodes, parameters = len(statistics["neighbors"]), sum(p.size for p in imported.params.values())
    return (f"{workdir}: width {c.width}, {c.heads} heads, {c.blocks} blocks, {c.components} components, {nodes} nodes, "
            f"{parameters} parameters, output {space} (typical mean {found:.2f})")  # fmt: skip


def _config(imported: Imported, out_steps: int, overrides: Mapping[str, str]) -> dict[str, Any]:
    """The preset of the earlier network with its sizes, and the data settings it was trained under."""
    earlier = {"data.out_steps": str(out_steps), "data.step_minutes": "30.0", "data.aggregate": "last", "data.grid": "runs",
               "data.fill": "zero", "data.split": "windows"}  # fmt: skip
    step = float(overrides.get("data.step_minutes", earlier["data.step_minutes"]))
    earlier["score.horizons_minutes"] = str(tuple(sorted({step * h for h in (1, max(1, out_steps // 2), out_steps)})))
    values = configs.load(f"{BASE}:normalized_v1", {**earlier, **overrides})
    values["model"] = {**asdict(imported.config), "inputs": list(imported.config.inputs)}
    return values


def _graph_statistics(path: Path, config: DataConfig) -> Statistics:
    """Graph and names; the usual speeds follow from the weights' mean in `_typical`."""
    arrays = read_weights(path)
    absent = [name for name in ("edge_index", "node_list") if name not in arrays]
    if absent:
        raise UserError(f"{path}: arrays missing: {', '.join(absent)}; found: {', '.join(arrays)}")
    edges, ids = arrays["edge_index"].T.astype(np.int64), arrays["node_list"].astype(str)
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.min(initial=0) < 0 or edges.max(initial=-1) >= len(ids):
        raise UserError(f"{path}: edge_index {arrays['edge_index'].shape} must be (2, E), with numbers below the {len(ids)} of node_list")
    lists, _ = neighbor_lists(edge_weights(edges, len(ids)), directed=True, max_neighbors=len(ids))
    nodes, slots = len(ids), config.slots
    return {
        **lists, "node_ids": ids, "step_minutes": np.asarray(config.step_minutes, np.float32), "trained": np.ones(nodes, bool),
        "damping": np.zeros(config.out_steps, np.float32), "congestion_frequency": np.zeros((2, slots, nodes), np.float32),
    }  # fmt: skip


def _typical(statistics: Statistics, config: DataConfig) -> Statistics:
    """Statistics that an .npz cannot know, at their least informative: the mean speed everywhere."""
    mean = np.asarray(statistics["speed_mean"], np.float32)
    nodes = len(statistics["neighbors"])
    flat = {"node_mean": (nodes,), "free_flow": (nodes,), "profile": (2, config.slots, nodes)}
    return {name: np.full(shape, mean, np.float32) for name, shape in flat.items() if name not in statistics}


def _typical_mean(imported: Imported, statistics: Statistics, config: DataConfig) -> float:
    """Median of the component means that the network emits for a day of mean speeds."""
    import jax.numpy as jnp
    from flax import nnx

    from jaxtrain.models.stmgt import STMGT

    model = nnx.view(STMGT(imported.config, statistics, config.in_steps, config.out_steps, nnx.Rngs(0)), deterministic=True)
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        leaf[...] = jnp.asarray(imported.params["/".join(map(str, path))])
    nodes, steps = len(statistics["neighbors"]), config.in_steps
    slot = (np.arange(0, config.slots, max(1, config.slots // 8))[:, None] + np.arange(config.window)) % config.slots
    speed = np.full((len(slot), steps, nodes), statistics["speed_mean"], np.float32)
    weather = np.broadcast_to(statistics["weather_mean"], (len(slot), steps, 3))
    batch = {"speed": speed, "observed": np.ones(speed.shape, bool), "weather": weather, "slot": slot, "dow": np.zeros_like(slot)}
    return float(np.median(model({name: jnp.asarray(value) for name, value in batch.items()}).means))


def main(arguments: Sequence[str]) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python scripts/convert_stmgt.py", description=__doc__, formatter_class=style)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True, help="new run folder")
    parser.add_argument("--out-steps", type=int, default=12, help="steps the network forecasts (default 12)")
    parser.add_argument("--output-space", choices=("auto", "normalized", "raw"), default="auto",
                        help="raw: the head emits speeds, not z-scores; auto: found out by a forecast for mean speeds")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="data.KEY=VALUE",
                        help="another data setting, e.g. data.step_minutes=15")  # fmt: skip
    options = parser.parse_args(arguments)
    overrides = cli.options(options.set, "--set", "data.step_minutes=15")
    print(convert(options.weights, options.data, options.workdir, options.out_steps, options.output_space, overrides))
    return 0


if __name__ == "__main__":
    cli.run(main)
