"""A tiny bilevel problem in float64, and the oracle: autograd through every inner step, with a tensor as gate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from flexora.backbone.adapters import attach
from flexora.backbone.families import family_of
from flexora.data.batch import Batch, collate
from flexora.data.bilevel import OuterBatch
from flexora.data.encoding import EncodedQuestion
from flexora.scoring.likelihood import answer_loss
from flexora.search.gates import Gates, gates_of
from flexora.search.inner import ClipByNorm, InnerOptimizer
from flexora.search.named import resolve_selection
from flexora.search.problem import BilevelProblem
from flexora.search.schedule import Schedule, constant
from flexora.search.units import Units
from tests.tiny import tiny_model

LAYERS = 4


@dataclass
class Toy:
    """A problem and the sites of its gates: (module, place of its gate in alpha)."""

    problem: BilevelProblem
    sites: list[tuple[LoraLayer, int]]
    scaling: float = 2.0  # lora_alpha / r


def toy(
    family: str,
    optimizer: InnerOptimizer,
    clip: float | None = None,
    dropout: float = 0.0,
    schedule: Schedule = constant,
    modulewise: bool = False,
) -> Toy:
    """A tiny model with LoRA on every layer, alpha off its start, in float64."""
    model = in_float64(tiny_model(family, LAYERS)).requires_grad_(False)
    architecture = type(model).__name__
    known = family_of(architecture)
    selection = resolve_selection("all", architecture, LAYERS, known.expand(None))
    torch.manual_seed(1)
    peft_model = attach(model, LoraConfig(r=2, lora_alpha=4, lora_dropout=dropout), selection, known).double()
    generator = torch.Generator().manual_seed(2)
    units = Units(LAYERS, tuple(selection.targets[0]) if modulewise else None)
    alpha = torch.randn(units.shape, generator=generator, dtype=torch.float64) * 0.3
    gates = Gates(peft_model, known.layers, units)
    problem = BilevelProblem(peft_model, gates, alpha, optimizer, ClipByNorm(clip), answer_loss, schedule)
    return Toy(problem, gate_sites(peft_model, units))


def gate_sites(model: PeftModel, units: Units) -> list[tuple[LoraLayer, int]]:
    """Every adapted module, and the place of its gate in alpha."""
    return [
        (module, units.index(int(name.split("layers.", 1)[1].split(".", 1)[0]), name.rsplit(".", 1)[1]))
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    ]


def in_float64(model: PreTrainedModel) -> PreTrainedModel:
    """Compute in float64 throughout: transformers rounds its norms to float32 whatever the weights are."""
    for module in model.double().modules():
        if type(module).__name__.endswith("RMSNorm"):
            around_zero = hasattr(module, "eps")  # Gemma's weights are added to 1
            eps = module.eps if around_zero else module.variance_epsilon
            norm = torch.nn.RMSNorm(module.weight.shape, eps=eps, dtype=torch.float64)
            norm.weight = torch.nn.Parameter(module.weight.detach() + around_zero)
            module.forward = norm.forward
    return model


def random_batch(seed: int, rows: int = 3) -> Batch:
    """Random token rows with answers of differing length."""
    generator = torch.Generator().manual_seed(seed)
    questions = []
    for _ in range(rows):
        context, answer = (int(torch.randint(3, 7, (), generator=generator)) for _ in range(2))
        tokens = torch.randint(0, 256, (context + answer,), generator=generator).tolist()
        questions.append(
            EncodedQuestion(sequences=[tokens], starts=[context], chars=[answer], answer=0, unscored=[], cut=0)
        )
    return collate(questions, list(range(rows)), 257, all_choices=False)


def outer_batch(inner_steps: int, accumulate: int = 1, seed: int = 10) -> OuterBatch:
    """Random data of one outer step."""
    train = [[random_batch(seed + 10 * t + i) for i in range(accumulate)] for t in range(inner_steps)]
    return OuterBatch(outer_step=0, train=train, validation=[random_batch(seed + 1_000)])


def set_tensor_gates(case: Toy, gates: Tensor) -> None:
    """Write gates into PEFT's scaling as tensors: autograd then differentiates through them."""
    flat = gates.flatten()
    for module, unit in case.sites:
        module.scaling["default"] = case.scaling * flat[unit]


def mean_loss(case: Toy, batches: list[Batch], theta: list[Tensor], seed: int, *, train: bool) -> Tensor:
    """Loss as a differentiable function of theta and of the gates that stand in the model."""
    names = [name for name, parameter in case.problem.model.named_parameters() if parameter.requires_grad]
    case.problem.model.train(train)
    tokens = sum(batch["target"].numel() for batch in batches)
    total = torch.zeros((), dtype=theta[0].dtype)
    for index, batch in enumerate(batches):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + index)

            class Stateless(torch.nn.Module):
                """The loss as a module, so that functional_call can swap the parameters."""

                def __init__(self, model: torch.nn.Module) -> None:
                    super().__init__()
                    self.model = model

                def forward(self, batch: Batch) -> Tensor:
                    return answer_loss(self.model, batch)  # type: ignore[arg-type]

            swapped = {f"model.{name}": value for name, value in zip(names, theta, strict=True)}
            total = total + torch.func.functional_call(Stateless(case.problem.model), swapped, (batch,)) / tokens
    return total


@sdpa_kernel(SDPBackend.MATH)  # the fused kernels have no double backward
def oracle(case: Toy, batch: OuterBatch, seed: int, stride: int) -> Tensor:
    """The hypergradient by autograd through all inner steps; the graph of every step is kept."""
    problem = case.problem
    alpha = problem.alpha.clone().requires_grad_()
    set_tensor_gates(case, gates_of(alpha))
    theta = [parameter.detach().clone().requires_grad_() for parameter in problem.theta]
    buffers = [[buffer.clone() for buffer in kept] for kept in problem.state.buffers]
    count = problem.state.step
    for t, micro in enumerate(batch["train"]):
        loss = mean_loss(case, micro, theta, seed + t * stride, train=True)
        gradients = list(torch.autograd.grad(loss, theta, create_graph=True))
        if problem.clip.max_norm is not None:
            norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
            factor = torch.clamp(problem.clip.max_norm / (norm + 1e-6), max=1.0)
            gradients = [gradient * factor for gradient in gradients]
        lr = problem.optimizer.lr * problem.schedule(count)
        count += 1
        stepped = [problem.optimizer.rule(*parts, count, lr) for parts in zip(theta, gradients, buffers, strict=True)]
        theta, buffers = [value for value, _ in stepped], [kept for _, kept in stepped]
    outer = mean_loss(case, batch["validation"], theta, seed, train=False)
    (hypergradient,) = torch.autograd.grad(outer, alpha)
    problem.gates.restore()
    return hypergradient


def warm_up(case: Toy, steps: int) -> None:
    """Leave the cold start B = 0."""
    for step in range(steps):
        case.problem.inner_step([random_batch(5_000 + step)], seed=step)
