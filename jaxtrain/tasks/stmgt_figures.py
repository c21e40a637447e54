"""Pictures of traffic forecasts. Matplotlib figures without pyplot, so that nothing global is touched.

Letters as in `stmgt`: B windows, T input steps, P output steps, N nodes, K mixture components.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxtrain.data.dataset import Dataset, Statistics
from jaxtrain.data.traffic_config import DAY_SECONDS, DataConfig
from jaxtrain.tasks import drawing
from jaxtrain.tasks.stmgt_scores import PIT_BINS, grouped

Predict = Callable[..., dict[str, np.ndarray]]
Sums = Mapping[str, Mapping[str, np.ndarray]]  # forecaster -> sums
COLORS = {"model": "#1f5fa8", "oracle": "#2e8b57", "damped": "#d98324", "last": "#8c8c8c", "tod": "#a678b4"}
INK = "#222222"
DAYS = 2  # shown of the first split days
MAX_WINDOWS = 192  # predicted for the time series: enough for a point every 15 minutes
CHUNK = 64  # windows per call of the model
PLOTTED_NODES = 3
ATTENTION_WINDOWS = 16
RELATIONS = ("self", "upstream", "downstream", "both", "none")
JAM_STEPS = 4  # input steps that a jam must have lasted


def draw(data: DataConfig, horizons: Mapping[str, int], levels: tuple[float, ...], statistics: Statistics, predict: Predict,
         dataset: Dataset, sums: Sums) -> dict[str, Any]:  # fmt: skip
    """{name: figure}. horizons: name -> output step from 0; levels: those of the forecast's quantiles."""
    rows = _first_days(dataset, data)
    shown = _predict(predict, rows)
    step = list(horizons.values())[len(horizons) // 2]
    figures = {
        "forecasts": forecasts(data, levels, statistics, dataset, rows, shown, step),
        "incident": incident(data, horizons, levels, statistics, shown),
        "mae_by_horizon": mae_by_horizon(data, sums),
        "mae_by_hour": mae_by_hour(data, sums),
        "calibration": calibration(sums),
        "attention": attention(statistics, predict, rows),
    }
    if {"model", "damped"} <= sums.keys():
        figures["gain"] = gain(data, statistics, sums)
    return figures


def _first_days(dataset: Dataset, data: DataConfig) -> np.ndarray:
    """Index rows (B, k) of the split's first days, thinned out evenly to at most MAX_WINDOWS."""
    time = np.asarray(dataset.arrays["time"])[dataset.index[:, 0]]
    # The last forecasts end within these days; where they reach that far, a day of them is shown all the same.
    span = max(DAYS * DAY_SECONDS - data.out_steps * data.step_seconds, DAY_SECONDS)
    early = np.flatnonzero(time < time.min() + span)
    stride = -(-len(early) // MAX_WINDOWS)
    return dataset.index[early[::stride]]


def _predict(predict: Predict, rows: np.ndarray) -> dict[str, np.ndarray]:
    parts = [predict(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}


def _band(levels: tuple[float, ...]) -> tuple[int, int, str]:
    """(lower, upper, label) of the pair of levels nearest to 10 and 90 %."""
    low, high = (int(np.argmin(np.abs(np.array(levels) - q))) for q in (0.1, 0.9))
    return low, high, f"{100 * levels[low]:g}-{100 * levels[high]:g} %"


def forecasts(data: DataConfig, levels: tuple[float, ...], statistics: Statistics, dataset: Dataset, rows: np.ndarray,
              shown: Mapping[str, np.ndarray], step: int) -> Any:  # fmt: skip
    """Three nodes over two days: readings, and the forecasts issued a fixed time before (output step `step`)."""
    time, speed, observed = (np.asarray(dataset.arrays[name]) for name in ("time", "speed", "observed"))
    low, high, label = _band(levels)
    at = rows[:, 0] + data.in_steps + step  # rows of the targets
    when = time[at].astype("datetime64[s]")
    span = slice(int(at.min()), int(at.max()) + 1)
    nodes = _telling_nodes(statistics, observed[span])
    figure, axes = drawing.axes(11, 2.3 * len(nodes) + 0.4, len(nodes), sharex=True)
    for axis, node in zip(axes[:, 0], nodes, strict=True):
        seen = np.where(observed[span, node], speed[span, node], np.nan)
        band = shown["quantiles"][:, step, node]
        axis.fill_between(when, band[:, low], band[:, high], color=COLORS["model"], alpha=0.22, linewidth=0, label=f"model, {label}")
        marker = 1.5 if np.isfinite(seen).mean() > 0.5 else 5  # sparse readings have no line to be seen by
        axis.plot(time[span].astype("datetime64[s]"), seen, color=INK, linewidth=0.9, marker=".", markersize=marker, label="observed")
        axis.plot(when, shown["damped"][:, step, node], color=COLORS["damped"], linewidth=1.0, label="damped")
        axis.plot(when, shown["median"][:, step, node], color=COLORS["model"], linewidth=1.3, label="model, median")
        axis.set_ylabel(data.unit)
        axis.set_title(_name(statistics, node), loc="left", fontsize=10)
    _date_ticks(axes[-1, 0])
    figure.suptitle(f"Forecasts issued {(step + 1) * data.step_minutes:g} minutes ahead", fontsize=12)
    axes[0, 0].legend(loc="lower right", ncols=4, fontsize=8, framealpha=0.85)
    return figure


def _telling_nodes(statistics: Statistics, observed: np.ndarray) -> np.ndarray:
    """Three well observed nodes: the one with the strongest daily pattern, a strong and a middling one."""
    swing = np.ptp(statistics["profile"][0], axis=0) * observed.mean(0) * statistics["trained"]
    order = np.argsort(-swing)[: max(1, int(np.count_nonzero(statistics["trained"])))]
    return np.unique(order[[0, len(order) // 4, len(order) // 2]])[:PLOTTED_NODES]


def _name(statistics: Statistics, node: int) -> str:
    name = str(statistics["node_ids"][node])
    return name if name.startswith("node") else f"node {name}"


def _date_ticks(axis: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=4, maxticks=12)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def incident(data: DataConfig, horizons: Mapping[str, int], levels: tuple[float, ...], statistics: Statistics,
             shown: Mapping[str, np.ndarray]) -> Any:  # fmt: skip
    """A jam under way when the forecast is issued: its course, and the forecast density per horizon."""
    b, node = _deepest_jam(shown, statistics)
    low, high, label = _band(levels)
    past = np.arange(1 - data.in_steps, 1) * data.step_minutes
    ahead = np.arange(1, data.out_steps + 1) * data.step_minutes
    history = np.where(shown["observed"][b, :, node], shown["speed"][b, :, node], np.nan)
    actual = np.where(shown["target_mask"][b, :, node] > 0, shown["target"][b, :, node], np.nan)
    figure, axes = drawing.axes(11, 4, 1, 2, width_ratios=(1.2, 1))
    course, density = axes[0]
    band = shown["quantiles"][b, :, node]
    course.fill_between(ahead, band[:, low], band[:, high], color=COLORS["model"], alpha=0.22, linewidth=0, label=f"model, {label}")
    course.plot(np.r_[past, ahead], np.r_[history, actual], color=INK, marker=".", linewidth=1, label="observed")
    course.plot(ahead, shown["damped"][b, :, node], color=COLORS["damped"], label="damped")
    course.plot(ahead, shown["median"][b, :, node], color=COLORS["model"], label="model, median")
    course.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    course.set_xlabel("minutes from the forecast")
    course.set_ylabel(data.unit)
    course.legend(fontsize=8, framealpha=0.85)
    course.set_title(_name(statistics, node), loc="left", fontsize=10)

    # One ridge per horizon, all to the same scale of density.
    parts = {name: _density(shown, b, step, node) for name, step in horizons.items()}
    tallest = max(float(y.max()) for _, y in parts.values())
    for place, (name, (grid, y)) in enumerate(parts.items()):
        base = -float(place)
        density.fill_between(grid, base, base + 0.9 * y / tallest, color=COLORS["model"], alpha=0.35, linewidth=0)
        density.plot(grid, base + 0.9 * y / tallest, color=COLORS["model"], linewidth=1)
        for label, value, color in (("observed", actual, INK), ("damped", shown["damped"][b, :, node], COLORS["damped"])):
            density.plot([value[horizons[name]]] * 2, [base, base + 0.9], color=color, linewidth=1.4, label=label if not place else None)
    density.set_yticks([-k for k in range(len(parts))], list(parts))
    density.set_xlabel(f"speed, {data.unit}")
    density.set_title("forecast density", loc="left", fontsize=10)
    density.legend(fontsize=8, framealpha=0.85)
    figure.suptitle("A jam under way", fontsize=12)
    return figure


def _deepest_jam(shown: Mapping[str, np.ndarray], statistics: Statistics) -> tuple[int, int]:
    """(window, node) whose newest readings lie furthest below the usual speed; all its targets are observed where that exists."""
    steps = shown["speed"].shape[1]
    newest = slice(max(0, steps - JAM_STEPS), steps)  # a single low reading may be a fault of the detector
    weekend = (shown["dow"][:, newest] >= 5).astype(int)
    below = (statistics["profile"][weekend, shown["slot"][:, newest]] - shown["speed"][:, newest]).mean(1)  # (B, N)
    seen, scored = shown["observed"][:, -1], (shown["target_mask"] > 0).all(1)
    choice = np.where(seen & scored if (seen & scored).any() else seen | ~seen.any(), below, -np.inf)
    b, node = np.unravel_index(np.argmax(choice), below.shape)
    return int(b), int(node)


def _density(shown: Mapping[str, np.ndarray], b: int, step: int, node: int) -> tuple[np.ndarray, np.ndarray]:
    """(grid, density) of the mixture of one window, step and node."""
    weight, mean, std = (shown[f"component_{name}"][b, step, node].astype(np.float64) for name in ("weight", "mean", "std"))
    grid = np.linspace(max(0.0, (mean - 3.5 * std).min()), (mean + 3.5 * std).max(), 400)
    bell = np.exp(-(((grid[:, None] - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))
    return grid, bell @ weight


def mae_by_horizon(data: DataConfig, sums: Sums) -> Any:
    """MAE of every forecaster over the horizon."""
    figure, axes = drawing.axes(6.5, 4)
    ahead = np.arange(1, data.out_steps + 1) * data.step_minutes
    _lines(axes[0, 0], ahead, sums, "horizon")
    axes[0, 0].set_xlabel("horizon, minutes")
    axes[0, 0].set_ylabel(f"MAE, {data.unit}")
    return figure


def mae_by_hour(data: DataConfig, sums: Sums) -> Any:
    """MAE of every forecaster over the hour of day that was forecast."""
    figure, axes = drawing.axes(8, 4)
    _lines(axes[0, 0], np.arange(24), sums, "hour")
    axes[0, 0].set_xlabel("hour of day")
    axes[0, 0].set_xticks(range(0, 24, 3))
    axes[0, 0].set_ylabel(f"MAE, {data.unit}, all horizons")
    return figure


def _lines(axis: Any, x: np.ndarray, sums: Sums, group: str) -> None:
    """One line per forecaster; what nothing was counted for stays a gap."""
    for name in sorted(sums, key=lambda n: list(COLORS).index(n) if n in COLORS else len(COLORS)):
        part = grouped(sums[name], group)
        with np.errstate(invalid="ignore", divide="ignore"):
            mae = part["abs"] / part["n"]
        axis.plot(x, mae, color=COLORS.get(name), marker="o", markersize=3, linewidth=2.2 if name == "model" else 1.4, label=name)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, framealpha=0.85)


def calibration(sums: Sums) -> Any:
    """PIT histogram (flat = calibrated), and how often congestion of a forecast probability came true."""
    figure, axes = drawing.axes(10, 4.2, 1, 2)
    pit, reliability = axes[0]
    edges = np.linspace(0, 1, PIT_BINS + 1)
    for name in ("oracle", "model"):
        if "pit" in sums.get(name, {}):
            counts = np.asarray(sums[name]["pit"], np.float64).sum(0)
            share = counts / max(counts.sum(), 1) * PIT_BINS
            filled = name == "model"
            pit.stairs(share, edges, color=COLORS[name], fill=filled, alpha=0.5 if filled else 1, linewidth=1.4, label=name)
    pit.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    pit.set_xlabel("F(observed)")
    pit.set_ylabel("density (calibrated: 1)")
    pit.set_title("probability integral transform", loc="left", fontsize=10)
    pit.legend(fontsize=8, framealpha=0.85)

    for name in ("model", "tod", "oracle"):
        part = grouped(sums.get(name, {}), "reliability")
        if not part or not part["n"].sum():
            continue
        used = part["n"] > 0
        p, hit, n = part["p"][used] / part["n"][used], part["event"][used] / part["n"][used], part["n"][used]
        reliability.plot(p, hit, color=COLORS[name], linewidth=1.2, label="tod (training frequency)" if name == "tod" else name)
        reliability.scatter(p, hit, s=12 + 90 * n / n.sum(), color=COLORS[name])
    reliability.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
    reliability.set_xlabel("forecast probability of congestion")
    reliability.set_ylabel("observed frequency")
    reliability.set_title("reliability", loc="left", fontsize=10)
    reliability.legend(fontsize=8, framealpha=0.85)
    return figure


def gain(data: DataConfig, statistics: Statistics, sums: Sums) -> Any:
    """The road graph, nodes coloured by how much smaller the model's MAE is than that of the damped forecast."""
    from matplotlib.collections import LineCollection

    model, damped = grouped(sums["model"], "node"), grouped(sums["damped"], "node")
    scored = model["n"] > 0
    saved = 100 * (1 - model["abs"][scored] / np.maximum(damped["abs"][scored], 1e-9))
    place = _places(statistics)
    known = bool(data.path) and "positions" in statistics  # the embedded network is drawn as a scheme
    figure, axes = drawing.axes(8, 6)
    axis = axes[0, 0]
    i, slot = np.nonzero(statistics["neighbor_mask"])
    lines = np.stack([place[i], place[statistics["neighbors"][i, slot]]], axis=1)
    axis.add_collection(LineCollection(list(lines), colors="#b5b5b5", linewidths=0.8, zorder=1))
    limit = max(5.0, float(np.percentile(np.abs(saved), 95))) if len(saved) else 5.0
    axis.scatter(*place[~scored].T, s=26, facecolors="none", edgecolors="#999999", zorder=2, label="no reading here")
    dots = axis.scatter(*place[scored].T, s=60, c=saved, cmap="RdBu", vmin=-limit, vmax=limit, edgecolors=INK, linewidths=0.5, zorder=3)
    figure.colorbar(dots, ax=axis, label="MAE saved against damped, %", shrink=0.8)
    if not scored.all():
        axis.legend(fontsize=8)
    axis.set_title("Gain of the model by node", loc="left", fontsize=11)
    axis.set_xlabel("longitude" if known else "")
    axis.set_ylabel("latitude" if known else "")
    if not known:
        axis.set_xticks([])
        axis.set_yticks([])
    else:
        axis.set_aspect(1 / np.cos(np.radians(np.nanmean(place[:, 1]))), adjustable="datalim")  # a degree of longitude is shorter
    axis.margins(0.06)
    return figure


def attention(statistics: Statistics, predict: Predict, rows: np.ndarray) -> Any:
    """Where the busiest junction looks: attention by relation and block, beside an even spread over the same slots."""
    mask = statistics["neighbor_mask"]
    node = int(mask.sum(1).argmax())
    found = predict(rows[:: -(-len(rows) // ATTENTION_WINDOWS)], attention_of=node)
    weights = found["attention"].mean(axis=(0, 2, 4))  # (L, slots)
    relation = np.where(mask[node], statistics["relation"][node], len(RELATIONS) - 1)
    if weights.shape[1] != len(relation):  # all nodes attend: a slot is a node
        everyone = np.full(weights.shape[1], len(RELATIONS) - 1)
        everyone[statistics["neighbors"][node][mask[node]]] = statistics["relation"][node][mask[node]]
        relation, counts = everyone, np.bincount(everyone, minlength=len(RELATIONS))
    else:
        counts = np.bincount(relation[mask[node]], minlength=len(RELATIONS))
    shown = np.flatnonzero(counts)
    figure, axes = drawing.axes(8, 4)
    axis, blocks = axes[0, 0], len(weights)
    for block in range(blocks):
        shares = [weights[block][relation == kind].sum() for kind in shown]
        gate = found["gate"][:, block].mean()
        place = np.arange(len(shown)) + (block - (blocks - 1) / 2) * 0.8 / blocks
        axis.bar(place, shares, 0.75 / blocks, color=f"C{block}", label=f"block {block + 1} (gate {gate:.2f} spatial)")
    place = np.arange(len(shown))
    axis.hlines(counts[shown] / counts.sum(), place - 0.45, place + 0.45, color=INK, linestyle="--", linewidth=1, label="even spread")
    axis.set_xticks(np.arange(len(shown)), [f"{RELATIONS[kind]} ({counts[kind]})" for kind in shown])
    axis.set_ylabel("share of attention")
    axis.set_title(f"Where node {statistics['node_ids'][node]} looks, by relation (slots)", loc="left", fontsize=11)
    axis.legend(fontsize=8)
    return figure


def _places(statistics: Statistics) -> np.ndarray:
    """(N, 2) x and y: longitude and latitude, or a drawing of the graph where they are unknown."""
    if "positions" in statistics:
        return statistics["positions"][:, ::-1].astype(np.float64)
    nodes = len(statistics["node_ids"])
    linked = np.zeros((nodes, nodes))
    i, slot = np.nonzero(statistics["neighbor_mask"])
    linked[i, statistics["neighbors"][i, slot]] = 1
    linked = np.maximum(linked, linked.T) * (1 - np.eye(nodes))
    return _spring_layout(linked)


def _spring_layout(linked: np.ndarray, rounds: int = 200) -> np.ndarray:
    """(N, 2) places of a graph linked (N, N): all nodes repel, linked ones attract (Fruchterman and Reingold 1991)."""
    nodes = len(linked)
    place = np.random.default_rng(0).uniform(-1, 1, (nodes, 2))
    ideal = 1.6 / np.sqrt(nodes)
    for step in np.linspace(0.2, 0.005, rounds):
        apart = place[:, None] - place[None]
        distance = np.maximum(np.sqrt((apart**2).sum(-1, keepdims=True)), 1e-3)
        force = apart / distance * (ideal**2 / distance - linked[..., None] * distance**2 / ideal)
        push = force.sum(1) - 5 * place * ideal  # a pull to the middle keeps unlinked parts on the page
        place += push / np.maximum(np.linalg.norm(push, axis=1, keepdims=True), 1e-9) * step
    return place
