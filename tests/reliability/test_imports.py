"""Recipes from strangers: what they name is not even imported, unless the command line says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from flexora.cli import main
from flexora.runfolder import RunFolder
from flexora.trust import VARIABLE, class_names
from flexora.verbs.arms import adapter_of
from flexora.verbs.settings import Recipe

#: A module that leaves a trace wherever it is imported.
STRANGER = """
from pathlib import Path

from flexora import ArcEasy
from flexora.search.rules import TopK
from lightning.pytorch.callbacks import Callback

Path(__file__).with_name("imported").touch()


class Rows(ArcEasy):
    pass


class Rule(TopK):
    pass


class Spy(Callback):
    pass
"""


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that appears where the module ``stranger`` is imported."""
    (tmp_path / "stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "imported"
    sys.modules.pop("stranger", None)


def stacked(tmp_path: Path, settings: object) -> list[str]:
    file = tmp_path / "stacked.yaml"
    file.write_text(yaml.safe_dump(settings))
    return ["--config", str(file)]


@pytest.mark.parametrize(
    ("settings", "setting", "name"),
    [
        ({"data": {"class_path": "stranger.Rows"}}, "data", "stranger.Rows"),
        ({"search": {"rule": {"class_path": "stranger.Rule"}}}, "search.rule", "stranger.Rule"),
        ({"adapter": {"class_path": "stranger.Config"}}, "adapter", "stranger.Config"),
        ({"finetune": {"adapter": {"class_path": "stranger.Config"}}}, "finetune.adapter", "stranger.Config"),
        ({"trainer": {"callbacks": [{"class_path": "stranger.Spy"}]}}, "trainer.callbacks", "stranger.Spy"),
        ({"trainer": {"logger": {"class_path": "stranger.Spy"}}}, "trainer.logger", "stranger.Spy"),
        ({"search": {"trainer": {"callbacks": {"class_path": "stranger.Spy"}}}}, "trainer.callbacks", "stranger.Spy"),
        (
            {"trainer": {"callbacks": {"class_path": "LambdaCallback", "init_args": {"on_fit_start": "os.abort"}}}},
            "trainer.callbacks",
            "os.abort",
        ),
        # An object of another module, by the name of one of ours that uses it.
        ({"data": {"class_path": "flexora.packaged.subprocess.Popen"}}, "data", "flexora.packaged.subprocess.Popen"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_recipe_names_is_not_imported(
    settings: object,
    setting: str,
    name: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    trace: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "--config", str(recipe()), *stacked(tmp_path, settings)]) == 2
    (line,) = (line for line in capfd.readouterr().err.splitlines() if "error:" in line)
    assert f"{setting}: {name} is no class of flexora, PEFT or Lightning" in line
    assert line.endswith(f"add --allow-import {name}")
    assert not trace.exists()


def test_validate_and_compare_import_nothing_either(
    recipe: Callable[..., Path], tmp_path: Path, trace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, study = recipe(), tmp_path / "study.yaml"
    file.write_text(file.read_text().replace("class_path: ArcEasy", "class_path: stranger.Rows"))
    assert main(["validate", str(file)]) == 2
    assert "data: stranger.Rows is no class of" in capfd.readouterr().err
    arms = {"base": {"layers": "NoLayers"}, "own": {"layers": {"class_path": "stranger.Rule"}}}
    study.write_text(yaml.safe_dump({"recipes": {"Tiny": str(recipe())}, "arms": arms, "reference": "base"}))
    for arguments in (["compare", "--config", str(study)], ["validate", str(study)]):
        assert main(arguments) == 2
        assert "arms: stranger.Rule is no class of" in capfd.readouterr().err
    assert not trace.exists()


def test_the_flag_permits_it_and_processes_inherit_that(
    recipe: Callable[..., Path], tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inherited = []

    def call(command: list[str]) -> int:
        inherited.append(os.environ[VARIABLE])
        return main(command[3:])

    monkeypatch.setattr("flexora.verbs.run._call", call)
    named = stacked(tmp_path, {"data": {"class_path": "stranger.Rows"}})
    arguments = ["run", "--config", str(recipe()), *named, "--evaluate.arms=[base]", "--allow-import", "stranger"]
    assert main([*arguments, "--finetune.selection=0"]) == 0
    assert trace.exists()
    assert set(inherited) == {"stranger"}
    assert VARIABLE not in os.environ
    assert main(["validate", str(tmp_path / "out" / "finetune" / "config.yaml")]) == 2  # not for the next command
    monkeypatch.setenv(VARIABLE, "stranger.Rows")
    assert main(["validate", str(tmp_path / "out" / "finetune" / "config.yaml")]) == 0


@pytest.mark.parametrize("name", ["", "*", "../mine", "jsonargparse", "jsonargparse.typing"])
def test_the_flag_takes_names_alone(name: str, recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(recipe()), "--allow-import", name]) == 2
    assert f"--allow-import {name!r}: no package, module or class" in capsys.readouterr().err


def test_no_recipe_allows_itself_anything(
    recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--config", str(recipe()), *stacked(tmp_path, {"allow-import": "stranger"})]) == 2
    assert "allow-import" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["done.json", "adapter/config.yaml"])
def test_what_came_with_an_adapter_is_not_imported(place: str, tmp_path: Path, trace: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    data = {"class_path": "stranger.Rows", "init_args": {"template": "{stem}"}}
    (tmp_path / place).write_text(json.dumps({"data": data}))
    now = {"data": {"class_path": "ArcEasy", "init_args": {}}, "backbone": {"model": "me/tiny", "revision": None}}
    assert adapter_of(RunFolder(tmp_path / "out"), str(folder), now) == folder
    assert not trace.exists()


@pytest.mark.parametrize("content", ["[]", "{", '{"data": 3}', "[" * 100_000])
def test_what_a_run_says_of_itself_may_be_broken(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (tmp_path / "done.json").write_text(content)
    now = {"data": {"class_path": "ArcEasy", "init_args": {}}, "backbone": {"model": "me/tiny", "revision": None}}
    assert adapter_of(RunFolder(tmp_path / "out"), str(folder), now) == folder


def test_every_name_is_that_of_a_class() -> None:
    assert {"flexora.ArcEasy", "flexora.data.benchmarks.ArcEasy", "flexora.data.arc.ArcEasy"} <= class_names()
    assert {"peft.VeraConfig", "lightning.pytorch.callbacks.EarlyStopping"} <= class_names()
    outside = {name for name in class_names() if name.split(".")[0] not in ("flexora", "peft", "lightning")}
    assert not outside
    assert not {"flexora.cli.main", "flexora.packaged.fetch", "lightning.pytorch.Trainer"} & class_names()


def test_help_stays_instant() -> None:
    code = "import sys, flexora.cli; flexora.cli.main(['--help']); sys.exit('jsonargparse' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--allow-import PACKAGE" in done.stdout


def test_a_section_may_be_a_file_beside_the_recipe(
    recipe: Callable[..., Path], tmp_path: Path, trace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its bare name is also that of a module with something called yaml in it."""
    (tmp_path / "stranger.yaml").write_text("dtype: float64\n")
    named = stacked(tmp_path, {"backbone": "stranger.yaml"})
    assert Recipe("search", ["--config", str(recipe()), *named]).sections["backbone"]["dtype"] == "float64"
    assert main(["search", "--config", str(recipe()), "--backbone=stranger.yaml"]) == 2
    assert "write ./stranger.yaml for the file" in capfd.readouterr().err
    assert not trace.exists()
