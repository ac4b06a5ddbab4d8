"""``trials.jsonl`` and the samples hold any character; what is shared holds no secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexora.cli import main
from tests.compare.conftest import PASSWORD, TOKEN, Elsewhere, Lines
from tests.compare.test_compare import in_process

TRIALS = [f"tiny/{arm}/0" for arm in ("base", "lora", "flexora", "warm")]


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\u0085"])
def test_ends_of_line_that_json_does_not_escape(end: str, lines: Lines, elsewhere: Elsewhere) -> None:
    lines["tiny/warm/0"]["selection"]["source"] = f"one{end}two"
    status, said = elsewhere.take(*lines.values())
    assert (status, "4 trials taken over" in said) == (0, True), said
    written = elsewhere.root / "compare" / "trials.jsonl"
    assert written.read_bytes().isascii()
    assert [json.loads(line) for line in written.read_text().splitlines()] == list(lines.values())


def test_a_generated_answer_may_hold_any_character(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial is finished from the samples of its evaluation, as after a stop between the two."""
    in_process(monkeypatch)
    command = ["compare", "--config", str(finished), "--output_dir", str(tmp_path / "out"), "--only", "tiny/base/0"]
    assert main(command) == 0
    folder = tmp_path / "out" / "trials" / "tiny" / "base" / "0"
    made = {file: file.read_bytes() for file in (folder / "row.json", folder / "outcomes.json")}
    samples = folder / "evaluate" / "samples.jsonl"
    lines = [json.loads(line) | {"generated": "1\u20282\u20293\u00854"} for line in samples.open(encoding="utf-8")]
    samples.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    for file in made:
        file.unlink()
    assert main(command) == 0
    assert {file: file.read_bytes() for file in made} == made


def test_what_is_shared_holds_no_secret_and_goes_on_without_it(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial's recipe.yaml is for its phases, which need the loggers as they are; it is not shared."""
    folder = finished.parent / "study"
    shared = [file for file in (folder / "compare").iterdir() if file.is_file()]
    kept = [folder / "trials" / trial / "trial.json" for trial in TRIALS]
    assert {"trials.jsonl", "study.json", "report.html"} <= {file.name for file in shared}
    for file in [*shared, *kept]:
        text = file.read_text(errors="replace")
        for secret in (TOKEN, PASSWORD, json.dumps(PASSWORD)[1:-1], "a key of 40 digits", "CSVLogger"):
            assert secret not in text, file
    for file in kept:
        made = json.loads(file.read_text())
        assert made["settings"]["finetune"]["trainer"] == {
            "max_epochs": 2,
            "default_root_dir": f"{finished.parent}/<hidden> <hidden>",
        }
    for known in (True, False):  # the environment's secrets are not those of every call
        monkeypatch.setenv("MY_PASSWORD", PASSWORD) if known else monkeypatch.delenv("MY_PASSWORD")
        assert main(["compare", "--config", str(finished)]) == 0
