"""The cloud base height task: config, the network's door, phases, folds, forecasts and their table."""

import functools
import re

import jax
import numpy as np
import pytest
from cbh_case import CONFIG, FLIGHTS, STATISTICS, H, T, Told, W, batch, sections, task
from flax import nnx

from jaxtrain.data.dataset import Dataset, Splits
from jaxtrain.engine import config as configs
from jaxtrain.engine.train import prepare_parts
from jaxtrain.errors import UserError
from jaxtrain.tasks import cbh_inputs as door
from jaxtrain.tasks import cbh_serving as serving
from jaxtrain.tasks.cbh import make_task

PRESETS = ("default", "original", "tuned", "demo", "smoke")
OVERLAYS = ("small", "t4", "mae", "notemporal", "decay08", "lr3e-4", "honest", "campaign")


def values(preset: str, **overrides: str) -> dict:
    return configs.load(f"{CONFIG}:{preset}", {k.replace("__", "."): v for k, v in overrides.items()})


@functools.cache
def splits() -> Splits:
    return make_task(sections()).splits()


# Config


@pytest.mark.parametrize("preset", [*PRESETS, *(f"tuned+{overlay}" for overlay in OVERLAYS), "demo+honest+campaign"])
def test_every_phase_of_every_preset_is_a_task(preset):
    for phase in configs.phases(values(preset)):
        make_task(phase.task)


def test_presets_are_those_of_the_docstring():
    named = re.findall(r"^    (\S+) +\S", CONFIG.read_text(), re.MULTILINE)
    assert set(PRESETS + OVERLAYS) <= set(named)


def test_the_protocol_pretrains_on_one_flight_and_never_sees_what_is_held_out():
    first, last = configs.phases(values("default"))
    assert (first.task["data"]["train_flights"], first.task["data"]["valid_rows"]) == (["A"], "blocked")
    assert (last.carry, last.task["data"]["train_flights"], last.task["data"]["overweight_factor"]) == ("last", [], 2.0)
    assert [p.engine.train.duration for p in (first, last)] == ["20ep", "40ep"] == [p.engine.optimizer.decay for p in (first, last)]
    original = configs.phases(values("original"))[-1]
    assert (original.carry, original.engine.train.select, original.engine.optimizer.warmup) == ("best", "best", "2000st")
    assert make_task(original.task).groups()[0].weight_decay and not task("default").groups()


def test_the_campaign_names_its_flights():
    first, last = configs.phases(values("original+campaign"))
    assert first.task["data"]["train_flights"] == ["30Oct24"] == [last.task["data"]["overweight_flight"]]
    flights = {flight["name"]: flight for flight in last.task["data"]["flights"]}
    assert list(flights) == ["10Feb25", "30Oct24", "04Nov24", "23Oct24", "18Feb25", "12Feb25"]
    assert flights["12Feb25"]["images"] == "12Feb25/GLOVE2025_IRAI_L1B_Rev-_20250212.h5"
    assert flights["30Oct24"]["lidar"].endswith("_30oct24.hdf5") and flights["30Oct24"]["images"].startswith("30Oct24/WHYMSIE2024_")
    assert not values("demo+campaign")["data"]["overweight_flight"]


@pytest.mark.parametrize(("changes", "said"), [
    ({"model__film": "plain", "data__angles": "none"}, "model.film"),
    ({"data__valid_flight": "C"}, "test_flight"),
    ({"data__overweight_flight": "Z"}, "'Z'"),
])  # fmt: skip
def test_keys_that_do_not_fit_are_refused_by_name(changes, said):
    with pytest.raises(UserError, match=said):
        make_task(sections(**changes))


def test_a_phase_cannot_change_the_window():
    found = values("smoke")
    found["phases"][0]["data"]["temporal_frames"] = 5
    first = configs.phases(found)[0]
    made = make_task(first.task, STATISTICS)
    five = {**batch(2), "frames": np.zeros((2, 5, H, W), np.float32)}
    with pytest.raises(UserError, match=r"phases.*\(3, 16, 24\).*\(5, 16, 24\)"):
        made.loss(Told(np.zeros(2)), five, nnx.Rngs(0))


# The network's door


