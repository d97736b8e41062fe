"""`pip install .` brings no package that nothing imports."""

from __future__ import annotations

import ast
import re
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("megatron_longrope", "launchers", "data_prep", "checkpoints_tools")


def _dependencies() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    lines = re.findall(r'^ +"([^"]+)"', block[1], re.MULTILINE)
    return {_normal(Requirement(line).name) for line in lines}


def _imported_distributions() -> set[str]:
    """Distributions of every module that the four packages import, inside functions too."""
    providers = packages_distributions()
    modules: set[str] = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    modules |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    modules.add(node.module.partition(".")[0])
    return {_normal(name) for module in modules for name in providers.get(module, [])}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_imported_somewhere() -> None:
    dependencies = _dependencies()
    assert {"torch", "click", "ruamel-yaml"} <= dependencies
    assert dependencies <= _imported_distributions()
