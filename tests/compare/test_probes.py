"""Each probe's scores against the same figures made by hand, in float64, on tiny models of the paper's families."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from flexora.backbone.loading import Backbone
from flexora.compare.probes import ActivationNorm, GradientNorm, LoraDrop
from flexora.compare.selectors import Task
from flexora.data.batch import Batch
from flexora.data.benchmarks import ArcEasy
from flexora.errors import FlexoraError
from flexora.finetune.module import FinetuneModule
from flexora.scoring.likelihood import answer_loss
from tests.tiny import PAPER

LAYERS = 4
BATCHES = 3
SCALING = 2.0  # lora_alpha / r
DROPOUT = 0.5  # were it on, no figure below would agree


@pytest.fixture
def task(tiny_models: dict[str, Path], benchmark_folder: Path) -> Callable[..., Task]:
    """A task on a tiny model, with rows of differing length in each batch."""

    def make(family: str, precision: str = "64-true", **adapter: object) -> Task:
        backbone = Backbone(str(tiny_models[family]), dtype="float64" if precision == "64-true" else "float32")
        lora = LoraConfig(r=2, lora_alpha=4, lora_dropout=DROPOUT, target_modules=["q_proj", "v_proj", "down_proj"])
        data = ArcEasy(backbone, source=str(benchmark_folder), batch_size=5, validation_rows=8, max_length=64)
        module = FinetuneModule(backbone, lora, learning_rate=0.01)
        settings = {"accelerator": "cpu", "precision": precision, "max_epochs": 3}
        return Task(LAYERS, "Tiny", 0, 0, selections={}, trainer=settings, module=module, data=data)

    return make


def model_of(task: Task) -> PeftModel:
    assert task.module is not None
    return task.module.peft_model


def measured_batches(task: Task) -> list[Batch]:
    """The first batches of an epoch of training rows."""
    assert task.data is not None
    batches = list(islice(task.data.train_dataloader(), BATCHES))
    assert any((batch["segments"] < 0).any() for batch in batches)  # there is padding to leave out
    return batches


def run_by_hand(task: Task, batches: list[Batch]) -> list[tuple[Tensor, tuple[Tensor, ...], list[list[Tensor]]]]:
    """For each batch its tokens, all hidden states, and the input of each adapted projection by layer."""
    model = model_of(task).eval()
    inputs: dict[int, list[Tensor]] = {}

    def keep(layer: int) -> Callable[..., None]:
        return lambda _, arguments: inputs.setdefault(layer, []).append(arguments[0])

    handles = [part.register_forward_pre_hook(keep(layer)) for layer, part in adapted(task)]
    found = []
    with torch.no_grad():
        for batch in batches:
            inputs.clear()
            real = batch["segments"] >= 0
            states = model(input_ids=batch["input_ids"], attention_mask=real.long(), output_hidden_states=True)
            found.append((real, states.hidden_states, [inputs[layer] for layer in range(LAYERS)]))
    for handle in handles:
        handle.remove()
    return found


def adapted(task: Task) -> list[tuple[int, LoraLayer]]:
    """Every adapted projection with its layer."""
    return [
        (int(name.split("layers.", 1)[1].split(".", 1)[0]), part)
        for name, part in model_of(task).named_modules()
        if isinstance(part, LoraLayer)
    ]


@pytest.mark.usefixtures("float64_throughout")
@pytest.mark.parametrize("family", PAPER)
def test_gradient_norm_is_that_of_the_weights_gradient_through_a(family: str, task: Callable[..., Task]) -> None:
    """dL/dB = s dL/dW A^T, with the gradient of the weights themselves by autograd."""
    case = task(family)
    found = GradientNorm(k=1, batches=BATCHES).scores(case)

    model, parts = model_of(case).eval(), adapted(case)
    for _, part in parts:
        part.lora_B["default"].weight.data.zero_()  # the fit has made its step; A's gradient was zero
    weights = [part.base_layer.weight.requires_grad_() for _, part in parts]
    batches = measured_batches(case)
    loss = torch.stack([answer_loss(model, batch) for batch in batches]).sum()
    loss = loss / sum(batch["target"].numel() for batch in batches)
    expected = [0.0] * LAYERS
    for (layer, part), gradient in zip(parts, torch.autograd.grad(loss, weights), strict=True):
        expected[layer] += float((SCALING * gradient @ part.lora_A["default"].weight.detach().T).square().sum())
    assert found == pytest.approx([total**0.5 for total in expected], rel=1e-9)
    assert len(set(found)) == LAYERS


@pytest.mark.usefixtures("float64_throughout")
@pytest.mark.parametrize("family", PAPER)
def test_activation_norm_is_that_of_the_hidden_states(family: str, task: Callable[..., Task]) -> None:
    case = task(family)
    found = ActivationNorm(k=1, batches=BATCHES).scores(case)
    layers = model_of(case).get_base_model().model.layers
    assert not any(layer._forward_hooks for layer in layers)

    ratios: list[list[Tensor]] = [[] for _ in range(LAYERS)]
    last: list[Tensor] = []  # transformers gives out the last layer's output normed
    layers[-1].register_forward_hook(lambda *call: last.append(call[-1]))
    for real, hidden, _ in run_by_hand(case, measured_batches(case)):
        states = [*hidden[:-1], last.pop(0)]
        for layer, (before, after) in enumerate(pairwise(states)):
            ratios[layer].append(((after - before).norm(dim=-1) / before.norm(dim=-1))[real])
    assert found == pytest.approx([float(torch.cat(tokens).mean()) for tokens in ratios], rel=1e-9)
    assert len(set(found)) == LAYERS


@pytest.mark.usefixtures("float64_throughout")
@pytest.mark.parametrize("family", PAPER)
def test_lora_drop_is_what_the_warm_lora_puts_out(family: str, task: Callable[..., Task]) -> None:
    case = task(family)
    found = LoraDrop(k=1, batches=BATCHES, steps=4).scores(case)

    totals, tokens = [0.0] * LAYERS, 0
    parts: list[list[LoraLayer]] = [[part for layer, part in adapted(case) if layer == i] for i in range(LAYERS)]
    for real, _, inputs in run_by_hand(case, measured_batches(case)):
        tokens += int(real.sum())
        for layer in range(LAYERS):
            for part, x in zip(parts[layer], inputs[layer], strict=True):
                a, b = (weights["default"].weight.detach() for weights in (part.lora_A, part.lora_B))
                out = SCALING * x @ a.T @ b.T
                totals[layer] += float(out[real].square().sum())
    assert found == pytest.approx([total / tokens for total in totals], rel=1e-9)
    assert min(found) > 0
    assert len(set(found)) == LAYERS


@pytest.mark.parametrize("probe", [GradientNorm, ActivationNorm, LoraDrop])
def test_probes_run_in_mixed_precision_and_choose_the_highest(
    probe: type[GradientNorm | ActivationNorm | LoraDrop], task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, half = (
        probe(k=2, batches=BATCHES).scores(task("llama", precision)) for precision in ("32-true", "bf16-mixed")
    )
    assert half == pytest.approx(whole, rel=0.1)
    assert half != whole
    monkeypatch.setattr(probe, "scores", lambda *_: [0.1, 0.4, 0.2, 0.3])
    assert probe(k=2).choose(task("llama")) == [1, 3]


def test_probes_refuse_to_look_at_nothing() -> None:
    with pytest.raises(FlexoraError, match=r"GradientNorm\.batches: 0 is too small"):
        GradientNorm(k=1, batches=0)
    with pytest.raises(FlexoraError, match=r"LoraDrop\.steps: 0 is too small"):
        LoraDrop(like="search", steps=0)


def test_lora_drop_refuses_other_adapters(task: Callable[..., Task]) -> None:
    case = task("llama")
    assert case.module is not None
    case.module.adapter = IA3Config()
    with pytest.raises(FlexoraError, match="LoraDrop measures LoRA, but the adapter is IA3Config"):
        LoraDrop(k=1).scores(case)
