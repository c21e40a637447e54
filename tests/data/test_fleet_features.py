"""Engineered columns against loops over windows, the calendar against datetime, and what may depend on what."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from fleet_problem import START, config

from jaxtrain.data.fleet_config import log1p, roles
from jaxtrain.data.fleet_features import calendar, rolling
from jaxtrain.data.fleet_grid import Category, Columns, Fleet, build

HORIZON = 4
FEATURES = {
    "targets": ("cpu", "mem"),
    "observed_real": ("up",),
    "known_real": ("plan",),
    "static_categorical": ("kind",),
    "static_real": ("cores",),
    "lags": (("cpu", 3), ("cpu", 4), ("plan", 2)),
    "rolling": (("cpu", 5, "mean", 0), ("mem", 3, "std", 1), ("cpu", 7, "min", 0), ("up", 6, "max", 4)),
    "interactions": (("cpu", "mem"), ("cpu", "plan")),
    "peers": (("cpu", "kind"), ("mem", ""), ("up", "cores")),
}
GROUPS, LENGTHS, FIRST = 5, (30, 30, 24, 11, 28), (0, 0, 5, 12, 2)


def long_rows(seed: int = 0, missing: float = 0.2) -> Columns:
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(GROUPS), LENGTHS)
    step = np.concatenate([f + np.arange(n) for f, n in zip(FIRST, LENGTHS, strict=True)])
    drawn = {name: rng.normal(50, 10, len(step)).astype(np.float32) for name in ("cpu", "mem", "up")}
    numbers = {name: np.where(rng.random(len(step)) < missing, np.nan, values) for name, values in drawn.items()}
    numbers |= {"plan": rng.integers(0, 2, len(step)).astype(float), "cores": np.array([4.0, 4, 8, 8, np.nan])[group]}
    kind = Category(np.array([1, 2, 1, 1, 0])[group], ("x", "y"))
    return Columns("rows", START + 300 * step, group, tuple("abcde"), numbers, {"kind": kind}, str)


def settings(**changes):
    return config(**{**FEATURES, "horizon_steps": HORIZON, **changes})


def column(fleet: Fleet, name: str) -> np.ndarray:
    return fleet.real[:, roles(settings()).real.index(name)]


def test_roles_tell_what_the_whole_horizon_knows():
    names = roles(settings())
    assert names.known_real == ("plan", "cpu lag 4", "up max 6 shift 4")
    assert names.observed_real == (
        "up", "cpu lag 3", "plan lag 2", "cpu mean 5", "mem std 3 shift 1", "cpu min 7", "cpu x mem", "cpu x plan", "cpu of kind peers",
        "mem of peers", "up of cores peers",
    )  # fmt: skip
    assert roles(settings(known_real=("plan", "rain"), interactions=(("plan", "rain"),))).known_real[-1] == "plan x rain"


def test_features_take_the_transform_of_their_columns():
    transform = {"cpu": "log1p", "mem": "log1p", "cpu lag 3": "identity"}
    made = dict(zip(roles(settings()).real, log1p(settings(transform=transform)), strict=True))
    assert {name for name, used in made.items() if used} == {
        "cpu", "mem", "cpu lag 4", "cpu mean 5", "mem std 3 shift 1", "cpu min 7", "cpu x mem", "cpu of kind peers", "mem of peers"
    }  # fmt: skip


def test_every_feature_against_a_loop():
    rows = long_rows()
    fleet = build(settings(fill_steps=2), rows)
    filled = {name: column(fleet, name).astype(float) for name in ("cpu", "mem", "up", "plan")}
    raw = {name: rows.numbers[name] for name in filled}  # no row is absent, so rows are grid rows
    group, step = rows.group, (rows.time - START) // 300
    functions = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}
    kind, cores = rows.categories["kind"].codes, rows.numbers["cores"]

    def lag(name, row, steps):
        return filled[name][row - steps] if row - steps >= fleet.row0[group[row]] else np.nan

    def window(name, row, width, statistic, shift):
        end = row - shift + 1
        cells = raw[name][max(end - width, fleet.row0[group[row]]) : max(end, 0)]
        cells = cells[~np.isnan(cells)]
        return functions[statistic](cells) if 2 * len(cells) >= width and end > fleet.row0[group[row]] else np.nan

    def peers(name, row, classes):
        if classes is not None and (np.isnan(classes[row]) or classes[row] == 0):
            return np.nan
        same = (step == step[row]) & (group != group[row]) & ~np.isnan(raw[name])
        values = raw[name][same if classes is None else same & (classes == classes[row])]
        return values.mean() if len(values) else np.nan

    expected = {
        "cpu lag 3": lambda r: lag("cpu", r, 3), "cpu lag 4": lambda r: lag("cpu", r, 4), "plan lag 2": lambda r: lag("plan", r, 2),
        "cpu mean 5": lambda r: window("cpu", r, 5, "mean", 0), "mem std 3 shift 1": lambda r: window("mem", r, 3, "std", 1),
        "cpu min 7": lambda r: window("cpu", r, 7, "min", 0), "up max 6 shift 4": lambda r: window("up", r, 6, "max", 4),
        "cpu x mem": lambda r: filled["cpu"][r] * filled["mem"][r], "cpu x plan": lambda r: filled["cpu"][r] * filled["plan"][r],
        "cpu of kind peers": lambda r: peers("cpu", r, kind), "mem of peers": lambda r: peers("mem", r, None),
        "up of cores peers": lambda r: peers("up", r, cores),
    }  # fmt: skip
    assert set(expected) == set(roles(settings()).real) - set(filled)
    for name, value in expected.items():
        wanted = np.array([value(row) for row in range(len(group))])
        np.testing.assert_allclose(column(fleet, name), wanted, rtol=1e-6, err_msg=name)
        assert 0.2 < np.isfinite(wanted).mean() and (np.isnan(wanted).any() or "plan" in name), name


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("step_seconds", [300, 600])
def test_features_look_back_only(missing, step_seconds):
    """Bit for bit: cells from step t on decide about nothing before t, nor about known features before t + tau."""
    rows, cut = long_rows(missing=missing), 16
    rng = np.random.default_rng(1)
    late = rows.time >= START + 300 * cut
    numbers = {n: np.where(late & (n != "cores"), rng.normal(1e6, 1e5, len(late)), v) for n, v in rows.numbers.items()}
    numbers["cpu"] = np.where(late & (rng.random(len(late)) < 0.5), np.nan, numbers["cpu"])
    other = Columns(rows.source, rows.time, rows.group, rows.names, numbers, rows.categories, rows.label)
    config = settings(step_seconds=step_seconds)
    before, after = build(config, rows), build(config, other)
    step = np.repeat(before.step0, np.diff(before.row0)) + np.arange(len(before.real)) - np.repeat(before.row0[:-1], np.diff(before.row0))
    cut = cut * 300 // step_seconds
    np.testing.assert_array_equal(before.real[step < cut], after.real[step < cut])
    known = [roles(config).real.index(name) for name in ("cpu lag 4", "up max 6 shift 4")]
    np.testing.assert_array_equal(before.real[step < cut + HORIZON][:, known], after.real[step < cut + HORIZON][:, known])
    for name in roles(config).real:  # and every feature does change afterwards
        place = roles(config).real.index(name)
        assert not np.array_equal(before.real[:, place], after.real[:, place], equal_nan=True), name


@pytest.mark.parametrize("statistic", ["mean", "std", "min", "max"])
@pytest.mark.parametrize("width", [1, 2, 13, 64])
def test_rolling_keeps_digits_beside_large_values(statistic, width):
    """A window of small values after large ones; running sums over the whole series would lose them."""
    values = np.concatenate([np.full(500, 1e9), 1 + 1e-3 * np.sin(np.arange(300))])
    made = rolling(values, np.arange(800), width, statistic)
    view = np.lib.stride_tricks.sliding_window_view(values, width)
    expected = getattr(np, statistic)(view, axis=1)
    np.testing.assert_allclose(made[500 + width :], expected[501:], rtol=1e-9, atol=1e-12)
    assert np.isnan(made[: (width + 1) // 2 - 1]).all() and np.isfinite(made[(width + 1) // 2 - 1 :]).all()


@pytest.mark.parametrize("zone", ["UTC", "Europe/Amsterdam", "Asia/Kathmandu"])
def test_calendar_against_datetime(zone):
    names = ("hour_of_day", "day_of_week", "is_weekend", "day_of_month", "month", "day_of_year")
    start = int(datetime(2024, 3, 28, 22, tzinfo=UTC).timestamp())  # a leap year, clocks change on the 31st
    made = calendar(names, start, 1800, 300, zone)
    assert made.shape == (300, 6, 2) and made.dtype == np.float32
    for step in range(0, 300, 7):
        local = (datetime.fromtimestamp(start, UTC) + timedelta(seconds=1800 * step)).astimezone(ZoneInfo(zone))
        day = (local.hour * 3600 + local.minute * 60 + local.second) / 86_400
        days = {3: 31, 4: 30}[local.month]
        in_month = (local.day - 1 + day) / days
        places = [day, (local.weekday() + day) / 7, None, in_month, (local.month - 1 + in_month) / 12,
                  (local.timetuple().tm_yday - 1 + day) / 366]  # fmt: skip
        for column, place in enumerate(places):
            expected = (local.weekday() >= 5, 0) if place is None else (np.sin(2 * np.pi * place), np.cos(2 * np.pi * place))
            np.testing.assert_allclose(made[step, column], expected, atol=1e-6)


def test_monday_midnight_begins_the_week():
    made = calendar(("day_of_week",), START, 43_200, 14, "UTC")
    np.testing.assert_allclose(made[0, 0], [0, 1], atol=1e-6)
    turns = np.unwrap(np.arctan2(made[:, 0, 0], made[:, 0, 1]))
    np.testing.assert_allclose(np.diff(turns), 2 * np.pi / 14, atol=1e-5)
