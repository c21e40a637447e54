"""The embedded default: a synthetic fleet of servers whose incidents spread to their dependants.

Daily curves, batch jobs and weekly maintenance are known; demand, noise, spikes and incidents are random. Letters: G
servers, L steps of 300 s from Monday 2025-01-06 00:00 UTC, t step, h hour of the day. cpu, memory and disk in percent,
load average in processes. All draws follow from `SyntheticConfig.seed`.
"""

import functools
from dataclasses import dataclass

import numpy as np

from jaxtrain.data.fleet_config import DataConfig, SyntheticConfig
from jaxtrain.data.fleet_grid import Category, Columns
from jaxtrain.errors import UserError

START = int(np.datetime64("2025-01-06T00:00:00").astype(np.int64))  # a Monday
STEP_SECONDS = 300
DAY, WEEK = 288, 2016  # steps
TARGETS = ("cpu_percent", "memory_percent", "disk_percent", "load_average")
GROUPS = ("server",)
NUMBERS = (*TARGETS, "upstream_cpu_percent", "maintenance", "cores")
CATEGORIES = ("status", "profile")
STATUSES = ("offline", "maintenance", "critical_issue", "heavy_load", "recovery", "morning_spike", "idle", "healthy")

DEMAND_MEMORY, DEMAND_STD = 0.995, 0.35  # of the whole fleet
NOISE_MEMORY = np.array([0.90, 0.985, 0.85, 0.70])  # of each server: cpu, memory, disk, load
NOISE_STD = np.array([0.35, 0.15, 0.40, 0.10])
MAINTENANCE_STEPS, MAINTENANCE_DROP = 18, 2.5
SPIKE = 1.5 * np.array([1 / 3, 2 / 3, *[1.0] * 13, 0.75, 0.5, 0.25])
SPIKE_CHANCE = 3 / WEEK  # per step
RAMP, PLATEAU, RECOVERY = 24, 18, 12  # steps of an incident: 2 h, 1.5 h, 1 h
INCIDENT = np.concatenate([np.arange(1, RAMP + 1) / RAMP, np.ones(PLATEAU), np.arange(RECOVERY, 0, -1) / (RECOVERY + 1)])
INCIDENT_CHANCE, PROBLEM_CHANCE = 0.5 / WEEK, 2 / WEEK  # per step; problem servers
INCIDENT_SIZE = (1.8, 2.6)
CASCADE, CASCADE_DELAY = 0.7, 36  # what a dependant inherits, and how many steps later
OFFLINE_CHANCE, OFFLINE_STEPS = 0.25, 6  # after an incident
ABSENT_CHANCE = 0.001  # per row
LATE_EVERY, LATE_FIRST = 24, 11  # servers 11, 35, .. are installed half-way


@dataclass(frozen=True)
class Profile:
    """A kind of server; b_* are logits before any load."""

    name: str
    share: float
    b_cpu: float
    amplitude: float
    peak: float  # hour
    weekend: float  # factor of the amplitude
    batch: tuple[float, float, float]  # hour, hours, size
    b_memory: float
    b_disk: float
    batch_disk: float
    gamma: float  # answer to the demand of the fleet
    leak: float
    cores: int


NO_BATCH = (0.0, 0.0, 0.0)
PROFILES = (
    Profile("ml_compute", 0.22, 0.2, 0.5, 14, 0.9, (20, 8, 1.4), 0.6, -1.6, 0.6, 0.4, 0.6, 16),
    Profile("database", 0.17, -0.9, 0.9, 11, 0.4, (2, 2, 1.0), 1.0, -0.8, 1.6, 0.7, 0.3, 8),
    Profile("web_api", 0.28, -1.4, 1.2, 13, 0.6, NO_BATCH, -0.4, -2.2, 0.0, 1.0, 0.9, 4),
    Profile("conductor_mgmt", 0.06, -1.6, 0.7, 10, 0.3, NO_BATCH, -0.8, -2.4, 0.0, 0.5, 0.4, 4),
    Profile("data_ingest", 0.11, -1.0, 0.8, 9, 0.3, (1, 3, 1.6), 0.0, -1.0, 1.8, 0.6, 0.3, 8),
    Profile("risk_analytics", 0.09, -0.8, 0.9, 16, 0.1, (18, 4, 1.8), 0.4, -1.8, 0.8, 0.6, 0.5, 16),
    Profile("generic", 0.07, -2.0, 0.4, 13, 0.7, NO_BATCH, -1.0, -2.2, 0.0, 0.3, 0.2, 2),
)
DEPENDS_ON = {
    "web_api": ("database",),
    "conductor_mgmt": ("database",),
    "data_ingest": ("database",),
    "risk_analytics": ("database",),
    "ml_compute": ("conductor_mgmt", "data_ingest"),
}


