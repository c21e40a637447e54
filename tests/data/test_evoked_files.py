"""Files of the record layout in Parquet, HDF5 and JSON give the same records; every fault is one line."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from evoked_problem import ATTRIBUTES, changed, columns, config, write_hdf5, write_json, write_parquet

from jaxtrain.data import evoked
from jaxtrain.data.evoked_config import DataConfig
from jaxtrain.data.evoked_files import read_table
from jaxtrain.data.evoked_records import Records
from jaxtrain.data.evoked_tables import records
from jaxtrain.errors import UserError

Make = Callable[[Path], DataConfig]
RUN = {"units": np.array("uV")}


def same(a: Records, b: Records) -> None:
    for name, value in vars(a).items():
        if name not in ("where", "notes"):
            np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)


def for_hdf5(found: dict[str, Any]) -> dict[str, Any]:
    """The same columns as HDF5 stores them: integers say null by -1."""
    codes = [("NORMAL", "NOROPATI", "SNIK", "TOTAL", "ITIK").index(name) if name else -1 for name in found["class"]]
    present = [-1 if value is None else int(value) for value in found["v_present"]]
    return {**found, "class": np.array(codes, np.int8), "v_present": np.array(present, np.int8)}


def test_parquet_and_hdf5_agree(tmp_path: Path) -> None:
    found = columns()
    found["class"][0], found["v_present"][0], found["ear"][3] = "", None, ""
    parquet = {**found, "class": [name or None for name in found["class"]], "ear": [e or None for e in found["ear"]]}
    a = evoked.load(config(path=write_parquet(tmp_path / "a.parquet", parquet)))
    b = evoked.load(config(path=write_hdf5(tmp_path / "a.h5", for_hdf5(found), {**ATTRIBUTES, "sample_rate_hz": 20_000.0})))
    same(a, b)
    np.testing.assert_array_equal(a.signal, found["signal"])
    np.testing.assert_array_equal(a.statics[:, 3], found["fmp"])
    assert a.label[:2].tolist() == [-1, 0] and a.label[-1] == 2 and a.present[:3].tolist() == [-1, 1, 1]
    assert a.ear[2:4].tolist() == [0, -1] and a.record[1] == "r1" and a.units == "uV" and a.patients[a.patient[-1]] == "p7"


def test_a_request_in_json_is_read(tmp_path: Path) -> None:
    found = columns()
    wanted = {name: found[name] for name in ("patient_id", "age_years", "intensity_db", "rate_hz", "fmp", "signal")}
    a = evoked.inputs(config(), RUN, write_json(tmp_path / "a.json", wanted))
    b = evoked.inputs(config(), RUN, write_parquet(tmp_path / "a.parquet", wanted))
    assert set(a.arrays) == set(b.arrays)
    for name, array in a.arrays.items():
        np.testing.assert_allclose(array, b.arrays[name], rtol=1e-6) if array.dtype.kind == "f" else np.testing.assert_array_equal(
            array, b.arrays[name]
        )
    assert not a.arrays["statics_ok"][3, 0] and a.arrays["statics"][3, 0] == 0 and a.arrays["statics_ok"][0].all()


def test_absent_columns_are_derived(tmp_path: Path) -> None:
    """FMP from the halves, the reader's word from finite labels."""
    found = columns()
    bare = {name: value for name, value in found.items() if name not in ("fmp", "v_present")}
    made = evoked.load(config(path=write_parquet(tmp_path / "a.parquet", bare)))
    half = (found["half_a"] - found["half_b"]) / 2
    np.testing.assert_allclose(made.statics[:, 3], np.maximum(found["signal"].var(1) / half.var(1) - 1, 0), rtol=1e-5)
    assert made.present.tolist() == [-1, 1, 1] * 8


