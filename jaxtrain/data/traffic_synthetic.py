"""The embedded default: a synthetic road network whose jams spill back upstream, and the forecaster that knows it.

Corridors of eight nodes with edges in travel direction and a few links between corridors. Commuting demand, rain and
incidents slow the traffic; a jam moves against the traffic, one edge per two steps. Times are local, units km/h,
degC, mm/h. All draws follow from `SyntheticConfig.seed`.
"""

import functools
from dataclasses import dataclass

import numpy as np

from jaxtrain.data.traffic_config import DAY_SECONDS, DataConfig, SyntheticConfig
from jaxtrain.data.traffic_statistics import calendar

START = int(np.datetime64("2026-01-01T00:00:00").astype(np.int64))  # a Thursday
CORRIDOR = 8  # nodes per corridor
LINKS = 3  # per corridor, to another corridor
JAM_MEMORY, JAM_COUPLING, JAM_SOURCE, JAM_NOISE = 0.55, 0.43, 0.45, 0.02
SEVERITY = 0.55
MAX_SLOWDOWN = 0.92
SPEED_NOISE = 1.0  # km/h
MIN_SPEED = 1.0  # km/h
FULL_RAIN = 8.0  # mm/h beyond which rain slows no further
DAY_FACTOR_STD = 0.12


@dataclass(frozen=True)
class Network:
    """Constants of the generator; Dt = step in minutes, S slots per day, N nodes."""

    edges: np.ndarray  # (E, 2) from, to in travel direction
    free_flow: np.ndarray  # (N,) km/h
    rain_sensitivity: np.ndarray  # (N,)
    coupling: np.ndarray  # (N, N) float64, W[i, j] > 0 for j downstream of i
    demand: np.ndarray  # (2, S, N) weekday, weekend; without the day factor
    incident_start: np.ndarray  # (2, S, N) chance per step
    incident_end: float
    rain_start: float
    rain_end: float


@dataclass(frozen=True)
class World:
    """A drawn history: hidden state and readings. R rows."""

    network: Network
    time: np.ndarray  # (R,) int64 local epoch seconds
    day_factor: np.ndarray  # (days,)
    rain: np.ndarray  # (R,) mm/h, 0 = dry
    severity: np.ndarray  # (R, N) of the running incident, 0 = none
    jam: np.ndarray  # (R, N)
    speed: np.ndarray  # (R, N) float32 km/h, NaN = missing
    weather: np.ndarray  # (R, 3) float32 degC, km/h, mm/h


def draw_edges(nodes: int, rng: np.random.Generator) -> np.ndarray:
    """(E, 2): k -> k+1 inside a corridor, and LINKS random nodes of each corridor to a random node of another."""
    corridor = np.arange(nodes) // CORRIDOR
    edges = [(k, k + 1) for k in range(nodes - 1) if corridor[k] == corridor[k + 1]]
    if corridor[-1] > 0:
        for c in range(corridor[-1] + 1):
            own, others = np.flatnonzero(corridor == c), np.flatnonzero(corridor != c)
            for source in rng.choice(own, size=min(LINKS, len(own)), replace=False):
                edges.append((int(source), int(rng.choice(others))))
    return np.array(edges, np.int64)


