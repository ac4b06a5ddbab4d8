"""The packaged model's own weights in the classes of three families: one function, so one accuracy and one search.

SmolLM2 is Llama's kind. Mistral's class takes the weights as they are. GLM's fuses gate and up, and turns neighbouring
pairs of a head's coordinates where Llama's turns its two halves: q's and k's rows are put in that order.
"""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GlmConfig, GlmForCausalLM, MistralConfig, MistralForCausalLM

from flexora.backbone.loading import Backbone
from flexora.cli import main
from flexora.data.arc import ArcEasy
from flexora.scoring.module import ScoreModule, score
from flexora.search.selection import Selection

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[2] / "recipes" / "demo.yaml"
CLASSES = {"mistral": (MistralConfig, MistralForCausalLM), "glm": (GlmConfig, GlmForCausalLM)}
#: Settings that all three classes know.
SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def neighbours(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of each head in the order 0, d/2, 1, d/2 + 1 ...: ``[heads * d, hidden]``."""
    halves = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def as_glm(weights: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """Llama's weights as GLM's class has them."""
    found = {}
    for name, weight in weights.items():
        if "self_attn.q_proj" in name or "self_attn.k_proj" in name:
            found[name] = neighbours(weight, head_dim)
        elif "mlp.gate_proj" in name:
            up = weights[name.replace("gate_proj", "up_proj")]
            found[name.replace("gate_proj", "gate_up_proj")] = torch.cat([weight, up])
        elif "mlp.up_proj" not in name:
            found[name] = weight
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The packaged model, and its weights in Mistral's and in GLM's class."""
    backbone, root = Backbone(), tmp_path_factory.mktemp("families")
    llama, tokenizer = AutoModelForCausalLM.from_pretrained(backbone.resolve()), backbone.load_tokenizer()
    settings = {name: getattr(llama.config, name) for name in SHARED}
    theta = llama.config.rope_parameters["rope_theta"]
    rope = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 1.0}
    for family, (config_class, model_class) in CLASSES.items():
        extra = {"attention_bias": False} if family == "glm" else {"sliding_window": None}
        with torch.device("meta"):
            model = model_class(config_class(**settings, **extra, rope_parameters=rope))
        weights = llama.state_dict()
        weights = as_glm(weights, llama.config.head_dim) if family == "glm" else weights
        model.load_state_dict(weights, assign=True)
        model.save_pretrained(root / family)
        tokenizer.save_pretrained(root / family)
    return {"llama": backbone.model, **{family: str(root / family) for family in CLASSES}}


def test_one_accuracy_and_the_same_log_likelihoods(models: dict[str, str]) -> None:
    rows = {}
    for family, model in models.items():
        data = ArcEasy(Backbone(model), source="packaged", evaluate_rows=24)
        trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        rows[family] = score(trainer, ScoreModule(data.backbone), data)
    expected = rows.pop("llama")
    assert 0.3 < sum(row.value("acc") for row in expected) / len(expected) < 0.9
    for found in rows.values():
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.log_likelihoods == pytest.approx(theirs.log_likelihoods, abs=1e-3)
            assert mine.prediction("acc") == theirs.prediction("acc")
            assert mine.prediction("acc_norm") == theirs.prediction("acc_norm")


def test_one_search(models: dict[str, str], tmp_path: Path) -> None:
    """LoRA starts alike, too: A is drawn module by module in one order, and B is zero, however its rows are ordered."""
    short = ["--search.outer_steps=3", "--search.inner_steps=1", "--search.batch_size=2", "--search.average_last=1"]
    short += ["--data.train_rows=48", "--data.validation_rows=16"]
    alphas = {}
    for family, model in models.items():
        flags = [f"--output_dir={tmp_path / family}", f"--backbone.model={model}", *short]
        assert main(["search", "--config", str(RECIPE), *flags]) == 0
        selection = Selection.read(tmp_path / family / "search" / "selection.json")
        assert selection.alpha is not None
        alphas[selection.base.architecture] = torch.tensor(selection.alpha)
    expected = alphas.pop("LlamaForCausalLM")
    assert expected.abs().max() > 0.1
    for architecture in ("MistralForCausalLM", "GlmForCausalLM"):
        torch.testing.assert_close(alphas.pop(architecture), expected, rtol=0, atol=2e-3)
