"""The cloud base height task with statistics and windows made by hand, and a network that says what it is told."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxtrain.engine import config as configs
from jaxtrain.models import cbh as network
from jaxtrain.tasks.cbh import Task, make_task

CONFIG = Path(__file__).parents[2] / "configs" / "cbh.py"
T, H, W = 3, 16, 24  # of the smoke preset
FLIGHTS = ("A", "B", "C", "D", "E")
STATISTICS = {
    "pixel_mean": np.float64(285.0), "pixel_std": np.float64(4.0), "height_mean": np.float64(0.8), "height_std": np.float64(0.4),
    "sun_mean": np.array([45.0, 170.0]), "sun_std": np.array([8.0, 30.0]), "flights": np.array(FLIGHTS),
    "flight_pixel_mean": np.array([284.0, 286.0, np.nan, np.nan, 285.0]), "flight_pixel_std": np.array([4.0, 3.5, np.nan, np.nan, 4.5]),
    "frame_shape": np.array([H, W]), "label_lag1": np.array([0.9, 0.8, 0.94, 0.9, np.nan]), "flight_labels": np.array([75, 24, 22, 15, 4]),
    "heading_known": np.array(True), "temporal_frames": np.array(T),
}  # fmt: skip


def sections(preset: str = "smoke", **overrides: str) -> dict[str, Any]:
    return configs.task_sections(configs.load(f"{CONFIG}:{preset}", {k.replace("__", "."): v for k, v in overrides.items()}))


def task(preset: str = "smoke", **overrides: str) -> Task:
    return make_task(sections(preset, **overrides), STATISTICS)


def batch(count: int = 6, seed: int = 0, roles: tuple[int, ...] = (2, 4, 5, 6), flights: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Random windows; the last one is padding, with NaN in it."""
    rng = np.random.default_rng(seed)
    mask = np.ones(count, np.float32)
    mask[-1] = 0
    height = rng.uniform(0.12, 1.95, count).astype(np.float32)
    height[-1] = np.nan
    return {
        "frames": (285 + 4 * rng.normal(size=(count, T, H, W))).astype(np.float32),
        "sun": np.stack([rng.uniform(25, 65, count), rng.uniform(0, 360, count)], 1).astype(np.float32),
        "height_km": height, "reference_km": rng.uniform(0.1, 1.9, (count, 5)).astype(np.float32),
        "flight": rng.choice(flights, count).astype(np.int32), "role": rng.choice(roles, count).astype(np.int32), "mask": mask,
    }  # fmt: skip


class Told(network.Network):
    """Answers every batch with the same standardised heights; remembers what it was shown."""

    def __init__(self, y: np.ndarray):
        self.y, self.seen = jnp.asarray(y, jnp.float32), nnx.data([])

    def __call__(self, inputs: Any, rngs: Any = None, explain: bool = False) -> dict[str, jax.Array]:
        self.seen.append(inputs)
        weights = jnp.full(inputs["frames"].shape[:2], 1 / T)
        return {"y": self.y, **({"frame_weights": weights} if explain else {})}
