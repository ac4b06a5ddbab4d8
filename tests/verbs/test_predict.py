"""``flexora predict``: what it reads of new rows, and what it refuses before the model is loaded."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from flexora.backbone.loading import Backbone
from flexora.cli import main
from flexora.data.datamodule import AnswerDataModule
from flexora.data.json_rows import load_lines
from flexora.data.mmlu import Mmlu
from flexora.data.own import JsonlInstruction, JsonlMultipleChoice
from flexora.scoring.module import ScoreModule
from tests.tiny import write_jsonl
from tests.verbs.test_bad_input import failing
from tests.verbs.test_data import data_section, read_lines

CHAT = [{"role": "user", "content": "Say 3"}]


@pytest.mark.parametrize(
    ("data", "mapped", "row"),
    [
        (
            JsonlMultipleChoice(columns={"prompt": "ask", "choices": "options"}),
            {"ask": "Which?", "options": ["oak", "elm"]},
            {"prompt": "Which?", "choices": ["oak", "elm"]},
        ),
        (JsonlInstruction(columns={"prompt": "ask"}), {"ask": "Say 3"}, {"prompt": "Say 3"}),
        (JsonlInstruction(columns={"messages": "chat"}, messages=True), {"chat": CHAT}, {"messages": CHAT}),
    ],
    ids=["choices", "prompt", "messages"],
)
def test_new_rows_have_the_columns_of_the_own_rows_or_the_fields(
    data: AnswerDataModule, mapped: dict[str, Any], row: dict[str, Any]
) -> None:
    assert data.new_reader()(mapped) == data.new_reader()(row)


def test_a_mapped_choice_is_shown(recipe: Callable[..., Path], benchmark_folder: Path, tmp_path: Path) -> None:
    config = data_section(
        recipe(),
        f"class_path: JsonlMultipleChoice\ninit_args: {{source: {benchmark_folder}, columns: {{choices: options}}}}",
    )
    new = write_jsonl(tmp_path / "new.jsonl", [{"prompt": "Which is oak?", "options": ["oak", "elm"]}])
    assert main(["predict", "--config", str(config), "--rows", str(new), "--adapter=base"]) == 0
    (answer,) = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert answer["choice"] == ["oak", "elm"][answer["prediction"]]
    array, output = tmp_path / "new.json", tmp_path / "said.jsonl"
    array.write_text(json.dumps([{"prompt": "Which is oak?", "options": ["oak", "elm"]}]))
    assert main(["predict", "--config", str(config), "--rows", str(array), "--adapter=base", f"--output={output}"]) == 0
    assert read_lines(output) == [answer]


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_new_rows_in_tables(suffix: str, recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Of labels that all rows share, a row needs none."""
    config = data_section(
        recipe(),
        "class_path: JsonlMultipleChoice\ninit_args: {source: here, columns: {prompt: text}, choices: ['no', maybe]}",
    )
    table, file = datasets.Dataset.from_list([{"text": "Is it?"}, {"text": "And so?"}]), tmp_path / f"new{suffix}"
    (table.to_csv if suffix == ".csv" else table.to_parquet)(file)
    assert main(["predict", "--config", str(config), f"--rows={file}", "--adapter=base"]) == 0
    answers = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert [answer["line"] for answer in answers] == [1, 2]
    assert {answer["choice"] for answer in answers} <= {"no", "maybe"}


