"""Where rows are read from: files of every format, shards and the hub, and what can be wrong with them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest

from flexora.data import sources
from flexora.data.arc import ArcEasy
from flexora.data.benchmarks import Mmlu
from flexora.data.datamodule import AnswerDataModule
from flexora.data.json_rows import ITEM, LINE, as_row, load_lines, numbers
from flexora.data.own import JsonlInstruction
from flexora.data.sources import load_files, split_files
from tests.data.rows import ROWS, data_of, refusal
from tests.tiny import write_jsonl

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_all_formats_give_the_rows(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"validation.{suffix}"
    if suffix != "parquet":
        write_jsonl(file, ROWS)  # lines may be called .json too
    else:
        datasets.Dataset.from_list(ROWS).to_parquet(file)
    assert [as_row(row) for row in load_files(tmp_path, "validation")] == ROWS


TEXTS = [{"prompt": f"{n}, or\n{n}?", "answer": answer} for n, answer in enumerate(["None", "007", "1.0", "é"])]
CSV = '"prompt",answer\r\n' + "".join(f'"{row["prompt"]}",{row["answer"]}\r\n' for row in TEXTS)


def test_cells_of_csv_are_texts_as_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_bytes(b"\xef\xbb\xbf" + CSV.encode() + b"\r\nlast,\r\n")
    assert load_files(file, "train").to_list() == [*TEXTS, {"prompt": "last", "answer": None}]


def test_a_cell_of_csv_may_hold_a_long_document(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(f"prompt,answer\n{'x' * 200_000},b\n")
    assert len(load_files(file, "train")[0]["prompt"]) == 200_000


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "train.csv holds no row"),
        ("prompt,answer\n", "train.csv holds no row"),
        ("prompt,prompt\na,b\n", "cannot read .*train.csv: two columns are called 'prompt'; mend"),
        ("prompt,answer\na,b\n\nc,d,e\n", "cannot read .*train.csv: line 4 has 3 cells, the header 2; mend"),
        ('prompt,answer\na,"b\n', "cannot read .*train.csv: unexpected end of data"),
        ("prompt\n\udcff\n", "cannot read .*train.csv: .*codec can't decode"),
    ],
    ids=["empty", "header", "names", "cells", "quote", "not utf-8"],
)
def test_csv_that_cannot_be_read(content: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert re.search(expected, refusal(lambda: load_files(tmp_path, "train")))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv"])
def test_shards_follow_one_another_and_are_counted_through(suffix: str, tmp_path: Path) -> None:
    parts = [TEXTS[:1], TEXTS[1:3], TEXTS[3:]]
    for number, part in enumerate(parts):
        file = tmp_path / f"train-0000{number}-of-00003.{suffix}"
        if suffix == "json":
            file.write_text(json.dumps(part) if number else json.dumps(part[0]))
        elif suffix == "jsonl":
            write_jsonl(file, part)
        else:
            dataset = datasets.Dataset.from_list(part)
            (dataset.to_csv if suffix == "csv" else dataset.to_parquet)(file)
    rows = load_files(tmp_path, "train")
    assert [as_row(row) for row in rows] == TEXTS
    assert list(numbers(rows)) == [1, 2, 3, 4]
    assert ArcEasy(source=str(tmp_path)).unit == "row"
    write_jsonl(tmp_path / "test-2023-backup.jsonl", TEXTS)  # no part of anything
    assert not split_files(tmp_path, "test")
    file.unlink()
    assert f"{tmp_path} has 2 of 3 train files; add the others" in refusal(lambda: load_files(tmp_path, "train"))
    write_jsonl(tmp_path / "train.jsonl", TEXTS[:1])  # one file goes before parts
    assert len(load_files(tmp_path, "train")) == 1


def test_shards_go_by_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_jsonl(tmp_path / f"train-{number}.jsonl", [{"id": number}])
    assert [as_row(row)["id"] for row in load_files(tmp_path, "train")] == [1, 2, 10]


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    rows = load_files(tmp_path, "train")
    assert [as_row(row) for row in rows] == ROWS
    assert rows[LINE] == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize(
    ("before", "indent"),
    [(b"", None), (b"\n \r\n\t", 2), (b"\xef\xbb\xbf", 1), (b" " * 5_000, None)],
    ids=["plain", "spaces", "byte order mark", "many spaces"],
)
def test_an_array_gives_its_items(before: bytes, indent: int | None, tmp_path: Path) -> None:
    rows: list[Any] = [*ROWS, {"id": "half a pair \ud800", "n": 2**70}, [1], "text", None]
    (tmp_path / "train.json").write_bytes(before + json.dumps(rows, indent=indent).encode())
    loaded = load_files(tmp_path, "train")
    assert [as_row(row) for row in loaded.select(range(7))] == rows[:7]
    assert loaded[ITEM] == numbers(loaded) == list(range(1, 11))
    assert numbers(loaded.select([3, 9])) == [4, 10]
    for row in loaded.select([7, 8, 9]):
        with pytest.raises(ValueError, match="not a JSON object"):
            as_row(row)
    (tmp_path / "train.json").write_text(json.dumps(ROWS[:4]))
    assert [as_row(row) for row in load_files(tmp_path, "train")] == ROWS[:4]
    assert numbers(datasets.Dataset.from_list(ROWS)) == range(1, 7)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[]", "train.json holds no row; add rows"),
        (b" \n[ \n ]\n", "train.json holds no row; add rows"),
        (b"", "train.json holds no row; add rows"),
        (b'[{"id": 1}, {"id": 2}', "train.json is no JSON array: Expecting ',' delimiter: line 1 column 22"),
        (b'[{"id": 1}]\n[{"id": 2}]', "train.json is no JSON array: Extra data: line 2 column 1"),
        (b'["\xff"]', "train.json is no JSON array: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "train.json is no JSON array: maximum recursion depth exceeded"),
    ],
    ids=["empty", "spaces", "nothing", "no end", "two", "not utf-8", "deep"],
)
def test_arrays_that_are_none(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "train.json").write_bytes(content)
    message = refusal(lambda: load_files(tmp_path, "train"))
    assert message.startswith(f"data.source: {tmp_path}/{expected}")
    option = refusal(lambda: load_lines(tmp_path / "train.json", "--rows"))
    assert option.startswith(f"--rows: {tmp_path}/{expected}")


@pytest.mark.parametrize(
    ("suffix", "unit"), [("jsonl", "line"), ("json", "line"), ("array.json", "row"), ("parquet", "row")]
)
def test_what_messages_count(suffix: str, unit: str, tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    bad: list[Any] = [*ROWS[:2], ROWS[2] | {"answerKey": "Z"}, *ROWS[3:]]
    name = f"train.{suffix.rpartition('.')[2]}"
    for rows in (bad, ROWS):
        if suffix == "array.json":
            (tmp_path / name).write_text(json.dumps(rows))
        elif suffix == "parquet":
            datasets.Dataset.from_list(rows).to_parquet(tmp_path / name)
        else:
            write_jsonl(tmp_path / name, rows)
        data = data_of(tmp_path, tiny_models["llama"])
        assert data.unit == unit
        if rows is bad:
            assert f"1 of 6 rows cannot be used ({unit} 3: answerKey 'Z'" in refusal(lambda: data.rows("train"))  # noqa: B023
    assert data.rows("train")["line"] == [1, 2, 3, 4, 5, 6]
    assert (ArcEasy().unit, ArcEasy(source="packaged").unit, ArcEasy(source="hub:a/b").unit) == ("row",) * 3
    (tmp_path / "of" / "them").mkdir(parents=True)
    assert data_of(tmp_path / "of", tiny_models["llama"]).unit == "row"


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    assert len(load_files(tmp_path, "train")) == 6
    write_jsonl(tmp_path / "train.jsonl", ROWS[:4])
    assert [as_row(row) for row in load_files(tmp_path, "train")] == ROWS[:4]


def test_missing_places(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert f"{missing} is not a folder" in refusal(lambda: load_files(missing, "train"))
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    lacking = refusal(lambda: load_files(tmp_path, "test"))
    names = " or ".join(f"test.{suffix}" for suffix in ("jsonl", "json", "ndjson", "parquet", "csv"))
    assert f"{tmp_path} has no {names}; add the file" in lacking
    (tmp_path / "rows.txt").write_text("prompt\n")
    other = refusal(lambda: load_files(tmp_path / "rows.txt", "train"))
    assert "rows.txt is not a folder, nor a .jsonl or .json or .ndjson or .parquet or .csv file; name one" in other


def test_a_file_by_itself_is_the_train_split(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "mine.jsonl", ROWS)
    source = ArcEasy.benchmark
    assert len(source.load(str(file), "train")) == len(ROWS)
    assert source.has(str(file), "train")
    assert not source.has(str(file), "test")
    assert "mine.jsonl is the train split alone; cut a test split" in refusal(lambda: source.load(str(file), "test"))


def test_parquet_without_rows_or_without_an_end(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).select([]).to_parquet(tmp_path / "train.parquet")
    assert re.search("train.parquet.*(no row|no data)", refusal(lambda: load_files(tmp_path, "train")))
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "test.parquet")
    (tmp_path / "test.parquet").write_bytes((tmp_path / "test.parquet").read_bytes()[:200])
    assert "cannot read" in refusal(lambda: load_files(tmp_path, "test"))


@pytest.mark.parametrize(
    ("data", "asked", "revision", "advice"),
    [
        (ArcEasy(), ("allenai/ai2_arc", "ARC-Easy", "train"), None, "use source: packaged or a folder of files"),
        (Mmlu(), ("cais/mmlu", "all", "dev"), None, "use a folder of files"),
        (Mmlu(source="hub:my/mmlu/all"), ("my/mmlu", "all", "dev"), None, "use a folder of files"),
        (
            JsonlInstruction(source="hub:my/rows"),
            ("my/rows", "train"),
            None,
            "cut one with data.test_rows, or use a folder",
        ),
        (ArcEasy(source="hub:my/arc@0815abc"), ("my/arc", "train"), "0815abc", "use source: packaged or a folder"),
        (Mmlu(source="hub:my/mmlu/all@refs/pr/1"), ("my/mmlu", "all", "dev"), "refs/pr/1", "use a folder of files"),
    ],
    ids=["a benchmark", "another name of a split", "a copy of it", "rows of one's own", "a commit", "a request"],
)
def test_what_is_asked_of_the_hub(
    data: AnswerDataModule,
    asked: tuple[str, ...],
    revision: str | None,
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[str | None, ...]] = []

    def load(*names: str, split: str, revision: str | None) -> datasets.Dataset:
        calls.append((*names, split, revision))
        raise ConnectionError("no way\nthere")

    monkeypatch.setattr(sources, "load_dataset", load)
    message = refusal(lambda: data.raw("train"))
    assert calls == [(*asked, revision)]
    at = f"@{revision}" if revision else ""
    assert message.startswith(f"data.source: cannot load {'/'.join(asked[:-1])}{at} [{asked[-1]}] from the hub: no way")
    if data.source != "hub":
        data.check_source()
    assert advice in message


@pytest.mark.parametrize("where", ["hub:", "hub:owner", "hub:/name", "hub:owner/", "hub:a/b@", "hub:a@main/b"])
def test_places_on_the_hub_that_are_none(where: str) -> None:
    for ask in (ArcEasy(source=where).check_source, lambda: ArcEasy(source=where).raw("train")):
        assert f"data.source: {where} names no dataset; write hub:OWNER/NAME" in refusal(ask)
