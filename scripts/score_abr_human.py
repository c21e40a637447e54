"""Score a finished run on the public set of human clicks, which has no labels: by its halves, its long averages and its grand means.

    python scripts/score_abr_human.py --workdir runs/abr-demo --input human_clicks.parquet [--output scores.json]

R1  each half of an average against the other, FMP hidden; the noise of the other half is taken out of the error.
R2  averages of 500 sweeps against the mean of the same ear's averages of 2000 sweeps at that level, the noise of that mean taken out.
R3  wave V's latency in every record from 20 dB on, against the highest sample in 5-9 ms of all records of that ear and level, weighted
    by their noise; and in how many records of each level a wave V is found.

A score whose records are not there is left out, and said: R2 needs averages of 500 and of 2000 sweeps of one ear and level, R3 records
from 20 dB on, a slope two levels of an ear.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prepare_abr_human import AGE_YEARS, LONG_SWEEPS, SHORT_SWEEPS, read, with_long_average

from jaxtrain.cli import check_new_file
from jaxtrain.data.evoked_config import SAMPLE_MS
from jaxtrain.data.evoked_tables import fmp_from_halves
from jaxtrain.errors import UserError

BATCH = 77  # records predicted at once: a third of the set
LEAST_DB = 20.0  # R3: softer responses have no certain peak in the grand mean
PEAK_MS = (5.0, 9.0)
WITHIN_MS = 0.5
PRESENT = 0.5


@dataclass(frozen=True)
class Clicks:
    """R records: signal, half_a, half_b (R, 200) float32 uV; level dB, rate 1/s (R,); ear (R,) int, one number per person and side."""

    signal: np.ndarray
    half_a: np.ndarray
    half_b: np.ndarray
    level: np.ndarray
    rate: np.ndarray
    ear: np.ndarray
    names: tuple[str, ...]

    def statics(self, fmp: np.ndarray | float) -> np.ndarray:
        """(R, 4) age years, level dB, rate 1/s, FMP (NaN = missing)."""
        columns = (np.full(len(self.level), AGE_YEARS), self.level, self.rate, np.broadcast_to(fmp, self.level.shape))
        return np.stack(columns, axis=1).astype(np.float32)


def clicks(columns: dict[str, np.ndarray]) -> Clicks:
    names, ear = np.unique(np.char.add(np.char.add(columns["person"], " "), columns["ear"]), return_inverse=True)
    signal, half_a, half_b = (columns[name] for name in ("average_uv", "buffer1_uv", "buffer2_uv"))
    return Clicks(signal, half_a, half_b, columns["level_db"], columns["rate_hz"], ear, tuple(map(str, names)))


def predicted(run: Any, signal: np.ndarray, statics: np.ndarray) -> dict[str, np.ndarray]:
    """What the run says of signals (n, 200) uV, in batches of one size, so that one program is compiled."""
    parts = []
    for first in range(0, len(signal), BATCH):
        rows = np.minimum(np.arange(first, first + BATCH), len(signal) - 1)
        count = min(BATCH, len(signal) - first)
        parts.append({name: value[:count] for name, value in run.predict(signal=signal[rows], statics=statics[rows]).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def gain_and_r(told: np.ndarray, target: np.ndarray, signal: np.ndarray, noise: float) -> tuple[float, float]:
    """(dB over the signal itself, mean correlation) without window means; noise: mean square of the target's own, uV^2."""
    told, target, signal = (wave - wave.mean(1, keepdims=True) for wave in (told, target, signal))
    identity, excess = (((wave - target) ** 2).mean() - noise for wave in (signal, told))
    r = (told * target).sum(1) / np.sqrt((told**2).sum(1) * (target**2).sum(1))
    return float(10 * np.log10(identity / excess)) if excess > 0 else float("inf"), float(r.mean())


def noise_power(found: Clicks) -> np.ndarray:
    """(R,) uV^2: mean square of the noise of each average, from the difference of its halves."""
    half = (found.half_a - found.half_b) / 2
    return ((half - half.mean(1, keepdims=True)) ** 2).mean(1)


def halves(run: Any, found: Clicks) -> dict[str, float]:
    """R1."""
    a, b = np.concatenate([found.half_a, found.half_b]), np.concatenate([found.half_b, found.half_a])
    told = predicted(run, a, np.tile(found.statics(np.nan), (2, 1)))["denoised_uv"]
    difference = (a - a.mean(1, keepdims=True)) - (b - b.mean(1, keepdims=True))
    gain, r = gain_and_r(told, b, a, float((difference**2).mean() / 2))
    return {"r1_gain_db": gain, "r1_r": r, "r1_pairs": float(len(a))}


def long_averages(run: Any, columns: dict[str, np.ndarray], path: Path) -> dict[str, float]:
    """R2, of the short averages that have long ones; {} without any."""
    place = np.char.add(np.char.add(columns["person"], columns["ear"]), columns["level_db"].astype(np.str_))
    paired = np.isin(place, place[columns["sweeps"] == LONG_SWEEPS])
    columns = {name: values[paired] for name, values in columns.items()}
    if not (columns["sweeps"] == SHORT_SWEEPS).any():
        return {}
    rows = with_long_average(columns, path)
    short, every = clicks(rows), clicks(columns)
    power, long, noise = noise_power(every), columns["sweeps"] == LONG_SWEEPS, []
    for ear, level in zip(short.ear, short.level, strict=True):
        mine = power[long & (every.ear == ear) & (every.level == level)]
        noise.append(mine.sum() / len(mine) ** 2)  # of their mean
    told = predicted(run, short.signal, short.statics(fmp_from_halves(short.signal, short.half_a, short.half_b)))["denoised_uv"]
    gain, r = gain_and_r(told, rows["clean"], short.signal, float(np.mean(noise)))
    return {"r2_gain_db": gain, "r2_r": r, "r2_records": float(len(short.signal))}


