"""The studies of the zoo: their tables and pictures are of their rows, and their recipes still make the same trials."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from statistics import correlation, mean

import pytest

from flexora.cli import main
from flexora.compare.finished import read_trials
from flexora.compare.report import read_study, with_table
from flexora.compare.statistics import study_statistics
from flexora.compare.table import signed, study_markdown
from flexora.search.stability import mean_jaccard
from flexora.search.units import flatten

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


def test_the_readme_says_how_alike_first_order_and_unrolled_searches_are() -> None:
    trials = read_trials(ROOT / "model_zoo" / "studies" / "smollm2" / "trials.jsonl")
    found = {name: one.selection for name, one in trials.items() if one.selection and one.selection.alpha}
    arms = {arm: sorted(name for name in found if f"/{arm}/" in name) for arm in ("flexora", "flexora-first-order")}
    pairs = [(found[name], found[name.replace("/flexora/", "/flexora-first-order/")]) for name in arms["flexora"]]
    assert len(pairs) == len(arms["flexora-first-order"])
    alike = [correlation(flatten(a.alpha or []), flatten(b.alpha or [])) for a, b in pairs]
    overlap = mean(mean_jaccard([a.layers, b.layers]) for a, b in pairs)
    seeds = [
        mean_jaccard([found[one].layers, found[other].layers])
        for names in arms.values()
        for one, other in combinations(names, 2)
        if one.split("/")[0] == other.split("/")[0]
    ]
    said = " ".join((ROOT / "README.md").read_text().split())
    assert (
        f"In the study's {len(pairs)} pairs of searches (30 outer steps each, on the same rows) alpha correlates by "
        f"{min(alike):.3f} to {max(alike):.3f} between the two, and the chosen layers overlap by {overlap:.2f} "
        f"(Jaccard, mean; between two seeds by {mean(seeds):.2f})"
    ) in said


@pytest.mark.parametrize(
    ("own", "other"),
    [
        *(("Flexora", other) for other in ("LoRA q,v", "LoRA q,v, r 4", "random layers", "gradient norm")),
        *(("Flexora", other) for other in ("LoRA-drop", "last layers")),
        ("Flexora, first order", "LoRA q,v"),
        *(("Flexora, modules", other) for other in ("LoRA q,v", "LoRA q,v, r 4")),
    ],
)
def test_the_readme_says_how_the_own_arms_stand_to_others(own: str, other: str) -> None:
    _, _, results, outcomes = read_study(ROOT / "model_zoo" / "studies" / "smollm2")
    pair = study_statistics([row for row in results if row.arm in (own, other)], outcomes, other)
    said = " ".join((ROOT / "README.md").read_text().split("## Results")[1].split())
    assert f"{signed(pair.means[own].difference, pair.metric)} over {other}" in said
    if own == "Flexora, modules":
        assert f"{signed(pair.means[own].loss_difference, 'loss')} nats against {other}" in said
