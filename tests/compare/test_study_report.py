"""The page and pictures of a study: what they say, what they draw, and that the committed files are enough for them."""

from __future__ import annotations

import re
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from flexora.compare.plots import accuracy_figure, gap_figure, layers_figure
from flexora.compare.report import main, read_study, with_table, write_study_report
from flexora.compare.rows import Outcome, ResultRow, write_lines
from flexora.compare.statistics import StudyStatistics, study_statistics
from flexora.compare.summary import caveats, summary
from flexora.compare.table import compact_markdown
from flexora.errors import FlexoraError
from tests.compare.invented import ARMS, LAYERS, outcome, result, scored_by_loss, study

PICTURES = ("accuracy.png", "gap.png", "layers.png")


@pytest.fixture(scope="module")
def statistics() -> StudyStatistics:
    return study_statistics(*study(), "lora")


def written(folder: Path, results: list[ResultRow], outcomes: list[Outcome], **settings: object) -> str:
    """The page of these rows, without the pictures' data."""
    write_lines(folder / "results.csv", results, ResultRow)
    write_lines(folder / "outcomes.csv", outcomes, Outcome)
    write_study_report(folder, "lora", settings=settings, title="Invented")
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", (folder / "report.html").read_text())


def test_page_is_made_again_from_its_three_files(tmp_path: Path) -> None:
    """By one command, to the byte; the README's table too."""
    page = written(tmp_path / "first", *study(arms=3, benchmarks=2), torch="2.13")
    assert "torch</td><td>2.13" in page
    assert "</small>Invented</h1>" in page
    assert page.count("<h2>") == 3 + len(("Over-fitting", "Layers", "Agreement of choices", "Costs", "Settings"))
    again = tmp_path / "again"
    again.mkdir()
    for name in ("results.csv", "outcomes.csv", "study.json"):
        shutil.copy(tmp_path / "first" / name, again)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- study again -->\nold\n<!-- end of study again -->\nafter\n")
    main([str(again), str(readme)])
    for name in ("table.md", "report.html", *PICTURES):
        assert (again / name).read_bytes() == (tmp_path / "first" / name).read_bytes(), name
    figures = read_study(again)[1]
    table = compact_markdown(figures)
    assert readme.read_text() == (f"before\n<!-- study again -->\n\n{table}\n<!-- end of study again -->\nafter\n")
    with pytest.raises(FlexoraError, match="put them where the table is to be"):
        with_table("no markers", "again", figures)


def test_page_stands_alone_and_escapes(tmp_path: Path) -> None:
    """Nothing is loaded from elsewhere, and names are text."""
    results, outcomes = study(arms=3, benchmarks=1)
    hostile = {"flexora": "flexora <script>alert(1)</script>"}
    results = [row.model_copy(update={"arm": hostile.get(row.arm, row.arm)}) for row in results]
    outcomes = [line.model_copy(update={"arm": hostile.get(line.arm, line.arm)}) for line in outcomes]
    page = written(tmp_path, results, outcomes)
    assert not re.search(r"http|<script|<link|@import|url\(", page)
    assert page.count("&lt;script&gt;") > 2
    assert re.findall(r'(?:src|href)="([^"]*)', page) == ["data:image/png;base64,"] * len(PICTURES)
    assert 'class="own"><td>flexora' in page


@pytest.mark.parametrize("done", [0, 1])
def test_page_of_a_study_that_has_just_begun(tmp_path: Path, done: int) -> None:
    """No trial, or the base model alone."""
    results, outcomes = study(arms=1, benchmarks=1)
    page = written(tmp_path, results[:done], outcomes[:done])
    assert ("base has the highest acc_norm of 1 arms" if done else "No trial has been run yet.") in page
    assert not list(tmp_path.glob("*.png"))


def two_arms(skill: int, rows: int = 1000) -> StudyStatistics:
    """A reference that is right on 500 rows and flexora on ``skill``, with half of the parameters."""
    results = [result("lora", seed, right=500, rows=rows, parameters=600) for seed in range(5)]
    results += [result("flexora", seed, right=skill, rows=rows, parameters=300) for seed in range(5)]
    return study_statistics(results, [outcome(row) for row in results], "lora")


