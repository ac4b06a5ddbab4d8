"""The report on small synthetic runs: what it says, what it leaves out, and what it must not let through."""

from __future__ import annotations

import base64
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from flexora.errors import FlexoraError
from flexora.report.cells import estimate
from flexora.report.html import write_report
from flexora.report.plots import accuracy_figure, course_figure, draw
from flexora.report.run import Course, Run
from flexora.report.summary import accuracy_finding, spans, summary
from flexora.scoring.results import Estimate, Metric, Results
from flexora.search.selection import Selection
from tests.report.conftest import ALPHA

PICTURES = ("alpha", "gates", "loss", "finetune", "accuracy")
PIXELS = 1350  # 9 inches at 150 dpi


def page_of(run_dir: Path) -> str:
    """The report without the pictures' data, in which any short string can occur by chance."""
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", write_report(run_dir).read_text(encoding="utf-8"))


def test_report_states_the_figures(run_dir: Path) -> None:
    """Summary, tables, settings and config hold the run's own numbers."""
    page = page_of(run_dir)
    assert "Flexora chose 3 of 6 layers (213,999 trainable parameters, 50% of plain LoRA&#39;s): 1, 2, 4." in page
    assert "On 500 of 2,376 test rows its acc_norm is 0.612 ± 0.022; plain LoRA 0.620 ± 0.022; the base model" in page
    for cell in (
        "+0.122 ± 0.019",
        "427,998",
        "+0.900",
        "75%",
        "q_proj, v_proj",
        "0.0625",
        "search.optimizer.lr",
        "1234",
        "f00d",
    ):
        assert cell in page, cell
    assert "&lt;b&gt;bold" in page


def test_report_stands_alone(run_dir: Path) -> None:
    """Every picture is embedded once, and nothing is loaded from elsewhere."""
    path = write_report(run_dir)
    assert path == run_dir / "report" / "report.html"
    embedded = re.findall(r"data:image/png;base64,([^\"]+)", path.read_text(encoding="utf-8"))
    beside = [path.with_name(f"{name}.png").read_bytes() for name in PICTURES]
    assert sorted(map(base64.b64decode, embedded)) == sorted(beside)
    page = page_of(run_dir)
    assert not re.search(r"http|<script|<link|@import|url\(", page)
    assert re.findall(r'(?:src|href)="([^"]*)', page) == ["data:image/png;base64,"] * len(PICTURES)


def test_report_escapes_what_it_shows(run_dir: Path, results: Results) -> None:
    """A hostile name is text."""
    results.benchmark = "<script>alert(1)</script>"
    results.write(run_dir / "evaluate" / "results.json")
    page = page_of(run_dir)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 1


def test_report_warns_of_cuts_and_short_searches(run_dir: Path, results: Results, selection: Selection) -> None:
    """The caveats appear when, and only when, they hold."""
    page = page_of(run_dir)
    assert "Only a cut of the test split was scored" in page
    assert "is illustrative" not in page
    assert "Development rows were scored" not in page
    results.rows, results.split = 2376, "development"
    results.write(run_dir / "evaluate" / "results.json")
    selection.search = {"illustrative": True}
    selection.write(run_dir / "search" / "selection.json")
    page = page_of(run_dir)
    assert "Only a cut" not in page
    assert "On all 2,376 development rows" in page
    assert "Development rows were scored" in page
    assert "is illustrative" in page


@pytest.mark.parametrize(
    ("missing", "heading"),
    [
        ("evaluate/results.json", "Accuracy"),
        ("search/history.csv", "Loss over the search"),
        ("finetune/history.csv", "Loss over the fine-tune"),
        ("search/config.yaml", "recipe of search"),
    ],
)
def test_missing_parts_are_left_out(run_dir: Path, missing: str, heading: str) -> None:
    """A section goes with its file, the rest stays."""
    assert f">{heading}<" in page_of(run_dir)
    (run_dir / missing).unlink()
    if missing.startswith("finetune"):
        shutil.rmtree(run_dir / "lora")
    page = page_of(run_dir)
    assert f">{heading}<" not in page
    assert "Flexora chose 3 of 6 layers" in page


