"""The embedded fleet against its equations, and the oracle against the history it continues."""

from dataclasses import replace

import numpy as np
import pytest
from fleet_shipped import MEDIAN, QUANTILES, TINY, naive, qrisk, shipped

from jaxtrain.data import fleet, fleet_embedded, fleet_oracle
from jaxtrain.data import fleet_synthetic as synthetic
from jaxtrain.data.fleet_synthetic import WEEK, world
from jaxtrain.errors import UserError

DEFAULT = shipped().synthetic


@pytest.fixture(scope="module")
def drawn():
    return world(DEFAULT)


def test_sizes_of_the_default(drawn):
    assert synthetic.counts(48).tolist() == [11, 8, 14, 3, 5, 4, 3] and synthetic.counts(1).sum() == 1
    assert drawn.present.shape == (48, 8064) and drawn.present.sum() == 378_625
    assert 80 < np.count_nonzero(drawn.incidents) < 180 and 520 < drawn.spikes.sum() < 680
    data = fleet.splits(shipped(), QUANTILES)
    assert [len(part) for part in data.named().values()] == [212_688, 5_712, 5_712]
    late = [name for name, step in zip(drawn.servers.names, drawn.present.argmax(axis=1), strict=True) if step > 100]
    assert late == [drawn.servers.names[11], drawn.servers.names[35]] and drawn.present[11].argmax() >= 4032


def test_a_seed_is_a_fleet():
    once, again = world(TINY), world.__wrapped__(TINY)
    np.testing.assert_array_equal(once.metrics, again.metrics)
    np.testing.assert_array_equal(once.status, again.status)
    assert not np.array_equal(world(replace(TINY, seed=1)).demand, once.demand)


def test_cells_follow_the_equations(drawn):
    """Plain loops over single cells: the clock, events of three servers, four metrics."""
    servers, random = drawn.servers, np.random.default_rng(0)
    busy = np.argwhere(np.isfinite(drawn.metrics[0]))

    def incident(g, t):
        total = 0.0
        for start in range(max(0, t - 53), t + 1):
            j, size = t - start + 1, drawn.incidents[g, start]
            total += size * (j / 24 if j <= 24 else 1 if j <= 42 else (55 - j) / 13)
        return total

    def spike(g, t):
        weights = [1 / 3, 2 / 3, *[1] * 13, 0.75, 0.5, 0.25]
        return sum(1.5 * weights[t - start] for start in range(max(0, t - 17), t + 1) if drawn.spikes[g, start])

    hot = np.argwhere((drawn.status == synthetic.STATUSES.index("critical_issue")) & np.isfinite(drawn.metrics[0]))
    for g, t in [*random.choice(busy, 60), *random.choice(hot, 60)]:
        p = synthetic.PROFILES[servers.profile[g]]
        hour, weekday, up = t % 288 / 12, t // 288 % 7, servers.upstream[g]
        x = 2 * np.pi * (hour - servers.peak[g]) / 24
        curve = (p.weekend if weekday >= 5 else 1) * servers.amplitude[g] * (np.cos(x) + 0.3 * np.cos(2 * x))
        batch = p.batch[1] > 0 and (hour - servers.batch_hour[g]) % 24 < p.batch[1]
        since = (t - servers.maintenance[g]) % WEEK
        event = incident(g, t) + spike(g, t)
        if up >= 0 and t >= 36:
            event += 0.7 * incident(up, t - 36)
            if servers.upstream[up] >= 0 and t >= 72:
                event += 0.49 * incident(servers.upstream[up], t - 72)
        cpu = servers.b_cpu[g] + curve + servers.batch_size[g] * batch + p.gamma * drawn.demand[t] + event + drawn.noise[0, g, t]
        cpu -= 2.5 * (since < 18)
        memory = servers.b_memory[g] + 0.3 * curve + 2 * servers.leak[g] * since / 12 / 168 + 0.3 * event + drawn.noise[1, g, t]
        disk = servers.b_disk[g] + 0.4 * curve + p.batch_disk * batch + 0.6 * event - (since < 18) + drawn.noise[2, g, t]
        load = servers.cores[g] * np.exp(-1.2 + 0.55 * cpu + 0.15 * disk + drawn.noise[3, g, t])
        expected = [*(100 / (1 + np.exp(-np.array([cpu, memory, disk])))), load]
        np.testing.assert_allclose(drawn.metrics[:, g, t], expected, rtol=1e-9)
        assert drawn.maintenance[g, t] == (since < 18)
    assert any(servers.upstream[servers.upstream >= 0] >= 0)


