"""Attach an adapter to exactly the chosen modules, and check that nothing else is adapted."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file

from flexora.backbone.adapter_files import read_config, require_weights, unreadable
from flexora.backbone.families import Family, family_of
from flexora.backbone.methods import require_modules
from flexora.errors import FlexoraError, ran_out_of_memory

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from flexora.search.selection import Selection


def attach(model: PreTrainedModel, adapter: PeftConfig, selection: Selection, family: Family) -> PeftModel:
    """Put a fresh adapter on the chosen projections of the chosen layers.

    PEFT is given full module names: they express any choice, and avoid its trap of reading an empty
    ``layers_to_transform`` as all layers. Any method that adapts linear modules by name will do, those too that are
    not PEFT's own: a configuration and a tuner of yours, in the tables of ``peft.mapping`` (what
    ``peft.utils.register_peft_method`` fills for the names that PEFT knows).

    Args:
        model: The frozen base model; its layers are replaced in place.
        adapter: PEFT configuration; ``target_modules`` holds short names of projections or nothing.
        selection: The layers and their projections.
        family: The model's family.

    Raises:
        FlexoraError: If the method adapts no modules by name, limits the layers itself, does not fit the model or
            would be rounded in half precision, or if PEFT adapted other modules than asked.
    """
    require_modules(adapter)
    wanted = {family.module_name(layer, name) for layer, names in selection.targets.items() for name in names}
    config = copy.deepcopy(adapter)
    config.task_type = "CAUSAL_LM"
    config.revision = getattr(model.config, "_commit_hash", None)  # of a base from the hub: which one it was
    config.target_modules = wanted
    if isinstance(config, IA3Config):  # it asks for full names there too, once it is loaded again
        inner = config.feedforward_modules or {"down_proj"}
        config.feedforward_modules = {name for name in wanted if name.rsplit(".", 1)[-1] in inner}
    try:
        # from_pretrained gives a model in evaluation mode, in which checkpointing and dropout would stay off.
        peft_model = get_peft_model(model, config).train()
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if ran_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise FlexoraError(f"adapter: {type(adapter).__name__}: {reason[:300]}; change that setting") from error
    model.disable_input_require_grads()  # PEFT does as transformers; see Backbone.load_model
    adapted = adapted_modules(peft_model)
    if adapted != wanted:
        wrong = sorted(adapted ^ wanted)[0]
        raise FlexoraError(f"adapter: PEFT adapted {len(adapted)} modules where {len(wanted)} were asked, e.g. {wrong}")
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
            raise FlexoraError(
                f"adapter: {type(adapter).__name__} trains {name} in {parameter.dtype}, which rounds most steps away; "
                "set backbone.dtype to float32 and trainer.precision to bf16-mixed"
            )
    return peft_model


def adapted_modules(model: PeftModel) -> set[str]:
    """Full names of the base model's modules that an adapter sits on."""
    return {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def draw_again(model: PeftModel, adapter: LoraConfig) -> None:
    """Give LoRA a new start, drawn by torch's generators: random A, and B = 0."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.lora_A:
                module.reset_lora_parameters(name, adapter.init_lora_weights)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put a saved adapter on its base model.

    Raises:
        FlexoraError: If the folder holds no whole adapter, or it does not fit the model.
    """
    file, config = require_weights(folder), read_config(folder)
    # PEFT looks there, on the hub too, for what the vocabulary was; an adapter from elsewhere names another place.
    config.base_model_name_or_path = model.name_or_path
    try:
        weights = load_file(file)
        adapted: PeftModel = PeftModel.from_pretrained(model, str(folder), config=config)
    except (AttributeError, OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        if ran_out_of_memory(error):
            raise
        raise unreadable(folder, error) from error
    # The embeddings may have been saved too, and are then part of what PEFT loads.
    expected = (get_peft_model_state_dict(adapted, save_embedding_layers=saved) for saved in (False, True))
    left_over = min((sorted(weights.keys() ^ tensors.keys()) for tensors in expected), key=len)
    if left_over:  # PEFT loads what fits, and at most warns
        raise FlexoraError(
            f"the adapter {folder} does not fit the model, e.g. {left_over[0]}; name one made for this base model"
        )
    return adapted


def trainable_parameters(model: PeftModel) -> int:
    """Number of parameters that the optimiser may change."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def adapter_size(model: PeftModel) -> tuple[int, int]:
    """Number of decoder layers with an adapter, and number of its parameters that are trained.

    A folder may hold more: VeRA's frozen random projections, SHiRA's indices.
    """
    prefix = family_of(type(model.get_base_model()).__name__).layers + "."
    names = [name for name in adapted_modules(model) if name.startswith(prefix)]  # the head may be adapted too
    loaded = trainable_parameters(model) == 0
    if loaded:  # PEFT freezes what it loads for inference
        model.set_requires_grad("default")
    parameters = trainable_parameters(model)
    if loaded:
        model.set_requires_grad("default", requires_grad=False)
    return len({name.removeprefix(prefix).split(".", 1)[0] for name in names}), parameters