def test_the_courses_of_the_fine_tunes_are_drawn(run_dir: Path) -> None:
    """Epochs without a validation loss are left out, and a fine-tune that has not come to one is none."""
    both = "Lowest validation loss: the fine-tune 2.125 after epoch 2 of 3, plain LoRA 2.375 after epoch 2 of 2"
    assert both in page_of(run_dir)
    axes = course_figure(Run.read(run_dir).courses).axes[0]
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines] == [
        [2.5, 2.0, 1.5], [2.25, 2.125, 2.5], [2.5, 2.0], [2.375]
    ]  # fmt: skip
    (run_dir / "finetune" / "history.csv").write_text("epoch,train_loss,val_loss\n")
    assert "Lowest validation loss: plain LoRA 2.375 after epoch 2 of 2" in page_of(run_dir)
    (run_dir / "lora" / "history.csv").write_text("epoch,train_loss,val_loss\n1,much,2\n")
    with pytest.raises(FlexoraError, match=r"cannot read .*lora/history.csv: .*'much'; fine-tune again"):
        Run.read(run_dir)


def test_report_without_a_search(run_dir: Path) -> None:
    """An evaluation alone makes a report."""
    shutil.rmtree(run_dir / "search")
    page = page_of(run_dir)
    assert "test rows Flexora&#39;s acc_norm is 0.612" in page
    assert ">Layers<" not in page


@pytest.mark.parametrize("write", [write_report, Run.read])
def test_empty_folder_is_one_line(tmp_path: Path, write: object) -> None:
    """Nothing to report: one line that names folder and remedy, and nothing written."""
    assert callable(write)
    with pytest.raises(FlexoraError) as caught:
        write(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert "search first" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("alpha_5", "beta", "5 layers"),
        ("train_loss", "loss", "train_loss"),
        ("2.4", "much", "much"),
        ("0.9", "nan", "finite"),
    ],
)
def test_damaged_history_is_named(run_dir: Path, old: str, new: str, named: str) -> None:
    """Each damage to the history is named with the file."""
    path = run_dir / "search" / "history.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(FlexoraError, match=named) as caught:
        Run.read(run_dir)
    assert "history.csv" in str(caught.value)


def test_plots_are_whole_pngs(run_dir: Path, tmp_path: Path) -> None:
    """Complete PNGs of the full width, and no temporary file beside them."""
    paths = draw(Run.read(run_dir), tmp_path / "pictures")
    assert {name: path.name for name, path in paths.items()} == {name: f"{name}.png" for name in PICTURES}
    for path in paths.values():
        data = path.read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert data.endswith(b"IEND\xaeB`\x82")
        assert int.from_bytes(data[16:20], "big") == PIXELS
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == sorted(f"{name}.png" for name in paths)


def test_plots_draw_one_step_and_no_movement(run_dir: Path, tmp_path: Path) -> None:
    """A single outer step with a NaN loss and alpha at zero can be drawn."""
    header = (run_dir / "search" / "history.csv").read_text().splitlines()[0]
    (run_dir / "search" / "history.csv").write_text(f"{header}\n1,1,nan,2.0,0,0,0,0,0,0,0\n")
    assert set(draw(Run.read(run_dir), tmp_path)) == set(PICTURES)


def test_one_epoch_is_not_shown_in_parts() -> None:
    figure = course_figure({"flexora": Course([1], [2.0], [2.1])})
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_xlim()
    assert [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high] == [1.0]


