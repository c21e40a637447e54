"""What the training rows teach: means, daily profile, damping, free flow; and the causal filling that uses them.

Letters: R rows, N nodes, S slots per day, P output steps. Speeds are in the unit of the input; NaN = unobserved.
"""

from dataclasses import dataclass

import numpy as np

from jaxtrain.data.dataset import Statistics
from jaxtrain.data.traffic_config import DAY_SECONDS, DataConfig

FREE_FLOW_PERCENTILE = 85
SMALLEST_STD = 1e-6  # below it a column is constant and is divided by 1


@dataclass(frozen=True)
class Calendar:
    """Per row: slot of the day, class (0 weekday, 1 weekend) and running day, all (R,) int."""

    slot: np.ndarray
    kind: np.ndarray
    day: np.ndarray

    @classmethod
    def of(cls, time: np.ndarray, step_seconds: int) -> "Calendar":
        slot, dow = calendar(time, step_seconds)
        return cls(slot, (dow >= 5).astype(np.int32), time // DAY_SECONDS)


def calendar(time: np.ndarray, step_seconds: int) -> tuple[np.ndarray, np.ndarray]:
    """(slot of the day, weekday with Monday 0), (R,) int32, of local epoch seconds."""
    slot = (time % DAY_SECONDS) // step_seconds
    return slot.astype(np.int32), ((time // DAY_SECONDS + 3) % 7).astype(np.int32)


def training_statistics(speed: np.ndarray, time: np.ndarray, config: DataConfig, congestion_fraction: float) -> Statistics:
    """Everything of the speeds that later steps use, from the training rows speed (R, N), time (R,) alone."""
    days = Calendar.of(time, config.step_seconds)
    observed = np.isfinite(speed)
    mean, std = moments(speed, config.scale)
    node_mean = _or_else(np.nansum(speed, axis=0), observed.sum(axis=0), float(np.mean(speed[observed])))
    free_flow = np.full(speed.shape[1], np.percentile(speed[observed], FREE_FLOW_PERCENTILE))
    for node in np.flatnonzero(observed.any(axis=0)):
        free_flow[node] = np.percentile(speed[observed[:, node], node], FREE_FLOW_PERCENTILE)
    reach = profile_reach(config.step_minutes)
    profile = day_profile(speed, days, config.slots, reach, node_mean)
    jammed = np.where(observed, speed < congestion_fraction * free_flow, np.nan)
    jammed_mean = _or_else(np.nansum(jammed, axis=0), observed.sum(axis=0), float(np.mean(jammed[observed])))
    return {
        "speed_mean": mean.astype(np.float32),
        "speed_std": std.astype(np.float32),
        "profile": profile.astype(np.float32),
        "damping": damping(speed, days, config, node_mean).astype(np.float32),
        "free_flow": free_flow.astype(np.float32),
        "node_mean": node_mean.astype(np.float32),
        "congestion_frequency": day_profile(jammed, days, config.slots, reach, jammed_mean).astype(np.float32),
        "step_minutes": np.asarray(config.step_minutes, np.float32),
        "trained": np.asarray(observed.any(axis=0)),
    }


def moments(speed: np.ndarray, scale: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the observed speeds: scalars (`global`) or (N,) (`node`).

    A node that was observed never, or always at one speed, takes the global pair.
    """
    observed = speed[np.isfinite(speed)]
    mean, std = float(np.mean(observed)), float(np.std(observed))
    if scale == "global":
        return np.asarray(mean), np.asarray(std)
    count = np.isfinite(speed).sum(axis=0)
    node_mean = _or_else(np.nansum(speed, axis=0), count, mean)
    node_std = np.sqrt(_or_else(np.nansum((speed - node_mean) ** 2, axis=0), count, 0))
    constant = node_std < SMALLEST_STD
    return np.where(constant, mean, node_mean), np.where(constant, std, node_std)


def weather_statistics(weather: np.ndarray) -> Statistics:
    """Means and standard deviations (3,) of the training rows weather (R, 3); constant columns are divided by 1."""
    mean = _or_else(np.nansum(weather, axis=0), np.isfinite(weather).sum(axis=0), 0)
    std = np.sqrt(_or_else(np.nansum((weather - mean) ** 2, axis=0), np.isfinite(weather).sum(axis=0), 0))
    return {"weather_mean": mean.astype(np.float32), "weather_std": np.where(std < SMALLEST_STD, 1, std).astype(np.float32)}


def _or_else(total: np.ndarray, count: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
    """total / count where there is any, else `otherwise`."""
    return np.where(count > 0, total / np.maximum(count, 1), otherwise)


# Daily profile


def profile_reach(step_minutes: float) -> int:
    """Slots to either side that a cell of the profile averages: 15 minutes, at least 2 slots."""
    return max(int(15 // step_minutes), 2)


def slot_sums(speed: np.ndarray, days: Calendar, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of the observed speeds by (class, slot, node): (2, S, N) float64 each."""
    cell = days.kind.astype(np.int64) * slots + days.slot
    total, count = np.zeros((2 * slots, speed.shape[1])), np.zeros((2 * slots, speed.shape[1]))
    observed = np.isfinite(speed)
    np.add.at(total, cell, np.where(observed, speed, 0))
    np.add.at(count, cell, observed)
    return total.reshape(2, slots, -1), count.reshape(2, slots, -1)


def separate_classes(days: Calendar, speed: np.ndarray) -> bool:
    """Whether weekday and weekend have a profile each: only when both were seen on two days or more.

    The profile of a class seen on one day is that day's history, and nothing is left of it without the day.
    """
    seen = np.isfinite(speed).any(axis=1)
    return min(len(np.unique(days.day[seen & (days.kind == kind)])) for kind in (0, 1)) >= 2


def circular_sum(x: np.ndarray, reach: int) -> np.ndarray:
    """Sum over the 2 reach + 1 slots around each slot of (2, S, N), the day closed to a circle (no slot twice)."""
    reach = min(reach, (x.shape[1] - 1) // 2)
    return sum((np.roll(x, k, axis=1) for k in range(-reach, reach + 1)), np.zeros_like(x))


def profile_from_sums(total: np.ndarray, count: np.ndarray, reach: int, node_mean: np.ndarray, separate: bool) -> np.ndarray:
    """(2, S, N): mean around the slot in its class, else in both classes, else the node mean (N,)."""
    total, count = circular_sum(total, reach), circular_sum(count, reach)
    both = _or_else(total.sum(axis=0), count.sum(axis=0), node_mean)
    return _or_else(total, count, both) if separate else np.stack([both, both])


def day_profile(speed: np.ndarray, days: Calendar, slots: int, reach: int, node_mean: np.ndarray) -> np.ndarray:
    """Mean by (weekday or weekend, slot, node): (2, S, N)."""
    return profile_from_sums(*slot_sums(speed, days, slots), reach, node_mean, separate_classes(days, speed))


def damping(speed: np.ndarray, days: Calendar, config: DataConfig, node_mean: np.ndarray) -> np.ndarray:
    """rho (P,): least-squares slope of the deviation from the profile h steps ahead on the deviation now.

    Each day's deviations are taken from a profile that leaves this day out: a profile that has seen the day follows
    it, and the slope comes out too small. Pairs count where both readings are observed; 0 where there is no pair.
    """
    total, count = slot_sums(speed, days, config.slots)
    reach, separate = profile_reach(config.step_minutes), separate_classes(days, speed)
    deviation = np.empty_like(speed, dtype=np.float64)
    for day in np.unique(days.day):
        rows = np.flatnonzero(days.day == day)
        own = slot_sums(speed[rows], Calendar(days.slot[rows], days.kind[rows], days.day[rows]), config.slots)
        left_out = profile_from_sums(total - own[0], count - own[1], reach, node_mean, separate)
        deviation[rows] = speed[rows] - left_out[days.kind[rows], days.slot[rows]]
    rho = np.zeros(config.out_steps)
    for h in range(1, min(config.out_steps, len(speed) - 1) + 1):
        now, later = deviation[:-h], deviation[h:]
        paired = np.isfinite(now) & np.isfinite(later)
        square = np.sum(now[paired] ** 2)
        rho[h - 1] = np.sum(now[paired] * later[paired]) / square if square > 0 else 0
    return rho


# Filling


def fill_causally(speed: np.ndarray, time: np.ndarray, config: DataConfig, statistics: Statistics) -> np.ndarray:
    """Inputs without holes, (R, N) float32: no value uses a later row.

    carry: the last observation if at most `max_fill_minutes` old, else the training profile; profile: always the
    profile; zero: 0. The profile already falls back to the node mean.
    """
    observed = np.isfinite(speed)
    if config.fill == "zero":
        return np.where(observed, speed, 0).astype(np.float32)
    days = Calendar.of(time, config.step_seconds)
    filled = np.where(observed, speed, statistics["profile"][days.kind, days.slot])
    if config.fill == "carry":
        rows = np.arange(len(speed))[:, None]
        last = np.maximum.accumulate(np.where(observed, rows, -1), axis=0)
        recent = (last >= 0) & (time[:, None] - time[np.maximum(last, 0)] <= config.max_fill_minutes * 60)
        filled = np.where(recent, np.take_along_axis(filled, np.maximum(last, 0), axis=0), filled)
    return filled.astype(np.float32)


def hold(values: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """(R, C) with each missing value replaced by the latest before it in its column, else by `otherwise` (C,)."""
    rows = np.arange(len(values))[:, None]
    last = np.maximum.accumulate(np.where(np.isfinite(values), rows, -1), axis=0)
    held = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    return np.where(last >= 0, held, otherwise).astype(np.float32)
