"""Small arrays of one rule in one long array: nothing is lost, and every optimizer moves each element as if they were apart."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.engine import optimizer, packing
from jaxtrain.engine.config import OptimizerConfig
from jaxtrain.engine.packing import Packing
from jaxtrain.tasks.task import Group

SHAPES = {"a/kernel": (3, 4), "a/bias": (4,), "b/kernel": (200, 100), "b/scale": (), "c/kernel": (2, 2, 2), "c/rate": (5,)}


def arrays(seed: int) -> dict[str, jax.Array]:
    draw = np.random.default_rng(seed)
    return {name: jnp.asarray(draw.standard_normal(shape), jnp.float32) for name, shape in SHAPES.items()}


def test_packing_and_back() -> None:
    given = arrays(0)
    made = Packing.of(given, {name: name.endswith("kernel") for name in given})
    packed = made.pack(given)
    assert sorted(v.shape for v in packed.values()) == [(10,), (20,), (200, 100)]  # scale and biases; two kernels; one that is large
    back = made.unpack(packed)
    assert back.keys() == given.keys()
    for name in given:
        np.testing.assert_array_equal(back[name], given[name])


@pytest.mark.parametrize(
    "keys", [{"name": "adamw"}, {"name": "adam"}, {"name": "sgd", "momentum": 0.9}, {"name": "lion"}], ids=lambda keys: keys["name"]
)
def test_optimizers_move_packed_arrays_as_they_move_them_apart(keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = OptimizerConfig(**keys, weight_decay=0.1, clip=50.0)
    groups = (Group(r"rate$", learning_rate=0.25, weight_decay=False),)
    found = []
    for small in (packing.SMALL, 0):
        monkeypatch.setattr(packing, "SMALL", small)
        params = arrays(0)
        transform = optimizer.direction(config, params, groups)
        pack, unpack = transform.packing.pack, transform.packing.unpack
        state = transform.init(pack(params))
        for step in range(3):
            moved, state = optimizer.descend(transform, pack(arrays(step + 1)), state, pack(params), jnp.float32(0.1))
            params = unpack(moved)
        found.append(params)
    for name in SHAPES:
        assert np.abs(np.asarray(found[0][name] - arrays(0)[name])).max() > 1e-3, name
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-6, atol=1e-7, err_msg=name)
