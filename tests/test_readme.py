"""The README's code runs as it stands, on a tiny model, and its recipes can be followed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from peft import PeftModel

from flexora import Selection
from flexora.cli import main
from tests.tiny import tiny_model, write_jsonl

README = Path(__file__).parents[1] / "README.md"


def test_the_phases_need_no_shell(
    tmp_path: Path, tiny_models: dict[str, Path], benchmark_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "SearchModule" in block]
    for old, new in (
        ("Backbone()", f"Backbone({str(tiny_models['llama'])!r})"),
        ('source="packaged", train_rows=480', f"source={str(benchmark_folder)!r}, validation_rows=8"),
        ("outer_steps=12", "outer_steps=2"),
    ):
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    layers = Selection.read("selection.json").layers
    adapted = PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "adapter")
    assert {
        int(name.split("layers.")[1].split(".")[0]) for name, _ in adapted.named_parameters() if "lora_A" in name
    } == set(layers)


def test_own_rows_stack_on_the_recipe_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = re.findall(r"```yaml\n(# mydata\.yaml\n.*?)```", README.read_text(), re.DOTALL)
    (command,) = re.findall(r"flexora (validate .* --config mydata\.yaml .*)", README.read_text())
    Path("mydata.yaml").write_text(text)
    write_jsonl(Path("rows.json"), [{"instruction": "Say", "input": "1", "output": "1"}])
    assert main(command.split()) == 0, capsys.readouterr().err
