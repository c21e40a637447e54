"""The cloud base figures show the numbers they were given."""

import io

import numpy as np
import pytest
from cbh_case import FLIGHTS, H, T, W, task

from jaxtrain.data.dataset import Dataset
from jaxtrain.tasks import cbh_scores as scores

pytest.importorskip("matplotlib")
NAMES = {"truth", "flights", "residuals", "references", "windows", "heights", "frame_weights"}
COUNT = 90


def windows() -> np.ndarray:
    """Flight A in all parts of a cycle, B training, C tested, D validated."""
    flight = np.repeat([0, 1, 2, 3], (40, 10, 25, 15))
    role = np.concatenate([np.repeat([0, 1, 2], (20, 10, 10)), np.zeros(10), np.repeat([5, 6, 4], (8, 3, 14)), np.full(15, 3)])
    return np.stack([np.arange(COUNT), flight, role], 1).astype(np.int32)


def shown() -> dict[str, np.ndarray]:
    rng, rows = np.random.default_rng(0), windows()
    base, truth = rng.uniform(0.2, 1.8, (2, COUNT)).astype(np.float32)
    return {
        "frames": rng.normal(285, 4, (COUNT, T, H, W)), "height_km": truth, "base_km": base, "reference_km": rng.uniform(0, 2, (COUNT, 5)),
        "low90_km": base - 0.2, "high90_km": base + 0.2, "frame_weights": rng.dirichlet(np.ones(T), COUNT), "flight": rows[:, 1],
        "role": rows[:, 2], "map": rng.random((COUNT, T, 2, 3)),
    }  # fmt: skip


def dataset(**more: np.ndarray) -> Dataset:
    arrays = {"windows": windows(), "frames": np.zeros((COUNT, H, W)), "time": 1.7e9 + 5.0 * np.arange(COUNT), **more}
    return Dataset(arrays, windows()[np.isin(windows()[:, 2], (2, 4, 5, 6))], lambda a, rows: {})


def made_up(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    moments = rng.uniform(1, 2, (7, len(FLIGHTS) + 1, len(scores.KINDS)))
    return {"moments": moments, "classes": np.ones((7, len(FLIGHTS) + 1, 5, 3)), "histogram": np.ones((7, len(FLIGHTS) + 1, 401))}


SUMS = {"near": made_up(1), "model": made_up(0), "mean": made_up(2)}


def draw(said: dict[str, np.ndarray], data: Dataset) -> dict:
    def predict(rows, explain=False):
        assert explain
        return {name: value[rows[:, 0]] for name, value in said.items()}

    return task().figures(predict, data, SUMS)


@pytest.fixture(scope="module")
def drawn():
    return draw(shown(), dataset())


def test_every_figure_is_drawn_and_can_be_saved(drawn):
    assert set(drawn) == NAMES
    file = io.BytesIO()
    drawn["windows"].savefig(file, format="png", dpi=30)
    assert file.getvalue().startswith(b"\x89PNG")


def test_what_a_run_lacks_is_not_drawn():
    said = {**shown(), "frame_weights": np.full((COUNT, T), np.nan)}
    del said["map"]
    found = draw(said, dataset(lat=np.linspace(30, 40, COUNT), lon=np.linspace(-120, -110, COUNT)))
    assert set(found) == NAMES - {"frame_weights"} | {"track"}
    axis = next(a for a in found["track"].axes if a.get_title(loc="left") == "flight C")
    np.testing.assert_allclose(axis.collections[0].get_array(), (said["base_km"] - said["height_km"])[50:75])


def test_truth_shows_each_use_of_the_rows_with_its_errors(drawn):
    said = shown()
    for axis, roles in zip(drawn["truth"].axes, ((0,), (1, 3), (2,), (4, 5, 6)), strict=True):
        chosen = np.isin(said["role"], roles)
        points = np.concatenate([np.stack(line.get_data()) for line in axis.get_lines()[:-1]], axis=1)
        assert sorted(points[0]) == sorted(said["height_km"][chosen]) and f"({chosen.sum()} windows)" in axis.get_title(loc="left")
        error = abs(said["base_km"] - said["height_km"])[chosen].mean()
        near = abs(said["reference_km"][:, 0] - said["height_km"])[chosen].mean()
        assert f"model {error:.3f}" in axis.get_xlabel() and f"near {near:.3f}" in axis.get_xlabel()


def test_flights_show_labels_and_uses_along_time(drawn):
    axes = drawn["flights"].axes
    assert [axis.get_ylabel().split("\n")[0] for axis in axes] == [f"flight {name}" for name in "ABCD"]
    labels = axes[0].get_lines()[-1]
    np.testing.assert_allclose(labels.get_xdata(), 5 / 60 * np.arange(40))
    np.testing.assert_allclose(labels.get_ydata(), shown()["height_km"][:40])
    spans = [patch.get_x() for patch in axes[0].patches]
    np.testing.assert_allclose(spans, np.array([0, 20, 30]) * 5 / 60)
    assert len(axes[2].patches) == 2  # the gap behind the calibration labels is white


def test_references_are_the_scores_in_one_order(drawn):
    axis = drawn["references"].axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["model", "mean", "near"]
    expected = [task().summarize(SUMS[name])["mae_km/blocked"] for name in ("model", "mean", "near")]
    np.testing.assert_allclose([bar.get_height() for bar in axis.containers[0]], expected)


def test_the_best_and_worst_test_windows(drawn):
    said = shown()
    error = np.where(np.isin(said["role"], (2, 4, 5, 6)), abs(said["base_km"] - said["height_km"]), np.nan)
    tested = int(np.isfinite(error).sum())
    expected = [*np.argsort(error)[:3], *np.argsort(error)[tested - 3 : tested][::-1]]
    axes = np.array(drawn["windows"].axes).reshape(6, T)
    for row, b in zip(axes, expected, strict=True):
        np.testing.assert_array_equal(row[1].images[0].get_array(), said["frames"][b, 1])
        np.testing.assert_allclose(row[2].images[1].get_array()[..., 3], 0.6 * said["map"][b, 2] / said["map"][b].max())
        assert f"{said['frame_weights'][b, 0]:.2f}" in row[0].get_xlabel() and f"{said['height_km'][b]:.2f} km" in row[0].get_ylabel()


def test_frame_weights_are_means_by_offset(drawn):
    line = next(line for line in drawn["frame_weights"].axes[0].get_lines() if line.get_label() == "mean")
    np.testing.assert_array_equal(line.get_xdata(), [-1, 0, 1])
    np.testing.assert_allclose(line.get_ydata(), shown()["frame_weights"].mean(0))
