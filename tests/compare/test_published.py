"""The studies of the zoo: their tables and pictures are of their rows, and their recipes still make the same trials."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexora.cli import main
from flexora.compare.report import read_study, with_table
from flexora.compare.table import study_markdown

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "model_zoo" / "studies").iterdir())


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_the_tables_are_those_of_the_rows(folder: Path) -> None:
    study = read_study(folder)[1]
    readme = (ROOT / "README.md").read_text()
    assert with_table(readme, folder.name, study) == readme
    assert (folder / "table.md").read_text() == study_markdown(study)


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_the_recipe_goes_on_from_the_published_trials(folder: Path, tmp_path: Path) -> None:
    """None of its settings has changed, and the rows are those of the trials."""
    recipe = ROOT / "recipes" / "studies" / f"{folder.name}.yaml"
    first = read_study(folder)[2][0]
    assert first.seed is None, "the first row is the base model's"
    done = f"{first.benchmark.lower()}/{first.arm}/0"
    command = ["compare", "--config", str(recipe), "--output_dir", str(tmp_path), "--only", done]
    assert main([*command, "--finished", str(folder / "trials.jsonl")]) == 0
    for name in ("results.csv", "outcomes.csv", "trials.jsonl"):
        assert (tmp_path / "compare" / name).read_bytes() == (folder / name).read_bytes()
