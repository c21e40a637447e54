"""Pictures of cloud base forecasts. Matplotlib figures without pyplot, so that nothing global is touched.

Letters as in `cbh`: B windows shown, T frames of a window, h, w cells of a map of where the network looked.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxtrain.data.dataset import Dataset
from jaxtrain.tasks import drawing
from jaxtrain.tasks.cbh_scores import PARTS, Layout

Predict = Callable[..., dict[str, np.ndarray]]
Sums = Mapping[str, Mapping[str, np.ndarray]]  # forecaster -> sums
Summarize = Callable[[Mapping[str, np.ndarray]], dict[str, float]]
FLIGHTS = ("#1f5fa8", "#d98324", "#2e8b57", "#b8503e", "#7d5ba6", "#8c6d31", "#3a9ab2", "#c2528b")
INK, GREY = "#222222", "#8c8c8c"
USES = {  # of an index row's role: colour of its background
    "train": ((0,), "#e4e4e4"), "valid": ((1, 3), "#f6e3b5"), "test": ((2, 4), "#cfe0f3"), "interval": ((5,), "#d8ecd4"),
}  # fmt: skip
PANELS = {"train": (0,), "valid": (1, 3), "test, between own blocks": (2,), "test, held-out flight": PARTS["flight"][1:]}
REFERENCES = ("near", "last*", "ridge", "boost", "oracle")  # columns of reference_km
SHOWN, SHOWN_PIXELS = (200, 1000), 1e7  # windows predicted for the figures: as many as these pixels of one frame each allow
EACH = 3  # best and worst windows
ERROR_BINS_KM = np.arange(-1.0, 1.01, 0.1)  # the outermost also hold what lies beyond
HEIGHT_BINS_KM = np.arange(0, 2.11, 0.1)


def draw(layout: Layout, summarize: Summarize, predict: Predict, dataset: Dataset, sums: Sums) -> dict[str, Any]:
    """{name: figure}; `frame_weights` where the network weighs frames, `track` where latitude and longitude are known."""
    windows = np.asarray(dataset.arrays["windows"])
    pixels = np.prod(dataset.arrays["frames"].shape[1:])
    rows = windows[:: -(-len(windows) // int(np.clip(SHOWN_PIXELS // pixels, *SHOWN)))]
    shown = predict(rows, explain=True)
    shown |= {"time": np.asarray(dataset.arrays["time"])[rows[:, 0]], "error": shown["base_km"] - shown["height_km"]}
    figures = {
        "truth": truth(layout, shown),
        "flights": flights(layout, shown),
        "residuals": residuals(layout, shown),
        "references": references(summarize, sums),
        "windows": best_and_worst(layout, shown),
        "heights": heights(shown),
    }
    if np.isfinite(shown["frame_weights"]).all():
        figures["frame_weights"] = frame_weights(shown)
    if "lat" in dataset.arrays and "lon" in dataset.arrays:
        figures["track"] = track(layout, dataset, rows, shown)
    return figures


def _by_flight(layout: Layout, shown: Mapping[str, np.ndarray], chosen: np.ndarray) -> Iterator[tuple[int, str, np.ndarray]]:
    """(number, name, mask over B) of the flights that have chosen windows."""
    for number, name in enumerate(layout.flights):
        mask = chosen & (shown["flight"] == number)
        if mask.any():
            yield number, name, mask


def _color(number: int) -> str:
    return FLIGHTS[number % len(FLIGHTS)]


def truth(layout: Layout, shown: Mapping[str, np.ndarray]) -> Any:
    """Truth against forecast by use of the rows, coloured by flight; below each panel the mean absolute errors of model and references."""
    figure, axes = drawing.axes(15, 4.8, 1, len(PANELS))
    for axis, (title, roles) in zip(axes[0], PANELS.items(), strict=True):
        chosen = np.isin(shown["role"], roles)
        for number, name, mask in _by_flight(layout, shown, chosen):
            axis.plot(shown["height_km"][mask], shown["base_km"][mask], ".", color=_color(number), markersize=4, alpha=0.7, label=name)
        axis.plot([0, 2], [0, 2], color=INK, linewidth=0.8, linestyle=":")
        axis.set_title(f"{title} ({chosen.sum()} windows)", loc="left", fontsize=10)
        axis.set_xlabel(_errors_text(layout, shown, chosen), fontsize=8)
        axis.set_aspect("equal")
        axis.set_xlim(0, 2.1)
        axis.set_ylim(min(0.0, float(shown["base_km"].min())), max(2.1, float(shown["base_km"].max())))
        if chosen.any():
            axis.legend(fontsize=7, title="flight", title_fontsize=7, framealpha=0.85, loc="upper left")
    axes[0, 0].set_ylabel("forecast base, km")
    return figure


def _errors_text(layout: Layout, shown: Mapping[str, np.ndarray], chosen: np.ndarray) -> str:
    """Mean absolute errors in km over the chosen windows, of each forecaster where it is known."""
    if not chosen.any():
        return "lidar base, km"
    height = shown["height_km"][chosen]
    named = {"model": shown["base_km"][chosen], "mean": np.full(len(height), layout.center)}
    named |= {name: shown["reference_km"][chosen, i] for i, name in enumerate(REFERENCES)}
    errors = {name: np.abs(values - height)[np.isfinite(values)] for name, values in named.items()}
    texts = [f"{name} {error.mean():.3f}" for name, error in errors.items() if len(error)]
    return f"lidar base, km\nMAE, km: {', '.join(texts[:3])}\n{', '.join(texts[3:])}"


def flights(layout: Layout, shown: Mapping[str, np.ndarray]) -> Any:
    """Every flight along time: lidar labels, forecast and its 90 % interval; the background says what each stretch was used for."""
    from matplotlib.patches import Patch

    found = list(_by_flight(layout, shown, np.ones(len(shown["role"]), bool)))
    figure, axes = drawing.axes(13, 1 + 1.9 * len(found), len(found), 1)
    for axis, (number, name, mask) in zip(axes[:, 0], found, strict=True):
        order = np.flatnonzero(mask)[np.argsort(shown["time"][mask])]
        minutes = (shown["time"][order] - shown["time"][order[0]]) / 60
        for color, start, stop in _stretches(shown["role"][order], minutes):
            axis.axvspan(start, stop, color=color, linewidth=0, zorder=0)
        for run in _runs(minutes):
            at = order[run]
            axis.fill_between(minutes[run], shown["low90_km"][at], shown["high90_km"][at], color=_color(number), alpha=0.2, linewidth=0)
            axis.plot(minutes[run], shown["base_km"][at], color=_color(number), linewidth=1.2)
        axis.plot(minutes, shown["height_km"][order], ".", color=INK, markersize=3)
        axis.set_ylabel(f"flight {name}\nbase, km")
        axis.set_ylim(0, 2.2)
    axes[-1, 0].set_xlabel("minutes from the flight's first label (points: lidar; line and band: forecast, 90 % interval)")
    patches = [Patch(color=color, label=use) for use, (_, color) in USES.items()]
    figure.legend(handles=patches, ncols=len(patches), fontsize=8, loc="outside upper right")
    return figure


def _stretches(role: np.ndarray, minutes: np.ndarray) -> Iterator[tuple[str, float, float]]:
    """(colour, from, to) of neighbouring windows of one use; what lies between two uses stays white: the gap."""
    use = np.array([next((color for roles, color in USES.values() if r in roles), "") for r in role])
    start = 0
    for end in range(1, len(use) + 1):
        if end == len(use) or use[end] != use[start]:
            if use[start]:
                yield str(use[start]), float(minutes[start]), float(minutes[end - 1])
            start = end


def _runs(minutes: np.ndarray) -> list[slice]:
    """Stretches without a pause, so that no line is drawn across one."""
    steps = np.diff(minutes)
    breaks = np.flatnonzero(steps > max(3 * float(np.median(steps)), 0.75)) + 1 if len(steps) else np.zeros(0, int)
    edges = [0, *breaks.tolist(), len(minutes)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def residuals(layout: Layout, shown: Mapping[str, np.ndarray]) -> Any:
    """Forecast less truth: how often, and against the true height, on test rows."""
    figure, axes = drawing.axes(12, 4.2, 1, 2)
    for part, color in (("blocked", GREY), ("flight", FLIGHTS[0])):
        chosen = _tested(shown, part)
        if chosen.any():
            error = shown["error"][chosen].clip(ERROR_BINS_KM[0], ERROR_BINS_KM[-1])
            label = f"{part}: bias {shown['error'][chosen].mean():+.3f}, MAE {np.abs(shown['error'][chosen]).mean():.3f} km"
            axes[0, 0].hist(error, bins=ERROR_BINS_KM, density=True, histtype="step", linewidth=1.6, color=color, label=label)
    for number, name, mask in _by_flight(layout, shown, _tested(shown, "blocked") | _tested(shown, "flight")):
        axes[0, 1].plot(shown["height_km"][mask], shown["error"][mask], ".", color=_color(number), markersize=5, alpha=0.7, label=name)
    axes[0, 1].axhline(0, color=INK, linewidth=0.8, linestyle=":")
    axes[0, 0].set_xlabel("forecast less truth, km")
    axes[0, 0].set_ylabel("density, 1/km")
    axes[0, 1].set_xlabel("lidar base, km")
    axes[0, 1].set_ylabel("forecast less truth, km")
    for axis in axes[0]:
        axis.legend(fontsize=8, framealpha=0.85)
    return figure


def _tested(shown: Mapping[str, np.ndarray], part: str) -> np.ndarray:
    """(B,) bool: test rows of a part; the validation's rows of it come first in PARTS."""
    return np.isin(shown["role"], PARTS[part][1:])


