"""Train rows of the reported split: left out, counted and named; shared questions are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from flexora.backbone.loading import Backbone
from flexora.data.benchmarks import MULTIPLE_CHOICE, ArcEasy, HellaSwag, Mmlu, Piqa
from flexora.data.hygiene import text_key
from flexora.data.multiple_choice import MultipleChoiceDataModule
from tests.data.test_benchmarks import GOLDEN
from tests.tiny import write_jsonl


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is  hot?\nThe sun.", "what is hot - the SUN"),
        ("caf\u00e9", "cafe\u0301"),
        ("\uff21\uff22\u00a01", "ab 1"),
        ("Stra\u00dfe", "STRASSE"),
        ("a well-known\u200b fact", "A well known fact."),
    ],
    ids=["punctuation", "composed", "full width", "sharp s", "hyphen"],
)
def test_texts_that_are_the_same(one: str, other: str) -> None:
    assert text_key(one) == text_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("what is hot", "what is not"),
        ("2 + 2", "2 = 2"),
        ("how is it \U0001f600", "how is it \U0001f622"),
        ("\u0915\u093f", "\u0915\u0940"),
        ("?!", "..."),
        ("4 - 2", "4 / 2"),
        ("x = -3", "x = 3"),
        ("50%", "50"),
    ],
    ids=["letters", "symbols", "emoji", "vowel signs", "punctuation alone", "operators", "minus", "per cent"],
)
def test_texts_that_are_not(one: str, other: str) -> None:
    assert text_key(one) != text_key(other)


def other(benchmark: type[MultipleChoiceDataModule], row: dict[str, Any]) -> dict[str, Any]:
    """The row with other words in its question."""
    field = {Piqa: "goal", HellaSwag: "ctx_a"}.get(benchmark) or next(
        name for name in ("question", "question_stem", "sentence") if name in row
    )
    return row | {field: f"Elsewhere and later: {row[field]}"}


@pytest.mark.parametrize(
    "benchmark", [benchmark for benchmark in MULTIPLE_CHOICE if benchmark.trained], ids=lambda one: one.__name__
)
def test_no_train_row_occurs_in_the_reported_split(
    benchmark: type[MultipleChoiceDataModule],
    tmp_path: Path,
    tiny_models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = GOLDEN[benchmark].row
    spaced = {name: f" {value.upper()} " if name == "goal" else value for name, value in row.items()}
    write_jsonl(tmp_path / "train.jsonl", [row, other(benchmark, row), spaced, row])
    write_jsonl(tmp_path / f"{benchmark.reported_split}.jsonl", [row])
    data = benchmark(Backbone(str(tiny_models["llama"])), str(tmp_path))
    assert data.train_split["line"] == [2]
    assert not set(data.train_split["said"]) & set(data.reported_split_rows["said"])
    split = data.reported_split
    told = f"data: {benchmark.__name__}: 3 train rows occur in the {split} split and are left out: line 1, 3, 4\n"
    assert told in capsys.readouterr().err


def test_a_shared_question_is_kept_and_told(
    tmp_path: Path, tiny_models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"goal": "Rest.", "sol1": "Sit.", "sol2": f"Lie {number}.", "label": 1} for number in range(6)]
    write_jsonl(tmp_path / "train.jsonl", [*rows[:5], rows[5] | {"goal": "Eat."}])
    write_jsonl(tmp_path / "validation.jsonl", rows[:4])
    data = Piqa(Backbone(str(tiny_models["llama"])), str(tmp_path))
    assert data.train_split["line"] == [5, 6]
    told = capsys.readouterr().err
    assert "4 train rows occur in the validation split and are left out: line 1, 2, 3, ...\n" in told
    assert "1 train rows ask a question of the validation split with another answer; kept\n" in told


def test_without_a_reported_split_every_row_stays(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    write_jsonl(tmp_path / "train.jsonl", [GOLDEN[ArcEasy].row] * 2)
    assert len(ArcEasy(Backbone(str(tiny_models["llama"])), str(tmp_path)).train_split) == 2
    assert not Mmlu.trained
