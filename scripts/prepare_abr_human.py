"""Turn the public set of human click responses into the record layout.

    python scripts/prepare_abr_human.py --input human_clicks.parquet --output data/human_clicks.parquet [--target long]

Columns read: person, file, ear, level_db, rate_hz, sweeps, average_uv, buffer1_uv and buffer2_uv (200 samples each at 20 kHz).
Labels stay empty; both persons are adults, whose age is not published and stands as 30 years. `--target long` keeps the
records of 500 sweeps, with the mean of the same ear's three averages of 2000 sweeps at the same level as their `clean`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxtrain.cli import check_new_file
from jaxtrain.data.evoked_checks import FLAT_SD
from jaxtrain.data.evoked_config import LAYOUT, SAMPLE_RATE_HZ, SAMPLES
from jaxtrain.data.evoked_tables import RANGES, SIDES
from jaxtrain.errors import UserError

AGE_YEARS = 30.0
SHORT_SWEEPS, LONG_SWEEPS = 500, 2000
WAVES = {"average_uv": "signal", "buffer1_uv": "half_a", "buffer2_uv": "half_b"}
COLUMNS = ("person", "file", "ear", "level_db", "rate_hz", "sweeps", *WAVES)
TEXTS = ("person", "file", "ear")


def read(path: Path) -> dict[str, np.ndarray]:
    """The columns of the public set. Raises UserError naming what is missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(f"{path}: not found; name the Parquet file of human clicks")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as fault:
        raise UserError(f"{path}: not a readable Parquet file ({' '.join(str(fault).split())}); download it again") from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    twice = [name for name in COLUMNS if table.column_names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: columns that stand twice: {', '.join(twice)}; download it again")
    if not table.num_rows:
        raise UserError(f"{path}: holds no record; download it again")
    if missing:
        raise UserError(f"{path}: columns missing: {', '.join(missing)}; found: {', '.join(table.column_names)}")
    plain = [name for name in COLUMNS if name not in WAVES]
    columns = {name: _column(path, name, table[name].to_pylist()) for name in plain}
    for name in WAVES:
        waves = table[name].to_pylist()
        wrong = [row for row, wave in enumerate(waves) if wave is None or len(wave) != SAMPLES]
        if wrong:
            raise UserError(f"{path}: row {wrong[0]}, {name}: not {SAMPLES} samples; crop to 10 ms at 20 kHz")
        columns[name] = np.array(waves, np.float32)
        bad = ~np.isfinite(columns[name]).all(1) | (columns[name].std(1) < FLAT_SD)
        if bad.any():
            raise UserError(f"{path}: row {int(np.argmax(bad))}, {name}: flat, or holds what is not finite; leave the record out")
    same = (columns["buffer1_uv"] == columns["buffer2_uv"]).all(1)
    if same.any():
        raise UserError(f"{path}: row {int(np.argmax(same))}: the two buffers are identical and say nothing of the noise; leave the "
                        "record out")  # fmt: skip
    return columns


def _column(path: Path, name: str, values: list[object]) -> np.ndarray:
    """Texts (R,) that are not empty (an ear is L or R), or numbers (R,) within their range. Raises UserError naming the row."""
    wrong = [row for row, value in enumerate(values) if not _possible(name, value)]
    if wrong:
        raise UserError(f"{path}: row {wrong[0]}, {name}: {values[wrong[0]]!r} is not possible (so in {len(wrong)} rows); mend it or leave "
                        "the record out")  # fmt: skip
    return np.array(values, np.str_ if name in TEXTS else np.float64)


def _possible(name: str, value: object) -> bool:
    if name in TEXTS:
        return isinstance(value, str) and (value in SIDES if name == "ear" else bool(value.strip()))
    low, high = {"level_db": RANGES["intensity_db"], "rate_hz": RANGES["rate_hz"], "sweeps": (1, np.inf)}[name]
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def with_long_average(columns: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The short records alone, with `clean` (n, 200): the mean of all long averages of the same ear and level.

    Raises UserError naming a record without one.
    """
    short = np.flatnonzero(columns["sweeps"] == SHORT_SWEEPS)
    if not len(short):
        raise UserError(f"{path}: no record of {SHORT_SWEEPS} sweeps; use --target halves")
    clean = []
    for row in short:
        same = columns["sweeps"] == LONG_SWEEPS
        for name in ("person", "ear", "level_db"):
            same &= columns[name] == columns[name][row]
        if not same.any():
            who, level = columns["person"][row], columns["level_db"][row]
            raise UserError(f"{path}: row {row}: no record of {LONG_SWEEPS} sweeps of {who} at {level:g} dB; use --target halves")
        clean.append(columns["average_uv"][same].mean(0))
    kept = {name: values[short] for name, values in columns.items()}
    return {**kept, "clean": np.array(clean, np.float32)}


def write(columns: dict[str, np.ndarray], output: Path) -> None:
    """Whole or not at all: a temporary file beside it, then a rename."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = len(columns["person"])
    floats = {"age_years": np.full(count, AGE_YEARS), "intensity_db": columns["level_db"], "rate_hz": columns["rate_hz"]}
    fields = {name: pa.array(values.astype(np.float32)) for name, values in floats.items()}
    fields |= {"patient_id": pa.array(columns["person"]), "ear": pa.array(columns["ear"]), "record": pa.array(columns["file"])}
    fields["sweeps"] = pa.array(columns["sweeps"].astype(np.int32))
    for name, kept in {**WAVES, "clean": "clean"}.items():
        if name in columns:
            fields[kept] = pa.FixedSizeListArray.from_arrays(pa.array(columns[name].ravel()), SAMPLES)
    table = pa.table(fields).replace_schema_metadata({"sample_rate_hz": str(SAMPLE_RATE_HZ), "units": "uV", "layout": LAYOUT})
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        pq.write_table(table, temporary)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Turn the public set of human click responses into the record layout.")
    parser.add_argument("--input", type=Path, required=True, help="the public set, Parquet")
    parser.add_argument("--output", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--target", choices=("halves", "long"), default="halves", help="what a denoised record is scored against")
    options = parser.parse_args(arguments)
    try:
        check_new_file(options.output, options.input, (".parquet",))
        columns = read(options.input)
        columns = with_long_average(columns, options.input) if options.target == "long" else columns
        write(columns, options.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename2 or error.filename or options.output}: {error.strerror or error}; nothing was written", file=sys.stderr)
        return 2
    print(f"{options.output}: {options.target}, from {len(columns['person'])} records of {len(np.unique(columns['person']))} persons")
    return 0


if __name__ == "__main__":
    sys.exit(main())
