"""Scores of traffic forecasts: sums per batch inside jit, scores on the host."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.dataset import Batch
from jaxtrain.engine import metrics
from jaxtrain.tasks.task import Forecast, Sums

STATES = ("jammed", "slow", "free")  # by speed over free-flow speed ...
STATE_BOUNDS = (0.5, 0.8)  # ... below the first, between, above the second
STATE_CENTERS = (0.3, 0.65, 0.95)  # of the mean free-flow speed: near each state's mean, see `metrics.target_sums`
LEVELS = (0.5, 0.8, 0.95)  # of the central intervals whose coverage is scored
PIT_BINS, RELIABILITY_BINS = 20, 10
Z80 = 1.2816  # standard normal quantile at 0.9
MAPE_THRESHOLD = 1e-3
MEANS = ("crps", "nll", "crps_gaussian", "width_80", "brier", "brier_usual")  # scores that are a sum over n
COVERAGES = {**{f"inside_{level * 100:g}": f"coverage_{level * 100:g}" for level in LEVELS}, "inside_80_gaussian": "coverage_80_gaussian"}


def target_mask(batch: Batch) -> jax.Array:
    """(B, P, N) float32: 1 for observed targets of real (not padded) examples."""
    return batch["target_mask"] * batch["mask"][:, None, None]


def forecast_sums(forecast: Forecast, batch: Batch, *, free_flow: jax.Array, threshold: jax.Array, center: jax.Array,
                  step_minutes: jax.Array) -> Sums:  # fmt: skip
    """Sums "group/kind", groups horizon (P,), hour of day (24,), node (N,), actual state (3,); "pit" (P, bins), "reliability/..." (bins,).

    forecast:  values per target (B, P, N): median, mean, and as far as there are std, crps, nll, crps_gaussian, width_80,
               pit = F(y), p_congested, p_usual (training frequency of congestion). What is not there is not scored.
    free_flow: (N,) speed that the actual states refer to; threshold: (N,) speed below which a target is congested;
    center:    () near the mean speed, see `metrics.target_sums`; step_minutes: ().
    """
    y, mask = batch["target"], target_mask(batch)
    absolute, error = jnp.abs(forecast["median"] - y), forecast["mean"] - y
    large = jnp.abs(y) > MAPE_THRESHOLD
    congested = (y < threshold).astype(jnp.float32)
    values = {
        "n": jnp.ones_like(y), "abs": absolute, "sq": error**2, "err": error, "y": y - center, "yy": (y - center) ** 2,
        "ape": jnp.where(large, absolute / jnp.where(large, jnp.abs(y), 1.0), 0.0), "ape_n": large,
    }  # fmt: skip
    values |= {name: forecast[name] for name in MEANS if name in forecast}
    if "pit" in forecast:
        values |= {f"inside_{level * 100:g}": jnp.abs(forecast["pit"] - 0.5) <= level / 2 for level in LEVELS}
    if "std" in forecast:
        values["inside_80_gaussian"] = jnp.abs(error) <= Z80 * forecast["std"]
    if "p_congested" in forecast:
        values["brier"] = (forecast["p_congested"] - congested) ** 2
    if "p_usual" in forecast:
        values["brier_usual"] = (forecast["p_usual"] - congested) ** 2

    # A little more than the exact hour: slot x step / 60 may fall just short of it in float32.
    hour = jnp.floor(batch["slot"][:, -y.shape[1] :] * (step_minutes / 60) + 1e-4).astype(jnp.int32)
    at_hour = jax.nn.one_hot(hour, 24)  # (B, P, 24)
    ratio = y / free_flow
    state = (ratio >= STATE_BOUNDS[0]).astype(jnp.int32) + (ratio > STATE_BOUNDS[1])
    kinds = list(values)
    # A state lies far from the mean of all: about that mean the sums of its R2 would cancel in float32.
    own = y - jnp.asarray(STATE_CENTERS, jnp.float32)[state] * jnp.mean(free_flow)
    values |= {"y_of_state": own, "yy_of_state": own**2}
    # All kinds in one array, so that there are four reductions to compile and not four per kind.
    stacked = jnp.stack([jnp.asarray(value, jnp.float32) for value in values.values()])  # (V, B, P, N)
    stacked = jnp.where(mask > 0, mask * stacked, 0.0)
    by_step = stacked.sum(3)  # (V, B, P)
    groups = {
        "horizon": by_step.sum(1),
        "node": stacked.sum((1, 2)),
        "hour": jnp.sum(by_step[..., None] * at_hour, (1, 2)),
        "state": jnp.where(state[..., None] == jnp.arange(len(STATES)), stacked[..., None], 0.0).sum((1, 2, 3)),
    }
    sums: Sums = {f"{group}/{name}": value[i] for group, value in groups.items() for i, name in enumerate(kinds)}
    sums |= {f"state/{kind}": groups["state"][len(kinds) + i] for i, kind in enumerate(("y", "yy"))}
    if "pit" in forecast:
        sums["pit"] = metrics.histogram(forecast["pit"], mask, PIT_BINS, keep=(1,))
    if "p_congested" in forecast:
        bins = metrics.reliability_sums(forecast["p_congested"], congested, mask, RELIABILITY_BINS)
        sums |= {f"reliability/{name}": value for name, value in bins.items()}
    return sums


def grouped(sums: Mapping[str, Any], group: str) -> dict[str, np.ndarray]:
    """{kind: sums} of one group in float64."""
    return {name.partition("/")[2]: np.asarray(value, np.float64) for name, value in sums.items() if name.startswith(f"{group}/")}


def scores(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Scores of one group's sums by kind; arrays are pooled. Names and units as in `summarize`."""
    found: dict[str, float | None] = dict(metrics.error_scores(sums))
    named = {**{name: name for name in MEANS}, **COVERAGES}
    found |= {score: metrics.divide(sums[name], sums["n"]) for name, score in named.items() if name in sums}
    found["targets"] = float(np.sum(sums["n"]))
    return metrics.present(found)


def summarize(sums: Mapping[str, Any], horizons: Mapping[str, int]) -> dict[str, float]:
    """Scores pooled over all P steps ("mae"), per horizon ("mae/15min") and per actual state ("mae/jammed").

    mae, mape (percent) of the median; rmse, bias, r2 of the mean; crps, nll, crps_gaussian; coverage_50/80/95 and
    coverage_80_gaussian (shares); width_80; brier, brier_usual (that of the training frequency); targets (their number).
    A score that nothing was counted for is left out. horizons: name -> output step from 0.
    """
    by_horizon, by_state = grouped(sums, "horizon"), grouped(sums, "state")
    found = scores(by_horizon)
    parts = [(name, by_horizon, step) for name, step in horizons.items()] + [(name, by_state, s) for s, name in enumerate(STATES)]
    for suffix, group, place in parts:
        part = scores({kind: value[place] for kind, value in group.items()})
        found |= {f"{score}/{suffix}": value for score, value in part.items()}
    return found
