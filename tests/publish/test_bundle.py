"""The published folder: what is in it, what never is, and that PEFT alone loads it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from flexora.cli import main
from flexora.data.own_rows import SET_ASIDE
from flexora.publish.base import Base
from flexora.publish.bundle import files_of
from flexora.publish.card import model_card
from flexora.publish.figures import eval_result_entries
from flexora.publish.rows import Rows
from flexora.publish.run import FinishedRun
from flexora.scoring.results import Results
from flexora.search.selection import Selection
from flexora.zoo.models import Licence
from tests.publish.conftest import publish, rewrite

FILES = {
    "README.md",
    "accuracy.png",
    "adapter_config.json",
    "adapter_model.safetensors",
    "alpha.png",
    "config.yaml",
    "gates.png",
    "loss.png",
    "results.json",
    "selection.json",
}

#: What a process does that has PEFT but no flexora.
PLAIN = """
import sys
sys.modules["flexora"] = None
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, output = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
torch.save(model(torch.arange(24).reshape(2, 12)).logits, output)
"""


def test_the_folder_holds_what_others_need_and_nothing_of_this_machine(
    finished: tuple[Path, Path], run_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # An arm and a logger that are places of this machine.
    other = shutil.copytree(run_dir / "lora" / "adapter", tmp_path / "elsewhere" / "adapter")
    place = ["--config", str(finished[0]), f"--output_dir={run_dir}"]
    assert main(["evaluate", *place, f"--adapter={other}"]) == 0
    rewrite(run_dir / "finetune" / "config.yaml", {"trainer.default_root_dir": str(tmp_path / "logs")})
    (run_dir / "evaluate" / "samples.jsonl").write_text("{}\n")
    capfd.readouterr()
    assert publish(run_dir) == 0
    folder, own = run_dir / "publish", run_dir / "finetune"
    assert {str(file.relative_to(folder)) for file in files_of(folder)} == FILES
    printed = capfd.readouterr().out
    for file in files_of(folder):
        assert f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.stat().st_size:>13,} bytes" in printed

    weights = (folder / "adapter_model.safetensors").read_bytes()
    assert weights == (own / "adapter" / "adapter_model.safetensors").read_bytes()
    peft = json.loads((folder / "adapter_config.json").read_text())
    assert (peft["base_model_name_or_path"], peft["revision"]) == ("tiny/llama-base", "v1")
    selection = Selection.read(folder / "selection.json")
    assert (selection.base.model, selection.base.revision) == ("tiny/llama-base", "v1")
    assert selection.targets == Selection.read(own / "selection.json").targets
    results, before = Results.read(folder / "results.json"), Results.read(run_dir / "evaluate" / "results.json")
    assert results.model == "tiny/llama-base"
    assert [arm.name for arm in results.arms] == ["base", "adapter", "lora", "flexora"]
    assert [arm.metrics for arm in results.arms] == [arm.metrics for arm in before.arms]
    recipe = yaml.safe_load((folder / "config.yaml").read_text())
    assert recipe["backbone"]["model"] == "tiny/llama-base"
    assert recipe["output_dir"] == "runs/arc-run"
    assert recipe["data"]["init_args"]["source"] == "benchmark0"
    assert recipe["trainer"]["default_root_dir"] == "logs"
    assert recipe["search"] == yaml.safe_load((own / "config.yaml").read_text())["search"]
    assert all(str(tmp_path.parent).encode() not in file.read_bytes() for file in files_of(folder))


def test_the_card_says_what_was_made_and_how_to_use_it(run_dir: Path) -> None:
    assert publish(run_dir) == 0
    folder = run_dir / "publish"
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == {
        "base_model": "tiny/llama-base",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["flexora", "lora", "layer-selection"],
        "metrics": ["accuracy"],
    }
    for said in (
        "The search was short and is illustrative",
        'PeftModel.from_pretrained(base, "me/arc-tiny")',
        'AutoModelForCausalLM.from_pretrained("tiny/llama-base", revision="v1")',
        "ArcEasy, test split, all 13 rows",
        "precision 32-true, seed 3",
        "a folder of the author's own",
    ):
        assert said in card.text
    chosen = re.search(r"`([█░]+)`", card.text)
    assert chosen is not None
    assert [layer for layer, mark in enumerate(chosen[1]) if mark == "█"] == Selection.read(
        folder / "selection.json"
    ).layers


def test_a_folder_is_written_again_but_not_in_the_place_of_another(
    run_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert publish(run_dir) == 0
    folder = run_dir / "publish"
    assert publish(run_dir) == 0
    assert {str(file.relative_to(folder)) for file in files_of(folder)} == FILES
    (folder / "thesis.tex").write_text("years of work")
    capfd.readouterr()
    assert publish(run_dir) == 2
    assert "publish holds thesis.tex, which flexora publish did not write" in capfd.readouterr().err
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_the_folder_loads_without_flexora(
    run_dir: Path, tiny_models: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert publish(run_dir, f"--to={tmp_path / 'out'}") == 0
    base, logits = str(tiny_models["llama"]), tmp_path / "logits.pt"
    subprocess.run([sys.executable, "-c", PLAIN, base, str(tmp_path / "out"), str(logits)], check=True)
    model = AutoModelForCausalLM.from_pretrained(base)
    plain = model(torch.arange(24).reshape(2, 12)).logits
    own = PeftModel.from_pretrained(model, run_dir / "finetune" / "adapter").eval()
    expected = own(torch.arange(24).reshape(2, 12)).logits
    assert torch.equal(torch.load(logits), expected)
    assert not torch.equal(expected, plain)


def test_rows_of_the_hub_are_named_with_their_figures(run_dir: Path) -> None:
    for phase in ("finetune", "evaluate"):
        rewrite(run_dir / phase / "config.yaml", {"data.init_args.source": "hub"})
    assert publish(run_dir) == 0
    card = ModelCard.load(run_dir / "publish" / "README.md")
    results = Results.read(run_dir / "publish" / "results.json")
    flexora = next(arm for arm in results.arms if arm.name == "flexora")
    assert card.data.datasets == ["allenai/ai2_arc"]
    assert "CC-BY-SA-4.0" in card.text
    assert "Rows of ArcEasy may be passed on under their own licence only (share-alike)" in card.text
    figures = {figure.metric_type: figure for figure in card.data.eval_results}
    assert figures.keys() == flexora.metrics.keys()
    for metric, estimate in flexora.metrics.items():
        assert figures[metric].metric_value == round(estimate.value, 4)
        assert figures[metric].metric_args["rows"] == results.rows
        assert (figures[metric].dataset_config, figures[metric].dataset_split) == ("ARC-Easy", "test")
    (entry,) = parse_eval_result_entries(
        yaml.safe_load((run_dir / "publish" / ".eval_results" / "flexora.yaml").read_text())
    )
    assert (entry.dataset_id, entry.task_id) == ("allenai/ai2_arc", "arc_easy")
    assert entry.value == round(flexora.metrics["acc_norm"].value, 4)
    assert entry.notes is not None
    assert entry.notes.startswith(f"acc_norm, all {results.rows} test rows, 0-shot")


def test_layers_named_by_hand_are_called_so(run_dir: Path) -> None:
    file = run_dir / "finetune" / "selection.json"
    kept = {
        name: value for name, value in json.loads(file.read_text()).items() if name in ("base", "layers", "targets")
    }
    file.write_text(json.dumps(kept))
    shutil.rmtree(run_dir / "search")
    assert publish(run_dir) == 0
    card = ModelCard.load(run_dir / "publish" / "README.md")
    assert "The layers were named by hand." in card.text
    assert "illustrative" not in card.text
    assert not FILES & {file.name for file in files_of(run_dir / "publish")} & {"alpha.png", "gates.png", "loss.png"}


@pytest.mark.parametrize(
    ("scored", "said"),
    [
        (
            ("base", "lora", "flexora"),
            "`base` is the base model alone, `lora` the same kind of adapter on all layers, ",
        ),
        (("lora", "flexora"), "\n\n`lora` is the same kind of adapter on all layers, "),
        (("flexora",), "\n\n`flexora` is this adapter (weights of"),
    ],
)
def test_the_card_names_the_arms_that_were_scored(scored: tuple[str, ...], said: str, run_dir: Path) -> None:
    results = run_dir / "evaluate" / "results.json"
    arms = json.loads(results.read_text())["arms"]
    rewrite(results, {"arms": [arm for arm in arms if arm["name"] in scored]})
    assert publish(run_dir) == 0
    assert said in ModelCard.load(run_dir / "publish" / "README.md").text


def test_the_card_says_what_licence_and_weights_ask_for(run_dir: Path) -> None:
    run, rows = FinishedRun.read(run_dir), [Rows("ArcEasy", "allenai/ai2_arc", "ARC-Easy", "arc_easy", "CC-BY-SA-4.0")]
    licence = Licence(id="other", name="glm-4", link="https://licence", notice="Built with GLM-4.")
    base = Base("THUDM/glm-4-9b-hf", None, licence, "flexora convert", "the Q4_1 de-quantisation of it", "sha256 abc")
    card = model_card(run, base, rows, rows, "me/glm-4-arc", [])
    metadata = card.data.to_dict()
    assert [metadata[name] for name in ("license", "license_name", "license_link")] == [
        "other",
        "glm-4",
        "https://licence",
    ]
    for said in (
        "Built with GLM-4.",
        "weights than the hub's:** the Q4_1 de-quantisation of it (sha256 abc)",
        "have to be prepared first, by `flexora convert`",
    ):
        assert said in card.text
    # No figure stands in the card's metadata without it either, and none in the hub's rankings.
    said_of_figures = [figure.metric_name for figure in card.data.eval_results]
    assert all("the Q4_1 de-quantisation of it, not the hub's own weights" in str(said) for said in said_of_figures)
    assert eval_result_entries(run, base, [replace(rows[0], official=True)]) == []


def test_no_cut_and_no_loss_stands_in_the_hubs_rankings(run_dir: Path) -> None:
    for phase in ("finetune", "evaluate"):
        rewrite(run_dir / phase / "config.yaml", {"data.init_args.source": "hub"})
    results = run_dir / "evaluate" / "results.json"
    for change in ({"split_rows": 14}, {"split_rows": 13, "primary_metric": "loss"}):
        rewrite(results, change)
        if "primary_metric" in change:
            arms = json.loads(results.read_text())["arms"]
            rewrite(results, {"arms": [arm | {"metrics": {"loss": arm["metrics"]["acc"]}} for arm in arms]})
        assert publish(run_dir) == 0
        assert not (run_dir / "publish" / ".eval_results").exists()
        assert ModelCard.load(run_dir / "publish" / "README.md").data.eval_results


def test_rows_that_were_set_aside_are_no_split_of_the_hubs(run_dir: Path) -> None:
    """Of the train split of a dataset that has no other; the user's own are in no ranking, whole or not."""
    own = {"class_path": "flexora.JsonlInstruction", "init_args.source": "hub:me/instructions"}
    own |= {"init_args.test_rows": 13, "init_args.columns": {"prompt": "ask", "response": "say"}}
    for phase in ("finetune", "evaluate"):
        rewrite(run_dir / phase / "config.yaml", {f"data.{name}": value for name, value in own.items()})
        if phase == "finetune":
            rewrite(run_dir / phase / "config.yaml", {"data.init_args.chat_template": True})
    rewrite(run_dir / "evaluate" / "results.json", {"benchmark": "JsonlInstruction", "split": SET_ASIDE})
    assert publish(run_dir) == 0
    card = ModelCard.load(run_dir / "publish" / "README.md")
    assert {(figure.dataset_type, figure.dataset_split) for figure in card.data.eval_results} == {
        ("me/instructions", "train")
    }
    assert "JsonlInstruction, set-aside train split, all 13 rows" in card.text
    assert "test split" not in card.text
    assert not (run_dir / "publish" / ".eval_results").exists()


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("finetune/done.json", "finetune is not done"),
        ("evaluate/done.json", "evaluate is not done"),
        ("evaluate/results.json", "evaluate again"),
        ("finetune/adapter/adapter_model.safetensors", "cannot read all of the run"),
        ("finetune/adapter/adapter_config.json", "cannot read all of the run"),
        ("finetune/selection.json", "cannot read the selection"),
    ],
)
def test_an_unfinished_run_is_refused(gone: str, said: str, run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run_dir / gone).unlink()
    assert publish(run_dir) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line
    assert not (run_dir / "publish").exists()


def test_figures_of_another_adapter_or_base_are_refused(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rewrite(run_dir / "evaluate" / "config.yaml", {"backbone.revision": "v2"})
    assert publish(run_dir) == 2
    assert "trained with backbone.revision None, evaluated with v2" in capfd.readouterr().err
    settings = run_dir / "finetune" / "adapter" / "adapter_config.json"
    before = settings.read_text()
    rewrite(settings, {"lora_alpha": 99})
    assert publish(run_dir) == 2
    assert "the evaluation is not of the adapter" in capfd.readouterr().err
    settings.write_text(before)
    weights = run_dir / "finetune" / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    assert publish(run_dir) == 2
    assert "the evaluation is not of the adapter" in capfd.readouterr().err


def test_development_rows_are_not_published(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rewrite(run_dir / "evaluate" / "results.json", {"split": "development"})
    assert publish(run_dir) == 2
    assert "development rows were scored, but a card tells of the reported split" in capfd.readouterr().err
