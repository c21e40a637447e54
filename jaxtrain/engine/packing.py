"""Many small arrays as a few long ones: what goes by element is then one operation, not hundreds."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp

SMALL = 1 << 14  # elements; a larger array is worth operations of its own

Arrays = Mapping[str, jax.Array]
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Packing:
    """Which arrays go into which long one: {name of the long one: {path: shape}}; all others stay as they are."""

    packs: Mapping[str, Mapping[str, tuple[int, ...]]]

    @staticmethod
    def of(arrays: Mapping[str, jax.Array | jax.ShapeDtypeStruct], kinds: Mapping[str, Hashable]) -> "Packing":
        """Small arrays of one kind and dtype together, in the order of their names."""
        packs: dict[tuple[Hashable, str], dict[str, tuple[int, ...]]] = {}
        for path in sorted(arrays):
            if math.prod(arrays[path].shape) < SMALL:
                packs.setdefault((kinds[path], str(arrays[path].dtype)), {})[path] = tuple(arrays[path].shape)
        return Packing({f"packed-{number}": parts for number, parts in enumerate(packs.values())})

    def rules(self, kinds: Mapping[str, Kind]) -> dict[str, Kind]:
        """The kind of each array once they are packed."""
        inside = {path for parts in self.packs.values() for path in parts}
        return {name: kinds[next(iter(parts))] for name, parts in self.packs.items()} | {k: v for k, v in kinds.items() if k not in inside}

    def pack(self, arrays: Arrays) -> dict[str, jax.Array]:
        """{path: array} -> {name: (elements,) array of a pack} and the arrays that stay."""
        return self.join(arrays) | self.rest(arrays)

    def join(self, arrays: Arrays) -> dict[str, jax.Array]:
        """The packs."""
        return {name: jnp.concatenate([arrays[path].reshape(-1) for path in parts]) for name, parts in self.packs.items()}

    def rest(self, arrays: Arrays) -> dict[str, jax.Array]:
        """The arrays that stay."""
        inside = {path for parts in self.packs.values() for path in parts}
        return {path: array for path, array in arrays.items() if path not in inside}

    def unpack(self, packed: Arrays) -> dict[str, jax.Array]:
        """The reverse of `pack`."""
        arrays = {name: array for name, array in packed.items() if name not in self.packs}
        for name, parts in self.packs.items():
            begin = 0
            for path, shape in parts.items():
                end = begin + math.prod(shape)
                arrays[path] = packed[name][begin:end].reshape(shape)
                begin = end
        return arrays
