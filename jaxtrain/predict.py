"""Restore a run and forecast: python -m jaxtrain.predict --workdir runs/x --input FILE --output FILE.parquet|.csv|.npz

Needs the run folder alone, never the training data. `--option key=value` passes what the task offers (see README).
"""

import argparse
import glob
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtrain import cli
from jaxtrain.errors import UserError

SUFFIXES = (".parquet", ".csv", ".npz")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m jaxtrain.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="a run folder of jaxtrain.main")
    parser.add_argument("--input", required=True, help="file to forecast from, in any layout that the task trains on")
    parser.add_argument("--output", type=Path, required=True, help=f"file to write ({', '.join(SUFFIXES)})")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="what the task offers, repeatable")
    arguments = parser.parse_args(argv)
    options = cli.options(arguments.option)
    check_output(arguments.output, Path(arguments.input))
    if not arguments.workdir.is_dir():
        raise UserError(f"--workdir {arguments.workdir}: no such folder")

    from jaxtrain.engine.run import open_run
    from jaxtrain.engine.start import start_jax

    start_jax(distributed=False)
    run = open_run(arguments.workdir)
    dataset = run.task.inputs(arguments.input, options)
    if len(dataset) == 0:
        raise UserError(f"{arguments.input}: holds no example to forecast from")
    forecast = run.forecast(dataset, **run.task.serving(options))
    columns = run.task.table(dataset, forecast, options)
    more = run.task.more_tables(dataset, forecast, options)
    paths = {name: arguments.output.with_suffix(f".{name}{arguments.output.suffix}") for name in more}
    for name, path in paths.items():
        write_table(path, more[name])
    write_table(arguments.output, columns)
    stem, suffix = arguments.output.stem, arguments.output.suffix
    for old in sorted(set(arguments.output.parent.glob(f"{glob.escape(stem)}.*{suffix}")) - set(paths.values())):
        print(f"note: {old} beside it is not of this forecast", file=sys.stderr)
    rows = len(next(iter(columns.values())))
    examples = f"{len(dataset):,} example{'s' if len(dataset) > 1 else ''}"
    also = f" (and {', '.join(more)} beside it)" if more else ""
    print(f"{arguments.output}{also}: {rows:,} rows from {examples} with step {run.step} of {arguments.workdir}")
    return 0


def check_output(path: Path, source: Path) -> None:
    """A known suffix in a folder that exists, and not the input, before any work is done."""
    cli.check_new_file(path, source, SUFFIXES)
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--output {path}: {'is a folder' if path.is_dir() else f'there is no folder {path.parent}'}")


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Whole or not at all: a temporary file beside it, then a rename.

    A column of rows (n, k) becomes lists in .parquet; .csv has no place for one, so these go to a .npz of the same name beside it.
    """
    import numpy as np

    if path.is_dir():
        raise UserError(f"--output: {path} is a folder; move it away, or give another name")
    wide = {name: column for name, column in columns.items() if np.ndim(column) > 1}
    if path.suffix == ".csv" and wide:
        write_table(path.with_suffix(".npz"), wide)
        columns = {name: column for name, column in columns.items() if name not in wide}
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        if path.suffix == ".npz":
            np.savez_compressed(temporary, **columns)
        else:
            import pyarrow
            import pyarrow.csv
            import pyarrow.parquet

            table = pyarrow.table({name: list(column) if name in wide else column for name, column in columns.items()})
            pyarrow.parquet.write_table(table, temporary) if path.suffix == ".parquet" else pyarrow.csv.write_csv(table, temporary)
        temporary.replace(path)
    except FileNotFoundError:
        raise UserError(f"--output {path}: no file can be made in {path.parent}; choose another folder") from None
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    cli.run(main)
