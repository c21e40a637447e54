"""What a forecaster says that knows how the embedded fleet works: it continues the true state of every origin.

Letters: B windows, tau horizon steps, R targets, Q levels; a base step is one of the generator's 300 s.
"""

import functools
from collections.abc import Sequence

import numpy as np

from jaxtrain.data import fleet_synthetic as synthetic
from jaxtrain.data.fleet_config import DataConfig
from jaxtrain.data.fleet_synthetic import CASCADE, CASCADE_DELAY, INCIDENT, SPIKE, World

MEMORY = len(INCIDENT) + 2 * CASCADE_DELAY  # base steps back to which an incident of any of the three servers still counts


def oracle(config: DataConfig, rows: np.ndarray, quantiles: Sequence[float], futures: int = 200) -> dict[str, np.ndarray]:
    """{"quantiles": (B, tau, R, Q) float32, file units} of `futures` continuations from each origin.

    rows (B, 4): rows of the index that `fleet.splits` makes of the embedded fleet. Everything that began before the
    origin is known (noise, incidents, spikes); what comes later is drawn anew. The draws of a window depend on the seed
    and on its server and origin only, never on its batch. Targets must be metrics of the generator.
    """
    known = synthetic.world(config.synthetic)
    table = synthetic.fleet(config)
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

    def draw_noise(now: float, memory: float, std: float) -> np.ndarray:
        fading, mixing = _autoregression(steps, memory, std)
        return now * fading + rng.standard_normal(shape) @ mixing

    # The state at the origin is that of the step before it; every series begins at 0.
    before = origin - 1
    demand = draw_noise(known.demand[before] if origin else 0.0, synthetic.DEMAND_MEMORY, synthetic.DEMAND_STD)
    noise = np.stack([
        draw_noise(known.noise[i, server, before] if origin else 0.0, synthetic.NOISE_MEMORY[i], synthetic.NOISE_STD[i]) for i in range(4)
    ])  # fmt: skip

    event = _begun(known.spikes[server], origin, steps, SPIKE, 0)
    event = event + (rng.random(shape) < synthetic.SPIKE_CHANCE) @ _response(steps, "spike", 0)
    source, share, delay = server, 1.0, 0
    for _ in range(3):  # its own incidents, those of the server it depends on, and those of that one's
        started = rng.random(shape) < servers.incident_chance[source]
        sizes = started * rng.uniform(*synthetic.INCIDENT_SIZE, shape)
        event += share * (_begun(known.incidents[source], origin, steps, INCIDENT, delay) + sizes @ _response(steps, "incident", delay))
        source, share, delay = servers.upstream[source], share * CASCADE, delay + CASCADE_DELAY
        if source < 0:
            break

    base = known.base[:, server, None, origin : origin + steps]
    gamma = synthetic.PROFILES[servers.profile[server]].gamma
    return synthetic.metrics(base, event, gamma * demand, noise, servers.cores[server])


def _begun(starts: np.ndarray, origin: int, steps: int, shape: np.ndarray, delay: int) -> np.ndarray:
    """(steps,) what the starts (L,) before `origin` still contribute from there on, `delay` steps later."""
    padded = np.zeros(MEMORY + steps)
    past = starts[max(origin - MEMORY, 0) : origin]
    padded[MEMORY - len(past) : MEMORY] = past
    return synthetic.response(padded, shape)[MEMORY - delay : MEMORY - delay + steps]


@functools.lru_cache(maxsize=16)
def _autoregression(steps: int, memory: float, std: float) -> tuple[np.ndarray, np.ndarray]:
    """An AR(1) as x_0 * (steps,) + innovations @ (steps, steps)."""
    ahead = np.arange(steps) - np.arange(steps)[:, None]
    mixing = np.where(ahead >= 0, memory ** np.maximum(ahead, 0), 0) * std * np.sqrt(1 - memory**2)
    return memory ** np.arange(1, steps + 1), mixing


@functools.lru_cache(maxsize=16)
def _response(steps: int, kind: str, delay: int) -> np.ndarray:
    """(steps, steps): starts @ this = their response, `delay` steps later."""
    shape = INCIDENT if kind == "incident" else SPIKE
    ahead = np.arange(steps) - np.arange(steps)[:, None] - delay
    inside = (ahead >= 0) & (ahead < len(shape))
    return np.where(inside, shape[np.clip(ahead, 0, len(shape) - 1)], 0)
