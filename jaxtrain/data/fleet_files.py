"""A fleet from files: `read` takes every kind of long table, or a folder of scripts/prepare_fleet.py."""

from collections.abc import Sequence

import numpy as np

from jaxtrain.data.fleet_columns import check_unit, read_columns
from jaxtrain.data.fleet_config import DataConfig, roles
from jaxtrain.data.fleet_grid import Category, Columns, Fleet, Training, build
from jaxtrain.data.fleet_tables import files, is_prepared, pieces
from jaxtrain.errors import UserError


def read(config: DataConfig, path: str | Sequence[str] | None = None, extend: int = 0, training: Training | None = None) -> Fleet:
    """The fleet of `config.data.path`, or of another file with the same columns.

    path:     file to forecast from or to score instead of `config.path`
    extend:   steps added after each group's last row (see `fleet_grid.build`)
    training: which steps may decide about static columns that change (default: all)
    Rows whose targets are empty stay: known columns may reach past the last measurement.
    Raises UserError with one line for every fault of the files.
    """
    where = config.path if path is None else path
    if is_prepared(where):
        from jaxtrain.data import fleet_prepared  # which reads by means of this module

        if extend:
            raise UserError(f"{where}: a prepared folder cannot be continued; give the original file")
        return fleet_prepared.read_prepared(config, str(where), training)
    columns = read_long(config, where)
    if path is None:
        check_unit(config, columns.source, {name: float(np.nanmax(columns.numbers[name], initial=-np.inf)) for name in config.targets})
    return build(config, columns, extend, training)


def wanted(config: DataConfig) -> tuple[str, ...]:
    """The columns of a file that are read."""
    role = roles(config)
    reals = config.targets + config.observed_real + config.known_real + config.static_real
    return (config.time, *config.groups, *reals, *role.categorical, *role.static_categorical)


def read_long(config: DataConfig, path: str | Sequence[str]) -> Columns:
    """All rows of the files of a path in one table."""
    found, phase = [], None
    for file in files(path, config.format):
        for piece in pieces(file, wanted(config), whole=True):
            if len(piece.table):
                columns, phase = read_columns(config, piece, phase)
                found.append(columns)
    source = path if isinstance(path, str) else ", ".join(path)
    if not found:
        raise UserError(f"{source}: the table has no rows")
    return found[0] if len(found) == 1 else _joined(source, found)


def _joined(source: str, found: Sequence[Columns]) -> Columns:
    """The tables of several files one after the other, with common names of groups and categories."""
    names = tuple(sorted({name for columns in found for name in columns.names}))
    code = {name: index for index, name in enumerate(names)}
    group = np.concatenate([np.array([code[n] for n in columns.names], np.int64)[columns.group] for columns in found])
    first = np.cumsum([0, *(len(columns.time) for columns in found)])

    def label(row: int) -> str:
        file = int(np.searchsorted(first, row, side="right")) - 1
        return found[file].label(row - int(first[file]))

    return Columns(
        source,
        np.concatenate([columns.time for columns in found]),
        group,
        names,
        {name: np.concatenate([columns.numbers[name] for columns in found]) for name in found[0].numbers},
        {name: join_categories([columns.categories[name] for columns in found]) for name in found[0].categories},
        label,
        tuple(dict.fromkeys(note for columns in found for note in columns.notes)),
    )


def join_categories(found: Sequence[Category]) -> Category:
    """The rows of several columns one after the other, coded by one vocabulary."""
    texts = tuple(sorted({text for category in found for text in category.texts}))
    return Category(np.concatenate([recoded(category, texts) for category in found]), texts)


def recoded(category: Category, texts: Sequence[str]) -> np.ndarray:
    """(n,) codes of a column by another vocabulary that holds all of its texts."""
    code = {text: 1 + index for index, text in enumerate(texts)}
    return np.array([0, *(code[text] for text in category.texts)], np.int32)[category.codes]
