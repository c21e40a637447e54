"""From a batch in file units to the network's standardised inputs, and from its quantiles back to file units.

Letters: B windows, k past steps, tau future steps, T = k + tau, R targets, O observed, K known columns, Q levels.
z = (g(y) - center) / scale with g the identity or log1p. g grows, so a quantile of z is that quantile of y.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxtrain.data import fleet_config
from jaxtrain.data.dataset import Batch, Statistics
from jaxtrain.data.fleet_config import DataConfig
from jaxtrain.models.tft import Variable, Variables

FLOOR = 1e-6  # of a deviation ...
RELATIVE_FLOOR = 1e-3  # ... also against the mean: a constant column is not blown up
WINDOW_FLOOR = 0.1  # `normalise: window`: and against the training deviation, for a window may be constant by chance
LARGEST_LOG = 80.0  # exp stays finite in float32


class Units(NamedTuple):
    """What standardises the targets of a batch, and what its forecasts may not leave."""

    center: jax.Array  # (B, R), of g(y)
    scale: jax.Array  # (B, R)
    low: np.ndarray  # (R,) file units, -inf without a bound
    high: jax.Array  # (B, R) file units, inf without a bound
    logarithmic: np.ndarray  # (R,) bool


def variables(data: DataConfig, statistics: Statistics) -> Variables:
    """The network's variables in the order of `model_inputs`: categories before numbers, calendar before columns."""
    roles = fleet_config.roles(data)

    def categories(names: tuple[str, ...]) -> tuple[Variable, ...]:
        return tuple(Variable(name, categories=len(statistics[f"vocabulary/{name}"])) for name in names)

    def numbers(names: tuple[str, ...]) -> tuple[Variable, ...]:
        return tuple(Variable(name) for name in names)

    group = _has_group(data)
    return Variables(
        static=(
            *((Variable(group_variable(data), categories=len(statistics["group_names"])),) if group else ()),
            *categories(roles.static_categorical),
            *numbers(roles.static_real),
            *((Variable("level", width=2 * len(roles.targets)),) if _has_level(data) else ()),
        ),
        observed=(
            *categories(roles.observed_categorical),
            *numbers(roles.observed_real),
            *(numbers(("present",)) if data.present_as_observed else ()),
        ),
        known=(
            *categories(roles.known_categorical),
            *(Variable(name, width=calendar_width(name)) for name in roles.calendar),
            *(numbers(("relative_step",)) if data.relative_step_as_known else ()),
            *numbers(roles.known_real),
        ),
        targets=numbers(roles.targets),
    )


def group_variable(data: DataConfig) -> str:
    """The name of the variable that says which group a window belongs to."""
    return "/".join(data.groups)


def _has_group(data: DataConfig) -> bool:
    return data.group_as_static and bool(data.groups)  # the name of a single series says nothing


def _has_level(data: DataConfig) -> bool:
    return data.level_as_static and bool(data.groups)


def calendar_width(name: str) -> int:
    """Cyclic features are pairs of sine and cosine."""
    return 1 if name == "is_weekend" else 2


def units(data: DataConfig, statistics: Statistics, batch: Batch) -> Units:
    """Center, scale and limits of the targets in a batch: those of the training rows, or of the window's own past."""
    roles = fleet_config.roles(data)
    count = len(roles.targets)
    logarithmic = np.asarray(statistics["log1p"][:count], bool)
    center, scale = jnp.asarray(batch["center"], jnp.float32), jnp.asarray(batch["scale"], jnp.float32)
    past, known = known_past(batch, count)
    own = np.array([data.normalise.get(name, "global") == "window" for name in roles.targets])
    if own.any():
        mean, deviation, seen = _moments(_transform(past, logarithmic), known)
        floor = jnp.maximum(jnp.maximum(FLOOR, RELATIVE_FLOOR * jnp.abs(mean)), WINDOW_FLOOR * scale)
        center = jnp.where(own & seen, mean, center)
        scale = jnp.where(own & seen, jnp.maximum(deviation, floor), scale)
    bounds = [data.bounds.get(name, (None, None)) for name in roles.targets]
    low = np.array([-np.inf if bound[0] is None else bound[0] for bound in bounds], np.float32)
    high = jnp.asarray([np.inf if bound[1] is None else bound[1] for bound in bounds], jnp.float32)
    if data.cap:
        largest = jnp.where(known, past, -jnp.inf).max(1)
        high = jnp.minimum(high, jnp.maximum(batch["cap"], largest))
    return Units(center, scale, low, jnp.broadcast_to(high, center.shape), logarithmic)


def known_past(batch: Batch, targets: int) -> tuple[jax.Array, jax.Array]:
    """The targets' past (B, k, R) in file units, 0 where nothing is known, and where something is (B, k, R) bool."""
    past = jnp.asarray(batch["past"][..., :targets], jnp.float32)
    known = jnp.isfinite(past)
    if "past_mask" in batch:
        known &= jnp.asarray(batch["past_mask"], bool)[..., None]
    return jnp.where(known, past, 0.0), known


def newest(past: jax.Array, known: jax.Array) -> jax.Array:
    """The last known value (B, R) of (B, k, R); 0 where there is none."""
    steps = jnp.arange(past.shape[1])[:, None]
    place = jnp.where(known, steps, 0).max(1)
    return jnp.take_along_axis(past, place[:, None], axis=1)[:, 0]