def test_noise_has_the_declared_memory_and_size(drawn):
    for series, memory, std in zip(drawn.noise, synthetic.NOISE_MEMORY, synthetic.NOISE_STD, strict=True):
        settled = series[:, 500:]
        np.testing.assert_allclose(settled.std(), std, rtol=0.05)
        np.testing.assert_allclose(np.mean(settled[:, 1:] * settled[:, :-1]) / np.mean(settled**2), memory, atol=0.01)
    np.testing.assert_allclose((drawn.demand[1:] - 0.995 * drawn.demand[:-1]).std(), 0.35 * np.sqrt(1 - 0.995**2), rtol=0.05)


def test_status_names_what_happens(drawn):
    status = np.array(synthetic.STATUSES)[drawn.status]
    g, t = np.argwhere(drawn.incidents > 0)[0]
    free = ~drawn.maintenance[g, t : t + 54]
    assert set(status[g, t : t + 24][free[:24]]) <= {"heavy_load", "critical_issue"}
    assert np.all(status[g, t + 24 : t + 42][free[24:42]] == "critical_issue")
    np.testing.assert_array_equal(status == "offline", np.isnan(drawn.metrics[0]))
    assert np.isnan(drawn.metrics[:, status == "offline"]).all() and 0 < np.mean(status == "offline") < 0.002
    assert np.all(status[drawn.maintenance & (status != "offline")] == "maintenance")
    assert set(np.unique(status)) == set(synthetic.STATUSES)


def test_the_table_shows_what_a_monitor_sees(drawn):
    found = fleet_embedded.fleet(shipped())
    g = next(i for i, up in enumerate(drawn.servers.upstream) if up >= 0 and drawn.present[i, 0])
    place, up = found.groups.index(drawn.servers.names[g]), drawn.servers.upstream[g]
    first = int(found.row0[place])
    measured = drawn.present & np.isfinite(drawn.metrics[0])
    row = np.flatnonzero(measured[g, :500] & measured[up, :500])
    np.testing.assert_allclose(found.real[first + row, :4], drawn.metrics[:, g, row].T, rtol=1e-6)
    np.testing.assert_allclose(found.real[first + row, 4], drawn.metrics[0, up, row], rtol=1e-6)
    np.testing.assert_array_equal(found.real[first + row, 5], drawn.maintenance[g, row])
    lonely = found.groups.index(next(n for n, up in zip(drawn.servers.names, drawn.servers.upstream, strict=True) if up < 0))
    assert np.isnan(found.real[found.row0[lonely] : found.row0[lonely + 1], 4]).all()


@pytest.mark.parametrize("changes,says", [
    ({"targets": ("cpu_percent", "latency")}, "the embedded fleet has no latency"),
    ({"targets": ("maintenance",), "known_real": ()}, "the embedded fleet has no maintenance (targets: cpu_percent"),
    ({"static_categorical": ("rack",)}, "the embedded fleet has no rack"),
    ({"file_step_seconds": 60}, "steps of 300 s, got 60"),
    ({"groups": ("host",)}, "the embedded fleet has no host"),
])  # fmt: skip
def test_other_columns_need_a_file(changes, says):
    with pytest.raises(UserError, match="data.path") as fault:
        fleet_embedded.fleet(shipped(**{"bounds": {}, "transform": {}, "observed_real": (), **changes}))
    assert says in str(fault.value)


# The oracle


def frozen(monkeypatch):
    """Nothing new happens after an origin."""
    monkeypatch.setattr(fleet_oracle, "RANDOM_STD", np.zeros(5))
    monkeypatch.setattr(fleet_oracle, "SPIKE_CHANCE", 0.0)
    quiet = world(DEFAULT)
    monkeypatch.setattr(synthetic, "world", lambda _: replace(quiet, servers=replace(quiet.servers, incident_chance=np.zeros(48))))