@dataclass(frozen=True)
class Servers:
    """Constants of the fleet, (G,) each."""

    names: tuple[str, ...]
    profile: np.ndarray  # index into PROFILES
    upstream: np.ndarray  # server that this one depends on, -1 = none
    b_cpu: np.ndarray
    b_memory: np.ndarray
    b_disk: np.ndarray
    amplitude: np.ndarray
    peak: np.ndarray  # hour
    batch_hour: np.ndarray
    batch_size: np.ndarray
    leak: np.ndarray
    cores: np.ndarray
    incident_chance: np.ndarray
    maintenance: np.ndarray  # step of the week at which the slot begins

    def constant(self, name: str) -> np.ndarray:
        """A constant of the profile, for every server."""
        return np.array([getattr(PROFILES[p], name) for p in self.profile])


@dataclass(frozen=True)
class World:
    """A drawn history. Logits known in advance, hidden state, and what was measured."""

    servers: Servers
    base: np.ndarray  # (3, G, L) logits of cpu, memory, disk that follow from the clock
    demand: np.ndarray  # (L,)
    noise: np.ndarray  # (4, G, L)
    spikes: np.ndarray  # (G, L) bool, started here
    incidents: np.ndarray  # (G, L) size of the incident that started here, 0 = none
    maintenance: np.ndarray  # (G, L) bool, known in advance
    status: np.ndarray  # (G, L) index into STATUSES
    metrics: np.ndarray  # (4, G, L) as in TARGETS; NaN while offline
    present: np.ndarray  # (G, L) bool: the row is in the table


def counts(servers: int) -> np.ndarray:
    """Servers per profile: the shares of PROFILES by largest remainder."""
    exact = servers * np.array([p.share for p in PROFILES])
    result = np.floor(exact + 1e-9).astype(int)
    result[np.argsort(result - exact, kind="stable")[: servers - result.sum()]] += 1
    return result


