"""The base of the benchmarks: splits that never overlap, encodings that are cached, loaders that cover all rows."""

from __future__ import annotations

import importlib
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.trainer.states import TrainerFn

import flexora.data.encoded as module
from flexora.backbone.loading import Backbone
from flexora.data import reading
from flexora.data.arc import ArcEasy
from flexora.data.fingerprint import code_fingerprint, rows_fingerprint
from flexora.errors import FlexoraError
from tests.tiny import byte_tokenizer, write_jsonl

Make = Any


@pytest.fixture
def make(tmp_path: Path, own_cache: None, tiny_models: dict[str, Path]) -> Make:
    """A data module over 30 train and 11 test rows whose questions all differ."""
    for split, count in (("train", 30), ("test", 11)):
        rows = [
            {
                "id": f"{number}",
                "question": f"{split} {number}{'?' * (number % 7)}",
                "choices": {
                    "text": ["yes", "no", "maybe"][: 2 + number % 2],
                    "label": ["A", "B", "C"][: 2 + number % 2],
                },
                "answerKey": "AB"[number % 2],
            }
            for number in range(count)
        ]
        write_jsonl(tmp_path / f"{split}.jsonl", rows)

    def build(**settings: Any) -> ArcEasy:
        settings = {"source": str(tmp_path), "validation_rows": 8, "max_length": 64, **settings}
        return ArcEasy(Backbone(str(tiny_models["llama"])), **settings)

    return build


def questions(rows: Any) -> list[str]:
    tokenizer = byte_tokenizer()
    return [tokenizer.decode(ids[0][: start[0]]) for ids, start in zip(rows["sequences"], rows["starts"], strict=True)]


def parts(data: ArcEasy) -> tuple[list[str], list[str], list[str]]:
    return questions(data.train_set), questions(data.validation_set), questions(data.reported_set)


def test_splits_are_disjoint_and_complete(make: Make) -> None:
    train, validation, reported = parts(make())
    assert (len(train), len(validation), len(reported)) == (22, 8, 11)
    assert sorted(train + validation) == sorted(
        f"Question: train {number}{'?' * (number % 7)}\nAnswer:" for number in range(30)
    )
    assert all(text.startswith("Question: test ") for text in reported)
    assert len({*train, *validation, *reported}) == 41


def test_splits_follow_split_seed_and_not_seed(make: Make) -> None:
    first = parts(make(evaluate_rows=5))
    assert parts(make(evaluate_rows=5, seed=9)) == first
    other = parts(make(evaluate_rows=5, split_seed=1))
    assert all(set(mine) != set(theirs) for mine, theirs in zip(first, other, strict=True))


def test_train_seed_draws_other_rows_to_train_on_and_scores_the_same(make: Make) -> None:
    first = parts(make(evaluate_rows=5))
    assert parts(make(evaluate_rows=5, train_seed=0)) == first
    other = parts(make(evaluate_rows=5, train_seed=1))
    assert set(other[0]) != set(first[0])
    assert set(other[1]) != set(first[1])
    assert other[2] == first[2]
    assert parts(make(evaluate_rows=5, split_seed=1, train_seed=0))[2] != first[2]


def test_development_rows_come_from_train_and_are_not_trained_on(make: Make) -> None:
    data = make(development_rows=6)
    train, validation, scored = parts(data)
    assert (len(train), len(validation), len(scored)) == (16, 8, 6)
    assert len({*train, *validation, *scored}) == 30
    assert all(text.startswith("Question: train ") for text in scored)
    assert (data.scored_split, data.reported_rows) == ("development", 6)
    assert (make().scored_split, make().reported_rows) == ("test", 11)
    other_train, _, same = parts(make(development_rows=6, train_seed=3, seed=4))
    assert (same, len(other_train)) == (scored, 16)
    assert set(other_train) != set(train)
    assert set(parts(make(development_rows=6, evaluate_rows=4))[2]) < set(scored)
    assert parts(make(development_rows=6, split_seed=2))[2] != scored


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"development_rows": 30}, "data.development_rows: 30 of 30 train rows of ArcEasy"),
        ({"development_rows": 0}, "data.development_rows: 0 is too small"),
        ({"development_rows": 6, "num_fewshot": 1}, "data.development_rows: solved examples might be among them"),
        ({"development_rows": 6, "train_rows": 17}, "has 24 train rows, but .* need 25"),
    ],
)
def test_development_rows_that_are_refused(make: Make, settings: dict[str, int], expected: str) -> None:
    with pytest.raises(FlexoraError, match=expected):
        parts(make(**settings))


def test_other_draws_deal_the_same_rows_anew(make: Make) -> None:
    data = make(validation_rows=8, train_rows=12)
    splits = [data.split(draw) for draw in (0, 1, 2, 1)]
    held = [[row["sequences"] for row in validation] for _, validation in splits]
    everything = [sorted(str(row["sequences"]) for part in split for row in part) for split in splits]
    assert all(len(train) == 12 for train, _ in splits)
    assert everything[1:] == everything[:1] * 3
    assert held[1] == held[3]
    assert held[0] != held[1] != held[2]


def test_row_limits_cut_the_same_splits(make: Make) -> None:
    train, validation, reported = parts(make())
    few_train, few_validation, few_reported = parts(make(train_rows=5, evaluate_rows=4))
    assert few_train == train[:5]
    assert few_validation == validation
    assert [text for text in reported if text in few_reported] == few_reported  # in the source's order
    assert make(evaluate_rows=4).reported_rows == 11
    assert len(make(evaluate_rows=400).reported_set) == 11


