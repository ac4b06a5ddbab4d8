"""Every PEFT method that is promised: on exactly the chosen modules, trained, saved, and loaded by PEFT alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import (
    LNTuningConfig,
    LNTuningModel,
    LoraConfig,
    MissConfig,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
    mapping,
)
from safetensors.torch import load_file

from flexora.backbone.adapters import adapted_modules, adapter_size, load_adapter, trainable_parameters
from flexora.backbone.loading import Backbone
from flexora.backbone.methods import FullWeights, build_config
from flexora.cli import main
from flexora.data.batch import Batch
from flexora.errors import FlexoraError
from flexora.finetune.module import FinetuneModule
from flexora.scoring.results import Results
from flexora.search.selection import Selection
from flexora.verbs.settings import Recipe
from tests.finetune.test_module import loader, trainer
from tests.search.bilevel import random_batch
from tests.tiny import tiny_model, write_jsonl
from tests.verbs.test_bad_input import failing
from tests.verbs.test_data import read_lines
from tests.verbs.test_pipeline import PER_LAYER

CHOSEN = ["q_proj", "v_proj", "down_proj"]
LAYERS = (1, 3)

#: Settings that fit layers of 32 and 48 features; a name after a space tells variants apart.
METHODS: dict[str, dict[str, Any]] = {
    "LoraConfig": {"r": 2},
    "LoraConfig rsLoRA": {"r": 2, "use_rslora": True},
    "LoraConfig DoRA": {"r": 2, "use_dora": True},
    "LoraConfig PiSSA": {"r": 2, "init_lora_weights": "pissa"},
    "LoraConfig PiSSA rsLoRA": {"r": 2, "init_lora_weights": "pissa", "use_rslora": True},
    "LoraConfig OLoRA": {"r": 2, "init_lora_weights": "olora"},
    "LoraConfig EVA": {"r": 2, "init_lora_weights": "eva"},
    "LoraConfig orthogonal": {"r": 2, "init_lora_weights": "orthogonal"},
    "LoraConfig MiCA": {"r": 2, "init_lora_weights": "mica"},
    "AdaLoraConfig": {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 1},
    "BOFTConfig": {"boft_block_size": 4},
    "C3AConfig": {"block_size": 16},
    "DeloraConfig": {"r": 2},
    "FourierFTConfig": {"n_frequency": 20},
    "FullWeights": {},
    "GraloraConfig": {"r": 4, "gralora_k": 2},
    "HRAConfig": {"r": 2},
    "HiraConfig": {"r": 2},
    "IA3Config": {},
    "LoHaConfig": {"r": 2},
    "LoKrConfig": {"r": 2},
    "MissConfig": {"r": 2},
    "OFTConfig": {"oft_block_size": 4},
    "OSFConfig": {},
    "PveraConfig": {"r": 4},
    "RandLoraConfig": {"r": 4},
    "RoadConfig": {"group_size": 16},
    "ShiraConfig": {"r": 2},
    "VBLoRAConfig": {"vector_length": 4, "num_vectors": 8, "topk": 2},
    "VeraConfig": {"r": 4},
    "WaveFTConfig": {"n_frequency": 20},
}


def config_of(name: str) -> PeftConfig:
    import peft

    kind = FullWeights if name == "FullWeights" else getattr(peft, name.split(maxsplit=1)[0])
    return build_config(kind, **METHODS[name], target_modules=CHOSEN)


def batches() -> list[Batch]:
    made = [random_batch(seed, rows=2) for seed in (1, 2, 3, 4)]
    for batch in made:
        batch["normalizer"] = float(batch["target"].numel())
    return made


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_trained_on_the_chosen_modules_and_loads_by_peft_alone(
    name: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    module = FinetuneModule(Backbone(str(tiny_models["llama"])), config_of(name), "1,3", learning_rate=0.03)
    trainer([], max_steps=4).fit(module, loader(batches()))
    model = module.peft_model.eval()
    sites = adapted_modules(model)
    paths = {"q_proj": "self_attn", "v_proj": "self_attn", "down_proj": "mlp"}
    wanted = {f"model.layers.{layer}.{paths[short]}.{short}" for layer in LAYERS for short in CHOSEN}
    assert sites == wanted if "EVA" not in name else sites <= wanted
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        expected, untouched = model(ids).logits, tiny_model("llama").eval()(ids).logits
        trained = trainable_parameters(model)
        module.save_adapter(tmp_path)
        loaded = PeftModel.from_pretrained(tiny_model("llama"), tmp_path).eval()
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=0, atol=1e-5)
        assert (expected - untouched).abs().max() > 1e-4
        scored = load_adapter(tiny_model("llama"), tmp_path)  # type: ignore[arg-type]
        assert torch.equal(scored.eval()(ids).logits, loaded(ids).logits)
    size = {"PiSSA": 2 * trained, "OLoRA": 2 * trained}.get(name.split()[-1 if "rsLoRA" not in name else -2], trained)
    if name == "AdaLoraConfig":  # target_r of each, on average
        ranks = loaded.peft_config["default"].rank_pattern.values()
        assert sum(map(sum, ranks)) == 2 * len(wanted)
        assert sum(p.numel() for n, p in loaded.named_parameters() if "lora_E" in n) == 2 * len(wanted)
        size = sum(p.numel() for n, p in loaded.named_parameters() if "lora_" in n)
    assert adapter_size(scored) == (len(LAYERS), size)
    assert trainable_parameters(scored) == 0


@pytest.mark.parametrize("name", ["AdaLoraConfig", "LoraConfig EVA", "LoraConfig PiSSA", "VeraConfig"])
def test_a_resumed_run_ends_at_the_same_bits(name: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    ends = []
    for checkpoint in (None, tmp_path / "epoch=0.ckpt"):
        module = FinetuneModule(Backbone(str(tiny_models["llama"])), config_of(name), "1,3")
        keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        run = trainer([keep], max_epochs=2, enable_checkpointing=True)
        run.fit(module, loader(batches()), ckpt_path=checkpoint)
        place = tmp_path / f"adapter {checkpoint is None}"
        module.save_adapter(place)
        ends.append(load_file(place / "adapter_model.safetensors"))
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][key]) for key, tensor in ends[0].items())


def test_one_recipe_searches_with_lora_and_tunes_with_another_method(
    recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, out = str(recipe()), tmp_path / "out"
    dora = ["--config", config, "--finetune.adapter.use_dora=true", "--finetune.trainer.max_epochs=1"]
    ada = ["--finetune.adapter", "{class_path: AdaLoraConfig, init_args: {init_r: 4, target_r: 2, deltaT: 3}}"]
    assert main(["search", *dora]) == 0
    assert main(["finetune", *dora]) == 0
    assert main(["finetune", *dora[:2], *ada, "--finetune.folder=ada"]) == 0
    assert "takes a folder here" in failing(["run", *dora, "--adapter=VeraConfig"], capfd)
    other = out / "ada" / "adapter"
    assert main(["evaluate", *dora, f"--evaluate.arms=[base,flexora,{other}]"]) == 0
    _, tuned, allocated = Results.read(out / "evaluate" / "results.json").arms
    layers = len(Selection.read(out / "search" / "selection.json").layers)
    assert tuned.adapted_layers == layers
    assert tuned.trainable_parameters == layers * (PER_LAYER + 32 + 16)  # and a magnitude for each output
    assert allocated.trainable_parameters < 2 * layers * PER_LAYER
    done = json.loads((out / "finetune" / "done.json").read_text())
    assert done["adapter"]["init_args"]["use_dora"]
    assert not json.loads((out / "search" / "done.json").read_text())["adapter"]["init_args"]["use_dora"]
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "which is elm?", "choices": ["elm", "oak"]}])
    own = ["--data=JsonlMultipleChoice", f"--data.source={tmp_path}", "--rows", str(rows), f"--adapter={other}"]
    assert main(["predict", "--config", config, *own]) == 0
    assert len(read_lines(out / "predictions.jsonl")) == 1


@pytest.mark.parametrize(
    ("flags", "search", "finetune"),
    [
        ([], ("LoraConfig", 2, False), ("LoraConfig", 2, False)),
        (["--adapter.r=16"], ("LoraConfig", 16, False), ("LoraConfig", 16, False)),
        (["--finetune.adapter.use_dora=true"], ("LoraConfig", 2, False), ("LoraConfig", 2, True)),
        (["--finetune.adapter.class_path=VeraConfig"], ("LoraConfig", 2, False), ("VeraConfig", 256, None)),
        (["--adapter=VeraConfig"], ("VeraConfig", 2, None), ("VeraConfig", 2, None)),
    ],
    ids=["short form", "flag", "override", "another method", "another section"],
)
def test_the_adapter_of_each_phase(
    flags: list[str], search: tuple[Any, ...], finetune: tuple[Any, ...], recipe: Callable[..., Path]
) -> None:
    parsed = Recipe("run", ["--config", str(recipe()), "--adapter.target_modules=[k_proj]", *flags])
    for phase, expected in (("search", search), ("finetune", finetune)):
        adapter = parsed.adapter(phase)
        settings = adapter["init_args"]
        assert (adapter["class_path"], settings["r"], settings.get("use_dora")) == (
            f"peft.{expected[0]}",
            *expected[1:],
        )
        assert settings["target_modules"] == ["k_proj"]


@pytest.mark.parametrize(
    ("flags", "method", "rank"),
    [
        ([], "VeraConfig", 4),
        (["--finetune.adapter.r=8"], "VeraConfig", 8),
        (["--finetune.adapter.class_path=DeloraConfig"], "DeloraConfig", 4),
        (["--finetune.adapter={class_path: peft.VeraConfig, init_args: {r: 16}}"], "VeraConfig", 16),
    ],
)
def test_flags_on_top_of_another_method(
    flags: list[str], method: str, rank: int, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    top = tmp_path / "top.yaml"
    top.write_text("finetune: {adapter: {class_path: VeraConfig, init_args: {r: 4}}}")
    adapter = Recipe("run", ["--config", str(recipe()), "--config", str(top), *flags]).adapter("finetune")
    assert (adapter["class_path"], adapter["init_args"]["r"]) == (f"peft.{method}", rank)


def test_a_section_of_the_fine_tunes_own_method_may_be_empty(recipe: Callable[..., Path], tmp_path: Path) -> None:
    top = tmp_path / "top.yaml"
    top.write_text("finetune:\n  adapter:\n")
    found = Recipe("run", ["--config", str(recipe()), "--config", str(top)])
    assert found.adapter("finetune") == found.adapter("search")


def test_another_class_does_not_inherit_the_defaults_of_lora() -> None:
    parsed = Recipe("run", ["--data=ArcEasy", "--adapter=MissConfig"])
    assert parsed.adapter("finetune")["init_args"]["r"] == MissConfig().r != LoraConfig().r


@pytest.mark.parametrize(
    ("verb", "adapter", "expected"),
    [
        ("search", "VeraConfig", "adapter: the search takes plain LoRA, not VeraConfig; .* finetune.adapter"),
        ("search", "AdaLoraConfig", "adapter: the search takes plain LoRA, not AdaLoraConfig"),
        ("search", "{init_lora_weights: pissa}", "adapter.init_lora_weights: .* not pissa, .* finetune.adapter"),
        ("finetune", "PromptTuningConfig", "PromptTuningConfig adapts no linear modules by name"),
        ("finetune", "TrainableTokensConfig", "TrainableTokensConfig adapts no linear modules by name"),
        ("finetune", "{class_path: OFTConfig, init_args: {r: 3}}", "OFTConfig: You can only specify either r"),
        ("finetune", "{class_path: MissConfig, init_args: {r: 64}}", "MissConfig: `r` .64. must be less than"),
        ("finetune", "{class_path: VeraConfig, init_args: {layers_to_transform: [1]}}", "set by the selection"),
        ("finetune", "{class_path: AdaLoraConfig, init_args: {total_step: 9}}", "adapter.total_step: .* remove it"),
        ("finetune", "{class_path: AdaLoraConfig, init_args: {tinit: 99}}", "adapter.tinit: 99 .* 20 steps"),
        (
            "finetune",
            "{class_path: AdaLoraConfig, init_args: {init_r: 8}}",
            "target_r: 8 must be smaller than init_r",
        ),
        ("finetune", "{init_lora_weights: corda}", "init_lora_weights: corda is not supported: .* one sequence"),
        ("finetune", "{init_lora_weights: loftq}", "loftq is not supported: .* on CUDA alone, .* take true, pissa"),
        ("finetune", "{init_lora_weights: pissa, use_dora: true}", "adapter.use_dora: .* pissa"),
        ("finetune", "{init_lora_weights: pissa, lora_bias: true}", "LoraConfig: .*lora_bias=True is only supported"),
        ("finetune", "{init_lora_weights: olora, bias: all}", "adapter.bias: .* olora"),
        ("finetune", "{init_lora_weights: olora, trainable_token_indices: [3]}", "adapter.trainable_token_.* olora"),
        ("finetune", "{init_lora_weights: eva, r: 900}", "eva needs batches of 1800 tokens"),
        ("finetune", "{kasa_config: {}}", "adapter.kasa_config: KaSA adds a loss of its own .*; remove it"),
        ("finetune", "{monteclora_config: {}}", "adapter.monteclora_config: MonteCLoRA adds a loss of its own"),
        ("search", "{monteclora_config: {}}", "adapter.monteclora_config: MonteCLoRA adds a loss of its own"),
        ("finetune", "{class_path: AdamssConfig, init_args: {use_asa: true}}", "adapter.use_asa: AdaMSS with ASA"),
        ("finetune", "Nope", "adapter: .*Nope"),
        ("finetune", "{lora_alph: 3}", "adapter: .*'lora_alph' is not accepted"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    verb: str, adapter: str, expected: str, recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    selection = ["--selection=1"] if verb == "finetune" else []
    line = failing([verb, "--config", str(recipe()), f"--adapter={adapter}", *selection], capfd)
    assert re.search(expected, line), line


@pytest.mark.parametrize(
    ("settings", "adapter", "expected"),
    [
        ({"dtype": "bfloat16"}, "LoraConfig PiSSA", "pissa changes the base's weights"),
        ({"dtype": "bfloat16"}, "FullWeights", "trains .* in torch.bfloat16"),
        ({}, "LoraConfig EVA", "call Trainer.fit first"),
    ],
)
def test_what_would_be_wrong_is_refused(
    settings: dict[str, Any], adapter: str, expected: str, tiny_models: dict[str, Path]
) -> None:
    with pytest.raises(FlexoraError, match=expected):
        FinetuneModule(Backbone(str(tiny_models["llama"]), **settings), config_of(adapter)).configure_model()


def test_a_prompt_cannot_be_scored(tmp_path: Path) -> None:
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(tiny_model("llama"), prompt).save_pretrained(tmp_path)
    with pytest.raises(FlexoraError, match="of type PROMPT_TUNING, which adapts no linear modules"):
        load_adapter(tiny_model("llama"), tmp_path)


@dataclass
class OwnConfig(LNTuningConfig):
    """A method that PEFT does not have."""

    def __post_init__(self) -> None:
        self.peft_type = "OWN"


class OwnModel(LNTuningModel):
    """It trains the module itself."""


def test_a_method_of_ones_own_needs_no_change_here(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mapping.PEFT_TYPE_TO_CONFIG_MAPPING, "OWN", OwnConfig)
    monkeypatch.setitem(mapping.PEFT_TYPE_TO_TUNER_MAPPING, "OWN", OwnModel)
    monkeypatch.setitem(mapping.PEFT_TYPE_TO_PREFIX_MAPPING, "OWN", OwnModel.prefix)
    flags = ["--config", str(recipe()), f"--adapter.class_path={__name__}.OwnConfig", "--allow-import", __name__]
    assert main(["finetune", *flags, "--selection=2"]) == 0
    assert main(["evaluate", *flags, "--evaluate.arms=[base,flexora]"]) == 0
    arm = Results.read(tmp_path / "out" / "evaluate" / "results.json").arms[1]
    assert (arm.adapted_layers, arm.trainable_parameters) == (1, 32 * 32 + 32 * 16)