def references(summarize: Summarize, sums: Sums) -> Any:
    """MAE of model and references, between own blocks and on the held-out flight side by side."""
    scores = {name: summarize(values) for name, values in sums.items()}
    names = [name for name in ("model", "mean", *REFERENCES) if name in scores]
    figure, axes = drawing.axes(9, 4.4)
    axis, place = axes[0, 0], np.arange(len(names))
    for shift, part, color in ((-0.2, "blocked", GREY), (0.2, "flight", FLIGHTS[0])):
        bars = axis.bar(place + shift, [scores[name].get(f"mae_km/{part}", np.nan) for name in names], 0.38, color=color, label=part)
        axis.bar_label(bars, fmt="%.3f", fontsize=7, padding=2)
    axis.set_xticks(place, names)
    axis.set_ylabel("MAE, km")
    axis.set_xlabel("* needs a lidar on board")
    axis.legend(fontsize=8)
    return figure


def best_and_worst(layout: Layout, shown: Mapping[str, np.ndarray]) -> Any:
    """Frames of the best and the worst test windows; over them where the network looked, below them the weight of each frame."""
    tested = np.flatnonzero(np.isin(shown["role"], (2, 4, 5, 6)))
    order = tested[np.argsort(np.abs(shown["error"][tested]))]
    chosen = [*order[:EACH], *order[EACH:][-EACH:][::-1]]
    count = shown["frames"].shape[1]
    figure, axes = drawing.axes(2.1 * count + 1, 1.9 * len(chosen) + 0.5, len(chosen), count)
    for row, b in zip(axes, chosen, strict=True):
        low, high = np.percentile(shown["frames"][b], (1, 99))
        for t, axis in enumerate(row):
            frame = shown["frames"][b, t]
            axis.imshow(frame, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), extent=(0, frame.shape[1], frame.shape[0], 0))
            if "map" in shown:
                share = shown["map"][b, t] / max(float(shown["map"][b].max()), 1e-6)
                red = np.stack([np.ones_like(share), 0.3 * np.ones_like(share), np.zeros_like(share), 0.6 * share], -1)
                axis.imshow(red, extent=(0, frame.shape[1], frame.shape[0], 0), interpolation="bilinear")
            axis.plot(frame.shape[1] / 2, frame.shape[0] / 2, "+", color="#3fd0ff", markersize=7)
            axis.grid(False)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(f"{t - count // 2:+d}: {shown['frame_weights'][b, t]:.2f}", fontsize=8)
        row[0].set_ylabel(f"flight {layout.flights[shown['flight'][b]]}\nlidar {shown['height_km'][b]:.2f} km\n"
                          f"forecast {shown['base_km'][b]:.2f}", fontsize=8)  # fmt: skip
    title = "best and worst test windows; below each frame its offset and weight; red: where the network looked; +: the frame's centre"
    figure.suptitle(title, fontsize=8, wrap=True)
    return figure


