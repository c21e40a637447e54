"""Pictures of fleet forecasts. Matplotlib figures without pyplot, so that nothing global is touched.

Letters as in `tft`: B windows, k past steps, tau future steps, R targets, Q quantile levels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxtrain.data.dataset import Dataset, Statistics
from jaxtrain.data.fleet_config import DataConfig
from jaxtrain.tasks import drawing, tft_naive
from jaxtrain.tasks.tft_scores import Layout, group_name, kinds_of, median_of, ratio
from jaxtrain.tasks.tft_serving import attention_steps

Predict = Callable[..., dict[str, np.ndarray]]
Sums = Mapping[str, Mapping[str, np.ndarray]]  # forecaster -> sums
COLORS = {
    "model": "#1f5fa8", "oracle": "#2e8b57", "last": "#8c8c8c", "day": "#d98324", "week": "#a678b4", "window": "#b8503e",
    "train": "#c9b037",
}  # fmt: skip
INK = "#222222"
CHUNK = 64  # windows gathered at once
EXPLAINED = 64  # windows that importances and attention are averaged over
MAPPED = 60  # servers of the alert map
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True)
class Groups:
    """The groups of a dataset: their places among the sums, their names, and the index rows of one window each."""

    places: np.ndarray
    names: tuple[str, ...]
    middle: np.ndarray  # (n, 4) the window in the middle of each group's windows
    last: np.ndarray  # (n, 4) the newest one


def draw(data: DataConfig, layout: Layout, names: Mapping[str, tuple[str, ...]], statistics: Statistics, predict: Predict,
         dataset: Dataset, sums: Sums) -> dict[str, Any]:  # fmt: skip
    """{name: figure}. names: of the variables, by selection network ("static", "past", "future")."""
    groups = groups_of(statistics, dataset)
    explained = predict(dataset.index[:: -(-len(dataset) // EXPLAINED)], explain=True)
    figures = {
        "forecasts": forecasts(data, layout, statistics, groups, predict, sums),
        "qrisk_by_step": qrisk_by_step(data, layout, sums),
        "reliability": reliability(data, layout, sums),
        "importance": importance(names, explained),
        "attention": attention(data, explained),
        "qrisk_by_place": qrisk_by_place(layout, statistics, data, sums),
    }
    if data.alerts:
        figures["alerts"] = alerts(data, groups, predict)
    return figures


def groups_of(statistics: Statistics, dataset: Dataset) -> Groups:
    """The groups with windows in a dataset, in the order of their numbers."""
    number = dataset.index[:, 1]
    order = np.argsort(number, kind="stable")
    _, first, count = np.unique(number[order], return_index=True, return_counts=True)
    middle, last = dataset.index[order[first + count // 2]], dataset.index[order[first + count - 1]]
    known = np.concatenate([np.asarray(dataset.gather(dataset.arrays, rows)["group"]) for rows in _chunks(middle)])
    names = tuple(str(name) for name in statistics["group_names"])
    places = np.where(known > 0, known - 1, len(names) + middle[:, 1])
    return Groups(places, tuple(group_name(names, place) for place in places), middle, last)


def _chunks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


def _panels(count: int, width: float, height: float, **options: Any) -> tuple[Any, list[Any]]:
    """`count` axes, two side by side."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure, axes = drawing.axes(width * columns, height * rows, rows, columns, **options)
    for axis in axes.ravel()[count:]:
        axis.set_visible(False)
    return figure, list(axes.ravel()[:count])


def _legend_below(figure: Any, axes: Any) -> None:
    """One legend for all axes, where it hides nothing."""
    drawn = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=len(drawn), fontsize=8, frameon=False)


def _ordered(sums: Sums) -> list[str]:
    return sorted(sums, key=lambda name: list(COLORS).index(name) if name in COLORS else len(COLORS))


def _style(name: str) -> dict[str, Any]:
    return {"color": COLORS.get(name, "#5f9ea0"), "linewidth": 2.2 if name == "model" else 1.3, "label": name}


