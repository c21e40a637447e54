"""Where the time and memory go: trace windows, FLOPs, share of peak, memory of a compiled program."""

import resource
import sys
from pathlib import Path
from typing import Any

import jax

# Dense peak FLOP/s of one device by (part of its name, compute type); float32 on NVIDIA means TF32-free FP32.
# Sources: NVIDIA A100, H100, H200 data sheets; Google Cloud TPU system architecture pages.
PEAK_FLOPS = (
    ("H200", {"bfloat16": 989e12, "float32": 67e12}),
    ("H100", {"bfloat16": 989e12, "float32": 67e12}),
    ("A100", {"bfloat16": 312e12, "float32": 19.5e12}),
    ("TPU v6", {"bfloat16": 918e12}),
    ("TPU v5p", {"bfloat16": 459e12}),
    ("TPU v5 lite", {"bfloat16": 197e12}),
    ("TPU v5e", {"bfloat16": 197e12}),
    ("TPU v5", {"bfloat16": 459e12}),
    ("TPU v4", {"bfloat16": 275e12}),
)


def peak_flops(precision: str) -> float | None:
    """Peak of all devices together, None where it is not known (a CPU's depends on its clock: measure it instead)."""
    kind = jax.devices()[0].device_kind
    dtype = "float32" if precision == "float32" else "bfloat16"
    for name, peaks in PEAK_FLOPS:
        if name in kind:
            return peaks[dtype] * jax.device_count() if dtype in peaks else None
    return None


def flops_per_step(analytic_per_example: float | None, batch: int, compiled: Any) -> float | None:
    """FLOPs of one optimizer step: the task's own count, else XLA's (which sees a loop body once: here, one step)."""
    if analytic_per_example is not None:
        return analytic_per_example * batch
    try:
        cost = compiled.cost_analysis()
    except Exception:  # not every backend offers it
        return None
    return float(cost["flops"]) * jax.device_count() if cost and "flops" in cost else None


def bytes_per_step(compiled: Any) -> float | None:
    """Bytes that XLA expects one step to read and write; it sees a loop body once, so a recurrent network moves more."""
    try:
        cost = compiled.cost_analysis()
    except Exception:  # not every backend offers it
        return None
    return float(cost["bytes accessed"]) if cost and "bytes accessed" in cost else None


def program_memory(compiled: Any) -> dict[str, int]:
    """Bytes per device of a compiled program: arguments, outputs, temporaries; {} where the backend keeps silent."""
    try:
        found = compiled.memory_analysis()
    except Exception:
        return {}
    if found is None:
        return {}
    names = {"arguments": "argument_size_in_bytes", "outputs": "output_size_in_bytes", "temporaries": "temp_size_in_bytes"}
    return {k: int(getattr(found, v)) for k, v in names.items() if hasattr(found, v)}


def peak_memory_bytes() -> int:
    """Of the first device where it counts (GPU, TPU), else the largest resident size of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


class TraceWindow:
    """A JAX profiler trace of the steps [start, start + steps), viewable with xprof or Perfetto."""

    def __init__(self, folder: Path, start: int, steps: int) -> None:
        self.folder, self.start, self.stop, self.running = folder, start, start + steps, False

    def edges(self) -> tuple[int, ...]:
        """Steps at which a dispatch must end."""
        return (self.start, self.stop) if self.stop > self.start else ()

    def at(self, step: int) -> bool:
        """Called between dispatches; True when a trace was just written."""
        if not self.running and self.start <= step < self.stop:
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        elif self.running and step >= self.stop:
            return self.close()
        return False

    def hint(self) -> str:
        return f"profile written to {self.folder} (view it with: xprof {self.folder})"

    def close(self) -> bool:
        """Write the trace if one is running."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
            return True
        return False
