"""Fleets larger than memory: `prepare` writes the arrays of a fleet to a folder, `read_prepared` maps them into memory.

Two passes over the pieces of the files (parquet row groups, blocks of CSV): the first counts rows, finds ranges, groups
and categories, the second scatters every row to its place. Then each group is filled and gets its features. Memory holds
one piece or one stretch of groups, and tables of one row per group.
"""

import bisect
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.lib.format import open_memmap

from jaxtrain.data import fleet_features
from jaxtrain.data.fleet_columns import check_unit, read_columns
from jaxtrain.data.fleet_config import DataConfig, features, log1p, roles
from jaxtrain.data.fleet_dense import Spans, averaged, finish
from jaxtrain.data.fleet_features import Totals
from jaxtrain.data.fleet_files import recoded, wanted
from jaxtrain.data.fleet_grid import SPARSE, Columns, Fleet, Training, assemble, check_spans, peer_classes, showing, with_defaults
from jaxtrain.data.fleet_static import Runs, find_runs, join_runs, settle
from jaxtrain.data.fleet_store import Store, stretches
from jaxtrain.data.fleet_tables import PREPARED, files, pieces
from jaxtrain.data.fleet_time import check_step
from jaxtrain.data.traffic_time import show
from jaxtrain.errors import UserError

ARRAYS = ("row0", "step0", "real", "seen", "cat", "static_real", "static_cat")
# Keys that decide what the arrays hold; the roles and features are compared by name.
SETTINGS = ("groups", "file_step_seconds", "step_seconds", "snap_tolerance", "fill_steps", "static_change", "clip", "lags", "rolling",
            "interactions", "peers")  # fmt: skip


@dataclass
class Survey:
    """What the first pass learns. first, last, rows: group name -> file steps and number of rows."""

    phase: int | None = None
    first: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    texts: dict[str, set[str]] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)  # column -> least and greatest value
    notes: dict[str, None] = field(default_factory=dict)

    def add(self, config: DataConfig, columns: Columns, number: np.ndarray) -> None:
        groups, start = np.unique(columns.group, return_index=True)
        for group, begin, end in zip(groups, start, [*start[1:], len(number)], strict=True):
            name = columns.names[group]
            self.first[name] = min(self.first.get(name, int(number[begin])), int(number[begin]))
            self.last[name] = max(self.last.get(name, int(number[end - 1])), int(number[end - 1]))
            self.rows[name] = self.rows.get(name, 0) + int(end - begin)
        for name, category in columns.categories.items():
            self.texts.setdefault(name, set()).update(category.texts)
        for name, values in columns.numbers.items():
            measured = values[~np.isnan(values)]
            if len(measured):
                low, high = self.ranges.get(name, (np.inf, -np.inf))
                self.ranges[name] = min(low, float(measured.min())), max(high, float(measured.max()))
        self.notes.update(dict.fromkeys(columns.notes))


