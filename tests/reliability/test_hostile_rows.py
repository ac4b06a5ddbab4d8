"""Rows from anyone: each is read, or named with its line and reason; none stops the others, none is lost silently."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexora import Backbone, JsonlInstruction, JsonlMultipleChoice
from flexora.data.json_rows import LINE, TEXT
from flexora.data.reading import encode_rows
from flexora.errors import FlexoraError
from tests.tiny import byte_tokenizer, write_jsonl

#: ``make test-reliability`` takes more.
EXAMPLES = int(os.environ.get("FLEXORA_EXAMPLES", "20"))

GOOD = {"prompt": "Which is a tree?", "choices": ["oak", "cat"], "answer": "oak"}
SAID = {"prompt": "Name a tree.", "response": "oak"}


def line(**changed: Any) -> bytes:
    return json.dumps(GOOD | changed).encode()


#: Lines of a file and, where they cannot be used, what is said of them.
LINES: dict[str, tuple[bytes, str | None]] = {
    "a byte-order mark": (b"\xef\xbb\xbf" + line(), None),
    "control characters": (line(prompt="\x00\x07\x1b[31m?", choices=["\x00a", "b\x7f"], answer=0), None),
    "no JSON": (b"{prompt: x}", "Expecting property name"),
    "a list": (b"[1]", "not a JSON object"),
    "a number": (b"3", "not a JSON object"),
    "not UTF-8": (b'{"prompt": "\xff\xfe"}', "can't decode byte 0xff"),
    "half a pair": (b'{"prompt": "\\ud800", "choices": ["a", "b"], "answer": 0}', "surrogates not allowed"),
    "half a pair for a name": (b'{"\\ud800": "a"}', "prompt is missing among \N{REPLACEMENT CHARACTER}"),
    "a terminal's commands": (b'{"\\u001b[2J": 1}', "among \N{REPLACEMENT CHARACTER}[2J"),
    "nesting": (b"[" * 100_000, "nested too deeply"),
    "nested choices": (line(choices=[{"a": ["b"]}, "oak"]), "choice 0 is {'a': ['b']}, not text"),
    "a deep answer": (b'{"prompt": "a", "choices": ["b", "c"], "answer": ' + b"[" * 900 + b"]" * 900 + b"}", "answer"),
    "a number of 5,000 digits": (b'{"prompt": ' + b"9" * 5_000 + b"}", "4300 digits"),
    "NaN": (b'{"prompt": NaN, "choices": ["a", "b"], "answer": 0}', "the question is nan, not text"),
    "NaN for an answer": (line(answer=float("nan")), "answer nan is neither"),
    "nothing": (line(prompt=None), "prompt"),
    "an empty choice": (line(choices=["oak", ""]), "choice 1 is empty"),
    "no choices": (line(choices=[]), "answer"),
    "one choice": (line(choices=["oak"]), "at least two choices"),
    "a text for choices": (line(choices="oak"), "choices is str, not a list of texts"),
    "a yes": (line(answer=True), "answer True is neither"),
    "another answer": (line(answer="elm"), "answer 'elm' is neither a choice"),
    "a number too large": (line(answer=10**300), "answer 100000"),
    "a negative number": (line(answer=-1), "answer -1 is out of range"),
    "the answer twice": (line(choices=["oak", "cat", "oak"]), "the answer 'oak' is there more than once"),
    "another choice twice": (line(choices=["oak", "cat", "cat"]), None),
    "10,000 choices": (line(choices=["oak", *map(str, range(9_999))]), None),
    "an enormous prompt": (line(prompt="x" * 200_000), None),
    "an enormous choice": (line(choices=["oak", "x" * 200_000]), "max_length 64 cannot hold"),
    "an enormous answer": (line(answer="x" * 10_000_000), "answer 'xxx"),
}


@cache
def tokenizer() -> Any:
    return byte_tokenizer()


def problems(module: Any, lines: list[bytes]) -> list[str]:
    """What is wrong with each line; the columns have what batches and Arrow take."""
    columns = encode_rows(
        {LINE: list(range(1, len(lines) + 1)), TEXT: lines},
        range(len(lines)),
        fields=(),
        reader=module.reader(),
        tokenizer=tokenizer(),
        max_length=64,
        room=0,
        chat=False,
        examples={},
        every_turn=False,
        code="",
    )
    assert columns["line"] == list(range(1, len(lines) + 1))
    for problem, sequences in zip(columns["problem"], columns["sequences"], strict=True):
        assert bool(problem) != bool(sequences)
        assert len(problem) <= 200
        assert problem.isprintable()
        assert all(0 < len(sequence) <= 64 for sequence in sequences)
    found: list[str] = columns["problem"]
    return found


@pytest.fixture(scope="module")
def modules() -> list[Any]:
    return [
        JsonlMultipleChoice(Backbone("none")),
        JsonlInstruction(Backbone("none")),
        JsonlInstruction(Backbone("none"), messages=True),
    ]


@pytest.mark.parametrize("name", LINES)
def test_a_line_is_read_or_says_why(name: str, modules: list[Any]) -> None:
    text, expected = LINES[name]
    before, problem, after = problems(modules[0], [line(), text, line()])
    assert before == after == ""
    assert (problem == "") if expected is None else (expected in problem)
    assert all(problems(module, [text]) for module in modules[1:])


#: What JSON may hold, and what rows may hold in the right places.
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
texts = st.text(max_size=40)
names = st.sampled_from(["prompt", "choices", "answer", "response", "messages", "other"])
turns = st.lists(
    st.fixed_dictionaries(
        {}, optional={"role": st.sampled_from(["user", "assistant", "x"]) | values, "content": texts | values}
    ),
    max_size=4,
)
rows = st.dictionaries(names, values, max_size=6) | st.fixed_dictionaries(
    {
        "prompt": texts | values,
        "choices": st.lists(texts, max_size=5) | values,
        "answer": texts | st.integers(-2, 6) | values,
    },
    optional={"response": texts | values, "messages": turns | values},
)
lines = (
    rows.map(lambda row: json.dumps(row).encode())
    | values.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=60)
)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(lines, min_size=1, max_size=4))
def test_any_line_is_read_or_says_why(modules: list[Any], found: list[bytes]) -> None:
    for module in modules[:2]:
        problems(module, [json.dumps(GOOD | SAID).encode(), *found])


def test_bad_lines_are_counted_and_named(
    tiny_models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through the whole data module: the count, the lines of the file (blank ones counted) and the reasons."""
    good = [json.dumps(GOOD | {"prompt": f"{number}?"}).encode() for number in range(12)]
    bad = [text for text, expected in LINES.values() if expected is not None]
    (tmp_path / "train.jsonl").write_bytes(b"\n\n".join([*good, *bad]))
    (tmp_path / "test.jsonl").write_bytes(b"\n".join(good[:3]))
    backbone = Backbone(str(tiny_models["llama"]))
    options: dict[str, Any] = {"source": str(tmp_path), "validation_rows": 4, "batch_size": 2, "max_length": 64}
    data = JsonlMultipleChoice(backbone, **options)
    told = re.escape(f"{len(bad)} of {len(good) + len(bad)} rows cannot be used (line 25: Expecting property name")
    with pytest.raises(FlexoraError, match=told) as refused:
        len(data.train_set)
    assert str(refused.value).isprintable()
    skipping = JsonlMultipleChoice(backbone, bad_rows="skip", **options)
    kept = len(skipping.train_set) + len(skipping.validation_set)
    assert kept == len(good) - 3  # those of the test split
    assert re.search(told + ".*skipped", capfd.readouterr().err)


