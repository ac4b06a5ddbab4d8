"""One finished study of a tiny model, and another machine that is given its trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flexora.cli import main
from tests.compare.test_compare import ARMS, in_process, write_study
from tests.tiny import recipe_text

Lines = dict[str, dict[str, Any]]
#: In the settings of the study.
TOKEN = "hf_" + "a1B2" * 9
PASSWORD = 'correct "hörse" battery'


@pytest.fixture(scope="session")
def finished(
    tiny_models: dict[str, Path],
    benchmark_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A study's recipe, which holds secrets, and beside it the finished study; not to be changed."""
    root = tmp_path_factory.mktemp("finished")
    recipe = root / "recipe.yaml"
    recipe.write_text(recipe_text(tiny_models["llama"], benchmark_folder, root / "out"))
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(root / "logs"), "prefix": "a key of 40 digits"}}
    arms = {name: ARMS[name] for name in ("base", "LoRA", "Flexora", "warm")}
    arms["Flexora"] = arms["Flexora"] | {"settings": {"search": {"trainer": {"logger": logger}}}}
    settings = {
        "data": {"init_args": {"train_rows": 16}},
        "finetune": {"trainer": {"max_epochs": 2, "logger": logger, "default_root_dir": f"{root}/{TOKEN} {PASSWORD}"}},
        "trainer.logger": logger,
    }
    study = write_study(root, recipe, arms=arms, seeds=[0], settings=settings)
    with pytest.MonkeyPatch.context() as patch:
        in_process(patch)
        patch.setenv("MY_PASSWORD", PASSWORD)
        assert main(["compare", "--config", str(study)]) == 0
    return study


@pytest.fixture
def lines(finished: Path) -> Lines:
    """The finished trials, by name."""
    text = (finished.parent / "study" / "compare" / "trials.jsonl").read_text()
    return {line["trial"]: line for line in map(json.loads, text.splitlines())}


class Elsewhere:
    """Another machine's folder of the study."""

    def __init__(self, study: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self._capsys = root / "elsewhere", capsys
        self.command = ["compare", "--config", str(study), "--output_dir", str(self.root)]
        self.file = root / "given.jsonl"

    def take(self, *lines: dict[str, Any], only: str = "tiny/base/0") -> tuple[int, str]:
        """Give it finished trials; its exit status, and all that it prints."""
        self.file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self._capsys.readouterr()
        status = main([*self.command, "--only", only, "--finished", str(self.file)])
        printed = self._capsys.readouterr()
        return status, printed.out + printed.err

    def files(self) -> dict[Path, bytes]:
        """All that lies there, but for locks."""
        found = self.root.rglob("*")
        return {file: file.read_bytes() for file in found if file.is_file() and file.name != ".trial.lock"}

    def refuses(self, *lines: dict[str, Any]) -> str:
        """Give it what it must refuse in one line, leaving everything as it was."""
        before = self.files()
        status, said = self.take(*lines)
        assert (status, said.count("\n")) == (2, 1), said
        assert self.files() == before
        return said


@pytest.fixture
def elsewhere(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Elsewhere:
    """Another machine, on which nothing is done."""
    return Elsewhere(finished, tmp_path, capsys)
