"""Tiny models, benchmarks and recipes on disk, shared by the tests of all rooms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flexora.cli import main
from tests.tiny import FAMILIES, recipe_text, save_benchmark, save_model


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved tiny model of every family."""
    root = tmp_path_factory.mktemp("models")
    return {family: save_model(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def benchmark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny benchmark in ARC's fields."""
    return save_benchmark(tmp_path_factory.mktemp("benchmark"))


@pytest.fixture
def recipe(tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe for a tiny model; its output lies in ``tmp_path / "out"``."""

    def write(family: str = "llama", **replaced: str) -> Path:
        text = recipe_text(tiny_models[family], benchmark_folder, tmp_path / "out")
        for old, new in replaced.items():
            text = text.replace(f"{old}: ", f"{new}: ", 1)
        file = tmp_path / f"{family}.yaml"
        file.write_text(text)
        return file

    return write


@pytest.fixture
def phases_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``flexora run`` call its phases: as processes, each would import torch and transformers again."""

    def call(command: Sequence[str]) -> int:
        assert list(command[1:3]) == ["-m", "flexora"]
        return main(command[3:])

    monkeypatch.setattr("flexora.verbs.run._call", call)
