"""JAX's settings of every command: the persistent compilation cache, and several processes where there are several."""

import ctypes
import hashlib
import os
import platform
import sys
from pathlib import Path

import jax

from jaxtrain.engine.sharding import start_distributed


def start_jax(*, distributed: bool = True) -> None:
    """Call once, before the first array. distributed: join the other processes (training); serving is one process."""
    # A float32 product shall be one: the default is TF32 on recent NVIDIA GPUs and bfloat16 on TPUs. Products of
    # bfloat16 arrays, which the other precisions compute, are not touched by this.
    jax.config.update("jax_default_matmul_precision", "float32")
    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # A program's temporaries are allocated where it runs. In a thread of XLA glibc maps what is larger than 64 MiB anew at every
    # call, page by page; in this one it is kept (below). The loop has nothing to do meanwhile on a CPU anyway.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if distributed:
        start_distributed()
    if jax.default_backend() == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks: a step's temporaries otherwise come as fresh pages, one fault per 4 KiB, at every call."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        top_pad, trim_threshold, mmap_max = -2, -1, -4  # malloc.h
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)
        mallopt(top_pad, 1 << 29)


def cache_folder() -> Path:
    """JAX_COMPILATION_CACHE_DIR, else a folder of the user's cache named after the CPU: CPU programs are not portable."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "jaxtrain" / f"xla-{hashlib.sha256(_cpu().encode()).hexdigest()[:12]}"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
