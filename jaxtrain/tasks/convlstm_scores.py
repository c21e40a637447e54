"""Scores of headway forecasts: masked sums in minutes per batch inside jit, scores in seconds on the host.

Letters as in `convlstm`: B windows, F target rows, S stations, D directions, Q levels.
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

LARGE_GAP = 20.0  # minutes: the gaps that passengers notice most
WORST = 3  # places named in the scores
SECONDS = 60.0
Z80 = 1.2815516  # standard normal quantile at 0.9
PART_KINDS = ("n", "abs", "sq", "err")  # of the groups `changed` and `large`


@dataclass(frozen=True)
class Layout:
    """What scores are named and grouped by.

    minutes:   minutes ahead -> target row from 0, those with a column of their own
    horizon:   F of one forecast; more target rows are a rollout
    blocks:    ends of a rollout's rows that are scored, minutes
    cap:       minutes; rmse and loss: lines that a forecast is held against, seconds and units of cap^2
    """

    minutes: Mapping[int, int]
    horizon: int
    step_minutes: int
    blocks: tuple[int, ...]
    directions: tuple[str, ...]
    stations: np.ndarray  # (D, S) unicode
    levels: tuple[float, ...]  # of the forecast's interval and quantiles
    cap: float
    rmse: float
    loss: float

    @property
    def interval(self) -> str:
        return percent(self.levels)


def percent(levels: tuple[float, ...]) -> str:
    """Percent of the widest interval of rising levels: "80" of .1 to .9."""
    return f"{100 * (levels[-1] - levels[0]):.4g}"


def target_mask(batch: Batch) -> jax.Array:
    """(B, F, S, D) float32: 1 for known target cells of real (not padded) examples."""
    return jnp.asarray(batch["target_known"], jnp.float32) * batch["mask"][:, None, None, None]


def forecast_sums(layout: Layout, forecast: Forecast, batch: Batch, held: jax.Array, center: Any) -> Sums:
    """Sums "group/kind": groups minute (F, D), station (S, D), changed () and large ().

    forecast: value (B, F, S, D) minutes; optionally lower and upper, crps, quantiles (..., Q); optionally draws (): the value is then
              the mean of so many futures, and its squared errors are freed of their sampling error, a factor of 1 + 1 / draws.
    held:     (B, F, S, D) newest known value: cells that differ from it changed; center: () minutes near the mean, see
              `metrics.target_sums`.
    """
    y, mask = jnp.asarray(batch["target"], jnp.float32), target_mask(batch)
    error = forecast["value"] - y
    square = error**2
    if "draws" in forecast:
        square = square * (forecast["draws"] / (forecast["draws"] + 1))
    values = {"n": jnp.ones_like(y), "abs": jnp.abs(error), "sq": square, "err": error, "y": y - center, "yy": (y - center) ** 2}
    if "lower" in forecast:
        low, high = forecast["lower"], forecast["upper"]
        values |= {"inside": (low <= y) & (y <= high), "width": high - low}
    if "crps" in forecast:
        values["crps"] = forecast["crps"]
    if "quantiles" in forecast:
        loss = metrics.pinball(forecast["quantiles"], y, layout.levels)
        values |= {"crps": 2 * loss.mean(-1), **{f"pinball_{level:g}": loss[..., i] for i, level in enumerate(layout.levels)}}
    # All kinds in one array: a handful of reductions to compile, and not a handful per kind.
    stacked = jnp.stack([jnp.asarray(value, jnp.float32) for value in values.values()])  # (V, B, F, S, D)
    stacked = jnp.where(mask > 0, mask * stacked, 0.0)
    by_row = stacked.sum(1)  # (V, F, S, D)
    sums: Sums = {}
    for group, total in (("minute", by_row.sum(2)), ("station", by_row.sum(1))):
        sums |= {f"{group}/{kind}": total[i] for i, kind in enumerate(values)}
    for group, chosen in (("changed", jnp.abs(y - held) > 1e-3), ("large", y > LARGE_GAP)):
        part = jnp.where(chosen, stacked[: len(PART_KINDS)], 0.0).sum((1, 2, 3, 4))
        sums |= {f"{group}/{kind}": part[i] for i, kind in enumerate(PART_KINDS)}
    return sums


def gaussian_crps(mean: jax.Array, sigma: jax.Array, y: jax.Array) -> jax.Array:
    """CRPS of N(mean, sigma^2) at y, closed form (Gneiting et al. 2005)."""
    z = (y - mean) / sigma
    density = jnp.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return sigma * (z * jax.lax.erf(z / np.sqrt(2)) + 2 * density - 1 / np.sqrt(np.pi))


# On the host --------------------------------------------------------------------------------------------


def grouped(sums: Mapping[str, Any], group: str) -> dict[str, np.ndarray]:
    """{kind: sums} of one group in float64."""
    return {name.partition("/")[2]: np.asarray(value, np.float64) for name, value in sums.items() if name.startswith(f"{group}/")}


def scores(layout: Layout, kinds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Scores of one group's sums by kind, pooled. Names and units as in `summarize`."""
    found: dict[str, float | None] = {}
    for name, value in metrics.error_scores(kinds).items():
        found["r2" if name == "r2" else f"{name}_s"] = value if name == "r2" else SECONDS * value
    n = kinds["n"]
    if "inside" in kinds:
        found[f"coverage_{layout.interval}"] = metrics.divide(kinds["inside"], n)
    seconds = {"width": f"width_{layout.interval}_s", "crps": "crps_s", **{f"pinball_{q:g}": f"pinball_s/{q:g}" for q in layout.levels}}
    for kind, name in seconds.items():
        if kind in kinds and (value := metrics.divide(kinds[kind], n)) is not None:
            found[name] = SECONDS * value
    return metrics.present(found)


