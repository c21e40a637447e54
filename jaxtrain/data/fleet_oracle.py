"""What a forecaster says that knows how the embedded fleet works: it continues the true state of every origin.

Letters: B windows, tau horizon steps, R targets, Q levels; a base step is one of the generator's 300 s.
"""

from collections.abc import Sequence

import numpy as np

from jaxtrain.data import fleet_embedded
from jaxtrain.data import fleet_synthetic as synthetic
from jaxtrain.data.fleet_config import DataConfig
from jaxtrain.data.fleet_synthetic import (
    CASCADE,
    CASCADE_DELAY,
    INCIDENT,
    INCIDENT_SIZE,
    SPIKE,
    SPIKE_CHANCE,
    World,
    draw_autoregression,
)

MEMORY = len(INCIDENT) + 2 * CASCADE_DELAY  # base steps back to which an incident of any of the three servers still counts
RANDOM_MEMORY = np.array([synthetic.DEMAND_MEMORY, *synthetic.NOISE_MEMORY])  # of the fleet's demand and the server's own noise
RANDOM_STD = np.array([synthetic.DEMAND_STD, *synthetic.NOISE_STD])


def oracle(config: DataConfig, rows: np.ndarray, quantiles: Sequence[float], futures: int = 200) -> dict[str, np.ndarray]:
    """{"quantiles": (B, tau, R, Q) float32, file units} of `futures` continuations from each origin.

    rows (B, 4): rows of the index that `fleet.splits` makes of the embedded fleet. Everything that began before the
    origin is known (noise, incidents, spikes); what comes later is drawn anew. The draws of a window depend on the seed
    and on its server and origin only, never on its batch. Targets must be metrics of the generator.
    """
    known = synthetic.world(config.synthetic)
    table = fleet_embedded.fleet(config)
    place = {name: g for g, name in enumerate(known.servers.names)}
    columns = [synthetic.TARGETS.index(name) for name in config.targets]
    merged = config.step_seconds // synthetic.STEP_SECONDS
    result = np.empty((len(rows), config.horizon_steps, len(columns), len(quantiles)), np.float32)
    for b, (row, group, _, _) in enumerate(rows):
        origin = int(table.step0[group] + row - table.row0[group]) * merged
        drawn = _continue(known, place[table.groups[group]], origin, config.horizon_steps * merged, config.synthetic.seed, futures)
        drawn = drawn[columns].reshape(len(columns), futures, config.horizon_steps, merged).mean(axis=-1)
        result[b] = np.quantile(drawn, quantiles, axis=1).transpose(2, 1, 0)
    return {"quantiles": result}


def _continue(known: World, server: int, origin: int, steps: int, seed: int, futures: int) -> np.ndarray:
    """(4, futures, steps) metrics of a server from base step `origin` on."""
    rng = np.random.default_rng([seed, 3, server, origin])
    servers, shape = known.servers, (futures, steps)
    now = np.array([known.demand[origin - 1], *known.noise[:, server, origin - 1]]) if origin else np.zeros(5)
    innovations = rng.standard_normal((steps, futures, 5))
    noise = draw_autoregression(innovations, RANDOM_MEMORY, RANDOM_STD, now).transpose(2, 1, 0)

    event = np.broadcast_to(_begun(known.spikes[server], origin, steps, SPIKE, 0), shape).copy()
    _add_drawn(event, rng.random(shape) < SPIKE_CHANCE, SPIKE, 0)
    source, share, delay = server, 1.0, 0
    for _ in range(3):  # its own incidents, those of the server it depends on, and those of that one's
        event += share * _begun(known.incidents[source], origin, steps, INCIDENT, delay)
        started = rng.random(shape) < servers.incident_chance[source]
        _add_drawn(event, started * rng.uniform(*INCIDENT_SIZE, shape), share * INCIDENT, delay)
        source, share, delay = servers.upstream[source], share * CASCADE, delay + CASCADE_DELAY
        if source < 0:
            break

    base = known.base[:, server, None, origin : origin + steps]
    gamma = synthetic.PROFILES[servers.profile[server]].gamma
    return synthetic.metrics(base, event, gamma * noise[0], noise[1:], servers.cores[server])


def _begun(starts: np.ndarray, origin: int, steps: int, shape: np.ndarray, delay: int) -> np.ndarray:
    """(steps,) what the starts (L,) before `origin` still contribute from there on, `delay` steps later."""
    padded = np.zeros(MEMORY + steps)
    past = starts[max(origin - MEMORY, 0) : origin]
    padded[MEMORY - len(past) : MEMORY] = past
    return synthetic.response(padded, shape)[MEMORY - delay : MEMORY - delay + steps]


def _add_drawn(event: np.ndarray, sizes: np.ndarray, shape: np.ndarray, delay: int) -> None:
    """Add the response to the few starts among sizes (futures, steps), `delay` steps later."""
    for future, start in zip(*np.nonzero(sizes), strict=True):
        reached = event[future, start + delay : start + delay + len(shape)]
        reached += sizes[future, start] * shape[: len(reached)]
