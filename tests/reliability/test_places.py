"""Names from others lead nowhere but into the folder they are looked up in; a path that cannot be is one line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flexora import recipes
from flexora.backbone.converted import converted_place
from flexora.backbone.loading import Backbone
from flexora.cli import main
from flexora.data.sources import hub_names
from flexora.errors import FlexoraError
from flexora.files import write_atomically
from flexora.packaged import cache_folder
from flexora.places import inside, own_path, plain_name, plain_revision
from flexora.publish.base import require_repo_id
from flexora.search.named import names_file
from flexora.zoo import adapters, entries
from flexora.zoo.adapters import AdapterRecord, adapter_record, zoo_adapter
from flexora.zoo.hub import hub_adapter, hub_selection
from flexora.zoo.references import adapter_folder

#: What no name may be.
CLIMBING = ["..", "../out", "a/../../out", "/etc", "//etc", "a\0b", "../root-b/x"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with links: one that stays, one that leads out, one in a circle."""
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "root-b").mkdir()
    (root / "near").symlink_to("a")
    (root / "far").symlink_to(tmp_path)
    (root / "circle").symlink_to("circle")
    return root


@pytest.mark.parametrize("name", [*CLIMBING, "far", "far/root-b", "a/../near", "circle/x"])
def test_what_leads_out(name: str, root: Path) -> None:
    with pytest.raises(FlexoraError, match=r"^zoo: .* leads out of"):
        inside(root, name, "zoo")


@pytest.mark.parametrize("name", ["a", "a/new", "near", "near/new", "a..b", "..."])
def test_what_stays(name: str, root: Path) -> None:
    assert inside(root, name, "zoo") == root / name
    assert inside(root.parent / "root" / "near", name, "zoo").parent.name  # of a folder that is a link itself


@pytest.mark.parametrize("name", [*CLIMBING, "", ".hidden", "a/b", "a\\b", "a\nb"])
def test_plain_names(name: str) -> None:
    for check in (plain_name, lambda name, _: converted_place(f"converted:{name}")):
        with pytest.raises(FlexoraError, match="is no plain name"):
            check(name, "")
    assert plain_name("chatglm3-6b (copy).v2", "") == "chatglm3-6b (copy).v2"


@pytest.mark.parametrize("revision", [*CLIMBING, "", "a//b", "a/", '"', "main\n", "x y"])
def test_revisions(revision: str) -> None:
    with pytest.raises(FlexoraError, match="is no branch, tag or commit"):
        plain_revision(revision, "")
    with pytest.raises(FlexoraError, match=r"^backbone.revision: "):
        Backbone("me/model", revision=revision)
    for read in (hub_selection, hub_adapter):
        with pytest.raises(FlexoraError, match=r"is no branch, tag or commit|names no repository"):
            read(f"hf:me/model@{revision}")
    with pytest.raises(FlexoraError, match=r"^data.source: .*(is no branch, tag or commit|names no dataset)"):
        hub_names(f"hub:me/rows/part@{revision}")
    assert plain_revision("refs/pr/1", "") == "refs/pr/1"


@pytest.mark.parametrize("name", ["../../etc", "me/../etc", "me/..", "/etc/passwd", "me/a/b", "me/a b", "me"])
def test_repositories(name: str) -> None:
    with pytest.raises(FlexoraError):
        require_repo_id(name, "--repo-id")
    for read in (hub_selection, hub_adapter):
        with pytest.raises(FlexoraError):
            read(f"hf:{name}")


@pytest.mark.parametrize("name", ["hub:../rows", "hub:./rows", "hub:a/..", "hub:a/b\0"])
def test_datasets_of_the_hub_are_no_folders(name: str) -> None:
    with pytest.raises(FlexoraError, match=r"data\.source"):
        hub_names(name)


@pytest.mark.parametrize("name", ["../setup", "/etc/passwd", "llama/../demo", "demo/../../secret"])
def test_recipes_are_looked_up_by_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["show", name], ["cp", name, str(tmp_path / "mine.yaml")]):
        assert main(["recipes", *arguments]) == 2
        assert f"no recipe is named {name}" in capsys.readouterr().err
    assert not (tmp_path / "mine.yaml").exists()


