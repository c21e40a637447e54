"""Shared fixtures; the toy system of tests/sixth becomes importable as if its files lay in the package."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import sixth_problem

import jaxtrain.data
import jaxtrain.models
import jaxtrain.tasks

for package in (jaxtrain.data, jaxtrain.models, jaxtrain.tasks):
    package.__path__.append(str(sixth_problem.SIXTH / package.__name__.replace(".", "/")))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and recorded arrays for local tests, beside the checkout; tests that need them skip without."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip("no shared folder beside the checkout")
    return folder


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and the configs with the toy system's four files beside them, for commands."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("jaxtrain", "configs"):
        shutil.copytree(sixth_problem.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(sixth_problem.SIXTH, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="session")
def command(project: Path) -> Callable[..., sixth_problem.Finished]:
    """command("main", "--config", ..., code=0): run jaxtrain.main to its end and check its exit code."""
    return sixth_problem.Command(project)
