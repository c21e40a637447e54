"""Turn weights of the earlier Keras headway program into a run folder that `predict` and `evaluate` understand.

    python scripts/convert_convlstm.py --weights model.keras --set data.path=arrivals.parquet --workdir runs/converted
    python -m jaxtrain.evaluate --workdir runs/converted --split test

--weights: .keras, .h5 (whole models or weights alone) or .npz with the program's names. Statistics, stations and the plan come from
the data that --set names; without any, from the embedded line. Hidden width and kernel are read off the weights; whatever else the
network was trained under is the preset `baseline`, changed with --set KEY=VALUE.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxtrain import cli
from jaxtrain.data.headway import splits
from jaxtrain.data.headway_config import DataConfig
from jaxtrain.data.keras_file import SUFFIXES, read_keras
from jaxtrain.data.weights_file import read_weights
from jaxtrain.engine import config as configs
from jaxtrain.models.convlstm_import import import_weights

BASE = Path(__file__).resolve().parents[1] / "configs" / "convlstm.py"
RECORDED = "w/"  # before the names of weights in an archive that holds more


def convert(weights: Path, workdir: Path, overrides: Mapping[str, str]) -> str:
    """Write the run folder; returns what it holds in one line. Raises UserError."""
    imported = import_weights(read(weights))
    kh, kw = imported.kernel
    values = configs.load(f"{BASE}:baseline", {"model.hidden": str(imported.hidden), "model.kernel": f"({kh}, {kw})", **overrides})
    statistics = splits(configs.section(DataConfig, values["data"], "data")).statistics

    from jaxtrain.engine.run import write_run

    write_run(workdir, values, statistics, imported.params, imported.model_state)
    directions, stations = statistics["stations"].shape
    arrays = (*imported.params.values(), *imported.model_state.values())
    return (f"{workdir}: hidden {imported.hidden}, kernel {kh} x {kw}, {stations} stations, {directions} directions, "
            f"{sum(array.size for array in arrays)} parameters")  # fmt: skip


def read(path: Path) -> dict[str, np.ndarray]:
    """Named arrays of a weight file. Raises UserError."""
    arrays = read_keras(path) if path.suffix in SUFFIXES else read_weights(path)
    recorded = {name.removeprefix(RECORDED): value for name, value in arrays.items() if name.startswith(RECORDED)}
    return recorded or arrays


def main(arguments: Sequence[str]) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python scripts/convert_convlstm.py", description=__doc__, formatter_class=style)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True, help="new run folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, e.g. data.path=arrivals.parquet")
    options = parser.parse_args(arguments)
    overrides = cli.options(options.set, "--set", "data.horizon=15")
    print(convert(options.weights, options.workdir, overrides))
    return 0


if __name__ == "__main__":
    cli.run(main)
