"""The public set of human clicks: prepared to the layout, and its naive scores as published."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evoked_problem import config, script
from evoked_scores import centred, gain_db, mean_r

from jaxtrain.data import evoked
from jaxtrain.data import evoked_naive as naive
from jaxtrain.data.dataset import Dataset, Statistics
from jaxtrain.data.evoked_files import read_table
from jaxtrain.data.evoked_records import Records
from jaxtrain.data.evoked_statistics import training_statistics
from jaxtrain.data.evoked_tables import records

HALVES = config(target="other_half", path="human.parquet")  # the noise of a file is learned from its halves
RUN = {"units": np.array("uV")}
prepare_abr_human = script("prepare_abr_human")


def prepared(source: Path, output: Path, *more: str) -> str:
    assert prepare_abr_human.main(["--input", str(source), "--output", str(output), *more]) == 0
    return str(output)


@pytest.fixture(scope="module")
def clicks(shared: Path) -> Path:
    return shared / "data" / "abr" / "human_clicks.parquet"


@pytest.fixture(scope="module")
def halves(clicks: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Records]:
    path = prepared(clicks, tmp_path_factory.mktemp("human") / "a.parquet")
    return evoked.inputs(HALVES, RUN, path, labelled=True), records(read_table(path), HALVES.class_names)


def other_person(found: Dataset, known: Records, person: int) -> Statistics:
    """What the records of everyone but this person teach."""
    index = found.index[known.patient[found.index[:, 0]] != person]
    return training_statistics(HALVES, found.gather(found.arrays, index), known.take(known.patient != person))


def test_records_arrive(halves: tuple[Dataset, Records]) -> None:
    found, known = halves
    assert len(known) == 231 and len(found) == 462 and np.bincount(known.patient).tolist() == [117, 114]
    assert known.patients.tolist() == ["P3", "P6"] and (known.ear == 1).all() and len(set(known.record.tolist())) == 231
    assert (known.statics[:, 0] == 30).all() and (known.statics[:, 2] == np.float32(37.1)).all() and np.isfinite(known.statics[:, 3]).all()
    assert (known.label == -1).all() and (known.present == -1).all()
    batch = found.gather(found.arrays, found.index)
    assert batch["paired"].all() and not batch["statics_ok"][:, 3].any()


def test_half_to_other_half(halves: tuple[Dataset, Records]) -> None:
    """R1: naive gains with the noise of the target removed."""
    found, known = halves
    b = found.gather(found.arrays, found.index)
    x, y = b["signal"], b["target"]
    noise = float(((centred(x) - centred(y)) ** 2).mean() / 2)
    identity = ((centred(x) - centred(y)) ** 2).mean() - noise
    np.testing.assert_allclose(1e4 * identity, 93.9, atol=0.1)
    np.testing.assert_allclose(1e4 * (centred(x) * centred(y)).mean(), 48.8, atol=0.1)
    np.testing.assert_allclose(gain_db(0 * x, y, x, noise), 2.84, atol=0.01)
    np.testing.assert_allclose(mean_r(x, y), 0.445, atol=0.001)

    level, filtered = np.empty_like(x), np.empty_like(x)
    for person in (0, 1):
        s, mine = other_person(found, known, person), b["patient"] == person
        statics, ok = b["statics"][mine], b["statics_ok"][mine]
        level[mine] = s["level_wave"][naive.cells(statics, ok)[0]]
        filtered[mine] = naive.wiener(s, x[mine], statics, ok)
    np.testing.assert_allclose(gain_db(level, y, x, noise), 2.97, atol=0.01)
    assert 3.8 < gain_db(filtered, y, x, noise) < 4.3  # published: 3.96


def test_short_to_long_average(clicks: Path, halves: tuple[Dataset, Records], tmp_path: Path) -> None:
    """R2: 500 sweeps against the mean of three averages of 2000."""
    made = evoked.inputs(config(), RUN, prepared(clicks, tmp_path / "long.parquet", "--target", "long"), labelled=True)
    b = made.gather(made.arrays, made.index)
    x, y = b["signal"], b["target"]
    assert len(made) == 75 and not b["paired"].any() and b["target_ok"].all()
    known = halves[1]
    assert known.half_a is not None and known.half_b is not None
    sweeps = np.array(pq.read_table(clicks)["sweeps"].to_pylist())
    noise = float((centred((known.half_a - known.half_b) / 2)[sweeps == 2000] ** 2).mean() / 3)
    np.testing.assert_allclose(1e4 * noise, 5.4, atol=0.15)
    np.testing.assert_allclose(gain_db(0 * x, y, x, noise), 3.36, atol=0.02)
    np.testing.assert_allclose(mean_r(x, y), 0.536, atol=0.001)
    level = np.empty_like(x)
    for person in (0, 1):
        s, mine = other_person(*halves, person), b["patient"] == person
        level[mine] = s["level_wave"][naive.cells(b["statics"][mine], b["statics_ok"][mine])[0]]
    np.testing.assert_allclose(gain_db(level, y, x, noise), 3.34, atol=0.02)


def public(folder: Path, **changes: object) -> Path:
    """A small file as the public set is, with other columns; None leaves one out."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((4, 200)).astype(np.float32) for _ in range(2))
    found = {
        "person": ["P1"] * 4, "file": ["a", "b", "c", "d"], "ear": ["R"] * 4, "level_db": [20, 20, 40, 40], "rate_hz": [37.1] * 4,
        "sweeps": [500, 2000, 500, 2000], "average_uv": list((a + b) / 2), "buffer1_uv": list(a), "buffer2_uv": list(b),
    }  # fmt: skip
    found = {name: values for name, values in {**found, **changes}.items() if values is not None}
    pq.write_table(pa.table(found), folder / "public.parquet")
    return folder / "public.parquet"


