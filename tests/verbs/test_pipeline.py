"""Every verb through the real command line, on a tiny model of every family."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from flexora.checkpoint import CheckpointFolder, read_checkpoint
from flexora.cli import main
from flexora.finetune.module import FinetuneModule
from flexora.scoring.results import Results
from flexora.search.selection import Selection
from flexora.search.stability import random_jaccard
from flexora.verbs.settings import Recipe
from tests.commands import start_command
from tests.tiny import FAMILIES, PAPER, write_jsonl

#: LoRA parameters per layer at r 2 on q_proj (32 -> 32) and v_proj (32 -> 16) of the tiny models.
PER_LAYER = 2 * (32 + 32) + 2 * (32 + 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_search_finetune_evaluate_merge_predict(
    family: str, recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = str(recipe(family)), tmp_path / "out"
    if family not in PAPER:  # the report's pictures take a third of the time
        monkeypatch.setattr("flexora.report.html.draw", lambda *_: {})

    # What the fine-tune asks of the shared trainer does not disturb the search.
    shared = ["--trainer.gradient_clip_val=1", "--trainer.accumulate_grad_batches=2"]
    assert main(["search", "--config", config, *shared]) == 0
    selection = Selection.read(out / "search" / "selection.json")
    assert selection.layers
    assert selection.base.architecture == FAMILIES[family][1].__name__
    assert selection.layers == [layer for layer, value in enumerate(selection.alpha or []) if value > 0]
    with (out / "search" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["outer_step"] for row in rows] == ["1", "2", "3"]
    averaged = [sum(float(row[f"alpha_{layer}"]) for row in rows[-2:]) / 2 for layer in range(4)]
    assert selection.alpha == pytest.approx(averaged)

    assert main(["finetune", "--config", config]) == 0
    tensors = load_file(out / "finetune" / "adapter" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == len(selection.layers) * PER_LAYER
    assert {int(name.split("layers.")[1].split(".")[0]) for name in tensors} == set(selection.layers)
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())

    assert main(["evaluate", "--config", config, "--evaluate.arms=[base,flexora]"]) == 0
    results = Results.read(out / "evaluate" / "results.json")
    assert [arm.name for arm in results.arms] == ["base", "flexora"]
    assert results.rows == results.split_rows == 13
    assert results.arms[1].loss != pytest.approx(results.arms[0].loss, abs=1e-3)
    assert results.arms[1].trainable_parameters == len(selection.layers) * PER_LAYER
    assert results.arms[1].adapted_layers == len(selection.layers)
    assert (out / "report" / "report.html").is_file()

    assert main(["merge", "--config", config]) == 0
    new = write_jsonl(tmp_path / "new.jsonl", [{"prompt": "Which is oak?", "choices": ["oak", "elm", "ash"]}])
    merged = ["--adapter=base", f"--backbone.model={out / 'merge' / 'model'}"]
    scores = []
    for flags in ([], merged):
        output = tmp_path / f"{len(scores)}.jsonl"
        assert main(["predict", "--config", config, f"--rows={new}", f"--output={output}", *flags]) == 0
        scores.append(json.loads(output.read_text())["log_likelihoods"])
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)


def test_single_projections_are_chosen_and_adapted(recipe: Callable[..., Path], tmp_path: Path) -> None:
    config, out = str(recipe()), tmp_path / "out"
    rule = ["--search.rule=TopK", "--search.rule.k=3"]
    assert main(["search", "--config", config, "--search.gates=module", "--search.repeats=2", *rule]) == 0
    selection = Selection.read(out / "search" / "selection.json")
    assert selection.projections == ["q_proj", "v_proj"]
    assert sum(map(len, selection.targets.values())) == 3
    assert main(["finetune", "--config", config]) == 0
    tensors = load_file(out / "finetune" / "adapter" / "adapter_model.safetensors")
    paths = [name.split(".lora_")[0].split("layers.")[1].split(".") for name in tensors]
    adapted = {(int(path[0]), path[-1]) for path in paths}
    assert adapted == {(layer, name) for layer, names in selection.targets.items() for name in names}
    page = (out / "report" / "report.html").read_text()
    assert "3 of 8 projections in" in page
    assert "2 repeats agree to" in page
    assert selection.stability is not None
    assert selection.stability.repeats is not None
    assert selection.stability.repeats.random_jaccard == pytest.approx(random_jaccard([3, 3], 8))


def test_a_log_file_shows_losses_and_steps(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # either makes rich take a file for a terminal
        monkeypatch.delenv(variable, raising=False)
    assert main(["search", "--config", str(recipe()), "--trainer.enable_progress_bar=true"]) == 0
    output = "".join(capfd.readouterr())
    assert "3/3" in output
    assert "validation_loss=" in output
    assert "v_num" not in output


def test_several_adapters_are_scored_beside_the_base(recipe: Callable[..., Path], tmp_path: Path) -> None:
    config, adapters = str(recipe()), []
    for layers in ("0", "1-3"):
        adapters.append(tmp_path / layers / "finetune" / "adapter")
        flags = [f"--selection={layers}", f"--output_dir={tmp_path / layers}", "--finetune.trainer.max_epochs=1"]
        assert main(["finetune", "--config", config, *flags]) == 0
    assert main(["evaluate", "--config", config, "--adapter", str(adapters[0]), f"--adapter={adapters[1]}"]) == 0
    arms = Results.read(tmp_path / "out" / "evaluate" / "results.json").arms
    assert [arm.name for arm in arms] == ["base", *map(str, adapters)]
    assert [arm.adapted_layers for arm in arms] == [0, 1, 3]


def test_the_adapter_is_a_plain_peft_folder(
    recipe: Callable[..., Path], tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = str(recipe()), tmp_path / "out"
    best: dict[str, torch.Tensor] = {}
    save = FinetuneModule.save_adapter
    monkeypatch.setattr(FinetuneModule, "save_adapter", lambda *given: (best.update(given[2]), save(*given)))
    assert main(["finetune", "--config", config, "--selection", "0,2-3"]) == 0

    def base() -> torch.nn.Module:
        return AutoModelForCausalLM.from_pretrained(tiny_models["llama"]).eval()

    ids = torch.arange(12)[None]
    with torch.no_grad():
        plain = base()(ids).logits
        loaded = PeftModel.from_pretrained(base(), out / "finetune" / "adapter").eval()
        adapted = loaded(ids).logits
        named = dict(loaded.named_parameters())
        for name, value in best.items():
            assert torch.equal(named[name.removeprefix("model.")], value)
    assert len(best) == 3 * 2 * 2
    assert not torch.equal(adapted, plain)


def test_finetune_learns(recipe: Callable[..., Path], tmp_path: Path) -> None:
    arguments = ["finetune", "--config", str(recipe()), "--selection=all", "--finetune.trainer.max_epochs=6"]
    assert main(arguments) == 0
    with (tmp_path / "out" / "finetune" / "logs" / "csv" / "version_0" / "metrics.csv").open() as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 0.05


def test_an_interrupted_search_continues_to_the_same_bits(recipe: Callable[..., Path], tmp_path: Path) -> None:
    config, out = str(recipe()), tmp_path / "out"
    long = ["--search.outer_steps=30", "--output_dir"]
    printed = tmp_path / "printed.txt"
    interrupted = start_command(["search", "--config", config, *long, str(out)], printed)
    history = out / "search" / "history.csv"
    deadline = time.monotonic() + 120
    while not (history.is_file() and len(history.read_text().splitlines()) > 5):
        assert time.monotonic() < deadline, "the search did not start"
        assert interrupted.is_alive(), f"the search ended before it could be killed: {printed.read_text()}"
        time.sleep(0.02)
    interrupted.kill()
    interrupted.join()
    assert not (out / "search" / "selection.json").exists()
    newest = CheckpointFolder(out / "search" / "checkpoints").newest(print)
    assert newest is not None
    kept = len(read_checkpoint(newest)["history"])
    assert 4 <= kept < 30  # the history is written first: the kill may fall between the two

    assert main(["search", "--config", config, *long, str(out)]) == 0
    assert main(["search", "--config", config, *long, str(tmp_path / "straight")]) == 0
    assert history.read_text() == (tmp_path / "straight" / "search" / "history.csv").read_text()


def test_help_is_instant_and_complete() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import flexora.cli; flexora.cli.main(['--help']); "
        "heavy = {'torch', 'lightning', 'transformers', 'peft', 'datasets'} & set(sys.modules); print(heavy)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "set()"
    assert "validate" in shown


def test_print_config_resolves_the_recipe(recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--config", str(recipe()), "--search.outer_steps", "7", "--print_config"]) == 0
    shown = capsys.readouterr().out
    assert "outer_steps: 7" in shown
    assert "max_length: 64" in shown
    assert "use_rslora: false" in shown
    for name in ("Unrolled", "product: finite_difference", "AdamW", "weight_decay: 0.0", "Positive"):
        assert name in shown


def test_print_config_shows_defaults_with_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--data=ArcEasy", "--print_config"]) == 0
    search = yaml.safe_load(capsys.readouterr().out)["search"]
    assert search["estimator"] == {"class_path": "flexora.FirstOrder", "init_args": {"official": False}}
    assert search["rule"]["class_path"] == "flexora.Positive"


def test_settings_that_a_phase_ignores_do_not_bind_it(recipe: Callable[..., Path], tmp_path: Path) -> None:
    parsed = [Recipe("run", ["--config", str(recipe()), *flags]) for flags in ([], ["--trainer.max_steps=3"])]
    assert parsed[0].settings("search") == parsed[1].settings("search")
    assert parsed[0].settings("evaluate") == parsed[1].settings("evaluate")
    changed = Recipe("run", ["--config", str(recipe()), "--finetune.trainer.max_epochs=3"])
    assert parsed[0].settings("finetune") != changed.settings("finetune")


def test_a_lock_keeps_a_second_process_out(
    recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flexora.runfolder import RunFolder

    with RunFolder(tmp_path / "out").locked():
        assert main(["search", "--config", str(recipe())]) == 2
    assert "another process works in" in capsys.readouterr().err


def test_done_marks_hold_the_settings(recipe: Callable[..., Path], tmp_path: Path) -> None:
    assert main(["finetune", "--config", str(recipe()), "--selection=1"]) == 0
    done = json.loads((tmp_path / "out" / "finetune" / "done.json").read_text())
    assert done["targets"] == {"1": ["q_proj", "v_proj"]}
    assert done["seed"] == 3
    assert os.listdir(tmp_path / "out" / "finetune" / "adapter")
