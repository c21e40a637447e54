"""Scores of quantile forecasts of several targets: sums per batch inside jit, scores on the host, all in file units.

Letters: B windows, tau future steps, R targets, Q levels, V kinds of sums. q-risk = 2 sum rho_q / sum |y| over all measured
cells with one division at the end (the paper's), so P50 q-risk = sum |e| / sum |y|. Units of different targets are never
added: what is pooled over targets is a mean of their ratios.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data.dataset import Batch
from jaxtrain.engine import metrics
from jaxtrain.tasks.task import Forecast, Sums

WORST = 5  # groups named in the scores
BLOCKS = 64  # stretches of a split that are told apart; later ones count in the totals only
NEW_GROUPS = 1024  # likewise groups that training did not have
HOURS, DAYS = 24, 7
OF_MEDIAN = ("n", "absy", "abs", "sq")
RATIO = OF_MEDIAN[:3]  # what the sums by hour and weekday hold


@dataclass(frozen=True)
class Layout:
    """What the sums are grouped by, known before any batch.

    groups:     number of groups (servers) of the training data
    classes:    number of values of the first static category, unknown included; 0 without one
    clock:      places of hour_of_day and day_of_week in the calendar, None where they are not there
    thresholds: (R,) of the alerts in file units, NaN without one
    """

    levels: tuple[float, ...]
    groups: int
    classes: int
    clock: tuple[int | None, int | None]
    thresholds: np.ndarray

    @property
    def pairs(self) -> dict[str, tuple[int, int]]:
        """{"80": (place of .1, place of .9)}: the central intervals that the levels form, widest first."""
        found = {}
        for low, level in enumerate(self.levels):
            high = next((i for i, other in enumerate(self.levels) if level < 0.5 and abs(level + other - 1) < 1e-6), None)
            if high is not None:
                found[f"{100 * (1 - 2 * level):.4g}"] = (low, high)
        return found

    @property
    def alerts(self) -> bool:
        return bool(np.isfinite(self.thresholds).any())

    def kinds(self, count: int) -> tuple[str, ...]:
        """The names of `count` kinds of sums: those of a median alone, or of quantiles."""
        per_level = [f"{kind}_{level:g}" for kind in ("rho", "below") for level in self.levels]
        per_pair = [f"{kind}_{name}" for kind in ("inside", "width") for name in self.pairs]
        names = (*OF_MEDIAN, *per_level, *per_pair, *(["brier"] if self.alerts else []))
        assert count in (len(RATIO), len(OF_MEDIAN), len(names)), f"{count} kinds of sums"
        return names[:count]


def median_of(levels: tuple[float, ...]) -> int:
    """The place of level .5."""
    return levels.index(0.5)


def target_mask(batch: Batch) -> jax.Array:
    """(B, tau, R) float32: 1 for measured targets of real (not padded) examples."""
    return batch["target_mask"] * batch["mask"][:, None, None]


def forecast_sums(layout: Layout, forecast: Forecast, batch: Batch) -> Sums:
    """Sums by group of a forecast: quantiles (B, tau, R, Q), rising along Q, or the median (B, tau, R) alone.

    step (tau, R, V), block (BLOCKS, R, V), group (G + NEW_GROUPS, R, V), class (C, R, V); hour (24, R, 3) and weekday (7, R, 3) by
    local time of the target. The kinds V are `Layout.kinds`: n, absy = |y|, abs and sq of the error of P50, and with quantiles
    rho_<level>, below_<level> (targets under it), inside_<percent>, width_<percent>, brier.
    """
    y, mask = jnp.asarray(batch["target"], jnp.float32), target_mask(batch)
    quantiles = forecast.get("quantiles")
    median = forecast["median"] if quantiles is None else quantiles[..., median_of(layout.levels)]
    error = median - y
    values = [jnp.stack([jnp.ones_like(y), jnp.abs(y), jnp.abs(error), error**2], -1)]
    if quantiles is not None:
        low, high = (quantiles[..., np.array(places, int)] for places in ([p[end] for p in layout.pairs.values()] for end in (0, 1)))
        target = y[..., None]
        values += [metrics.pinball(quantiles, y, layout.levels), target < quantiles, (low <= target) & (target <= high), high - low]
        if layout.alerts:
            squared = (exceedance(quantiles, layout.levels, layout.thresholds) - (y > layout.thresholds)) ** 2
            values.append(jnp.where(np.isfinite(layout.thresholds), squared, 0.0)[..., None])

    # All kinds in one array: a handful of reductions to compile, and not a handful per kind.
    stacked = jnp.concatenate([value.astype(jnp.float32) for value in values], -1)  # (B, tau, R, V)
    stacked = jnp.where(mask[..., None] > 0, mask[..., None] * stacked, 0.0)
    when, known = jnp.asarray(batch["when"]), jnp.asarray(batch["group"])
    members = {
        "block": (when[:, 3], BLOCKS),
        "group": (jnp.where(known > 0, known - 1, layout.groups + when[:, 0]), layout.groups + NEW_GROUPS),
    }
    if layout.classes:
        members["class"] = (jnp.asarray(batch["static_cat"])[:, 0], layout.classes)
    hours = _clock(layout, jnp.asarray(batch["calendar"])[:, -y.shape[1] :]) if any(p is not None for p in layout.clock) else {}
    return {
        "step": stacked.sum(0),
        **_by_member(stacked.sum(1), {name: jax.nn.one_hot(*member) for name, member in members.items()}),
        **_by_member(stacked[..., : len(RATIO)], hours),
    }


def _by_member(values: jax.Array, members: Mapping[str, jax.Array]) -> Sums:
    """{name: (places, R, V)} sums of values (..., R, V) for membership (..., places), in one product."""
    if not members:
        return {}
    together = jnp.concatenate(list(members.values()), -1)
    axes = tuple(range(together.ndim - 1))
    summed = jnp.tensordot(together, values, (axes, axes), precision=jax.lax.Precision.HIGHEST)
    ends = np.cumsum([member.shape[-1] for member in members.values()])
    return dict(zip(members, jnp.split(summed, ends[:-1]), strict=True))


def _clock(layout: Layout, calendar: jax.Array) -> dict[str, jax.Array]:
    """Hour of day (B, tau, 24) and weekday (B, tau, 7) one-hot, read off the calendar features: they are in local time."""
    found = {}
    for name, place, count in (("hour", layout.clock[0], HOURS), ("weekday", layout.clock[1], DAYS)):
        if place is not None:
            turn = jnp.arctan2(calendar[:, :, place, 0], calendar[:, :, place, 1]) / (2 * jnp.pi) % 1.0
            # A little more than the exact hour, which may fall just short of it in float32.
            found[name] = jax.nn.one_hot(jnp.floor(turn * count + 1e-3) % count, count)
    return found


def exceedance(quantiles: jax.Array, levels: tuple[float, ...], thresholds: Any) -> jax.Array:
    """Probability (..., R) that a target exceeds its threshold (R,), from quantiles (..., R, Q): interpolated, 0 and 1 beyond the ends."""
    threshold = jnp.asarray(np.nan_to_num(thresholds), jnp.float32)[..., None]
    low, high = quantiles[..., :-1], quantiles[..., 1:]
    share = jnp.where(high > low, (threshold - low) / jnp.where(high > low, high - low, 1.0), threshold >= low)
    below = levels[0] + (jnp.clip(share, 0.0, 1.0) * np.diff(np.asarray(levels, np.float32))).sum(-1)
    below = jnp.where(threshold[..., 0] < quantiles[..., 0], 0.0, below)
    return 1.0 - jnp.where(threshold[..., 0] > quantiles[..., -1], 1.0, below)


# On the host --------------------------------------------------------------------------------------------


def crps_weights(levels: tuple[float, ...]) -> np.ndarray:
    """(Q,) width of the stretch of levels that is nearest to each: .06 .115 .2 .25 .2 .115 .06 for the default seven."""
    middle = (np.asarray(levels[1:]) + np.asarray(levels[:-1])) / 2
    return np.diff(np.concatenate([[0.0], middle, [1.0]]))


def kinds_of(layout: Layout, sums: Mapping[str, Any], group: str) -> dict[str, np.ndarray]:
    """{kind: (places, R)} of one group in float64."""
    values = np.asarray(sums[group], np.float64)
    return {kind: values[..., i] for i, kind in enumerate(layout.kinds(values.shape[-1]))}


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, NaN where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom > 0, top / bottom, np.nan)


def target_scores(layout: Layout, kinds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores (R,) of sums (R,) by kind; NaN where nothing was counted."""
    n, size = kinds["n"], kinds["absy"]
    found = {"qrisk_50": ratio(kinds["abs"], size)}
    risks = {level: ratio(2 * kinds[f"rho_{level:g}"], size) for level in layout.levels if f"rho_{level:g}" in kinds}
    if risks:
        found |= {f"qrisk_{100 * level:02.4g}": risks[level] for level in layout.levels if level in (0.1, 0.9)}
        found["qrisk_mean"] = np.mean(list(risks.values()), 0)
    found |= {"mae": ratio(kinds["abs"], n), "rmse": np.sqrt(ratio(kinds["sq"], n))}
    for name in layout.pairs:
        if f"inside_{name}" in kinds:
            found |= {f"coverage_{name}": ratio(kinds[f"inside_{name}"], n), f"width_{name}": ratio(kinds[f"width_{name}"], n)}
    if risks:
        weights = crps_weights(layout.levels)
        total = sum(weight * kinds[f"rho_{level:g}"] for weight, level in zip(weights, layout.levels, strict=True))
        found["crps"] = ratio(2 * np.asarray(total), n)
    if "brier" in kinds:
        found["brier"] = np.where(np.isfinite(layout.thresholds), ratio(kinds["brier"], n), np.nan)
    return found