@pytest.mark.parametrize("content", [b"", b"\n \n\n"], ids=["empty", "blank"])
def test_a_file_without_rows(content: bytes, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(content)
    data = JsonlMultipleChoice(Backbone(str(tiny_models["llama"])), source=str(tmp_path / "train.jsonl"), test_rows=1)
    with pytest.raises(FlexoraError, match="holds no row"):
        len(data.train_set)


def test_parquet(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    file, backbone = tmp_path / "train.parquet", Backbone(str(tiny_models["llama"]))
    options: dict[str, Any] = {"source": str(tmp_path), "validation_rows": 2, "batch_size": 2, "max_length": 64}
    write_jsonl(tmp_path / "test.jsonl", [GOOD])
    for content in (b"", b"PAR1", os.urandom(200)):
        file.write_bytes(content)
        with pytest.raises(FlexoraError, match=r"data.source: cannot read .*; mend the file"):
            len(JsonlMultipleChoice(backbone, **options).train_set)
    rows = [{**GOOD, "prompt": f"{number}?"} for number in range(6)] + [
        {**GOOD, "choices": None},
        {**GOOD, "answer": "elm"},
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file)
    with pytest.raises(FlexoraError, match=r"2 of 8 rows cannot be used .row 7: .*; row 8: answer 'elm' is neither"):
        len(JsonlMultipleChoice(backbone, **options).train_set)
    pyarrow.parquet.write_table(pa.table({"prompt": [b"\xff", b"a"], "choices": [1, 2], "answer": [0, 0]}), file)
    with pytest.raises(FlexoraError, match="2 of 2 rows cannot be used"):
        len(JsonlMultipleChoice(backbone, **options).train_set)
