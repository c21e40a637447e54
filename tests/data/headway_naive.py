"""Plain reference forecasts of a batch, one cell at a time in the text's own words: (B, F, S, D) minutes.

Letters: B batch, L lookback, F horizon, S stations, D directions; travel (D, S) minutes from each direction's first station;
place (S, D) training means. A forecast of minute ahead m belongs to target row m - 1.
"""

import numpy as np


def last_known(values: np.ndarray, known: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(B, S, D): the newest known value (B, L, S, D) of each cell, else its training mean."""
    last = np.broadcast_to(place, values[:, 0].shape).copy()
    for row in range(values.shape[1]):
        last = np.where(known[:, row], values[:, row], last)
    return last


def hold(values: np.ndarray, known: np.ndarray, place: np.ndarray, horizon: int) -> np.ndarray:
    return np.repeat(last_known(values, known, place)[:, None], horizon, axis=1)


def clock(clock_mean: np.ndarray, when: np.ndarray, horizon: int) -> np.ndarray:
    """Training mean of the day type and hour of every target row."""
    hour = (when[:, 1, None] + np.arange(horizon)) // 60 % 24
    return clock_mean[when[:, 0, None], hour]


def advected(batch: dict, travel: np.ndarray, place: np.ndarray, plan: bool) -> np.ndarray:
    """The headway that is now where a train that will be at s in m minutes is now; before the line, the plan (or the entry's last)."""
    last = last_known(batch["headway"], batch["headway_known"], place)
    horizon = batch["planned"].shape[1]
    found = np.empty((len(last), horizon, *last.shape[1:]), np.float32)
    for d, minutes in enumerate(travel):
        order = np.argsort(minutes, kind="stable")  # of a grid that runs against the trains the last station is the entry
        for s in range(len(minutes)):
            for m in range(1, horizon + 1):
                from_entry = minutes[s] - m
                place_then = round(float(np.interp(from_entry, minutes[order], np.arange(len(order)))))
                found[:, m - 1, s, d] = last[:, order[place_then], d]
                row = min(int(np.floor(m - minutes[s])), horizon - 1)
                if plan and from_entry < 0:
                    known = batch["planned_known"][:, row, d, 0]
                    found[:, m - 1, s, d] = np.where(known, batch["planned"][:, row, d, 0], last[:, order[0], d])
    return found


def dead_reckoning(batch: dict, travel: np.ndarray, place: np.ndarray, plan: bool, cap: float) -> np.ndarray:
    """The youngest train that can have passed s by then: ages upstream grow by m minutes and shrink by the running time.

    An age at the cap says no more than "at least so old": upstream it dates no train and is left out.
    """
    last = last_known(batch["age"], batch["age_known"], place)
    horizon = batch["planned"].shape[1]
    found = np.empty((len(last), horizon, *last.shape[1:]), np.float32)
    for d, minutes in enumerate(travel):
        for s in range(len(minutes)):
            upstream = np.flatnonzero(minutes <= minutes[s])
            now = np.where((last[:, upstream, d] < cap) | (upstream == s), last[:, upstream, d], np.inf)
            for m in range(1, horizon + 1):
                ages = now + m - (minutes[s] - minutes[upstream])
                best = np.where(ages >= 0, ages, np.inf).min(1)
                if plan and m > minutes[s]:
                    row = min(int(np.floor(m - minutes[s])), horizon - 1)
                    known = batch["planned_known"][:, row, d, 0]
                    best = np.where(known, np.minimum(best, batch["planned"][:, row, d, 0]), best)
                found[:, m - 1, s, d] = np.minimum(best, cap)
    return found
