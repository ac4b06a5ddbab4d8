"""``flexora estimate``: parameters and the peak memory of each phase, before any weight is loaded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from peft import get_peft_model_state_dict
from rich import box
from rich.console import Console
from rich.table import Table

from flexora.backbone.adapters import adapted_modules, trainable_parameters
from flexora.backbone.limits import Phase
from flexora.data.generative import GenerativeDataModule
from flexora.errors import FlexoraError
from flexora.estimate.batches import (
    assumed_batch,
    assumed_step,
    evaluation_batches,
    finetune_batches,
    has_rows,
    micro_batches,
    search_batches,
    tokens,
)
from flexora.estimate.rehearsal import Memory, rehearse_evaluation, rehearse_finetune, rehearse_search
from flexora.estimate.sketch import Sketch
from flexora.finetune.module import FinetuneModule
from flexora.finetune.sharding import FullyShard
from flexora.search.module import SearchModule
from flexora.verbs.checks import build
from flexora.verbs.settings import Recipe, long_form

if TYPE_CHECKING:
    from flexora.backbone.loading import Backbone
    from flexora.data.batch import Batch
    from flexora.data.datamodule import AnswerDataModule


#: The memory of batches, and what is to be said of each.
Found = Iterator[tuple[Memory, str]]

#: What finds that of a phase: from the recipe, its data, the fine-tune, and the length of rows if it is assumed.
Estimate = Callable[[Recipe, "AnswerDataModule", FinetuneModule, int | None], Found]


def main(arguments: Sequence[str]) -> int:
    """Print what the phases of a recipe will take.

    Raises:
        FlexoraError: If the recipe does not suit them, or the model's configuration or local rows cannot be had.
    """
    length, rest = _length(arguments)
    recipe = Recipe("estimate", [long_form(argument) for argument in rest])
    data, finetune = _finetune(recipe)
    phases: dict[Phase, Estimate] = {"search": _search, "finetune": _finetuned} if data.trained else {}
    phases["evaluate"] = _evaluated
    for phase in phases:
        recipe.require_precision(phase)
    console = Console()
    for line in _facts(finetune):
        console.print(line, soft_wrap=True, highlight=False)
    wanted = length or (None if has_rows(data) else data.max_length)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("phase", "weights", "adapter,\noptimiser", "activations,\ntemporaries", "peak, MB"):
        table.add_column(name, justify="left" if name == "phase" else "right", no_wrap=True)
    table.add_column("largest batch")
    for phase, estimate in phases.items():
        memory, batch = max(estimate(recipe, data, finetune, wanted), key=lambda found: found[0].peak)
        parts = (memory.weights, memory.trained, memory.passing, memory.peak)
        table.add_row(phase, *(f"{part / 1e6:,.0f}" for part in parts), batch)
    console.print(table)
    console.print("tensors alone: Python, libraries and the allocator's reserve come on top", highlight=False)
    if _shards(recipe.trainer("finetune").get("strategy")):
        told = "finetune: numbers of one device that holds everything, unsharded; each of fsdp2's holds a part"
        console.print(told, soft_wrap=True, highlight=False)
    if wanted is not None:
        console.print(f"assumed: rows of {wanted:,} tokens, an eighth of them answers", soft_wrap=True, highlight=False)
    if isinstance(data, GenerativeDataModule):
        console.print("evaluate: without the answers that the model writes", soft_wrap=True, highlight=False)
    return 0


def _shards(strategy: str | dict[str, Any] | None) -> bool:
    """Whether a strategy, as a recipe names it, gives each device a part of the model."""
    name = strategy.get("class_path") if isinstance(strategy, dict) else strategy
    return str(name).rpartition(".")[2] in ("fsdp2", FullyShard.__name__)


def _length(arguments: Sequence[str]) -> tuple[int | None, list[str]]:
    """``--length N`` is the verb's own."""
    given, rest, text = iter(arguments), [], None
    for argument in given:
        name, equals, value = argument.partition("=")
        if name == "--length":
            text = value if equals else next(given, "")
        else:
            rest.append(argument)
    if text is not None and not (text.isdecimal() and int(text) > 1):
        raise FlexoraError(f"--length: {text!r} is no number of tokens; give at least 2")
    return None if text is None else int(text), rest