@pytest.mark.parametrize(
    ("skill", "verdict"),
    [(530, "above"), (470, "below"), (501, "not told apart from"), (500, "not told apart from")],
)
def test_summary_says_no_more_than_the_interval(skill: int, verdict: str) -> None:
    text = summary(two_arms(skill), "flexora", two_arms(skill))
    assert f"with 300 trainable parameters, 50% of lora's: {verdict} lora (0.500 ± 0.000; " in text
    assert f"flexora is {verdict} lora, which has 200% of flexora's parameters" in text
    assert "above" not in text or verdict == "above"


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([1.90, 1.92, 1.91], "better than lora (2.000 ± 0.000; -0.090 ± 0.006 nats)"),
        ([2.10, 2.12, 2.11], "worse than lora (2.000 ± 0.000; +0.110 ± 0.006 nats)"),
        ([1.8, 2.1, 1.95], "not told apart from lora (2.000 ± 0.000; -0.050 ± 0.087 nats)"),
        ([1.9], "not judged against lora (2.000; -0.100 nats)"),
    ],
)
def test_of_a_loss_the_lowest_is_the_best(losses: list[float], verdict: str) -> None:
    """Two standard errors over seeds tell arms apart; one seed does not."""
    rows = [result("base", None, loss=4.0, layers=None, parameters=0)]
    for seed, loss in enumerate(losses):
        fit = {"train_loss": 1.5, "last_validation_loss": 2.0}
        rows += [result("lora", seed, loss=2.0, **fit), result("flexora", seed, loss=loss, parameters=200, **fit)]
    found = study_statistics([scored_by_loss(row) for row in rows], [], "lora")
    text = summary(found, "flexora", None).replace("\N{MINUS SIGN}", "-")
    best = "flexora" if min(losses) == losses[0] < 2 else "lora"
    assert text.startswith(f"On own {best} has the lowest loss of 3 arms, ")
    assert f"50% of lora's: {verdict}. flexora's validation loss ends 0.50 nats above its training loss" in text
    assert "highest" not in text
    seeds, paired = caveats(found, {})
    assert seeds.startswith("Only 3 seeds" if len(losses) > 1 else "One seed: nothing tells how training runs scatter")
    assert paired.startswith("own: outcomes.csv tells no right and wrong rows, so differences are paired by seed.")
    figure = accuracy_figure(found, "flexora")
    assert figure is not None
    assert figure.axes[0].get_ylabel() == "loss, lower is better"


def test_summary_tells_unlike_benchmarks_one_by_one() -> None:
    results, outcomes = study(arms=3, benchmarks=2)
    rows = [scored_by_loss(row) if row.benchmark == "Bench1" else row for row in results]
    found = study_statistics(rows, outcomes, "lora")
    pair = [row for row in rows if row.arm in ("flexora", "random")]
    text = summary(found, "flexora", study_statistics(pair, outcomes, "random"))
    assert re.match(
        r"On Bench0 \w+ has the highest acc_norm of 4 arms, .* On own \w+ has the lowest loss of 4 arms, ", text
    )
    assert (
        len(re.findall(r"flexora is (above|below|better than|worse than|not told apart from) random, which", text)) == 2
    )
    assert "No means over the benchmarks" in " ".join(caveats(found, {}))
    figure = accuracy_figure(found, "flexora")
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == ["acc_norm", "loss, lower is better"]


def of_arms(*rows: ResultRow) -> StudyStatistics:
    return study_statistics(rows, [outcome(row) for row in rows], "lora")


def test_with_unequal_seeds_the_best_arm_is_told_by_differences() -> None:
    """Its second seed was the worse one for all, and is not there: its mean is higher, its difference is not."""
    rows = [result("lora", seed, right=right, rows=100) for seed, right in enumerate((60, 40))]
    rows += [result("flexora", 0, right=55, rows=100)]
    found = of_arms(*rows)
    assert summary(found, "flexora", None).startswith("On ArcEasy lora has the highest acc_norm of 2 arms, 0.500")
    unequal = " ".join(caveats(found, {}))
    assert "flexora: fewer seeds than others on some benchmark" in unequal
    assert "it is the latter that compare" in unequal


def test_summary_of_unfinished_studies(statistics: StudyStatistics) -> None:
    assert summary(study_statistics([], [], "lora"), None, None) == "No trial has been run yet."
    text = summary(statistics, None, None)
    assert text.startswith("In the mean over Bench0, Bench1 and Bench2 lora has the highest mean score of 12 arms, 0.6")
    assert text.endswith(".")


def test_caveats_appear_when_they_hold(statistics: StudyStatistics) -> None:
    """Few seeds, rows alone, development rows, cuts, and arms that lack a benchmark."""
    (few,) = caveats(statistics, {})
    assert few.startswith("Only 3 seeds: standard errors over them are rough themselves, and intervals are too narrow")
    assert caveats(two_arms(500), {"ArcEasy": 1000}) == []
    (cut,) = caveats(two_arms(500), {"ArcEasy": 2376})
    assert cut.startswith("ArcEasy: a cut of 1,000 of the 2,376 test rows")
    results, outcomes = study(arms=2, benchmarks=2, seeds=1)
    results = [row.model_copy(update={"split": "development"}) for row in results]
    lacking = [row for row in results if (row.arm, row.benchmark) != ("flexora", "Bench1")]
    single, developed, missing = caveats(study_statistics(lacking, outcomes, "lora"), {})
    assert single.startswith("One seed: the intervals are over rows alone")
    assert developed.startswith("Bench0 and Bench1: scored on development rows")
    assert missing.startswith("Not run (yet): flexora on Bench1.")


