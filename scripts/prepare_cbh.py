"""Write flights of a cloud camera, a lidar and a navigation file to prepared files that load at once and can be mapped.

    python scripts/prepare_cbh.py --flights flights.json --out data/cbh [--rows 40 480] [--reduce 4] [--window 5 | --all-frames]

flights.json: a list of {"name", "images", "lidar", "nav"}, optionally "year", "nav_time", "nav_heading"; files lie beside it.
Every flight becomes one file, DIR/NAME.h5, under a temporary name until it is whole; name it as {name, file} in
config.data.flights. --window 5 keeps only the frames that windows of 5 around a label need.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxtrain import cli
from jaxtrain.data import clouds_prepared
from jaxtrain.data.clouds_config import FlightConfig, Reading, check_base, check_entries
from jaxtrain.data.clouds_files import read_triple
from jaxtrain.data.clouds_flight import Flight, contiguous
from jaxtrain.engine.config import section
from jaxtrain.errors import UserError


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    reading = _reading(options)
    entries = _entries(options.flights)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise UserError(f"--out {options.out}: cannot be made ({fault.strerror}); name a folder that can be written to") from None
    for entry in entries:
        flight = read_triple(reading, entry)
        rows = np.arange(len(flight)) if options.all_frames else _needed(flight, options.window)
        if not len(rows):
            raise UserError(f"{flight.source}: flight {flight.name}: no label has a whole window of {options.window} frames; lower "
                            "--window, or use --all-frames")  # fmt: skip
        path = options.out / f"{entry.name}.{options.format}"
        clouds_prepared.write(path, flight, rows, _meta(entry, options), _change(flight, rows, options))
        steps = " -> ".join(f"{count:,} {what}" for what, count in flight.funnel)
        print(f"{path}: {steps}; {len(rows):,} of {len(flight):,} frames of {' x '.join(map(str, flight.frames.shape[1:]))} pixels")
        for note in flight.notes:
            print(note)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write flights of camera, lidar and navigation files to prepared files.")
    parser.add_argument("--flights", type=Path, required=True, help="JSON list of {name, images, lidar, nav}, files beside it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--rows", type=int, nargs=2, default=(0, 0), metavar=("FIRST", "END"), help="image rows to keep; default all")
    parser.add_argument("--reduce", type=int, default=1, help="block mean over so many pixels")
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("--window", type=int, default=5, help="keep the frames of windows of this length around labels (default 5)")
    kept.add_argument("--all-frames", action="store_true", help="keep every frame")
    parser.add_argument("--flat-field", action="store_true", help="divide by the flight's smoothed mean frame")
    parser.add_argument("--clahe", type=float, default=0.0, metavar="LIMIT", help="equalise every frame; for comparison only")
    parser.add_argument("--format", choices=("h5", "npz"), default="h5", help="npz cannot be mapped")
    parser.add_argument("--base-km", type=float, nargs=2, default=(0.1, 2.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--match-s", type=float, default=0.5, help="largest time between a profile and its frame")
    parser.add_argument("--nav-gap-s", type=float, default=2.0, help="a longer gap in the navigation has no angles")
    return parser


def _reading(options: argparse.Namespace) -> Reading:
    first, end = options.rows
    if (first, end) != (0, 0) and not 0 <= first < end:
        raise UserError(f"--rows {first} {end}: expected 0 <= first < end")
    for key, least in (("reduce", 1), ("window", 1)):
        if getattr(options, key) < least:
            raise UserError(f"--{key} {getattr(options, key)}: must be at least {least}")
    check_base(options.base_km, "--base-km")
    low, high = options.base_km
    return Reading(
        str(options.flights.parent), (first, end), options.reduce, (low, high), options.match_s, options.nav_gap_s, ("sza", "saa")
    )


def _entries(path: Path) -> list[FlightConfig]:
    try:
        entries = json.loads(path.read_text())
    except OSError as fault:
        raise UserError(f"--flights {path}: cannot be read ({fault.strerror}); name a JSON file") from None
    except ValueError as fault:
        raise UserError(f"--flights {path}: not JSON ({fault}); write a list of {{name, images, lidar, nav}}") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"--flights {path}: expected a list of {{name, images, lidar, nav}}")
    flights = [section(FlightConfig, entry, f"flights[{number}]") for number, entry in enumerate(entries)]
    check_entries(flights, str(path))
    for flight in flights:
        if flight.file:
            raise UserError(f"{path}: {flight.name!r} is a prepared file already; give images, lidar and nav")
        if Path(flight.name).name != flight.name:
            raise UserError(f"{path}: {flight.name!r} would be a file's name; leave out folders")
    return flights


def _needed(flight: Flight, window: int) -> np.ndarray:
    """(m,) frames of whole windows around labels."""
    starts = np.flatnonzero(np.isfinite(flight.height_km)) - window // 2
    starts = starts[(starts >= 0) & (starts + window <= len(flight))]
    starts = starts[contiguous(flight.time, flight.step_s, window)[starts]]
    return np.unique(starts[:, None] + np.arange(window))


def _meta(entry: FlightConfig, options: argparse.Namespace) -> dict[str, object]:
    return {
        "name": entry.name, "images": entry.images, "lidar": entry.lidar, "nav": entry.nav, "rows": list(options.rows),
        "reduce": options.reduce, "window": 0 if options.all_frames else options.window, "flat_field": options.flat_field,
        "clahe": options.clahe, "base_km": list(options.base_km), "match_s": options.match_s, "nav_gap_s": options.nav_gap_s,
    }  # fmt: skip


def _change(flight: Flight, rows: np.ndarray, options: argparse.Namespace) -> Callable[[np.ndarray], np.ndarray]:
    """What is done to every block of frames."""
    factor = clouds_prepared.flat_field(flight, rows) if options.flat_field else None

    def change(frames: np.ndarray) -> np.ndarray:
        if factor is not None:
            frames = frames.astype(np.float32) / factor
        return _equalised(frames, options.clahe) if options.clahe else frames

    return change


def _equalised(frames: np.ndarray, limit: float) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of every frame, in [0, 1]: the absolute level is gone."""
    try:
        from skimage.exposure import equalize_adapthist  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("--clahe: needs scikit-image: pip install scikit-image") from None
    low, high = frames.min((1, 2), keepdims=True), frames.max((1, 2), keepdims=True)
    scaled = (frames - low) / np.maximum(high - low, 1e-12)
    return np.stack([equalize_adapthist(frame, clip_limit=limit) for frame in scaled]).astype(np.float32)


if __name__ == "__main__":
    cli.run(main)
