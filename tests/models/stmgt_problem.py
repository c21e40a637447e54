"""Small graphs, statistics and batches for the tests of the network."""

from typing import Any

import numpy as np

from jaxtrain.models.stmgt import Config

DEFAULT: dict[str, Any] = dict(
    width=96, heads=4, blocks=3, components=5, ffn=4, dropout=0.1, drop_edge=0.1, spatial="gatv2", reach="neighbours",
    relation_bias=True, edge_bias=False, inputs=("speed", "observed", "deviation"), hour="fraction", position=True,
    slot_embedding=False, adaptive_dim=0, adaptive_per_step=True, readout="horizon", anchor="damped", sigma="softplus",
    output_space="normalized", remat=False,
)  # fmt: skip
V1: dict[str, Any] = dict(inputs=("speed",), hour="integer", position=False, relation_bias=False, readout="mean", anchor="none",
                          sigma="clip", dropout=0.2, drop_edge=0.28)  # fmt: skip
TINY: dict[str, Any] = dict(width=8, heads=2, blocks=2, components=3)


def config(**overrides: Any) -> Config:
    return Config(**{**DEFAULT, **overrides})


def lists(edges: np.ndarray, nodes: int, extra_slots: int = 0) -> dict[str, np.ndarray]:
    """Neighbour lists of a directed edge list (E, 2): sources of incoming edges, self in slot 0."""
    rows = [[i, *(int(a) for a, b in edges if b == i and a != i)] for i in range(nodes)]
    width = max(map(len, rows)) + extra_slots
    neighbors = np.array([row + [i] * (width - len(row)) for i, row in enumerate(rows)], np.int32)
    mask = np.array([[slot < len(row) for slot in range(width)] for row in rows])
    relation = np.where(mask, np.where(np.arange(width) == 0, 0, 1), 4).astype(np.int32)
    return dict(neighbors=neighbors, relation=relation, neighbor_mask=mask,
                neighbor_weight=np.where(mask, 1 / (1 + np.arange(width)), 1).astype(np.float32))  # fmt: skip


def statistics(nodes: int = 6, out_steps: int = 4, slots: int = 48, edges: np.ndarray | None = None, extra_slots: int = 0,
               weather: bool = True) -> dict[str, np.ndarray]:  # fmt: skip
    rng = np.random.default_rng(0)
    if edges is None:
        ring = np.arange(nodes)
        edges = np.concatenate([np.stack([ring, (ring + 1) % nodes], 1), rng.integers(0, nodes, (nodes, 2))])
        edges = np.unique(edges, axis=0)
    found = lists(edges, nodes, extra_slots)
    found |= dict(
        speed_mean=np.float32(40), speed_std=np.float32(9), step_minutes=np.float32(1440 / slots),
        profile=rng.uniform(30, 60, (2, slots, nodes)).astype(np.float32), damping=np.linspace(0.9, 0.3, out_steps, dtype=np.float32),
    )  # fmt: skip
    if weather:
        found |= dict(weather_mean=np.zeros(3, np.float32), weather_std=np.ones(3, np.float32))
    return found


def batch(size: int = 3, in_steps: int = 5, out_steps: int = 4, nodes: int = 6, slots: int = 48,
          weather: bool = True) -> dict[str, np.ndarray]:  # fmt: skip
    rng = np.random.default_rng(1)
    steps = rng.integers(0, slots, (size, 1)) + np.arange(in_steps + out_steps)
    observed = rng.random((size, in_steps, nodes)) < 0.9
    made = dict(
        speed=rng.uniform(20, 60, (size, in_steps, nodes)).astype(np.float32), observed=observed, slot=(steps % slots).astype(np.int32),
        dow=((rng.integers(0, 7, (size, 1)) + steps // slots) % 7).astype(np.int32),
        target=rng.uniform(20, 60, (size, out_steps, nodes)).astype(np.float32),
        target_mask=(rng.random((size, out_steps, nodes)) < 0.9).astype(np.float32),
    )  # fmt: skip
    if weather:
        made["weather"] = rng.normal(size=(size, in_steps, 3)).astype(np.float32)
    return made
