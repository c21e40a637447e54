"""Diffusion in v: the cosine schedule, training targets, deterministic sampling and guidance.

x_t = a x0 + g eps and v = a eps - g x0 with a = sqrt(abar_t), g = sqrt(1 - abar_t) (Nichol and Dhariwal, arXiv 2102.09672; Salimans
and Ho, arXiv 2202.00512). Letters: B batch, L samples, T steps of the schedule, S steps of sampling.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.errors import UserError

STEPS = 1000  # T
OFFSET, LARGEST_BETA = 0.008, 0.999

Velocity = Callable[[jax.Array, jax.Array], jax.Array]  # x_t (B, L) and t (B,) int32 -> v (B, L)


def abar_table() -> np.ndarray:
    """abar at t = 0 .. T-1: (T,) float64, from 0.99996 down to 2.4e-9."""
    f = np.cos((np.arange(STEPS + 1) / STEPS + OFFSET) / (1 + OFFSET) * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], LARGEST_BETA))


def levels(t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(a, g) of steps t int, each of t's shape, float32."""
    abar = abar_table()
    a, g = (jnp.asarray(table, jnp.float32) for table in (np.sqrt(abar), np.sqrt(1 - abar)))
    return a[t], g[t]


def diffuse(x0: jax.Array, noise: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(x_t, v), each (B, L), of x0 and noise (B, L) at t (B,)."""
    a, g = (level[:, None] for level in levels(t))
    return a * x0 + g * noise, a * noise - g * x0


def sampling_steps(steps: int) -> np.ndarray:
    """t_i = round(T (S - i) / S) - 1, i = 0 .. S-1: (S,) int32, from T - 1 down. Raises UserError unless 1 <= S <= T."""
    if not 1 <= steps <= STEPS:
        raise UserError(f"steps {steps}: 1 to {STEPS} steps of sampling are possible")
    return np.round(STEPS * (steps - np.arange(steps)) / steps).astype(np.int32) - 1


def ddim(velocity: Velocity, noise: jax.Array, steps: int, clip: float | jax.Array) -> jax.Array:
    """DDIM with eta 0 (Song et al., arXiv 2010.02502) from noise (B, L), x_T, to x0 (B, L), as one scan over `steps`.

    Each estimate of x0 is clipped to +-clip and the noise computed from it anew; the last step goes to abar = 1.
    """
    t, abar = sampling_steps(steps), abar_table()
    now, after = abar[t], np.append(abar[t[1:]], 1.0)
    table = [np.sqrt(now), np.sqrt(1 - now), np.sqrt(after), np.sqrt(1 - after)]

    def step(x: jax.Array, one: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        t, a, g, a_next, g_next = one
        v = velocity(x, jnp.full(len(x), t))
        x0 = jnp.clip(a * x - g * v, -clip, clip)
        return a_next * x0 + g_next * (x - a * x0) / g, None

    return jax.lax.scan(step, noise, (jnp.asarray(t), *(jnp.asarray(column, jnp.float32) for column in table)))[0]


def guided(model: Callable[[dict[str, Any]], jax.Array], conditions: Mapping[str, jax.Array], weight: float) -> Velocity:
    """v_null + weight (v_cond - v_null) (Ho and Salimans, arXiv 2207.12598), one call of 2 B rows; weight 1 is v_cond, of B rows.

    model: inputs of `models.abr.Network` -> v; conditions: statics, statics_ok and label, each (B, ..).
    """
    if weight == 1:
        return lambda x, t: model({**conditions, "x": x, "t": t})
    twice = {name: jnp.concatenate([value, value]) for name, value in conditions.items()}

    def velocity(x: jax.Array, t: jax.Array) -> jax.Array:
        null = jnp.arange(2 * len(x)) >= len(x)
        v = model({**twice, "x": jnp.concatenate([x, x]), "t": jnp.concatenate([t, t]), "null": null})
        conditional, without = jnp.split(v, 2)
        return without + weight * (conditional - without)

    return velocity
