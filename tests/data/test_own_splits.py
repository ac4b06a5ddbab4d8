"""How the user's own rows are split: what is reported, what is held out, and which files a phase has read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from flexora.backbone.loading import Backbone
from flexora.data.local_files import local_files
from flexora.data.own import JsonlMultipleChoice
from flexora.errors import FlexoraError
from tests.data.rows import COLUMNS, choice_rows
from tests.tiny import write_jsonl

pytestmark = pytest.mark.usefixtures("own_cache")


def test_reported_rows_may_be_cut_from_the_train_split(tmp_path: Path, chatty: Backbone) -> None:
    write_jsonl(tmp_path / "train.jsonl", choice_rows(12))
    settings: dict[str, Any] = {"source": str(tmp_path), "columns": COLUMNS, "validation_rows": 3}
    with pytest.raises(FlexoraError, match=r"has no test\.jsonl or .* or test\.parquet or test\.csv; add the file"):
        _ = JsonlMultipleChoice(chatty, **settings).reported_set
    data = JsonlMultipleChoice(chatty, test_rows=4, **settings)
    parts = [data.train_set, data.validation_set, data.reported_set]
    assert [len(part) for part in parts] == [5, 3, 4]
    assert data.scored_split == "set-aside train"  # no split of that name is there for others
    assert JsonlMultipleChoice(chatty, **settings).scored_split == "test"
    assert JsonlMultipleChoice(chatty, test_rows=4, development_rows=2, **settings).scored_split == "development"
    assert sorted(line for part in parts for line in part["line"]) == list(range(1, 13))
    again = JsonlMultipleChoice(chatty, test_rows=4, seed=9, **settings)
    assert again.reported_set["line"] == data.reported_set["line"]
    with pytest.raises(FlexoraError, match=r"data\.test_rows: 12 leaves none of 12 rows"):
        _ = JsonlMultipleChoice(chatty, test_rows=12, **settings).reported_set
    with pytest.raises(FlexoraError, match=r"data\.test_rows: 0 is too small"):
        JsonlMultipleChoice(chatty, test_rows=0)


@pytest.mark.parametrize(("reported", "file"), [("test", "test.jsonl"), ("validation", "validation.parquet")])
def test_rows_are_not_set_aside_beside_a_reported_split(reported: Any, file: str, tmp_path: Path) -> None:
    for name in ("train.jsonl", file):
        write_jsonl(tmp_path / name, choice_rows(12))
    data = JsonlMultipleChoice(source=str(tmp_path), reported_split=reported, test_rows=4)
    expected = rf"data\.test_rows: .*{file} is what is reported; leave test_rows out, and set data\.evaluate_rows"
    for ask in (data.check_source, lambda: data.raw("train"), lambda: data.raw(reported)):
        with pytest.raises(FlexoraError, match=expected):
            ask()


def test_a_validation_file_is_what_is_held_out(
    tmp_path: Path, chatty: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = choice_rows(20)
    write_jsonl(tmp_path / "train.jsonl", rows[:12])
    write_jsonl(tmp_path / "validation.jsonl", rows[10:17])
    write_jsonl(tmp_path / "test.jsonl", rows[16:])
    settings: dict[str, Any] = {"source": str(tmp_path), "columns": COLUMNS}

    def asked(part: datasets.Dataset) -> list[int]:
        texts = [str(chatty.load_tokenizer().decode(ids[0])) for ids in part["sequences"]]
        return [int(text.split()[1].rstrip("?")) for text in texts]

    data = JsonlMultipleChoice(chatty, validation_rows=200, **settings)
    assert asked(data.validation_set) == list(range(10, 16))  # 16 is reported
    assert sorted(asked(data.train_set)) == list(range(10))
    told = capsys.readouterr().err
    assert "2 train rows occur in the validation split and are left out: line 11, 12\n" in told
    assert "1 validation rows occur in the test split and are left out: line 7\n" in told

    few = JsonlMultipleChoice(chatty, validation_rows=3, train_rows=5, **settings)
    assert len(held := asked(few.validation_set)) == 3
    assert set(held) < set(range(10, 16))
    assert len(first := asked(few.train_set)) == 5
    train, validation = few.split(1)
    assert asked(validation) == held
    assert sorted(asked(train)) == sorted(first)
    draws = [JsonlMultipleChoice(chatty, validation_rows=3, train_seed=seed, **settings) for seed in range(4)]
    assert len({tuple(asked(draw.validation_set)) for draw in draws}) > 1
    with pytest.raises(FlexoraError, match=r"has 10 train rows, but train_rows 11 need 11; lower train_rows"):
        _ = JsonlMultipleChoice(chatty, train_rows=11, **settings).train_set

    reported = JsonlMultipleChoice(chatty, reported_split="validation", validation_rows=3, **settings)
    assert asked(reported.reported_set) == list(range(10, 17))
    assert set(asked(reported.validation_set)) < set(range(10))
    (tmp_path / "test.jsonl").unlink()
    cut = JsonlMultipleChoice(chatty, test_rows=4, **settings)
    parts = [set(asked(part)) for part in (cut.train_set, cut.validation_set, cut.reported_set)]
    assert len(parts[2]) == 4
    assert sum(map(len, parts)) == len(set.union(*parts)) == 17
    scored = JsonlMultipleChoice(chatty, test_rows=4, development_rows=3, **settings)
    parts = [set(asked(part)) for part in (scored.train_set, scored.validation_set, scored.reported_set)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 13
    write_jsonl(tmp_path / "test.jsonl", rows[10:17])
    with pytest.raises(FlexoraError, match="all validation rows are reported too; remove the file, or mend it"):
        _ = JsonlMultipleChoice(chatty, **settings).validation_set


@pytest.mark.parametrize(
    ("name", "settings", "read"),
    [
        ("arc.ArcEasy", {}, (["test"], ["test", "train"])),
        ("arc.ArcEasy", {"num_fewshot": 1}, (["test", "train"], ["test", "train"])),
        ("boolq.BoolQ", {}, (["validation"], ["train", "validation"])),
        ("own.JsonlInstruction", {"reported_split": "test"}, (["test"], ["test", "train", "validation"])),
        ("own.JsonlInstruction", {"reported_split": "validation"}, (["validation"], ["train", "validation"])),
    ],
)
def test_phases_know_the_files_that_they_read(
    name: str, settings: dict[str, Any], read: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", choice_rows(2))
    data = {"class_path": f"flexora.data.{name}", "init_args": {"source": str(tmp_path), **settings}}
    for trains in (False, True):
        before = local_files(data, trains=trains)
        assert sorted(before) == [f"{split}.jsonl" for split in read[trains]]
    assert len(set(before.values())) == 1
    write_jsonl(tmp_path / "train.jsonl", choice_rows(3))
    assert [file for file, value in local_files(data, trains=True).items() if value != before[file]] == ["train.jsonl"]
    file = {**settings, "source": str(tmp_path / "train.jsonl"), "test_rows": 1}
    assert list(local_files(data | {"init_args": file}, trains=False)) == ["train.jsonl"]
    for place in ("hub", "packaged", "hub:me/mine"):
        assert local_files(data | {"init_args": {**settings, "source": place}}, trains=True) == {}
    assert local_files(data | {"init_args": {"path": "a class of the user's"}}, trains=True) == {}
    mixture = {"class_path": "flexora.data.mixture.CommonsenseMixture", "init_args": {"source": str(tmp_path)}}
    (tmp_path / "BoolQ").mkdir()
    write_jsonl(tmp_path / "BoolQ" / "validation.jsonl", choice_rows(2))
    assert list(local_files(mixture, trains=False)) == ["BoolQ/validation.jsonl"]


def test_a_file_of_one_array_is_cut_and_its_items_keep_their_numbers(tmp_path: Path, chatty: Backbone) -> None:
    rows: list[Any] = choice_rows(12)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(rows, indent=1))
    settings: dict[str, Any] = {"source": str(file), "columns": COLUMNS, "validation_rows": 3, "test_rows": 4}
    data = JsonlMultipleChoice(chatty, **settings)
    parts = [data.train_set, data.validation_set, data.reported_set]
    assert [len(part) for part in parts] == [5, 3, 4]
    assert sorted(number for part in parts for number in part["line"]) == list(range(1, 13))
    texts = [str(data.tokenizer.decode(ids[0])) for part in parts for ids in part["sequences"]]
    assert [int(text.split()[1].rstrip("?")) for text in texts] == [n - 1 for part in parts for n in part["line"]]
    for spoilt in data.train_set["line"][0], data.reported_set["line"][0]:
        file.write_text(json.dumps([row | {"label": "?"} if n == spoilt else row for n, row in enumerate(rows, 1)]))
        with pytest.raises(FlexoraError, match=rf"cannot be used \(row {spoilt}: answer '\?' is neither"):
            _ = (bad := JsonlMultipleChoice(chatty, **settings)).reported_set, bad.train_set


def test_no_reported_row_stands_solved_before_itself(tmp_path: Path, chatty: Backbone) -> None:
    write_jsonl(tmp_path / "train.jsonl", choice_rows(8))
    data = JsonlMultipleChoice(
        chatty, source=str(tmp_path), columns=COLUMNS, test_rows=4, num_fewshot=4, validation_rows=2
    )
    solved = {row["q"] for row in data.example_rows}
    texts = [str(data.tokenizer.decode(ids[0])) for ids in data.reported_set["sequences"]]
    asked = {text[text.rindex("Colour") :].split("?")[0] + "?" for text in texts}
    assert len(solved) == len(asked) == 4
    assert not solved & asked
    assert all(text.count("Colour") == 5 for text in texts)
