"""The warm start: the search's LoRA of the chosen modules, gates inside B, in the place of a fresh one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from flexora.backbone.loading import Backbone
from flexora.cli import main
from flexora.errors import FlexoraError
from flexora.finetune.module import FinetuneModule
from flexora.scoring.results import Results
from flexora.search.gates import gates_of
from flexora.verbs.settings import Recipe
from tests.search.bilevel import in_float64
from tests.search.test_module import fit
from tests.tiny import tiny_model
from tests.verbs.test_bad_input import failing

IDS = torch.arange(24).reshape(2, 12)


@torch.no_grad()
def logits(model: PeftModel) -> torch.Tensor:
    found: torch.Tensor = in_float64(model).eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize(("family", "gates"), [("llama", "layer"), ("mistral", "module"), ("glm", "layer")])
def test_the_start_is_the_searchs_model_without_the_other_layers(
    family: str, gates: str, tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    search = fit(tiny_models[family], benchmark_folder, tmp_path, {"precision": "64-true"}, gates=gates)
    plain = logits(search.model)
    search.save_adapter(tmp_path / "adapter")
    assert torch.equal(logits(search.model), plain)  # the search's own LoRA is left as it was

    search.bilevel_problem.gates.apply(gates_of(search.alpha.detach()))
    gated = logits(search.model)
    assert float((gated - plain).abs().max()) > 1e-4
    whole = PeftModel.from_pretrained(tiny_model(family).double(), tmp_path / "adapter")
    torch.testing.assert_close(logits(whole), gated, rtol=0, atol=1e-9)

    for name, module in search.model.named_modules():
        if isinstance(module, LoraLayer) and not any(f"layers.{layer}." in name for layer in (1, 3)):
            module.scaling["default"] = 0.0
    tuned = FinetuneModule(
        Backbone(str(tiny_models[family]), dtype="float64"),
        LoraConfig(r=2, lora_alpha=4, lora_dropout=0.3),
        selection="1,3",
        initial_adapter=str(tmp_path / "adapter"),
    )
    tuned.configure_model()
    found = logits(tuned.peft_model)
    torch.testing.assert_close(found, logits(search.model), rtol=0, atol=1e-9)
    assert float((found - gated).abs().max()) > 1e-4


def test_a_run_with_a_warm_start(
    recipe: Callable[..., Path], tmp_path: Path, phases_in_process: None, capfd: pytest.CaptureFixture[str]
) -> None:
    config, out = str(recipe()), tmp_path / "out"
    searched, slow = out / "search" / "adapter", "--finetune.learning_rate=1e-9"
    assert main(["search", "--config", config, "--search.repeats=2"]) == 0
    assert main(["finetune", "--config", config, "--warm-start", slow]) == 0
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (searched, out / "finetune" / "adapter")
    )
    for name, tensor in after.items():  # at this rate the weights stay where they started
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)
    assert len(before) == 4 * 2 * 2

    arms = f"--evaluate.arms=[base,lora,flexora,{searched}]"
    flags = ["--search.repeats=2", slow, arms]
    assert main(["run", "--config", config, *flags, "--finetune.warm_start=true"]) == 0
    assert json.loads((out / "finetune" / "done.json").read_text())["finetune"]["warm_start"] is True
    assert json.loads((out / "lora" / "done.json").read_text())["finetune"]["warm_start"] is False  # plain LoRA
    assert [arm.adapted_layers for arm in Results.read(out / "evaluate" / "results.json").arms][::3] == [0, 4]
    assert "finetune.warm_start True -> False" in failing(["run", "--config", config, *flags], capfd)


def test_the_start_lies_beside_the_selection(recipe: Callable[..., Path], tmp_path: Path) -> None:
    beside = {"all": tmp_path / "out" / "search", str(tmp_path / "a" / "selection.json"): tmp_path / "a"}
    for selection, folder in beside.items():
        flags = ["--config", str(recipe()), f"--finetune.selection={selection}"]
        assert Recipe("finetune", flags).initial_adapter is None
        assert Recipe("finetune", [*flags, "--finetune.warm_start=true"]).initial_adapter == folder / "adapter"


def test_another_search_makes_another_fine_tune(
    recipe: Callable[..., Path], tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    parsed = Recipe("finetune", ["--config", str(recipe()), "--finetune.warm_start=true"])
    settings = []
    for seed in (0, 1):
        search = fit(tiny_models["llama"], benchmark_folder, tmp_path / str(seed), seed=seed)
        search.save_adapter(tmp_path / "out" / "search" / "adapter")
        settings.append(parsed.settings("finetune"))
    assert settings[0] != settings[1]


def test_what_cannot_be_a_start_is_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder, backbone = tmp_path / "adapter", Backbone(str(tiny_models["llama"]))
    names = ["q_proj", "v_proj"]
    get_peft_model(tiny_model("llama"), LoraConfig(r=2, lora_alpha=4, target_modules=names)).save_pretrained(folder)

    def refuse(expected: str, **settings: Any) -> None:
        adapter = LoraConfig(**({"r": 2, "lora_alpha": 4} | settings))
        module = FinetuneModule(backbone, adapter, selection="1", initial_adapter=str(folder))
        with pytest.raises(FlexoraError, match=rf"finetune\.warm_start: .*{expected}") as caught:
            module.configure_model()
        assert len(str(caught.value).splitlines()) == 1

    refuse(r"no weights that fit model\.layers\.1\.mlp\.down_proj; search with", target_modules=[*names, "down_proj"])
    refuse(r"has r 2, but the fine-tune has 3; give both the same adapter\.r", r=3)
    refuse(r"has lora_alpha 4, but the fine-tune has 8", lora_alpha=8)
    refuse(r"has use_rslora False, but the fine-tune has True", use_rslora=True)
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    refuse(f"cannot read {folder}")
    (folder / "adapter_model.safetensors").unlink()
    refuse(f"no adapter of a search in {folder}; run flexora search")
    get_peft_model(tiny_model("llama"), IA3Config(target_modules=["q_proj"], feedforward_modules=[])).save_pretrained(
        folder
    )
    refuse(f"{folder} is of type IA3")


def test_a_start_of_another_method_is_refused() -> None:
    with pytest.raises(FlexoraError, match=r"finetune\.warm_start: .* adapter is of type ADALORA"):
        FinetuneModule(Backbone(), AdaLoraConfig(total_step=10), initial_adapter="search/adapter")