def frame_weights(shown: Mapping[str, np.ndarray]) -> Any:
    """Weight of a frame against its offset from the labelled one: the mean, and where 80 % of the windows lie."""
    weights = shown["frame_weights"]
    offset = np.arange(weights.shape[1]) - weights.shape[1] // 2
    low, high = np.quantile(weights, (0.1, 0.9), axis=0)
    figure, axes = drawing.axes(6, 3.8)
    axes[0, 0].fill_between(offset, low, high, color=FLIGHTS[0], alpha=0.2, linewidth=0, label="80 % of windows")
    axes[0, 0].plot(offset, weights.mean(0), marker="o", color=FLIGHTS[0], label="mean")
    axes[0, 0].axhline(1 / len(offset), color=INK, linewidth=0.8, linestyle=":", label="all alike")
    axes[0, 0].set_xticks(offset)
    axes[0, 0].set_ylim(0, max(1.05 * float(high.max()), 1.5 / len(offset)))
    axes[0, 0].set_xlabel("frame, from the labelled one")
    axes[0, 0].set_ylabel("weight")
    axes[0, 0].legend(fontsize=8)
    return figure


def heights(shown: Mapping[str, np.ndarray]) -> Any:
    """Heights of the training and the test labels, and of the forecasts on the test rows."""
    figure, axes = drawing.axes(9, 3.8, 1, 2, sharey=True)
    train = shown["height_km"][shown["role"] == 0]
    for axis, part in zip(axes[0], ("blocked", "flight"), strict=True):
        chosen = _tested(shown, part)
        for values, color, label in ((train, GREY, "train"), (shown["height_km"][chosen], FLIGHTS[0], "test"),
                                     (shown["base_km"][chosen], FLIGHTS[1], "forecast")):  # fmt: skip
            if len(values):
                values = values.clip(HEIGHT_BINS_KM[0], HEIGHT_BINS_KM[-1])
                axis.hist(values, bins=HEIGHT_BINS_KM, density=True, histtype="step", linewidth=1.6, color=color, label=label)
        axis.set_title(part, loc="left", fontsize=10)
        axis.set_xlabel("base, km")
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("density, 1/km")
    return figure


def track(layout: Layout, dataset: Dataset, rows: np.ndarray, shown: Mapping[str, np.ndarray]) -> Any:
    """Where the aircraft flew, coloured by the error of the test rows."""
    tested = np.isin(shown["role"], (2, 4, 5, 6))
    found = list(_by_flight(layout, shown, tested))
    figure, axes = drawing.axes(1 + 4 * len(found), 4.2, 1, len(found))
    points = None
    for axis, (_, name, mask) in zip(axes[0], found, strict=True):
        lon, lat = (np.asarray(dataset.arrays[key])[rows[:, 0]] for key in ("lon", "lat"))
        mine = shown["flight"] == shown["flight"][mask][0]
        axis.plot(lon[mine], lat[mine], ".", color=GREY, markersize=2)
        points = axis.scatter(lon[mask], lat[mask], c=shown["error"][mask], cmap="coolwarm", vmin=-0.6, vmax=0.6, s=9)
        axis.set_title(f"flight {name}", loc="left", fontsize=10)
        axis.set_xlabel("longitude, degrees")
    axes[0, 0].set_ylabel("latitude, degrees")
    figure.colorbar(points, ax=axes, label="forecast less truth, km (grey: not tested)")
    return figure
