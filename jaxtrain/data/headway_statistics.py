"""What the training rows of a line teach: means by place and hour, and how long trains run between stations. Minutes."""

from collections.abc import Sequence

import numpy as np

from jaxtrain.data.dataset import Statistics
from jaxtrain.data.headway_config import DataConfig
from jaxtrain.data.headway_tables import Line, Plan, Tables, Timetable
from jaxtrain.errors import UserError

HOURS = 24
LINK_MINUTES = 15.0  # a neighbour is at most so far away
LEAST_KNOWN = 0.1  # share of the training rows in which a station must be known


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
    for one in np.unique(slot):
        total[one], count[one] = values[slot == one].sum(0), known[slot == one].sum(0)
    clock_mean = _ratio(total, count, place_mean).reshape(3, HOURS, *field.shape[1:])
    return {
        "mean": np.asarray(mean, np.float32),
        "place_mean": place_mean.astype(np.float32),
        "clock_mean": clock_mean.astype(np.float32),
        "stations": line.stations,
        "directions": line.directions,
        "cap_minutes": np.asarray(config.cap_minutes, np.float32),
        "step_minutes": np.asarray(config.step_minutes, np.float32),
    }


def _ratio(total: np.ndarray, count: np.ndarray, default: float | np.ndarray) -> np.ndarray:
    return np.where(count > 0, total / np.maximum(count, 1), default)


def link_minutes(config: DataConfig, tables: Tables, line: Line, dates: Sequence[str]) -> np.ndarray:
    """(D, S-1) mean minutes between neighbouring stations of the grid, in travel order, over the trips of these service dates.

    Each difference counts as 0..15 minutes: a train held on the way is no running time. NaN where no trip serves both.
    """
    taught = np.isin(tables.service_dates, list(dates))[tables.day]
    directions, stations = line.directions, _in_travel_order(config, line.stations)
    links = np.full((len(directions), stations.shape[1] - 1), np.nan)
    for d, direction in enumerate(directions):
        place = _positions(tables.stations, stations[d])[tables.station]
        rows = np.flatnonzero(taught & (tables.directions == direction)[tables.direction] & (place >= 0))
        if not len(rows):
            continue
        rows = rows[np.argsort(-tables.time[rows], kind="stable")]  # of a stop reported twice the earliest stays
        trips, trip = np.unique(tables.trip[rows], return_inverse=True)
        minute = np.full((len(trips), stations.shape[1]), np.nan)
        minute[trip, place[rows]] = tables.time[rows] / 60
        run = np.clip(np.diff(minute, axis=1), 0, LINK_MINUTES)
        known = np.isfinite(run)
        links[d] = _ratio(np.where(known, run, 0).sum(0), known.sum(0), np.nan)
    return links


def _positions(names: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(N,) position of every name in `order`, -1 where it has none."""
    place = {str(name): i for i, name in enumerate(order)}
    return np.array([place.get(str(name), -1) for name in names])


def _in_travel_order(config: DataConfig, values: np.ndarray) -> np.ndarray:
    """(D, S) with direction 1 reversed where the grid runs against it; its own inverse."""
    return values if config.align == "travel" else np.concatenate([values[:1], values[1:, ::-1]])


def travel_minutes(config: DataConfig, links: np.ndarray) -> np.ndarray:
    """(D, S) float32 minutes from the entry of each direction, in grid order: cumulated link times (D, S-1) in travel order.

    An unknown link counts as the mean of the known ones of its direction.
    """
    known = np.isfinite(links)
    usual = _ratio(np.where(known, links, 0).sum(1), known.sum(1), 0.0)[:, None]
    filled = np.clip(np.where(known, links, usual), 0, LINK_MINUTES)
    travel = np.concatenate([np.zeros((len(links), 1)), np.cumsum(filled, axis=1)], axis=1)
    return _in_travel_order(config, travel).astype(np.float32)


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


def check_known(field: np.ndarray, stations: np.ndarray, where: str) -> tuple[str, ...]:
    """Notes on stations of which training rows (R, S, D) know next to nothing; stations (D, S).

    Raises UserError where that holds for all of them, or where every one is constant.
    """
    known = np.isfinite(field)
    share = known.mean(0)  # (S, D)
    low, high = np.where(known, field, np.inf).min(0), np.where(known, field, -np.inf).max(0)
    dead = (share < LEAST_KNOWN) | (low >= high)
    names = stations.T
    if dead.all():
        raise UserError(f"{where}: every station is constant or more than {1 - LEAST_KNOWN:.0%} unknown in training "
                        f"({names[0, 0]}: {share[0, 0]:.0%} known); check the zone, data.max_gap_minutes and the snapshots")  # fmt: skip
    if not dead.any():
        return ()
    found = sorted(set(names[dead].tolist()))
    return (f"{len(found)} stations are constant or more than {1 - LEAST_KNOWN:.0%} unknown in training: {', '.join(found)}",)
