"""Every recipe that ships is parsed whole, documented, and survives being copied."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest

from flexora.backbone.limits import Phase
from flexora.cli import main
from flexora.compare.checks import study_of
from flexora.data import benchmarks
from flexora.recipes import all_recipes, find_recipe, load_sections
from flexora.verbs.settings import Recipe

RECIPES = [recipe.name for recipe in all_recipes() if not recipe.is_study]
STUDIES = [recipe.name for recipe in all_recipes() if recipe.is_study]


@cache
def parsed(name: str) -> dict[str, Any]:
    """The sections of a recipe, which take long to parse; they are only read here."""
    return Recipe("run", ["--config", str(find_recipe(name).path)]).sections


def test_every_file_is_listed() -> None:
    root = Path(__file__).parents[2] / "recipes"
    files = [path for path in root.rglob("*.yaml") if "_shared" not in path.parts and path.name[0] != "_"]
    assert len(RECIPES) + len(STUDIES) == len(files) >= 66
    families = {name.split("/")[0] for name in RECIPES}
    assert families == {"debug", "demo", "glm", "llama", "mistral", "own"}


def test_every_large_model_has_a_recipe_for_every_benchmark_with_rows_to_train_on() -> None:
    wanted = {"JsonlInstruction", "JsonlMultipleChoice", "Mmlu"}  # own rows, and an evaluation alone
    for model in ("llama/llama-3-8b", "mistral/mistral-7b-v0.1", "glm/chatglm3-6b", "glm/glm-4-9b"):
        sections = [load_sections(find_recipe(name).path) for name in RECIPES if name.startswith(f"{model}/")]
        classes = [section["data"]["class_path"] for section in sections]
        assert len(classes) == len(set(classes))
        assert wanted | set(classes) == {name for name in benchmarks.__all__ if name != "MULTIPLE_CHOICE"}
        outputs = [section["output_dir"] for section in sections]
        assert len(outputs) == len(set(outputs))


def test_the_packaged_model_has_a_recipe_for_every_packaged_benchmark() -> None:
    classes = [getattr(benchmarks, name) for name in benchmarks.__all__ if name != "MULTIPLE_CHOICE"]
    packaged = {kind.__name__ for kind in classes if kind.benchmark.packaged}
    files = [find_recipe(name).path for name in RECIPES if name.startswith("llama/smollm2-135m-instruct/")]
    data = [load_sections(file)["data"] for file in files]
    assert {section["class_path"] for section in data} == packaged
    assert len(packaged) == len(files) == 9
    assert {section["init_args"]["source"] for section in data} == {"packaged"}


def test_ls_shows_what_a_recipe_is_for_and_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "ls"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*RECIPES, *STUDIES])
    assert main(["recipes", "ls", "RaceHigh"]) == 0
    lines = capsys.readouterr().out.splitlines()
    wanted = [name for name in RECIPES if name.endswith("race_high")]
    assert [line.split() for line in lines if "RaceHigh" in line] == [[name, "RaceHigh"] for name in wanted]
    assert [line for line in lines if line[0] != " "] == ["glm", "llama", "mistral"]
    assert "GPU" in " ".join(lines)
    assert main(["recipes", "ls", "nothing like it"]) == 2
    assert "no recipe has 'nothing like it'" in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_parses_and_says_what_it_needs(name: str) -> None:
    recipe = find_recipe(name)
    written = load_sections(recipe.path)
    assert parsed(name)["search"]["outer_steps"] == written["search"]["outer_steps"]
    assert recipe.needs
    assert f"Start: flexora run --config recipes/{name}.yaml" in recipe.head
    assert any(line.startswith("Reached: ") for line in recipe.head)


@pytest.mark.parametrize("name", RECIPES)
def test_a_copy_is_one_file_with_the_same_settings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "cp", name, "mine.yaml"]) == 0
    # But for the folder: two copies must not meet in one.
    assert Recipe("run", ["--config", "mine.yaml"]).sections == parsed(name) | {"output_dir": "runs/mine"}
    assert main(["recipes", "cp", name, "mine.yaml"]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_well_formed_and_survives_being_copied(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = find_recipe(name)
    assert recipe.needs
    assert any(f"Start: flexora compare --config recipes/{name}.yaml" in line for line in recipe.head)
    study = study_of(recipe.path)
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "cp", name, "mine.yaml"]) == 0
    assert "then flexora compare --config mine.yaml" in capsys.readouterr().out
    copied = study_of(Path("mine.yaml"))
    assert copied.trials == study.trials
    assert copied.output_dir == "runs/mine"
    kept = replace(copied, output_dir=study.output_dir)
    assert [kept.settings_of(trial) for trial in kept.trials] == [study.settings_of(t) for t in study.trials]


def test_a_copy_says_how_to_start_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "cp", "demo", "mine.yml"]) == 0
    assert "# Start: flexora run --config mine.yml\n" in Path("mine.yml").read_text()


def test_recipes_are_found_below_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of sections start with an underscore, and so do the work folders of some CI runners."""
    place = tmp_path / "_work" / "recipes"
    shutil.copytree(find_recipe("demo").path.parent, place)
    monkeypatch.setattr("flexora.recipes.recipes_root", lambda: place)
    assert [recipe.name for recipe in all_recipes()] == sorted([*RECIPES, *STUDIES])


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


def test_gates_of_modules_stack_on_a_recipe() -> None:
    name = "llama/llama-3-8b/arc_easy"
    files = [find_recipe(name).path, find_recipe(name).path.parents[2] / "_shared" / "modules.yaml"]
    stacked, alone = Recipe("run", [f"--config={file}" for file in files]).sections, parsed(name)
    adapter = {"target_modules": "all-linear", "r": 2, "lora_alpha": 4}
    assert stacked["adapter"]["init_args"] == alone["adapter"]["init_args"] | adapter
    rule = {"class_path": "flexora.Budget", "init_args": {"parameters": None, "share": 0.38}}
    assert stacked["search"] == alone["search"] | {"gates": "module", "rule": rule}


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "demo"]) == 0
    assert capsys.readouterr().out == find_recipe("demo").path.read_text()
    assert main(["recipes", "show", "nope"]) == 2
    assert "no recipe is named nope" in capsys.readouterr().err
