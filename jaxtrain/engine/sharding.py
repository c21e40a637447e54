"""Devices: one mesh over all of them, batches split along it, small parameters on each, large ones sharded by size."""

import os
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxtrain.errors import UserError


def start_distributed() -> None:
    """`jax.distributed.initialize` where several processes run.

    SLURM, Open MPI, GKE and TPU pods are detected by JAX when JAXTRAIN_DISTRIBUTED=auto. Without a scheduler set
    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID in each process.
    """
    if jax.distributed.is_initialized():
        return  # several runs in one process: the folds of a validation
    jax.config.update("jax_enable_preemption_service", False)  # it would keep SIGTERM from us, see `clock.Stop`
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        try:
            count, index = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        except (KeyError, ValueError) as error:
            raise UserError(
                f"environment: JAX_COORDINATOR_ADDRESS is set, so JAX_NUM_PROCESSES and JAX_PROCESS_ID must be numbers ({error})"
            ) from None
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, count, index)
    elif os.environ.get("JAXTRAIN_DISTRIBUTED") == "auto":
        jax.distributed.initialize()


@dataclass(frozen=True)
class Layout:
    """Where arrays live; every sharding the engine uses comes from here."""

    mesh: Mesh

    @property
    def devices(self) -> int:
        return self.mesh.size

    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def batch(self, axis: int = 0) -> NamedSharding:
        """Dimension `axis` split over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * axis, "data"))

    def state(self, tree: Any, shard_mib: float) -> Any:
        """A sharding per leaf: leaves of `shard_mib` or more are split along their largest dimension that divides."""

        def leaf(x: Any) -> NamedSharding:
            if self.devices > 1 and x.size * x.dtype.itemsize >= shard_mib * 2**20:
                for axis in sorted(range(x.ndim), key=lambda a: -x.shape[a]):
                    if x.shape[axis] % self.devices == 0:
                        return self.batch(axis)
            return self.replicated()

        return jax.tree.map(leaf, tree)

    def put(self, tree: Any, sharding: Any) -> Any:
        """Equal host arrays of every process -> global arrays (`sharding`: one for all leaves, or one per leaf)."""
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)
        shardings = jax.tree.map(lambda _: sharding, tree) if isinstance(sharding, NamedSharding) else sharding
        return jax.tree.map(lambda x, s: jax.make_array_from_callback(np.shape(x), s, lambda i, x=x: np.asarray(x)[i]), tree, shardings)

    def put_local(self, tree: Any, axis: int) -> Any:
        """Each process's own part of a batch -> global arrays, joined along `axis`."""
        sharding = self.batch(axis)
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def layout(batch: int, eval_batch: int, accumulate: int) -> Layout:
    """One axis `data` over all devices of all processes. Raises UserError when a batch does not divide."""
    n = jax.device_count()
    for key, value in (("train.batch", batch), ("train.batch / train.accumulate", batch // accumulate), ("eval.batch", eval_batch)):
        if value % n:
            raise UserError(f"config.{key}: {value} examples do not divide over {n} devices; use a multiple of {n}")
    return Layout(jax.make_mesh((n,), ("data",), axis_types=(AxisType.Auto,)))


def everywhere() -> NamedSharding:
    """One copy on every device of every process."""
    return Layout(jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))).replicated()


class AnyProcess:
    """Whether any process said yes, the same answer everywhere, one question late so that nobody waits for it."""

    def __init__(self) -> None:
        self._pending: Any = None
        self._call: Any = None

    def before(self, yes: bool) -> bool:
        """Ask; the answer to the question before (the first time: False). Every process must ask equally often."""
        if self._call is None:
            mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
            self._sharding = NamedSharding(mesh, PartitionSpec("data"))
            self._call = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        answer = self._pending is not None and bool(jax.device_get(self._pending))
        flags = np.full(jax.local_device_count(), yes, np.int32)
        self._pending = self._call(jax.make_array_from_process_local_data(self._sharding, flags))
        return answer
