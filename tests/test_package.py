"""The package as a whole: every module imports, and the public names are what they say."""

from __future__ import annotations

import importlib
import pkgutil

import flexora


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
