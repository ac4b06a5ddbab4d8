"""A whole study on a tiny model: its rows against the files of its trials, and what a second call does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from flexora.cli import main
from flexora.compare import choice
from flexora.compare.kept import kept_row
from flexora.compare.rows import Outcome, ResultRow, read_lines
from flexora.runfolder import RunFolder
from flexora.search.selection import Selection

ARMS: dict[str, Any] = {
    "base": {"layers": "NoLayers"},
    "LoRA": {"layers": "AllLayers", "learning_rates": [0.01, 0.03]},
    "Flexora": {"layers": "Search", "learning_rate_of": "LoRA"},
    "one": {
        "layers": {"class_path": "FromSearch", "init_args": {"arm": "Flexora", "rule": {"class_path": "TopK"}}},
        "settings": {"adapter": {"init_args": {"target_modules": "all-linear"}}},
    },
    "warm": {
        "layers": {"class_path": "FromSearch", "init_args": {"arm": "Flexora"}},
        "settings": {"finetune": {"warm_start": True}},
    },
    "probe": {"layers": {"class_path": "GradientNorm", "init_args": {"like": "Flexora", "batches": 1}}},
}
ARMS["one"]["layers"]["init_args"]["rule"]["init_args"] = {"k": 1}


class InProcess:
    """A step that runs here: as a process it would import torch and transformers again."""

    def __init__(self, command: Sequence[str], log: IO[bytes], environment: dict[str, str]) -> None:
        started = {"flexora": main, "flexora.compare.choice": choice.main}[command[2]]
        self.status = started(command[3:])

    def poll(self) -> int:
        return self.status

    def terminate(self) -> None:
        """It has ended."""

    wait = terminate


def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a study's steps run in this process."""
    monkeypatch.setattr("flexora.compare.schedule._call", InProcess)
    monkeypatch.setattr("flexora.compare.schedule.TICK", 0)