def draw_network(nodes: int, step_minutes: float, rng: np.random.Generator) -> Network:
    """Constants of a network of `nodes` nodes."""
    edges = draw_edges(nodes, rng)
    coupling = np.zeros((nodes, nodes))
    coupling[edges[:, 0], edges[:, 1]] = rng.uniform(0.5, 1.5, len(edges))
    total = coupling.sum(1, keepdims=True)
    coupling = JAM_COUPLING * coupling / np.where(total > 0, total, 1)

    hour = (np.arange(round(1440 / step_minutes)) * step_minutes / 60)[:, None]
    morning, evening = 0.55 * rng.beta(2, 3, nodes), 0.60 * rng.beta(2, 3, nodes)
    morning_hour, evening_hour = rng.normal(7.75, 0.35, nodes), rng.normal(17.5, 0.45, nodes)
    weekend = rng.uniform(0.05, 0.2, nodes)
    weekday_demand = morning * _bump(hour, morning_hour, 0.9) + evening * _bump(hour, evening_hour, 1.2)
    demand = np.stack([weekday_demand, weekend * _bump(hour, 14, 3)])
    return Network(
        edges=edges,
        free_flow=rng.uniform(40, 70, nodes),
        rain_sensitivity=rng.uniform(0.05, 0.25, nodes),
        coupling=coupling,
        demand=demand,
        incident_start=(0.25 * step_minutes / 1440) * (1 + 2 * (demand > 0.2)),
        incident_end=step_minutes / 45,
        rain_start=step_minutes / 1200,
        rain_end=step_minutes / 90,
    )


def _bump(hour: np.ndarray, centre: np.ndarray | float, width: float) -> np.ndarray:
    return np.exp(-(((hour - centre) / width) ** 2) / 2)


