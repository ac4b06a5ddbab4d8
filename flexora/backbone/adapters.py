"""Attach LoRA to exactly the chosen modules, and check with PEFT's own status that nothing else is adapted."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from peft import LoraConfig, PeftModel, get_layer_status, get_peft_model, get_peft_model_state_dict, load_peft_weights
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError

from flexora.backbone.families import Family, family_of
from flexora.errors import FlexoraError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from flexora.search.selection import Selection


#: Names of the weights in a PEFT folder.
WEIGHT_FILES = (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)


def attach(model: PreTrainedModel, adapter: LoraConfig, selection: Selection, family: Family) -> PeftModel:
    """Put a fresh adapter on the chosen projections of the chosen layers.

    PEFT is given full module names: they express any choice, and avoid its trap of reading an empty
    ``layers_to_transform`` as all layers.

    Args:
        model: The frozen base model; its layers are replaced in place.
        adapter: PEFT configuration; ``target_modules`` holds short names of projections or nothing.
        selection: The layers and their projections.
        family: The model's family.

    Raises:
        FlexoraError: If the configuration limits the layers itself, or PEFT adapted other modules than asked.
    """
    if adapter.layers_to_transform is not None or adapter.layers_pattern is not None:
        raise FlexoraError("adapter: layers_to_transform and layers_pattern are set by the selection; remove them")
    wanted = {family.module_name(layer, name) for layer, names in selection.targets.items() for name in names}
    config = copy.deepcopy(adapter)
    config.task_type = "CAUSAL_LM"
    if config.init_lora_weights != "loftq":
        config.loftq_config = {}  # a typed parser fills the defaults in, which PEFT then warns about
    config.target_modules = wanted
    # from_pretrained gives a model in evaluation mode, in which checkpointing and dropout would stay off.
    peft_model = get_peft_model(model, config).train()
    model.disable_input_require_grads()  # PEFT does as transformers; see Backbone.load_model
    adapted = {status.name.removeprefix("model.") for status in get_layer_status(peft_model)}
    if adapted != wanted:
        wrong = sorted(adapted ^ wanted)[0]
        raise FlexoraError(f"adapter: PEFT adapted {len(adapted)} modules where {len(wanted)} were asked, e.g. {wrong}")
    return peft_model


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
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise FlexoraError(f"the adapter {folder} holds no {SAFETENSORS_WEIGHTS_NAME}; name a whole PEFT folder")
    try:
        weights = load_peft_weights(str(folder), device="cpu")
        adapted: PeftModel = PeftModel.from_pretrained(model, str(folder))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise FlexoraError(
            f"cannot load the adapter {folder}: {reason[:200]}; name a PEFT folder made for this base model"
        ) from error
    if not isinstance(adapted.peft_config["default"], LoraConfig):
        kind = adapted.peft_config["default"].peft_type.value
        raise FlexoraError(f"the adapter {folder} is of type {kind}; LoRA alone can be scored so far")
    left_over = sorted(weights.keys() ^ get_peft_model_state_dict(adapted).keys())
    if left_over:  # PEFT loads what fits, and at most warns
        raise FlexoraError(
            f"the adapter {folder} does not fit the model, e.g. {left_over[0]}; name one made for this base model"
        )
    return adapted


def trainable_parameters(model: PeftModel) -> int:
    """Number of parameters that the optimiser may change."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def adapter_size(model: PeftModel) -> tuple[int, int]:
    """Number of decoder layers with an adapter, and number of its parameters."""
    prefix = family_of(type(model.get_base_model()).__name__).layers + "."
    names = [status.name for status in get_layer_status(model)]  # the head may be adapted too
    layers = {name.split(prefix, 1)[1].split(".", 1)[0] for name in names if prefix in name}
    return len(layers), sum(tensor.numel() for tensor in get_peft_model_state_dict(model).values())
