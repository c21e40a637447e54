"""The traffic figures show the numbers they were given."""

import dataclasses
import io
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from jaxtrain.data.dataset import Dataset, padded_rows
from jaxtrain.engine import config as configs
from jaxtrain.tasks import stmgt_figures
from jaxtrain.tasks.stmgt import make_task

pytest.importorskip("matplotlib")
CONFIG = Path(__file__).parents[2] / "configs" / "stmgt.py"
NAMES = {"forecasts", "incident", "mae_by_horizon", "mae_by_hour", "calibration", "gain", "attention"}


@pytest.fixture(scope="module")
def drawn():
    """(figures, task, sums, rows asked of the model) of an untrained shrunk model on every 8th test window."""
    task = make_task(configs.task_sections(configs.load(f"{CONFIG}:smoke", {})))
    splits = task.splits()
    task = task.with_statistics(splits.statistics)
    dataset = Dataset(splits.test.arrays, splits.test.index[::8], splits.test.gather)
    graph, state = nnx.split(nnx.view(task.build(nnx.Rngs(0)), deterministic=True))
    call = jax.jit(lambda batch, **options: task.predict(nnx.merge(graph, state), batch, **options), static_argnames="attention_of")
    asked = []

    def predict(rows, **options):
        if not options:
            asked.append(rows)
        (padded, mask), = padded_rows(rows, 64)
        inputs = dataset.gather(dataset.arrays, padded)
        return {name: np.asarray(value)[: len(rows)] for name, value in {**inputs, **call(inputs, **options)}.items()}

    batch = {**dataset.gather(dataset.arrays, dataset.index), "mask": np.ones(len(dataset), np.float32)}
    scored = {"model": jax.jit(lambda b: task.score(nnx.merge(graph, state), b))(batch)}
    scored |= {name: task.score_forecast(forecast, batch) for name, forecast in task.naive(batch).items()}
    sums = {name: {k: np.asarray(v, np.float64) for k, v in part.items()} for name, part in scored.items()}
    return task.figures(predict, dataset, sums), task, sums, np.concatenate(asked)


def line(axis, label):
    return next(found for found in axis.get_lines() if found.get_label() == label)


def test_every_figure_is_drawn_and_can_be_saved(drawn):
    figures = drawn[0]
    assert set(figures) == NAMES
    for figure in figures.values():
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=40)
        assert file.getvalue().startswith(b"\x89PNG")


def test_error_lines_are_the_sums_divided(drawn):
    figures, _, sums, _ = drawn
    for name in ("model", "damped", "last", "tod"):
        part = sums[name]
        shown = line(figures["mae_by_horizon"].axes[0], name)
        np.testing.assert_allclose(shown.get_ydata(), part["horizon/abs"] / part["horizon/n"])
        np.testing.assert_array_equal(shown.get_xdata(), [5, 10, 15, 20])
        hourly = np.asarray(line(figures["mae_by_hour"].axes[0], name).get_ydata())
        counted = part["hour/n"] > 0
        np.testing.assert_allclose(hourly[counted], part["hour/abs"][counted] / part["hour/n"][counted])
        assert np.isnan(hourly[~counted]).all()


def test_forecast_lines_stand_at_the_time_of_their_targets(drawn):
    figures, task, _, rows = drawn
    axis = figures["forecasts"].axes[0]
    step = 3  # the middle one of the two horizons, 20 minutes
    seen, median = line(axis, "observed"), line(axis, "model, median")
    targets = rows[:, 0] + task.config.data.in_steps + step
    start = np.datetime64("2026-01-01T00:00", "s")
    np.testing.assert_array_equal(median.get_xdata(orig=True), start + targets * np.timedelta64(300, "s"))
    node = str(axis.get_title(loc="left")).removeprefix("node ")
    assert node in task.statistics["node_ids"]
    series = task.splits().test.arrays
    index = list(task.statistics["node_ids"]).index(node)
    values = np.where(series["observed"], series["speed"], np.nan)[targets.min() : targets.max() + 1, index]
    np.testing.assert_array_equal(seen.get_ydata(), values)


def test_gain_colours_are_the_saved_error(drawn):
    figures, _, sums, _ = drawn
    expected = 100 * (1 - sums["model"]["node/abs"] / sums["damped"]["node/abs"])
    np.testing.assert_allclose(figures["gain"].axes[0].collections[-1].get_array(), expected)


def test_places_are_named_degrees_only_where_they_are_real(drawn):
    figures, task, sums, _ = drawn
    assert "positions" in task.statistics  # schematic ones, of the embedded network
    assert figures["gain"].axes[0].get_xlabel() == "" == figures["gain"].axes[0].get_ylabel()
    real = dataclasses.replace(task.config.data, path="speed.csv")
    missing = {**task.statistics, "positions": task.statistics["positions"].copy()}
    missing["positions"][0] = np.nan
    for statistics in (task.statistics, missing):
        axis = stmgt_figures.gain(real, statistics, sums).axes[0]
        assert (axis.get_xlabel(), axis.get_ylabel()) == ("longitude", "latitude")


@pytest.mark.parametrize(("windows", "out_steps", "shown"), [
    (1, 4, 1),
    (400, 4, 134),  # 400 windows lie within two days, every third is drawn
    (400, 576, 144),  # two days ahead: the windows of one day, every second
    (400, 5000, 144),
])  # fmt: skip
def test_first_days_are_never_empty(drawn, windows, out_steps, shown):
    task = drawn[1]
    arrays = {"time": np.arange(windows) * task.config.data.step_seconds}
    dataset = Dataset(arrays, np.arange(windows, dtype=np.int32)[:, None], lambda arrays, rows: {})
    rows = stmgt_figures._first_days(dataset, dataclasses.replace(task.config.data, out_steps=out_steps))
    assert rows.shape == (shown, 1) and shown <= stmgt_figures.MAX_WINDOWS


@pytest.mark.parametrize("windows", [1, 16, 17, 31, 100])
def test_attention_asks_for_few_windows(drawn, windows):
    statistics = drawn[1].statistics
    slots, asked = statistics["neighbor_mask"].shape[1], []

    def predict(rows, attention_of):
        asked.append(len(rows))
        return {"attention": np.ones((len(rows), 1, 6, slots, 2)) / slots, "gate": np.full((len(rows), 1), 0.5)}

    stmgt_figures.attention(statistics, predict, np.arange(windows)[:, None])
    assert 1 <= asked[0] <= 16


def test_graph_without_positions_is_laid_out_with_neighbours_close():
    ring = np.zeros((12, 12))
    ring[np.arange(12), (np.arange(12) + 1) % 12] = 1
    linked = np.maximum(ring, ring.T)
    place = stmgt_figures._spring_layout(linked)
    distance = np.linalg.norm(place[:, None] - place[None], axis=-1)
    assert np.isfinite(place).all()
    assert distance[linked > 0].mean() < 0.6 * distance[(linked == 0) & ~np.eye(12, dtype=bool)].mean()


def test_attention_shares_of_a_block_sum_to_one(drawn):
    figure, _, statistics = drawn[0]["attention"], drawn[1], drawn[1].statistics
    blocks = drawn[1].config.model.blocks
    heights = np.array([bar.get_height() for bar in figure.axes[0].patches]).reshape(blocks, -1)
    kinds = np.unique(statistics["relation"][statistics["neighbor_mask"].sum(1).argmax()])
    assert heights.shape[1] <= len(kinds)
    np.testing.assert_allclose(heights.sum(1), 1, atol=1e-5)
