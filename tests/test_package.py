"""The package as a whole: every module imports, and the public names are what they say."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path

import flexora

#: Projects whose modules have another name.
MODULES = {"pyyaml": "yaml", "pillow": "PIL"}


def test_every_module_imports() -> None:
    names = [
        module.name for module in pkgutil.walk_packages(flexora.__path__, "flexora.") if "__main__" not in module.name
    ]
    assert len(names) > 40
    for name in names:
        assert importlib.import_module(name).__doc__, f"{name} says nothing of itself"


def test_public_names_load() -> None:
    assert sorted(flexora._HOMES) == sorted(flexora.__all__)
    for name in flexora.__all__:
        assert getattr(flexora, name).__name__ == name


def test_every_library_that_is_imported_is_declared() -> None:
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = chain(project["dependencies"], *(extras[name] for name in extras if name != "dev"))
    declared = {re.split(r"[^\w.-]", requirement)[0] for requirement in wanted}
    declared = {MODULES.get(name, name.replace("-", "_")) for name in declared}
    imported = set()
    for file in (root / "flexora").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) - {"flexora"} <= declared
