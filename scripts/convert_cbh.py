"""Turn weights of the earlier PyTorch program for cloud base height into a run folder that `predict` and `evaluate` understand.

    python scripts/convert_cbh.py --weights checkpoint.pt --set data.path=flights --workdir runs/converted
    python -m jaxtrain.evaluate --workdir runs/converted --split test

--weights: a training checkpoint (.pt, .pth; needs PyTorch, scikit-learn not) with `model_state_dict` and the three standard scalers of
zenith, azimuth and height, or .npz with the program's names, where scalers are `sza_scaler/mean_`, `sza_scaler/scale_`, and the same
for `saa_scaler` and `cbh_scaler`. The scalers become the run's statistics; all others come from the data that --set names, without any
from the embedded flights. Sizes are read off the weights; whatever else is the preset `original`, changed with --set KEY=VALUE.
"""

# pyright: reportMissingImports=false

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxtrain import cli
from jaxtrain.data.weights_file import read_weights
from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError
from jaxtrain.models.cbh_import import import_weights

BASE = Path(__file__).resolve().parents[1] / "configs" / "cbh.py"
RECORDED = "w/"  # before the names of weights in an archive that holds more
MEAN, SCALE = "mean_", "scale_"
SCALER = "sklearn.preprocessing._data.StandardScaler"
ROLES = {"zenith": ("sza", "zenith"), "azimuth": ("saa", "azimuth"), "height": ("cbh", "height", "target", "label", "y_scaler")}
Arrays = dict[str, np.ndarray]
Scalers = dict[str, tuple[float, float]]  # of ROLES: mean and standard deviation


class Standing(NamedTuple):
    """What a weight file holds."""

    weights: Arrays
    scalers: Scalers


def convert(weights: Path, workdir: Path, overrides: Mapping[str, str]) -> str:
    """Write the run folder; returns what it holds in one line. Raises UserError."""
    found = read(weights)
    imported = import_weights(found.weights)
    sizes = {f"model.{name}": str(value) for name, value in imported.model.items()}
    values = configs.load(f"{BASE}:original", {**sizes, "data.temporal_frames": "5", **overrides})
    values["phases"] = []  # nothing is trained here
    if values["model"]["frames"] != "each":
        raise UserError(f"{weights}: its running statistics are those of single frames; leave model.frames at each")

    from jaxtrain.engine.run import make_task, write_run

    statistics = make_task("cbh", configs.phases(values)[-1].task).splits().statistics | scaled(found.scalers)
    write_run(workdir, values, statistics, imported.params, imported.model_state)
    missing = [role for role in ROLES if role not in found.scalers]
    note = f"; no scaler of {', '.join(missing)}: taken from the data" if missing else ""
    count = sum(array.size for array in imported.params.values())
    return f"{workdir}: channels {imported.model['channels']}, dense {imported.model['dense']}, {count} parameters{note}"


def scaled(scalers: Scalers) -> Arrays:
    """Statistics that the scalers give. Raises UserError for a zenith without its azimuth, or the other way round."""
    statistics: Arrays = {}
    if "height" in scalers:
        mean, std = (np.asarray(value, np.float32) for value in scalers["height"])
        statistics |= {"height_mean": mean, "height_std": std}
    if ("zenith" in scalers) != ("azimuth" in scalers):
        raise UserError("imported scalers: one angle alone; zenith and azimuth belong together (sza_scaler, saa_scaler)")
    if "zenith" in scalers:
        both = np.asarray([scalers["zenith"], scalers["azimuth"]], np.float32)
        statistics |= {"sun_mean": both[:, 0], "sun_std": both[:, 1]}
    return statistics


def read(path: Path) -> Standing:
    """Weights and scalers of a file. Raises UserError."""
    if path.suffix in (".pt", ".pth"):
        return read_checkpoint(path)
    arrays = read_weights(path)
    recorded = {name.removeprefix(RECORDED): value for name, value in arrays.items() if name.startswith(RECORDED)}
    named = {name: value for name, value in arrays.items() if name.endswith((f"/{MEAN}", f"/{SCALE}"))}
    owners = {name.rpartition("/")[0] for name in named}
    scalers = {owner: {part: named[f"{owner}/{part}"] for part in (MEAN, SCALE) if f"{owner}/{part}" in named} for owner in owners}
    return Standing(recorded or {name: value for name, value in arrays.items() if name not in named}, by_role(scalers))


class Scaler:
    """Stands for a pickled scaler, whose code is not needed."""


def read_checkpoint(path: Path) -> Standing:
    """A checkpoint through PyTorch, which runs no code from it."""
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: a .pt file is read by PyTorch: pip install torch, or save its arrays with numpy.savez") from None
    if not path.is_file():
        raise UserError(f"{path}: not found")
    rebuild, scalar = np.zeros(1).__reduce__()[0], np.float64(1).__reduce__()[0]  # how NumPy pickles arrays and scalars
    safe: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4"))]
    for module in ("numpy.core", "numpy._core"):  # of NumPy 1 and 2
        safe += [(rebuild, f"{module}.multiarray._reconstruct"), (scalar, f"{module}.multiarray.scalar")]
    try:
        with torch.serialization.safe_globals([*safe, (Scaler, SCALER)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # a damaged file may raise anything
        reason = " ".join(str(fault).split())[:200]
        raise UserError(f"{path}: not a readable checkpoint ({reason}); save it again with torch.save") from None
    state = content.get("model_state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no model_state_dict; save it with torch.save({{'model_state_dict': model.state_dict()}}, ...)")
    scalers = {name: vars(value) for name, value in content.items() if isinstance(value, Scaler)}
    for value in content.values():  # or all of them in one mapping
        if isinstance(value, Mapping):
            scalers |= {name: vars(part) for name, part in value.items() if isinstance(part, Scaler)}
    return Standing({name: value.float().numpy() for name, value in state.items()}, by_role(scalers))


def by_role(scalers: Mapping[str, Mapping[str, Any]]) -> Scalers:
    """Scalers by what they scale. Raises UserError for one whose name says nothing, or that is not of one number."""
    found: Scalers = {}
    for name, parts in scalers.items():
        role = next((role for role, words in ROLES.items() if any(word in name.lower() for word in words)), None)
        sizes = {part: np.size(parts.get(part, ())) for part in (MEAN, SCALE)}
        if role is None or role in found or set(sizes.values()) != {1}:
            raise UserError(f"scaler '{name}' {sizes}: expected one of one number each for sza, saa and cbh, with {MEAN} and {SCALE}")
        found[role] = (np.asarray(parts[MEAN]).item(), np.asarray(parts[SCALE]).item())
    return found


def main(arguments: Sequence[str]) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python scripts/convert_cbh.py", description=__doc__, formatter_class=style)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, required=True, help="new run folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, e.g. data.path=flights")
    options = parser.parse_args(arguments)
    overrides = cli.options(options.set, "--set", "data.test_flight=C")
    print(convert(options.weights, options.workdir, overrides))
    return 0


if __name__ == "__main__":
    cli.run(main)