def _sketched(module: Any) -> Any:
    """The module of a phase on a model without data, and with an adapter that is not made from its weights."""
    module.backbone = Sketch(**asdict(module.backbone))
    if isinstance(getattr(module.adapter, "init_lora_weights", None), str):
        module.adapter = copy.copy(module.adapter)
        module.adapter.init_lora_weights = True
    module.initial_adapter = None  # weights too
    return module


def _finetune(recipe: Recipe) -> tuple[AnswerDataModule, FinetuneModule]:
    """The data, and a fine-tune of the layers that are known to be chosen, or of all."""
    text = recipe.sections["finetune"]["selection"]
    if text is None:
        text = str(recipe.folder.selection) if recipe.folder.selection.is_file() else "all"
    built = build(recipe, "finetune", FinetuneModule, recipe.module("finetune") | {"selection": text})
    return built.data, _sketched(built.model)


def _facts(module: FinetuneModule) -> list[str]:
    """Parameters of model and adapter."""
    backbone: Backbone = module.backbone
    plain = replace(backbone, quantization=None).load_model()
    module.configure_model()
    # Its own state_dict would ask 4-bit weights for numbers that nothing holds here.
    tensors = dict([*module.peft_model.named_parameters(), *module.peft_model.named_buffers()])
    adapter = get_peft_model_state_dict(module.peft_model, state_dict=tensors)
    layers = "all layers" if module.selection == "all" else "the chosen layers"
    size = sum(tensor.nbytes for tensor in adapter.values())
    return [
        f"base: {backbone.model}, {sum(p.numel() for p in plain.parameters()):,} parameters, "
        f"{backbone.quantization or backbone.dtype}",
        f"adapter: {len(adapted_modules(module.peft_model))} modules of {layers}, "
        f"{trainable_parameters(module.peft_model):,} trainable "
        f"parameters, file of {size / 1e6:,.1f} MB",
    ]


def _search(recipe: Recipe, data: AnswerDataModule, _: FinetuneModule, length: int | None) -> Found:
    precision = recipe.trainer("search").get("precision")
    search = _sketched(build(recipe, "search", SearchModule, recipe.module("search")).model)
    steps = search_batches(data, search) if length is None else [assumed_step(data, search, length)]
    for step in steps:
        largest = max(micro_batches(step), key=tokens)
        yield rehearse_search(search, step, precision), f"{_shape(largest)}, T = {search.inner_steps}"


def _finetuned(recipe: Recipe, data: AnswerDataModule, module: FinetuneModule, length: int | None) -> Found:
    trainer = recipe.trainer("finetune")
    precision, accumulate = trainer.get("precision"), trainer.get("accumulate_grad_batches") or 1
    if length is None:
        batches = finetune_batches(data)
    else:
        rows = min(data.batch_size, max(1, (data.max_tokens_per_batch or data.batch_size * length) // length))
        batches = [assumed_batch(rows, length, choices=data.objective == "choices")]
    for batch in batches:
        yield rehearse_finetune(module, batch, precision, accumulate), _shape(batch)


def _evaluated(recipe: Recipe, data: AnswerDataModule, module: FinetuneModule, length: int | None) -> Found:
    precision = recipe.trainer("evaluate").get("precision")
    if length is None:
        batches = evaluation_batches(data)
    else:
        batches = [assumed_batch(max(1, data.evaluate_tokens // length), length, choices=True)]
    for batch in batches:
        yield rehearse_evaluation(module, batch, precision), _shape(batch)


def _shape(batch: Batch) -> str:
    """What a batch is."""
    rows, length = batch["input_ids"].shape
    return f"{rows:,} x {length:,} tokens, {batch['target'].numel():,} of answers"