def best_naive(layout: Layout, sums: Sums, target: int) -> str | None:
    """The naive forecaster with the lowest P50 q-risk of a target."""
    risks = {}
    for name in sums.keys() - {"model", "oracle"}:
        kinds = kinds_of(layout, sums[name], "step")
        risks[name] = float(ratio(kinds["abs"][:, target].sum(), kinds["absy"][:, target].sum()))
    return min(sorted(risks), key=lambda name: risks[name]) if risks else None


def forecasts(data: DataConfig, layout: Layout, statistics: Statistics, groups: Groups, predict: Predict, sums: Sums) -> Any:
    """Fan charts of a window of the best, the median and the worst group of every target, with its best naive forecast."""
    kinds = kinds_of(layout, sums["model"], "group")
    chosen = _telling_groups(ratio(kinds["abs"], kinds["absy"])[groups.places])
    shown = predict(groups.middle[chosen.ravel()])
    naive = _naive_medians(data, layout, shown)
    hours = data.step_seconds / 3600
    past, ahead = np.arange(-data.context_steps, 0) * hours, np.arange(data.horizon_steps) * hours
    figure, axes = drawing.axes(13, 2.6 * len(data.targets) + 0.4, len(data.targets), 3)
    for number, axis in enumerate(axes.ravel()):
        r, place = divmod(number, 3)
        quantiles = shown["quantiles"][number, :, r]
        for (low, high), alpha in zip(list(layout.pairs.values())[:2], (0.15, 0.3), strict=False):
            label = f"model, P{100 * layout.levels[low]:02g}-P{100 * layout.levels[high]:02g}"
            axis.fill_between(ahead, *quantiles[:, [low, high]].T, color=COLORS["model"], alpha=alpha, linewidth=0, label=label)
        history = np.where(shown["past_mask"][number], shown["past"][number, :, r], np.nan)
        truth = np.where(shown["target_mask"][number, :, r] > 0, shown["target"][number, :, r], np.nan)
        axis.plot(np.r_[past, ahead], np.r_[history, truth], color=INK, linewidth=1.0, label="measured")
        best = best_naive(layout, sums, r)
        if best in naive:
            axis.plot(ahead, naive[best][number, :, r], color=COLORS.get(best), linewidth=1.2, label=f"{best} (naive)")
        axis.plot(ahead, quantiles[:, median_of(layout.levels)], color=COLORS["model"], linewidth=1.5, label="model, P50")
        axis.axvline(0, color=INK, linewidth=0.7, linestyle=":")
        name, origin = groups.names[chosen[r, place]], _origin(data, statistics, shown["when"][number])
        axis.set_title(f"{('best', 'median', 'worst')[place]}: {name}, {origin}", loc="left", fontsize=8)
    for axis, target in zip(axes[:, 0], data.targets, strict=True):
        axis.set_ylabel(target)
    for axis in axes[-1]:
        axis.set_xlabel("hours from the forecast")
    _legend_below(figure, axes.ravel())
    figure.suptitle("Forecasts for the best, the median and the worst group of each target", fontsize=12)
    return figure


