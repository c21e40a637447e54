"""The fleet figures show the numbers they were given."""

import io

import jax
import numpy as np
import pytest
from tft_case import LEVELS, TARGETS, Told, host, splits, task

from jaxtrain.data.dataset import Dataset, padded_rows
from jaxtrain.tasks import tft_figures
from jaxtrain.tasks.tft_scores import kinds_of

pytest.importorskip("matplotlib")
NAMES = {"forecasts", "qrisk_by_step", "reliability", "importance", "attention", "qrisk_by_place", "alerts"}
ALERTS = "{'cpu_percent': 40.0, 'load_average': 3.0}"
COUNT = 12


@pytest.fixture(scope="module")
def drawn():
    """(figures, task, sums, dataset, calls of predict) of a network that says the same of every window."""
    made = task(data__alerts=ALERTS)
    test = splits().test
    dataset = Dataset(test.arrays, test.index[:: len(test) // 40], test.gather)
    z = np.sort(np.random.default_rng(0).normal(size=(COUNT, 8, 4, 7)), -1)
    call, score, naive = jax.jit(lambda b: made.predict(Told(z), b)), jax.jit(made.score_forecast), jax.jit(made.naive)
    rng, asked = np.random.default_rng(1), []

    def predict(rows, explain=False):
        asked.append((len(rows), explain))
        parts = []
        for padded, mask in padded_rows(rows, COUNT):
            inputs = dataset.gather(dataset.arrays, padded)
            parts.append({k: np.asarray(v)[mask > 0] for k, v in {**inputs, **call(inputs)}.items()})
        found = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
        if explain:
            shapes = {"static_weights": (4,), "past_weights": (24, 12), "future_weights": (8, 5), "attention": (8, 32)}
            found |= {k: rng.dirichlet(np.ones(s[-1]), (len(rows), *s[:-1])) for k, s in shapes.items()}
            found["past_weights"][..., 0] += 9  # status stands out
        return found

    sums: dict[str, dict[str, np.ndarray]] = {}
    for padded, mask in padded_rows(dataset.index, COUNT):
        batch = {**dataset.gather(dataset.arrays, padded), "mask": mask}
        forecasts = {"model": {"quantiles": call(batch)["quantiles"]}, **naive(batch)}
        for name, forecast in forecasts.items():
            spread = forecast["quantiles"] if "quantiles" in forecast else np.repeat(np.asarray(forecast["median"])[..., None], 7, -1)
            for key, value in host(score({"quantiles": spread}, batch)).items():
                sums.setdefault(name, {})[key] = sums.get(name, {}).get(key, 0.0) + value
    return made.figures(predict, dataset, sums), made, sums, dataset, asked


def line(axis, label):
    return next(found for found in axis.get_lines() if found.get_label() == label)


def test_every_figure_is_drawn_and_can_be_saved(drawn):
    figures = drawn[0]
    assert set(figures) == NAMES
    for name in ("attention", "alerts"):  # a whole run saves all of them
        file = io.BytesIO()
        figures[name].savefig(file, format="png", dpi=40)
        assert file.getvalue().startswith(b"\x89PNG")


def test_without_alerts_there_is_no_map_of_them(drawn):
    _, made, sums, dataset, _ = drawn
    groups = tft_figures.groups_of(made.statistics, dataset)
    assert "alerts" not in task().config.data.alerts and len(groups.names) == 8
    np.testing.assert_array_equal(groups.places, groups.middle[:, 1])
    assert (groups.last[:, 0] >= groups.middle[:, 0]).all() and (groups.last[:, 1] == groups.middle[:, 1]).all()
    for g, number in enumerate(groups.middle[:, 1]):
        assert groups.last[g, 0] == dataset.index[dataset.index[:, 1] == number, 0].max()


def test_lines_by_step_are_the_sums_divided(drawn):
    figures, made, sums, _, _ = drawn
    for r, axis in enumerate(figures["qrisk_by_step"].axes):
        for name in ("model", "day", "window"):
            kinds = kinds_of(made._layout(), sums[name], "step")
            np.testing.assert_allclose(line(axis, name).get_ydata(), kinds["abs"][:, r] / kinds["absy"][:, r])
        np.testing.assert_allclose(line(axis, "model").get_xdata(), np.arange(1, 9) / 4)


def test_reliability_is_the_share_below_each_level(drawn):
    figures, made, sums, _, _ = drawn
    kinds = kinds_of(made._layout(), sums["model"], "step")
    for r, target in enumerate(TARGETS):
        shown = line(figures["reliability"].axes[0], target)
        np.testing.assert_allclose(shown.get_ydata()[1], kinds["below_0.1"][:, r].sum() / kinds["n"][:, r].sum())
        np.testing.assert_array_equal(shown.get_xdata(), LEVELS)


def test_hours_are_scored_by_their_mean_over_targets(drawn):
    figures, made, sums, _, _ = drawn
    kinds = kinds_of(made._layout(), sums["model"], "hour")
    counted = kinds["n"].sum(1) > 0
    expected = (kinds["abs"] / np.maximum(kinds["absy"], 1e-9)).mean(1)[counted]
    np.testing.assert_allclose(line(figures["qrisk_by_place"].axes[0], "model").get_ydata(), expected)
    assert figures["qrisk_by_place"].axes[3].get_xlabel() == "profile"


def test_fans_show_the_best_and_the_worst_group(drawn):
    figures, made, sums, dataset, _ = drawn
    kinds = kinds_of(made._layout(), sums["model"], "group")
    for r in range(4):
        risk = kinds["abs"][:8, r] / kinds["absy"][:8, r]
        best, _, worst = figures["forecasts"].axes[3 * r : 3 * r + 3]
        names = made.statistics["group_names"]
        assert best.get_title(loc="left").startswith(f"best: {names[risk.argmin()]}")
        assert worst.get_title(loc="left").startswith(f"worst: {names[risk.argmax()]}")
        rows = dataset.index[dataset.index[:, 1] == risk.argmin()]
        middle = rows[len(rows) // 2][None]
        batch = dataset.gather(dataset.arrays, middle)
        truth = np.where(batch["target_mask"][0, :, r] > 0, batch["target"][0, :, r], np.nan)
        np.testing.assert_allclose(line(best, "measured").get_ydata()[24:], truth)
        assert any(label.endswith("(naive)") for label in (found.get_label() for found in best.get_lines()))


def test_importances_are_means_and_ranked(drawn):
    figures, _, _, _, asked = drawn
    axis = figures["importance"].axes[1]
    assert axis.get_yticklabels()[-1].get_text() == "status"
    widths = [bar.get_width() for bar in axis.patches]
    assert widths == sorted(widths) and widths[-1] == pytest.approx(9, rel=0.05)
    assert [count for count, explain in asked if explain] == [40] and max(count for count, _ in asked) <= tft_figures.EXPLAINED


def test_the_alert_map_shows_probabilities_and_what_happened(drawn):
    figures, made, _, dataset, _ = drawn
    axis = figures["alerts"].axes[0]
    shown = axis.images[0].get_array()
    assert shown.shape == (8, 8) and (np.diff(shown.max(1)) <= 0).all()
    names = [label.get_text() for label in axis.get_yticklabels()]
    numbers = [list(made.statistics["group_names"]).index(name) for name in names]
    newest = np.stack([max(dataset.index[dataset.index[:, 1] == number].tolist()) for number in numbers]).astype(np.int32)
    batch = dataset.gather(dataset.arrays, newest)
    happened = (batch["target"][:, :, 0] > 40) & (batch["target_mask"][:, :, 0] > 0)
    dots = axis.collections[0].get_offsets()
    assert 0 < len(dots) == happened.sum()
    np.testing.assert_allclose(np.sort(dots[:, 1]), np.sort(np.nonzero(happened)[0]))