def test_a_recipe_that_is_a_link_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "secret.yaml").write_text("key: value\n")
    (tmp_path / "recipes" / "near.yaml").write_text("seed: 1\n")
    (tmp_path / "recipes" / "far.yaml").symlink_to(tmp_path / "secret.yaml")
    monkeypatch.setattr(recipes, "recipes_root", lambda: tmp_path / "recipes")
    assert recipes.find_recipe("near").name == "near"
    with pytest.raises(FlexoraError, match=r"recipes: 'far.yaml' leads out of"):
        recipes.find_recipe("far")


def test_the_zoo_follows_no_link_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = tmp_path / "zoo"
    shutil.copytree(entries.zoo_root(), zoo)
    name = entries.entry_names("adapters")[0]
    for module in (entries, adapters):
        monkeypatch.setattr(module, "zoo_root", lambda: zoo)
    assert adapter_folder(f"zoo:{name}") == zoo / "adapters" / name
    shutil.move(zoo / "adapters" / name, tmp_path / "outside")
    (zoo / "adapters" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(FlexoraError, match="leads out of"):
        zoo_adapter(f"zoo:{name}")
    entry = zoo / "adapters" / f"{name}.yaml"
    shutil.move(entry, tmp_path / "entry.yaml")
    entry.symlink_to(tmp_path / "entry.yaml")
    with pytest.raises(FlexoraError, match="leads out of"):
        adapter_record(name)


@pytest.mark.parametrize("location", ["..", "../..", "/etc", "a/b", "a/../..", "hf:../..@v1"])
def test_the_record_of_an_adapter_names_no_path(location: str) -> None:
    known = adapter_record(entries.entry_names("adapters")[0])
    try:
        record = AdapterRecord.model_validate(known.model_dump() | {"location": location})
    except ValueError:
        return
    with pytest.raises(FlexoraError):
        hub_adapter(record.location)


@pytest.mark.parametrize("folder", ["../elsewhere", "/tmp/elsewhere", ".", "a/b"])
def test_a_phase_stays_in_its_folder(
    folder: str, recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_atomically(tmp_path / "folder.yaml", f"finetune: {{folder: {folder}, selection: all}}\n")
    assert main(["finetune", "--config", str(recipe()), "--config", str(file)]) == 2
    assert f"finetune.folder: {folder!r} is no plain name" in capfd.readouterr().err
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("path", ["~nosuchuser/x", "~nosuchuser/x.json", "~a\0b", "a" * 300, "a/" * 3_000])
@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["search", "--output_dir"], "output_dir"),
        (["search", "--data.source"], "data.source"),
        (["estimate", "--data.source"], "data.source"),
        (["search", "--backbone.model"], "backbone.model"),
        (["finetune", "--selection"], "selection"),
        (["run", "--finetune.selection"], "selection"),
        (["finetune", "--warm-start", "--selection"], "selection"),
        (["evaluate", "--adapter"], "the adapter"),
        (["merge", "--adapter"], "the adapter"),
        (["merge", "--adapter", "{adapter}", "--to"], "--to"),
        (["publish", "--repo-id", "me/model", ""], "RUN_DIR"),
        (["convert", "chatglm3", "me/model", ""], "TARGET"),
        (["convert", "chatglm3", "--revision", "main", ""], "SOURCE|TARGET|backbone.model|cannot write"),
    ],
    ids=lambda value: " ".join(value[:1] + value[-1:]) if isinstance(value, list) else "",
)
def test_paths_that_cannot_be(
    arguments: list[str],
    option: str,
    path: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    verb, *others, last = arguments
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    others = [other.format(adapter=tmp_path / "adapter") for other in others]
    if verb not in ("publish", "convert"):
        others = ["--config", str(recipe()), *others]
    assert main([verb, *others, f"{last}={path}" if last else path]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert re.match(rf"flexora {verb}: error: ({option}):? ", line)
    assert len(line) < 600


def test_paths_that_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert own_path("~/runs", "output_dir") == tmp_path / "runs"
    assert own_path("a/~b", "output_dir") == Path("a/~b")
    assert not names_file(",".join(map(str, range(200))))  # of a deep model; longer than a file's name may be
    monkeypatch.setenv("FLEXORA_CACHE", "~nosuchuser/cache")
    with pytest.raises(FlexoraError, match="FLEXORA_CACHE: there is no home folder for ~nosuchuser/cache"):
        cache_folder()