@pytest.mark.parametrize("settings", [{"validation_rows": 30}, {"train_rows": 23}])
def test_more_rows_than_there_are(make: Make, settings: dict[str, int]) -> None:
    with pytest.raises(FlexoraError, match=r"has 30 train rows, but .* need 31"):
        _ = make(**settings).train_set


@pytest.mark.parametrize(
    "name", ["batch_size", "evaluate_tokens", "validation_rows", "train_rows", "evaluate_rows", "max_length"]
)
def test_counts_below_one_are_refused(make: Make, name: str) -> None:
    with pytest.raises(FlexoraError, match=rf"data\.{name}: 0 is too small"):
        make(**{name: 0})


def test_rows_are_encoded_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder is watched: a second data module, also one whose tokenizer has padded and cut, asks the cache."""
    calls: list[int] = []
    encode = reading.encode

    def watched(*args: Any) -> Any:
        calls.append(1)
        return encode(*args)

    monkeypatch.setattr(reading, "encode", watched)
    first = make()
    rows = first.rows("train")
    assert len(calls) == 30
    used = make(seed=7, batch_size=3)
    used.tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    for again in (make(), used):
        encoded = again.rows("train")
        assert encoded._fingerprint == rows._fingerprint
        assert encoded.cache_files == rows.cache_files != []
        assert encoded.to_list() == rows.to_list()
        assert again.fingerprint == first.fingerprint
    assert len(calls) == 41  # the reported rows as well: train rows that occur there are left out
    for other in (make(max_length=30), make(split_seed=1), make(validation_rows=9)):
        assert other.fingerprint != first.fingerprint
    assert len(calls) == 82  # max_length alone asks for other tokens


def test_a_change_of_the_code_asks_for_new_rows(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """``datasets`` knows the encoder by its name alone."""
    before = make().rows("train")
    monkeypatch.setattr(module, "code_fingerprint", lambda *parts: "changed")
    assert make().rows("train")._fingerprint != before._fingerprint


def test_code_fingerprint_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "some_benchmark.py"
    file.write_text("def question(row): return row")
    monkeypatch.syspath_prepend(str(tmp_path))
    function = importlib.import_module("some_benchmark").question
    before = code_fingerprint(function)
    assert code_fingerprint(function) == before != code_fingerprint(function, make_nothing)
    file.write_text("def question(row): return 2 * row")
    assert code_fingerprint(function) != before
    assert code_fingerprint(partial(make_nothing, read=function)) == code_fingerprint(make_nothing, file)
    assert code_fingerprint(dict) == code_fingerprint()  # no file, nothing to follow


def make_nothing() -> None:
    """A function of another file."""


def test_the_fingerprint_is_that_of_the_rows_not_of_their_place(make: Make, tmp_path: Path) -> None:
    first = make()
    moved = tmp_path / "moved"
    moved.mkdir()
    for split in ("train", "test"):
        shutil.copy(Path(first.source) / f"{split}.jsonl", moved)
    assert make(source=str(moved)).fingerprint == first.fingerprint


def test_the_fingerprint_knows_what_is_scored(make: Make) -> None:
    rows = make().train_set
    unscored = rows.map(lambda row: {"unscored": [row["starts"][0]]})
    assert rows_fingerprint(unscored) != rows_fingerprint(rows)


def test_an_evaluation_needs_no_training_rows(make: Make, tmp_path: Path) -> None:
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(Path(make().source) / "test.jsonl", only)
    data = make(source=str(only))
    trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    trainer.state.fn = TrainerFn.TESTING
    data.trainer = trainer
    data.prepare_data()
    trainer.state.fn = TrainerFn.FITTING
    with pytest.raises(FlexoraError, match=r"train\.jsonl"):
        data.prepare_data()


def test_lengths_that_batching_needs(make: Make) -> None:
    for row in make().rows("train"):
        answer = row["sequences"][row["answer"]]
        start = row["starts"][row["answer"]]
        read = [ids[:-1] for ids in row["sequences"]]  # the last token predicts nothing
        shared = max(
            n for n in range(len(read[0]) + 1) if all(ids[:n] == read[0][:n] and len(ids) >= n for ids in read)
        )
        assert row["length"] == len(answer) - 1
        assert row["answer_tokens"] == len(answer) - start
        assert row["packed_length"] == shared + sum(len(ids) - shared for ids in read)


def test_loaders_cover_their_rows(make: Make) -> None:
    data = make(batch_size=4, evaluate_tokens=3)
    tokens = {}
    for name, loader, size in (
        ("train", data.train_dataloader(), 22),
        ("validation", data.val_dataloader(), 8),
        ("reported", data.test_dataloader(), 11),
    ):
        batches = list(loader)
        assert sorted(row for batch in batches for row in batch["rows"].tolist()) == list(range(size)), name
        assert {batch["branched"] for batch in batches} == {name == "reported"}
        tokens[name] = sum(len(batch["target"]) for batch in batches)
    assert tokens["train"] == sum(data.train_set["answer_tokens"])
    assert tokens["validation"] == sum(data.validation_set["answer_tokens"])
    assert tokens["reported"] == sum(
        len(ids) - start
        for row in data.reported_set
        for ids, start in zip(row["sequences"], row["starts"], strict=True)
    )
