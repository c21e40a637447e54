"""Serving evoked responses: options, arrays by hand, tables of records and level series, files of other kinds than the run's."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from abr_case import Told, host, numbers, splits, task

from jaxtrain.data.evoked_noise import draw
from jaxtrain.data.evoked_serving import series_threshold
from jaxtrain.errors import UserError
from jaxtrain.predict import write_table
from jaxtrain.tasks import abr_serving

LEVELS = np.array([70.0, 50, 40, 30, 20, 20], np.float32)


def write(path: Path, *, ears: int = 2, drop: tuple[str, ...] = ()) -> str:
    """`ears` ears of one patient with six records each, halves and no label."""
    rng = np.random.default_rng(0)
    count = ears * len(LEVELS)
    clean = 0.3 * np.exp(-(((np.arange(200) - 130) / 8.0) ** 2)) * np.tile(LEVELS > 25, ears)[:, None]
    halves = [(clean + 0.05 * draw(rng, count)).astype(np.float32) for _ in range(2)]
    columns: dict[str, Any] = {
        "signal": (halves[0] + halves[1]) / 2, "half_a": halves[0], "half_b": halves[1], "patient_id": ["p1"] * count,
        "ear": np.repeat(["L", "R"], len(LEVELS))[:count].tolist(), "intensity_db": np.tile(LEVELS, ears),
        "age_years": np.full(count, 30, np.float32), "rate_hz": np.full(count, 37.1, np.float32),
    }  # fmt: skip
    kept = {name: list(column) for name, column in columns.items() if name not in drop}
    attributes = {"sample_rate_hz": "20000", "units": "uV", "layout": "abr-1"}
    pq.write_table(pa.table(kept).replace_schema_metadata(attributes), path)
    return str(path)


@functools.cache
def forecast(count: int) -> dict[str, np.ndarray]:
    made = task()
    one = {"signal": np.random.default_rng(0).normal(0, 0.2, (count, 200)).astype(np.float32), "statics": np.zeros((count, 4), np.float32)}
    told = jax.jit(lambda b: made.predict(Told(**numbers(1, count)), b))(made.complete(one))
    return {name: np.asarray(value) for name, value in told.items()}


def test_the_table_has_a_row_per_record_with_units(tmp_path):
    made = task()
    dataset = made.inputs(write(tmp_path / "a.parquet"), {})
    told = forecast(len(dataset))
    table = made.table(dataset, told, {})
    assert list(table) == [
        "row", "patient_id", "ear", "record", "v_probability", "v_present", "v_latency_ms", "v_latency_sd_ms", "v_amplitude_uv",
        "v_amplitude_sd_uv", "class", "p_NORMAL", "p_NOROPATI", "p_SNIK", "p_TOTAL", "p_ITIK", "threshold_db", "threshold_sd_db",
        "category", "denoised_uv",
    ]  # fmt: skip
    assert table["row"].tolist() == list(range(12)) and set(table["ear"]) == {"L", "R"} and table["denoised_uv"].shape == (12, 200)
    present = told["v_probability"] >= 0.5
    assert present.any() and not present.all()
    for name in ("v_latency_ms", "v_latency_sd_ms", "v_amplitude_uv", "v_amplitude_sd_uv"):
        np.testing.assert_array_equal(table[name], np.where(present, told[name], np.nan))
    names = made.statistics["class_names"]
    np.testing.assert_array_equal(table["class"], names[told["class_probability"].argmax(1)])
    np.testing.assert_allclose(sum(table[f"p_{name}"] for name in names), 1, rtol=1e-5)


def test_predictions_are_the_forecast_in_physical_units():
    said, found, known = numbers(1, 4), forecast(4), task().statistics
    np.testing.assert_allclose(found["v_probability"], 1 / (1 + np.exp(-said["existence"])), rtol=1e-5)
    threshold = known["threshold_mean"] + known["threshold_std"] * said["threshold_z"]
    np.testing.assert_allclose(found["threshold_mean_db"], threshold, rtol=1e-5)
    np.testing.assert_allclose(found["v_latency_sd_ms"], np.exp(said["latency_ln_sd"]), rtol=1e-5)


def test_a_louder_record_has_a_louder_forecast():
    made, said = task(), numbers(1, 4)
    signal = np.random.default_rng(0).normal(0, 0.2, (4, 200)).astype(np.float32)
    call = jax.jit(lambda one: made.predict(Told(**said), one))
    quiet, loud = (host(call(made.complete({"signal": factor * signal}))) for factor in (np.float32(1), np.float32(3)))
    for name in ("denoised_uv", "v_amplitude_uv", "v_amplitude_sd_uv"):
        np.testing.assert_allclose(loud[name], 3 * quiet[name], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(loud["v_latency_ms"], quiet["v_latency_ms"])


def test_degrees_of_hearing_loss():
    limits = [-5, 25, 25.1, 40, 40.1, 55, 55.1, 70, 70.1, 90, 90.1, 120]
    words = ["normal"] * 2 + ["mild"] * 2 + ["moderate"] * 2 + ["moderately severe"] * 2 + ["severe"] * 2 + ["profound"] * 2
    assert abr_serving.category(np.array(limits)).tolist() == words


def test_ears_with_four_levels_have_a_series(tmp_path):
    made = task()
    dataset = made.inputs(write(tmp_path / "a.parquet"), {})
    p = np.concatenate([[0.99, 0.97, 0.9, 0.4, 0.1, 0.2], np.full(6, 0.5)])
    classes = np.full((12, 5), 0.1)
    classes[:6, 2], classes[6:, 4] = 0.6, 0.6
    found = made.more_tables(dataset, {"v_probability": p, "class_probability": classes}, {})["series"]
    assert found["ear"].tolist() == ["L", "R"] and found["levels"].tolist() == [5, 5] and found["records"].tolist() == [6, 6]
    assert found["threshold_db"][0] == series_threshold(LEVELS, p[:6]) and 20 < found["threshold_db"][0] < 40
    assert found["class"].tolist() == ["SNIK", "ITIK"] and found["category"][0] in ("normal", "mild")
    few = replace(dataset, index=dataset.index[:3])
    assert made.more_tables(few, {"v_probability": p[:3]}, {}) == {}


def test_wide_columns_are_lists_or_lie_beside_a_csv(tmp_path):
    columns = {"row": np.arange(3), "denoised_uv": np.arange(6, dtype=np.float32).reshape(3, 2)}
    for suffix in (".parquet", ".csv", ".npz"):
        write_table(tmp_path / f"out{suffix}", columns)
        if suffix == ".csv":
            assert (tmp_path / "out.csv").read_text().split() == ['"row"', "0", "1", "2"]
            np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["denoised_uv"], columns["denoised_uv"])
    assert pq.read_table(tmp_path / "out.parquet")["denoised_uv"].to_pylist() == [[0, 1], [2, 3], [4, 5]]
    assert set(np.load(tmp_path / "out.npz")) == {"row", "denoised_uv"}


def test_a_file_with_halves_scores_a_run_that_was_trained_on_clean_waveforms(tmp_path):
    made = task()
    dataset = made.labelled(write(tmp_path / "a.parquet"), {})
    assert len(dataset) == 24
    one = {**dataset.gather(dataset.arrays, dataset.index), "mask": np.ones(24, np.float32)}
    assert not one["statics_ok"][:, 3].any()  # FMP knows both halves
    waves = {"identity": one["signal"], "majority": np.zeros_like(one["signal"])}
    sums = jax.jit(lambda b: {name: made.score_forecast({"signal": wave}, b) for name, wave in waves.items()})(one)
    found = {name: made.summarize(host(value)) for name, value in sums.items()}
    a, b = (wave - wave.mean(1, keepdims=True) for wave in (one["signal"], one["target"]))
    noise = ((a - b) ** 2).mean() / 2
    flat = 10 * np.log10(noise / ((b**2).mean() - noise))
    assert found["majority"]["gain_corrected_db"] == pytest.approx(flat, abs=1e-3) and "f1_macro" not in found["majority"]
    assert found["identity"]["gain_corrected_db"] == pytest.approx(0, abs=1e-3)


def test_served_files_need_no_label_and_may_do_without_statics(tmp_path):
    made = task()
    path = write(tmp_path / "a.parquet", drop=("half_a", "half_b", "age_years"))
    dataset = made.inputs(path, {"statics": "none"})
    one = dataset.gather(dataset.arrays, dataset.index)
    assert "target" not in one and one["no_statics"].all() and not one["statics_ok"].any()
    assert "no_statics" not in made.inputs(path, {}).gather(dataset.arrays, dataset.index)
    with pytest.raises(UserError, match="nothing to score"):
        made.labelled(path, {})


@pytest.mark.parametrize(("options", "says"), [
    ({"statics": "some"}, "--option statics=some"), ({"guidance": "2"}, "--option guidance: unknown"), ({"statik": "none"}, "did you mean"),
])  # fmt: skip
def test_options_that_a_run_does_not_have(options, says):
    with pytest.raises(UserError, match=says):
        task().inputs("x.parquet", options)


@pytest.mark.parametrize(("arrays", "says"), [
    ({}, "signal is missing"), ({"signal": np.zeros((2, 199))}, r"signal has shape \(2, 199\), this run expects \(2, 200\)"),
    ({"signal": np.zeros((2, 200)), "label": np.zeros(2)}, "takes no label"),
    ({"signal": np.full((2, 200), np.nan)}, "NaN or Inf in row 0"),
    ({"signal": np.zeros((2, 200)), "statics": np.zeros((2, 3))}, "statics has shape"),
])  # fmt: skip
def test_arrays_given_by_hand_are_checked(arrays, says):
    with pytest.raises(UserError, match=says):
        task().complete(arrays)


def test_missing_statics_by_hand_are_nan():
    found = task().complete({"signal": np.zeros((2, 200)), "statics": np.array([[1, 60, np.nan, 2], [np.nan] * 4])})
    assert found["statics_ok"].tolist() == [[True, True, False, True], [False] * 4] and np.all(found["statics"][1] == 0)
    assert not task().complete({"signal": np.zeros((2, 200))})["statics_ok"].any()


def test_zscored_runs_do_not_call_their_numbers_microvolts():
    made = task()
    made = made.with_statistics({"units": np.array("zscore")})
    columns = abr_serving.predicted_columns(made.statistics, forecast(3))
    assert "denoised_uncalibrated" in columns and "v_amplitude_uncalibrated" in columns and "v_amplitude_uv" not in columns


def test_the_scored_splits_know_their_patients_in_batches_of_one_shape():
    found = splits()
    train, valid, test = (s.gather(s.arrays, s.index[:4]) for s in (found.train, found.valid, found.test))
    assert "patient_member" not in train
    for batch, dataset, number in ((valid, found.valid, 0), (test, found.test, 1)):
        for name, codes in (("patient", batch["patient"]), ("ear", 3 * batch["patient"] + batch["ear"] + 1)):
            listed = dataset.arrays[f"scored_{name}s"][number]
            np.testing.assert_array_equal(batch[f"{name}_member"], codes[:, None] == listed)
            assert batch[f"{name}_member"].sum(1).tolist() == [1] * 4
    assert {name: value.shape for name, value in valid.items()} == {name: value.shape for name, value in test.items()}
    assert found.train.arrays is found.valid.arrays is found.test.arrays
