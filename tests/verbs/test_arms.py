"""Adapters are scored with the prompts that they were trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flexora.cli import main
from flexora.errors import FlexoraError
from flexora.runfolder import RunFolder
from flexora.verbs.arms import adapter_of

ARC = "flexora.data.arc.ArcEasy"
CHOICES = "flexora.data.own.JsonlMultipleChoice"
INSTRUCTION = "flexora.data.own.JsonlInstruction"


def trained_folder(root: Path, data: dict[str, Any]) -> Path:
    """An adapter's folder, as a fine-tune with a data section leaves it."""
    (root / "adapter").mkdir(parents=True)
    (root / "adapter" / "adapter_config.json").write_text("{}")
    (root / "done.json").write_text(json.dumps({"data": data}))
    return root / "adapter"


@pytest.mark.parametrize(
    ("trained", "path", "now", "named"),
    [
        ({"class_path": ARC}, ARC, {"prompt_style": "letters"}, "prompt_style completion"),
        ({"class_path": ARC}, "flexora.data.gsm8k.Gsm8k", {}, None),
        ({"class_path": ARC, "chat_template": True}, ARC, {"chat_template": False}, "chat_template True"),
        ({"class_path": INSTRUCTION, "messages": True}, ARC, {"chat_template": False}, "chat_template True"),
        ({"class_path": INSTRUCTION, "separator": " "}, INSTRUCTION, {"separator": "\n"}, "separator  "),
        (
            {"class_path": INSTRUCTION, "chat_template": True, "separator": " "},
            INSTRUCTION,
            {"chat_template": True, "separator": "\n"},
            None,  # no separator stands in a chat
        ),
        ({"class_path": CHOICES, "template": "{stem}:"}, CHOICES, {"template": "{stem}"}, "template {stem}:"),
        (
            {"class_path": CHOICES, "prompt_style": "letters", "template": "{stem}:"},
            CHOICES,
            {"prompt_style": "letters", "template": "{stem}"},
            None,  # letters have a template of their own
        ),
        (
            {"class_path": CHOICES, "source": "rows", "columns": {"prompt": "a"}},
            CHOICES,
            {"source": "rows", "columns": {"prompt": "b"}},
            "columns {'prompt': 'a'}",
        ),
        (
            {"class_path": "flexora.JsonlMultipleChoice", "source": "rows", "columns": {"prompt": "a"}},
            CHOICES,  # the same class
            {"source": "rows", "columns": {"prompt": "b"}},
            "columns {'prompt': 'a'}",
        ),
        (
            {"class_path": CHOICES, "source": "rows", "columns": {"prompt": "a"}},
            CHOICES,
            {"source": "others", "columns": {"prompt": "b"}},
            None,
        ),
    ],
)
def test_prompts_are_those_of_the_training(
    trained: dict[str, Any], path: str, now: dict[str, Any], named: str | None, tmp_path: Path
) -> None:
    adapter = trained_folder(tmp_path, trained)
    sections = {"data": {"class_path": path, "init_args": now}, "backbone": {}}
    if named is None:
        assert adapter_of(RunFolder(tmp_path / "out"), str(adapter), sections) == adapter
        return
    with pytest.raises(FlexoraError) as caught:
        adapter_of(RunFolder(tmp_path / "out"), str(adapter), sections, "--adapter")
    assert str(caught.value).startswith(f"--adapter: {adapter} was trained with data.{named}, but is to be scored")


def test_help_says_what_the_flag_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """Elsewhere it is a class of PEFT's, or a file with its settings."""
    assert main(["evaluate", "--help"]) == 0
    assert "--adapter FOLDER" in capsys.readouterr().out
    assert main(["finetune", "--help"]) == 0
    assert "--adapter CONFIG" in capsys.readouterr().out