@pytest.mark.parametrize("preset", ["default", "demo"])
def test_oracle_continues_the_true_state(monkeypatch, drawn, preset):
    """Without new draws it equals plain loops from the state before the origin, incidents of three servers included."""
    config = shipped(preset)
    merged = config.step_seconds // 300
    found = fleet_embedded.fleet(config)
    servers = drawn.servers
    chain = next(g for g, up in enumerate(servers.upstream) if up >= 0 and servers.upstream[up] >= 0 and drawn.incidents[up, 300:].any())
    up = servers.upstream[chain]
    place = found.groups.index(servers.names[chain])
    begun = 300 + int(np.argmax(drawn.incidents[up, 300:] > 0))  # of the server that it depends on: it arrives 36 steps later
    origin = begun // merged + 2
    row = int(found.row0[place]) + origin - int(found.step0[place])
    frozen(monkeypatch)
    quantiles = fleet_oracle.oracle(config, np.array([[row, place, 96, 0]], np.int32), (0.1, 0.5), futures=2)["quantiles"]

    start, steps = origin * merged, config.horizon_steps * merged
    ahead = np.arange(steps)

    def event(g, delay, shape, starts):
        total = np.zeros(steps)
        for s in range(max(0, start - 200), start):
            for j, value in enumerate(shape):
                if 0 <= s + j + delay - start < steps:
                    total[s + j + delay - start] += value * starts[g, s]
        return total

    total = event(chain, 0, synthetic.SPIKE, drawn.spikes) + event(chain, 0, synthetic.INCIDENT, drawn.incidents)
    inherited = event(up, 36, synthetic.INCIDENT, drawn.incidents)
    total += 0.7 * inherited + 0.49 * event(servers.upstream[up], 72, synthetic.INCIDENT, drawn.incidents)
    assert inherited.max() > 1
    demand = drawn.demand[start - 1] * 0.995 ** (ahead + 1)
    noise = drawn.noise[:, chain, start - 1, None] * synthetic.NOISE_MEMORY[:, None] ** (ahead + 1)
    gamma = synthetic.PROFILES[servers.profile[chain]].gamma
    expected = synthetic.metrics(drawn.base[:, chain, start : start + steps], total, gamma * demand, noise, servers.cores[chain])
    expected = expected.reshape(4, -1, merged).mean(axis=2).T
    np.testing.assert_allclose(quantiles[0, :, :, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(quantiles[0, :, :, 1], expected, rtol=1e-5)


def test_oracle_draws_belong_to_the_window():
    config = shipped("demo", synthetic=TINY, targets=("load_average", "cpu_percent"), bounds={})
    index = fleet.splits(replace(config, eval_stride=40), QUANTILES).test.index[:3]
    together = fleet_oracle.oracle(config, index, QUANTILES, futures=20)["quantiles"]
    alone = fleet_oracle.oracle(config, index[1:2], QUANTILES, futures=20)["quantiles"]
    assert together.shape == (3, 24, 2, 7) and together.dtype == np.float32
    np.testing.assert_array_equal(together[1], alone[0])
    assert np.all(np.diff(together, axis=-1) >= 0) and together[..., 1, :].max() > together[..., 0, :].max()


def qrisk_with_oracle(config, every):
    data = fleet.splits(config, QUANTILES).test
    first, step0 = data.arrays["row0"], data.arrays["step0"]

    def forecasts(batch):
        group, step, history, block = batch["when"].T
        rows = np.stack([first[group] + step - step0[group], group, history, block], axis=1)
        return {**naive(batch), "oracle": fleet_oracle.oracle(config, rows, QUANTILES)["quantiles"]}

    return qrisk(data, forecasts, every)


@pytest.mark.slow
@pytest.mark.parametrize("preset,every,best,known,tolerance", [
    ("default", 14, (0.286, 0.064, 0.330, 0.381), (0.162, 0.036, 0.243, 0.222), 0.015),
    ("demo", 7, (0.276, 0.061, 0.317, 0.370), (0.148, 0.032, 0.221, 0.196), 0.015),
])  # fmt: skip
def test_oracle_is_calibrated_and_far_ahead_of_naive(preset, every, best, known, tolerance):
    scores = qrisk_with_oracle(shipped(preset), every)
    medians = np.array([scores[name][:, MEDIAN] for name in ("last", "day", "week", "window")])
    np.testing.assert_allclose(medians.min(axis=0), best, atol=tolerance)
    np.testing.assert_allclose(scores["oracle"][:, MEDIAN], known, atol=tolerance)
    assert np.all((scores["coverage/oracle"] > 0.76) & (scores["coverage/oracle"] < 0.82))
