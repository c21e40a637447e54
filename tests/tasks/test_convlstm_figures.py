"""The headway figures show the numbers they were given."""

import io

import numpy as np
import pytest
from convlstm_case import COUNT, D, F, L, S, numbers, splits, task

from jaxtrain.data.dataset import Dataset
from jaxtrain.tasks import convlstm_figures

pytest.importorskip("matplotlib")
NAMES = {"maps", "error_by_minute", "error_by_station", "density", "coverage", "entry", "copy_weights"}


def made_up(seed: int, *, interval: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    kinds = {"n": 50 + rng.random((F, S, D)), "sq": rng.uniform(100, 400, (F, S, D))}
    if interval:
        kinds |= {"inside": 0.8 * kinds["n"], "width": 5 * kinds["n"]}
    return {f"{group}/{kind}": v.sum(axis) for kind, v in kinds.items() for group, axis in (("minute", 1), ("station", 0))}


@pytest.fixture(scope="module")
def drawn():
    """(figures, task, sums, what predict returned)."""
    made, travel = task(model__head="quantile", loss__kind="pinball"), splits().statistics["travel_minutes"]
    made = made.with_statistics({"travel_minutes": np.stack([travel[0], travel[1, ::-1]])})  # a grid that runs against its trains
    test = splits().test
    dataset = Dataset(test.arrays, test.index[:: len(test) // COUNT][:COUNT], test.gather)
    said, asked = numbers(), {}

    def predict(rows, weights=False):
        inputs = dataset.gather(dataset.arrays, rows)
        inputs["headway_known"] = inputs["headway_known"].copy()
        inputs["headway_known"][:, 2, 1, 0] = False
        shares = np.random.default_rng(0).dirichlet(np.ones(5), (len(rows), F, S, D))
        asked.update({**inputs, "value": 30 * np.clip(said["y"], 0, 1), "advected": 30 * np.clip(said["other"], 0, 1)})
        return {**asked, **({"copy_weights": shares} if weights else {})}

    sums = {"model": made_up(0, interval=True), **{name: made_up(i + 1) for i, name in enumerate(("hold", "advected_planned", "oracle"))}}
    return made.figures(predict, dataset, sums), made, sums, asked


def line(axis, label):
    return next(found for found in axis.get_lines() if found.get_label() == label)


def test_every_figure_is_drawn_and_can_be_saved(drawn):
    assert set(drawn[0]) == NAMES
    file = io.BytesIO()
    drawn[0]["maps"].savefig(file, format="png", dpi=40)
    assert file.getvalue().startswith(b"\x89PNG")


def test_what_a_model_lacks_is_not_drawn(drawn):
    _, made, sums, asked = drawn
    test = splits().test
    unplanned = {**test.arrays, "planned_known": np.zeros_like(test.arrays["planned_known"])}
    dataset = Dataset(unplanned, test.index[:1], test.gather)
    assert set(made.figures(lambda rows, weights: asked, dataset, {"model": made_up(0)})) == NAMES - {"coverage", "entry", "copy_weights"}


def test_maps_show_seconds_in_travel_order_with_unknown_cells_masked(drawn):
    figures, made, _, asked = drawn
    b = convlstm_figures._telling_window(made.config.data, asked)
    images = [axis.images[0].get_array() for axis in figures["maps"].axes[: 3 * D]]
    titles = [axis.get_title(loc="left") for axis in figures["maps"].axes[:3]]
    assert titles == [f"outbound: {name}" for name in ("observed", "model", "advected")]
    for d in range(D):
        order = np.arange(S)[:: 1 - 2 * d]
        for image, name in zip(images[3 * d : 3 * d + 3], ("target", "value", "advected"), strict=True):
            assert image.shape == (S, L + F)
            np.testing.assert_allclose(image[:, L:].filled(-1)[image.mask[:, L:] == 0],
                                       (60 * asked[name][b, :, order, d])[image.mask[:, L:] == 0], rtol=1e-5)  # fmt: skip
            assert image.mask[1, 2] == (d == 0 or not asked["headway_known"][b, 2, order[1], d])
    shares = np.asarray(asked["target_known"]).mean((1, 2, 3))
    assert shares[b] >= np.quantile(shares, 0.75)


def test_errors_by_minute_and_station_are_the_sums_divided(drawn):
    figures, _, sums, _ = drawn
    axis = figures["error_by_minute"].axes[0]
    for name in sums:
        expected = 60 * np.sqrt(sums[name]["minute/sq"].sum(1) / sums[name]["minute/n"].sum(1))
        np.testing.assert_allclose(line(axis, name).get_ydata(), expected)
        for d in range(D):
            place = 60 * np.sqrt(sums[name]["station/sq"] / sums[name]["station/n"])[:, d]
            np.testing.assert_allclose(line(figures["error_by_station"].axes[d], name).get_ydata(), place)
    np.testing.assert_array_equal(line(axis, "hold").get_xdata(), np.arange(1, F + 1))
    total = 60 * np.sqrt(sums["model"]["minute/sq"].sum() / sums["model"]["minute/n"].sum())
    assert axis.get_title(loc="left") == f"RMSE {total:.4g} s < 90 s: not passed   loss {(total / 1800) ** 2:.2g} < 0.01: passed"
    assert {60, 90, 120, 180} <= {found.get_ydata()[0] for found in axis.get_lines()}


def test_density_counts_known_cells(drawn):
    figures, _, _, asked = drawn
    counts = figures["density"].axes[0].collections[0].get_array()
    assert counts.sum() == np.asarray(asked["target_known"]).sum()


def test_coverage_is_in_percent(drawn):
    axes = drawn[0]["coverage"].axes
    np.testing.assert_allclose(line(axes[0], "model").get_ydata(), 80)
    np.testing.assert_allclose(line(axes[1], "model").get_ydata(), 300)


def test_entries_show_the_day_and_the_best_shift_is_none(drawn):
    axes = drawn[0]["entry"].axes
    for axis in axes[1::2]:
        shift = line(axis, "model")
        assert shift.get_xdata()[np.nanargmax(shift.get_ydata())] == 0
    planned = line(axes[0], "planned").get_ydata()
    assert np.nanmin(planned) >= 60 and len(planned) == 1440 and line(axes[0], "observed").get_xdata()[0] == pytest.approx(4, abs=0.1)


def test_copy_weights_are_means_by_minute(drawn):
    weights = np.random.default_rng(0).dirichlet(np.ones(5), (COUNT, F, S, D))
    for d, axis in enumerate(drawn[0]["copy_weights"].axes[:D]):
        np.testing.assert_allclose(axis.images[0].get_array(), weights[:, :, :, d].mean((0, 2)))
        assert axis.get_xticklabels()[-1].get_text() == "plan"
