"""Train rows of the reported split: left out, counted and named; shared questions are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flexora.backbone.loading import Backbone
from flexora.data.benchmarks import MULTIPLE_CHOICE, ArcEasy, HellaSwag, Mmlu, Piqa
from flexora.data.hygiene import text_key, without_trained
from flexora.data.mixture import CommonsenseMixture
from flexora.data.multiple_choice import MultipleChoiceDataModule
from flexora.errors import FlexoraError
from tests.data.test_benchmarks import GOLDEN
from tests.tiny import write_jsonl

pytestmark = pytest.mark.usefixtures("own_cache")


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


def twins(count: int) -> list[dict[str, Any]]:
    """Piqa rows, each once more in capitals and with other wrong answers: the same rows by what they say."""
    rows = [{"goal": f"Rest {n}.", "sol1": "Sit.", "sol2": f"Lie {n}.", "label": 0} for n in range(count)]
    return [*rows, *(row | {"goal": row["goal"].upper(), "sol2": "Run."} for row in rows)]


@pytest.mark.parametrize("draw", [0, 1, 2])
def test_no_held_out_row_is_trained_on(
    draw: int, tmp_path: Path, tiny_models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "train.jsonl", twins(16))
    settings = {"source": str(tmp_path), "validation_rows": 12, "train_rows": 14}
    data = Piqa(Backbone(str(tiny_models["llama"])), **settings)
    train, held_out = data.split(draw)
    drawn = dict(zip(data.train_split["line"], data.train_split["said"], strict=True))
    order = [data.train_split["line"][place] for place in data._train_order[:26]]
    # What the two parts have in common is found by hand; the rest of the draw is as it was.
    rest = [line for line in order if line not in train["line"]]
    if draw == 0:
        assert train["line"] == order[12:]
        expected = [line for line in rest if drawn[line] not in set(train["said"])]
        assert held_out["line"] == expected
    assert len(train) == 14
    assert not set(train["said"]) & set(held_out["said"])
    lost = 12 - len(held_out)
    assert 0 < lost < 12
    of_repeat = f" of repeat {draw + 1}" if draw else ""
    told = f"data: Piqa: {lost} of 12 held-out rows{of_repeat} are trained on too and are left out\n"
    assert data.split(draw)[1]["line"] == held_out["line"]
    assert capsys.readouterr().err.count(told) == 1


def test_without_duplicates_the_held_out_rows_are_as_they_were_drawn(
    tmp_path: Path, tiny_models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "train.jsonl", twins(16)[:16])
    data = Piqa(Backbone(str(tiny_models["llama"])), str(tmp_path), validation_rows=5)
    assert [*data.validation_set["line"], *data.train_set["line"]] == [place + 1 for place in data._train_order]
    assert without_trained(data.validation_set, data.train_set, "", 0) is data.validation_set
    assert "left out" not in capsys.readouterr().err


def test_held_out_rows_that_are_all_trained_on(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    write_jsonl(tmp_path / "train.jsonl", twins(1) * 4)
    data = Piqa(Backbone(str(tiny_models["llama"])), str(tmp_path), validation_rows=3)
    message = r"^data: Piqa: all 3 held-out rows occur among the trained ones; remove duplicates, raise [^\n]*$"
    with pytest.raises(FlexoraError, match=message):
        _ = data.train_set
    with pytest.raises(FlexoraError, match="all 3 held-out rows of repeat 2 occur among the trained ones"):
        data.split(1)


def test_a_mixture_holds_out_no_row_that_another_benchmark_trains_on(
    tmp_path: Path, tiny_models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The train splits of ARC easy and ARC challenge are the same rows here."""
    for member in CommonsenseMixture.members:
        (tmp_path / member.__name__).mkdir()
        row, rows = GOLDEN[member].row, []
        for _ in range(4):
            row = other(member, row)
            rows.append(row)
        write_jsonl(tmp_path / member.__name__ / "train.jsonl", rows)
    data = CommonsenseMixture(Backbone(str(tiny_models["llama"])), str(tmp_path), validation_rows=12)
    assert len(data.train_split) == 32
    held_out = [data.train_split["said"][place] for place in data._train_order[:12]]
    kept = [said for said in held_out if said not in set(data.train_set["said"])]
    assert data.validation_set["said"] == kept
    assert 0 < len(kept) < 12
    assert f"CommonsenseMixture: {12 - len(kept)} of 12 held-out rows are trained on" in capsys.readouterr().err
