"""Checkpoints: what is kept, what does not fit, what is damaged, a disk that is full."""

import shutil
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain.engine import checkpoint, steps
from jaxtrain.engine.checkpoint import Checkpoints
from jaxtrain.engine.config import ENGINE_SECTIONS, Engine, OptimizerConfig
from jaxtrain.engine.optimizer import direction
from jaxtrain.engine.standing import Standing, observe
from jaxtrain.engine.state import TrainState
from jaxtrain.errors import UserError


def state(fill: float = 1.0, width: int = 4, *, extra: bool = False, ema: bool = True, precision: str = "float32") -> TrainState:
    params = {"a/kernel": jnp.full((3, width), fill), "a/bias": jnp.full((width,), fill)}
    if extra:
        params["b/scale"] = jnp.ones(2)
    transform = direction(OptimizerConfig(), params, ())
    return steps.initial_state(params, {"norm/mean": jnp.full(width, fill)}, transform, precision=precision, ema=ema)


def saved(folder: Path, values: dict[int, float | None], mode: str = "min", **changes) -> Checkpoints:
    kept = Checkpoints(folder, keep_best=1, mode=mode)
    for step, value in values.items():
        kept.save(step, state(step, **changes), {"step": step}, value)
    kept.wait()
    return kept


def steps_in(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


@pytest.mark.parametrize(("mode", "best"), [("min", 20), ("max", 30)])
def test_the_best_and_the_latest_are_kept(tmp_path: Path, mode: str, best: int) -> None:
    kept = saved(tmp_path, {10: 0.5, 20: 0.2, 30: 0.9, 40: float("nan"), 50: 0.6, 60: None}, mode)
    assert (kept.best(), kept.latest()) == (best, 60)
    assert steps_in(tmp_path) == [best, 60]
    kept.close()
    again = Checkpoints(tmp_path, keep_best=1, mode=mode, read_only=True)
    assert (again.best(), again.latest(), again.meta(60)) == (best, 60, {"step": 60})
    found = again.restore(best, state())
    np.testing.assert_array_equal(np.asarray(found.params["a/kernel"]), float(best))
    again.close()


def test_a_save_never_evaluated_does_not_push_out_the_best(tmp_path: Path) -> None:
    kept = saved(tmp_path, {10: 3.0, 20: None, 30: None})
    assert (kept.best(), steps_in(tmp_path)) == (10, [10, 30])
    kept.close()


@pytest.mark.parametrize("mode", ["min", "max"])
def test_of_equally_good_steps_the_later_is_best(tmp_path: Path, mode: str) -> None:
    """As `observe` has it: the step that the summary calls best is the one that is served."""
    kept = saved(tmp_path, {10: 1.0, 20: 1.0}, mode)
    kept.save(30, state(), {}, None)
    kept.wait()
    standing = Standing(0)
    for step in (10, 20):
        standing = observe(standing, Engine(**{k: v() for k, v in ENGINE_SECTIONS.items()}), step, 1.0, mode)
    assert kept.best() == standing.best_step == 20
    kept.close()


def test_every_leaf_that_does_not_fit_is_named(tmp_path: Path) -> None:
    kept = saved(tmp_path, {1: 0.0})
    with pytest.raises(UserError) as caught:
        kept.restore(1, state(width=5, extra=True))
    message = str(caught.value)
    wrong = ("params/a/kernel is (3, 4), expected (3, 5)", "params/a/bias is (4,), expected (5,)")
    for expected in (*wrong, "params/b/scale missing", "ema/b/scale missing"):
        assert expected in message
    assert "\n" not in message
    with pytest.raises(UserError, match="ema/a/kernel left over"):
        kept.restore(1, state(ema=False))
    with pytest.raises(UserError, match="opt_state.*params.*missing"):
        kept.restore(1, state(precision="bfloat16"))
    kept.close()


def test_weights_alone_are_the_averaged_ones_where_they_exist(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, keep_best=1, mode="min")
    averaged = state(1.0)
    kept.save(1, replace(averaged, ema={k: v * 7 for k, v in averaged.ema.items()}), {}, 0.0)
    kept.save(2, state(2.0, ema=False, precision="bfloat16"), {}, 1.0)
    kept.wait()
    params, model_state = kept.restore_weights(1, averaged.params, averaged.model_state)
    np.testing.assert_array_equal(np.asarray(params["a/kernel"]), 7.0)
    np.testing.assert_array_equal(np.asarray(model_state["norm/mean"]), 1.0)
    params, _ = kept.restore_weights(2, averaged.params, averaged.model_state)
    assert params["a/kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(params["a/kernel"]), 2.0)
    with pytest.raises(UserError, match=r"params/a/bias is \(4,\), expected \(5,\)"):
        kept.restore_weights(2, state(width=5).params, averaged.model_state)
    kept.close()


def test_a_folder_that_a_killed_save_left_is_skipped(tmp_path: Path) -> None:
    saved(tmp_path, {10: 1.0}).close()
    shutil.copytree(tmp_path / "10", tmp_path / "20.orbax-checkpoint-tmp")
    kept = Checkpoints(tmp_path, keep_best=1, mode="min")
    assert (kept.latest(), kept.best()) == (10, 10)
    kept.save(20, state(20.0), {"step": 20}, 0.5)
    kept.wait()
    assert kept.latest() == 20
    np.testing.assert_array_equal(np.asarray(kept.restore(20, state()).params["a/bias"]), 20.0)
    kept.close()


def damage_arrays(step: Path) -> None:
    """Every file of numbers cut to half."""
    for path in step.rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_list(step: Path) -> None:
    (step / "params" / "_METADATA").write_text("{")


def damage_meta(step: Path) -> None:
    next(p for p in (step / "meta").iterdir() if p.is_file() and not p.name.startswith("_")).write_text('{"st')


@pytest.mark.parametrize("damage", [damage_arrays, damage_list, damage_meta])
@pytest.mark.parametrize("others", [True, False])
def test_a_damaged_checkpoint_is_one_line_with_a_remedy(tmp_path: Path, damage, others: bool) -> None:
    saved(tmp_path, {10: 0.1, 20: 1.0} if others else {20: 1.0}).close()
    damage(tmp_path / "20")
    kept = Checkpoints(tmp_path, keep_best=1, mode="min")
    with pytest.raises(UserError) as caught:
        kept.meta(20)
        kept.restore(20, state())
    message = str(caught.value)
    assert str(tmp_path / "20") in message and "\n" not in message and len(message) < 600
    assert ("go on from step 10" if others else "start in a new folder") in message
    if others:
        kept.close()
        shutil.rmtree(tmp_path / "20")  # the remedy
        kept = Checkpoints(tmp_path, keep_best=1, mode="min")
        np.testing.assert_array_equal(np.asarray(kept.restore(10, state()).params["a/bias"]), 10.0)
    kept.close()


def test_trees_compare_by_shape_and_name() -> None:
    checkpoint.check_leaves("here", {"a": jnp.ones(3)}, {"a": np.zeros(3)})
    with pytest.raises(UserError, match=r"^here: .*b missing; a is \(3,\), expected \(2,\)"):
        checkpoint.check_leaves("here", {"a": jnp.ones(2), "b": jnp.ones(1)}, {"a": np.zeros(3)})
