"""Checkpoints (the only Orbax importer): the latest and the best k, written in the background, whole or not at all.

Each step folder holds three items: `params` (parameters, model state, averaged weights: all that prediction needs),
`state` (optimizer state and step) and `meta` (JSON: where the loop stands). Arrays are read onto whatever devices the
template names, so a run may go on with another number of devices or processes.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from jaxtrain.engine.sharding import everywhere
from jaxtrain.engine.state import Params, TrainState
from jaxtrain.errors import UserError

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax narrates every save; its faults reach us as exceptions


class Checkpoints:
    """The checkpoints of one phase below `folder`; mode: "min" or "max" of the value that `save` is given."""

    def __init__(self, folder: Path, *, keep_best: int, mode: str, keep_latest: int = 1, read_only: bool = False) -> None:
        self.folder, self.mode = folder, mode

        def value(metrics: Mapping[str, float]) -> float:
            return metrics["value"]

        policy = keep.AnyPreservationPolicy([
            keep.LatestN(keep_latest),
            keep.BestN(get_metric_fn=value, n=keep_best, reverse=mode == "min", keep_checkpoints_without_metrics=False),
        ])  # fmt: skip
        options = ocp.CheckpointManagerOptions(
            best_fn=value, best_mode=mode, preservation_policy=policy, create=not read_only, read_only=read_only,
            cleanup_tmp_directories=not read_only, enable_async_checkpointing=True,
        )  # fmt: skip
        # Named handlers, so that a manager which has saved nothing yet can read an item's metadata too.
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "state": ocp.StandardCheckpointHandler(),
            "meta": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """The newest complete step; a folder that a killed save left behind does not count."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the best evaluated value; the latest where nothing was evaluated."""
        return self._manager.best_step()

    def selected(self, select: str) -> int | None:
        """The step whose weights are tested and served; select: "best" or "last" (`train.select`)."""
        return self.latest() if select == "last" else self.best()

    def steps(self) -> list[int]:
        """Every complete step, oldest first."""
        return sorted(self._manager.all_steps())

    def discard_after(self, step: int) -> None:
        """Delete what lies beyond a step that the run goes back to."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def save(self, step: int, state: TrainState, meta: Mapping[str, Any], value: float | None) -> None:
        """Start writing; the arrays may be donated at once. value: the monitored score, None without one.

        Raises UserError when an earlier background save failed (full disk).
        """
        worst = math.inf if self.mode == "min" else -math.inf
        score = worst if value is None or math.isnan(value) else value
        arguments = ocp.args.Composite(
            params=ocp.args.StandardSave(_served(state)), state=ocp.args.StandardSave(_resumed(state)), meta=ocp.args.JsonSave(dict(meta))
        )
        try:
            saved = self._manager.save(step, args=arguments, metrics={"value": score}, force=True)
        except Exception as error:
            raise self._write_failed(error) from error
        if not saved:
            raise RuntimeError(f"checkpoint {step} was refused; latest is {self.latest()}")

    def wait(self) -> None:
        """Until everything is on disk. Raises UserError when a background save failed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._write_failed(error) from error

    def close(self) -> None:
        self._manager.close()

    def meta(self, step: int) -> dict[str, Any]:
        """Where the loop stood."""
        return self._read(step, ocp.args.Composite(meta=ocp.args.JsonRestore())).meta

    def restore(self, step: int, template: TrainState) -> TrainState:
        """The whole state, placed as the template's leaves are (arrays, or ShapeDtypeStructs with shardings).

        Raises UserError naming every leaf that is missing, left over or of another shape.
        """
        served, resumed = _abstract(_served(template)), _abstract(_resumed(template))
        metadata = self._metadata(step)
        check_leaves(f"checkpoint {self.folder / str(step)}", served, metadata.params)
        check_leaves(f"checkpoint {self.folder / str(step)}", resumed, metadata.state)
        read = self._read(step, ocp.args.Composite(params=ocp.args.StandardRestore(served), state=ocp.args.StandardRestore(resumed)))
        return TrainState(
            read.state["step"], read.params["params"], read.params["model_state"], read.state["opt_state"], read.params["ema"]
        )

    def restore_weights(self, step: int, params: Params, model_state: Params, *, sharding: Any = None) -> tuple[Params, Params]:
        """(weights to serve, model state) without the optimizer: the averaged weights where the run kept them.

        params, model_state: templates; parameters of another precision are cast to the template's.
        """
        found = self._metadata(step).params
        averaged = bool(found["ema"])
        sharding = sharding or (SingleDeviceSharding(jax.devices()[0]) if jax.process_count() == 1 else everywhere())
        stored = (
            params
            if not averaged
            else {k: jax.ShapeDtypeStruct(found["params"][k].shape, found["params"][k].dtype) for k in found["params"]}
        )
        wanted = {"params": stored, "model_state": model_state, "ema": params if averaged else {}}
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), wanted)
        check_leaves(f"checkpoint {self.folder / str(step)}", target, found)
        read = self._read(step, ocp.args.Composite(params=ocp.args.StandardRestore(target))).params
        return (read["ema"] or read["params"]), read["model_state"]

    def _metadata(self, step: int) -> Any:
        try:
            metadata = self._manager.item_metadata(step)
        except Exception as error:
            raise self._unreadable(step, error) from error
        if metadata.params is None or metadata.state is None:
            raise self._unreadable(step, ValueError("its list of arrays is missing or damaged"))
        return metadata

    def _read(self, step: int, arguments: Any) -> Any:
        try:
            return self._manager.restore(step, args=arguments)
        except Exception as error:
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, error: Exception) -> UserError:
        others = [s for s in self._manager.all_steps() if s != step]
        remedy = f"delete that folder to go on from step {max(others)}" if others else "no other checkpoint is left; start in a new folder"
        return UserError(f"checkpoint {self.folder / str(step)}: cannot be read ({_first_line(error)}); {remedy}")

    def _write_failed(self, error: Exception) -> UserError:
        # Asked after a fault, the manager knows no step at all; a finished step's folder has lost its temporary suffix.
        done = [int(p.name) for p in self.folder.iterdir() if p.name.isdigit()]
        start = f"step {max(done)}" if done else "the start"
        return UserError(
            f"checkpoints {self.folder}: the newest could not be written ({_first_line(error)}); "
            f"make room and repeat the command, it goes on from {start}"
        )


def holds_checkpoint(folder: Path) -> bool:
    """Whether anything complete was saved there: a run that was killed before that leaves an empty folder."""
    return folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())


def _served(state: TrainState) -> dict[str, Params]:
    return {"params": state.params, "model_state": state.model_state, "ema": state.ema}


def _resumed(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def check_leaves(where: str, wanted: Any, found: Any) -> None:
    """Compare two trees of things with a shape; raise UserError naming every leaf that does not fit."""
    left, right = _shapes(wanted), _shapes(found)
    faults = [f"{k} missing" for k in left if k not in right]
    faults += [f"{k} left over" for k in right if k not in left]
    faults += [f"{k} is {right[k]}, expected {left[k]}" for k in left if k in right and left[k] != right[k]]
    if faults:
        raise UserError(f"{where}: does not fit this config's model or optimizer: {'; '.join(faults)}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    tree = getattr(tree, "tree", tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {_leaf_name(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}


def _leaf_name(path: tuple[Any, ...]) -> str:
    # Orbax reads a NamedTuple back as a dict: field names and keys must print alike.
    return "/".join(str(getattr(p, "key", getattr(p, "idx", getattr(p, "name", p)))) for p in path)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