def boxes(figure: Figure) -> list[list[tuple[float, float, float, float]]]:
    """Extents of the annotations' text of each panel, in pixels: left, bottom, right, top."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    panels = [[child for child in axes.get_children() if isinstance(child, Annotation)] for axes in figure.axes]
    return [[super(Annotation, child).get_window_extent(renderer).extents for child in panel] for panel in panels]


@pytest.mark.parametrize("large", [1, 6])
def test_names_of_arms_do_not_touch(large: int) -> None:
    """Eleven arms in four panels, on a linear and on a logarithmic axis; every name within the picture."""
    results, outcomes = study()
    grown = {"rsLoRA": large, "DoRA": large}
    results = [
        row.model_copy(update={"trainable_parameters": row.trainable_parameters * grown.get(row.arm, 1)})
        for row in results
    ]
    figure = accuracy_figure(study_statistics(results, outcomes, "lora"), "flexora")
    assert figure is not None
    assert {axes.get_xscale() for axes in figure.axes} == {"linear" if large == 1 else "log"}
    for panel in boxes(figure):
        assert len(panel) == 1 + len(ARMS)
        assert all(right <= figure.bbox.width for _, _, right, _ in panel)
        for one, other in combinations(panel, 2):
            apart = one[0] > other[2] or other[0] > one[2] or one[1] > other[3] or other[1] > one[3]
            assert apart, (one, other)


def test_accuracy_figure_holds_the_figures(statistics: StudyStatistics) -> None:
    """Dots with their standard errors; a base that is near is a line, one that is far is told in words."""
    figure = accuracy_figure(statistics, "flexora")
    assert figure is not None
    for axes, arms in zip(figure.axes, [statistics.means, *(part.arms for part in statistics.benchmarks)], strict=True):
        bars = [bar.lines for bar in axes.containers]
        drawn = sorted(float(line.get_ydata()[0]) for line, _, _ in bars)
        assert drawn == pytest.approx(sorted(arm.score.value for arm in arms.values() if arm.parameters))
        lengths = [float(np.ptp(ends[0].get_segments()[0][:, 1])) for _, _, ends in bars]
        errors = [2 * (arm.score.stderr or 0.0) for arm in arms.values() if arm.parameters]
        assert sorted(lengths) == pytest.approx(sorted(errors))
        (said,) = (text.get_text() for text in axes.texts if text.get_text().startswith("base"))
        dashed = [line for line in axes.lines if line.get_linestyle() != "None" and len(line.get_xdata()) == 2]
        base = arms["base"].score.value
        near = base >= axes.get_ylim()[0]
        assert said == (f"base {base:.3f}" if near else f"base: {base:.3f}, below this panel")
        assert bool(dashed) == near


def test_arms_of_one_size_stand_in_the_studys_order() -> None:
    """By their scores they would look like a trend."""
    shares = {"lora": 62, "one": 70, "two": 50, "three": 60}
    found = of_arms(*(result(arm, right=right, rows=100) for arm, right in shares.items()))
    figure = accuracy_figure(found, None)
    assert figure is not None
    dots = [bar.lines[0] for bar in figure.axes[0].containers]
    places = {round(100 * float(dot.get_ydata()[0])): float(dot.get_xdata()[0]) for dot in dots}
    assert [right for right, _ in sorted(places.items(), key=lambda place: place[1])] == list(shares.values())


def test_gap_figure_joins_training_and_validation(statistics: StudyStatistics) -> None:
    figure = gap_figure(statistics, "flexora")
    assert figure is not None
    for axes, part in zip(figure.axes, statistics.benchmarks, strict=True):
        trained = [arm for arm in part.arms.values() if arm.train_loss and arm.last_validation_loss and arm.gap]
        assert [label.get_text() for label in axes.get_yticklabels()] == [arm.arm for arm in trained] == list(ARMS)
        segments = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
        ends = [[arm.train_loss.value, arm.last_validation_loss.value] for arm in trained]  # type: ignore[union-attr]
        assert segments == [pytest.approx(pair) for pair in ends]
        assert [text.get_text() for text in axes.texts] == [f"{arm.gap.value:+.2f}" for arm in trained]  # type: ignore[union-attr]
    assert gap_figure(two_arms(500), None) is None


def test_layers_figure_shows_how_often(statistics: StudyStatistics) -> None:
    """Only arms that choose have a strip."""
    figure = layers_figure(statistics, "flexora", LAYERS)
    assert figure is not None
    choosing = ["flexora", "random", "last", "gradient norm", "LoRA-drop"]
    for axes, part in zip(figure.axes, statistics.benchmarks, strict=True):
        assert [label.get_text() for label in axes.get_yticklabels()] == choosing
        (mesh,) = (child for child in axes.get_children() if isinstance(child, QuadMesh))
        shares = [[part.chosen[arm].get(layer, 0.0) for layer in range(LAYERS)] for arm in choosing]
        np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(len(choosing), LAYERS), shares)
    assert layers_figure(two_arms(500), None, 4) is None
