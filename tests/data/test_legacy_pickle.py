"""Legacy joblib files: what they hold arrives, what they must not hold is refused by name, and nothing of it runs."""

import gzip
import io
import pickle
import re
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from evoked_problem import config, script
from legacy_joblib import dumped, instance, packages

from jaxtrain.data import evoked, legacy_pickle
from jaxtrain.errors import UserError

convert_abr_pickle = script("convert_abr_pickle")
MEAN, SCALE = np.array([2.5, 44.0, 33.5, 2.0]), np.array([7.0, 30.0, 3.6, 10.0])
STATICS = np.array([0.0, 60.0, 33.1, 0.0])
NAMES = np.array(["ITIK", "NORMAL", "NOROPATI", "SNIK", "TOTAL"])


def legacy(patients: int = 8, *, zscore: bool = False, **more: Any) -> dict[str, Any]:
    """The dict of a legacy file, without its scaler and encoder: two records a patient, the second without a peak."""
    rng = np.random.default_rng(0)
    data = []
    for number in range(2 * patients):
        signal = rng.standard_normal(200).cumsum() * 0.01
        signal = (signal - signal.mean()) / signal.std() if zscore else signal
        data.append({
            "patient_id": number // 2, "static_params": ((STATICS - MEAN) / SCALE).astype(np.float32), "signal": signal.astype(np.float32),
            "v_peak": np.array([6.5, 0.2], np.float32), "v_peak_mask": np.array([True, number % 2 == 0]),
            "target": np.int64(1 if number < patients else 3),
        })  # fmt: skip
    return {"data": data, "metadata": OrderedDict(version="2", columns={"a", "b"}), **more}


def write(path: Path, content: dict[str, Any], *, alignment: int | None = 16, squeeze: Any = bytes) -> Path:
    with packages() as made:
        scaler = instance(made["StandardScaler"], mean_=MEAN, scale_=SCALE, with_mean=True, n_samples_seen_=np.int64(16))
        encoder = instance(made["LabelEncoder"], classes_=NAMES)
        content = {**content, "scaler": scaler, "label_encoder": encoder}
        path.write_bytes(squeeze(dumped(content, made["NumpyArrayWrapper"], alignment)))
    return path


@pytest.mark.parametrize(
    ("alignment", "squeeze"), [(16, bytes), (None, bytes), (16, zlib.compress), (16, gzip.compress)], ids=["new", "old", "zlib", "gzip"]
)
def test_a_legacy_file_becomes_records(tmp_path: Path, alignment: int | None, squeeze: Any) -> None:
    old, new = write(tmp_path / "old.pkl", legacy(), alignment=alignment, squeeze=squeeze), tmp_path / "new.parquet"
    assert convert_abr_pickle.main(["--input", str(old), "--output", str(new)]) == 0
    found = evoked.load(config(path=str(new), target="corrupt"))
    np.testing.assert_allclose(found.statics, np.tile(STATICS, (16, 1)), atol=1e-4)
    np.testing.assert_array_equal(found.signal, np.stack([entry["signal"] for entry in legacy()["data"]]))
    assert found.units == "uV" and found.label.tolist() == [0] * 8 + [2] * 8 and found.present.tolist() == [1, 0] * 8
    assert np.isnan(found.latency_ms[1::2]).all() and (found.latency_ms[::2] == 6.5).all() and len(found.patients) == 8