POOLED = ("qrisk", "coverage")  # ratios without a unit: their mean over targets means something


def summarize(
    layout: Layout, sums: Mapping[str, Any], targets: tuple[str, ...], steps: tuple[int, ...], names: tuple[str, ...]
) -> dict[str, float]:
    """Scores by target ("qrisk_50/cpu_percent") and as means over targets ("qrisk_50"); what nothing was counted for is left out.

    qrisk_10, qrisk_50, qrisk_90, qrisk_mean (over levels), coverage_<percent>: shares; mae, rmse, width_<percent>, crps: units of the
    target; brier (of the alert's probability). P50 q-risk also at single steps ("qrisk_50/cpu_percent/step_12"), per block of the split
    ("/block_1"), as the median over groups ("/group_median") and of the worst five ("/worst/<group>").
    steps: horizon steps from 1; names: of the training groups.
    """
    by_step, by_block, by_group = (kinds_of(layout, sums, group) for group in ("step", "block", "group"))
    found: dict[str, float] = {}

    def add(scores: Mapping[str, np.ndarray], suffix: str = "") -> None:
        for score, values in scores.items():
            found.update({f"{score}/{name}{suffix}": float(v) for name, v in zip(targets, values, strict=True) if np.isfinite(v)})
            if score.startswith(POOLED) and np.isfinite(values).any():
                found[f"{score}{suffix}"] = float(np.nanmean(values))

    add(target_scores(layout, {kind: value.sum(0) for kind, value in by_step.items()}))
    for step in steps:
        add({"qrisk_50": ratio(by_step["abs"][step - 1], by_step["absy"][step - 1])}, f"/step_{step}")
    blocks = np.flatnonzero(by_block["n"].sum(1))
    for block in blocks if len(blocks) > 1 else ():
        add({"qrisk_50": ratio(by_block["abs"][block], by_block["absy"][block])}, f"/block_{block}")
    risks = ratio(by_group["abs"], by_group["absy"])  # (G, R)
    scored = np.isfinite(risks)
    if scored.sum(0).max(initial=0) > 1:
        add({"qrisk_50": np.array([np.median(risks[scored[:, r], r]) if scored[:, r].any() else np.nan for r in range(len(targets))])},
            "/group_median")  # fmt: skip
        for r, target in enumerate(targets):
            worst = np.argsort(np.where(scored[:, r], -risks[:, r], np.inf))[: min(WORST, scored[:, r].sum())]
            found.update({f"qrisk_50/{target}/worst/{group_name(names, g)}": float(risks[g, r]) for g in worst})
    found["targets"] = float(by_step["n"].sum())
    return found


def group_name(names: tuple[str, ...], place: int) -> str:
    """The name of a place among the sums by group; groups that training did not have are numbered as their file has them."""
    return names[place] if place < len(names) else f"new group {place - len(names) + 1}"
