"""What is estimated on a model without data beside what torch's profiler sees a real one allocate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from flexora.backbone.loading import Backbone
from flexora.data.batch import Batch, collate
from flexora.data.bilevel import OuterBatch
from flexora.data.encoding import EncodedQuestion
from flexora.estimate.rehearsal import rehearse_evaluation, rehearse_finetune, rehearse_search
from flexora.estimate.sketch import Sketch, autocast
from flexora.finetune.module import FinetuneModule
from flexora.scoring.likelihood import answer_loss, choice_log_likelihoods
from flexora.search.estimators import FirstOrder, Unrolled
from flexora.search.module import SearchModule
from tests.benchmarks.hypergradient import peak_bytes
from tests.tiny import tiny_model

ADAPTER = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    """Saved models in which activations outweigh weights, as in a real one."""
    root = tmp_path_factory.mktemp("estimate")
    sizes = {"hidden_size": 64, "intermediate_size": 160, "head_dim": 16, "vocab_size": 1000}
    families = ("llama", "glm", "gemma2", "gemma3")
    for family in families:
        tiny_model(family, layers=6, **sizes).save_pretrained(root / family)
    return {family: Backbone(str(root / family)) for family in families}


def batch(lengths: tuple[int, ...] = (60, 60, 60, 40), *, choices: int = 1) -> Batch:
    """Rows of different lengths, some with several choices behind a prompt."""
    questions = [
        EncodedQuestion(
            sequences=[[1] * (length - 12) + [2 + choice] * 12 for choice in range(choices)],
            starts=[length - 12] * choices,
            chars=[12] * choices,
            answer=0,
            unscored=[],
            cut=0,
        )
        for length in lengths
    ]
    return collate(questions, list(range(len(questions))), 0, all_choices=choices > 1)


def sketched(backbone: Backbone) -> Sketch:
    return Sketch(**{name: getattr(backbone, name) for name in backbone.__dataclass_fields__})


SETTINGS: dict[str, tuple[str, dict[str, Any], str, Batch]] = {
    "float32": ("llama", {}, "32-true", batch()),
    "no padding": ("llama", {}, "32-true", batch((60, 60, 60))),
    "checkpointing": ("llama", {"gradient_checkpointing": True}, "32-true", batch()),
    "mixed": ("llama", {}, "bf16-mixed", batch()),
    "half base": ("llama", {"dtype": "bfloat16", "gradient_checkpointing": True}, "bf16-mixed", batch()),
    "eager": ("llama", {"attention": "eager"}, "32-true", batch()),
    "glm": ("glm", {}, "32-true", batch()),
    "soft-capped": ("gemma2", {}, "32-true", batch()),
    "windows": ("gemma3", {}, "32-true", batch()),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_finetune(name: str, models: dict[str, Backbone]) -> None:
    family, settings, precision, rows = SETTINGS[name]
    backbone = replace(models[family], **settings)
    estimated = rehearse_finetune(FinetuneModule(sketched(backbone), ADAPTER, selection="2-5"), rows, precision)

    module = FinetuneModule(backbone, ADAPTER, selection="2-5")
    same = rehearse_finetune(module, rows, precision)  # the same operations, on data
    assert estimated.peak == pytest.approx(same.peak, rel=0.01)
    for parameter in module.peft_model.parameters():
        parameter.grad = None
    frozen, trained = (
        [p for p in module.peft_model.parameters() if p.requires_grad is trains] for trains in (False, True)
    )
    optimizer = torch.optim.AdamW(trained, foreach=False)

    def steps() -> None:
        for _ in range(2):
            with autocast(precision):
                loss = answer_loss(module.peft_model, rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    above = peak_bytes(steps, torch.device("cpu"))
    weights = sum(p.nbytes for p in frozen)
    assert estimated.weights == pytest.approx(weights, rel=0.01)  # buffers: the frequencies of positions
    assert estimated.trained == pytest.approx(4 * sum(p.nbytes for p in trained), rel=0.05)  # and a count for each
    assert estimated.peak - estimated.weights == pytest.approx(above + sum(p.nbytes for p in trained), rel=0.1)


@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        (Unrolled(), {}),
        (Unrolled(), {"gradient_checkpointing": True}),
        (Unrolled(product="exact"), {}),
        (FirstOrder(), {}),
    ],
    ids=["unrolled", "checkpointing", "exact", "first order"],
)
def test_search(estimator: Any, settings: dict[str, Any], models: dict[str, Backbone]) -> None:
    backbone = replace(models["llama"], **settings)
    step = OuterBatch(outer_step=0, train=[[batch()]] * 2, validation=[batch()])

    def module(backbone: Backbone) -> SearchModule:
        return SearchModule(backbone, ADAPTER, inner_steps=2, estimator=estimator)

    estimated = rehearse_search(module(sketched(backbone)), step, "32-true")
    real = module(backbone)
    real.configure_model()

    def stepped() -> None:
        state = real.bilevel_problem.state  # kept for a signal within the step
        estimator(real.bilevel_problem, step, 0)
        del state

    above = peak_bytes(stepped, torch.device("cpu"))
    assert estimated.passing == pytest.approx(above, rel=0.1)
    assert estimated.trained == pytest.approx(
        4 * sum(t.nbytes for t in real.bilevel_problem.theta), rel=0.1
    )  # itself, two moments and a copy; and small things


@pytest.mark.parametrize(
    ("family", "precision"),
    [("llama", "32-true"), ("llama", "bf16-mixed"), ("gemma2", "32-true"), ("gemma3", "32-true")],
)
def test_evaluation(family: str, precision: str, models: dict[str, Backbone]) -> None:
    rows = batch(choices=3)
    estimated = rehearse_evaluation(FinetuneModule(sketched(models[family]), ADAPTER), rows, precision)
    module = FinetuneModule(models[family], ADAPTER)
    module.configure_model()
    module.peft_model.eval()

    def score() -> None:
        with torch.no_grad(), autocast(precision):
            choice_log_likelihoods(module.peft_model, rows)

    assert estimated.passing == pytest.approx(peak_bytes(score, torch.device("cpu")), rel=0.1)


def test_four_bits(models: dict[str, Backbone]) -> None:
    """Weights of 4 bits with their scales, as bitsandbytes holds them when it has loaded them."""
    pytest.importorskip("bitsandbytes")
    backbone = replace(models["llama"], quantization="nf4")
    estimated = rehearse_finetune(FinetuneModule(sketched(backbone), ADAPTER), batch(), "32-true")
    real = backbone.load_model()
    states = [p.quant_state for p in real.parameters() if hasattr(p, "quant_state")]
    assert states
    scales = sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    assert estimated.weights == pytest.approx(sum(p.nbytes for p in real.parameters()) + scales, rel=0.01)


def test_a_big_model_takes_no_memory(tmp_path: Path) -> None:
    """The shapes of Llama-3-8B: 8,030,261,248 parameters, of which none is made."""
    config = tiny_model("llama").config
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
    config.update(sizes | {"head_dim": 128, "num_hidden_layers": 32, "vocab_size": 128256})
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path)
    memory = rehearse_evaluation(FinetuneModule(Sketch(str(tmp_path), dtype="bfloat16"), ADAPTER), batch(), "32-true")
    assert memory.weights == pytest.approx(2 * 8_030_261_248, rel=1e-6)
