"""Bad input: one line that names the thing and the remedy, status 2, nothing overwritten or lost."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save

from flexora.cli import main
from tests.tiny import arc_row, save_benchmark, tiny_model, write_jsonl

Selection = dict[str, object]

VALID: Selection = {
    "base": {"architecture": "LlamaForCausalLM", "num_layers": 4},
    "layers": [0, 2],
    "targets": {"0": ["q_proj"], "2": ["q_proj"]},
}


def failing(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Run a verb that must refuse, and return its one line."""
    capfd.readouterr()
    assert main(arguments) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--search.foo=1"], "search.foo"),
        (["--search.outer_steps=x"], "search.outer_steps"),
        (["--search.outer_steps=0"], "search.outer_steps: 0 is too small"),
        (["--search.estimator=Nope"], "search.estimator: .*Nope"),
        (["--search.estimator=Unrolled", "--search.estimator.last=0"], "search.estimator.last: 0 is too small"),
        (["--search.inner_optimizer.lr=-1"], "search.inner_optimizer.lr: -1.0 must be positive"),
        (["--search.estimator=Unrolled", "--search.estimator.product=guess"], "search.estimator.*guess"),
        (["--backbone.quantization=nf4", "--backbone.dtype=float64"], "nf4 has no float64"),
        (["--search.gates=head"], "search.gates.*head"),
        (["--search.repeats=2", "--adapter.init_lora_weights=orthogonal"], "search.repeats: .*orthogonal"),
        (["--trainer.devices=2", "--trainer.strategy=ddp_spawn"], "spawned processes; use one device, or strategy ddp"),
        (["--search.rule=TopK", "--search.rule.k=9"], "the model has 4"),
        (["--search.rule=Budget", "--search.rule.parameters=5"], "smallest choice needs 224"),
        (["--config=missing.yaml"], "missing.yaml"),
        (["--data=Nope"], "data: "),
        (["--data=MultipleChoiceDataModule"], "data: .*abstract"),
        (["--data.source=/does/not/exist"], "/does/not/exist is not a folder"),
        (["--data.max_length=4"], "which max_length 4 cannot hold"),
        (["--data.train_rows=1000"], "has 48 train rows"),
        (["--backbone.model=/does/not/exist"], "/does/not/exist does not exist"),
        (["--trainer.precision=bf16-true"], "precision bf16-true is refused"),
        (["--search.trainer.precision=16-mixed"], "precision 16-mixed is refused"),
        (["--backbone.dtype=float16"], "search: backbone.dtype float16 is refused: .* use bfloat16 or float32"),
        (["--adapter.target_modules=[w_proj]"], "unknown projection 'w_proj'"),
        (["--adapter.use_dora=true"], "no DoRA"),
        (["--adapter.layers_to_transform=[1]"], "set by the selection"),
        (["--output_dir=/dev/null/out"], "cannot write to /dev/null/out"),
        (["--trainer.accelerator=tpu"], "trainer: .*torch_xla"),
        (["--trainer.accelerator=abacus"], "trainer: .*abacus"),
        (["--trainer.devices=0"], "trainer: .*devices"),
        (["--search.trainer.gradient_clip_val=1.0"], "set search.clip_norm instead"),
        (["--search.trainer.accumulate_grad_batches=2"], "set search.accumulate instead"),
        (["--trainer.callbacks=[{class_path: ModelPruning, init_args: {pruning_fn: os.abort}}]"], "trainer: .*abort"),
        (["--seed=4294967296"], "seed"),
        (["--seed=-1"], "seed"),
        (["--search.trainer.fast_dev_run=true"], "stopped after outer step 1 of 3"),
    ],
    ids=lambda value: value[-1][2:] if isinstance(value, list) else "",
)
def test_search_refuses(
    flags: list[str], expected: str, recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = failing(["search", "--config", str(recipe()), *flags], capfd)
    assert re.search(expected, line), line
    assert not (tmp_path / "out" / "search" / "selection.json").exists()


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ("0,9", "layer 9 is out of range; the model has layers 0 to 3"),
        ("3-1", "runs backwards"),
        ("first", "expected a selection.json"),
        ("", "expected a selection.json"),
        ("none.json", "cannot read the selection"),
    ],
)
def test_finetune_refuses_lists(
    selection: str, expected: str, recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert expected in failing(["finetune", "--config", str(recipe()), f"--selection={selection}"], capfd)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"base": {"architecture": "GlmForCausalLM", "num_layers": 4}}, "was made for GlmForCausalLM"),
        ({"base": {"architecture": "LlamaForCausalLM", "num_layers": 6}}, "with 6 layers"),
        ({"layers": [2, 0]}, "must be sorted"),
        ({"layers": [0, 4], "targets": {"0": ["q_proj"], "4": ["q_proj"]}}, "layer 4 is out of range"),
        ({"layers": []}, "layers"),
        ({"targets": {"0": ["q_proj"]}}, "exactly the chosen layers"),
        ({"targets": {"0": [], "2": ["q_proj"]}}, "names no projection"),
        ({"targets": {"0": ["nope_proj"], "2": ["q_proj"]}}, "nope_proj"),
        ({"alpha": [0.0]}, "alpha has 1 entries for 4 layers"),
        ({"projections": ["v_proj"]}, "must be distinct and hold every target"),
        ({"alpha": [[0.0, 1.0]] * 4}, "alpha has another number of values for a layer"),
        ({"alpha": [[0.0]] * 4, "projections": ["q_proj", "v_proj"]}, "for 2 projections"),
        ({"alpha": ["x", 0, 0, 0]}, "alpha.0"),
        ({"format_version": 2}, "format_version"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_finetune_refuses_files(
    change: Selection, expected: str, recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "selection.json"
    file.write_text(json.dumps(VALID | change))
    line = failing(["finetune", "--config", str(recipe()), f"--selection={file}"], capfd)
    assert expected in line
    assert str(file) in line


def test_finetune_that_saves_nothing(recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--selection=all", "--finetune.trainer.fast_dev_run=true"]
    assert "fast_dev_run" in failing(["finetune", "--config", str(recipe()), *flags], capfd)


@pytest.mark.parametrize("verb", ["search", "finetune"])
def test_a_broken_checkpoint_is_named(
    verb: str, recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out" / verb / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-0000001.ckpt").write_text("no checkpoint")
    (folder / "step-0000001.json").write_text('{"sha256": "0"}')
    selection = ["--selection=all"] if verb == "finetune" else []
    line = failing([verb, "--config", str(recipe()), *selection], capfd)
    assert f"none in {folder} is whole; delete that folder" in line
    assert (folder / "step-0000001.ckpt").read_text() == "no checkpoint"


def test_a_failed_start_binds_no_settings(
    recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    failing(["search", "--config", str(recipe()), "--data.train_rows=1000"], capfd)
    assert main(["search", "--config", str(recipe())]) == 0
    assert (tmp_path / "out" / "search" / "selection.json").is_file()


def test_finetune_without_a_selection(recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert "run flexora search first" in failing(["finetune", "--config", str(recipe())], capfd)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--finetune.trainer.strategy=ddp_spawn"], "finetune: .* DDPStrategy is not supported with spawned processes"),
        (["--finetune.trainer.strategy=fsdp"], "FSDPStrategy is not supported; .*ddp, .*; fsdp2 shards the base"),
        (["--finetune.trainer={max_epochs: 1, strategy: fsdp2, precision: 16-mixed}"], "16-mixed does not go with"),
        (["--trainer.strategy=fsdp2"], "search: trainer.strategy FullyShard is not supported"),
        (["--evaluate.trainer.strategy.class_path=lightning.pytorch.strategies.FSDPStrategy"], "evaluate: .*FSDP"),
        (["--trainer.devices=2", "--evaluate.referee=lm-eval"], "one device; set evaluate.trainer.devices to 1"),
        (["--finetune.folder=dora"], "finetune.folder: dora: run fills the folder finetune"),
        (["--finetune.folder=lora"], "finetune.folder: lora: run fills the folder finetune"),  # that of its own arm
    ],
    ids=lambda value: value[-1][2:] if isinstance(value, list) else "",
)
def test_run_refuses_what_a_later_phase_cannot_follow(
    flags: list[str], expected: str, recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = failing(["run", "--config", str(recipe()), *flags], capfd)
    assert re.search(expected, line), line
    assert not (tmp_path / "out" / "search").exists()


def test_run_is_not_for_a_launcher_of_processes(
    recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "tests")
    assert "have torchrun or srun start flexora search, finetune" in failing(["run", "--config", str(recipe())], capfd)


def test_rows_that_are_not_scored(recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--evaluate.arms=[base]", "--trainer.limit_test_batches=1"]
    assert "rows were not scored; remove what limits them" in failing(
        ["evaluate", "--config", str(recipe()), *flags], capfd
    )


def test_evaluate_without_an_adapter(recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert "lora has no adapter" in failing(["evaluate", "--config", str(recipe())], capfd)
    assert "has no adapter" in failing(["evaluate", "--config", str(recipe()), "--adapter", "/does/not/exist"], capfd)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"adapter_config.json": b"{}"}, "cannot load the adapter"),
        ({"adapter_model.safetensors": None}, "holds no adapter_model.safetensors"),
        ({"adapter_model.safetensors": b"cut"}, "cannot load the adapter"),
        ({"adapter_model.safetensors": save({"base_model.model.x.lora_A.weight": torch.zeros(1)})}, "does not fit"),
    ],
    ids=["config", "missing", "cut", "other"],
)
def test_evaluate_refuses_a_broken_adapter(
    change: dict[str, bytes | None],
    expected: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "adapter"
    )
    for name, content in change.items():
        file = tmp_path / "adapter" / name
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
    line = failing(["evaluate", "--config", str(recipe()), f"--adapter={tmp_path / 'adapter'}"], capfd)
    assert expected in line
    assert str(tmp_path / "adapter") in line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{broken", "line 49"),
        ('["a", "list"]', "line 49: not a JSON object"),
        (
            json.dumps({"id": "x", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}),
            "line 49: field question is missing",
        ),
        (
            json.dumps(arc_row(0, random.Random(0)) | {"answerKey": "Z"}),
            "line 49: answerKey 'Z' is none of the labels A, B, C, D",
        ),
    ],
    ids=["malformed", "list", "field", "answer"],
)
def test_a_bad_row_is_named(
    line: str, expected: str, recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_benchmark(tmp_path / "rows")
    with (folder / "train.jsonl").open("a") as file:
        file.write(line + "\n")
    assert expected in failing(["search", "--config", str(recipe()), f"--data.source={folder}"], capfd)


def test_an_empty_data_file(recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save_benchmark(tmp_path / "rows")
    write_jsonl(folder / "train.jsonl", [])
    assert "holds no row" in failing(["search", "--config", str(recipe()), f"--data.source={folder}"], capfd)


def test_a_recipe_without_data(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("seed: 1\n")
    assert "data" in failing(["search", "--config", str(file)], capfd)


@pytest.mark.parametrize("value", ["5", "", "[1, 2]"], ids=["number", "nothing", "list"])
@pytest.mark.parametrize("section", ["backbone", "trainer", "search", "report"])
def test_a_section_without_settings(
    section: str, value: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"data: {{class_path: ArcEasy}}\n{section}: {value}\n")
    assert f" {section}: a section holds settings" in failing(["search", "--config", str(file)], capfd)
    assert main(["validate", str(file)]) == 2
    assert f"{file}: {section}: a section holds settings" in capfd.readouterr().err


def test_an_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dance"]) == 2
    assert "unknown verb 'dance'; known are run" in capsys.readouterr().err