def reference_peaks(found: Clicks) -> np.ndarray:
    """(R,) ms of the highest sample in 5-9 ms of the noise-weighted mean of all records of the same ear and level."""
    weight = 1 / noise_power(found)
    first, last = (round(ms / SAMPLE_MS) for ms in PEAK_MS)
    peak = np.empty(len(found.level))
    for row in range(len(peak)):
        same = (found.ear == found.ear[row]) & (found.level == found.level[row])
        mean = np.average(found.signal[same], axis=0, weights=weight[same])
        peak[row] = SAMPLE_MS * (first + int(mean[first : last + 1].argmax()))
    return peak


def latencies(run: Any, found: Clicks) -> dict[str, float]:
    """R3."""
    told = predicted(run, found.signal, found.statics(fmp_from_halves(found.signal, found.half_a, found.half_b)))
    if "v_latency_ms" not in told:
        raise UserError("this run has no head 'peak' (model.heads): R3 cannot be scored")
    latency, reference = told["v_latency_ms"], reference_peaks(found)
    loud = found.level >= LEAST_DB
    error = np.abs(latency - reference)[loud]
    scores: dict[str, float] = {}
    if len(error):
        scores = {"r3_mae_ms": float(error.mean()), "r3_within": float((error <= WITHIN_MS).mean()), "r3_records": float(len(error))}
    if len(np.unique(found.level[loud])) > 1 and len(np.unique(latency[loud])) > 1:
        scores["r3_rank_r"] = rank_correlation(latency[loud], found.level[loud])
    for ear, name in enumerate(found.names):
        mine = loud & (found.ear == ear)
        if len(np.unique(found.level[mine])) < 2:
            continue
        for kind, value in (("told", latency), ("reference", reference)):
            scores[f"r3_slope_{kind}/{name}"] = float(10 * np.polyfit(found.level[mine], value[mine], 1)[0])
    present = told["v_probability"] >= PRESENT
    scores |= {f"v_present/{level:g}": float(present[found.level == level].mean()) for level in np.unique(found.level)}
    return scores


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, ties at their mean rank."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[which]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def render(scores: dict[str, float]) -> str:
    present = [(name.split("/")[1], value) for name, value in scores.items() if name.startswith("v_present/")]
    slopes = [name.split("/")[1] for name in scores if name.startswith("r3_slope_told/")]
    long = f"no average of {SHORT_SWEEPS} sweeps has one of {LONG_SWEEPS} of its ear and level"
    if "r2_gain_db" in scores:
        long = f"gain {scores['r2_gain_db']:.2f} dB, r {scores['r2_r']:.3f} ({scores['r2_records']:.0f} records)"
    peaks = f"no record from {LEAST_DB:g} dB on"
    if "r3_mae_ms" in scores:
        rank = f"rank correlation with level {scores['r3_rank_r']:.2f} " if "r3_rank_r" in scores else ""
        within = f"within {WITHIN_MS:g} ms {scores['r3_within']:.1%}"
        peaks = f"MAE {scores['r3_mae_ms']:.3f} ms, {within}, {rank}({scores['r3_records']:.0f} records)"
    return "\n".join([
        f"R1  half to other half        gain {scores['r1_gain_db']:.2f} dB, r {scores['r1_r']:.3f} ({scores['r1_pairs']:.0f} pairs)",
        f"R2  500 sweeps to the mean    {long}",
        f"R3  latency of wave V         {peaks}",
        *(f"    {name}: {scores[f'r3_slope_told/{name}']:.2f} ms per 10 dB (grand means {scores[f'r3_slope_reference/{name}']:.2f})"
          for name in slopes),
        "V found at dB: " + ", ".join(f"{level}: {value:.0%}" for level, value in present),
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Score a finished run on the public set of human clicks.")
    parser.add_argument("--workdir", type=Path, required=True, help="a finished run of configs/abr.py (objective predict, trained in uV)")
    parser.add_argument("--input", type=Path, required=True, help="the public set, Parquet")
    parser.add_argument("--output", type=Path, help="write the scores to this .json file as well")
    options = parser.parse_args(arguments)
    try:
        if options.output:
            check_new_file(options.output, options.input, (".json",))
            if not options.output.parent.is_dir():
                raise UserError(f"--output {options.output}: there is no folder {options.output.parent}")
        scores = score(options.workdir, options.input)
        if options.output:
            from jaxtrain.engine.report import write_json

            write_json(options.output, scores)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or options.output}: {error.strerror or error}; nothing was written", file=sys.stderr)
        return 2
    print(render(scores))
    return 0


def score(workdir: Path, path: Path) -> dict[str, float]:
    """All scores by name. Raises UserError where run or file does not fit."""
    columns = read(path)
    import jaxtrain
    from jaxtrain.engine.start import start_jax

    start_jax(distributed=False)
    run = jaxtrain.load(workdir)
    if run.task.signature != ("signal", "statics") or str(run.task.statistics.get("units")) != "uV":
        raise UserError(f"--workdir {workdir}: not a run of configs/abr.py that predicts in uV; train one with model.objective=predict")
    found = clicks(columns)
    return halves(run, found) | long_averages(run, columns, path) | latencies(run, found)


if __name__ == "__main__":
    sys.exit(main())