@pytest.mark.parametrize("name", ["NÖROPATİ", "nöropati", " Noropati ", "NO\u0308ROPATI\u0307", "1"])
def test_class_names_are_read_with_their_diacritics(tmp_path: Path, name: str) -> None:
    table = read_table(write_parquet(tmp_path / "a.parquet", {**columns(2, 1), "class": [name, "itık"]}))
    assert records(table, config().class_names).label.tolist() == [1, 4]


def test_a_peak_without_latency_is_masked(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", changed(columns(), "v_latency_ms", 4, np.nan))
    found = evoked.inputs(config(), RUN, path, labelled=True).arrays
    assert found["present"][4] and found["present_ok"][4] and not found["peak_ok"][4] and found["peak_ok"][5]


def test_few_flat_records_are_dropped_and_named(tmp_path: Path) -> None:
    found = columns(250, 4)
    found["signal"][17] = 0.3
    made = evoked.load(config(path=write_parquet(tmp_path / "a.parquet", found)))
    assert len(made) == 999 and 17 not in made.row and made.notes == ("1 flat records dropped (rows 17)",)
    found["signal"][18] = 0.3
    with pytest.raises(UserError, match=r"2 flat records \(SD < 1e-06; rows 17, 18\)"):
        evoked.load(config(path=write_parquet(tmp_path / "a.parquet", found)))


def good(**changes: Any) -> Make:
    """A file with other columns; None leaves one out."""
    keys = {name: changes.pop(name) for name in list(changes) if name in DataConfig.__dataclass_fields__}

    def make(folder: Path) -> DataConfig:
        found = {name: value for name, value in {**columns(), **changes}.items() if value is not None}
        return config(path=write_parquet(folder / "a.parquet", found), **keys)

    return make


def cell(name: str, value: Any, row: int = 4, **keys: Any) -> Make:
    return lambda folder: config(path=write_parquet(folder / "a.parquet", changed(columns(), name, row, value)), **keys)


def attributes(**changes: Any) -> Make:
    kept = {name: value for name, value in {**ATTRIBUTES, **changes}.items() if value is not None}
    return lambda folder: config(path=write_parquet(folder / "a.parquet", columns(), kept))


def content(name: str, raw: bytes) -> Make:
    def make(folder: Path) -> DataConfig:
        (folder / name).write_bytes(raw)
        return config(path=str(folder / name))

    return make


def damaged(write: Callable[..., str], name: str) -> Make:
    def make(folder: Path) -> DataConfig:
        raw = Path(write(folder / name, for_hdf5(columns()))).read_bytes()
        (folder / name).write_bytes(raw[: len(raw) // 2])
        return config(path=str(folder / name))

    return make


def hdf5(**changes: Any) -> Make:
    return lambda folder: config(path=write_hdf5(folder / "a.h5", {**for_hdf5(columns()), **changes}))


def short(folder: Path) -> DataConfig:
    found = columns()
    waves = [wave[:190] if row in (5, 9) else wave for row, wave in enumerate(found["signal"])]
    return config(path=write_parquet(folder / "a.parquet", {**found, "signal": waves}))


def without_record(folder: Path) -> DataConfig:
    found = columns()
    return config(path=write_parquet(folder / "a.parquet", {**found, "signal": [*found["signal"][:6], None, *found["signal"][7:]]}))


def scaled(factor: float) -> Make:
    waves = {name: columns()[name] * np.float32(factor) for name in ("signal", "half_a", "half_b", "clean")}
    return good(**waves)


def z_scores() -> np.ndarray:
    signal = columns()["signal"]
    return (signal - signal.mean(1, keepdims=True)) / signal.std(1, keepdims=True)


def standardised() -> np.ndarray:
    level = columns()["intensity_db"] * 10
    return ((level - level.mean()) / level.std() * 1.02).astype(np.float32)


FAULTS: dict[str, tuple[Make, str]] = {
    "missing file": (lambda folder: config(path=str(folder / "none.parquet")), r"none\.parquet: not found"),
    "other suffix": (content("a.csv", b"x"), r"a\.csv: unknown suffix '\.csv'; expected \.parquet, \.h5$"),
    "json to train on": (content("a.json", b"[]"), r"a\.json: unknown suffix '\.json'"),
    "pickle": (content("a.pkl", b"x"), r"a\.pkl: pickles are not read; .*convert_abr_pickle\.py --input \S*a\.pkl --output a\.parquet"),
    "no parquet": (content("a.parquet", b"PAR1 no table PAR1"), r"a\.parquet: not a readable Parquet file \(.+\)"),
    "truncated parquet": (damaged(write_parquet, "a.parquet"), r"a\.parquet: not a readable Parquet file \(.+\)"),
    "truncated hdf5": (damaged(write_hdf5, "a.h5"), r"a\.h5: not a readable HDF5 file \(.+\)"),
    "no hdf5": (content("a.h5", b"nothing"), r"a\.h5: not a readable HDF5 file \(.+\)"),
    "no rows": (good(**{name: value[:0] for name, value in columns().items()}), r"a\.parquet: the table has no rows"),
    "no signal": (good(signal=None), r"columns missing: signal; found: half_a, half_b"),
    "no patients": (good(patient_id=None), r"columns missing: patient_id; found: signal"),
    "short record": (short, r"row 5, signal: 190 samples, expected 200 \(so in 2 rows\); resample or crop to 10 ms at 20 kHz"),
    "null record": (without_record, r"row 6, signal: 0 samples, expected 200 \(so in 1 rows\)"),
    "short records": (hdf5(signal=np.zeros((24, 100), np.float32)), r"row 0, signal: 100 samples, expected 200"),
    "one axis": (hdf5(signal=np.zeros(24, np.float32)), r"row 0, signal: holds float32 of shape \(24,\), expected \(records, 200\)"),
    "scalar signal": (good(signal=np.zeros(24)), r"row 0, signal: holds double, expected a list of 200 float32"),
    "lengths": (hdf5(rate_hz=np.zeros(3)), r"datasets of different length: .*rate_hz 3"),
    "no rate": (attributes(sample_rate_hz=None), r"sample_rate_hz is absent from the file attributes, expected 20000; resample or crop"),
    "other rate": (attributes(sample_rate_hz="40000"), r"sample_rate_hz is 40000, expected 20000; resample or crop to 10 ms at 20 kHz"),
    "no units": (attributes(units=None), r"units is absent from the file attributes, expected uV or zscore"),
    "other layout": (attributes(layout="abr-2"), r"layout is abr-2, expected abr-1"),
    "nan": (cell("signal", np.nan, (7, 31)), r"row 7, signal: sample 31 is not a finite number \(so in 1 rows\)"),
    "inf in a half": (cell("half_b", np.inf, (3, 0)), r"row 3, half_b: sample 0 is not a finite number"),
    "flat": (cell("signal", 0.5), r"1 flat records \(SD < 1e-06; rows 4\); leave them out"),
    "volts": (scaled(1e-6), r"median signal has SD \S+: looks like volts; multiply all waveforms by 1e\+06"),
    "nanovolts": (scaled(1e3), r"looks like nanovolts; multiply all waveforms by 0\.001"),
    "z-scores": (good(signal=z_scores()), r"units is uV but every record has SD 1: looks like z-scores; set units to zscore"),
    "age": (cell("age_years", 130), r"row 4, age_years: 130 is out of range \(0 to 120; so in 1 rows\)"),
    "level": (cell("intensity_db", 140), r"row 4, intensity_db: 140 is out of range \(-20 to 130"),
    "stimulus rate": (cell("rate_hz", 0.5), r"row 4, rate_hz: 0\.5 is out of range \(1 to 100"),
    "fmp": (cell("fmp", -0.1), r"row 4, fmp: -0\.1 is out of range \(at least 0"),
    "standardised": (good(rate_hz=standardised()), r"row 0, rate_hz: \S+: the column looks standardised \(mean .*\); give raw units"),
    "text for a number": (good(rate_hz=["fast"] * 24), r"row 0, rate_hz: 'fast' is text; store numbers"),
    "class": (cell("class", "DEAF"), r"row 4, class: 'DEAF' is unknown; use NORMAL, NOROPATI, SNIK, TOTAL, ITIK or 0 to 4"),
    "class code": (hdf5(**{"class": np.full(24, 5)}), r"row 0, class: '5' is unknown"),
    "latency": (cell("v_latency_ms", 26), r"row 4, v_latency_ms: 26 is out of range \(0 to 25"),
    "threshold": (cell("threshold_db", 131), r"row 4, threshold_db: 131 is out of range \(-10 to 130"),
    "latency of nothing": (cell("v_latency_ms", 6.0, 3), r"row 3, v_latency_ms: 6 ms where v_present is false \(so in 1 rows\)"),
    "present": (hdf5(v_present=np.full(24, 2)), r"row 0, v_present: 2 is no truth value"),
    "amplitude": (cell("v_amplitude_uv", np.inf), r"row 4, v_amplitude_uv: not finite"),
    "ear": (cell("ear", "both"), r"row 4, ear: 'both' is neither L nor R"),
    "empty patient": (cell("patient_id", ""), r"row 4, patient_id is empty"),
    "no clean": (good(clean=None), r"config\.data\.target 'clean' needs the column clean, which is absent; .*choose other_half or corrupt"),
    "no half": (good(half_a=None, target="other_half"), r"'other_half' needs the column half_a, .*choose clean or corrupt"),
    "identical halves": (
        good(half_a=columns()["signal"], half_b=columns()["signal"], target="other_half"),
        r"row 0, half_a and half_b are identical \(so in 24 rows\)",
    ),
    "other mean": (
        cell("half_a", 9.0, (11, 5), target="other_half"),
        r"row 11: the mean of half_a and half_b differs from signal by up to 4\.\d+ \(so in 1 rows\)",
    ),
    "clean in volts": (good(clean=columns()["clean"] * np.float32(1e-6)), r"the median clean has SD \S+: looks like volts"),
    "no waves in clean": (good(clean=np.zeros_like(columns()["clean"])), r"clean is flat in every record"),
    "nothing to denoise": (good(clean=columns()["signal"]), r"clean equals signal in every record"),
    "latency in seconds": (
        good(v_latency_ms=columns()["v_latency_ms"] / 1000), r"v_latency_ms: the median is 0\.00\d+: looks like seconds",
    ),
    "leak": (cell("signal", columns()["signal"][4], 20), r"rows 4 and 20: the same waveform under patients p1 and p6 would leak"),
    "derived without ears": (good(ear=None, threshold="derive"), r"config\.data\.threshold 'derive' needs the column ear"),
    "rare class": (good(**{"class": ["ITIK"] * 6 + ["NORMAL"] * 18}), r"class ITIK has 2 patients, 3 are needed .*data\.groups"),
    "no such patient": (good(groups={"test": ("p99",)}), r"data\.groups 'test': no patient p99; the file has p0, p1"),
    "empty train": (
        good(groups={"test": ("p0", "p1", "p2", "p3"), "valid": ("p4", "p5", "p6", "p7")}),
        r"the train split has no record; name fewer patients in data\.groups",
    ),
    "target": (lambda folder: config(target="noisy"), r"config\.data\.target: 'noisy' is not supported \(known: clean, other_half, corr"),
    "fractions": (lambda folder: config(test_fraction=0.5, valid_fraction=0.5), r"test_fraction and valid_fraction: 0\.5 \+ 0\.5 leave no"),
    "few patients": (lambda folder: config(patients=10), r"config\.data\.patients: a synthetic clinic needs at least 30"),
    "class names": (lambda folder: config(class_names=("A", "B")), r"config\.data\.class_names: 5 different names"),
    "gain": (lambda folder: config(gain=(1.1, 0.9)), r"config\.data\.gain: two growing numbers above 0"),
    "two splits": (lambda folder: config(groups={"test": ("a",), "valid": ("a",)}), r"patient a is in test and valid"),
    "split name": (lambda folder: config(groups={"train": ("a",)}), r"'train' is no split that patients can be given to"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line(tmp_path: Path, name: str) -> None:
    make, message = FAULTS[name]
    with pytest.raises(UserError, match=message) as fault:
        evoked.splits(make(tmp_path))
    assert "\n" not in str(fault.value)


SERVED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no signal": ({"signal": None}, {}, r"columns missing: signal"),
    "other units": ({}, {"run": "zscore"}, r"units is uV, the run was trained on zscore"),
    "option": ({}, {"statics": "all"}, r"--option statics=all: unknown; leave it out, or give none"),
    "nothing to score": (
        dict.fromkeys(("half_a", "half_b", "clean", "class", "v_present", "v_latency_ms", "v_amplitude_uv", "threshold_db")),
        {"labelled": True},
        r"holds nothing to score against; add clean, half_a and half_b, or labels",
    ),
    "flat": ({"signal": columns()["signal"] * 0}, {}, r"24 flat records .*leave them out"),
}


@pytest.mark.parametrize("name", SERVED)
def test_what_does_not_fit_a_run_is_refused(tmp_path: Path, name: str) -> None:
    changes, options, message = SERVED[name]
    made = good(**changes)(tmp_path)
    run = {"units": np.array(options.pop("run", "uV"))}
    with pytest.raises(UserError, match=message):
        evoked.inputs(config(), run, made.path, **options)


BROKEN = {
    "no json": ("{", r"not valid JSON"),
    "no list": ('{"signal": []}', r"expected a list of records"),
    "static": ('[{"patient_id": 1, "static": [1, 2], "signal": []}]', r"row 0, static: expected \[age, level, rate, fmp\].*got \[1, 2\]"),
    "length": ('[{"patient_id": 1, "static": [1, 2, 3, 4], "signal": [0, 1]}]', r"row 0, signal: 2 samples, expected 200"),
    "text": ('[{"patient_id": 1, "signal": [' + ", ".join(['"a"'] * 200) + "]}]", r"row 0, signal: holds what is no number"),
    "object": ('[{"patient_id": {}, "signal": [' + ", ".join(["1"] * 200) + "]}]", r"row 0, patient_id: \{\} is neither a number nor text"),
    "depth": ("[" * 200_000, r"not valid JSON"),
    "huge": ('[{"patient_id": 1, "signal": [1' + "0" * 400 + ", 1" * 199 + "]}]", r"row 0, signal: sample 0 is not a finite number"),
    "surrogate": ('[{"patient_id": "\\ud800", "signal": [' + ", ".join(["1"] * 200) + "]}]", r"row 0, patient_id: .* no text"),
    "null": ('[{"patient_id": 1, "signal": [' + ", ".join(["null"] * 200) + "]}]", r"row 0, signal: sample 0 is not a finite number"),
}


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    table = pq.read_table(write_parquet(tmp_path / "a.parquet", columns()))
    pq.write_table(table.append_column("rate_hz", table["rate_hz"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="columns that stand twice: rate_hz"):
        read_table(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_request_is_one_line(tmp_path: Path, name: str) -> None:
    text, message = BROKEN[name]
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message) as fault:
        evoked.inputs(config(), RUN, str(tmp_path / "a.json"))
    assert "\n" not in str(fault.value)


@pytest.mark.slow
def test_faults_of_a_large_file_are_found_in_five_seconds(tmp_path: Path) -> None:
    """52,000 records, the last one the first again under another patient."""
    found = columns(13_000, 4)
    found["signal"][-1] = found["signal"][0]
    path = write_parquet(tmp_path / "a.parquet", found)
    started = time.process_time()
    with pytest.raises(UserError, match=re.escape("rows 0 and 51999")):
        evoked.splits(config(path=path))
    assert time.process_time() - started < 5
