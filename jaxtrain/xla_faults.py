"""Faults of released XLA compilers that would make our numbers wrong, switched off before the first program is compiled."""

import importlib.metadata
import os

# jaxlib 0.10.2 miscompiles sums of products on CPU: (w[:, None] * c).sum(0) of (12, 16, 4096) is wrong in half of its rows, and the
# process may crash at higher ranks, as with 0.11.0 (jax-ml/jax issues 39103 and 39257). Without this fusion both are right.
YNN_FUSION = "--xla_cpu_experimental_ynn_fusion_type"
AFFECTED = ("0.10.2", "0.11.0")


def avoid() -> None:
    """Add to XLA_FLAGS what the installed jaxlib needs; a value that is set there already stays. No effect once JAX has started."""
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return
    flags = os.environ.get("XLA_FLAGS", "")
    if version in AFFECTED and YNN_FUSION not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {YNN_FUSION}=".strip()
