"""``flexora estimate``: what it prints, from rows at hand and without them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, get_layer_status

from flexora.backbone.adapters import trainable_parameters
from flexora.backbone.loading import Backbone
from flexora.cli import main
from flexora.finetune.module import FinetuneModule
from tests.tiny import write_jsonl
from tests.verbs.test_bad_input import failing


def estimate(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["estimate", *arguments]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_parameters_are_those_of_the_loaded_model(
    recipe: Callable[..., Path],
    tiny_models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = recipe()
    text = estimate(capsys, "--config", str(file), "--finetune.selection", "1,3")
    module = FinetuneModule(Backbone(str(tiny_models["llama"])), LoraConfig(r=2, lora_alpha=4), selection="1,3")
    module.configure_model()
    trained = trainable_parameters(module.peft_model)
    assert f"{sum(p.numel() for p in module.peft_model.parameters()) - trained:,} parameters, float32" in text
    assert f"{len(get_layer_status(module.peft_model))} modules of " in text
    assert f"{trained:,} trainable parameters" in text
    in_4_bits = estimate(capsys, "--config", str(file), "--finetune.selection", "1,3", "--backbone.quantization", "nf4")
    assert f"{trained:,} trainable parameters" in in_4_bits
    for phase in ("search", "finetune", "evaluate"):
        assert phase in text
    assert "assumed" not in text
    assert "T = 2" in text
    assert not (tmp_path / "out").exists()


def test_a_configuration_is_enough(
    recipe: Callable[..., Path], tiny_models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(tiny_models["llama"] / "config.json", tmp_path)
    arguments = ("--config", str(recipe()), "--backbone.model", str(tmp_path))
    assert "assumed: rows of 64 tokens" in estimate(capsys, *arguments)
    text = estimate(capsys, *arguments, "--length", "40", "--data.objective", "choices")
    assert "assumed: rows of 40 tokens" in text
    assert "40 tokens" in text


def test_a_sharded_fine_tune_is_told_of(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--config", str(recipe()), "--length", "10")
    told = "finetune: numbers of one device that holds everything, unsharded"
    assert told not in estimate(capsys, *arguments)
    for strategy in ("fsdp2", "{class_path: flexora.finetune.sharding.FullyShard}"):
        assert told in estimate(capsys, *arguments, f"--finetune.trainer.strategy={strategy}")


def test_a_file_of_rows_counts_as_rows_at_hand(
    recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{number}?", "choices": ["yes", "no"], "answer": "no"} for number in range(40)]
    file, config = write_jsonl(tmp_path / "mine.jsonl", rows), recipe()
    config.write_text(config.read_text().replace("class_path: ArcEasy", "class_path: JsonlMultipleChoice"))
    flags = ["--data.source", str(file), "--data.test_rows=8"]
    assert "assumed" not in estimate(capsys, "--config", str(config), *flags)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--length", "many"], "--length: 'many' is no number of tokens; give at least 2"),
        (["--backbone.model", "./nowhere"], "the folder ./nowhere does not exist"),
        (["--data.source", "./nowhere"], "data.source: nowhere is not a folder"),
        (["--trainer.precision", "bf16-true"], "search: trainer.precision bf16-true is refused"),
    ],
)
def test_refusals(
    arguments: list[str], expected: str, recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert expected in failing(["estimate", "--config", str(recipe()), *arguments], capfd)
