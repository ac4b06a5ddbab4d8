"""Tiny models, benchmarks and recipes on disk, shared by the tests of all rooms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

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


@pytest.fixture
def float64_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers takes norms, eager softmax and the loss in float32, which hides differences below 1e-7."""
    cast_float, cast_to, softmax = torch.Tensor.float, torch.Tensor.to, torch.nn.functional.softmax

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        down = self.dtype == torch.float64 and torch.float32 in args
        return self if down else cast_to(self, *args, **kwargs)

    def to_float(self: Tensor) -> Tensor:
        return self if self.dtype == torch.float64 else cast_float(self)

    def wide_softmax(scores: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return softmax(scores, dim=dim, dtype=None if scores.dtype == torch.float64 else dtype)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "float", to_float)
    monkeypatch.setattr(torch.nn.functional, "softmax", wide_softmax)
