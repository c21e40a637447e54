"""Learning-rate schedules and gradient transformations (optax), decay masks and parameter groups."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from jaxtrain.engine.config import OptimizerConfig, duration
from jaxtrain.engine.packing import Packing
from jaxtrain.engine.state import Params
from jaxtrain.errors import UserError

Schedule = Callable[[Any], jax.Array]


def schedule(config: OptimizerConfig, steps_per_epoch: float) -> Schedule:
    """step of the phase () int32 -> learning rate () float32, without end.

    cosine: warm-up, half a cosine to min_lr at `decay` steps, then min_lr. warm_restarts: SGDR (Loshchilov and Hutter
    2017, eq. 5) after the warm-up, cycles T_0, T_0 T_mult, T_0 T_mult^2, ... for any real T_mult >= 1, in closed form.
    plateau and constant: the rate itself; the plateau's factor comes from the host as `rate_scale`.
    """

    def steps(text: str, key: str) -> int:
        return duration(text, steps_per_epoch, f"optimizer.{key}")

    warmup, decay = steps(config.warmup, "warmup"), steps(config.decay, "decay")
    period = max(1, steps(config.restart_period, "restart_period"))
    low, high = config.min_lr, config.lr
    if config.schedule == "cosine" and decay <= warmup:
        raise UserError(f"config.optimizer.decay: {config.decay!r} ends before the warm-up {config.warmup!r} does")

    def cosine(fraction: Any) -> Any:
        return low + (high - low) * 0.5 * (1 + jnp.cos(jnp.pi * fraction))

    def at(step: Any) -> jax.Array:
        t = jnp.asarray(step, jnp.float32)
        after = jnp.maximum(t - warmup, 0.0)
        if config.schedule == "cosine":
            rate = cosine(jnp.minimum(after / (decay - warmup), 1.0))
        elif config.schedule == "warm_restarts":
            rate = cosine(restart_fraction(after, period, config.restart_mult))
        else:
            rate = jnp.full_like(t, high)
        return jnp.where(t < warmup, high * (t + 1) / max(warmup, 1), rate)

    return at


def restart_fraction(t: Any, period: float, mult: float) -> Any:
    """Position in [0, 1) within the current cycle of lengths period * mult^n (t, period in steps)."""
    if mult == 1:
        return jnp.mod(t, period) / period
    # The small addend keeps a step that is exactly a restart from falling into the cycle before it by rounding.
    cycle = jnp.floor(jnp.log(t / period * (mult - 1) + 1) / math.log(mult) + 1e-6)
    start = period * (mult**cycle - 1) / (mult - 1)
    return jnp.clip((t - start) / (period * mult**cycle), 0.0, 1.0)


class Rule(NamedTuple):
    """What applies to one parameter."""

    learning_rate: float
    weight_decay: bool


def rules(params: Params, groups: Sequence[Any]) -> dict[str, Rule]:
    """The first group whose pattern matches each path; without one: rate x 1, decay on leaves named `kernel`."""
    result = {}
    for path in params:
        match = next((g for g in groups if re.search(g.pattern, path)), None)
        result[path] = Rule(match.learning_rate, match.weight_decay) if match else Rule(1.0, path.rsplit("/", 1)[-1] == "kernel")
    unused = [g.pattern for g in groups if not any(re.search(g.pattern, path) for path in params)]
    if unused:
        raise ValueError(f"parameter groups match nothing: {unused}")
    return result


class Transform(NamedTuple):
    """What makes a direction of descent of a gradient. Both functions take packed arrays: {name: array} of `packing`."""

    packing: Packing
    init: Callable[[Params], Any]  # parameters -> state
    update: Callable[[Params, Any, Params], tuple[Params, Any]]  # gradient, state, parameters -> direction, state


def direction(config: OptimizerConfig, params: Params, groups: Sequence[Any]) -> Transform:
    """Gradient -> descent direction before the learning rate: clip, precondition, decoupled decay, group rates.

    The step subtracts `rate * direction`; so the rate is known where it is used and needs no place in the state. Everything here goes
    by element or by the norm of all: small arrays of one rule are packed into one, or their updates would be half of a program.
    """
    each = rules(params, groups)
    packing = Packing.of(params, each)
    transform = _by_element(config, packing.rules(each))
    return Transform(packing, transform.init, cast(Any, transform.update))


def _by_element(config: OptimizerConfig, rule: dict[str, Rule]) -> optax.GradientTransformation:
    """The chain of optax for arrays with these rules."""
    b1, b2 = config.betas
    precondition = {
        "adamw": optax.scale_by_adam(b1, b2, config.eps),
        "adam": optax.scale_by_adam(b1, b2, config.eps),
        "sgd": optax.trace(config.momentum) if config.momentum else optax.identity(),
        "lion": optax.scale_by_lion(b1, b2),
    }[config.name]
    parts = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    decay = optax.add_decayed_weights(config.weight_decay, mask={k: r.weight_decay for k, r in rule.items()})
    if config.name == "adam":  # the classic L2 penalty enters before the moments
        parts += [decay, precondition] if config.weight_decay else [precondition]
    else:
        parts += [precondition, decay] if config.weight_decay else [precondition]
    if any(r.learning_rate != 1 for r in rule.values()):
        parts.append(optax.stateless(lambda updates, _: _scaled(updates, rule)))
    return optax.chain(*parts)


def _scaled(updates: Any, rule: dict[str, Rule]) -> Params:
    return {path: update * rule[path].learning_rate for path, update in updates.items()}


class Master(NamedTuple):
    """Optimizer state of bfloat16 parameters: the float32 originals and the inner state."""

    params: Params
    inner: Any


def descend(transform: Transform, grads: Params, state: Any, params: Params, rate: jax.Array) -> tuple[Params, Any]:
    """(new parameters, new state) of one step; all arrays packed."""
    steps, state = transform.update(grads, state, params)
    return {k: params[k] - rate * steps[k] for k in params}, state


class Plateau(NamedTuple):
    """Host-side state of the plateau schedule: the factor on the rate, the best score, evaluations since."""

    scale: float = 1.0
    best: float = math.inf
    waited: int = 0

    def observe(self, value: float, config: OptimizerConfig) -> "Plateau":
        """After one evaluation; value: lower is better."""
        if value < self.best:
            return Plateau(self.scale, value, 0)
        if self.waited + 1 > config.plateau_patience:
            least = config.min_lr / config.lr if config.lr else 0.0
            return Plateau(max(self.scale * config.plateau_factor, least), self.best, 0)
        return Plateau(self.scale, self.best, self.waited + 1)