def prepare(config: DataConfig, folder: Path, training: Training | None = None) -> Fleet:
    """Write the fleet of `config.path` to a folder that does not exist yet, whole or not at all; returns it, memory-mapped.

    training: as `fleet_grid.build` takes it. Raises UserError like `fleet_files.read`.
    """
    if folder.exists():
        raise UserError(f"{folder}: is there already; remove it or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir()
    try:
        _write(config, temporary, training)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_prepared(config, str(folder), training)


def read_prepared(config: DataConfig, path: str, training: Training | None = None) -> Fleet:
    """The fleet of a prepared folder; its large arrays are mapped, not read. Raises UserError where the config is another."""
    try:
        meta = json.loads((Path(path) / PREPARED).read_text())
        arrays = {name: np.load(Path(path) / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable prepared folder ({error}); prepare it again") from None
    for key, mine in _settings(config).items():
        if meta["settings"].get(key) != mine:
            raise UserError(f"{path}: prepared with {key} {meta['settings'].get(key)}, config.data says {mine}; prepare it again")
    for name, (least, greatest) in meta["ranges"].items():
        _check_range(config, path, name, least, greatest)
    fleet = Fleet(
        groups=tuple(meta["groups"]),
        start=meta["start"],
        step_seconds=config.step_seconds,
        vocabularies={name: tuple(texts) for name, texts in meta["vocabularies"].items()},
        log1p=np.array(log1p(config), bool),
        static_log1p=np.array([config.transform.get(name) == "log1p" for name in config.static_real], bool),
        notes=tuple(meta["notes"]),
        **arrays,
    )
    if meta["training"] and training is not None and meta["training"] != _stretches_of(training(fleet.steps, fleet.groups)):
        raise UserError(f"{path}: its static columns change, and their usual values come from the training steps of another split; prepare "
                        "it again")  # fmt: skip
    return fleet


def _stretches_of(chosen: np.ndarray) -> list[list[int]]:
    """[first, end) of the stretches of steps that are True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2).tolist()


def _check_range(config: DataConfig, path: str, name: str, least: float, greatest: float) -> None:
    low, high = config.bounds.get(name, (None, None))
    if (low is not None and least < low) or (high is not None and greatest > high):
        raise UserError(f"{path}: {name} runs from {least:g} to {greatest:g}, outside data.bounds ({low} to {high}); prepare it again with "
                        "data.clip=True or fix the unit")  # fmt: skip
    if least < 0 and config.transform.get(name) == "log1p":
        raise UserError(f"{path}: {name} goes down to {least:g}, but its transform is log1p; set data.transform.{name}=identity")


def _settings(config: DataConfig) -> dict[str, Any]:
    """What a prepared folder depends on, as JSON gives it back."""
    values = {key: getattr(config, key) for key in SETTINGS} | dataclasses.asdict(roles(config))
    del values["calendar"]  # computed when a run starts
    return json.loads(json.dumps(values))


def _columns(config: DataConfig, phase: int | None) -> Iterator[tuple[Columns, np.ndarray, int]]:
    """(columns, (n,) file step of each row, phase of the grid) of each piece."""
    for file in files(config.path, config.format):
        for piece in pieces(file, wanted(config), whole=False):
            if len(piece.table):
                columns, phase = read_columns(config, piece, phase)
                yield columns, (columns.time - phase) // config.file_step_seconds, phase


def _write(config: DataConfig, folder: Path, training: Training | None) -> None:
    source = config.path if isinstance(config.path, str) else ", ".join(config.path)
    survey = Survey()
    for columns, number, survey.phase in _columns(config, None):
        survey.add(config, columns, number)
    if survey.phase is None:
        raise UserError(f"{source}: the table has no rows")
    check_unit(config, source, {name: survey.ranges.get(name, (0.0, 0.0))[1] for name in config.targets})
    names = tuple(sorted(survey.rows))
    first, last, rows = (np.array([table[name] for name in names], np.int64) for table in (survey.first, survey.last, survey.rows))
    spans = check_spans(config, first, last, rows, names, source, survey.phase)
    axis = spans.coarse(config.file_steps, 0)
    start, steps = int(axis.first.min()), int((axis.first + axis.lengths).max() - axis.first.min())
    role = roles(config)
    texts = {name: tuple(sorted(survey.texts[name])) for name in role.categorical + role.static_categorical}
    chosen = np.ones(steps, bool) if training is None else training(steps, names)

    store = Store.create(config, folder, spans)
    runs: dict[str, list[Runs]] = {name: [] for name in config.static_real + config.static_categorical}
    rows_of = _Rows()
    copies = 0
    code = {name: index for index, name in enumerate(names)}
    for columns, number, phase in _columns(config, survey.phase):
        group = np.array([code[name] for name in columns.names], np.int64)[columns.group]
        codes = {name: recoded(category, texts[name]) for name, category in columns.categories.items()}
        place = spans.row0[group] + number - spans.first[group]
        added, conflict = store.scatter({**columns.numbers, **codes}, place)
        if conflict is not None:
            _refuse(config, phase, names[group[conflict]], int(number[conflict]))
        copies += len(place) - added
        step, row = number // config.file_steps - start, rows_of.add(columns)
        for name, found in runs.items():
            values = codes[name] if name in codes else columns.numbers[name]
            found.append(find_runs(group, step, row, values, chosen[step]))
    counts = np.zeros(SPARSE + 1, np.int64)
    for begin, end in stretches(spans):
        found = store.step_counts(spans, begin, end)
        counts[: len(found)] += found
    check_step(config, source, counts)
    notes = [*survey.notes, *([f"{source}: {copies} rows that repeat another exactly were dropped"] if copies else [])]
    static: dict[str, np.ndarray] = {}
    changes = False
    for name, found in runs.items():
        static[name], changed = settle(name, join_runs(found), names, config.static_change, rows_of.label, *showing(texts.get(name)))
        notes += changed
        changes |= bool(changed)
    texts = with_defaults(config, texts)
    classes = peer_classes(config, static, len(names))
    totals = _peer_totals(config, store, spans, classes, start, steps)

    rows_out = int(axis.row0[-1])
    seen = open_memmap(folder / "seen.npy", "w+", np.uint8, (rows_out, len(role.targets)))
    store.create_output(rows_out)
    for begin, end in stretches(spans):
        part = {name: values[begin:end] for name, values in classes.items()}
        made = finish(config, store.grid(spans, begin, end), texts, 0, start, steps, part, totals)
        out = slice(int(axis.row0[begin]), int(axis.row0[end]))
        store.write(made[0], made[2], out)
        seen[out] = made[1]
    seen.flush()
    store.clean()
    fleet = assemble(config, names, axis, survey.phase, np.zeros((0, 0)), seen, np.zeros((0, 0)), texts, static, tuple(notes))
    for name in ("row0", "step0", "static_real", "static_cat"):
        np.save(folder / f"{name}.npy", getattr(fleet, name))
    meta = {"groups": names, "start": fleet.start, "vocabularies": texts, "notes": notes, "ranges": survey.ranges}
    meta |= {"settings": _settings(config), "training": _stretches_of(chosen) if changes else None}
    (folder / PREPARED).write_text(json.dumps(meta))


@dataclass
class _Rows:
    """Numbers the rows of all files one after the other, and names them again."""

    starts: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, columns: Columns) -> np.ndarray:
        assert columns.rows is not None
        if columns.source not in self.paths[-1:]:
            self.starts.append(self.count)
            self.paths.append(columns.source)
        self.count += len(columns.rows)
        return self.starts[-1] + columns.rows

    def label(self, row: int) -> str:
        file = bisect.bisect_right(self.starts, row) - 1
        return f"{self.paths[file]}: row {row - self.starts[file] + 1}"


def _peer_totals(
    config: DataConfig, store: Store, spans: Spans, classes: dict[str, np.ndarray], start: int, steps: int
) -> dict[str, Totals]:
    found = [feature for feature in features(config) if feature.kind == "peers"]
    totals: dict[str, Totals] = {}
    for begin, end in stretches(spans) if found else ():
        grid = averaged(config, store.grid(spans, begin, end))
        for feature in found:
            cell = fleet_features.peer_cells(classes[feature.static][begin:end], grid.spans.row0, grid.spans.first - start, steps)
            part = fleet_features.peer_totals(grid.numbers[feature.columns[0]], cell, classes[feature.static], steps)
            old = totals.get(feature.name)
            totals[feature.name] = part if old is None else Totals(old.sum + part.sum, old.count + part.count)
    return totals


def _refuse(config: DataConfig, phase: int, name: str, number: int) -> NoReturn:
    """Raises UserError naming the rows of one group at one step, which differ."""
    rows = []
    for columns, numbers, _ in _columns(config, phase):
        if name in columns.names:
            mine = (columns.group == columns.names.index(name)) & (numbers == number)
            rows += [columns.label(int(row)) for row in np.flatnonzero(mine)]
    raise UserError(f"{' and '.join(rows[:2])} both give group {name} at {show(number * config.file_step_seconds + phase)} UTC, with "
                    "different values; keep one")  # fmt: skip
