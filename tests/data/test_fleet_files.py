"""Every kind of fleet file against the rows it was written from."""

import gzip
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fleet_problem import START, config, iso, table, write

from jaxtrain.data.fleet_files import read
from jaxtrain.data.fleet_grid import Fleet

ROLES = {"observed_categorical": ("status",), "static_categorical": ("profile",), "static_real": ("cores",), "known_real": ("plan",)}


def rich():
    return table(
        status=lambda name, step: "" if step == 5 else "hot" if step % 2 else "idle",
        profile=lambda name, step: f"class {name}",
        cores=lambda name, step: 4 if name == "a" else 8,
        plan=lambda name, step: step % 3,
        region=lambda name, step: 7,
    )


def assert_same(a: Fleet, b: Fleet) -> None:
    for name in ("groups", "start", "step_seconds", "vocabularies"):
        assert getattr(a, name) == getattr(b, name), name
    for name in ("row0", "step0", "real", "seen", "cat", "static_real", "static_cat", "log1p"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_csv_holds_what_was_written(tmp_path):
    rows = rich()
    rows["cpu"][3] = ""
    fleet = read(config(write(tmp_path / "f.csv", rows), fill_steps=0, **ROLES))
    assert fleet.groups == ("a", "b") and fleet.start == START and fleet.step_seconds == 300 and fleet.steps == 12
    assert fleet.row0.tolist() == [0, 12, 19] and fleet.step0.tolist() == [0, 3]
    expected = np.array([np.nan if v == "" else v for v in rows["cpu"]], np.float32)
    np.testing.assert_array_equal(fleet.real[:, 0], expected)
    np.testing.assert_array_equal(fleet.real[:, 1], np.array(rows["plan"], np.float32))
    np.testing.assert_array_equal(fleet.seen[:, 0], ~np.isnan(expected))
    assert fleet.vocabularies == {"status": ("hot", "idle"), "profile": ("class a", "class b")}
    assert fleet.cat[:7, 0].tolist() == [2, 1, 2, 1, 2, 0, 2]
    assert fleet.static_real.tolist() == [[4], [8]] and fleet.static_cat.tolist() == [[1], [2]]
    assert fleet.real.dtype == np.float32 and fleet.cat.dtype == np.int16 and fleet.seen.dtype == np.uint8
    assert fleet.notes == ("columns without a role are not read: region",)


@pytest.mark.parametrize("name", ["f.parquet", "f.csv.gz", "f.jsonl", "f.json", "F.CSV"])
def test_all_kinds_agree_with_csv_in_any_order_of_rows(tmp_path, name):
    rows = rich()
    expected = read(config(write(tmp_path / "f.csv", rows), **ROLES))
    order = np.random.default_rng(0).permutation(len(rows["cpu"]))
    shuffled = {column: [values[i] for i in order] for column, values in rows.items()}
    path = write(tmp_path / name.lower(), shuffled)
    if name != name.lower():
        path = path.rename(tmp_path / "F2.CSV")
    assert_same(read(config(path, **ROLES)), expected)


@pytest.mark.parametrize("key", ["records", "training_samples"])
def test_json_object_with_a_list(tmp_path, key):
    expected = read(config(write(tmp_path / "f.json", rich()), **ROLES))
    path = tmp_path / "g.json"
    path.write_text(json.dumps({"version": 1, key: json.loads((tmp_path / "f.json").read_text())}))
    assert_same(read(config(path, **ROLES)), expected)


def test_folder_hive_folder_and_list(tmp_path):
    rows = rich()
    expected = read(config(write(tmp_path / "f.parquet", rows), **ROLES))
    for name in "ab":
        mine = [i for i, server in enumerate(rows["server"]) if server == name]
        part = {column: [values[i] for i in mine] for column, values in rows.items()}
        write(tmp_path / "flat" / f"{name}.parquet", part)
        write(tmp_path / "hive" / f"server={quote(name)}" / "0.parquet", {c: v for c, v in part.items() if c != "server"})
    write(tmp_path / "hive" / "_delta" / "x.parquet", {"junk": [1]})
    assert_same(read(config(tmp_path / "flat", **ROLES)), expected)
    assert_same(read(config(tmp_path / "hive", **ROLES)), expected)
    both = (str(tmp_path / "flat" / "b.parquet"), str(tmp_path / "flat" / "a.parquet"))
    assert_same(read(config(both, **ROLES)), expected)


def test_hive_values_are_unquoted(tmp_path):
    rows = {c: v for c, v in table({"a": range(6)}).items() if c != "server"}
    write(tmp_path / "h" / "server=a%2Fb%20c" / "0.parquet", rows)
    assert read(config(tmp_path / "h")).groups == ("a/b c",)


def test_groups_of_several_columns_of_integers_and_of_none(tmp_path):
    rows = table(site=lambda name, step: 10 if name == "a" else 9)
    path = write(tmp_path / "f.csv", rows)
    both = read(config(path, groups=("site", "server")))
    assert both.groups == ("10/a", "9/b") and both.row0.tolist() == [0, 12, 19]
    assert read(config(path, groups=("site",))).groups == ("10", "9")
    rows["site"] = ["s" if name == "a" else "s 2" for name in rows["server"]]
    both = read(config(write(tmp_path / "f.csv", rows), groups=("site", "server")))
    assert both.groups == ("s 2/b", "s/a") and both.row0.tolist() == [0, 7, 19]
    one = read(config(write(tmp_path / "g.csv", table({"a": range(6)})), groups=()))
    assert len(one.groups) == 1 and one.row0.tolist() == [0, 6]


def test_category_columns(tmp_path):
    rows = rich()
    expected = read(config(write(tmp_path / "f.csv", rows), **ROLES))
    coded = dict(rows) | {name: pa.array([v or None for v in rows[name]]).dictionary_encode() for name in ("server", "status", "profile")}
    pq.write_table(pa.table(coded), tmp_path / "g.parquet")
    assert_same(read(config(tmp_path / "g.parquet", **ROLES)), expected)


def test_integer_and_float_categories(tmp_path):
    rows = table({"a": range(5)}, status=lambda name, step: [3, None, 12, 3, 3][step])
    whole = read(config(write(tmp_path / "f.parquet", rows), observed_categorical=("status",), fill_steps=0))
    rows["status"] = [3.0, float("nan"), 12.0, 3.0, 3.0]
    assert whole.vocabularies == {"status": ("12", "3")} and whole.cat[:, 0].tolist() == [2, 0, 1, 2, 2]
    assert_same(read(config(write(tmp_path / "g.parquet", rows), observed_categorical=("status",), fill_steps=0)), whole)


STAMPS = [iso(step, "") for step in range(12)]
ZONED = [(datetime.fromisoformat(s) + timedelta(hours=2)).replace(tzinfo=timezone(timedelta(hours=2))) for s in STAMPS]


@pytest.mark.parametrize("stamps,changes,naive", [
    (STAMPS, {}, True),
    ([s.replace("T", " ") + "+00:00" for s in STAMPS], {}, False),
    ([s.isoformat() for s in ZONED], {}, False),
    (pa.array(ZONED, pa.timestamp("ns", "Europe/Athens")), {}, False),
    (pa.array([s.replace(tzinfo=None) - timedelta(hours=2) for s in ZONED], pa.timestamp("ms")), {}, True),
    ([START + 300 * step for step in range(12)], {}, False),
    ([1000 * (START + 300 * step) for step in range(12)], {"time_unit": "ms"}, False),
    ([str(START + 300 * step) for step in range(12)], {}, False),
    ([float(START + 300 * step) for step in range(12)], {}, False),
    ([iso(step, "Z" if step % 2 else "+00:00") for step in range(11)] + ["20250106T005500"], {}, True),
    ([f"{iso(step, '')}.250Z" for step in range(12)], {}, False),
])  # fmt: skip
def test_stamps_of_every_form(tmp_path, stamps, changes, naive):
    rows = {**table({"a": range(12)}), "timestamp": stamps}
    fleet = read(config(write(tmp_path / "f.parquet", rows), **changes))
    assert fleet.start == START and fleet.row0.tolist() == [0, 12]
    assert any("UTC" in note for note in fleet.notes) == naive


def test_stamps_are_snapped_and_may_share_an_offset(tmp_path):
    rows = table({"a": range(6)})
    rows["timestamp"] = [iso(step + (0.08 if step % 2 else -0.08)) for step in range(6)]
    assert read(config(write(tmp_path / "f.csv", rows))).start == START
    rows["timestamp"] = [iso(step + 0.5) for step in range(6)]
    fleet = read(config(write(tmp_path / "f.csv", rows)))
    assert fleet.start == START + 150 and fleet.row0.tolist() == [0, 6]


def test_a_byte_order_mark_and_spaces(tmp_path):
    (tmp_path / "f.csv").write_text(f"\ufefftimestamp,server,cpu\n{iso(0)}, a ,1.5\n{iso(1)},a, NaN\n{iso(2)},a,null\n{iso(3)},a, 2\n")
    fleet = read(config(tmp_path / "f.csv", fill_steps=0))
    assert fleet.groups == ("a",) and fleet.seen[:, 0].tolist() == [1, 0, 0, 1]


def test_rows_past_the_last_target_stay(tmp_path):
    rows = table({"a": range(9)}, plan=lambda name, step: step)
    rows["cpu"][5:] = [""] * 4
    fleet = read(config(write(tmp_path / "f.csv", rows), known_real=("plan",)))
    assert fleet.row0.tolist() == [0, 9] and fleet.seen[:, 0].tolist() == [1] * 5 + [0] * 4
    assert fleet.real[:, 1].tolist() == list(range(9))


def test_exact_copies_are_dropped_and_counted(tmp_path):
    rows = rich()
    expected = read(config(write(tmp_path / "f.csv", rows), **ROLES))
    doubled = {c: v + v[:2] for c, v in rows.items()}
    fleet = read(config(write(tmp_path / "g.csv", doubled), **ROLES))
    assert_same(fleet, expected)
    assert any("2 rows that repeat" in note for note in fleet.notes)


def test_compressed_text_is_really_read(tmp_path):
    path = write(tmp_path / "f.csv.gz", table())
    text = gzip.decompress(Path(path).read_bytes()).decode()
    Path(path).write_bytes(gzip.compress(text.replace(",a,", ",z,").encode()))
    assert read(config(path)).groups == ("b", "z")


@pytest.mark.slow
def test_bitbrains(shared):
    """154 machines, 5-minute steps; on 15-minute means the naive scores of 129 origins are those published with the data."""
    names = ("cpu_percent", "memory_percent", "disk_kb_s", "network_kb_s")
    path = shared / "data" / "servers" / "bitbrains_2013_08.parquet"
    settings = {"targets": names, "static_real": ("cores", "memory_capacity_gb"), "static_change": "train"}
    fleet = read(config(path, fill_steps=12, **settings))
    assert len(fleet.groups) == 154 and fleet.steps == 8640 and fleet.start == 1_375_308_000
    assert (fleet.seen == 0).all(axis=1).sum() == 154 * 8640 - 1_327_966 and not np.isnan(fleet.real).any()
    assert any("70 of 154" in note for note in fleet.notes)
    assert naive_scores(fleet, 8640 - 1632, 96, 12, 2016) == ([0.363, 0.441, 0.991, 1.097], [0.734, 0.589, 0.697, 1.050])
    fleet = read(config(path, fill_steps=4, step_seconds=900, **settings))
    assert naive_scores(fleet, 2880 - 544, 32, 4, 672) == ([0.362, 0.396, 0.937, 1.036], [0.726, 0.547, 0.626, 0.984])


def naive_scores(fleet: Fleet, first: int, horizon: int, stride: int, week: int) -> tuple[list[float], list[float]]:
    """|error| over |y| of "same as now" and "same as a week ago", per target; all groups have all steps."""
    real, seen = (a.reshape(len(fleet.groups), fleet.steps, -1) for a in (fleet.real.astype(float), fleet.seen))
    errors, size = np.zeros((2, real.shape[2])), np.zeros(real.shape[2])
    for o in range(first, fleet.steps - horizon + 1, stride):
        y, mask = real[:, o : o + horizon], seen[:, o : o + horizon]
        size += (np.abs(y) * mask).sum((0, 1))
        for error, forecast in zip(errors, (real[:, o - 1 : o], real[:, o - week : o - week + horizon]), strict=True):
            error += (np.abs(y - forecast) * mask).sum((0, 1))
    last, weekly = (errors / size).round(3).tolist()
    return last, weekly
