"""What training carries from step to step, and the way between an NNX module and plain dicts."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Params = dict[str, jax.Array]  # "blocks/0/spatial/kernel" -> array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """step () int32; params and model_state: flat dicts; opt_state: optax's; ema: like params, {} when off."""

    step: jax.Array
    params: Params
    model_state: Params
    opt_state: Any
    ema: Params


@dataclass(frozen=True)
class Template:
    """A module without its arrays: `join` makes it whole again inside a traced function, at no run-time cost."""

    train: tuple[Any, Any, Any]  # graph definition, parameter variables, all other variables
    eval: tuple[Any, Any, Any]
    running: frozenset[str]  # names of the model state that training changes (running averages), not constants

    def join(self, params: Params, model_state: Params, *, training: bool) -> nnx.Module:
        graph, param_variables, other_variables = self.train if training else self.eval
        return nnx.merge(graph, _fill(param_variables, params), _fill(other_variables, model_state), copy=True)


def split(model: nnx.Module) -> tuple[Template, Params, Params]:
    """(template, params, model_state) of a module; the evaluating twin is `nnx.view(deterministic=True)`."""
    twin = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graph, params, others = nnx.split(model, nnx.Param, ...)
    twin_graph, twin_params, twin_others = nnx.split(twin, nnx.Param, ...)
    running = frozenset(_name(path) for path, leaf in nnx.to_flat_state(others) if isinstance(leaf, nnx.BatchStat))
    template = Template(
        (graph, _abstract(params), _abstract(others)), (twin_graph, _abstract(twin_params), _abstract(twin_others)), running
    )
    return template, flatten(params), flatten(others)


def model_state_of(model: nnx.Module) -> Params:
    """The non-parameter arrays of a module after a forward pass (running statistics, constants)."""
    return flatten(nnx.split(model, nnx.Param, ...)[2])


def flatten(state: Any) -> Params:
    """{"a/0/kernel": array} of an nnx.State."""
    return {_name(path): leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf for path, leaf in nnx.to_flat_state(state)}


def cast(params: Params, dtype: Any) -> Params:
    """Floating leaves as `dtype`; integers stay."""
    return {k: v.astype(dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v for k, v in params.items()}


def _fill(variables: Any, values: Params) -> Any:
    return nnx.from_flat_state([(path, variable.replace(values[_name(path)])) for path, variable in nnx.to_flat_state(variables)])


def _abstract(state: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))