def _telling_groups(risks: np.ndarray) -> np.ndarray:
    """(R, 3) the groups with the least, the median and the greatest q-risk (n, R) of every target; NaN = not scored."""
    order = np.argsort(risks, axis=0)
    last = np.maximum(np.isfinite(risks).sum(0) - 1, 0)
    return np.stack([[order[place, r] for place in (0, (n + 1) // 2, n)] for r, n in enumerate(last)])


def _naive_medians(data: DataConfig, layout: Layout, shown: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name: (B, tau, R)} of the naive forecasters for a gathered batch."""
    found = jax.jit(lambda batch: tft_naive.forecasts(data, layout.levels, batch))(dict(shown))
    middle = median_of(layout.levels)
    return {name: np.asarray(f["median"] if "median" in f else f["quantiles"][..., middle]) for name, f in found.items()}


def _origin(data: DataConfig, statistics: Statistics, when: np.ndarray) -> str:
    seconds = int(statistics["start"]) + int(when[1]) * data.step_seconds
    return str(np.datetime64(seconds, "s").astype("datetime64[m]")).replace("T", " ") + " UTC"


def qrisk_by_step(data: DataConfig, layout: Layout, sums: Sums) -> Any:
    """P50 q-risk of every forecaster over the horizon, a panel per target."""
    figure, axes = _panels(len(data.targets), 5.5, 3.2)
    ahead = np.arange(1, data.horizon_steps + 1) * data.step_seconds / 3600
    for r, (axis, target) in enumerate(zip(axes, data.targets, strict=True)):
        for name in _ordered(sums):
            kinds = kinds_of(layout, sums[name], "step")
            axis.plot(ahead, ratio(kinds["abs"][:, r], kinds["absy"][:, r]), **_style(name))
        axis.set_title(target, loc="left", fontsize=10)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("hours ahead")
        axis.set_ylabel("P50 q-risk")
    _legend_below(figure, axes)
    return figure


def reliability(data: DataConfig, layout: Layout, sums: Sums) -> Any:
    """How often the measured value lay below each quantile, against its level; a line per target, the oracle dashed."""
    figure, axes = drawing.axes(5.8, 5.2)
    axis = axes[0, 0]
    for name, style in (("model", "-"), ("oracle", "--")):
        if name not in sums:
            continue
        kinds = kinds_of(layout, sums[name], "step")
        for r, target in enumerate(data.targets):
            share = [ratio(kinds[f"below_{level:g}"][:, r].sum(), kinds["n"][:, r].sum()) for level in layout.levels]
            axis.plot(layout.levels, share, style, color=f"C{r}", marker="o" if name == "model" else None, markersize=3.5,
                      linewidth=1.4 if name == "model" else 1.0, label=f"{target}{'' if name == 'model' else ' (oracle)'}")  # fmt: skip
    axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    axis.set_xlabel("level of the quantile")
    axis.set_ylabel("share of measured values below it")
    axis.set_title("Reliability", loc="left", fontsize=11)
    axis.legend(fontsize=7.5, framealpha=0.85)
    return figure


def importance(names: Mapping[str, tuple[str, ...]], explained: Mapping[str, np.ndarray]) -> Any:
    """Mean selection weight of every variable, one panel per selection network."""
    present = {part: names[part] for part in ("static", "past", "future") if f"{part}_weights" in explained and names[part]}
    figure, axes = drawing.axes(4.4 * max(1, len(present)), 0.24 * max([1, *map(len, present.values())]) + 1.4, 1, max(1, len(present)))
    for axis, (part, labels) in zip(axes[0], present.items(), strict=False):
        weights = np.asarray(explained[f"{part}_weights"], np.float64)
        if part == "past":
            weights = weights[np.asarray(explained["past_mask"], bool)]
        mean = weights.reshape(-1, len(labels)).mean(0)
        order = np.argsort(mean)
        axis.barh(np.arange(len(labels)), mean[order], color=COLORS["model"], alpha=0.85)
        axis.set_yticks(np.arange(len(labels)), [labels[i] for i in order], fontsize=8)
        axis.axvline(1 / len(labels), color=INK, linewidth=0.8, linestyle=":")
        axis.set_title(f"{part} (dotted: equal weights)", loc="left", fontsize=9)
        axis.set_xlabel("mean selection weight")
    figure.suptitle("What the network reads (not what causes the forecast)", fontsize=11)
    return figure


def attention(data: DataConfig, explained: Mapping[str, np.ndarray]) -> Any:
    """Mean attention over the time looked at, for four horizon steps."""
    figure, axes = drawing.axes(8, 3.8)
    axis = axes[0, 0]
    weights = np.asarray(explained["attention"], np.float64).mean(0)  # (tau, T)
    weights = np.where(weights > 0, weights, np.nan)  # a step does not look at later ones
    hours = np.arange(-data.context_steps, data.horizon_steps) * data.step_seconds / 3600
    for i, step in enumerate(attention_steps(data.horizon_steps)):
        axis.plot(hours, weights[step - 1], color=f"C{i}", linewidth=1.2, label=f"{step * data.step_seconds / 3600:.3g} h ahead")
    axis.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("hours from the forecast")
    axis.set_ylabel("attention")
    axis.set_title("Where the forecast of a step looks", loc="left", fontsize=11)
    axis.legend(fontsize=8, framealpha=0.85)
    return figure


def qrisk_by_place(layout: Layout, statistics: Statistics, data: DataConfig, sums: Sums) -> Any:
    """P50 q-risk, mean over targets, of every forecaster: by hour of day, weekday, block of the split and class of groups."""
    labels: dict[str, tuple[str, list[str]]] = {}
    if layout.clock[0] is not None:
        labels["hour"] = ("hour of day", [str(hour) for hour in range(24)])
    if layout.clock[1] is not None:
        labels["weekday"] = ("weekday", list(WEEKDAYS))
    blocks = np.flatnonzero(kinds_of(layout, sums["model"], "block")["n"].sum(1))
    days = data.block_steps * data.step_seconds / 86400
    labels["block"] = (f"block of {days:.3g} days", [str(block) for block in range(blocks.max(initial=0) + 1)])
    if layout.classes:
        name = data.static_categorical[0]
        labels["class"] = (name, ["unknown", *(str(text) for text in statistics[f"vocabulary/{name}"])])
    figure, axes = _panels(len(labels), 5.8, 3.2)
    for axis, (group, (title, words)) in zip(axes, labels.items(), strict=True):
        counted = np.flatnonzero(kinds_of(layout, sums["model"], group)["n"].sum(1))
        for name in _ordered(sums):
            kinds = kinds_of(layout, sums[name], group)
            risk = ratio(kinds["abs"], kinds["absy"])[counted]
            place = np.arange(len(counted))
            axis.plot(place, risk.mean(1), marker="o", markersize=3.5, linestyle="-" if group == "hour" else "none", **_style(name))
        every, tilt = 3 if group == "hour" else 1, 20 if group == "class" else 0
        axis.set_xticks(np.arange(len(counted))[::every], [words[i] for i in counted[::every]], fontsize=8, rotation=tilt)
        axis.set_xlabel(title)
        axis.set_ylabel("P50 q-risk, mean of targets")
        axis.set_ylim(bottom=0)
    _legend_below(figure, axes)
    return figure


def alerts(data: DataConfig, groups: Groups, predict: Predict) -> Any:
    """Probability of exceeding each alert's threshold in the newest window of every group; dots where it did happen."""
    shown = [predict(rows) for rows in _chunks(groups.last)]
    hours = data.step_seconds / 3600
    figure, axes = drawing.axes(6.5 * len(data.alerts), 0.16 * min(MAPPED, len(groups.names)) + 1.6, 1, len(data.alerts))
    for a, (axis, (target, threshold)) in enumerate(zip(axes[0], data.alerts.items(), strict=True)):
        r = data.targets.index(target)
        probability = np.concatenate([part["p_above"][:, :, a] for part in shown])
        happened = np.concatenate([(part["target"][:, :, r] > threshold) & (part["target_mask"][:, :, r] > 0) for part in shown])
        order = np.argsort(-probability.max(1))[:MAPPED]
        extent = (0, data.horizon_steps * hours, len(order) - 0.5, -0.5)
        image = axis.imshow(probability[order], aspect="auto", cmap="Reds", vmin=0, vmax=1, extent=extent, interpolation="nearest")
        row, step = np.nonzero(happened[order])
        axis.scatter((step + 0.5) * hours, row, s=3, color=INK, linewidths=0)
        axis.set_yticks(np.arange(len(order)), [groups.names[g] for g in order], fontsize=6.5)
        axis.set_xlabel("hours ahead")
        axis.set_title(f"{target} above {threshold:g} (dots: it was)", loc="left", fontsize=10)
        axis.grid(False)
        figure.colorbar(image, ax=axis, label="probability", shrink=0.7)
    return figure