def test_channels_are_the_level_and_the_frame_of_its_own():
    frames = batch(2)["frames"]
    frames[0, 1] = 290.25
    both = np.asarray(door.channels("both", STATISTICS, frames))
    assert both.shape == (2, T, H, W, 2) and both.dtype == np.float32
    np.testing.assert_allclose(both[..., 0], (frames - 285) / 4, atol=1e-5)
    np.testing.assert_array_equal(both[0, 1, ..., 1], 0)
    own = both[1, ..., 1].reshape(T, -1)
    np.testing.assert_allclose(own.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(own.std(1), 1, rtol=1e-4)
    np.testing.assert_array_equal(door.channels("frame", STATISTICS, frames)[..., 0], both[..., 1])


def test_the_own_channel_is_free_of_gain_and_offset():
    frames = batch(2)["frames"]
    first, other = (door.channels("frame", STATISTICS, f) for f in (frames, 1.2 * frames - 40))
    np.testing.assert_allclose(first, other, atol=2e-4)


@pytest.mark.parametrize(("angles", "expected"), [
    ("both", lambda z, a: (np.cos(z), np.sin(z) * np.cos(a), np.sin(z) * np.sin(a))),
    ("sza_only", lambda z, a: (np.cos(z), np.sin(z), 0 * z)),
    ("saa_only", lambda z, a: (0 * z, np.cos(a), np.sin(a))),
    ("none", lambda z, a: (0 * z, 0 * z, 0 * z)),
])  # fmt: skip
def test_sun_features(angles, expected):
    sun = batch(5)["sun"]
    used = np.array(door.USED[angles])
    known = np.where(used, sun, np.nan)  # what is not used need not be known
    np.testing.assert_allclose(
        door.sun_features("vector", angles, STATISTICS, known), np.stack(expected(*np.radians(sun).T), 1), atol=1e-6
    )
    scaled = (sun - STATISTICS["sun_mean"]) / STATISTICS["sun_std"]
    np.testing.assert_allclose(door.sun_features("scaled", angles, STATISTICS, known), np.where(used, scaled, 0), atol=1e-5)


def test_the_sun_s_direction_has_no_jump_at_360():
    near = np.array([[40.0, 359.9], [40.0, 0.1]], np.float32)
    first, other = door.sun_features("vector", "both", STATISTICS, near)
    np.testing.assert_allclose(first, other, atol=3e-3)


# Data


def test_splits_tell_about_mirrors_and_how_little_the_labels_say():
    found = splits()
    assert found.statistics["heading_known"] and found.statistics["temporal_frames"] == T
    assert sum("independent" in note for note in found.notes) == 2 and not any("mirrors" in note for note in found.notes)
    windows = found.test.arrays["windows"]
    assert len(windows) == len(found.train) + len(found.valid) + len(found.test) and (np.diff(windows[:, 0]) > 0).all()


def test_without_a_heading_a_note_says_that_mirrors_are_off(monkeypatch):
    found = splits()
    arrays = {k: v for k, v in found.train.arrays.items() if k != "heading"}
    bare = Splits(Dataset(arrays, found.train.index, found.train.gather), found.valid, found.test, found.statistics)
    monkeypatch.setattr("jaxtrain.data.clouds.splits", lambda data: bare)
    again = make_task(sections()).splits()
    assert not again.statistics["heading_known"] and any("mirrors are off" in note for note in again.notes)


def test_all_phases_use_the_last_one_s_statistics():
    found = values("smoke", train__accumulate="1", train__batch="8", model__norm="group", model__channels="(8, 8, 16)")
    first, last = prepare_parts(found, configs.phases(found))
    assert set(np.unique(first.splits.train.index[:, 1])) == {0} and len(np.unique(last.splits.train.index[:, 1])) > 1
    for name, value in last.splits.statistics.items():
        np.testing.assert_array_equal(first.task.statistics[name], value)
    assert first.splits.statistics["height_mean"] != last.splits.statistics["height_mean"]
    assert last.splits.train.weights is not None and first.splits.train.weights is None


def test_leave_one_out_holds_two_flights_out_and_validates_on_wide_labels():
    folds = make_task(sections(data__synthetic__label_factor="1.0")).folds("leave_one_out", None)
    assert [(f.changes["data.test_flight"], f.changes["data.valid_flight"]) for f in folds] == [
        ("A", "C"), ("B", "C"), ("C", "D"), ("D", "C"), ("E", "C"),
    ]  # fmt: skip
    for fold in folds:
        changed = configs.with_changes(values("smoke"), fold.changes)
        (phase,) = configs.phases(changed)
        made = make_task(phase.task)
        assert made.config.data.overweight_flight == ("" if fold.name == "fold-A" else "A")
    assert len(make_task(sections()).folds("leave_one_out", 2)) == 2
    for kind, n in (("blocked", 5), ("leave_one_out", 9)):
        with pytest.raises(UserError, match="--folds"):
            make_task(sections()).folds(kind, n)


# Forecasts


def test_arrays_given_by_hand_are_checked_and_completed():
    one, made = batch(2), task()
    found = made.complete({"frames": one["frames"].astype(np.float64), "sun": one["sun"]})
    assert found["frames"].dtype == np.float32 and (found["flight"] == -1).all()
    for given, said in (
        ({}, "frames is missing"), ({"frames": one["frames"][:, :2]}, r"expects \(windows, 3, 16, 24\)"),
        ({"frames": one["frames"]}, "sun is missing"), ({"frames": one["frames"] * np.nan, "sun": one["sun"]}, "not finite"),
        ({"frames": one["frames"], "sun": one["sun"][:1]}, r"expected \(2, 2\)"), ({**found, "hat": 1}, "takes no"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            made.complete(given)
    task(data__angles="none", model__film="none").complete({"frames": one["frames"]})


def test_a_forecast_has_its_interval_and_no_base_below_the_sea():
    known = {"blocked_km": np.arange(6)[:, None] / 10 + np.array([0.0, 0.05, 0.1]), "transfer_km": np.array([1.0, 2.0, 3.0])}
    one = {**batch(3), "flight": np.array([1, 2, -1], np.int32)}
    found = jax.jit(lambda b: task().with_statistics(known).predict(Told(np.array([1.0, 0.0, -1.0])), b))(one)
    np.testing.assert_allclose(found["base_km"], [1.2, 0.8, 0.4], rtol=1e-6)
    np.testing.assert_allclose(found["low80_km"], [1.1, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(found["high90_km"], [1.35, 2.8, 2.4], rtol=1e-5)
    assert found["frame_weights"].shape == (3, T)


def served(count: int, roles: np.ndarray) -> tuple[Dataset, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    arrays = {"time": 1.7e9 + np.arange(50.0), "frame_id": 100 + np.arange(50), "flight_name": np.array(["new"])}
    index = np.stack([np.arange(count), np.full(count, 2), roles], 1).astype(np.int32)
    base, truth = rng.uniform(0.5, 1, count), rng.uniform(0.5, 1, count)
    truth[::3] = np.nan
    truth[roles == 5] = 0.7
    forecast = {"base_km": base, "height_km": truth, "role": roles, "frame_weights": np.full((count, T), 1 / T)}
    forecast |= {name: base + d for name, d in (("low80_km", -0.1), ("high80_km", 0.1), ("low90_km", -0.2), ("high90_km", 0.2))}
    return Dataset(arrays, index, lambda a, rows: {}), forecast


def test_the_table_names_flight_frame_and_time():
    dataset, forecast = served(5, np.full(5, 4))
    columns = serving.table(dataset, forecast, {})
    assert list(columns) == ["flight", "frame", "time_utc", "base_km", "low80_km", "high80_km", "low90_km", "high90_km",
                             "weight_1", "weight_2", "weight_3", "cloud_base_km"]  # fmt: skip
    assert columns["time_utc"][0] == "2023-11-14T22:13:20.000Z" and columns["frame"][2] == 102 and set(columns["flight"]) == {"new"}
    np.testing.assert_array_equal(columns["low90_km"], forecast["low90_km"])
    without = serving.table(dataset, {**forecast, "height_km": np.full(5, np.nan), "frame_weights": np.full((5, T), np.nan)}, {})
    assert "cloud_base_km" not in without and "weight_1" not in without


def test_own_labels_make_the_interval():
    roles = np.where(np.arange(40) < 12, 5, 4)
    dataset, forecast = served(40, roles)
    columns = serving.table(dataset, forecast, {"calibrate": "12"})
    errors = np.sort(abs(forecast["base_km"][:12] - 0.7))
    half = columns["high90_km"] - columns["base_km"]
    np.testing.assert_allclose(half, half[0])
    assert errors[11] <= half[0] <= errors[11] + 0.005  # ceil(13 x .9) = 12
    dataset, forecast = served(40, np.where(np.arange(40) < 8, 5, 4))
    with pytest.raises(UserError, match="8 of these labels"):
        serving.table(dataset, forecast, {"calibrate": "8"})


@pytest.mark.parametrize("options", [{"evry": "2"}, {"every": "0"}, {"calibrate": "x"}])
def test_impossible_options_are_refused(options):
    with pytest.raises(UserError, match="--option"):
        task().inputs("flight.h5", options)


def test_flops_are_those_of_the_convolutions():
    made = task("demo").with_statistics({"frame_shape": np.array([32, 48]), "temporal_frames": np.array(5)})
    assert made.flops_per_example() == pytest.approx(120e6, rel=0.01)
    assert make_task(sections()).flops_per_example() is None


def test_headline_names_the_flights():
    assert {"mae_km/blocked", "mae_km/flight", "tier/flight", *(f"mae_km/blocked/{name}" for name in FLIGHTS)} <= set(task().headline)
