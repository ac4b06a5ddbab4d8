"""``--selection zoo:...`` in a fine-tune, and names that lead nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flexora.cli import main
from flexora.search.selection import Selection
from flexora.zoo.selections import zoo_selection
from tests.tiny import save_model


def test_a_selection_of_the_zoo_is_fine_tuned_without_a_search(
    recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "deep", "llama", layers=32)
    flags = ["--backbone.model", str(model), "--selection", "zoo:llama3-8b/hellaswag", "--data.train_rows=8"]
    assert main(["finetune", "--config", str(recipe()), *flags, "--finetune.trainer.max_epochs=1"]) == 0
    used = Selection.read(tmp_path / "out" / "finetune" / "selection.json")
    assert used.targets == zoo_selection("zoo:llama-3-8b/hellaswag").targets
    assert used.base.model == str(model)
    assert used.source == "zoo:llama3-8b/hellaswag"
    assert f"was chosen for meta-llama/Meta-Llama-3-8B; here it is used for {model}" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["finetune", "--selection", "zoo:llama3-8b/hellaswag"],
            "LlamaForCausalLM with 32 layers, but the",
        ),
        (["finetune", "--selection", "zoo:llama3-8b/nothing"], "the zoo has no selection"),
        (["evaluate", "--adapter", "zoo:nothing"], "the zoo has no adapter 'nothing'"),
        (["merge", "--adapter", "zoo:../../etc"], "the zoo has no adapter '../../etc'"),
    ],
)
def test_names_that_lead_nowhere(
    recipe: Callable[..., Path], arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--config", str(recipe())]) == 2
    assert expected in capsys.readouterr().err