def summarize(layout: Layout, sums: Mapping[str, Any]) -> dict[str, float]:
    """Scores in seconds: pooled over known cells ("rmse_s"), minute ahead ("rmse_s/t+15"), direction ("rmse_s/Northbound") and place.

    rmse_s, mae_s, bias_s, r2, loss (mean square in units of cap^2), coverage_80, width_80_s, crps_s (of quantiles an estimate, twice
    their mean pinball), pinball_s/<level>; rmse_s/changed: cells that differ from their newest known value; rmse_s/gap_over_20:
    targets of more than 20 minutes; rmse_s/worst_station and rmse_s/worst/<station>, <direction>: the worst three places;
    rmse_s/block_30: rows 16 to 30 of a rollout; cells (their number); passed/...: 1 where a line of `targets` is kept.
    """
    by_row, by_place = grouped(sums, "minute"), grouped(sums, "station")
    found = scores(layout, by_row)
    found["cells"] = float(by_row["n"].sum())

    def add(suffix: str, kinds: Mapping[str, np.ndarray], chosen: tuple[str, ...] = ()) -> None:
        part = scores(layout, kinds)
        found.update({f"{score}/{suffix}": value for score, value in part.items() if not chosen or score in chosen})

    for minutes, row in layout.minutes.items():
        add(f"t+{minutes}", {kind: value[row] for kind, value in by_row.items()})
    for d, name in enumerate(layout.directions):
        add(name, {kind: value[:, d] for kind, value in by_row.items()})
    for end in layout.blocks if len(by_row["n"]) > layout.horizon else ():
        last = end // layout.step_minutes
        add(f"block_{end}", {kind: value[last - layout.horizon : last] for kind, value in by_row.items()})
    for group, name in (("changed", "changed"), ("large", f"gap_over_{LARGE_GAP:g}")):
        add(name, grouped(sums, group), ("rmse_s", "mae_s", "bias_s"))
    rmse = place_rmse(by_place)
    for s, d in worst_places(rmse):
        found.setdefault("rmse_s/worst_station", float(rmse[s, d]))
        found[f"rmse_s/worst/{layout.stations[d, s]}, {layout.directions[d]}"] = float(rmse[s, d])
    if "rmse_s" in found:
        found["loss"] = (found["rmse_s"] / SECONDS / layout.cap) ** 2
        found[f"passed/rmse_{layout.rmse:g}_s"] = float(found["rmse_s"] < layout.rmse)
        found[f"passed/loss_{layout.loss:g}"] = float(found["loss"] < layout.loss)
    return found


def place_rmse(kinds: Mapping[str, np.ndarray]) -> np.ndarray:
    """(S, D) seconds, or of any other group; NaN where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return SECONDS * np.sqrt(np.where(kinds["n"] > 0, kinds["sq"] / kinds["n"], np.nan))


def worst_places(rmse: np.ndarray) -> list[tuple[int, int]]:
    """(station, direction) of the largest errors, worst first."""
    order = np.argsort(np.where(np.isfinite(rmse), -rmse, np.inf), axis=None)[: min(WORST, int(np.isfinite(rmse).sum()))]
    return [(int(s), int(d)) for s, d in zip(*np.unravel_index(order, rmse.shape), strict=True)]
