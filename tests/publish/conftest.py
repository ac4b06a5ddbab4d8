"""One finished run of a tiny model, and a hub on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from flexora.cli import main
from flexora.zoo.hub import _download
from tests.publish.fake_hub import TOKEN, FakeHub, running_hub
from tests.tiny import recipe_text

#: What the base model of the run is said to be: the zoo does not know it.
BASE = ["--base-id=tiny/llama-base", "--base-revision=v1", "--license=apache-2.0"]


def publish(run_dir: Path, *options: str) -> int:
    """Publish a run as ``me/arc-tiny``."""
    return main(["publish", str(run_dir), "--repo-id=me/arc-tiny", *BASE, *options])


def rewrite(file: Path, change: dict[str, Any]) -> None:
    """Put values into a YAML or JSON file, by dotted names."""
    content = yaml.safe_load(file.read_text())
    for name, value in change.items():
        *parents, last = name.split(".")
        inner = content
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    file.write_text(json.dumps(content))  # JSON is YAML too


@pytest.fixture(scope="package")
def finished(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A recipe and the folder of its finished run; not to be changed."""
    root = tmp_path_factory.mktemp("finished")
    config = root / "tiny.yaml"
    text = recipe_text(tiny_models["llama"], benchmark_folder, root / "arc-run")
    text = text.replace("outer_steps: 3", "outer_steps: 2").replace("max_epochs: 2", "max_epochs: 1")
    config.write_text(text.replace("search:\n", "search:\n  illustrative: true\n"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flexora.verbs.run._call", lambda command: main(command[3:]))
        assert main(["run", "--config", str(config)]) == 0
    return config, root / "arc-run"


@pytest.fixture
def run_dir(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished[1], tmp_path / "arc-run"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub that huggingface_hub talks to, with a login and an empty cache."""
    with running_hub() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        _download.cache_clear()
        yield server
    _download.cache_clear()
