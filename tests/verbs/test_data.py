"""Own rows, chats, mixtures, prompt styles and new rows through the real command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexora.backbone.loading import Backbone
from flexora.cli import main
from flexora.data.datamodule import AnswerDataModule
from flexora.scoring.results import Results
from flexora.search.selection import Selection
from tests.data.test_mixture import commonsense_folder
from tests.tiny import CHAT_TEMPLATE, save_model, write_jsonl

Recipe = Callable[..., Path]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of instructions, as prompts and as chats."""
    rows = [
        {
            "id": number,
            "ask": f"Say {number}",
            "say": f"{number}",
            "chat": [{"role": "user", "content": f"Say {number}"}, {"role": "assistant", "content": f"{number}"}],
        }
        for number in range(24)
    ]
    folder = tmp_path / "own"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", rows)
    return folder


def data_section(file: Path, text: str) -> Path:
    """The recipe with another data section."""
    lines = file.read_text().splitlines()
    start = lines.index("data:")
    lines[start : start + 3] = ["data:", *(f"  {line}" for line in text.splitlines())]
    file.write_text("\n".join(lines) + "\n")
    return file


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("exact", [False, True], ids=["loss", "exact match"])
def test_own_instructions_from_search_to_new_rows(
    exact: bool, own: Path, recipe: Recipe, tmp_path: Path, phases_in_process: None
) -> None:
    config = data_section(
        recipe(),
        f"class_path: JsonlInstruction\ninit_args: {{source: {own}, columns: {{prompt: ask, response: say}}, "
        f"test_rows: 5, validation_rows: 6, batch_size: 4, exact_match: {exact}, max_new_tokens: 3}}".lower()
        .replace("jsonlinstruction", "JsonlInstruction")
        .replace(str(own).lower(), str(own)),
    )
    assert main(["run", "--config", str(config)]) == 0
    results = Results.read(tmp_path / "out" / "evaluate" / "results.json")
    assert results.primary_metric == ("exact_match" if exact else "loss")
    assert (results.rows, len(results.arms)) == (5, 3)
    assert results.split == "set-aside train"
    assert set(results.arms[0].metrics) == {results.primary_metric}
    report = (tmp_path / "out" / "report" / "report.html").read_text()
    assert ("exact_match vs base" in report) == exact
    new = write_jsonl(tmp_path / "new.jsonl", [{"prompt": "Say 7"}, {"prompt": "Say 77"}])
    assert main(["predict", "--config", str(config), "--rows", str(new)]) == 0
    answers = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert [answer["line"] for answer in answers] == [1, 2]
    assert all(isinstance(answer["answer"], str) for answer in answers)


def test_own_chats(own: Path, recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = data_section(
        recipe(),
        f"class_path: JsonlInstruction\ninit_args: {{source: {own}, columns: {{messages: chat}}, messages: true, "
        "test_rows: 5, validation_rows: 6, batch_size: 4, max_new_tokens: 3}",
    )
    chatty = save_model(tmp_path / "chatty", "llama", chat_template=CHAT_TEMPLATE)
    flags = ["--config", str(config), f"--backbone.model={chatty}"]
    assert main(["finetune", *flags, "--selection=0"]) == 0
    assert main(["evaluate", *flags, "--evaluate.arms=[base,flexora]", "--evaluate.samples=true"]) == 0
    samples = read_lines(tmp_path / "out" / "evaluate" / "samples.jsonl")
    assert len(samples) == 2 * 5
    assert {sample["arm"] for sample in samples} == {"base", "flexora"}
    assert all(sample["loss"] > 0 for sample in samples)
    asked = write_jsonl(tmp_path / "new.jsonl", [{"messages": [{"role": "user", "content": "Say 3"}]}])
    predict = ["predict", *flags, "--rows", str(asked), "--adapter", "base", "--output", str(tmp_path / "said.jsonl")]
    assert main(predict) == 0
    assert [answer["line"] for answer in read_lines(tmp_path / "said.jsonl")] == [1]
    capfd.readouterr()
    assert main(predict) == 2
    assert f"--output: {tmp_path / 'said.jsonl'} exists already" in capfd.readouterr().err


def test_new_questions_are_answered_by_the_likeliest_choice(recipe: Recipe, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "Which is oak?", "choices": ["oak", "elm"]}, {"prompt": "no choices"}]
    new = write_jsonl(tmp_path / "new.jsonl", rows)
    flags = ["--config", str(recipe()), "--rows", str(new), "--adapter=base"]
    assert main(["predict", *flags]) == 2
    assert main(["predict", *flags, "--data.bad_rows=skip"]) == 0
    (answer,) = read_lines(tmp_path / "out" / "predictions.jsonl")
    assert answer["line"] == 1
    assert answer["choice"] == rows[0]["choices"][answer["prediction"]]
    first, second = answer["log_likelihoods"]
    assert 0.5 <= answer["probability"] <= 1
    assert (answer["prediction"] == 0) == (first / 3 > second / 3)


