"""The wheel: it holds recipes and zoo, and works outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel would install."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def call(unpacked: Path, place: Path, *arguments: str) -> str:
    """Run the unpacked flexora in a folder that is no checkout."""
    code = (
        "import sys, flexora, flexora.cli; "
        f"assert flexora.__file__.startswith({str(unpacked)!r}), flexora.__file__; "
        "sys.exit(sum(flexora.cli.main(verb.split()) for verb in sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_recipes_and_zoo_come_along(unpacked: Path, tmp_path: Path) -> None:
    shown = call(
        unpacked, tmp_path, "recipes ls", "recipes cp own/multiple_choice mine.yaml", "zoo ls", "validate mine.yaml"
    )
    assert "llama/llama-3-8b/hellaswag" in shown
    assert "llama-3-8b/hellaswag" in shown
    assert "mine.yaml: ok" in shown


@pytest.mark.parametrize("folder", ["recipes", "model_zoo"])
def test_nothing_is_left_behind(unpacked: Path, folder: str) -> None:
    def files(root: Path) -> set[Path]:
        return {path.relative_to(root) for path in root.rglob("*") if path.is_file()}

    # The zoo's list and its studies are for people.
    wanted = {
        path for path in files(ROOT / folder) if folder == "recipes" or path.parts[0] not in ("README.md", "studies")
    }
    assert files(unpacked / "flexora" / folder) == wanted
