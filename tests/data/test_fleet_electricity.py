"""The stand-in for the electricity data has its shape, its columns and its rhythm."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.data import fleet_electricity, fleet_embedded
from jaxtrain.data.fleet_config import DataConfig
from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError

CONFIG = Path(__file__).parents[2] / "configs" / "tft.py"


@pytest.fixture(scope="module")
def config() -> DataConfig:
    overrides = {"data.synthetic.servers": "12", "data.synthetic.days": "42"}
    return configs.section(DataConfig, configs.load(f"{CONFIG}:electricity", overrides)["data"], "data")


def test_a_row_per_customer_and_hour_with_its_clock(config):
    columns = fleet_electricity.columns(config)
    assert len(columns.time) == 12 * 42 * 24 and len(columns.names) == 12
    stamps = columns.time.astype("datetime64[s]")
    days = stamps.astype("datetime64[D]").astype(int)
    np.testing.assert_array_equal(columns.numbers["hour"], columns.time // 3600 % 24)
    np.testing.assert_array_equal(columns.numbers["day_of_week"], (days + 3) % 7)
    np.testing.assert_array_equal(columns.numbers["hours_from_start"][:3], [0, 1, 2])
    assert columns.numbers["power_usage"].min() > 0


def test_days_and_weeks_repeat_and_levels_differ(config):
    table = fleet_embedded.fleet(config)
    usage = np.log(table.real[:, 0].reshape(12, -1).astype(np.float64))
    usage -= usage.mean(1, keepdims=True)
    correlation = [np.mean([np.corrcoef(row[:-lag], row[lag:])[0, 1] for row in usage]) for lag in (24, 168, 12)]
    assert correlation[0] > 0.5 > correlation[2] and correlation[1] > 0.5
    levels = np.log(table.real[:, 0]).reshape(12, -1).mean(1)
    assert levels.std() > 0.7


def test_the_seed_decides(config):
    drawn = [dataclasses.replace(config.synthetic, seed=seed) for seed in (42, 43)]
    again, other = (fleet_electricity.columns(dataclasses.replace(config, synthetic=synthetic)) for synthetic in drawn)
    first = fleet_electricity.columns(config).numbers["power_usage"]
    np.testing.assert_array_equal(first, again.numbers["power_usage"])
    assert not np.allclose(first, other.numbers["power_usage"])


@pytest.mark.parametrize(("change", "message"), [
    ({"targets": ("load",)}, "no column load"),
    ({"static_real": ("cores",)}, "no column cores"),
    ({"groups": ("server",)}, "group id"),
    ({"file_step_seconds": 300}, "steps of 3600 s"),
])  # fmt: skip
def test_other_columns_are_named(config, change, message):
    with pytest.raises(UserError, match=message) as error:
        fleet_electricity.columns(dataclasses.replace(config, **change))
    assert "\n" not in str(error.value)