def _moments(values: jax.Array, known: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean, deviation (B, R) and whether there was anything, over the known past steps."""
    n = known.sum(1)
    mean = jnp.where(known, values, 0.0).sum(1) / jnp.maximum(n, 1)
    square = jnp.where(known, (values - mean[:, None]) ** 2, 0.0).sum(1) / jnp.maximum(n, 1)
    return mean, jnp.sqrt(square), n > 0


def _transform(values: jax.Array, logarithmic: np.ndarray) -> jax.Array:
    """g of the last axis' columns; NaN stays NaN."""
    return jnp.where(logarithmic, jnp.log1p(jnp.maximum(values, 0.0)), values) if logarithmic.any() else values


def _standard(values: Any, center: Any, scale: Any, logarithmic: np.ndarray) -> jax.Array:
    """(g(x) - center) / scale, 0 where nothing is known."""
    z = (_transform(jnp.asarray(values, jnp.float32), logarithmic) - center) / scale
    return jnp.where(jnp.isfinite(z), z, 0.0)


def standardise(units: Units, target: Any) -> jax.Array:
    """z of targets (B, steps, R) in file units."""
    return _standard(target, units.center[:, None], units.scale[:, None], units.logarithmic)


def physical(units: Units, quantiles: jax.Array) -> jax.Array:
    """Quantiles (B, tau, R, Q) of z in file units, within bounds and cap; float32.

    The cap acts before the inverse of g, which would otherwise turn a small slip of z into a huge value and an infinite slope.
    """
    high = units.high[:, None, :, None]
    value = quantiles.astype(jnp.float32) * units.scale[:, None, :, None] + units.center[:, None, :, None]
    if units.logarithmic.any():
        logarithmic = units.logarithmic[:, None]
        limit = jnp.minimum(jnp.log1p(jnp.maximum(high, 0.0)), LARGEST_LOG)
        value = jnp.where(logarithmic, jnp.expm1(jnp.where(logarithmic, jnp.minimum(value, limit), 0.0)), value)
    return jnp.maximum(jnp.minimum(value, high), units.low[:, None])


def ascending(quantiles: jax.Array) -> jax.Array:
    """Sorted along the last axis, by exchanging neighbours: for a handful of levels many times faster on CPU than a general sort."""
    columns = [quantiles[..., q] for q in range(quantiles.shape[-1])]
    for last in range(len(columns) - 1, 0, -1):
        for q in range(last):
            columns[q], columns[q + 1] = jnp.minimum(columns[q], columns[q + 1]), jnp.maximum(columns[q], columns[q + 1])
    return jnp.stack(columns, -1)


def model_inputs(data: DataConfig, statistics: Statistics, batch: Batch, units: Units) -> dict[str, jax.Array]:
    """The arrays that the network takes, in the order of `variables`; empty ones are left out."""
    roles = fleet_config.roles(data)
    targets, observed, k = len(roles.targets), len(roles.observed_real), data.context_steps
    logarithmic = np.asarray(statistics["log1p"], bool)
    past = jnp.asarray(batch["past"], jnp.float32)
    real: dict[str, list[jax.Array]] = {"static_real": [], "observed_real": [], "known_real": []}
    if roles.static_real:
        center, scale = statistics["static_center"], statistics["static_scale"]
        real["static_real"].append(_standard(batch["static_real"], center, scale, np.asarray(statistics["static_log1p"], bool)))
    if _has_level(data):
        real["static_real"].append(jnp.asarray(batch["level"], jnp.float32))
    if observed:
        center, scale = statistics["observed_center"], statistics["observed_scale"]
        real["observed_real"].append(_standard(past[..., targets:], center, scale, logarithmic[targets : targets + observed]))
    if data.present_as_observed:
        real["observed_real"].append(jnp.asarray(batch["present"], jnp.float32)[..., None])
    for number, name in enumerate(roles.calendar):
        real["known_real"].append(jnp.asarray(batch["calendar"], jnp.float32)[:, :, number, : calendar_width(name)])
    if data.relative_step_as_known:
        step = (np.arange(k + data.horizon_steps, dtype=np.float32) - k) / k
        real["known_real"].append(jnp.broadcast_to(step[:, None], (len(past), len(step), 1)))
    if roles.known_real:
        center, scale = statistics["known_center"], statistics["known_scale"]
        real["known_real"].append(_standard(batch["known"], center, scale, logarithmic[targets + observed :]))
    found = {name: jnp.concatenate(parts, -1) for name, parts in real.items() if parts}
    found["targets"] = standardise(units, past[..., :targets])
    values, known = known_past(batch, targets)
    found["last"] = jnp.where(known.any(1), standardise(units, newest(values, known)[:, None])[:, 0], 0.0)
    static = [jnp.asarray(batch["group"])[:, None]] if _has_group(data) else []
    static += [batch["static_cat"]] if roles.static_categorical else []
    categories = {"static_cat": static, "observed_cat": [batch["past_cat"]] if roles.observed_categorical else [],
                  "known_cat": [batch["known_cat"]] if roles.known_categorical else []}  # fmt: skip
    found |= {name: jnp.concatenate(parts, -1).astype(jnp.int32) for name, parts in categories.items() if parts}
    if "past_mask" in batch:
        found["past_mask"] = jnp.asarray(batch["past_mask"], bool)
    return found