def test_scaled_signals_and_invented_thresholds_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = legacy(zscore=True)
    content["data"][0]["clinical_threshold"] = 35.2
    old, new = write(tmp_path / "old.pkl", content), tmp_path / "new.parquet"
    assert convert_abr_pickle.main(["--input", str(old), "--output", str(new)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0].startswith("clinical_threshold dropped") and said[1].endswith("units zscore")
    assert "clinical_threshold" not in pq.read_schema(new).names and pq.read_schema(new).metadata[b"units"] == b"zscore"


def test_arrays_of_all_orders_and_shapes_arrive(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    big = np.arange(3, dtype=">f4")
    content = {
        "c": rng.standard_normal((3, 4)), "f": np.asfortranarray(rng.standard_normal((3, 4))), "none": np.zeros((0, 2)),
        "point": np.array(2.5), "text": np.array(["ä", "bc"]), "truth": np.array([True]), "big": [big, big + 1],
        "scalar": np.float32(1.5), "bytes": b"\x00\xff",
    }  # fmt: skip
    with packages() as made:
        (tmp_path / "a.pkl").write_bytes(dumped(content, made["NumpyArrayWrapper"]))
    plain = tmp_path / "b.pkl"
    for protocol in (2, 4, 5):
        plain.write_bytes(pickle.dumps(content, protocol=protocol))
        for path in (tmp_path / "a.pkl", plain):
            found = legacy_pickle.load(path)
            for name, value in content.items():
                for got, expected in zip(*([x] if name != "big" else x for x in (found[name], value)), strict=True):
                    np.testing.assert_array_equal(got, expected)
                    assert np.asarray(got).dtype.newbyteorder("=") == np.asarray(expected).dtype.newbyteorder("=")


class Evil:
    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def evil(function: Any, *arguments: Any) -> bytes:
    return pickle.dumps({"data": [Evil(function, *arguments)]})


def attribute_of_a_known_class() -> bytes:
    """BUILD on a class instead of an instance: it would set attributes of ours."""
    return b"\x80\x04cjoblib.numpy_pickle\nNumpyArrayWrapper\nN}(V_raw\nK\x01u\x86b."


def persistent() -> bytes:
    class Refers(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return "elsewhere" if isinstance(obj, set) else None

    file = io.BytesIO()
    Refers(file).dump([{1}])
    return file.getvalue()


def raw_objects() -> bytes:
    with packages() as made:
        return dumped({"classes_": np.array(["A", None], object)}, made["NumpyArrayWrapper"])


FORBIDDEN = {
    "eval": (lambda: evil(eval, "1+1"), r"'builtins\.eval', which is forbidden, at byte \d+"),
    "system": (lambda: evil(__import__("os").system, "true"), r"'posix\.system', which is forbidden, at byte \d+"),
    "getattr": (lambda: evil(getattr, "", "join"), r"'builtins\.getattr'"),
    "numpy loader": (lambda: evil(np.load, "x.npy"), r"'numpy\.\S*load'"),
    "object array": (lambda: pickle.dumps(np.array([{}], object)), r"an array of objects, which is forbidden, at byte \d+"),
    "joblib objects": (raw_objects, r"an array of objects, which is forbidden, at byte \d+"),
    "structures": (lambda: pickle.dumps(np.zeros(2, "f4,O")), r"an array of structures, which is forbidden"),
    "other encoding": (lambda: b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", r"bytes in the encoding 'zip'"),
    "state of a class": (attribute_of_a_known_class, r"its pickle sets the state of '\w+', which is forbidden"),
    "called ndarray": (lambda: b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", r"not converted"),
    "persistent": (persistent, r"refers to ''elsewhere'' outside the file, which is forbidden"),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_forbidden_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, message = FORBIDDEN[name]
    path = tmp_path / "evil.pkl"
    path.write_bytes(content())
    with pytest.raises(UserError, match=message) as fault:
        legacy_pickle.load(path)
    text = str(fault.value)
    assert text.startswith(str(path)) and text.endswith("not converted") and "\n" not in text


def test_nothing_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "evil.pkl").write_bytes(evil(Path.touch, mark))
    with pytest.raises(UserError, match="pathlib"):
        legacy_pickle.load(tmp_path / "evil.pkl")
    assert not mark.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    raw = write(tmp_path / "old.pkl", legacy()).read_bytes()
    (tmp_path / "cut.pkl").write_bytes(raw[: int(share * len(raw))])
    assert convert_abr_pickle.main(["--input", str(tmp_path / "cut.pkl"), "--output", str(tmp_path / "new.parquet")]) == 2
    assert not (tmp_path / "new.parquet").exists()
    with pytest.raises(UserError, match=r"truncated.*not converted$"):
        legacy_pickle.load(tmp_path / "cut.pkl")


def test_the_place_is_where_it_stands(tmp_path: Path) -> None:
    raw = evil(eval, "1")
    (tmp_path / "evil.pkl").write_bytes(raw)
    with pytest.raises(UserError) as fault:
        legacy_pickle.load(tmp_path / "evil.pkl")
    found = re.search(r"at byte (\d+)", str(fault.value))
    assert found and raw.index(b"eval") < int(found[1]) <= raw.index(b"eval") + 8


RECORD = {
    "no data": ({"data": []}, r"no dict with a list 'data'"),
    "key missing": ({"data": [{"signal": np.zeros(200)}]}, r"record 0: patient_id, static_params, v_peak"),
    "short signal": ({"data": [{**legacy()["data"][0], "signal": np.zeros(100)}]}, r"record 0, signal: 100 values, expected 200"),
    "text": ({"data": [{**legacy()["data"][0], "v_peak": ["a", "b"]}]}, r"record 0, v_peak: holds what is no number"),
    "no patient": ({"data": [{**legacy()["data"][0], "patient_id": float("nan")}]}, r"record 0, patient_id: nan is no name \(so in 1 rec"),
    "no class": ({"data": [{**legacy()["data"][0], "target": None}]}, r"record 0, target: None is no class of the encoder"),
    "half a class": ({"data": [{**legacy()["data"][0], "target": 1.5}]}, r"record 0, target: 1\.5 is no class of the encoder"),
    "class": ({"data": [{**legacy()["data"][0], "target": 7}]}, r"record 0, target: 7 is no class of the encoder \(ITIK"),
}


@pytest.mark.parametrize("name", RECORD)
def test_a_strange_record_is_named(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = RECORD[name]
    path = write(tmp_path / "old.pkl", {**legacy(), **content})
    assert convert_abr_pickle.main(["--input", str(path), "--output", str(tmp_path / "new.parquet")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_legacy_file_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "old.pkl", legacy())
    before = Path(path).read_bytes()
    assert convert_abr_pickle.main(["--input", str(path), "--output", str(path)]) == 2
    assert "is the input file" in capsys.readouterr().err and Path(path).read_bytes() == before


def test_a_file_without_scaler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scaler holds no mean_ and scale_ of 4 values"):
        convert_abr_pickle.columns({**legacy(), "scaler": None, "label_encoder": None}, "old.pkl")
