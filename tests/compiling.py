"""For tests that compile much and compute little: programs that LLVM leaves as they are, modules built by one program."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from flax import nnx

# Half the time to compile. For what does not depend on the last bits or on speed: whether gradients are there, files are written.
UNOPTIMISED = {"xla_backend_optimization_level": 0}  # compiler_options of jax.jit
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # the same in the environment of a command


@contextmanager
def unoptimised() -> Iterator[None]:
    """What is compiled meanwhile in this process."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def built(make: Callable[[], Any]) -> Any:
    """The module that `make` returns. Called as it is, every initialiser of another shape would be a program of its own."""
    graph, _ = nnx.split(nnx.eval_shape(make))
    state = jax.jit(lambda: nnx.split(make())[1], compiler_options=UNOPTIMISED)()
    return nnx.merge(graph, state)