@pytest.fixture
def study(recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's recipe, whose steps run in this process."""
    in_process(monkeypatch)
    return write_study(tmp_path, recipe())


def write_study(tmp_path: Path, recipe: Path, **changed: Any) -> Path:
    """Write a study over one tiny benchmark."""
    sections = {
        "output_dir": str(tmp_path / "study"),
        "recipes": {"Tiny": str(recipe)},
        "settings": {"data": {"init_args": {"train_rows": 16}}, "finetune": {"trainer": {"max_epochs": 2}}},
        "seeds": [0, 1],
        "arms": ARMS,
        "reference": "LoRA",
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(sections | changed, sort_keys=False))
    return file


def test_a_study(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "study"
    assert main(["compare", "--config", str(study), "--only", "tiny/*/0"]) == 0
    rows = {(row.arm, row.seed): row for row in read_lines(place / "compare" / "results.csv", ResultRow)}
    assert list(rows) == [("base", None), *((arm, 0) for arm in ARMS if arm != "base")]
    _check_tuning(rows, place / "trials" / "tiny")
    searched = Selection.read(place / "trials/tiny/flexora/0/search/selection.json")
    row = rows["Flexora", 0]
    assert row.adapted_layers == len(searched.layers)
    assert row.select_seconds > 0
    assert row.peak_memory_mb > 100
    assert rows["one", 0].adapted_layers == 1
    assert rows["one", 0].trainable_parameters == 2 * (32 + 32 + 32 + 16 + 32 + 16 + 32 + 32 + 3 * (32 + 48))
    assert rows["warm", 0].layers == row.layers
    assert json.loads((place / "trials/tiny/warm/0/finetune/done.json").read_text())["initial_adapter"]
    assert rows["probe", 0].adapted_layers == row.adapted_layers
    assert rows["probe", 0].select_seconds > 0
    for out in read_lines(place / "compare" / "outcomes.csv", Outcome):
        own = rows[out.arm, out.seed]
        assert out.unpack().mean() == pytest.approx(getattr(own, out.metric), abs=1e-7)
        assert out.rows == own.rows == 13
    table = (place / "compare" / "table.md").read_text()
    assert all(f"| {arm} |" in table for arm in ARMS)
    assert "4 layers" in (place / "compare" / "report.html").read_text()
    capsys.readouterr()
    (place / "compare" / "table.md").unlink()
    assert main(["compare", "--results", str(place / "compare")]) == 0
    assert (place / "compare" / "table.md").read_text() == table
    shown = capsys.readouterr().out
    assert all(arm in shown for arm in ARMS)
    before = {file: file.stat().st_mtime_ns for file in place.rglob("*") if "compare" not in file.parts}
    assert main(["compare", "--config", str(study), "--only", "tiny/*/0"]) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    _check_that_another_machine_goes_on(study, place, tmp_path / "elsewhere", capsys)
    _check_that_what_was_taken_is_compared(study, place, capsys)
    text = study.read_text()
    study.write_text(text.replace("train_rows: 16", "train_rows: 15"))
    assert main(["compare", "--config", str(study)]) == 2
    assert "was made with other settings (settings.data.init_args.train_rows 16 -> 15)" in capsys.readouterr().err


def _check_that_another_machine_goes_on(
    study: Path, place: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the finished trials alone it makes the same results; what needs an adapter that is not there is refused."""
    finished = place / "compare" / "trials.jsonl"
    command = ["compare", "--config", str(study), "--output_dir", str(elsewhere), "--only", "tiny/*/0"]
    assert main([*command, "--finished", str(finished)]) == 0
    assert f"{finished}: 6 trials taken over\n" in capsys.readouterr().out
    for name in ("results.csv", "outcomes.csv", "trials.jsonl", "table.md"):
        assert (elsewhere / "compare" / name).read_bytes() == (place / "compare" / name).read_bytes()
    assert not list(elsewhere.rglob("*.safetensors"))
    lines = finished.read_text().splitlines()
    names = [json.loads(line)["trial"] for line in lines]
    for wrong, said in (
        (lines[0].replace('"train_rows": 16', '"train_rows": 9'), "was made with other settings (settings.data.init"),
        (lines[1].replace('"seed": 0', '"seed": "x"'), "line 1: row.seed: "),
        ("{", "line 1: line: Invalid JSON"),
    ):
        bad = elsewhere / "bad.jsonl"
        bad.write_text(wrong)
        assert main([*command, "--finished", str(bad)]) == 2
        assert said in capsys.readouterr().err
    # Without its line a rule on the search's alpha is made anew, and charged for the search of the other machine.
    shutil.rmtree(elsewhere)
    elsewhere.mkdir()
    (elsewhere / "some.jsonl").write_text("\n".join(lines[: names.index("tiny/one/0")]))
    assert main([*command[:-1], "tiny/one/0", "--finished", str(elsewhere / "some.jsonl")]) == 0
    folders = [RunFolder(root / "trials" / "tiny" / "one" / "0") for root in (elsewhere, place)]
    charged = [kept_row(folder).select_seconds for folder in folders]
    assert charged[0] == charged[1] > 0
    # Without its line the warm start is made anew, and finds no LoRA to start from.
    shutil.rmtree(elsewhere)
    elsewhere.mkdir()
    (elsewhere / "all_but_one.jsonl").write_text("\n".join(lines[: names.index("tiny/warm/0")]))
    assert main([*command[:-1], "tiny/warm/0", "--finished", str(elsewhere / "all_but_one.jsonl")]) == 1
    assert "tiny/warm/0: fine-tune: " in (said := capsys.readouterr().err)
    assert "choice/adapter" in said


def _check_that_what_was_taken_is_compared(study: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A search that is done again and chooses as before costs the others nothing; another choice is refused."""
    trials = place / "trials" / "tiny"
    finished = (trials / "probe" / "0" / "row.json").stat().st_mtime_ns
    shutil.rmtree(trials / "flexora" / "0")
    assert main(["compare", "--config", str(study), "--only", "tiny/probe/0"]) == 0
    assert (trials / "probe" / "0" / "row.json").stat().st_mtime_ns == finished
    selection = trials / "flexora" / "0" / "search" / "selection.json"
    found = Selection.read(selection)
    found.model_copy(update={"alpha": [value + 1 for value in found.alpha or []]}).write(selection)
    capsys.readouterr()
    assert main(["compare", "--config", str(study), "--only", "tiny/base/0"]) == 2
    assert "one/0 was made with other settings (taken.tiny/flexora/0 layers.alpha" in capsys.readouterr().err
    found.write(selection)


def _check_tuning(rows: dict[tuple[str, int | None], ResultRow], trials: Path) -> None:
    """The learning rate with the lower validation loss was kept, its adapter scored, and the other one paid for."""
    folder = trials / "lora" / "0"
    losses = {}
    for rate in ("0.01", "0.03"):
        lines = (folder / f"finetune-{rate}" / "history.csv").read_text().splitlines()[1:]
        losses[float(rate)] = min(float(line.split(",")[2]) for line in lines)
    best = min(losses, key=losses.__getitem__)
    row = rows["LoRA", 0]
    assert (row.learning_rate, row.validation_loss) == (best, pytest.approx(losses[best], rel=1e-6))
    assert row.tune_seconds > 0
    scored = json.loads((folder / "evaluate" / "done.json").read_text())["evaluate"]["arms"]
    assert scored == [str(folder / f"finetune-{best:g}" / "adapter")]
    assert rows["Flexora", 0].learning_rate == best
    assert rows["one", 0].learning_rate == 0.01  # the recipe's own


def test_a_study_is_checked_before_its_first_trial(
    study: Path, tmp_path: Path, recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ARMS | {"x": {"layers": "Search", "settings": {"search": {"outer_stepz": 1}}}}
    file = write_study(tmp_path, recipe(), arms=arms)
    for verb in (["compare", "--config", str(file)], ["validate", str(file)]):
        assert main(verb) == 2
        assert "Tiny, x: " in (said := capsys.readouterr().err)
        assert "outer_stepz" in said
    assert not (tmp_path / "study").exists()
    assert main(["compare", "--config", str(study), "--only", "nothing"]) == 2
    assert "no trial matches; they are called such as tiny/base/0" in capsys.readouterr().err
