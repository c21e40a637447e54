"""Batches, splits by patient, labels that count, and statistics of the training records alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from evoked_problem import changed, columns, config, write_parquet

from jaxtrain.data import evoked
from jaxtrain.data.dataset import Dataset, Splits
from jaxtrain.data.evoked_config import DataConfig
from jaxtrain.data.evoked_labels import derived_thresholds
from jaxtrain.data.evoked_splits import split_records
from jaxtrain.data.evoked_statistics import transformed
from jaxtrain.data.evoked_synthetic import clinic

SMALL = config(patients=60)


@pytest.fixture(scope="module")
def small() -> Splits:
    return evoked.splits(SMALL)


def whole(dataset: Dataset) -> dict[str, np.ndarray]:
    return dataset.gather(dataset.arrays, dataset.index)


def test_a_batch_holds_what_the_record_holds(small: Splits) -> None:
    found = clinic(60, 42)[0]
    batch = whole(small.test)
    row = batch["row"]
    assert found.clean is not None and row.dtype == np.int32 and small.test.index.shape == (len(row), 1)
    np.testing.assert_array_equal(batch["signal"], found.signal[row])
    np.testing.assert_array_equal(batch["target"], found.clean[row])
    np.testing.assert_array_equal(batch["statics_ok"], np.isfinite(found.statics[row]))
    np.testing.assert_array_equal(batch["statics"], np.nan_to_num(found.statics[row]))
    np.testing.assert_array_equal(batch["label"], found.label[row])
    early = ~(found.latency_ms[row] > 9.75)
    np.testing.assert_array_equal(batch["present_ok"], early)
    np.testing.assert_array_equal(batch["peak_ok"], early & (found.present[row] == 1))
    np.testing.assert_array_equal(batch["latency_ms"], np.where(batch["peak_ok"], found.latency_ms[row], 0))
    np.testing.assert_array_equal(batch["threshold_db"], np.nan_to_num(found.threshold_db[row]))
    np.testing.assert_array_equal(batch["threshold_ok"], np.isfinite(found.threshold_db[row]))
    assert batch["target_ok"].all() and not batch["paired"].any()
    floats = [name for name, array in batch.items() if array.dtype.kind == "f"]
    assert len(floats) == 6 and all(batch[name].dtype == np.float32 for name in floats)
    assert all(a.flags.c_contiguous and not a.flags.writeable for a in small.train.arrays.values())


@pytest.mark.parametrize("target", ["clean", "other_half", "corrupt"])
def test_gather_is_the_same_inside_a_step(target: str) -> None:
    data = evoked.splits(replace(SMALL, patients=30, target=target)).valid
    rows = data.index[::7]
    on_host = data.gather(data.arrays, rows)
    on_device = data.gather({name: jnp.asarray(array) for name, array in data.arrays.items()}, jnp.asarray(rows))
    assert set(on_host) == set(on_device)
    for name, array in on_host.items():
        np.testing.assert_array_equal(array, np.asarray(on_device[name]), err_msg=name)
        assert array.dtype == on_device[name].dtype, name


def test_halves_go_both_ways_and_hide_their_quality() -> None:
    found = clinic(60, 42)[0]
    made = evoked.splits(replace(SMALL, target="other_half"))
    batch, index = whole(made.valid), made.valid.index
    assert found.half_a is not None and found.half_b is not None and np.bincount(index[:, 1]).tolist() == [len(index) // 2] * 2
    a, b = found.half_a[index[:, 0]], found.half_b[index[:, 0]]
    back = index[:, 1:] == 1
    np.testing.assert_array_equal(batch["signal"], np.where(back, b, a))
    np.testing.assert_array_equal(batch["target"], np.where(back, a, b))
    assert batch["paired"].all() and not batch["statics_ok"][:, 3].any() and batch["statics_ok"][:, 1].all()


def test_a_corrupted_signal_is_its_own_target() -> None:
    batch = whole(evoked.splits(replace(SMALL, target="corrupt")).train)
    np.testing.assert_array_equal(batch["signal"], batch["target"])


def test_no_patient_is_in_two_splits(small: Splits) -> None:
    patients = [set(whole(d)["patient"].tolist()) for d in (small.train, small.valid, small.test)]
    assert not (patients[0] & patients[1] or patients[0] & patients[2] or patients[1] & patients[2])
    assert sum(len(d) for d in (small.train, small.valid, small.test)) == len(clinic(60, 42)[0])
    classes = [np.unique(whole(d)["label"]).tolist() for d in (small.train, small.valid, small.test)]
    assert classes == [[0, 1, 2, 3, 4]] * 3


def patients_by_split(config_: DataConfig) -> list[np.ndarray]:
    found = clinic(config_.patients, 42)[0]
    label = found.label[np.unique(found.patient, return_index=True)[1]]
    return [np.bincount(label[np.unique(found.patient[rows])], minlength=5) for rows in split_records(config_, found)]


def test_every_class_is_cut_by_the_fractions() -> None:
    """At least 2 of a class of 6 or more, else 1."""
    parts = patients_by_split(config(patients=400))
    total = sum(parts)
    for part, fraction in ((parts[2], 0.15), (parts[1], 0.20)):
        wanted = [max(2 if count >= 6 else 1, round(fraction * count)) for count in total]
        assert part.tolist() == wanted
    assert (parts[0] > 0).all() and total.tolist()[1] == 8


def test_the_test_patients_do_not_depend_on_the_share_of_valid() -> None:
    found = clinic(100, 42)[0]
    parts = [split_records(config(patients=100, valid_fraction=share), found) for share in (0.1, 0.2)]
    np.testing.assert_array_equal(parts[0][2], parts[1][2])
    assert len(parts[0][1]) < len(parts[1][1])
    other = split_records(config(patients=100, split_seed=1), found)
    assert set(other[2]) != set(parts[0][2])


def test_named_patients_are_held_out(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", columns())
    found = evoked.splits(config(path=path, groups={"test": ("p1", "p6")}))
    assert sorted(set(whole(found.test)["patient"].tolist())) == [1, 6]
    assert len(found.train) + len(found.valid) == 18 and len(found.valid) == 6
    named = evoked.splits(config(path=path, groups={"test": ("p1",), "valid": ("p2", "p3")}))
    assert sorted(set(whole(named.valid)["patient"].tolist())) == [2, 3] and len(named.train) == 15


def test_late_peaks_are_masked_or_kept(small: Splits) -> None:
    kept = evoked.splits(replace(SMALL, late_peak="keep"))
    late = np.concatenate([whole(d)["latency_ms"] > 9.75 for d in (kept.train, kept.valid, kept.test)])
    assert late.sum() > 10
    note = f"{late.sum()} waves V later than 9.75 ms"
    assert any(line.startswith(note) for line in small.notes) and not any("later than" in line for line in kept.notes)
    assert whole(kept.train)["present_ok"].all() and not whole(small.train)["present_ok"].all()


def test_derived_thresholds_need_silence_below_and_peaks_above() -> None:
    found = clinic(30, 1)[0].take(np.arange(12))
    level = np.array([20, 40, 60, 60, 30, 50, 70, 30, 50, 20, 40, 60], np.float32)
    present = np.array([0, 1, 0, 1, 1, 1, 1, 0, 0, 1, 0, 1], np.int8)
    statics = found.statics.copy()
    statics[:, 1] = level
    ear = np.repeat([0, 1, 0, 1], [4, 3, 2, 3]).astype(np.int32)
    patient = np.repeat([0, 0, 1, 1], [4, 3, 2, 3]).astype(np.int32)
    made = derived_thresholds(replace(found, statics=statics, present=present, ear=ear, patient=patient))
    # Silent at 20 and heard from 40 on; never silent; never heard; heard below a silent level.
    np.testing.assert_array_equal(made, [40] * 4 + [np.nan] * 8)


@pytest.mark.parametrize(("kind", "share"), [("column", 1.0), ("none", 0.0)])
def test_thresholds_come_from_where_they_are_asked(tmp_path: Path, kind: str, share: float) -> None:
    path = write_parquet(tmp_path / "a.parquet", columns())
    found = evoked.splits(config(path=path, threshold=kind))
    assert found.statistics["valid_share_threshold"] == share


def test_a_derived_threshold_reaches_the_batch(tmp_path: Path) -> None:
    """Levels 20, 40, 60 with a wave V at the upper two."""
    found = evoked.splits(config(path=write_parquet(tmp_path / "a.parquet", columns()), threshold="derive"))
    assert (whole(found.train)["threshold_db"] == 40).all() and whole(found.train)["threshold_ok"].all()


def test_statistics_are_those_of_the_training_records(small: Splits) -> None:
    s, batch = small.statistics, whole(small.train)
    ok = batch["statics_ok"]
    values = transformed(batch["statics"])
    for i in range(4):
        np.testing.assert_allclose(s["statics_mean"][i], values[ok[:, i], i].mean(), rtol=1e-5)
        np.testing.assert_allclose(s["statics_std"][i], values[ok[:, i], i].std(), rtol=1e-4)
    age, level, rate, fmp = batch["statics"][3]
    np.testing.assert_allclose(values[3], [np.log(1 + age), level, rate, np.log(1 + min(fmp, 50))], rtol=1e-6)
    assert transformed(np.array([[0, 0, 0, 1515.0]], np.float32))[0, 3] == np.log(51)
    np.testing.assert_allclose(s["sigma_ref"], np.sqrt((batch["signal"].std(1) ** 2).mean()), rtol=1e-5)
    np.testing.assert_allclose(s["class_share"], np.bincount(batch["label"], minlength=5) / len(small.train), rtol=1e-6)
    for name, column, mask in (("latency", "latency_ms", "peak_ok"), ("amplitude", "amplitude_uv", "peak_ok"),
                               ("threshold", "threshold_db", "threshold_ok")):  # fmt: skip
        some = batch[column][batch[mask]]
        np.testing.assert_allclose([s[f"{name}_mean"], s[f"{name}_std"]], [some.mean(), some.std()], rtol=1e-4)
    for name, mask in (("present", "present_ok"), ("peak", "peak_ok"), ("threshold", "threshold_ok")):
        np.testing.assert_allclose(s[f"valid_share_{name}"], batch[mask].mean(), rtol=1e-6)
    np.testing.assert_allclose(s["sigma_data"], batch["target"].std(), rtol=1e-5)
    np.testing.assert_allclose(s["clip"], np.quantile(np.abs(batch["target"]), 0.9999) / s["sigma_data"], rtol=1e-4)
    assert s["class_names"].tolist() == ["NORMAL", "NOROPATI", "SNIK", "TOTAL", "ITIK"] and str(s["units"]) == "uV"
    assert {name for name, array in s.items() if array.dtype != np.float32} == {"class_names", "units"}


def test_components_are_principal(small: Splits) -> None:
    s, target = small.statistics, whole(small.train)["target"]
    np.testing.assert_allclose(s["pca"] @ s["pca"].T, np.eye(20), atol=1e-5)
    scores = (target - s["pca_mean"]) @ s["pca"].T
    assert (np.diff(scores.var(0)) < 0).all() and scores.var(0).sum() > 0.98 * target.var(0).sum()
    np.testing.assert_allclose(s["train_cov"], np.cov(target.T, ddof=0), atol=1e-6)


def test_the_sampler_weighs_classes_alike() -> None:
    found = evoked.splits(replace(SMALL, balanced_sampler=True))
    weights, label = found.train.weights, whole(found.train)["label"]
    assert weights is not None and found.valid.weights is None
    np.testing.assert_allclose([weights[label == c].sum() for c in range(5)], np.ones(5))


def predicted(path: str, **options: Any) -> Dataset:
    return evoked.inputs(SMALL, {"units": np.array("uV")}, path, **options)


def test_a_request_keeps_its_order_and_names(tmp_path: Path) -> None:
    found = columns()
    asked = {name: found[name] for name in ("signal", "patient_id", "ear", "record", "intensity_db")}
    made = predicted(write_parquet(tmp_path / "a.parquet", asked))
    batch = whole(made)
    np.testing.assert_array_equal(batch["signal"], found["signal"])
    assert "target" not in batch and not batch["target_ok"].any()
    assert batch["statics_ok"].tolist() == [[False, True, False, False]] * 24
    assert made.arrays["patient_id"].tolist() == found["patient_id"] and made.arrays["record_name"].tolist() == found["record"]
    assert set(made.arrays["ear_name"].tolist()) == {"L"} and made.arrays["file_row"].tolist() == list(range(24))
    hidden = whole(predicted(write_parquet(tmp_path / "a.parquet", asked), statics="none"))
    assert not hidden["statics_ok"].any() and not hidden["statics"].any()


def test_conditions_need_no_signal(tmp_path: Path) -> None:
    found = columns()
    asked = {"class": [None, *found["class"][1:]], "intensity_db": found["intensity_db"]}
    made = predicted(write_parquet(tmp_path / "a.parquet", asked), waveforms=False)
    batch = whole(made)
    assert "signal" not in batch and batch["label"].tolist() == [-1] + [0] * 11 + [2] * 12 and len(made) == 24


def test_a_labelled_file_is_scored_against_what_it_has(tmp_path: Path) -> None:
    found = columns()
    clean = whole(predicted(write_parquet(tmp_path / "a.parquet", found), labelled=True))
    np.testing.assert_array_equal(clean["target"], found["clean"])
    assert clean["statics_ok"][:, 3].all()
    halves = predicted(write_parquet(tmp_path / "b.parquet", {k: v for k, v in found.items() if k != "clean"}), labelled=True)
    batch = whole(halves)
    assert len(halves) == 48 and batch["paired"].all() and not batch["statics_ok"][:, 3].any()
    np.testing.assert_array_equal(batch["target"][0], found["half_b"][0])
    bare = {k: v for k, v in found.items() if k not in ("clean", "half_a")}
    labels = whole(predicted(write_parquet(tmp_path / "c.parquet", bare), labelled=True))
    assert not labels["target_ok"].any() and labels["present_ok"].all()


def test_one_flat_record_of_a_request_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", changed(columns(), "signal", 3, 0.1))
    with pytest.raises(Exception, match="1 flat records .*rows 3"):
        predicted(path)
