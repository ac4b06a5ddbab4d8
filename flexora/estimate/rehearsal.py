"""The steps of the three phases, run on a model without data; what they hold is what the phases will hold.

Everything is computed as on a CPU, whatever the recipe's device, so that every machine says the same. A GPU differs in
what a kernel needs for itself, in dropout (a mask of one byte where the CPU's takes four), and in what lies beside the
tensors: the CUDA context and what the allocator keeps in reserve. A process on a CPU may take more as well: glibc keeps
holes between tensors that come and go (``python -m tests.benchmarks.estimate --holes``), and weights that are converted
or quantised while they are read need their old form, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flexora.data.batch import Batch, terms
from flexora.estimate.sketch import CpuKernels, autocast
from flexora.estimate.storages import LiveStorages
from flexora.scoring.likelihood import answer_loss, choice_log_likelihoods
from flexora.search.estimators import Unrolled

if TYPE_CHECKING:
    from peft import PeftModel

    from flexora.data.bilevel import OuterBatch
    from flexora.finetune.module import FinetuneModule
    from flexora.search.module import SearchModule

#: Micro-batches of a step that are rehearsed: the third holds what the second holds.
MICRO_BATCHES = 2


@dataclass(frozen=True)
class Memory:
    """What a phase holds at its peak, in bytes.

    Attributes:
        weights: The frozen base model.
        trained: What stays from step to step beside it: the adapter, its gradients, the optimiser's moments.
        passing: The rest at the peak: activations and temporaries, and what the search keeps of its inner steps.
    """

    weights: int
    trained: int
    passing: int

    @property
    def peak(self) -> int:
        """All of it."""
        return self.weights + self.trained + self.passing


def rehearse_finetune(module: FinetuneModule, batch: Batch, precision: str | None, accumulate: int = 1) -> Memory:
    """An optimiser step that is not the first: the gradients and moments of earlier ones are there.

    Args:
        module: The fine-tune, on a :class:`~flexora.estimate.sketch.Sketch`; its model is built here.
        batch: The batch of each micro-step.
        precision: The trainer's precision.
        accumulate: Micro-batches of a step.
    """
    module.configure_model()
    storages, model = LiveStorages(), _in_precision(module.peft_model, precision).train()
    weights = _weights(model, storages)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with storages, CpuKernels():
        optimizer = torch.optim.AdamW(parameters, lr=module.learning_rate, weight_decay=module.weight_decay)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        storages.restart()
        for micro in range(min(accumulate, MICRO_BATCHES)):
            with autocast(precision):
                loss = answer_loss(model, batch) / terms(batch)
            if not micro:  # the order of Lightning's closure
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            del loss
        optimizer.step()
    return _memory(storages, weights)


def rehearse_search(module: SearchModule, batch: OuterBatch, precision: str | None) -> Memory:
    """An outer step by the recipe's estimator, and a check of its hypergradient where checks are asked for.

    Args:
        module: The search, on a :class:`~flexora.estimate.sketch.Sketch`; its model is built here.
        batch: The outer step's batches.
        precision: The trainer's precision.
    """
    module.configure_model()
    problem, storages = module.bilevel_problem, LiveStorages()
    weights = _weights(_in_precision(module.model, precision), storages)
    problem.state = problem.optimizer.init(problem.theta)
    storages.add(chain.from_iterable(problem.state.buffers))
    train = [_largest(batches) for batches in batch["train"]]
    fewer: OuterBatch = {**batch, "train": train, "validation": _largest(batch["validation"])}
    estimators = [module.estimator, *([] if module.check_every is None else [Unrolled(product="exact")])]
    with storages, CpuKernels(), autocast(precision):
        theta, state = problem.copy_theta(), problem.state  # what SearchFiles keeps for a signal within the step
        storages.restart()
        for estimator in estimators:
            estimator(problem, fewer, seed=0)
        del state  # its place is the next one's
    memory = _memory(storages, weights)
    del theta
    return memory


def rehearse_evaluation(module: FinetuneModule, batch: Batch, precision: str | None) -> Memory:
    """Scoring with an adapter.

    Args:
        module: A fine-tune whose adapter is scored, on a :class:`~flexora.estimate.sketch.Sketch`; its model is built
            here.
        batch: The batch.
        precision: The trainer's precision.
    """
    module.configure_model()
    storages, model = LiveStorages(), _in_precision(module.peft_model, precision).eval()
    weights = _weights(model, storages)
    with storages, torch.no_grad(), CpuKernels(), autocast(precision):
        choice_log_likelihoods(model, batch)
    return _memory(storages, weights)


def _largest(batches: Sequence[Batch]) -> list[Batch]:
    """The micro-batches of a step that are rehearsed."""
    return sorted(batches, key=lambda batch: batch["input_ids"].numel(), reverse=True)[:MICRO_BATCHES]


def _in_precision(model: PeftModel, precision: str | None) -> PeftModel:
    return model.double() if precision == "64-true" else model


def _weights(model: PeftModel, storages: LiveStorages) -> int:
    """Count the model, and return the bytes of what is frozen of it."""
    parameters = list(model.parameters())
    storages.add(chain((p for p in parameters if not p.requires_grad), model.buffers(), _scales(parameters)))
    frozen = storages.live
    storages.add(parameters)
    return frozen


def _scales(parameters: Sequence[Tensor]) -> Iterator[Tensor]:
    """What bitsandbytes keeps beside weights of 4 bits: scales, and the scales of scales."""
    for parameter in parameters:
        if (state := getattr(parameter, "quant_state", None)) is not None:
            yield from (state.absmax, state.state2.absmax)


def _memory(storages: LiveStorages, weights: int) -> Memory:
    """What was found; called while the model and the optimiser are there and what passes is gone."""
    return Memory(weights, storages.live - weights, storages.peak - storages.live)
