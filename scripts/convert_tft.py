"""Turn weights of the published PyTorch Temporal Fusion Transformer into a run folder that `predict` and `evaluate` understand.

    python scripts/convert_tft.py --weights checkpoint.pt --data electricity.csv --workdir runs/converted
    python -m jaxtrain.evaluate --workdir runs/converted

--weights: .npz, .safetensors or .pt (no PyTorch needed) with the state dict of the published implementation. --data: the table it was
trained on; standardisation, group names and vocabularies are those of its training rows. The config is the preset --preset (default
electricity) with the width and the heads of the weights, changed with --set KEY=VALUE: its columns must be those of the network, in
the same order, and category number i of the network is the i-th of the training rows' categories, whole numbers by size, text by
the alphabet. Weights of the library that the earlier fleet system was built on are another function and are refused.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxtrain import cli
from jaxtrain.data.dataset import Statistics
from jaxtrain.data.weights_file import read_weights
from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError
from jaxtrain.models.tft_import import import_weights
from jaxtrain.nn.selection import Variable

BASE = Path(__file__).resolve().parents[1] / "configs" / "tft.py"
ROLES = ("static", "observed", "known", "targets")


def convert(weights: Path, data: Path, workdir: Path, preset: str, overrides: Mapping[str, str]) -> str:
    """Write the run folder; returns what it holds in one line. Raises UserError."""
    # `evaluate` reads the splits again; bfloat16 would make other forecasts of the same weights.
    values = configs.load(f"{BASE}:{preset}", {"train.precision": "float32", **overrides, "data.path": str(data.resolve())})
    imported = import_weights(read_weights(weights), tuple(values["model"]["quantiles"]))
    sizes = {"hidden": imported.config.hidden, "heads": imported.config.heads, "anchor": "none", "head": "independent"}
    values["model"] |= sizes

    from jaxtrain.engine.run import make_task, write_run
    from jaxtrain.tasks.tft_inputs import group_variable, variables

    sections = configs.phases(values)[-1].task
    statistics = make_task("tft", sections).splits().statistics
    data_config = make_task("tft", sections, statistics).config.data  # type: ignore[attr-defined]
    wanted = variables(data_config, statistics)
    params = dict(imported.params)
    for role in ROLES:
        _check(role, getattr(imported.variables, role), getattr(wanted, role))
        for theirs, ours in zip(getattr(imported.variables, role), getattr(wanted, role), strict=True):
            if ours.categories:
                names = "group_names" if ours.name == group_variable(data_config) else f"vocabulary/{ours.name}"
                table = params.pop(f"embeddings/{role}/tables/{theirs.name}")
                params[f"embeddings/{role}/tables/{ours.name}"] = table[_rows(statistics, names)]
    write_run(workdir, values, statistics, params)
    counts = ", ".join(f"{len(getattr(wanted, role))} {role}" for role in ROLES)
    return f"{workdir}: hidden {sizes['hidden']}, {sizes['heads']} heads, {counts}, {sum(p.size for p in params.values())} parameters"


def _check(role: str, theirs: Sequence[Variable], ours: Sequence[Variable]) -> None:
    """Raises UserError unless both have the same variables, as far as shapes tell."""

    def shape(variable: Variable) -> Variable:
        return replace(variable, name="")

    if [shape(v) for v in theirs] != [shape(v) for v in ours]:
        raise UserError(f"{role} variables: the weights have {_shown(theirs)}; the config has {_shown(ours)}; name the network's columns "
                        "in its order with --set data.KEY=VALUE")  # fmt: skip


def _shown(variables: Sequence[Variable]) -> str:
    found = [f"{v.categories} categories" if v.categories else f"{v.width} columns" if v.width > 1 else "a number" for v in variables]
    return " + ".join(f"{v.name} ({text})" for v, text in zip(variables, found, strict=True)) or "none"


def _rows(statistics: Statistics, name: str) -> np.ndarray:
    """Rows of the network's table, unknown first, in the order of the run's vocabulary, which is alphabetical."""
    texts = [str(text) for text in statistics[name]]
    whole = all(text.lstrip("-").isdigit() for text in texts)
    order = sorted(texts, key=int) if whole else sorted(texts)
    return np.array([0, *(1 + order.index(text) for text in texts)])


def main(arguments: Sequence[str]) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python scripts/convert_tft.py", description=__doc__, formatter_class=style)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True, help="new run folder")
    parser.add_argument("--preset", default="electricity", help="of configs/tft.py (default: electricity)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting, e.g. data.groups=\"('id',)\"")
    options = parser.parse_args(arguments)
    overrides = cli.options(options.set, "--set", "data.time=timestamp")
    print(convert(options.weights, options.data, options.workdir, options.preset, overrides))
    return 0


if __name__ == "__main__":
    cli.run(main)