def draw_servers(number: int, rng: np.random.Generator) -> Servers:
    """Constants of `number` servers."""
    count = counts(number)
    profile = np.repeat(np.arange(len(PROFILES)), count)
    names = tuple(f"{p.name}_{i:03d}" for p, n in zip(PROFILES, count, strict=True) for i in range(1, n + 1))

    def of(name: str) -> np.ndarray:
        return np.array([getattr(PROFILES[p], name) for p in profile], float)

    batch = of("batch")
    upstream = np.full(number, -1)
    for g, p in enumerate(profile):
        hosts = np.flatnonzero([PROFILES[q].name in DEPENDS_ON.get(PROFILES[p].name, ()) for q in profile])
        if len(hosts):
            upstream[g] = rng.choice(hosts)
    return Servers(
        names=names,
        profile=profile,
        upstream=upstream,
        b_cpu=of("b_cpu") + 0.3 * rng.standard_normal(number),
        b_memory=of("b_memory") + 0.3 * rng.standard_normal(number),
        b_disk=of("b_disk") + 0.3 * rng.standard_normal(number),
        amplitude=of("amplitude") * rng.uniform(0.8, 1.2, number),
        peak=of("peak") + 0.7 * rng.standard_normal(number),
        batch_hour=batch[:, 0] + rng.uniform(-1, 1, number),
        batch_size=batch[:, 2] * rng.uniform(0.8, 1.2, number),
        leak=of("leak") * rng.uniform(0.6, 1.4, number),
        cores=of("cores") * rng.integers(1, 3, number),
        incident_chance=np.where(rng.random(number) < 0.1, PROBLEM_CHANCE, INCIDENT_CHANCE),
        maintenance=rng.integers(0, 7, number) * DAY + rng.integers(0, 5, number) * (DAY // 24),
    )


def daily_curve(servers: Servers, steps: np.ndarray) -> np.ndarray:
    """D (G, len(steps)): two harmonics of the day, weaker at weekends."""
    x = 2 * np.pi * (steps % DAY / (DAY / 24) - servers.peak[:, None]) / 24
    weekend = np.where(steps // DAY % 7 >= 5, servers.constant("weekend")[:, None], 1.0)
    return weekend * servers.amplitude[:, None] * (np.cos(x) + 0.3 * np.cos(2 * x))


def draw_autoregression(
    innovations: np.ndarray, memory: np.ndarray | float, std: np.ndarray | float, now: np.ndarray | float = 0.0
) -> np.ndarray:
    """AR(1) along the first axis after the state `now`, with standard deviation `std` in the long run."""
    result = innovations * (std * np.sqrt(1 - np.square(memory)))
    for t, state in enumerate(result):
        state += memory * (result[t - 1] if t else now)
    return result


def response(starts: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Sum of `shape` begun at every start: (..., L)."""
    result = np.zeros(starts.shape)
    for lag, value in enumerate(shape[: starts.shape[-1]]):
        result[..., lag:] += value * starts[..., : starts.shape[-1] - lag]
    return result


def inherited(own: np.ndarray, upstream: np.ndarray) -> np.ndarray:
    """What each server (G, L) takes over from the one it depends on, CASCADE_DELAY steps later."""
    result = np.zeros_like(own)
    linked = np.flatnonzero(upstream >= 0)
    result[linked, CASCADE_DELAY:] = own[upstream[linked], :-CASCADE_DELAY]
    return result


def metrics(base: np.ndarray, event: np.ndarray, demand: np.ndarray, noise: np.ndarray, cores: np.ndarray) -> np.ndarray:
    """(4, ...) percents and load average. base (3, ...) logits; event = incident + spike, demand = gamma f (...); noise (4, ...)."""
    cpu = base[0] + demand + event + noise[0]
    memory = base[1] + 0.3 * event + noise[1]
    disk = base[2] + 0.6 * event + noise[2]
    load = cores * np.exp(-1.2 + 0.55 * cpu + 0.15 * disk + noise[3])
    return np.stack([100 / (1 + np.exp(-cpu)), 100 / (1 + np.exp(-memory)), 100 / (1 + np.exp(-disk)), load])


@functools.lru_cache(maxsize=4)
def world(config: SyntheticConfig) -> World:
    """The history of `config.days` days: a pure function of its argument."""
    servers = draw_servers(config.servers, np.random.default_rng([config.seed, 0]))
    rng, number = np.random.default_rng([config.seed, 1]), config.servers
    steps = np.arange(config.days * DAY)
    length = len(steps)

    curve = daily_curve(servers, steps)
    hour = steps % DAY / (DAY / 24)
    batch_on = (hour - servers.batch_hour[:, None]) % 24 < servers.constant("batch")[:, 1:2]
    since = (steps - servers.maintenance[:, None]) % WEEK
    maintenance = since < MAINTENANCE_STEPS
    base = np.stack([
        servers.b_cpu[:, None] + curve + servers.batch_size[:, None] * batch_on - MAINTENANCE_DROP * maintenance,
        servers.b_memory[:, None] + 0.3 * curve + 2 * servers.leak[:, None] * since / WEEK,
        servers.b_disk[:, None] + 0.4 * curve + servers.constant("batch_disk")[:, None] * batch_on - maintenance,
    ])  # fmt: skip

    demand = draw_autoregression(rng.standard_normal((length, 1)), DEMAND_MEMORY, DEMAND_STD)[:, 0]
    noise = draw_autoregression(rng.standard_normal((length, number, 4)), NOISE_MEMORY, NOISE_STD)
    noise = np.ascontiguousarray(noise.transpose(2, 1, 0))
    spikes = rng.random((number, length)) < SPIKE_CHANCE
    started = rng.random((number, length)) < servers.incident_chance[:, None]
    incidents = started * rng.uniform(*INCIDENT_SIZE, (number, length))
    spike, own = response(spikes, SPIKE), response(incidents, INCIDENT)
    once = own + CASCADE * inherited(own, servers.upstream)
    event = own + CASCADE * inherited(once, servers.upstream) + spike
    values = metrics(base, event, servers.constant("gamma")[:, None] * demand, noise, servers.cores[:, None])

    rng = np.random.default_rng([config.seed, 2])
    ends = started & (rng.random((number, length)) < OFFLINE_CHANCE)
    offline = response(ends, np.repeat([0.0, 1.0], [len(INCIDENT), OFFLINE_STEPS])) > 0
    values[:, offline] = np.nan
    present = rng.random((number, length)) >= ABSENT_CHANCE
    present[LATE_FIRST::LATE_EVERY, : length // 2] = False

    phases = _phases(started, servers.upstream)
    conditions = [
        offline,
        maintenance,
        phases[1],
        phases[0] | (spike > 0),
        phases[2],
        (curve > 0.8 * servers.amplitude[:, None]) & (hour < 12),
        base[0] + servers.constant("gamma")[:, None] * demand + event < -2.2,
    ]
    status = np.select(conditions, range(len(conditions)), len(conditions)).astype(np.int8)
    return World(servers, base, demand, noise, spikes, incidents, maintenance, status, values, present)


def _phases(started: np.ndarray, upstream: np.ndarray) -> list[np.ndarray]:
    """Ramp, plateau and recovery (G, L) bool of own and inherited incidents."""
    edges, result = np.cumsum([0, RAMP, PLATEAU, RECOVERY]), []
    for first, last in zip(edges[:-1], edges[1:], strict=True):
        shape = np.zeros(len(INCIDENT))
        shape[first:last] = 1
        own = response(started, shape) > 0
        once = own | inherited(own, upstream)
        result.append(own | inherited(once, upstream))
    return result


def columns(config: DataConfig) -> Columns:
    """The embedded fleet as a long table with the columns NUMBERS and CATEGORIES.

    Raises UserError where the config asks for columns or steps that it does not have.
    """
    _check(config)
    drawn = world(config.synthetic)
    server, step = np.nonzero(drawn.present)
    measured = np.where(drawn.present, drawn.metrics[0], np.nan)
    upstream = np.where(drawn.servers.upstream[:, None] >= 0, measured[drawn.servers.upstream], np.nan)
    numbers = dict(zip(TARGETS, drawn.metrics[:, server, step], strict=True))
    numbers |= {"upstream_cpu_percent": upstream[server, step], "maintenance": drawn.maintenance[server, step].astype(float)}
    numbers |= {"cores": drawn.servers.cores[server]}
    categories = {
        "status": Category(1 + drawn.status[server, step].astype(np.int32), STATUSES),
        "profile": Category(1 + drawn.servers.profile[server], tuple(p.name for p in PROFILES)),
    }
    declared = config.observed_categorical + config.known_categorical + config.static_categorical
    for name in numbers.keys() & set(declared):
        values, place = np.unique(numbers[name], return_inverse=True)
        categories[name] = Category(1 + place, tuple(f"{v:g}" for v in values))
    time = START + STEP_SECONDS * step.astype(np.int64)
    return Columns("embedded fleet", time, server, drawn.servers.names, numbers, categories, lambda row: f"embedded fleet: row {row + 1}")


def _check(config: DataConfig) -> None:
    categorical = config.observed_categorical + config.known_categorical + config.static_categorical
    wanted = {
        "groups": (GROUPS, config.groups),
        "targets": (TARGETS, config.targets),
        "other numbers": (NUMBERS, config.observed_real + config.known_real + config.static_real),
        "categorical columns": ((*NUMBERS, *CATEGORIES), categorical),
    }
    for what, (there, names) in wanted.items():
        missing = [name for name in names if name not in there]
        if missing:
            raise UserError(f"config.data: the embedded fleet has no {', '.join(missing)} ({what}: {', '.join(there)}); set data.path")
    if config.file_step_seconds != STEP_SECONDS:
        raise UserError(f"config.data.file_step_seconds: the embedded fleet has steps of {STEP_SECONDS} s, got {config.file_step_seconds}; "
                        "set data.step_seconds to average, or data.path")  # fmt: skip
