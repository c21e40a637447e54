"""Pictures of headway forecasts. Matplotlib figures without pyplot, so that nothing global is touched.

Letters as in `convlstm`: B windows, L lookback rows, F horizon rows, S stations, D directions.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxtrain.data.dataset import Dataset, Statistics
from jaxtrain.data.headway_config import DataConfig
from jaxtrain.tasks import drawing
from jaxtrain.tasks.convlstm_scores import SECONDS, Layout, grouped, place_rmse

Predict = Callable[..., dict[str, np.ndarray]]
Sums = Mapping[str, Mapping[str, np.ndarray]]  # forecaster -> sums
COLORS = {
    "model": "#1f5fa8", "oracle": "#2e8b57", "advected_planned": "#d98324", "dead_reckoning_planned": "#d98324", "advected": "#b8503e",
    "dead_reckoning": "#b8503e", "hold": "#8c8c8c", "clock": "#a678b4", "mean": "#c9b037",
}  # fmt: skip
INK, UNKNOWN = "#222222", "#b5b5b5"
BANDS = (60, 90, 120, 180)  # seconds: the lines that earlier runs drew
MAP_SECONDS = 1200  # end of the maps' scale
WINDOWS = 96  # predicted for maps, density and copy weights
SHIFT_HOURS = np.arange(-12, 12.5, 0.5)  # of the clock check


def draw(data: DataConfig, layout: Layout, statistics: Statistics, predict: Predict, dataset: Dataset, sums: Sums) -> dict[str, Any]:
    """{name: figure}; `coverage` where the head has an interval, `copy_weights` where the readout copies, `entry` where a plan is known."""
    shown = predict(dataset.index[:: -(-len(dataset) // WINDOWS)], weights=True)
    figures = {
        "maps": maps(data, statistics, shown),
        "error_by_minute": error_by_minute(data, layout, sums),
        "error_by_station": error_by_station(layout, sums),
        "density": density(data, shown),
    }
    if "minute/inside" in sums["model"]:
        figures["coverage"] = coverage(data, layout, sums)
    if np.asarray(dataset.arrays["planned_known"]).any():
        figures["entry"] = entry(data, statistics, dataset)
    if "copy_weights" in shown:
        figures["copy_weights"] = copied(data, layout, shown)
    return figures


def maps(data: DataConfig, statistics: Statistics, shown: Mapping[str, np.ndarray]) -> Any:
    """The line over time, one row per direction: what was seen, then the truth, the model's forecast and the naive one."""
    from matplotlib import colormaps

    b = _telling_window(data, shown)
    seen = _known(shown[data.target][b], shown[f"{data.target}_known"][b])
    later = {
        "observed": _known(shown["target"][b], shown["target_known"][b]),
        "model": shown["value"][b],
        "advected" if data.target == "headway" else "dead reckoning": shown["advected"][b],
    }
    directions, stations = statistics["stations"].shape
    figure, axes = drawing.axes(13, 1.2 + directions * (1.2 + 0.055 * max(stations, 24)), directions, len(later), sharex=True)
    colors = colormaps["viridis_r"].with_extremes(bad=UNKNOWN)
    span = (-data.lookback * data.step_minutes, data.horizon * data.step_minutes)
    image = None
    for d in range(directions):
        for axis, (name, values) in zip(axes[d], later.items(), strict=True):
            field = np.concatenate([seen, values])[:, _outward(statistics, d), d].T * SECONDS
            image = axis.imshow(
                np.ma.masked_invalid(field), cmap=colors, vmin=0, vmax=MAP_SECONDS, aspect="auto", interpolation="nearest",
                extent=(*span, stations - 0.5, -0.5),
            )  # fmt: skip
            axis.axvline(0, color=INK, linewidth=1.2)
            axis.grid(False)
            axis.set_title(f"{statistics['directions'][d]}: {name}", loc="left", fontsize=10)
            ticks = np.unique(np.linspace(0, stations - 1, min(stations, 8)).round().astype(int))
            axis.set_yticks(ticks, statistics["stations"][d][_outward(statistics, d)][ticks] if axis is axes[d, 0] else [], fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("minutes from the forecast")
    figure.colorbar(image, ax=axes, label=f"{data.target}, s (grey: unknown)", shrink=0.7, extend="max")
    return figure


def _known(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.where(known, values, np.nan)


def _telling_window(data: DataConfig, shown: Mapping[str, np.ndarray]) -> int:
    """The window whose target is known best and, among those, has the most to show: the largest spread of truths."""
    known = np.asarray(shown["target_known"], bool)
    share = known.mean((1, 2, 3))
    spread = np.array([target[mask].std() if mask.any() else 0.0 for target, mask in zip(shown["target"], known, strict=True)])
    return int(np.argmax(np.where(share >= np.quantile(share, 0.75), spread, -1)))


def _outward(statistics: Statistics, direction: int) -> np.ndarray:
    """Stations of a direction in the order in which its trains pass them."""
    return np.argsort(statistics["travel_minutes"][direction], kind="stable")


def _ordered(sums: Sums) -> list[str]:
    return sorted(sums, key=lambda name: list(COLORS).index(name) if name in COLORS else len(COLORS))


def _style(name: str) -> dict[str, Any]:
    return {"color": COLORS.get(name, "#5f9ea0"), "linewidth": 2.2 if name == "model" else 1.3, "label": name}


def error_by_minute(data: DataConfig, layout: Layout, sums: Sums) -> Any:
    """RMSE of every forecaster over the minutes ahead, the bands of earlier runs, and whether the lines to pass were passed."""
    figure, axes = drawing.axes(9, 4.8)
    axis = axes[0, 0]
    for name in _ordered(sums):
        rmse = place_rmse({kind: value.sum(1) for kind, value in grouped(sums[name], "minute").items()})
        axis.plot(data.step_minutes * np.arange(1, len(rmse) + 1), rmse, marker="o", markersize=3, **_style(name))
    for band in BANDS:
        axis.axhline(band, color=INK, linewidth=0.7, linestyle=":")
        axis.annotate(f"{band} s", (1, band), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points", fontsize=7)
    total = {kind: value.sum() for kind, value in grouped(sums["model"], "minute").items()}
    rmse = float(place_rmse(total))
    loss = (rmse / SECONDS / layout.cap) ** 2
    parts = [(f"RMSE {rmse:.4g} s < {layout.rmse:g} s", rmse < layout.rmse), (f"loss {loss:.2g} < {layout.loss:g}", loss < layout.loss)]
    axis.set_title("   ".join(f"{text}: {'passed' if good else 'not passed'}" for text, good in parts), loc="left", fontsize=10)
    axis.set_xlabel("minutes ahead")
    axis.set_ylabel("RMSE, s")
    axis.set_ylim(bottom=0)
    _whole_minutes(axis)
    axis.legend(fontsize=8, framealpha=0.85, loc="center left", bbox_to_anchor=(1.05, 0.5))
    return figure


def _whole_minutes(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def error_by_station(layout: Layout, sums: Sums) -> Any:
    """RMSE of every forecaster by station, one panel per direction, in grid order."""
    count = len(layout.directions)
    figure, axes = drawing.axes(11, 1.2 + 2.6 * count, count, 1)
    for d, axis in enumerate(axes[:, 0]):
        for name in _ordered(sums):
            axis.plot(place_rmse(grouped(sums[name], "station"))[:, d], marker=".", markersize=4, **_style(name))
        names = layout.stations[d]
        ticks = np.arange(0, len(names), -(-len(names) // 24))
        axis.set_xticks(ticks, names[ticks], rotation=60, ha="right", fontsize=7)
        axis.set_title(layout.directions[d], loc="left", fontsize=10)
        axis.set_ylabel("RMSE, s")
        axis.set_ylim(bottom=0)
    axes[0, 0].legend(fontsize=8, framealpha=0.85, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def density(data: DataConfig, shown: Mapping[str, np.ndarray]) -> Any:
    """How often each pair of true and forecast values occurs, over all minutes ahead."""
    from matplotlib.colors import LogNorm

    known = np.asarray(shown["target_known"], bool)
    figure, axes = drawing.axes(6.4, 5.4)
    axis, end = axes[0, 0], SECONDS * data.cap_minutes
    edges = np.linspace(0, end, 61)
    counts, _, _ = np.histogram2d(SECONDS * shown["target"][known], SECONDS * shown["value"][known], bins=(edges, edges))
    mesh = axis.pcolormesh(edges, edges, np.ma.masked_equal(counts.T, 0), cmap="viridis", norm=LogNorm(vmin=1, vmax=max(counts.max(), 2)))
    axis.plot([0, end], [0, end], color=INK, linewidth=0.8, linestyle=":")
    axis.set_xlabel(f"observed {data.target}, s")
    axis.set_ylabel("forecast, s")
    figure.colorbar(mesh, ax=axis, label="cells")
    return figure


def coverage(data: DataConfig, layout: Layout, sums: Sums) -> Any:
    """How many truths lie in the interval, and how wide it is, by minutes ahead."""
    figure, axes = drawing.axes(9, 3.8, 1, 2)
    kinds = {kind: value.sum(1) for kind, value in grouped(sums["model"], "minute").items()}
    n, minutes = np.maximum(kinds["n"], 1), data.step_minutes * np.arange(1, len(kinds["n"]) + 1)
    nominal = float(layout.interval)
    axes[0, 0].plot(minutes, 100 * kinds["inside"] / n, marker="o", markersize=3, **_style("model"))
    axes[0, 0].axhline(nominal, color=INK, linewidth=0.9, linestyle=":", label="nominal")
    axes[0, 0].set_ylim(max(0, nominal - 30), 100)
    axes[0, 0].set_ylabel(f"truths in the {layout.interval} % interval, %")
    axes[0, 0].legend(fontsize=8)
    axes[0, 1].plot(minutes, SECONDS * kinds["width"] / n, marker="o", markersize=3, **_style("model"))
    axes[0, 1].set_ylim(0, 1.15 * max(1.0, float((SECONDS * kinds["width"] / n).max())))
    axes[0, 1].set_ylabel("width, s")
    for axis in axes[0]:
        axis.set_xlabel("minutes ahead")
        _whole_minutes(axis)
    return figure


def entry(data: DataConfig, statistics: Statistics, dataset: Dataset) -> Any:
    """Planned against observed values where trains enter the line: the first day shown, and which shift of the plan fits best."""
    planned = _known(np.asarray(dataset.arrays["planned"]), np.asarray(dataset.arrays["planned_known"]))[..., 0]  # (R, D)
    observed = _known(np.asarray(dataset.arrays[data.target]), np.asarray(dataset.arrays[f"{data.target}_known"]))
    first = dataset.index[:, 0].min()
    start = first - int(dataset.arrays["minute"][first]) // data.step_minutes
    day = slice(max(start, 0), start + data.day_rows)
    hours = (data.day_start_minutes + np.asarray(dataset.arrays["minute"][day])) / 60
    directions = len(statistics["directions"])
    figure, axes = drawing.axes(12, 1 + 2.4 * directions, directions, 2, width_ratios=(2.4, 1))
    for d, (course, shift) in enumerate(axes):
        place = _outward(statistics, d)[0]
        course.plot(hours, SECONDS * observed[day, place, d], color=INK, linewidth=0.9, label="observed")
        course.plot(hours, SECONDS * planned[day, d], color=COLORS["advected_planned"], linewidth=1.2, label="planned")
        course.set_ylabel(f"{data.target}, s")
        course.set_title(f"{statistics['directions'][d]}: {statistics['stations'][d, place]}", loc="left", fontsize=10)
        fit = [_correlation(planned[:, d], observed[:, place, d], round(hour * 60 / data.step_minutes)) for hour in SHIFT_HOURS]
        shift.plot(SHIFT_HOURS, fit, marker=".", **_style("model"))
        shift.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        shift.set_ylabel("correlation")
    axes[0, 0].legend(fontsize=8, framealpha=0.85)
    axes[-1, 0].set_xlabel("hour of the service day, local")
    axes[-1, 1].set_xlabel("plan moved by hours (0 should fit best)")
    return figure


def _correlation(planned: np.ndarray, observed: np.ndarray, rows: int) -> float:
    """Of planned (R,), moved by so many rows, and observed (R,), over the rows where both are known; NaN for too few."""
    a = planned[max(-rows, 0) : len(planned) - max(rows, 0)]
    b = observed[max(rows, 0) : len(observed) - max(-rows, 0)]
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 2 or a[both].std() == 0 or b[both].std() == 0:
        return float("nan")
    return float(np.corrcoef(a[both], b[both])[0, 1])


def copied(data: DataConfig, layout: Layout, shown: Mapping[str, np.ndarray]) -> Any:
    """How much of a forecast is copied from which station upstream, and from the plan, by minutes ahead."""
    weights = shown["copy_weights"]  # (B, F, S, D, J + 2)
    directions = weights.shape[3]
    figure, axes = drawing.axes(5.4 * directions, 4, 1, directions)
    labels = [*(str(j) for j in range(weights.shape[-1] - 1)), "plan"]
    image = None
    for d, axis in enumerate(axes[0]):
        mean = weights[:, :, :, d].mean((0, 2))  # (F, J + 2)
        ends = (0.5 * data.step_minutes, (len(mean) + 0.5) * data.step_minutes)
        image = axis.imshow(mean, cmap="viridis", vmin=0, vmax=1, aspect="auto", origin="lower", extent=(-0.5, len(labels) - 0.5, *ends))
        axis.set_xticks(range(len(labels)), labels, fontsize=8)
        axis.grid(False)
        axis.set_xlabel("stations upstream")
        axis.set_title(layout.directions[d], loc="left", fontsize=10)
    axes[0, 0].set_ylabel("minutes ahead")
    figure.colorbar(image, ax=axes, label="share copied from there")
    return figure