def test_a_long_average_is_that_of_its_level(tmp_path: Path) -> None:
    source = public(tmp_path)
    table = read_table(prepared(source, tmp_path / "long.parquet", "--target", "long"))
    average = np.array(pq.read_table(source)["average_uv"].to_pylist(), np.float32)
    np.testing.assert_array_equal(table.columns["clean"], average[[1, 3]])
    np.testing.assert_array_equal(table.columns["signal"], average[[0, 2]])


WAVES = list(np.random.default_rng(1).standard_normal((4, 200)).astype(np.float32))
FAULTS = {
    "columns": ({"ear": None}, (), r"columns missing: ear; found: person"),
    "length": ({"average_uv": [[0.0] * 100] * 4}, (), r"row 0, average_uv: not 200 samples"),
    "person": ({"person": [None, "P1", "P1", "P1"]}, (), "row 0, person: None is not possible (so in 1 rows)"),
    "ear": ({"ear": ["R", "B", "R", "R"]}, (), "row 1, ear: 'B' is not possible"),
    "level": ({"level_db": [40.0, 300.0, 40.0, 40.0]}, (), "row 1, level_db: 300.0 is not possible"),
    "flat": ({"average_uv": list(np.zeros((4, 200), np.float32))}, (), "row 0, average_uv: flat"),
    "halves": ({"buffer1_uv": WAVES, "buffer2_uv": WAVES}, (), "row 0: the two buffers are identical"),
    "no short average": ({"sweeps": [2000] * 4}, ("--target", "long"), "no record of 500 sweeps; use --target halves"),
    "no long average": ({"sweeps": [500, 2000, 500, 1000]}, ("--target", "long"), r"row 2: no record of 2000 sweeps of P1 at 40 dB"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_leaves_no_file(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, more, message = FAULTS[name]
    output = tmp_path / "new.parquet"
    assert prepare_abr_human.main(["--input", str(public(tmp_path, **changes)), "--output", str(output), *more]) == 2
    said = capsys.readouterr().err
    assert message in said.replace("\\", "") and said.count("\n") == 1 and not output.exists()


@pytest.mark.parametrize("name, message", [("public.parquet", "is the input file"), ("a.h5", "unknown suffix '.h5'")])
def test_the_output_is_a_parquet_file_of_its_own(tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = public(tmp_path)
    before = source.read_bytes()
    assert prepare_abr_human.main(["--input", str(source), "--output", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err and source.read_bytes() == before


class Told:
    """A run that says what it was given to say."""

    def __init__(self, wave: float):
        self.wave = wave

    def predict(self, signal: np.ndarray, statics: np.ndarray) -> dict[str, np.ndarray]:
        first = 100  # 5 ms
        peak = 0.05 * (first + signal[:, first:181].argmax(1))
        return {"denoised_uv": self.wave * signal, "v_latency_ms": peak, "v_probability": statics[:, 1] / 60}


@pytest.fixture()
def score_abr_human(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "scripts"))  # as Python does for a script it runs
    return script("score_abr_human")


def test_scores_of_the_script(score_abr_human: ModuleType, clicks: Path) -> None:
    """R1, R2 and R3 of naive forecasts, as published: a flat wave, the raw peak, and the grand means' slopes."""
    columns = score_abr_human.read(clicks)
    found = score_abr_human.clicks(columns)
    flat, same = Told(1e-6), Told(1.0)
    assert abs(score_abr_human.halves(flat, found)["r1_gain_db"] - 2.84) < 0.01
    assert abs(score_abr_human.long_averages(flat, columns, clicks)["r2_gain_db"] - 3.36) < 0.01
    r1, r2 = score_abr_human.halves(same, found), score_abr_human.long_averages(same, columns, clicks)
    np.testing.assert_allclose([r1["r1_gain_db"], r1["r1_r"], r2["r2_gain_db"], r2["r2_r"]], [0, 0.445, 0, 0.536], atol=1e-3)
    r3 = score_abr_human.latencies(flat, found)
    np.testing.assert_allclose([r3["r3_mae_ms"], r3["r3_within"], r3["r3_rank_r"]], [0.403, 0.75, -0.57], atol=0.006)
    np.testing.assert_allclose([r3["r3_slope_reference/P3 R"], r3["r3_slope_reference/P6 R"]], [-0.46, -0.36], atol=0.01)
    assert (r3["v_present/0"], r3["v_present/25"], r3["v_present/30"], r3["v_present/60"]) == (0, 0, 1, 1)
    said = score_abr_human.render(r1 | r2 | r3)
    assert "gain 0.00 dB, r 0.536 (75 records)" in said and "(159 records)" in said and "25: 0%, 30: 100%" in said


def test_another_set_of_records_is_scored_as_far_as_it_goes(score_abr_human: ModuleType, clicks: Path) -> None:
    columns = score_abr_human.read(clicks)

    def scores(keep: np.ndarray, **changes: np.ndarray) -> tuple[dict[str, float], str]:
        some = {name: values[keep] for name, values in {**columns, **changes}.items()}
        found, run = score_abr_human.clicks(some), Told(0.5)
        told = score_abr_human.halves(run, found) | score_abr_human.long_averages(run, some, clicks) | score_abr_human.latencies(run, found)
        return told, score_abr_human.render(told)

    everyone = np.ones(len(columns["sweeps"]), bool)
    _, said = scores(columns["sweeps"] != 500)
    assert "R2  500 sweeps to the mean    no average of 500 sweeps has one of 2000" in said
    told, said = scores(columns["level_db"] < 20)
    assert "R3  latency of wave V         no record from 20 dB on" in said and not any("slope" in name for name in told)
    third = np.where(np.arange(len(everyone)) % 2, columns["person"], "P9")
    told, said = scores(everyone, person=third, ear=np.where(third == "P9", "L", columns["ear"]))
    assert "P9 L: " in said and "nan" not in said and told["r2_records"] <= 75
    told, said = scores(columns["level_db"] == 40)
    assert "rank" not in said and "per 10 dB" not in said and "R3  latency of wave V         MAE" in said


def test_the_script_scores_a_run_that_predicts(
    score_abr_human: ModuleType, clicks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for workdir, source, message in ((tmp_path / "none", clicks, "not a run folder"), (tmp_path, tmp_path / "no.parquet", "not found")):
        assert score_abr_human.main(["--workdir", str(workdir), "--input", str(source)]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
