"""A stand-in for the published electricity data: hourly consumption of many customers, as a long table.

Daily and weekly harmonics of each customer times a level of its own, with slowly changing noise. It has the shape, the
columns and the difficulty of scales of the original (levels span decades); its scores say nothing about the original.
"""

import numpy as np

from jaxtrain.data.fleet_config import DataConfig
from jaxtrain.data.fleet_grid import Columns
from jaxtrain.data.fleet_synthetic import draw_autoregression
from jaxtrain.errors import UserError

START = 1_388_966_400  # 2014-01-06 00:00 UTC, a Monday
STEP_SECONDS = 3600
DAY_HOURS, WEEK_HOURS = 24, 168
DAILY, WEEKLY = 3, 2  # harmonics
LEVEL_STD, DAILY_STD, WEEKLY_STD = 1.5, 0.25, 0.1  # of the logarithm
NOISE_MEMORY, NOISE_STD = 0.9, 0.12
COLUMNS = ("power_usage", "hour", "day_of_week", "hours_from_start")


def columns(config: DataConfig) -> Columns:
    """`synthetic.servers` customers x `synthetic.days` days of hours: power_usage in kW, and hour (0-23), day_of_week (Monday 0)
    and hours_from_start as columns that are known in advance. Raises UserError where the config asks for others."""
    declared = config.targets + config.observed_real + config.known_real
    wrong = [name for name in declared if name not in COLUMNS]
    others = config.observed_categorical + config.known_categorical + config.static_real + config.static_categorical
    if wrong or others:
        raise UserError(f"config.data: the embedded electricity data has no column {', '.join((*wrong, *others))} "
                        f"(it has {', '.join(COLUMNS)}); set data.path")  # fmt: skip
    if config.groups != ("id",) or config.file_step_seconds != STEP_SECONDS:
        raise UserError(f"config.data: the embedded electricity data has the group id and steps of {STEP_SECONDS} s, got "
                        f"{', '.join(config.groups) or 'no group'} and {config.file_step_seconds}; set data.path")  # fmt: skip
    count, hours = config.synthetic.servers, config.synthetic.days * DAY_HOURS
    rng = np.random.default_rng([config.synthetic.seed, 0])
    hour = np.arange(hours)
    shape = _harmonics(rng, count, hour / DAY_HOURS, DAILY, DAILY_STD) + _harmonics(rng, count, hour / WEEK_HOURS, WEEKLY, WEEKLY_STD)
    shape += LEVEL_STD * rng.standard_normal((count, 1))
    shape += draw_autoregression(rng.standard_normal((hours, count)), NOISE_MEMORY, NOISE_STD).T
    clock = {"hour": hour % DAY_HOURS, "day_of_week": hour // DAY_HOURS % 7, "hours_from_start": hour}
    numbers = {name: np.tile(values, count).astype(float) for name, values in clock.items()} | {"power_usage": 100 * np.exp(shape).ravel()}
    names = tuple(f"MT_{number:03d}" for number in range(1, count + 1))
    time = np.tile(START + STEP_SECONDS * hour.astype(np.int64), count)
    return Columns("embedded electricity data", time, np.repeat(np.arange(count), hours), names, numbers, {},
                   lambda row: f"embedded electricity data: row {row + 1}")  # fmt: skip


def _harmonics(rng: np.random.Generator, count: int, turns: np.ndarray, harmonics: int, std: float) -> np.ndarray:
    """(count, L) a smooth curve of period 1 turn for each customer: weights fall with the frequency."""
    order = np.arange(1, harmonics + 1)
    angle = 2 * np.pi * order[:, None] * turns
    weight = rng.standard_normal((2, count, harmonics)) * std / order
    return weight[0] @ np.cos(angle) + weight[1] @ np.sin(angle)
