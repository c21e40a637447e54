"""Who may import whom, and that no configuration key is read by nobody."""

import ast
import dataclasses
import importlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from sixth_problem import ROOT, SIXTH

from jaxtrain.engine.config import ENGINE_SECTIONS

COMMANDS = ("main", "validate", "population", "evaluate", "predict")
JAX = {"jax", "flax", "optax", "orbax", "grain"}
# Folder (or "commands") -> modules of this package it may import, beside its own folder and jaxtrain.errors.
ALLOWED = {
    "commands": ("jaxtrain.cli", "jaxtrain.engine", "jaxtrain.tasks"),
    "cli": (),
    "engine": ("jaxtrain.tasks.task", "jaxtrain.data.dataset"),
    "tasks": ("jaxtrain.models", "jaxtrain.nn", "jaxtrain.data", "jaxtrain.engine.metrics", "jaxtrain.engine.config"),
    "models": ("jaxtrain.nn",),
    "nn": (),
    "data": (),
}
FROM_CONFIG = {"section", "nearest"}  # what a task may take from engine.config


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import, wherever it stands; not those for type checkers alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def faults(path: Path, folder: str) -> list[str]:
    found = []
    for module, name in imports(path):
        if module.split(".")[0] == "jaxtrain":
            whole = f"{module}.{name}" if name and module.count(".") < 2 else module
            allowed = (*ALLOWED[folder], f"jaxtrain.{folder}", "jaxtrain.errors")
            if not any(whole == a or whole.startswith(f"{a}.") for a in allowed):
                found.append(f"{path.name} imports {whole}")
            if folder == "tasks" and module == "jaxtrain.engine.config" and name not in FROM_CONFIG:
                found.append(f"{path.name} imports {name} of engine.config")
        elif folder == "data" and module.split(".")[0] in JAX:
            found.append(f"{path.name} imports {module}")
        elif folder == "nn" and module.split(".")[0] not in {"jax", "flax", "numpy", *sys.stdlib_module_names}:
            found.append(f"{path.name} imports {module}")
        elif module.split(".")[0] in ("grain", "orbax") and path.name not in ("feed.py", "checkpoint.py"):
            found.append(f"{path.name} imports {module}")
    return found


def sources(root: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted((root / "jaxtrain").rglob("*.py")):
        parts = path.relative_to(root / "jaxtrain").parts
        folder = parts[0] if len(parts) > 1 else ("commands" if path.stem in COMMANDS else path.stem)
        if folder not in ("__init__", "errors"):
            yield path, folder


@pytest.mark.parametrize("root", [ROOT, SIXTH], ids=["package", "sixth"])
def test_imports_follow_the_plan(root: Path) -> None:
    assert [fault for path, folder in sources(root) for fault in faults(path, folder)] == []


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("data", "import jax.numpy as jnp"),
        ("data", "from jaxtrain.engine import config"),
        ("models", "from jaxtrain.tasks import stmgt"),
        ("models", "from jaxtrain.data.traffic import gather"),
        ("nn", "from jaxtrain.models.stmgt import Config"),
        ("nn", "import optax"),
        ("engine", "def f():\n    from jaxtrain.tasks import stmgt"),
        ("engine", "import orbax.checkpoint"),
        ("tasks", "from jaxtrain.engine.config import duration"),
        ("tasks", "from jaxtrain.engine import steps"),
        ("commands", "from jaxtrain.models import stmgt"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, folder: str, line: str) -> None:
    path = tmp_path / "some.py"
    path.write_text(line + "\n")
    assert faults(path, folder)


def unread(classes: Iterable[type], texts: Iterable[str]) -> list[str]:
    """Fields that no expression `something.field` reads outside the class, nor inside it a method that is used outside."""
    trees = [ast.parse(text) for text in texts]
    reads = {found for tree in trees for found in _reads(tree, frozenset())}
    bodies = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    result = []
    for cls in classes:
        read = {name for name, inside in reads if cls.__name__ not in inside}
        own = [node for body in bodies if body.name == cls.__name__ for node in body.body]
        methods = [node for node in own if isinstance(node, ast.FunctionDef) and node.name in read]
        read |= {name for method in methods for name, _ in _reads(method, frozenset())}
        result += [f"{cls.__name__}.{f.name}" for f in dataclasses.fields(cls) if f.name not in read]
    return result


def _reads(node: ast.AST, inside: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """(attribute, names of the classes around it) of everything that is read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
            yield child.attr, inside
        yield from _reads(child, inside | {child.name} if isinstance(child, ast.ClassDef) else inside)


def sections() -> list[type]:
    """Of the engine and of every system that has a config."""
    tasks = [importlib.import_module(f"jaxtrain.tasks.{path.stem}") for path in sorted((ROOT / "configs").glob("*.py"))]
    classes = [*ENGINE_SECTIONS.values(), *(cls for task in tasks for cls in task.SECTIONS.values())]
    nested = [f.type for cls in classes for f in dataclasses.fields(cls) if dataclasses.is_dataclass(f.type)]
    return [*classes, *(cls for cls in nested if isinstance(cls, type))]


def test_every_key_is_read() -> None:
    assert unread(sections(), [path.read_text() for path, _ in sources(ROOT)]) == []


def test_a_dead_key_is_found() -> None:
    @dataclasses.dataclass(frozen=True)
    class Section:
        used: int
        behind: int
        dead: int

    text = """
class Section:
    def __post_init__(self):
        assert self.dead > 0

    @property
    def gap(self):
        return self.behind

def f(config):
    config.dead = config.used
    return config.gap
"""
    assert unread([Section], [text]) == ["Section.dead"]
