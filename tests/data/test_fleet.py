"""Windows of a fleet, against plain loops; what a batch holds, and what the splits refuse."""

import pickle
import timeit

import jax
import numpy as np
import pytest
from fleet_problem import config, table, write
from fleet_shipped import QUANTILES, TINY, shipped

from jaxtrain.data import fleet, fleet_embedded, fleet_prepared
from jaxtrain.errors import UserError

K, TAU = 20, 9
CHANGES = {"context_steps": K, "horizon_steps": TAU, "min_history_steps": 5, "season_steps": (6, 100), "synthetic": TINY}


@pytest.fixture(scope="module")
def embedded():
    return fleet.splits(shipped(**CHANGES), QUANTILES)


def some_rows(data, count=6):
    """Index rows with a full history, and those with the shortest ones."""
    short = data.index[np.argsort(data.index[:, 2], kind="stable")[:3]]
    return np.concatenate([np.random.default_rng(0).choice(data.index, count), short])


def test_gather_equals_a_plain_loop(embedded):
    data, a = embedded.test, embedded.test.arrays
    rows = np.concatenate([some_rows(data), some_rows(embedded.train)])
    batch = data.gather(a, rows)
    assert {name: (array.shape[1:], array.dtype.name) for name, array in batch.items()} == {
        "past": ((K, 5), "float32"), "past_cat": ((K, 1), "int32"), "past_mask": ((K,), "bool"), "present": ((K,), "float32"),
        "known": ((K + TAU, 1), "float32"), "calendar": ((K + TAU, 3, 2), "float32"), "static_real": ((1,), "float32"),
        "static_cat": ((1,), "int32"), "group": ((), "int32"), "level": ((8,), "float32"), "center": ((4,), "float32"),
        "scale": ((4,), "float32"), "cap": ((4,), "float32"), "target": ((TAU, 4), "float32"), "target_mask": ((TAU, 4), "float32"),
        "season": ((TAU, 4, 2), "float32"), "train_quantiles": ((4, 7), "float32"), "when": ((4,), "int32"),
    }  # fmt: skip
    unseen = 0
    for b, (row, group, history, block) in enumerate(rows):
        first, step0 = int(a["row0"][group]), int(a["step0"][group])
        origin = step0 + row - first
        assert batch["when"][b].tolist() == [group, origin, history, block] and batch["group"][b] == 1 + group
        for name in ("static_real", "static_cat", "level", "center", "scale", "cap", "train_quantiles"):
            np.testing.assert_array_equal(batch[name][b], a[name][group])
        for j in range(-K, TAU):
            inside = row + j >= first
            if j < 0:
                assert batch["past_mask"][b, K + j] == inside
            if not inside:
                assert batch["present"][b, K + j] == 0
                continue
            at = row + j
            np.testing.assert_array_equal(batch["known"][b, K + j], a["real"][at, 5:])
            np.testing.assert_array_equal(batch["calendar"][b, K + j], a["calendar"][origin + j])
            if j < 0:
                np.testing.assert_array_equal(batch["past"][b, K + j], a["real"][at, :5])
                assert batch["past_cat"][b, K + j, 0] == a["cat"][at, 0] and batch["present"][b, K + j] == a["seen"][at].mean()
                continue
            for r in range(4):
                seen = a["seen"][at, r]
                unseen += 1 - int(seen)
                assert batch["target_mask"][b, j, r] == seen and batch["target"][b, j, r] == (a["real"][at, r] if seen else 0)
                for i, season in enumerate((6, 100)):
                    back = at - season
                    while back >= row:
                        back -= season
                    np.testing.assert_array_equal(batch["season"][b, j, r, i], a["real"][back, r] if back >= first else np.nan)
    assert np.isnan(batch["season"]).any() and not batch["past_mask"].all() and unseen == (batch["target_mask"] == 0).sum()


def test_training_windows_hold_no_seasons(embedded):
    batch = embedded.train.gather(embedded.train.arrays, embedded.train.index[:2])
    assert not {"season", "train_quantiles"} & batch.keys()
    plain = shipped(**CHANGES, known_real=(), observed_categorical=(), static_real=(), static_categorical=(), calendar=(), transform={})
    data = fleet.splits(plain, QUANTILES).train
    assert not {"known", "known_cat", "past_cat", "static_real", "static_cat", "calendar"} & data.gather(data.arrays, data.index[:2]).keys()


@pytest.mark.parametrize("split", ["train", "test"])
def test_gather_is_the_same_inside_jit(embedded, split):
    data = embedded.named()[split]
    rows = some_rows(data)
    inside = jax.jit(data.gather)(dict(data.arrays), rows)
    for name, value in data.gather(data.arrays, rows).items():
        assert inside[name].dtype == value.dtype, name
        np.testing.assert_array_equal(np.asarray(inside[name]), value, err_msg=name)


def test_gather_is_picklable_and_quick():
    data = fleet.splits(shipped(synthetic=TINY), QUANTILES).train
    rows = np.random.default_rng(0).choice(data.index, 64)
    gather = pickle.loads(pickle.dumps(data.gather))
    np.testing.assert_array_equal(gather(data.arrays, rows)["target"], data.gather(data.arrays, rows)["target"])
    assert min(timeit.repeat(lambda: data.gather(data.arrays, rows), number=2, repeat=10)) / 2 < 5e-3


def test_the_embedded_fleet_is_built_once():
    assert fleet_embedded.fleet(shipped(synthetic=TINY)) is fleet_embedded.fleet(shipped(synthetic=TINY))
    assert fleet_embedded.fleet(shipped(synthetic=TINY)) is not fleet_embedded.fleet(shipped(synthetic=TINY, fill_steps=3))


