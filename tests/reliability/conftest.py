"""Commands of every verb that fills an output folder, and signals as a terminal sends them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from tests.reliability.holding import Commands
from tests.tiny import tiny_model


@pytest.fixture
def commands(recipe: Callable[..., Path], tmp_path: Path) -> Commands:
    """A command for each verb, which the folder is to follow; two arms are evaluated, in two batches each."""
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    own: dict[str, list[str]] = {
        "search": [],
        "finetune": ["--selection=1,3"],
        "evaluate": [f"--adapter={tmp_path / 'adapter'}", "--evaluate.samples=true"],
    }
    return {verb: [verb, "--config", str(recipe()), *flags, "--output_dir"] for verb, flags in own.items()}


@pytest.fixture(autouse=True)
def heard_signals() -> Iterator[None]:
    """A runner may ignore Ctrl-C for its children, and commands honour that; a terminal does not."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)
