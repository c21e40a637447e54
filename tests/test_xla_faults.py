"""Compiled programs equal the same operations one by one, where released compilers were seen to differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import xla_faults


def test_sums_of_products_are_right_when_compiled():
    rng = np.random.default_rng(0)
    c, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((12, 16, 4096), (12, 4096)))
    compiled = jax.jit(lambda c, w: (w[:, None] * c).sum(0))(c, w)
    np.testing.assert_allclose(compiled, np.einsum("mhn,mn->hn", c, w), atol=1e-4)

    i = jnp.arange(32_769, dtype=jnp.float32)
    x = jnp.stack((i, jnp.zeros_like(i), jnp.zeros_like(i)), axis=1)
    assert float(jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(x)[-1]) == 32_768.0**2


@pytest.mark.parametrize("version, before, after", [
    ("0.10.2", "--a=1", "--a=1 --xla_cpu_experimental_ynn_fusion_type="),
    ("0.10.2", "--xla_cpu_experimental_ynn_fusion_type=dot", "--xla_cpu_experimental_ynn_fusion_type=dot"),
    ("0.10.1", "--a=1", "--a=1"),
])  # fmt: skip
def test_only_affected_versions_get_the_flag(monkeypatch, version, before, after):
    monkeypatch.setattr(xla_faults.importlib.metadata, "version", lambda name: version)
    monkeypatch.setenv("XLA_FLAGS", before)
    xla_faults.avoid()
    assert xla_faults.os.environ["XLA_FLAGS"] == after
