"""What the training rows of a line teach: means by place and hour, and how long trains run between stations. Minutes."""

import numpy as np

from jaxtrain.data.dataset import Statistics
from jaxtrain.data.headway_config import DataConfig
from jaxtrain.data.headway_field import Line, Plan, Timetable

HOURS = 24
LINK_MINUTES = 15.0  # a neighbour is at most so far away


def training_statistics(config: DataConfig, line: Line, training: np.ndarray) -> Statistics:
    """Means of the target field over the training rows (R,) bool, all float32 minutes.

    mean (), place_mean (S, D), clock_mean (3, 24, S, D) by day type and hour of the service day (place mean where a training
    day has none), and the names and constants that go with them. A place never known in training has the global mean.
    """
    field = getattr(line, config.target)[training]
    known = np.isfinite(field)
    values = np.where(known, field, 0).astype(np.float64)
    mean = values.sum() / max(int(known.sum()), 1)
    place_mean = _ratio(values.sum(0), known.sum(0), mean)

    slot = line.day_type[training] * HOURS + line.minute[training] // 60
    total, count = (np.zeros((3 * HOURS, *field.shape[1:])) for _ in range(2))
    np.add.at(total, slot, values)
    np.add.at(count, slot, known)
    clock_mean = _ratio(total, count, place_mean).reshape(3, HOURS, *field.shape[1:])
    return {
        "mean": np.float32(mean),
        "place_mean": place_mean.astype(np.float32),
        "clock_mean": clock_mean.astype(np.float32),
        "stations": line.stations,
        "directions": line.directions,
        "cap_minutes": np.float32(config.cap_minutes),
        "step_minutes": np.float32(config.step_minutes),
    }


def _ratio(total: np.ndarray, count: np.ndarray, default: float | np.ndarray) -> np.ndarray:
    return np.where(count > 0, total / np.maximum(count, 1), default)


def travel_minutes(link_minutes: np.ndarray) -> np.ndarray:
    """(D, S) float32 minutes from the first station: cumulated mean link times (D, S-1), each clipped to 0..15, NaN taken as 0."""
    links = np.clip(np.nan_to_num(link_minutes, nan=0.0), 0, LINK_MINUTES)
    return np.concatenate([np.zeros((len(links), 1)), np.cumsum(links, axis=1)], axis=1).astype(np.float32)


def plan_statistics(plan: Plan | None) -> Statistics:
    """The plan as plan_* arrays; empty for a line without one."""
    if plan is None:
        return {}
    return {f"plan_{name}": array for name, array in {**vars(plan.timetable), **_lags(plan)}.items()}


def _lags(plan: Plan) -> dict[str, np.ndarray]:
    return {"lag_direction": plan.lag_direction, "lag_origin": plan.lag_origin, "lag_minutes": plan.lag_minutes}


def saved_plan(statistics: Statistics) -> Plan:
    """The plan of a finished run, from `plan_statistics`."""
    timetable = Timetable(**{name: statistics[f"plan_{name}"] for name in Timetable.__dataclass_fields__})
    return Plan(timetable, statistics["plan_lag_direction"], statistics["plan_lag_origin"], statistics["plan_lag_minutes"])
