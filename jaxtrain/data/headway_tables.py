"""What a rail line is read into: its tables, what training days teach about it, and its fields."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timetable:
    """Planned departures from the terminals, n rows.

    direction, origin: (n,) unicode; minute: (n,) float64 local minutes of the service date, may pass 1,440
    day_type:          (n,) int32 0 weekday, 1 Saturday, 2 Sunday; -1 where `date` is given
    date:              (n,) unicode service date; "" where `day_type` is given
    """

    direction: np.ndarray
    origin: np.ndarray
    minute: np.ndarray
    day_type: np.ndarray
    date: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What the planned terminal headway follows from: the timetable, and how long trains run from its origins to the grid.

    lag_minutes: (m,) float64 median from an origin's departure to the direction's first grid station,
                 of lag_direction (m,) and lag_origin (m,) unicode; departures from other origins are not in the timetable
    """

    timetable: Timetable
    lag_direction: np.ndarray
    lag_origin: np.ndarray
    lag_minutes: np.ndarray


@dataclass(frozen=True)
class Tables:
    """One line's arrivals, checked; times in UTC epoch seconds. What files and the embedded line are read into.

    source:        the file's path, for messages
    service_dates: (days,) unicode YYYY-MM-DD, ascending: the days with arrivals
    directions:    (D,) unicode, names of `direction`; stations (N,), origins (O,) unicode likewise
    time:          (n,) float64 s; day, trip, station, direction (n,) int32 codes (day: position in service_dates;
                   a trip has its own code on every day)
    departure:     (n,) float64 scheduled departure of the trip at its origin, local minutes of the service date; NaN unknown
    origin:        (n,) int32 code, -1 unknown
    snapshots:     (m,) float64 s, ascending: when the feed was read; None = not known
    unobserved:    (u,) int64 s: starts of the rows that the feed did not see, where they are known outright; None = not known
    order:         (S,) unicode, stations in line order as given; None = to be derived
    timetable:     None = to be rebuilt
    """

    source: str
    service_dates: np.ndarray
    directions: np.ndarray
    stations: np.ndarray
    origins: np.ndarray
    time: np.ndarray
    day: np.ndarray
    trip: np.ndarray
    station: np.ndarray
    direction: np.ndarray
    departure: np.ndarray
    origin: np.ndarray
    snapshots: np.ndarray | None = None
    unobserved: np.ndarray | None = None
    order: np.ndarray | None = None
    timetable: Timetable | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What the raster must know beforehand, learned on training days alone.

    directions: (D,) unicode; stations: (D, S) unicode in grid order of each direction
    """

    directions: np.ndarray
    stations: np.ndarray
    plan: Plan
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """The fields of a line, one row per `step_minutes`; what tables, prepared arrays and the embedded line end in.

    directions:    (D,) unicode
    stations:      (D, S) unicode, in grid order of each direction
    headway, age:  (R, S, D) float32 minutes, NaN = unknown; a prepared array has one of them, the other is all NaN
    planned:       (R, D, K) float32 minutes, NaN = unknown
    time:          (R,) int64 epoch s of the row's start, UTC; fictive (from 1970) for a prepared array without start
    day:           (R,) int32 position in service_dates; 0 without service days
    day_type:      (R,) int32 0 weekday, 1 Saturday, 2 Sunday
    minute:        (R,) int32 minute of the service day, 0..1439
    service_dates: (n,) unicode; (0,) for a prepared array without start
    plan:          None for prepared arrays
    """

    directions: np.ndarray
    stations: np.ndarray
    headway: np.ndarray
    age: np.ndarray
    planned: np.ndarray
    time: np.ndarray
    day: np.ndarray
    day_type: np.ndarray
    minute: np.ndarray
    service_dates: np.ndarray
    plan: Plan | None = None
    notes: tuple[str, ...] = ()
