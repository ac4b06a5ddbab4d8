"""Every recipe that ships is parsed whole, documented, and survives being copied."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from flexora.backbone.limits import Phase
from flexora.cli import main
from flexora.data import benchmarks
from flexora.recipes import all_recipes, find_recipe, load_sections
from flexora.verbs.settings import Recipe

RECIPES = [recipe.name for recipe in all_recipes()]


@cache
def parsed(name: str) -> dict[str, Any]:
    """The sections of a recipe, which take long to parse; they are only read here."""
    return Recipe("run", ["--config", str(find_recipe(name).path)]).sections


def test_every_file_is_listed() -> None:
    root = Path(__file__).parents[2] / "recipes"
    files = [path for path in root.rglob("*.yaml") if "_shared" not in path.parts and path.name[0] != "_"]
    assert len(RECIPES) == len(files) >= 40
    assert {name.split("/")[0] for name in RECIPES} >= {"demo", "llama", "mistral", "glm"}


def test_every_large_model_has_a_recipe_for_every_benchmark_with_rows_to_train_on() -> None:
    wanted = {"JsonlInstruction", "JsonlMultipleChoice", "Mmlu"}  # own rows, and an evaluation alone
    for model in ("llama/llama-3-8b", "mistral/mistral-7b-v0.1", "glm/glm-4-9b"):
        sections = [load_sections(find_recipe(name).path) for name in RECIPES if name.startswith(f"{model}/")]
        classes = [section["data"]["class_path"] for section in sections]
        assert len(classes) == len(set(classes))
        assert wanted | set(classes) == {name for name in benchmarks.__all__ if name != "MULTIPLE_CHOICE"}
        outputs = [section["output_dir"] for section in sections]
        assert len(outputs) == len(set(outputs))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses_and_says_what_it_needs(name: str) -> None:
    path = find_recipe(name).path
    written = load_sections(path)
    assert parsed(name)["search"]["outer_steps"] == written["search"]["outer_steps"]
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Needs:", "Start: flexora run --config recipes/", "Reached:"):
        assert any(word in line for line in head), word


@pytest.mark.parametrize("name", RECIPES)
def test_a_copy_is_one_file_with_the_same_settings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "cp", name, "mine.yaml"]) == 0
    assert Recipe("run", ["--config", "mine.yaml"]).sections == parsed(name)
    assert main(["recipes", "cp", name, "mine.yaml"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_copy_says_how_to_start_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "cp", "demo", "mine.yml"]) == 0
    assert "# Start: flexora run --config mine.yml\n" in Path("mine.yml").read_text()


def test_recipes_are_found_below_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of sections start with an underscore, and so do the work folders of some CI runners."""
    place = tmp_path / "_work" / "recipes"
    shutil.copytree(find_recipe("demo").path.parent, place)
    monkeypatch.setattr("flexora.recipes.recipes_root", lambda: place)
    assert [recipe.name for recipe in all_recipes()] == RECIPES


def test_sharding_stacks_on_a_recipe() -> None:
    name = "llama/llama-3-8b/arc_easy"
    files = [find_recipe(name).path, find_recipe(name).path.parents[2] / "_shared" / "fsdp2.yaml"]
    stacked = Recipe("run", [f"--config={file}" for file in files])
    assert stacked.trainer("finetune")["strategy"] == "fsdp2"
    assert [stacked.devices(phase) for phase in get_args(Phase)] == [1, 4, 1]
    for phase in get_args(Phase):
        stacked.require_strategy(phase)
    alone = parsed(name)["finetune"]
    assert stacked.sections["finetune"] == alone | {"trainer": {**alone["trainer"], "strategy": "fsdp2", "devices": 4}}


def test_ls_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "ls"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in RECIPES)
    assert main(["recipes", "show", "demo"]) == 0
    assert capsys.readouterr().out == find_recipe("demo").path.read_text()
    assert main(["recipes", "show", "nope"]) == 2
    assert "no recipe is named nope" in capsys.readouterr().err