def test_a_mixture_is_reported_one_by_one_and_as_a_mean(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path | None] = []

    def load(data: AnswerDataModule, backbone: Backbone, adapter: Path | None, device: str) -> None:
        loaded.append(adapter)

    def uniform(data: AnswerDataModule, model: None) -> list[list[float]]:
        return [[-1.0] * len(chars) for chars in data.reported_set["chars"]]

    monkeypatch.setattr("flexora.verbs.evaluate.harness_model", load)
    monkeypatch.setattr("flexora.verbs.evaluate.harness_scores", uniform)
    folder = commonsense_folder(tmp_path / "rows")
    config = data_section(
        recipe(),
        f"class_path: CommonsenseMixture\ninit_args: {{source: {folder}, validation_rows: 8, batch_size: 4}}",
    )
    assert main(["search", "--config", str(config)]) == 0
    assert main(["finetune", "--config", str(config)]) == 0
    assert main(["evaluate", "--config", str(config), "--evaluate.arms=[base,flexora]", "--referee=lm-eval"]) == 0
    results = Results.read(tmp_path / "out" / "evaluate" / "results.json")
    assert len(results.parts) == 8
    assert loaded == [None, tmp_path / "out" / "finetune" / "adapter"]  # once for an arm, not for each benchmark
    assert all(arm.referee and arm.referee.rows == part.rows for part in results.parts for arm in part.arms)
    for arm, figures in enumerate(results.arms):
        own = [part.arms[arm].metrics[part.primary_metric].value for part in results.parts]
        assert figures.metrics["average"].value == pytest.approx(sum(own) / 8)
    report = (tmp_path / "out" / "report" / "report.html").read_text()
    assert all(f"{part.benchmark}, {part.split} split" in report for part in results.parts)


def test_prompts_of_another_style_are_refused(recipe: Recipe, capfd: pytest.CaptureFixture[str]) -> None:
    config = str(recipe())
    assert main(["finetune", "--config", config, "--selection=0", "--data.prompt_style=letters"]) == 0
    evaluate = ["evaluate", "--config", config, "--evaluate.arms=[base,flexora]"]
    assert main(evaluate) == 2
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert "flexora was trained with data.prompt_style letters, but is to be scored with completion" in message
    assert main([*evaluate, "--data.prompt_style=letters", "--data.num_fewshot=1", "--data.max_length=256"]) == 0


def test_choices_are_contrasted_in_every_phase(recipe: Recipe, tmp_path: Path) -> None:
    flags = ["--config", str(recipe()), "--data.objective=choices"]
    assert main(["search", *flags]) == 0
    history = (tmp_path / "out" / "search" / "history.csv").read_text().splitlines()
    losses = [float(line.split(",")[3]) for line in history[1:]]
    assert all(0.5 < loss < 2.5 for loss in losses)  # about log 4 a question, where answers have 6 nats a token
    assert Selection.read(tmp_path / "out" / "search" / "selection.json").layers
    assert main(["finetune", *flags, "--selection=0"]) == 0


def test_both_levels_may_have_objectives_of_their_own(recipe: Recipe, tmp_path: Path) -> None:
    assert main(["search", "--config", str(recipe()), "--data.validation_objective=choices"]) == 0
    row = (tmp_path / "out" / "search" / "history.csv").read_text().splitlines()[1].split(",")
    assert float(row[2]) > 4 > float(row[3])


def test_a_referee_scores_the_same_rows(recipe: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = str(recipe())
    assert main(["finetune", "--config", config, "--selection=0"]) == 0
    flags = ["--config", config, "--evaluate.arms=[base,flexora]", "--data.evaluate_rows=4"]
    capfd.readouterr()
    chat = ["--evaluate.arms=[base]", "--data.chat_template=true"]
    assert main(["evaluate", *flags, "--referee", "lm-eval", *chat]) == 2
    assert "evaluate.referee: ArcEasy has no choices or a chat template" in capfd.readouterr().err
    assert main(["evaluate", *flags, "--referee=lm-eval"]) == 0
    arms = Results.read(tmp_path / "out" / "evaluate" / "results.json").arms
    for arm in arms:
        assert arm.referee is not None
        assert arm.referee.rows == 4
        assert arm.referee.largest < 1e-4
        assert arm.referee.accuracy == arm.metrics["acc"].value
    printed = "".join(capfd.readouterr())
    assert "on ArcEasy, flexora: log-likelihoods within" in printed
    assert "on ArcEasy, flexora: log-likelihoods within" in (tmp_path / "out" / "report" / "report.html").read_text()
