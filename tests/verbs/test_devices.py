"""Phases on two devices against one, through the command line: each row counts once, each file is written once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from flexora.cli import main
from tests.commands import printed_on, start_on_each_device
from tests.tiny import write_jsonl
from tests.verbs.test_bad_input import failing
from tests.verbs.test_data import data_section, read_lines


def on_two_devices(arguments: list[str], folder: Path) -> list[str]:
    """Run a command as torchrun does, and return what each process printed."""
    outputs = [folder / f"printed_{rank}.txt" for rank in range(2)]
    processes = start_on_each_device([*arguments, "--trainer.devices=2"], outputs)
    for process in processes:
        process.join(120)
    printed = [output.read_text() for output in outputs]
    assert [process.exitcode for process in processes] == [0, 0], printed
    return printed


def test_finetune_and_evaluate_on_two_devices_are_those_on_one(
    recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ten batches make three steps, and 13 rows are no whole batches."""
    adapters = {}
    for devices in (2, 1):
        settings = {"selection": "1-2", "adapter.lora_dropout": 0, "output_dir": tmp_path / f"on_{devices}"}
        settings |= {"trainer.devices": devices, "trainer.accumulate_grad_batches": 4 // devices}
        flags = [f"--{name}={value}" for name, value in settings.items()]
        arguments = ["finetune", "--config", str(recipe()), *flags]
        printed = printed_on(devices, arguments, capfd)
        assert printed.count("trainable parameters") == 1
        place = tmp_path / f"on_{devices}" / "finetune"
        kept = [f"step-{step:07d}.{kind}" for step in (3, 5) for kind in ("ckpt", "json")]
        assert sorted(path.name for path in (place / "checkpoints").iterdir()) == kept
        adapters[devices] = place / "adapter"
    many, one = (load_file(adapters[devices] / "adapter_model.safetensors") for devices in (2, 1))
    configs = [json.loads((adapters[devices] / "adapter_config.json").read_text()) for devices in (2, 1)]
    assert sorted(configs[0].pop("target_modules")) == sorted(configs[1].pop("target_modules"))
    assert configs[0] == configs[1]
    assert many.keys() == one.keys()
    for name, tensor in many.items():
        assert float((tensor - one[name]).norm()) <= 1e-3 * float(one[name].norm())

    place.joinpath("done.json").unlink()  # an unfinished fine-tune, whose steps would have other rows
    assert "devices 1 -> 2" in failing([*arguments, "--trainer.devices=2"], capfd)

    arguments = ["evaluate", "--config", str(recipe()), "--adapter", str(adapters[2]), "--evaluate.samples=true"]
    arguments += ["--data.evaluate_tokens=200", "--output_dir"]
    printed_by = on_two_devices([*arguments, str(tmp_path / "two")], tmp_path)
    assert ["acc_norm" in printed for printed in printed_by] == [True, False]
    assert main([*arguments, str(tmp_path / "one")]) == 0
    samples = {name: read_lines(tmp_path / name / "evaluate" / "samples.jsonl") for name in ("two", "one")}
    assert samples["two"] == samples["one"]
    assert [(sample["arm"], sample["row"]) for sample in samples["two"]] == [
        (arm, row) for arm in ("base", str(adapters[2])) for row in range(1, 14)
    ]


def test_answers_on_two_devices_are_those_on_one(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Generated answers of an evaluation and of ``predict``; of five rows one process has the odd one."""
    rows: list[dict[str, Any]] = [{"prompt": f"Say {n}{'!' * n}", "response": str(n)} for n in range(9)]
    write_jsonl(tmp_path / "train.jsonl", rows[:4])
    new = write_jsonl(tmp_path / "test.jsonl", rows[4:])
    config = data_section(
        recipe(),
        f"class_path: JsonlInstruction\ninit_args: {{source: {tmp_path}, exact_match: true, max_new_tokens: 5, "
        "max_length: 64, evaluate_tokens: 20}",
    )
    commands = {
        "evaluate/samples.jsonl": ["evaluate", "--evaluate.arms=[base]", "--evaluate.samples=true"],
        "predictions.jsonl": ["predict", f"--rows={new}", "--adapter=base"],
    }
    for file, (verb, *flags) in commands.items():
        arguments = [verb, "--config", str(config), *flags, "--output_dir"]
        on_two_devices([*arguments, str(tmp_path / "two")], tmp_path)
        assert main([*arguments, str(tmp_path / "one")]) == 0
        two, one = (read_lines(tmp_path / name / file) for name in ("two", "one"))
        assert two == one
        assert len(two) == 5