def test_places_in_the_home_folder(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shells leave the ~ of ``--rows=~/new.jsonl`` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    write_jsonl(tmp_path / "home" / "new.jsonl", [{"prompt": "Which?", "choices": ["oak", "elm"]}])
    flags = ["--config", str(recipe()), "--adapter=base", "--rows=~/new.jsonl", "--output=~/said.jsonl"]
    assert main(["predict", *flags]) == 0
    assert len(read_lines(tmp_path / "home" / "said.jsonl")) == 1


def test_a_new_row_of_mmlu_is_asked_like_a_reported_one(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    row = {"choices": ["w", "x", "y", "z"], "subject": "law"}
    write_jsonl(tmp_path / "train.jsonl", [{**row, "question": "L1", "answer": 2}])
    write_jsonl(tmp_path / "test.jsonl", [{**row, "question": "L9", "answer": 0}])
    new = load_lines(write_jsonl(tmp_path / "new.jsonl", [{**row, "prompt": "L9"}, {"prompt": "L9", "choices": ["w"]}]))
    data = Mmlu(Backbone(str(tiny_models["llama"])), str(tmp_path), num_fewshot=1, bad_rows="skip")
    answered = data.encode(new, "new", (), data.new_reader(), reported=True)
    assert answered["line"] == [1]  # the other one names no subject
    assert answered["sequences"] == data.reported_split_rows["sequences"]


@pytest.mark.parametrize("generates", [False, True], ids=["choices", "answers"])
def test_what_is_answered_outlives_an_interruption(
    generates: bool,
    recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The same command goes on, and ends with what one go gives; with other rows or settings it is refused."""
    kind = "JsonlInstruction" if generates else "JsonlMultipleChoice"
    room = ", max_new_tokens: 3" if generates else ""
    config = data_section(
        recipe(), f"class_path: {kind}\ninit_args: {{source: here, evaluate_tokens: 1, max_length: 64{room}}}"
    )
    new = write_jsonl(tmp_path / "new.jsonl", [{"prompt": f"Say {n}", "choices": ["é", "elm"]} for n in range(5)])
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    part = tmp_path / "two.jsonl.part"
    flags = ["predict", "--config", str(config), f"--rows={new}", "--adapter=base"]
    assert main([*flags, f"--output={one}"]) == 0
    scored, answer = [], ScoreModule.test_step

    def test_step(module: ScoreModule, batch: Any, batch_idx: int) -> None:
        answer(module, batch, batch_idx)
        scored.append(batch["rows"])
        if len(scored) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ScoreModule, "test_step", test_step)
    flags.append(f"--output={two}")
    capfd.readouterr()
    assert main(flags) == 143
    assert "flexora predict: interrupted; the same command goes on from what is done" in capfd.readouterr().err
    assert not two.exists()
    assert len(read_lines(part)) == 3
    with part.open("ab") as file:
        file.write('{"line": 5, "answer": "é'.encode()[:-1])  # a loss of power, in the middle of a letter
    other = write_jsonl(tmp_path / "other.jsonl", read_lines(new)[:4])
    for flag, change in ((f"--rows={other}", "rows.file "), ("--data.max_length=63", "data.max_length 64 -> 63")):
        assert f"{part} was begun with other rows or settings ({change}" in failing([*flags, flag], capfd)
    assert main(flags) == 0
    assert f"goes on from 2 answers in {part}" in capfd.readouterr().err
    assert len(scored) == 5
    assert two.read_text() == one.read_text()
    assert not part.exists()
    two.rename(part)
    assert f"{part} holds no answers of flexora's; delete it" in failing(flags, capfd)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--rows=/does/not/exist"], "--rows: cannot read /does/not/exist"),
        (["--rows=/does/not/exist.csv"], "No such file or directory: '/does/not/exist.csv'; name another file"),
        ([f"--rows={__file__}"], "test_predict.py is no .jsonl or .json or .ndjson or .parquet or .csv file; name one"),
        (["--adapter=flexra"], "--adapter: flexra has no adapter in flexra; name one of base, flexora, lora or"),
        (["--output=/dev/null/said.jsonl"], "--output: cannot write to /dev/null: "),
        (["--data.source=hub"], "line 1: choices is missing among prompt"),
    ],
    ids=["rows", "table", "kind of rows", "adapter", "output", "line"],
)
def test_predict_names_the_option_and_the_line(
    flags: list[str],
    expected: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Backbone, "load_model", lambda self: pytest.fail("the model was loaded"))
    new = write_jsonl(tmp_path / "new.jsonl", [{"prompt": "no choices"}])
    line = failing(["predict", "--config", str(recipe()), f"--rows={new}", "--adapter=base", *flags], capfd)
    assert expected in line
