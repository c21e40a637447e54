"""Prepared flights: one .h5 or .npz file with frames, times, angles and labels; read, and written whole or not at all.

Keys, N frames: frames (N, H, W) float32 or uint16, time (N,) float64 UTC s, sza, saa (N,) float32 degrees (saa from north),
cloud_base_km (N,) float32 NaN unknown, mask (N,) bool label usable; optional heading, lat, lon, frame_id (N,) and meta, JSON
text of the sources, crop, reduction, funnel, span and step. Frames of an .h5 file are contiguous, so that they can be mapped.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxtrain.data.array_files import read_npz
from jaxtrain.data.clouds_config import MIN_PIXELS, FlightConfig, Reading
from jaxtrain.data.clouds_flight import Flight, azimuth_notes, check_angles, check_known, check_times, median_step, relative_azimuth
from jaxtrain.data.clouds_frames import FileFrames, blocks
from jaxtrain.data.clouds_hdf5 import dataset, has, opened
from jaxtrain.data.traffic_tables import existing_file
from jaxtrain.errors import UserError

REQUIRED = ("frames", "time", "sza", "saa", "cloud_base_km", "mask")
OPTIONAL = ("heading", "lat", "lon", "frame_id")
PARTIAL = ".partial"  # suffix of a file that is being written
FRAME_TYPES = (np.float32, np.uint16)
METRES = 50


def read(reading: Reading, flight: FlightConfig) -> Flight:
    """The flight of a prepared file. Frames of an .h5 file stay there where they lie contiguous.

    Raises UserError for a file that is damaged or does not hold the keys above.
    """
    path = str(Path(reading.folder) / flight.file)
    suffix = Path(path).suffix.lower()
    if suffix not in (".h5", ".hdf5", ".npz"):
        raise UserError(f"{path}: unknown suffix {suffix!r}; a prepared flight is .h5 or .npz")
    arrays, meta = _npz(path) if suffix == ".npz" else _h5(path)
    found = _flight(path, flight.name, arrays, _meta(path, meta))
    check_known(found, reading.angles)
    return found


def is_prepared(path: str) -> bool:
    """Whether a file is a prepared flight rather than images. Raises UserError for one that cannot be read."""
    if Path(path).suffix.lower() == ".npz":
        return True
    with opened(path) as file:
        return has(file, "frames")


def _npz(path: str) -> tuple[dict[str, Any], str]:
    found = read_npz(existing_file(path))
    for key, array in found.items():
        if array is None:
            raise UserError(f"{path}: {key}: an object array, which is never unpickled; save plain numbers with numpy.savez")
    arrays = {key: array for key, array in found.items() if array is not None}
    meta = arrays.pop("meta", None)
    return _required(path, arrays), "" if meta is None else str(meta)


def _h5(path: str) -> tuple[dict[str, Any], str]:
    with opened(path) as file:
        _required(path, file)
        arrays = {key: dataset(file, path, key)[()] for key in (*REQUIRED[1:], *OPTIONAL) if key in file}
        frames = dataset(file, path, "frames")
        offset = frames.id.get_offset() if frames.chunks is None else None
        if offset is not None and frames.ndim == 3:
            if offset + frames.size * frames.dtype.itemsize > Path(path).stat().st_size:
                raise OSError("truncated: its frames reach beyond its end")
            arrays["frames"] = FileFrames(path, offset, frames.dtype, frames.shape)
        else:
            arrays["frames"] = frames[:]
        meta = file["meta"][()] if "meta" in file else b""
    return arrays, meta.decode() if isinstance(meta, bytes) else str(meta)


def _required(path: str, found: Any) -> Any:
    missing = [key for key in REQUIRED if key not in found]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)}: not there; the file holds {', '.join(found) or 'nothing'}; write it with "
                        "scripts/prepare_cbh.py")  # fmt: skip
    return found


def _meta(path: str, text: str) -> dict[str, Any]:
    try:
        meta = json.loads(text or "{}")
    except ValueError as fault:
        raise UserError(f"{path}: meta: not JSON ({fault}); write it again or leave it out") from None
    if not isinstance(meta, dict):
        raise UserError(f"{path}: meta: expected a JSON object, found {type(meta).__name__}; write it again or leave it out")
    return meta


def _flight(path: str, name: str, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> Flight:
    frames = arrays["frames"]
    if len(frames.shape) != 3 or frames.dtype not in FRAME_TYPES or min(frames.shape[1:]) < MIN_PIXELS or not frames.shape[0]:
        raise UserError(f"{path}: frames: expected (N, H, W) float32 or uint16 with H and W at least {MIN_PIXELS}, found {frames.shape} "
                        f"{frames.dtype}; set rows or reduce when preparing")  # fmt: skip
    count = frames.shape[0]
    for key in (*REQUIRED[1:], *OPTIONAL):
        if key in arrays and np.asarray(arrays[key]).dtype.kind not in "fiub":
            raise UserError(f"{path}: {key}: holds {arrays[key].dtype}, not numbers; write it as plain numbers")
        if key in arrays and np.shape(arrays[key]) != (count,):
            raise UserError(f"{path}: {key}: {np.shape(arrays[key])}, but frames has {count}; all must have one row per frame")
    time = check_times(arrays["time"], count, f"{path}: time")
    check_angles({key: arrays[key] for key in ("sza", "saa", "heading") if key in arrays}, path)
    base, mask = arrays["cloud_base_km"].astype(np.float32), arrays["mask"].astype(bool)
    wrong = mask & ~np.isfinite(base)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(f"{path}: mask: [{row}] is true, but cloud_base_km[{row}] is {base[row]}; a usable label needs a height")
    if mask.any() and np.median(base[mask]) > METRES:
        raise UserError(f"{path}: cloud_base_km: the median is {np.median(base[mask]):g}; expected km; divide metres by 1000")
    heading, lat, lon = (arrays[key].astype(np.float32) if key in arrays else None for key in OPTIONAL[:3])
    try:
        first, last = (float(second) for second in meta.get("span", (time[0], time[-1])))
        step = float(meta.get("step_s", median_step(time)))
        funnel = tuple((str(what), int(number)) for what, number in meta.get("funnel", ()))
        if not (np.isfinite([first, last, step]).all() and first <= time[0] <= time[-1] <= last and 0 < step <= max(1.0, last - first)):
            raise ValueError
    except (TypeError, ValueError):
        raise UserError(f"{path}: meta: span, step_s or funnel is not as written by scripts/prepare_cbh.py; leave it out") from None
    return Flight(
        name=name, source=path, frames=frames, time=time, sza=arrays["sza"].astype(np.float32),
        saa=relative_azimuth(arrays["saa"], heading), height_km=np.where(mask, base, np.float32(np.nan)),
        oracle_km=np.full(count, np.nan, np.float32), frame_id=arrays.get("frame_id", np.arange(count)), span=(first, last), step_s=step,
        heading=heading, lat=lat, lon=lon, funnel=funnel,
        notes=azimuth_notes(arrays["saa"], name),
    )  # fmt: skip


def write(path: Path, flight: Flight, rows: np.ndarray, meta: Mapping[str, Any], change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write the frames `rows` (n,) of a flight, each block through `change`, under a temporary name and then rename it.

    path: .h5 or .npz. A full disk removes the temporary file; one left by a kill is ignored and overwritten. Raises UserError.
    """
    heading = None if flight.heading is None else flight.heading[rows]
    columns = {
        "time": flight.time[rows],
        "sza": flight.sza[rows],
        # The file's azimuth counts from north.
        "saa": (flight.saa[rows] if heading is None else np.mod(flight.saa[rows] + heading, 360)).astype(np.float32),
        "cloud_base_km": flight.height_km[rows],
        "mask": np.isfinite(flight.height_km[rows]),
        "frame_id": flight.frame_id[rows],
    }
    columns |= {name: values[rows] for name in OPTIONAL[:3] if (values := getattr(flight, name)) is not None}
    text = json.dumps({**meta, "funnel": flight.funnel, "span": flight.span, "step_s": flight.step_s})
    partial = path.with_name(path.name + PARTIAL)
    changed = (change(flight.frames[some]) for some in blocks(rows, flight.frames))
    try:
        (_write_npz if path.suffix == ".npz" else _write_h5)(partial, changed, (len(rows), *flight.frames.shape[1:]), columns, text)
        partial.replace(path)
    except (OSError, RuntimeError) as fault:  # h5py reports a full disk as either
        raise UserError(f"{path}: could not be written ({' '.join(str(fault).split())}); nothing is left of it; make room and prepare it "
                        "again") from None  # fmt: skip
    finally:
        partial.unlink(missing_ok=True)


