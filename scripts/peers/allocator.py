"""What the PyTorch peers ask of the C library and of the system."""

import ctypes
import resource
import sys


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks instead of handing them back to the kernel; False where there is no mallopt.

    Tensors of 100 MB otherwise come as fresh pages in every step, which can double the time of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    top_pad, trim_threshold, mmap_max, arena_max = -2, -1, -4, -8  # malloc.h
    return all([mallopt(mmap_max, 0), mallopt(trim_threshold, -1), mallopt(top_pad, 1 << 29), mallopt(arena_max, 1)])


def peak_memory_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