def next_rain(network: Network, rain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Intensity one step later, elementwise: two-state chain, intensity ~ Gamma(2, 2) mm/h drawn at the start."""
    u, drawn = rng.random(rain.shape), rng.gamma(2, 2, rain.shape)
    return np.where(rain > 0, np.where(u < network.rain_end, 0, rain), np.where(u < network.rain_start, drawn, 0))


def next_severity(network: Network, severity: np.ndarray, chance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Incident severity one step later; the end is memoryless, so nobody can know it."""
    u = rng.random(severity.shape)
    starts = (severity == 0) & (u < chance)
    severity = np.where((severity > 0) & (u < network.incident_end), 0, severity)
    severity[starts] = SEVERITY * rng.uniform(0.6, 1.2, np.count_nonzero(starts))
    return severity


def next_jam(network: Network, jam: np.ndarray, jam_before: np.ndarray, severity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """q(t) from q(t-1), q(t-2) and the incidents of t: (..., N)."""
    noise = JAM_NOISE * rng.standard_normal(jam.shape)
    return JAM_MEMORY * jam + jam_before @ network.coupling.T + JAM_SOURCE * severity + noise


def speeds(network: Network, demand: np.ndarray, jam: np.ndarray, rain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Measured speed, km/h; demand with the day factor and jam (..., N), rain (...)."""
    flow = network.free_flow * (1 - np.clip(demand + jam, 0, MAX_SLOWDOWN))
    wet = 1 - network.rain_sensitivity * (np.minimum(rain, FULL_RAIN) / FULL_RAIN)[..., None]
    return np.maximum(MIN_SPEED, flow * wet + SPEED_NOISE * rng.standard_normal(flow.shape))


@functools.lru_cache(maxsize=4)
def world(config: SyntheticConfig, step_minutes: float) -> World:
    """The history of `config.days` days: a pure function of its arguments."""
    rng = np.random.default_rng(config.seed)
    network = draw_network(config.nodes, step_minutes, rng)
    slots = network.demand.shape[1]
    rows, nodes = config.days * slots, config.nodes
    time = START + round(step_minutes * 60) * np.arange(rows, dtype=np.int64)
    slot, dow = calendar(time, round(step_minutes * 60))
    weekend = (dow >= 5).astype(np.int64)
    factor = np.exp(rng.normal(0, DAY_FACTOR_STD, config.days))

    rain, severity, jam = np.zeros(rows), np.zeros((rows, nodes)), np.zeros((rows, nodes))
    for t in range(1, rows):
        rain[t] = next_rain(network, rain[t - 1 : t], rng)[0]
        severity[t] = next_severity(network, severity[t - 1], network.incident_start[weekend[t], slot[t]], rng)
        jam[t] = next_jam(network, jam[t - 1], jam[max(t - 2, 0)], severity[t], rng)
    demand = network.demand[weekend, slot] * factor[np.arange(rows) // slots, None]
    speed = speeds(network, demand, jam, rain, rng)
    speed[_outages(rows, nodes, step_minutes, rng)] = np.nan

    hour = slot * step_minutes / 60
    temperature = 27 + 4 * np.sin(2 * np.pi * (hour - 9) / 24) - 2 * (rain > 0) + rng.normal(0, 0.3, rows)
    weather = np.stack([temperature, np.abs(8 + rng.normal(0, 3, rows)), rain], axis=1)
    return World(network, time, factor, rain, severity, jam, speed.astype(np.float32), weather.astype(np.float32))


def _outages(rows: int, nodes: int, step_minutes: float, rng: np.random.Generator) -> np.ndarray:
    """(R, N) bool: about 1 % of the readings, in outages of one node of 1 to 6 hours (3.5 on average)."""
    missing = np.zeros((rows, nodes), bool)
    for _ in range(int(0.01 * rows * nodes / (210 / step_minutes))):
        first, length = rng.integers(rows), round(rng.uniform(1, 6) * 60 / step_minutes)
        missing[first : first + length, rng.integers(nodes)] = True
    return missing


def positions(nodes: int) -> np.ndarray:
    """(N, 2) float32 schematic lat, lon in degrees: corridors as parallel rows, about 1 km between nodes."""
    place = np.arange(nodes)
    return np.stack([place // CORRIDOR, place % CORRIDOR], axis=1).astype(np.float32) * 0.01


def oracle(config: DataConfig, rows: np.ndarray, samples: int = 256) -> dict[str, np.ndarray]:
    """What a forecaster says that knows the generator: continues it from the true hidden state of each origin.

    rows (B, 1): first input row of each example (`Dataset.index`). Returns median, mean (B, P, N) float32 km/h and
    the draws they come from, samples (B, samples, P, N) float32 (0.8 MB per example at the default size: pass rows
    in batches). The draws of an example depend on the seed and its row only, never on its batch.
    """
    known = world(config.synthetic, config.step_minutes)
    drawn = np.stack([_continue(known, config, int(t) + config.in_steps - 1, samples) for t in rows[:, 0]])
    return {"median": np.median(drawn, axis=1), "mean": drawn.mean(axis=1), "samples": drawn}


def _continue(known: World, config: DataConfig, origin: int, samples: int) -> np.ndarray:
    """(samples, P, N) float32 speeds of the P steps after row `origin`."""
    rng = np.random.default_rng((config.synthetic.seed, 1, origin))
    network, nodes = known.network, config.synthetic.nodes
    time = known.time[origin] + config.step_seconds * np.arange(1, config.out_steps + 1)
    slot, dow = calendar(time, config.step_seconds)
    day = (time - known.time[0]) // DAY_SECONDS
    today = (known.time[origin] - known.time[0]) // DAY_SECONDS
    # Today's factor is part of the state; that of a day still to come is not known to anybody.
    factors = {int(d): np.exp(rng.normal(0, DAY_FACTOR_STD, samples)) for d in np.unique(day) if d != today}
    factors[int(today)] = np.full(samples, known.day_factor[today])

    rain = np.full(samples, known.rain[origin])
    severity = np.repeat(known.severity[origin : origin + 1], samples, axis=0)
    jam = np.repeat(known.jam[origin : origin + 1], samples, axis=0)
    before = np.repeat(known.jam[max(origin - 1, 0)][None], samples, axis=0)
    result = np.empty((samples, config.out_steps, nodes), np.float32)
    for h in range(config.out_steps):
        weekend = int(dow[h] >= 5)
        rain = next_rain(network, rain, rng)
        severity = next_severity(network, severity, network.incident_start[weekend, slot[h]], rng)
        jam, before = next_jam(network, jam, before, severity, rng), jam
        demand = network.demand[weekend, slot[h]] * factors[int(day[h])][:, None]
        result[:, h] = speeds(network, demand, jam, rain, rng)
    return result
