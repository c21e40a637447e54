"""What a run shows and writes: start-up table, one live progress line, metrics.jsonl, TensorBoard, tables, summary.json."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

Scores = Mapping[str, float]


def write_json(path: Path, values: Any) -> None:
    """Whole or not at all: a temporary file, then a rename. NaN and infinities become null."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(_finite(values), indent=1) + "\n")
    temporary.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value


def format_duration(seconds: float) -> str:
    """ "45 s", "3:05 min", "2:10 h"."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds) // 60
    return f"{minutes}:{round(seconds) % 60:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def format_bytes(count: float) -> str:
    """Binary prefixes: "1.4 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def number(value: float | None) -> str:
    """Four significant digits; "-" where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.{max(0, 3 - (math.floor(math.log10(abs(value))) if value else 0))}f}"
    return f"{value:.3g}"


def score_table(title: str, scores: Mapping[str, Scores], headline: Sequence[str]) -> str:
    """Forecasters as rows, headline scores as columns."""
    columns = [c for c in headline if any(c in s for s in scores.values())]
    rows = [[title, *columns], *([name, *(number(s.get(c)) for c in columns)] for name, s in scores.items())]
    return table(rows)


def parameter_table(params: Mapping[str, Any], depth: int = 2) -> str:
    """Parameters by module: shapes of its leaves and how many numbers they hold."""
    groups: dict[str, list[tuple[str, Any]]] = {}
    for path, leaf in params.items():
        parts = path.split("/")
        head = "/".join(parts[: min(depth, len(parts) - 1)]) or parts[0]
        groups.setdefault(head, []).append(("/".join(parts[len(head.split("/")) :]) or parts[-1], leaf))
    rows = [["module", "shapes", "parameters"]]
    for head, leaves in groups.items():
        shapes = " ".join(f"{name}({','.join(map(str, leaf.shape))})" for name, leaf in leaves)
        rows.append([head, shapes if len(shapes) <= 78 else f"{shapes[:75]}...", f"{sum(math.prod(leaf.shape) for _, leaf in leaves):,}"])
    total = sum(math.prod(leaf.shape) for leaf in params.values())
    width = max(len(r[0]) for r in rows)
    lines = [f"{r[0].ljust(width)}  {r[2].rjust(10)}  {r[1]}" for r in rows]
    return "\n".join([*lines, f"{'all'.ljust(width)}  {f'{total:,}'.rjust(10)}"])


class Progress:
    """One live line on a terminal, a line now and then elsewhere; silent on all processes but the first."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False, every_seconds: float = 10.0) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.quiet, self.every_seconds = quiet, every_seconds
        self._last, self._width = 0.0, 0

    def show(self, text: str) -> None:
        """Replace the live line."""
        now = time.monotonic()
        if self.quiet or now - self._last < (0.1 if self.live else self.every_seconds):
            return
        self._last = now
        if self.live:
            self.stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def say(self, text: str) -> None:
        """A line that stays, above the live line."""
        if not self.quiet:
            if self.live:
                self.stream.write("\r" + " " * self._width + "\r")
                self._width = 0
            self.stream.write(text + "\n")
            self.stream.flush()


class Log:
    """metrics.jsonl and TensorBoard events; `resume` drops what an interrupted run wrote beyond its checkpoint."""

    def __init__(self, workdir: Path, *, tensorboard: bool, resume_step: int, quiet: bool = False) -> None:
        self._file, self._writer = None, None
        if quiet:
            return
        path = workdir / "metrics.jsonl"
        if path.exists():
            _keep_until(path, resume_step)
        self._file = path.open("a")
        if tensorboard:
            from tensorboardX import SummaryWriter

            # The writer names its file by the second, and a second one would overwrite the first.
            suffix = f".{time.time_ns()}"
            self._writer = SummaryWriter(
                str(workdir / "tensorboard"), purge_step=resume_step + 1, flush_secs=30, filename_suffix=suffix
            )

    def scalars(self, step: int, values: Mapping[str, float], **also: Any) -> None:
        """One row of metrics.jsonl, one TensorBoard scalar per value."""
        if self._file is not None:
            self._file.write(json.dumps(_finite({"step": step, **also, **values})) + "\n")
            self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def histograms(self, step: int, params: Mapping[str, Any]) -> None:
        if self._writer is not None:
            for name, value in params.items():
                self._writer.add_histogram(name, np.asarray(value, np.float32), step)

    def figure(self, step: int, name: str, figure: Any) -> None:
        if self._writer is not None:
            self._writer.add_figure(name, figure, step, close=False)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def constant_lines(workdir: Path, lines: Mapping[str, Mapping[str, float]], split: str, last_step: int) -> None:
    """Scores that do not change with training, {"last": {"mae": ..}}, as TensorBoard runs of their own beside the model's curves."""
    from tensorboardX import SummaryWriter

    for name, scores in lines.items():
        with SummaryWriter(str(workdir / "tensorboard" / name)) as writer:
            for step in (0, last_step):
                for score, value in scores.items():
                    writer.add_scalar(f"{split}/{score}", value, step)


def _keep_until(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # a line cut short by a kill
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(f"{line}\n" for line in kept))
    temporary.replace(path)


def save_figures(workdir: Path, figures: Mapping[str, Any], log: Log | None, step: int) -> list[Path]:
    """PNG files below `figures/`, and TensorBoard images."""
    import matplotlib

    matplotlib.use("Agg")  # TensorBoard's writer draws through pyplot
    folder = workdir / "figures"
    paths = []
    for name, figure in figures.items():
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=110)
        if log is not None:
            log.figure(step, name, figure)
        figure.clf()
        paths.append(path)
    return paths
