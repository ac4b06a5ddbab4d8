"""Every adapter of the zoo is the one of its record; the packaged model is better with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

from flexora.cli import main
from flexora.recipes import find_recipe, load_sections
from flexora.scoring.results import Results
from flexora.zoo.adapters import WEIGHTS, adapter_record, record_of
from flexora.zoo.entries import entry_names, zoo_root
from flexora.zoo.models import known_model
from flexora.zoo.references import adapter_folder

ADAPTERS = entry_names("adapters")


def test_there_is_one() -> None:
    assert ADAPTERS


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_record_is_that_of_its_folder(name: str) -> None:
    record, folder = adapter_record(name), adapter_folder(f"zoo:{name}")
    assert folder == zoo_root() / "adapters" / record.location
    assert record_of(folder, record.recipe, record.location) == record
    assert known_model(record.base.id) is not None
    assert load_sections(find_recipe(record.recipe).path)["data"]["class_path"] == record.benchmark
    with safe_open(folder / WEIGHTS, framework="pt") as weights:
        adapted = {int(key.split("layers.")[1].split(".")[0]) for key in weights.keys()}  # noqa: SIM118 - no dict
    assert sorted(adapted) == record.layers
    card = " ".join((folder / "README.md").read_text().split())
    if record.base.weights is not None:  # then the figures are not those of the hub's weights
        assert "Trained and measured on other weights than the hub's" in card
        assert record.base.weights in card


@pytest.mark.slow
def test_the_packaged_model_is_better_with_its_adapter(tmp_path: Path) -> None:
    (name,) = [name for name in ADAPTERS if name == "smollm2-135m-instruct-arc-easy"]
    config = str(find_recipe(adapter_record(name).recipe).path)
    cut = [f"--output_dir={tmp_path}", "--data.evaluate_rows=64"]
    assert main(["evaluate", "--config", config, "--adapter", f"zoo:{name}", *cut]) == 0
    base, adapted = Results.read(tmp_path / "evaluate" / "results.json").arms
    assert adapted.name == f"zoo:{name}"
    assert adapted.adapted_layers == len(adapter_record(name).layers)
    assert adapted.metrics["acc_norm"].value > base.metrics["acc_norm"].value
    assert adapted.loss < base.loss - 1
