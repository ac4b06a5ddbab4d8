"""Settings of the Trainer that are a count or a share, whatever type another library named first."""

from __future__ import annotations

from pathlib import Path
from typing import Union

import lightning as L
import pytest

from flexora.recipe import recipe_parser


@pytest.mark.parametrize("written", ["1", "1.0", "0.5", "null"])
@pytest.mark.parametrize("setting", ["limit_train_batches", "limit_test_batches", "overfit_batches"])
def test_one_batch_is_not_all_of_them(
    setting: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    float_first = Union[float, int, None]  # noqa: UP007 - a union by | is none of those that typing keeps
    monkeypatch.setitem(L.Trainer.__init__.__annotations__, setting, float_first)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {{class_path: ArcEasy}}\ntrainer: {{{setting}: {written}}}\n")
    parser = recipe_parser("evaluate")
    expected = {"1": 1, "1.0": 1.0, "0.5": 0.5, "null": None}[written]
    for arguments in (["--config", str(recipe)], ["--data=ArcEasy", f"--trainer.{setting}={written}"]):
        parsed = parser.parse_args(arguments).trainer[setting]
        assert (type(parsed), parsed) == (type(expected), expected)
