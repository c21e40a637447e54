"""A linear map whose gradient is made of fast matrix products."""

import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nnx.Linear):
    """`nnx.Linear` that flattens (..., in) to one matrix.

    The gradient of the kernel is then a product of two matrices as they lie in memory. With more axes XLA's CPU compiler
    transposes one factor first and multiplies five times slower (measured).
    """

    def __call__(self, inputs: jax.Array, out_sharding: None = None) -> jax.Array:
        rows, kernel = inputs.reshape(-1, inputs.shape[-1]), self.kernel[...]
        dtype = self.dtype or jnp.promote_types(rows.dtype, kernel.dtype)
        y = rows.astype(dtype) @ kernel.astype(dtype)
        if self.bias is not None:
            y = add_bias(y, self.bias[...].astype(dtype))
        return y.reshape(*inputs.shape[:-1], -1)


def row_sum(rows: jax.Array) -> jax.Array:
    """(R, C) -> (C,), as a product with ones: what made the rows is then made once, on all cores, before it is summed.

    XLA's CPU compiler merges a plain sum with everything before it, and in the gradient of a loop over layers with the write of its
    result: a loop that runs on one core.
    """
    return (jnp.ones((1, len(rows)), rows.dtype) @ rows)[0]


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """x (..., C) + bias (C,); on CPU the bias' gradient is a `row_sum`."""
    return _add_bias(x, bias) if jax.default_backend() == "cpu" else x + bias


@jax.custom_vjp
def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + bias


_add_bias.defvjp(lambda x, bias: (x + bias, None), lambda _, g: (g, row_sum(g.reshape(-1, g.shape[-1]))))
