"""The toy system `tides` for tests: its config and parts in this process, commands in others, checkpoints as arrays."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SIXTH = ROOT / "tests" / "sixth"
CONFIG = SIXTH / "configs" / "tides.py"


def values(preset: str = "default", **overrides: Any) -> dict[str, Any]:
    """The resolved config; overrides as `train__batch=8`."""
    from jaxtrain.engine import config

    return config.load(f"{CONFIG}:{preset}", {k.replace("__", "."): str(v) for k, v in overrides.items()})


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Command:
    """Commands of the package in a project folder."""

    project: Path

    def __call__(self, module: str, *arguments: Any, code: int | None = 0, **environment: str) -> Finished:
        process = self.start(module, *arguments, **environment)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
        if code is not None:
            assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return Finished(process.returncode, out, err)

    def start(self, module: str, *arguments: Any, **environment: str) -> subprocess.Popen[str]:
        """The same, running."""
        line = [sys.executable, "-m", f"jaxtrain.{module}", *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(line, cwd=self.project, env={**os.environ, **environment}, text=True, stdout=pipe, stderr=pipe)


def after_line(process: subprocess.Popen[str], text: str, count: int = 1) -> bool:
    """Wait for the count-th line with this text on stderr; False when the process ended before."""
    assert process.stderr is not None
    for line in process.stderr:
        count -= text in line
        if count == 0:
            return True
    return False


def summary(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text())


def rows(workdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]


def checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint below `checkpoints/` or a phase's folder, by name."""
    import jax
    import orbax.checkpoint as ocp

    step = max((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    found = {}
    for item in ("params", "state"):
        reader = ocp.PyTreeCheckpointer()
        tree = reader.metadata(step / item).item_metadata.tree
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        read = reader.restore(step / item, restore_args=how)
        found |= {f"{item}{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(read)}
    return {"folder": np.array(int(step.name)), **found}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray], tolerance: float = 0.0) -> None:
    """Equal names, shapes and types; equal bits, or values within tolerance."""
    assert a.keys() == b.keys() and len(a) > 5
    for name, left in a.items():
        right = b[name]
        assert (left.dtype, left.shape) == (right.dtype, right.shape), name
        if tolerance == 0:
            assert left.tobytes() == right.tobytes(), name
        else:
            np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance, err_msg=name)
