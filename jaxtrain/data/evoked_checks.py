"""Checks of the waveforms: finite, not flat, in uV, halves that belong to their average, no record under two patients."""

import numpy as np

from jaxtrain.data.evoked_files import WAVES
from jaxtrain.data.evoked_records import Records
from jaxtrain.errors import UserError

FLAT_SD = 1e-6
MOST_FLAT = 1e-3  # share of flat records that may be dropped
SD_RANGE_UV = (0.001, 5.0)  # of the median record
HALVES_SHARE = 0.05  # of the record's SD, between the average and the mean of its halves
ZSCORE_TOLERANCE = 1e-3
ROUNDING = 1e-5  # of its largest sample, the SD of a constant record in float32


def check_waveforms(found: Records, target: str, *, drop_flat: bool = True) -> Records:
    """The records without flat ones, if few. target: what needs further columns. Raises UserError naming row and remedy."""
    _check_target(found, target)
    for name in WAVES:
        wave = getattr(found, name)
        if wave is not None:
            _check_finite(found, name, wave)
    _check_units(found, "signal")
    if target == "clean":
        _check_units(found, "clean")
        _check_clean(found)
    found = _without_flat(found, drop_flat)
    if target == "other_half":
        _check_halves(found)
    return found


def _check_target(found: Records, target: str) -> None:
    needed = {"clean": ("clean",), "other_half": ("half_a", "half_b"), "corrupt": (), "": ()}[target]
    for name in needed:
        if getattr(found, name) is None:
            raise UserError(f"{found.where}: config.data.target {target!r} needs the column {name}, which is absent; add it or choose "
                            f"{_possible(found)}")  # fmt: skip


def _possible(found: Records) -> str:
    halves = found.half_a is not None and found.half_b is not None
    return " or ".join([*(["clean"] if found.clean is not None else []), *(["other_half"] if halves else []), "corrupt"])


def _check_finite(found: Records, name: str, wave: np.ndarray) -> None:
    bad = ~np.isfinite(wave)
    if bad.any():
        rows = bad.any(1)
        row = int(np.argmax(rows))
        raise UserError(f"{found.where}: row {found.row[row]}, {name}: sample {int(np.argmax(bad[row]))} is not a finite number (so in "
                        f"{rows.sum()} rows); leave such records out")  # fmt: skip


def _without_flat(found: Records, drop: bool) -> Records:
    flat = found.signal.std(1) < FLAT_SD
    if not flat.any():
        return found
    rows = ", ".join(str(row) for row in found.row[flat][:5])
    if not drop or flat.mean() > MOST_FLAT:
        raise UserError(f"{found.where}: {flat.sum()} flat records (SD < {FLAT_SD:g}; rows {rows}); leave them out of the file")
    return found.take(~flat, f"{flat.sum()} flat records dropped (rows {rows})")


def _check_clean(found: Records) -> None:
    clean = found.clean
    assert clean is not None
    if (clean.std(1) < FLAT_SD).all():
        raise UserError(f"{found.where}: clean is flat in every record; give the waveforms that a denoised record shall have")
    if np.array_equal(clean, found.signal):
        raise UserError(f"{found.where}: clean equals signal in every record, so that nothing is to be denoised; choose "
                        "config.data.target=corrupt, or leave clean out")  # fmt: skip


def _check_units(found: Records, name: str) -> None:
    wave = getattr(found, name)
    sd = wave.std(1)
    if found.units != "uV":
        return
    if name == "signal" and len(sd) > 1 and (np.abs(sd - 1) < ZSCORE_TOLERANCE).all():
        raise UserError(f"{found.where}: units is uV but every record has SD 1: looks like z-scores; set units to zscore, or give the "
                        "records as they were before scaling")  # fmt: skip
    median, (low, high) = float(np.median(sd)), SD_RANGE_UV
    # In volts every record is flat, but not beside its own size.
    if low <= median <= high or median <= ROUNDING * np.median(np.abs(wave).max(1)):
        return
    looks, factor = ("volts", 1e6) if median < 1e-5 else ("millivolts", 1e3) if median < low else ("nanovolts", 1e-3)
    raise UserError(f"{found.where}: units is uV but the median {name} has SD {median:.3g}: looks like {looks}; multiply all waveforms by "
                    f"{factor:g}")  # fmt: skip


def _check_halves(found: Records) -> None:
    a, b = found.half_a, found.half_b
    assert a is not None and b is not None
    same = (a == b).all(1)
    if same.any():
        row = int(np.argmax(same))
        raise UserError(f"{found.where}: row {found.row[row]}, half_a and half_b are identical (so in {same.sum()} rows); give averages of "
                        "different sweeps")  # fmt: skip
    off = np.abs((a + b) / 2 - found.signal).max(1)
    wrong = off > HALVES_SHARE * found.signal.std(1)
    if wrong.any():
        row = int(np.argmax(np.where(wrong, off, 0)))
        raise UserError(f"{found.where}: row {found.row[row]}: the mean of half_a and half_b differs from signal by up to {off[row]:.3g} "
                        f"(so in {wrong.sum()} rows); give halves of the same average")  # fmt: skip


def check_leak(found: Records) -> None:
    """Raises UserError where one waveform stands under two patients."""
    first: dict[bytes, int] = {}
    for row, wave in enumerate(found.signal):
        other = first.setdefault(wave.tobytes(), row)
        if found.patient[other] != found.patient[row]:
            ids = [found.patients[found.patient[i]] for i in (other, row)]
            raise UserError(f"{found.where}: rows {found.row[other]} and {found.row[row]}: the same waveform under patients {ids[0]} and "
                            f"{ids[1]} would leak between splits; keep one of them")  # fmt: skip
