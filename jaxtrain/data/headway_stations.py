"""The stations of a line in travel order: as listed, or derived from the order in which trains see them."""

from collections.abc import Sequence

import numpy as np

from jaxtrain.data.headway_config import DataConfig
from jaxtrain.data.headway_tables import Tables
from jaxtrain.errors import UserError

MAX_NAMED = 8  # stations shown in a note


def line_order(config: DataConfig, tables: Tables, training: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(directions (D,), stations (S,) in the travel order of direction 0), unicode.

    Raises UserError naming two stations where the order cannot be derived, or where a direction does not follow it.
    """
    taught = np.isin(tables.service_dates, training)[tables.day]
    directions = len(tables.directions)
    if tables.order is None:
        chosen = _trunk(config, tables, taught)
        before = [_seen_before(tables, chosen, taught & (tables.direction == d)) for d in range(directions)]
        chosen, before = _sorted(tables, chosen, before)
        swap = False
    else:
        chosen = _listed(config, tables)
        before = [_seen_before(tables, chosen, taught & (tables.direction == d)) for d in range(directions)]
        # The list may run along the second name: direction 0 is the one that travels it from its beginning.
        swap = sum(np.sign(np.triu(b - b.T)).sum() * (1 - 2 * d) for d, b in enumerate(before)) < 0
    turn = -1 if swap else 1
    for d in range(directions):
        runs = before[d] if (d == 0) != swap else before[d].T
        against = np.triu(runs.T > runs)
        if against.any():
            i, j = np.argwhere(against)[0]
            raise UserError(f"{tables.source}: most {tables.directions[d]} trains see {_pair(tables, chosen, i, j)} against the line order "
                            f"that the other pairs or the other direction give; give data.stations, or correct it")  # fmt: skip
    if directions == 1 and swap:
        return tables.directions, tables.stations[chosen][::-1]
    return tables.directions[::turn], tables.stations[chosen]


def _pair(tables: Tables, chosen: np.ndarray, i: int, j: int) -> str:
    return f"{tables.stations[chosen[i]]} and {tables.stations[chosen[j]]}"


def _listed(config: DataConfig, tables: Tables) -> np.ndarray:
    """(S,) codes of the stations listed."""
    assert tables.order is not None
    unseen = [name for name in tables.order if name not in tables.stations]
    if unseen:
        raise UserError(f"{config.stations or tables.source}: listed stations that no train of {tables.source} serves: "
                        f"{', '.join(unseen)}; correct the names or leave them out")  # fmt: skip
    by_name = np.argsort(tables.stations)
    return by_name[np.searchsorted(tables.stations, tables.order, sorter=by_name)]


def _trunk(config: DataConfig, tables: Tables, taught: np.ndarray) -> np.ndarray:
    """Codes of the stations that at least `trunk_share` of the training trips serve."""
    trips = len(np.unique(tables.trip[taught]))
    served_once = np.unique(tables.trip[taught].astype(np.int64) * len(tables.stations) + tables.station[taught])
    served = np.bincount(served_once % len(tables.stations), minlength=len(tables.stations)) / max(trips, 1)
    chosen = np.flatnonzero(served >= config.trunk_share)
    if len(chosen) < 2:
        if len(tables.directions) > 1 and not _shared(tables).any():
            raise UserError(f"{tables.source}: no station has trains of both directions ({', '.join(tables.stations[:3])}); give the "
                            "platforms of one station the same name")  # fmt: skip
        best = ", ".join(f"{tables.stations[s]} {served[s]:.0%}" for s in np.argsort(-served)[:3])
        raise UserError(f"{tables.source}: fewer than 2 stations are served by {config.trunk_share:.0%} of the {trips} training trips "
                        f"(most: {best}); lower data.trunk_share or give data.stations")  # fmt: skip
    return chosen


def _shared(tables: Tables) -> np.ndarray:
    """(N,) bool: stations with arrivals of every direction."""
    served = np.zeros((len(tables.stations), len(tables.directions)), bool)
    served[tables.station, tables.direction] = True
    return np.asarray(served.all(axis=1))


def left_out(tables: Tables, config: DataConfig, order: np.ndarray) -> tuple[str, ...]:
    """A note on the stations that a derived order (S,) leaves out."""
    others = [name for name in tables.stations.tolist() if name not in set(order.tolist())]
    if tables.order is not None or not others:
        return ()
    names = ", ".join(others[:MAX_NAMED]) + (f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else "")
    return (f"stations of fewer than {config.trunk_share:.0%} of the training trips are left out: {names}",)


def _seen_before(tables: Tables, chosen: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(S, S) number of trips that saw station i before station j."""
    place = np.full(len(tables.stations), -1)
    place[chosen] = np.arange(len(chosen))
    rows = rows & (place[tables.station] >= 0)
    trip = np.unique(tables.trip[rows], return_inverse=True)[1]
    time = np.full((trip.max(initial=-1) + 1, len(chosen)), np.nan)
    time[trip, place[tables.station[rows]]] = tables.time[rows]
    return np.stack([(time[:, i : i + 1] < time).sum(axis=0) for i in range(len(chosen))])


def _sorted(tables: Tables, chosen: np.ndarray, before: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Stations by the number of others that come after them in direction 0; a cycle or an unseen pair is a UserError."""
    wins = before[0] > before[0].T
    order = np.argsort(-wins.sum(axis=1), kind="stable")
    undecided = np.triu(~wins[np.ix_(order, order)], k=1)
    if undecided.any():
        i, j = np.argwhere(undecided)[0]
        raise UserError(f"{tables.source}: the order of {_pair(tables, chosen[order], i, j)} cannot be derived from the "
                        f"{tables.directions[0]} trains; give data.stations")  # fmt: skip
    return chosen[order], [b[np.ix_(order, order)] for b in before]
