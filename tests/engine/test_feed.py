"""Order of batches, placements, shares of processes, weights, evaluation batches."""

import time

import numpy as np
import pytest

from jaxtrain.data.dataset import Dataset
from jaxtrain.engine.feed import BatchOrder, TrainFeed, eval_batches
from jaxtrain.errors import UserError

ROWS = 103


def double(arrays, rows):
    return {"x": arrays["x"][rows[:, 0]] * 2, "row": rows[:, 0]}


def dataset(n: int = ROWS, weights: np.ndarray | None = None) -> Dataset:
    return Dataset({"x": np.arange(n, dtype=np.float32)}, np.arange(n, dtype=np.int32)[:, None], double, weights)


def feed(data: Dataset, **changes) -> TrainFeed:
    return TrainFeed(data, **{"batch": 16, "seed": 3, "placement": "host", "workers": "0", **changes})


def test_a_batch_follows_from_seed_and_number_alone() -> None:
    forward, jumping = BatchOrder(ROWS, 16, 3), BatchOrder(ROWS, 16, 3)
    batches = [forward[i] for i in range(40)]
    for i in (39, 0, 17, 6, 7):
        np.testing.assert_array_equal(jumping[i], batches[i])
    assert any((BatchOrder(ROWS, 16, 4)[i] != batches[i]).any() for i in range(3))


@pytest.mark.parametrize("batch", [16, 103, 250])
def test_every_example_once_per_epoch_and_none_dropped_at_its_border(batch: int) -> None:
    order = BatchOrder(ROWS, batch, 0)
    stream = np.concatenate([order[i] for i in range(6 * ROWS // batch + 1)])
    epochs = [stream[i : i + ROWS] for i in range(0, 6 * ROWS, ROWS)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(ROWS))
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("placement", ["host", "device"])
def test_resume_at_any_batch_in_constant_time(placement: str) -> None:
    whole, resumed = feed(dataset(), placement=placement), feed(dataset(), placement=placement)
    whole.start(0)
    whole.take(29, 29)
    expected = whole.take(4, 4)
    resumed.start(29)
    for name, value in resumed.take(4, 4).items():
        np.testing.assert_array_equal(value, expected[name])
    began = time.perf_counter()
    resumed.start(10**9)
    far = resumed.take(1, 1)
    assert time.perf_counter() - began < 5  # a billion batches one after the other would take hours
    far_rows = far["rows"][0, :, 0] if placement == "device" else far["row"][0]
    np.testing.assert_array_equal(far_rows, BatchOrder(ROWS, 16, 3)[10**9])
    whole.close()
    resumed.close()


def test_both_placements_give_the_same_batches() -> None:
    data = dataset()
    host, device = feed(data), feed(data, placement="device")
    host.start(5)
    device.start(5)
    built, rows = host.take(8, 8), device.take(8, 8)["rows"]
    for i in range(8):
        for name, value in double(data.arrays, rows[i]).items():
            np.testing.assert_array_equal(built[name][i], value)
    host.close()


def test_slots_beyond_the_count_are_zero() -> None:
    source = feed(dataset())
    source.start(0)
    stack = source.take(2, 5)
    assert stack["x"].shape == (5, 16) and not stack["x"][2:].any() and stack["x"][:2].any()
    source.close()


@pytest.mark.parametrize("weights", [None, np.linspace(0, 1, ROWS)])
def test_shares_of_processes_join_to_the_global_batch(weights: np.ndarray | None) -> None:
    for i in (0, 6, 50):
        parts = [BatchOrder(ROWS, 16, 3, weights, part, 4)[i] for part in range(4)]
        np.testing.assert_array_equal(np.concatenate(parts), BatchOrder(ROWS, 16, 3, weights)[i])


def test_weighted_draws_follow_the_weights() -> None:
    weights = np.array([0.0, 1.0, 2.0, 5.0, 0.0])
    order = BatchOrder(5, 50, 7, weights)
    drawn = np.bincount(np.concatenate([order[i] for i in range(160)]), minlength=5)
    assert drawn[0] == 0 and drawn[4] == 0
    expected = 8000 * weights / weights.sum()
    some = expected > 0
    assert ((drawn - expected)[some] ** 2 / expected[some]).sum() < 13.8  # chi-square, 2 degrees of freedom, p = 0.001
    assert (order[0] != order[1]).any()


@pytest.mark.parametrize("weights", [[1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1.0, np.nan, 1.0], [1.0, np.inf, 1.0]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(UserError, match="weights"):
        feed(dataset(3, np.array(weights)))


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        feed(dataset(0))


@pytest.mark.parametrize(("placement", "parts"), [("host", 1), ("host", 2), ("device", 1), ("device", 4)])
def test_evaluation_sees_every_example_once_in_order(placement: str, parts: int) -> None:
    data = dataset()
    streams = [list(eval_batches(data, batch=16, placement=placement, part=p, parts=parts)) for p in range(parts)]
    seen = []
    for shares in zip(*streams, strict=True):
        mask = np.concatenate([s["mask"] for s in shares])
        rows = np.concatenate([s["rows"][:, 0] if placement == "device" else s["row"] for s in shares])
        assert mask.shape == (16,)
        seen.append(rows[mask > 0])
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(ROWS))
