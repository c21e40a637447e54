"""The embedded default: a simulated rail line whose small delays grow into gaps and bunches downstream.

Trains leave by a plan with correlated lateness; a train that finds a long gap before it meets more passengers, dwells
longer and falls back further. Letters: D directions, S stations, K trains, n service days. Stations are numbered in travel
order of each direction; times are minutes after midnight of the service date. All draws follow from `SyntheticConfig.seed`.
"""

import functools
from dataclasses import dataclass

import numpy as np

from jaxtrain.data.headway_config import DataConfig, SyntheticConfig
from jaxtrain.data.headway_tables import Tables, Timetable
from jaxtrain.data.headway_time import midnights

FIRST_DATE = np.datetime64("2025-01-02")  # a Thursday
DIRECTIONS = ("outbound", "inbound")
FIRST_MINUTE = (300, 360, 480)  # 05:00 weekday, 06:00 Saturday, 08:00 Sunday
DIRECTION_SHIFT = 3  # direction 1 starts so many minutes later
LAST_MINUTE = 1470  # 24:30
MORNING, EVENING, DAY = (420, 600), (960, 1140), (360, 1200)  # weekday peaks and daytime
LATE_MEMORY, LATE_STD, EARLIEST = 0.7, 1.5, -0.5  # of the lateness at departure
MIN_GAP = 1.5  # between two trains at one station
DOOR_MINUTES, MAX_DWELL_GAP = 0.4, 20.0
RUN_NOISE, RUN_GAIN = 0.30, 0.25  # running time varies by 30 % and gains at most 25 %
INCIDENT_CHANCE, INCIDENT_MIN, INCIDENT_MEAN = 0.0008, 2.0, 5.0  # per train and link
FIRST_GAP = 8.0  # gap that the first train of a day finds
OUTAGE_CHANCE, OUTAGE_MINUTES, OUTAGE_HOURS = 0.5, (5, 30), (360, 1440)


@dataclass(frozen=True)
class World:
    """A drawn history. Absent trains are NaN, always at the end of a day."""

    run: np.ndarray  # (D, S-1) minutes from station s to s + 1
    slope: np.ndarray  # (S,) minutes of dwell per minute of gap
    day_type: np.ndarray  # (n,) 0 weekday, 1 Saturday, 2 Sunday
    plan: np.ndarray  # (K, n, D) planned departure
    lateness: np.ndarray  # (K, n, D) of the departure, before it is cut at EARLIEST
    arrival: np.ndarray  # (K, S, n, D)
    outage: np.ndarray  # (n, 2) first minute and number of minutes without a feed, 0 = none


@functools.lru_cache(maxsize=4)
def world(config: SyntheticConfig) -> World:
    """The history of `config.days` days: a pure function of its argument."""
    rng = np.random.default_rng(config.seed)
    stations, days = config.stations, config.days
    link = rng.uniform(1, 2, stations - 1)
    place = np.arange(stations)
    bump = np.exp(-(((place - 0.55 * stations) / (0.22 * stations)) ** 2))
    run, slope = np.stack([link, link[::-1]]), 0.006 + 0.012 * rng.uniform(0.6, 1.4, stations) * bump

    weekday = (FIRST_DATE.astype(int) + 3 + np.arange(days)) % 7  # Monday 0
    day_type = np.maximum(weekday - 4, 0)
    plan = _plans(day_type)
    shape = (len(plan), stations - 1, days, 2)
    lateness = _lateness(rng.standard_normal(plan.shape))
    link_time = link_minutes(run.T[:, None], rng.standard_normal(shape), rng.random(shape))
    arrival = _simulate(plan + np.maximum(lateness, EARLIEST), link_time, slope)

    first = rng.integers(OUTAGE_HOURS[0], OUTAGE_HOURS[1] - OUTAGE_MINUTES[1], days)
    length = rng.integers(OUTAGE_MINUTES[0], OUTAGE_MINUTES[1] + 1, days) * (rng.random(days) < OUTAGE_CHANCE)
    return World(run, slope, day_type, plan, lateness, arrival, np.stack([first, length], axis=1))