def spans(length=60, late=40):
    return {"a": range(length), "b": range(length), "c": range(late, length)}


def test_a_group_without_training_rows_is_known_by_its_own_history(tmp_path):
    path = write(tmp_path / "fleet.csv", table(spans()))
    found = fleet.splits(config(path, min_history_steps=2, normalise={"cpu": "group"}), (0.5,))
    a, s = found.valid.arrays, found.statistics
    assert s["group_names"].tolist() == ["a", "b"] and a["group"].tolist() == [1, 2, 0]
    index = np.concatenate([found.valid.index, found.test.index])
    first = index[index[:, 1] == 2][:, 0].min()
    own = a["real"][a["row0"][2] : first, 0].astype(np.float64)
    weight = len(own) / (len(own) + 96)
    assert 0 < len(own) < 20
    np.testing.assert_allclose(a["center"][2], weight * own.mean() + (1 - weight) * s["global_center"], rtol=1e-5)
    np.testing.assert_allclose(a["scale"][2], weight * own.std() + (1 - weight) * s["global_scale"], rtol=1e-5)
    level = [(own.mean() - s["global_center"][0]) / s["global_scale"][0], np.log(own.std() / s["global_scale"][0])]
    np.testing.assert_allclose(a["level"][2], weight * np.array(level), rtol=1e-4)
    np.testing.assert_array_equal(a["cap"][2], s["global_cap"])
    np.testing.assert_array_equal(a["train_quantiles"][2], s["global_quantiles"])
    np.testing.assert_array_equal(a["center"][:2], s["center"])


def test_a_category_that_training_lacks_is_unknown(tmp_path):
    def kind(name, step):
        return "late" if step >= 40 else "odd" if step % 2 else "even"

    path = write(tmp_path / "fleet.csv", table(spans(), kind=kind, room=lambda name, step: {"a": "x", "b": "y", "c": "z"}[name]))
    found = fleet.splits(config(path, min_history_steps=2, known_categorical=("kind",), static_categorical=("room",)), (0.5,))
    a, s = found.train.arrays, found.statistics
    assert s["vocabulary/kind"].tolist() == ["even", "odd"] and s["vocabulary/room"].tolist() == ["x", "y"]
    assert a["cat"][:40, 0].tolist() == [1, 2] * 20 and not a["cat"][40:60].any() and a["static_cat"][:, 0].tolist() == [1, 2, 0]


def test_a_prepared_folder_stays_on_disk(tmp_path):
    """Nothing is copied where training knows all categories; batches are those of the file."""
    settings = config(write(tmp_path / "fleet.parquet", table(spans(late=10), kind=lambda name, step: f"k{step % 3}")),
                      observed_categorical=("kind",))  # fmt: skip
    folder = tmp_path / "prepared"
    fleet_prepared.prepare(settings, folder)
    of_file = fleet.splits(settings, (0.5,))
    found = fleet.splits(config(folder, observed_categorical=("kind",)), (0.5,))
    for name in ("real", "seen", "cat"):
        assert isinstance(found.train.arrays[name], np.memmap), name
    for split, data in found.named().items():
        expected = of_file.named()[split]
        np.testing.assert_array_equal(data.index, expected.index)
        for name, value in data.gather(data.arrays, data.index).items():
            np.testing.assert_array_equal(value, expected.gather(expected.arrays, expected.index)[name], err_msg=name)
    for name, value in found.statistics.items():
        np.testing.assert_array_equal(value, of_file.statistics[name], err_msg=name)


@pytest.mark.parametrize("length,changes,says", [
    (7, {}, "the longest group has 7 steps, a window needs 8"),
    (30, {"horizon_steps": 4, "gap_steps": 9}, "no window in valid, test; of 30 steps train 18 steps of 2 groups"),
    (60, {"split": "walk_forward", "folds": 2, "fold_steps": 30}, "no window in train"),
])  # fmt: skip
def test_too_little_data_is_refused(tmp_path, length, changes, says):
    path = write(tmp_path / "fleet.csv", table({"a": range(length), "b": range(length)}))
    with pytest.raises(UserError) as fault:
        fleet.splits(config(path, **changes), (0.5,))
    assert says in str(fault.value) and str(path) in str(fault.value) and "\n" not in str(fault.value)


@pytest.mark.parametrize("value,says", [
    (None, "target more is never measured in the training part (2025-01-06 00:00:00 UTC to 2025-01-06 02:55:00 UTC)"),
    (3.0, "target more is always 3 in the training part"),
])  # fmt: skip
def test_a_target_without_anything_to_learn_is_refused(tmp_path, value, says):
    def more(name, step):
        return value if step < 36 else float(step)

    path = write(tmp_path / "fleet.parquet", table({"a": range(60), "b": range(60)}, more=more))
    with pytest.raises(UserError, match="fleet.parquet") as fault:
        fleet.splits(config(path, targets=("cpu", "more")), (0.5,))
    assert says in str(fault.value)


def test_notes_name_idle_and_short_groups(tmp_path):
    rows = table({"a": range(60), "b": range(60), "c": range(5)})
    rows["cpu"] = [1.0 if name == "b" else value for name, value in zip(rows["server"], rows["cpu"], strict=True)]
    notes = " ".join(fleet.splits(config(write(tmp_path / "fleet.csv", rows), split="cross", folds=4), (0.5,)).notes)
    assert "1 of 3 groups are shorter than a window of 8 steps: c" in notes
    assert "cpu is constant or never measured in training for 1 of" in notes and ": b" in notes and "later data" in notes