def _write_h5(path: Path, changed: Iterable[np.ndarray], shape: tuple[int, ...], columns: Mapping[str, np.ndarray], meta: str) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        frames, first = None, 0
        for block in changed:
            if frames is None:
                frames = file.create_dataset("frames", shape, block.dtype)
            frames[first : first + len(block)] = block
            first += len(block)
        for key, values in columns.items():
            file[key] = values
        file["meta"] = meta


def _write_npz(path: Path, changed: Iterable[np.ndarray], shape: tuple[int, ...], columns: Mapping[str, np.ndarray], meta: str) -> None:
    with path.open("wb") as file:
        frames = np.concatenate(list(changed)).reshape(shape)
        np.savez(file, frames=frames, meta=np.array(meta), **columns)  # pyright: ignore[reportArgumentType]


def flat_field(flight: Flight, rows: np.ndarray) -> np.ndarray:
    """(H, W) float32: the flight's mean frame, smoothed by a polynomial of degree 2 in row and column and scaled to mean 1.

    What is the same in every frame is the camera's own shading, as the clouds move on. Raises UserError where it is not positive.
    """
    height, width = flight.frames.shape[1:]
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for some in blocks(rows, flight.frames):
        block = flight.frames[some].astype(np.float64)
        finite = np.isfinite(block)
        total += np.where(finite, block, 0).sum(0)
        count += finite.sum(0)
    mean = total / np.maximum(count, 1)
    r, c = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(r), r, c, r * r, r * c, c * c], axis=-1)
    seen = count > 0
    smooth = terms @ np.linalg.lstsq(terms[seen], mean[seen], rcond=None)[0]
    factor = smooth / smooth.mean()
    if not (np.isfinite(factor).all() and factor.min() > 0):
        raise UserError(f"{flight.source}: the smoothed mean frame is not positive everywhere, so that nothing can be divided by it; leave "
                        "out --flat-field")  # fmt: skip
    return factor.astype(np.float32)