def test_module_gates_and_repeats(run_dir: Path, tmp_path: Path, selection: Selection) -> None:
    """A row and a bar for each chosen projection, a line for each repeat."""
    names = ["q_proj", "v_proj"]
    folded = selection.model_copy(
        update={
            "projections": names,
            "targets": {1: ["v_proj"], 2: names, 4: ["q_proj"]},
            "alpha": [[value, -value] for value in ALPHA],
            "gates": [[1.0, 1.0]] * 6,
            "stability": selection.stability and selection.stability.model_copy(update={"frequency": [[0.5, 0.5]] * 6}),
        }
    )
    folded.write(run_dir / "search" / "selection.json")
    units = [f"{layer}.{name}" for layer in range(6) for name in names]
    lines = [",".join(["outer_step,repeat,train_loss,validation_loss", *(f"alpha_{unit}" for unit in units)])]
    lines += [",".join([str(step + 1), str(step // 4 + 1), "2.0", "2.1", *["0.5"] * 12]) for step in range(8)]
    (run_dir / "search" / "history.csv").write_text("\n".join(lines) + "\n")
    run = Run.read(run_dir)
    assert run.history is not None
    assert [len(run.history.outer_steps[span]) for span in run.history.spans] == [4, 4]
    page = page_of(run_dir)
    assert "4 of 12 projections in 3 of 6 layers" in page
    assert "q_proj 2, 4; v_proj 1, 2" in page
    assert page.count("<td>2</td><td>") == 2
    assert set(draw(run, tmp_path)) == set(PICTURES)
    folded.model_copy(update={"projections": ["v_proj", "q_proj"]}).write(run_dir / "search" / "selection.json")
    with pytest.raises(FlexoraError, match="different searches"):
        Run.read(run_dir)


@pytest.mark.parametrize(
    ("metric", "heading", "spoken", "unit"),
    [
        ("loss", "Loss", "loss", "nats per answer token"),
        ("average", "Average accuracy", "average accuracy", "mean share of right answers"),
        ("exact_match", "Exact match", "exact_match", "share of right answers"),
    ],
)
def test_titles_name_the_metric(
    metric: Metric, heading: str, spoken: str, unit: str, run_dir: Path, results: Results
) -> None:
    """Heading, summary, picture and caption are of the primary metric, with and without a base to compare with."""
    alone = results.model_copy(update={"primary_metric": metric, "arms": results.arms[:1]})
    alone.arms[0].metrics = {metric: Estimate(value=0.5, stderr=0.1)}
    alone.write(run_dir / "evaluate" / "results.json")
    page = page_of(run_dir)
    assert f"<h2>{heading}</h2>" in page
    assert f"{spoken} is: the base model 0.500" in page
    assert accuracy_finding(alone) == f"{heading} on 500 of 2,376 test rows"
    assert f"Each dot is an arm&#39;s {heading.lower()}, its bar" in page
    assert accuracy_figure(alone).axes[0].get_xlabel().startswith(f"{unit} on 500")
    both = alone.model_copy(update={"arms": [alone.arms[0], results.arms[2]]})
    both.arms[1].over_base = {metric: Estimate(value=0.01, stderr=0.02)}
    assert accuracy_finding(both).startswith(f"Flexora is level with the base model in {spoken} (")


def test_words(results: Results) -> None:
    """Layer spans, signs, and what counts as a gain."""
    assert spans([0, 1, 5, 6, 7, 9]) == "0, 1, 5-7, 9"
    assert estimate(Estimate(value=-0.0004, stderr=0.01), sign=True) == "+0.000 ± 0.010"
    assert estimate(Estimate(value=-0.03, stderr=0.01), sign=True) == "\N{MINUS SIGN}0.030 ± 0.010"
    assert accuracy_finding(results).startswith("Flexora gains 0.122 ± 0.019 acc_norm")
    results.arms[2].over_base = {"acc_norm": Estimate(value=-0.03, stderr=0.02)}
    assert "level" in accuracy_finding(results)
    results.arms.pop(2)
    assert "acc_norm is: plain LoRA 0.620 ± 0.022; the base model 0.490" in summary(Run(None, None, results, {}))
