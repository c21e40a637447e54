"""Pictures of evoked responses. Matplotlib figures without pyplot, so that nothing global is touched."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxtrain.data.dataset import Dataset, Statistics
from jaxtrain.data.evoked_config import SAMPLE_MS, SAMPLES
from jaxtrain.data.evoked_serving import series_threshold
from jaxtrain.tasks import drawing
from jaxtrain.tasks.abr_scores import CLASSES, FMP_NAMES, KINDS, ROC_BINS, ROC_LOGIT, Layout, auc, pooled

Predict = Callable[..., dict[str, np.ndarray]]
Sums = Mapping[str, Mapping[str, np.ndarray]]  # forecaster -> sums
TIME = SAMPLE_MS * np.arange(SAMPLES)
INPUT, TARGET, MODEL, OTHER = "#b5b5b5", "#222222", "#1f5fa8", "#d98324"
CLASS_COLORS = ("#1f5fa8", "#b8503e", "#2e8b57", "#a678b4", "#c9b037")
COLORS = {"model": MODEL, "oracle": "#2e8b57", "wiener": OTHER, "table": "#b8503e", "identity": "#8c8c8c", "mean": "#a678b4",
          "majority": "#c9b037"}  # fmt: skip
SHOWN = 400  # records predicted for pictures


def draw(statistics: Statistics, names: tuple[str, ...], predict: Predict, dataset: Dataset, sums: Sums) -> dict[str, Any]:
    """{name: figure}: records always; those of a head where it is there and labelled."""
    shown = predict(dataset.index[:: -(-len(dataset) // SHOWN)])
    figures = {"records": records(shown)}
    if "v_probability" in shown:
        waterfall = series(predict, dataset)
        figures |= {"series": waterfall} if waterfall is not None else {}
        figures |= {"latency_level": latency_level(names, shown), "existence": existence(sums)}
    figures["error_by_fmp"] = error_by_fmp(names, sums)
    if "class_probability" in shown:
        figures["confusion"] = confusion(names, sums["model"])
    return figures


def records(shown: Mapping[str, np.ndarray]) -> Any:
    """Six records from the worst to the best denoised: input, target, forecast, and wave V as labelled and as forecast."""
    figure, axes = drawing.axes(13, 6.4, 2, 3, sharex=True)
    reference = shown.get("target", shown["signal"])
    r = [np.corrcoef(a, b)[0, 1] for a, b in zip(shown["denoised_uv"], reference, strict=True)]
    order = np.argsort(np.nan_to_num(r))
    for axis, i in zip(axes.ravel(), order[np.linspace(0, len(order) - 1, axes.size).round().astype(int)], strict=True):
        axis.plot(TIME, shown["signal"][i], color=INPUT, linewidth=1, label="input")
        if "target" in shown:
            axis.plot(TIME, shown["target"][i], color=TARGET, linewidth=1.2, label="target")
        axis.plot(TIME, shown["denoised_uv"][i], color=MODEL, linewidth=1.6, label="denoised")
        told = _mark_peak(axis, shown, int(i))
        level = f"{shown['statics'][i, 1]:.0f} dB" if shown["statics_ok"][i, 1] else "level unknown"
        axis.set_title(f"{level}, r {r[i]:.2f}{told}", loc="left", fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("ms after the stimulus")
    for axis in axes[:, 0]:
        axis.set_ylabel("uV, vertex positive up")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), fontsize=8, frameon=False)
    return figure


def _mark_peak(axis: Any, shown: Mapping[str, np.ndarray], i: int) -> str:
    """The labelled wave V as a black tick, the forecast one as a band of one SD; returns what to say of them."""
    if "v_probability" not in shown:
        return ""
    if shown["peak_ok"][i]:
        axis.axvline(shown["latency_ms"][i], color=TARGET, linewidth=1, linestyle=":")
    if shown["v_probability"][i] >= 0.5:
        center, sd = shown["v_latency_ms"][i], shown["v_latency_sd_ms"][i]
        axis.axvspan(center - sd, center + sd, color=MODEL, alpha=0.15, linewidth=0)
        axis.axvline(center, color=MODEL, linewidth=0.8)
    label = ("no" if not shown["present"][i] else "yes") if shown["present_ok"][i] else "unread"
    return f", V {label}, forecast {shown['v_probability'][i]:.0%}"


def series(predict: Predict, dataset: Dataset) -> Any:
    """The ear with the most levels as a waterfall, softest at the bottom, with the probability of wave V and the threshold; None
    without levels."""
    patient, ear = (np.asarray(dataset.arrays[name])[dataset.index[:, 0]] for name in ("patient", "ear"))
    level, ok = (np.asarray(dataset.arrays[name])[dataset.index[:, 0]][:, 1] for name in ("statics", "statics_ok"))
    codes = 3 * patient.astype(np.int64) + ear
    best = max(np.unique(codes), key=lambda code: len(np.unique(level[(codes == code) & ok])))
    rows = np.flatnonzero((codes == best) & ok)
    levels, first = np.unique(level[rows], return_index=True)
    if not len(levels):
        return None
    shown = predict(dataset.index[rows])
    threshold = series_threshold(level[rows], shown["v_probability"])
    figure, axes = drawing.axes(6.4, 1.6 + 0.62 * len(levels))
    axis = axes[0, 0]
    step = 1.3 * max(float(np.abs(shown["denoised_uv"][first]).max()), 0.1)
    for place, i in enumerate(first):
        axis.plot(TIME, step * place + shown["signal"][i], color=INPUT, linewidth=0.9)
        axis.plot(TIME, step * place + shown["denoised_uv"][i], color=MODEL, linewidth=1.6)
        if shown["v_probability"][i] >= 0.5:
            sample = int(np.clip(round(float(shown["v_latency_ms"][i]) / SAMPLE_MS), 0, SAMPLES - 1))
            axis.plot(TIME[sample], step * place + shown["denoised_uv"][i][sample], "v", color=OTHER, markersize=6)
    labels = [f"{db:g} dB  {shown['v_probability'][i]:.0%}" for db, i in zip(levels, first, strict=True)]
    axis.set_yticks(step * np.arange(len(levels)), labels)
    axis.set_xlabel("ms after the stimulus")
    measured = shown["threshold_db"][first[0]] if shown["threshold_ok"][first[0]] else np.nan
    title = "too few levels for a threshold" if np.isnan(threshold) else f"threshold {threshold:.0f} dB"
    axis.set_title(title + ("" if np.isnan(measured) else f" (measured {measured:.0f} dB)"), loc="left", fontsize=10)
    return figure


def latency_level(names: tuple[str, ...], shown: Mapping[str, np.ndarray]) -> Any:
    """Wave V latency over level, by class: labels as points, forecasts as means with their spread."""
    figure, axes = drawing.axes(13, 3.6, 1, CLASSES, sharex=True, sharey=True)
    level, known = shown["statics"][:, 1], shown["statics_ok"][:, 1]
    for c, (axis, name) in enumerate(zip(axes[0], names, strict=True)):
        mine = known & (shown["label"] == c)
        read = mine & shown["peak_ok"]
        axis.plot(level[read], shown["latency_ms"][read], ".", color=INPUT, markersize=5, label="label")
        told = mine & (shown["v_probability"] >= 0.5)
        steps = np.unique(level[told])
        means = [shown["v_latency_ms"][told & (level == step)].mean() for step in steps]
        spread = [shown["v_latency_ms"][told & (level == step)].std() for step in steps]
        axis.errorbar(steps, means, spread, color=CLASS_COLORS[c], marker="o", markersize=4, linewidth=1.4, capsize=2, label="forecast")
        axis.set_title(f"{name}: {int(mine.sum())} records", loc="left", fontsize=10)
        axis.set_xlabel("level, dB nHL")
    axes[0, 0].set_ylabel("wave V latency, ms")
    axes[0, 0].legend(fontsize=8)
    return figure


def existence(sums: Sums) -> Any:
    """ROC curves of all forecasters, and how often a wave V is there at a forecast probability."""
    figure, axes = drawing.axes(10, 4.4, 1, 2)
    for name in sorted((n for n in sums if "roc" in sums[n]), key=_rank):
        counts = np.asarray(sums[name]["roc"], np.float64)
        if (area := auc(counts)) is None:
            continue
        rates = np.concatenate([np.zeros((2, 1)), np.cumsum(counts[:, ::-1], 1) / counts.sum(1, keepdims=True)], 1)
        axes[0, 0].plot(*rates, **_style(name, f"{name} {area:.3f}"))
    axes[0, 0].plot([0, 1], [0, 1], color=TARGET, linewidth=0.8, linestyle=":")
    axes[0, 0].set_xlabel("false peaks")
    axes[0, 0].set_ylabel("found peaks")
    axes[0, 0].legend(fontsize=8, title="area", title_fontsize=8)
    if "roc" in sums["model"]:
        absent, present = np.asarray(sums["model"]["roc"], np.float64)
        p = 1 / (1 + np.exp(-(ROC_LOGIT * (2 * (np.arange(ROC_BINS) + 0.5) / ROC_BINS - 1))))
        part = np.minimum((10 * p).astype(int), 9)
        n, events, mean = (np.bincount(part, w, 10) for w in (absent + present, present, p * (absent + present)))
        there = n > 0
        axes[0, 1].plot(mean[there] / n[there], events[there] / n[there], marker="o", **_style("model", "model"))
    axes[0, 1].plot([0, 1], [0, 1], color=TARGET, linewidth=0.8, linestyle=":")
    axes[0, 1].set_xlabel("forecast probability of wave V")
    axes[0, 1].set_ylabel("share with wave V")
    return figure


def _rank(name: str) -> int:
    return list(COLORS).index(name) if name in COLORS else len(COLORS)


def _style(name: str, label: str) -> dict[str, Any]:
    return {"color": COLORS.get(name, "#5f9ea0"), "linewidth": 2.2 if name == "model" else 1.3, "label": label}


def error_by_fmp(names: tuple[str, ...], sums: Sums) -> Any:
    """Waveform, latency and amplitude error of all forecasters by recording quality."""
    figure, axes = drawing.axes(13, 3.8, 1, 3, sharex=True)
    layout = Layout(names, 0)
    labels = {"rmse_uv": "RMSE of the waveform, uV", "latency_mae_ms": "latency MAE, ms", "amplitude_mae_uv": "amplitude MAE, uV"}
    for axis, (score, label) in zip(axes[0], labels.items(), strict=True):
        for name in sorted(sums, key=_rank):
            values = [pooled(layout, np.asarray(row, np.float64)).get(score, np.nan) for row in sums[name]["fmp"]]
            if np.isfinite(values).any():
                axis.plot(range(len(FMP_NAMES)), values, marker="o", markersize=4, **_style(name, name))
        axis.set_xticks(range(len(FMP_NAMES)), FMP_NAMES, fontsize=8)
        axis.set_xlabel("recording quality (FMP)")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    lines = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def confusion(names: tuple[str, ...], sums: Mapping[str, np.ndarray]) -> Any:
    """Share of each actual class that was given each class, with counts."""
    row = np.asarray(sums["all"], np.float64)
    table = np.array([[row[KINDS.index(f"class/{true}{told}")] for told in range(CLASSES)] for true in range(CLASSES)])
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    figure, axes = drawing.axes(5.8, 5)
    axis = axes[0, 0]
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for true in range(CLASSES):
        for told in range(CLASSES):
            color = "white" if share[true, told] > 0.6 else TARGET
            axis.text(told, true, f"{share[true, told]:.0%}\n{table[true, told]:,.0f}", ha="center", va="center", fontsize=8, color=color)
    axis.set_xticks(range(CLASSES), names, fontsize=8)
    axis.set_yticks(range(CLASSES), names, fontsize=8)
    axis.set_xlabel("forecast class")
    axis.set_ylabel("class")
    axis.grid(False)
    figure.colorbar(image, ax=axis, label="share of the class", shrink=0.8)
    return figure


# Generated waveforms --------------------------------------------------------------------------------------

GUIDANCE = (1.0, 2.0, 4.0)
DRAWN, SWEPT = 96, 16  # waveforms drawn for pictures
LEAST_LEVEL_RECORDS = 3


def draw_generated(statistics: Statistics, predict: Predict, dataset: Dataset) -> dict[str, Any]:
    """{name: figure}: mean waves by level, sixteen waveforms, guidance."""
    shown = predict(dataset.index[:: -(-len(dataset) // DRAWN)])
    rows = _heard(dataset)
    swept = {weight: predict(rows, guidance=weight) for weight in GUIDANCE}
    return {"mean_waves": mean_waves(shown), "samples": samples(statistics, shown), "guidance": guidance(swept)}


def _heard(dataset: Dataset) -> np.ndarray:
    """Index rows of at most sixteen records from 60 dB up, else of any."""
    statics, ok = (np.asarray(dataset.arrays[name])[dataset.index[:, 0]][:, 1] for name in ("statics", "statics_ok"))
    loud = np.flatnonzero(ok & (statics >= 60))
    chosen = loud if len(loud) else np.arange(len(dataset))
    return dataset.index[chosen[:: -(-len(chosen) // SWEPT)]]


def mean_waves(shown: Mapping[str, np.ndarray]) -> Any:
    """Mean real and generated wave of every level with a few records, loudest on top."""
    level, known = shown["statics"][:, 1], shown["statics_ok"][:, 1]
    levels = [db for db in np.unique(level[known]) if (known & (level == db)).sum() >= LEAST_LEVEL_RECORDS]
    figure, axes = drawing.axes(6.4, 1.6 + 0.5 * len(levels))
    axis = axes[0, 0]
    step = 0.5 * max(float(np.abs(shown["target"]).max()), 0.1)
    for place, db in enumerate(levels):
        mine = known & (level == db)
        axis.plot(TIME, step * place + shown["target"][mine].mean(0), color=TARGET, linewidth=1.2, label="real")
        axis.plot(TIME, step * place + shown["generated_uv"][mine].mean(0), color=MODEL, linewidth=1.6, label="generated")
    axis.set_yticks(step * np.arange(len(levels)), [f"{db:g} dB" for db in levels])
    axis.set_xlabel("ms after the stimulus")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles[:2], labels[:2], loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    return figure


def samples(statistics: Statistics, shown: Mapping[str, np.ndarray]) -> Any:
    """Sixteen generated waveforms with the real one of the same conditions."""
    names = [*map(str, statistics["class_names"]), "class unknown"]
    figure, axes = drawing.axes(12, 8, 4, 4, sharex=True, sharey=True)
    chosen = np.linspace(0, len(shown["generated_uv"]) - 1, axes.size).round().astype(int)
    for axis, i in zip(axes.ravel(), chosen, strict=True):
        axis.plot(TIME, shown["target"][i], color=INPUT, linewidth=1, label="real")
        axis.plot(TIME, shown["generated_uv"][i], color=MODEL, linewidth=1.4, label="generated")
        level = f"{shown['statics'][i, 1]:.0f} dB" if shown["statics_ok"][i, 1] else "level unknown"
        axis.set_title(f"{names[int(shown['label'][i])]}, {level}", loc="left", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("ms")
    for axis in axes[:, 0]:
        axis.set_ylabel("uV")
    axes[0, 0].legend(fontsize=8)
    return figure


def guidance(swept: Mapping[float, Mapping[str, np.ndarray]]) -> Any:
    """Waveforms of the same conditions and noise under growing guidance, their mean, and the mean of the real ones."""
    figure, axes = drawing.axes(12, 3.8, 1, len(swept), sharex=True, sharey=True)
    for axis, (weight, shown) in zip(axes[0], swept.items(), strict=True):
        axis.plot(TIME, shown["generated_uv"].T, color=MODEL, alpha=0.25, linewidth=0.8)
        axis.plot(TIME, shown["generated_uv"].mean(0), color=MODEL, linewidth=2, label="mean generated")
        axis.plot(TIME, shown["target"].mean(0), color=TARGET, linewidth=1.4, label="mean real")
        axis.set_title(f"guidance {weight:g}{' (off)' if weight == 1 else ''}", loc="left", fontsize=10)
        axis.set_xlabel("ms after the stimulus")
    axes[0, 0].set_ylabel("uV")
    axes[0, 0].legend(fontsize=8)
    return figure
