"""Out of memory: one line with the settings that help, a status of its own, nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flexora.cli import main
from flexora.finetune.module import FinetuneModule
from flexora.scoring.module import ScoreModule
from flexora.search.module import SearchModule

#: More bytes than any machine has.
TOO_MANY = 1 << 50

REMEDIES = {
    "search": "set backbone.gradient_checkpointing to true (now false); lower search.batch_size (now 4); set "
    "backbone.dtype to bfloat16 (now float32)",
    "finetune": "set backbone.gradient_checkpointing to true (now false); lower data.batch_size (now 4); set "
    "backbone.dtype to bfloat16 (now float32)",
    "evaluate": "lower data.evaluate_tokens (now 400); set backbone.dtype to bfloat16 (now float32); lower "
    "data.max_length (now 64)",
}


@pytest.mark.parametrize("verb", REMEDIES)
def test_one_line_and_the_same_command_goes_on(
    verb: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The allocator's own error; the folder is gone on with, and what saves memory gives the same bits."""
    arguments = [verb, "--config", str(recipe()), "--output_dir"]
    arguments[1:1] = {"finetune": ["--selection=1"], "evaluate": ["--evaluate.arms=[base]"]}.get(verb, [])
    result = {"search": "history.csv", "finetune": "adapter/adapter_model.safetensors", "evaluate": "results.json"}[
        verb
    ]
    assert main([*arguments, str(tmp_path / "straight")]) == 0
    kind: Any = {"search": SearchModule, "finetune": FinetuneModule, "evaluate": ScoreModule}[verb]
    name = "test_step" if verb == "evaluate" else "training_step"
    step = getattr(kind, name)

    def greedy(module: Any, batch: Any, batch_idx: int, *rest: Any) -> Any:
        if batch_idx == (0 if verb == "evaluate" else 2):
            torch.empty(TOO_MANY, dtype=torch.uint8)
        return step(module, batch, batch_idx, *rest)

    cut = tmp_path / "cut"
    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(kind, name, greedy)
        assert main([*arguments, str(cut)]) == 3
    error = capfd.readouterr().err.splitlines()[-1]
    said = f"flexora {verb}: error: {verb}: the memory of the machine ran out; {REMEDIES[verb]} ("
    said += "flexora estimate" if verb == "evaluate" else "the first goes on in this folder"
    assert error.startswith(said)
    assert not (cut / verb / result).exists() or verb == "search"
    assert not (cut / verb / "done.json").exists()
    saving = [] if verb == "evaluate" else ["--backbone.gradient_checkpointing=true"]
    assert main([*arguments, str(cut), *saving]) == 0
    assert (cut / verb / result).read_bytes() == (tmp_path / "straight" / verb / result).read_bytes()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data.init_args.max_tokens_per_batch=300"], "lower data.max_tokens_per_batch (now 300); set"),
        (["--data.init_args.batch_size=1", "--backbone.dtype=bfloat16"], "false); lower data.max_length (now 64); set"),
        (["--backbone.gradient_checkpointing=true"], "ran out; lower data.batch_size (now 4); set backbone.dtype to"),
    ],
)
def test_what_is_done_already_is_not_proposed(
    flags: list[str],
    said: str,
    recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(FinetuneModule, "training_step", lambda *_: torch.empty(TOO_MANY, dtype=torch.uint8))
    assert main(["finetune", "--config", str(recipe()), "--selection=1", *flags]) == 3
    assert said in capfd.readouterr().err


@pytest.mark.parametrize(
    ("place", "flags"),
    [("backbone.adapters.get_peft_model", []), ("verbs.finetune.require_start", ["--warm-start"])],
)
def test_where_an_adapter_is_made_or_read(
    place: str,
    flags: list[str],
    recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """There others' errors are told as faults of the adapter; and outside a phase nobody knows its settings."""

    def greedy(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(f"flexora.{place}", greedy)
    assert main(["finetune", "--config", str(recipe()), "--selection=1", *flags]) == 3
    assert "ran out; " in capfd.readouterr().err