def link_minutes(run: np.ndarray, z: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Doors, running time and its disturbances: z ~ N(0, 1), u ~ U(0, 1); an incident adds 2 + Exp(5) minutes where u is small."""
    noise = np.maximum(RUN_NOISE * run * z, -RUN_GAIN * run)
    total = DOOR_MINUTES + run + noise
    struck = u < INCIDENT_CHANCE  # below it, u / INCIDENT_CHANCE is uniform again: one draw decides whether and how long
    total[struck] += INCIDENT_MIN - INCIDENT_MEAN * np.log((u[struck] + 1e-12) / INCIDENT_CHANCE)
    return total


def planned_departures(day_type: int, direction: int) -> list[float]:
    """Minutes of the planned departures of one day."""
    minute, found = float(FIRST_MINUTE[day_type] + DIRECTION_SHIFT * direction), []
    while minute <= LAST_MINUTE:
        found.append(minute)
        minute += _interval(day_type, direction, minute)
    return found


def _interval(day_type: int, direction: int, minute: float) -> int:
    if day_type == 1:
        return 10 if 480 <= minute < 1260 else 15
    if day_type == 2:
        return 12 if 540 <= minute < 1260 else 15
    for peak, (start, end) in enumerate((MORNING, EVENING)):
        if start <= minute < end:
            return 4 if direction == peak else 6
    return 8 if DAY[0] <= minute < DAY[1] else 12


def _plans(day_type: np.ndarray) -> np.ndarray:
    """(K, n, D)."""
    found = [[planned_departures(kind, d) for d in (0, 1)] for kind in (0, 1, 2)]
    trains = max(len(found[kind][d]) for kind in set(day_type.tolist()) for d in (0, 1))
    table = np.full((3, 2, trains), np.nan)
    for kind in set(day_type.tolist()):
        for d in (0, 1):
            table[kind, d, : len(found[kind][d])] = found[kind][d]
    return np.ascontiguousarray(table[day_type].transpose(2, 0, 1))


def _lateness(z: np.ndarray) -> np.ndarray:
    """First-order autoregression over the trains of a day, stationary from the first train on."""
    lateness = LATE_STD * z
    for k in range(1, len(z)):
        lateness[k] = LATE_MEMORY * lateness[k - 1] + np.sqrt(1 - LATE_MEMORY**2) * lateness[k]
    return lateness


def _simulate(ready: np.ndarray, link_time: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """(K, S, n, D) from the wish to depart (K, n, D) and the disturbed link times (K, S-1, n, D)."""
    trains, links, days, directions = link_time.shape
    x = np.empty((trains, links + 1, days * directions))
    ready, link_time = ready.reshape(trains, -1), link_time.reshape(trains, links, -1)
    before = ready[0] - FIRST_GAP - MIN_GAP + np.zeros((links + 1, 1))  # a train that hinders nobody
    for k in range(trains):
        now = x[k]
        floor = before + MIN_GAP
        np.maximum(ready[k], floor[0], out=now[0])
        for s in range(links):
            gap = np.full_like(now[s], FIRST_GAP) if k == 0 else np.minimum(now[s] - before[s], MAX_DWELL_GAP)
            np.maximum(now[s] + link_time[k, s] + slope[s] * gap, floor[s + 1], out=now[s + 1])
        before = now
    return x.reshape(trains, links + 1, days, directions)


def embedded_stations(config: SyntheticConfig) -> np.ndarray:
    """(S,) unicode in line order, without drawing the line."""
    return np.array([f"s{i:0{len(str(config.stations - 1))}d}" for i in range(config.stations)])


def tables(config: DataConfig) -> Tables:
    """The drawn history as the tables that files hold: arrivals, the rows the feed missed, the timetable by day type."""
    drawn, names = world(config.synthetic), embedded_stations(config.synthetic)
    dates = (FIRST_DATE + np.arange(len(drawn.day_type))).astype(str)
    midnight = midnights(dates, config.timezone)
    ran = np.argwhere(np.isfinite(drawn.arrival))  # (n, 4): train, station in travel order, day, direction
    train, place, day, direction = ran.astype(np.int32).T
    return Tables(
        source="embedded line",
        service_dates=dates,
        directions=np.array(DIRECTIONS),
        stations=names,
        origins=names[[0, -1]],
        time=midnight[day] + 60 * drawn.arrival[tuple(ran.T)],
        day=day,
        trip=(train * 2 + direction) * len(dates) + day,
        station=np.where(direction == 0, place, len(names) - 1 - place).astype(np.int32),
        direction=direction,
        departure=drawn.plan[train, day, direction],
        origin=direction,
        unobserved=_missed(drawn.outage, midnight, config.step_minutes),
        order=names,
        timetable=_timetable(names[[0, -1]]),
    )


def _missed(outage: np.ndarray, midnight: np.ndarray, step_minutes: int) -> np.ndarray:
    """(u,) starts of the rows that hold a minute without feed."""
    minutes = [start + 60 * np.arange(first, first + count) for start, (first, count) in zip(midnight, outage, strict=True)]
    return np.unique(np.concatenate(minutes) // (60 * step_minutes) * (60 * step_minutes))


def _timetable(origins: np.ndarray) -> Timetable:
    rows = [(d, kind, minute) for kind in (0, 1, 2) for d in (0, 1) for minute in planned_departures(kind, d)]
    direction, kind, minute = (np.array(column) for column in zip(*rows, strict=True))
    return Timetable(np.array(DIRECTIONS)[direction], origins[direction], minute, kind.astype(np.int32), np.full(len(rows), ""))
