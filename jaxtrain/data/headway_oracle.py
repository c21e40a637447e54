"""The forecaster that knows the generator of the embedded line: it sees every train up to now and draws the rest anew.

Letters: B rows, D directions, S stations, K trains of a day, M futures, F forecast rows; C = B x D columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from jaxtrain.data.headway_config import DataConfig
from jaxtrain.data.headway_synthetic import (
    DOOR_MINUTES,
    EARLIEST,
    FIRST_GAP,
    LATE_MEMORY,
    LATE_STD,
    MAX_DWELL_GAP,
    MIN_GAP,
    RUN_GAIN,
    World,
    link_minutes,
    world,
)  # fmt: skip

TRIES = 10  # draws for an event that must lie after now
CHUNK = 16  # rows drawn at once, for the memory
NEVER = 1e6  # minute of an event beyond the horizon
JUST = 1e-3  # minutes after now, where no draw lay after it


@dataclass(frozen=True)
class _Column:
    """One row and direction: what has happened by `now` (minutes after midnight), and which trains move next."""

    day: int
    direction: int  # in which stations are counted from the entry
    now: float
    lead: int  # first train that has not finished its run
    trains: int  # lead, lead + 1, ... that may move within the horizon


def oracle(config: DataConfig, rows: np.ndarray, futures: int = 48) -> dict[str, np.ndarray]:
    """{"value": (B, F, S, D) minutes, float32}: the mean field of `futures` draws, clipped to the cap, in the order of the grid.

    rows (B, 1): first input row of each example (`Dataset.index`). The draws of an example depend on the seed and its row
    only, never on its batch. An average over M draws carries a sampling error: divide its squared error by 1 + 1/M.
    """
    known = world(config.synthetic)
    parts = [_forecast(known, config, rows[i : i + CHUNK, 0], futures) for i in range(0, len(rows), CHUNK)]
    value = np.concatenate(parts)
    if config.align == "line":
        value[..., 1] = value[:, :, ::-1, 1]
    return {"value": value}


def _forecast(known: World, config: DataConfig, starts: np.ndarray, futures: int) -> np.ndarray:
    """(B, F, S, D) in travel order."""
    ahead = config.step_minutes * np.arange(1, config.horizon + 1)
    columns = [c for start in starts for c in _columns(known, config, int(start))]
    drawn = _Futures(known, columns, ahead[-1], *_noise(known, config, columns, futures))
    headway, last = _history(known, columns)
    shape = (len(ahead), *headway.shape, futures)
    later = np.full(shape, np.nan, np.float32)  # headway or passing time after the last event of each row
    age = config.target == "age"
    for events, station, time, gap in drawn.run():
        column, future = np.nonzero(events)
        row = np.ceil((time[events] - drawn.now[column, 0]) / config.step_minutes).astype(int) - 1
        later[row, station[column], column, future] = (time if age else gap)[events]

    state = np.repeat((last if age else headway)[..., None], futures, axis=-1).astype(np.float32)
    value = np.empty((len(ahead), *headway.shape), np.float32)
    for m, minutes in enumerate(ahead):
        state = np.where(np.isnan(later[m]), state, later[m])
        field = drawn.now + minutes - state if age else state
        field = np.minimum(np.where(np.isnan(field), FIRST_GAP, field), config.cap_minutes)
        value[m] = field.mean(-1)
    return np.ascontiguousarray(value.reshape(len(ahead), -1, len(starts), 2).transpose(2, 0, 1, 3))


def _columns(known: World, config: DataConfig, start: int) -> Iterator[_Column]:
    day, row = divmod(start + config.lookback, config.day_rows)
    now = config.day_start_minutes + row * config.step_minutes
    end = now + config.horizon * config.step_minutes
    for direction in (0, 1):
        gone = int((known.arrival[:, -1, day, direction] <= now).sum())
        due = int((known.plan[:, day, direction] + EARLIEST <= end).sum())
        yield _Column(day, direction, now, gone, max(due - gone, 0))


def _noise(known: World, config: DataConfig, columns: list[_Column], futures: int) -> tuple[np.ndarray, ...]:
    """Draws for the links (J, K', C, M), for the tries of a first event (TRIES, K', C, M) and of the lateness (same), by row."""
    horizon = config.horizon * config.step_minutes
    shortest = DOOR_MINUTES + (1 - RUN_GAIN) * known.run.min()
    steps = min(known.run.shape[1] + 1, int(horizon / shortest) + 2)
    trains = max(c.trains for c in columns)
    shape = (len(columns), trains, steps + 2 * TRIES, futures)
    z, u = np.zeros(shape, np.float32), np.ones(shape, np.float32)
    for i, column in enumerate(columns):
        seed = (config.synthetic.seed, 1, column.day, round(column.now * 60), column.direction)
        rng = np.random.default_rng(seed)
        size = (column.trains, *shape[2:])
        z[i, : column.trains] = rng.standard_normal(size, np.float32)
        u[i, : column.trains] = rng.random(size, np.float32)
    return z.transpose(1, 2, 0, 3), u.transpose(1, 2, 0, 3)


def _history(known: World, columns: list[_Column]) -> tuple[np.ndarray, np.ndarray]:
    """Headway and passing time (S, C) of the last train before now, NaN where there was none."""
    headway = np.full((known.run.shape[1] + 1, len(columns)), np.nan)
    last = headway.copy()
    stations = np.arange(len(headway))
    for i, c in enumerate(columns):
        times = known.arrival[:, :, c.day, c.direction]
        count = (times <= c.now).sum(0)
        newest = times[np.maximum(count - 1, 0), stations]
        last[:, i] = np.where(count > 0, newest, np.nan)
        headway[:, i] = np.where(count > 1, newest - times[np.maximum(count - 2, 0), stations], np.nan)
    return headway, last


class _Futures:
    """The trains on the line, drawn forward from now to the end of the horizon, train by train and link by link."""

    def __init__(self, known: World, columns: list[_Column], horizon: float, z: np.ndarray, u: np.ndarray) -> None:
        self.known, self.columns, self.z, self.u = known, columns, z, u
        self.now = np.array([c.now for c in columns])[:, None]
        self.end = self.now + horizon
        self.day, self.direction = np.array([(c.day, c.direction) for c in columns]).T
        self.lead = np.array([c.lead for c in columns])
        self.trains = np.array([c.trains for c in columns])
        self.run_minutes = known.run.T[:, self.direction]  # (S-1, C)
        self.stations, self.futures = known.run.shape[1] + 1, z.shape[-1]

    def run(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Events in the order of trains: whether (C, M), station (C,), time (C, M), headway (C, M; NaN for a day's first train)."""
        columns = np.arange(len(self.columns))
        before, _ = self._train(self.lead - 1)
        lateness = self._lateness(self.lead - 1)
        for i in range(len(self.z)):
            number = self.lead + i
            now, passed = self._train(number)
            drawn, departs = self._departure(i, number, lateness, before[0])
            started, first = (passed > 0)[:, None], number == 0
            lateness = np.where(started, self._lateness(number), drawn)
            for j in range(self.z.shape[1] - 2 * TRIES):
                runs = (i < self.trains) & (passed + j < self.stations)
                at = np.minimum(passed + j, self.stations - 1)
                time = self._next(i, j, at, columns, now, before, first)
                if j == 0:
                    time = np.where(started, time, departs)
                # Beyond the horizon a train stays where it is, and so does all that follows it.
                events = runs[:, None] & (time <= self.end)
                now[at, columns] = np.where(runs[:, None], np.where(events, time, NEVER), now[at, columns])
                if not events.any():
                    break
                yield events, at, time, np.where(first[:, None], np.nan, time - before[at, columns])
            before = now

    def _next(self, i: int, j: int, at: np.ndarray, columns: np.ndarray, now: np.ndarray, before: np.ndarray,
              first: np.ndarray) -> np.ndarray:  # fmt: skip
        """(C, M) arrival at station `at` of the train whose last event was one station before; j = 0 must lie after now."""
        link = np.maximum(at - 1, 0)
        left = now[link, columns]
        gap = np.minimum(left - before[link, columns], MAX_DWELL_GAP)
        gap[first] = FIRST_GAP
        ready = left + self.known.slope[link][:, None] * gap
        floor = before[at, columns] + MIN_GAP
        run = self.run_minutes[link, columns][:, None]
        if j:
            return np.maximum(ready + link_minutes(run, self.z[i, j], self.u[i, j]), floor)
        tries = slice(-2 * TRIES, -TRIES)
        return self._after_now(np.maximum(ready + link_minutes(run, self.z[i, tries], self.u[i, tries]), floor))[0]

    def _departure(self, i: int, number: np.ndarray, lateness: np.ndarray, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lateness and departure (C, M) of trains that have not left: drawn after now."""
        z = self.z[i, -TRIES:]
        drawn = np.where((number == 0)[:, None], LATE_STD * z, LATE_MEMORY * lateness + np.sqrt(1 - LATE_MEMORY**2) * LATE_STD * z)
        plan = self.known.plan[np.minimum(number, len(self.known.plan) - 1), self.day, self.direction][:, None]
        times = np.maximum(plan + np.maximum(drawn, EARLIEST), floor + MIN_GAP)
        time, choice = self._after_now(times)
        return np.take_along_axis(drawn, choice[None], 0)[0], time

    def _after_now(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first of the tries (T, C, M) that lies after now, and its number; just after now where none does."""
        choice = (times > self.now).argmax(0)
        return np.maximum(np.take_along_axis(times, choice[None], 0)[0], self.now + JUST), choice

    def _train(self, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Times (S, C, M) of train `number` of each column, NEVER where later than now; stations already passed (C,)."""
        exists = (number >= 0) & (number < len(self.known.plan))
        times = self.known.arrival[np.clip(number, 0, len(self.known.plan) - 1), :, self.day, self.direction]  # (C, S)
        happened = (times <= self.now) & exists[:, None]
        # Before the first train there was one long enough ago to hinder nobody.
        rest = np.where(number < 0, -NEVER, NEVER)[:, None]
        times = np.where(happened, times, rest)
        return np.repeat(times.T[:, :, None], self.futures, axis=2), happened.sum(1)

    def _lateness(self, number: np.ndarray) -> np.ndarray:
        inside = np.clip(number, 0, len(self.known.plan) - 1)
        return np.repeat(np.nan_to_num(self.known.lateness[inside, self.day, self.direction])[:, None], self.futures, axis=1)
