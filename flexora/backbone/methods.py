"""PEFT's methods: which of them can be put on chosen modules, and how their configurations are made from settings."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, TypeVar

from peft import AdaLoraConfig, LNTuningConfig, PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner

from flexora.errors import FlexoraError

Config = TypeVar("Config")

#: Stands for AdaLoRA's ``total_step`` until the trainer knows it.
UNKNOWN_STEPS = sys.maxsize

#: They have ``target_modules``, but need more than a linear module: ids of tasks, token ids, or blocks in a row.
_NOT_FOR_LINEAR = {PeftType.POLY, PeftType.TRAINABLE_TOKENS, PeftType.SHADOW}
#: Settings with which PEFT leaves a part of the method to the training loop, and what that is.
_UNASKED = {
    "kasa_config": "KaSA adds a loss of its own to each step's",
    "monteclora_config": "MonteCLoRA adds a loss of its own to each step's",
    "use_asa": "AdaMSS with ASA chooses its subspaces by a call after each step",
}


@dataclass
class FullWeights(LNTuningConfig):  # type: ignore[misc]  # PEFT is not typed
    """Full fine-tuning of the chosen projections: the baseline that every adapter saves memory against.

    PEFT's LN tuning copies the modules that it is given and trains the copies, whatever they are; so this is its
    configuration under a name that says what it does here, and what is saved is a plain PEFT folder.
    """


def sits_on_modules(adapter: PeftConfig) -> bool:
    """Whether a method adapts linear modules that it is told by name: prompts and prefixes do not."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(adapter.peft_type)
    named = isinstance(tuner, type) and issubclass(tuner, BaseTuner) and hasattr(adapter, "target_modules")
    return named and adapter.peft_type not in _NOT_FOR_LINEAR


def require_modules(adapter: PeftConfig) -> None:
    """Refuse a method that cannot be put on chosen layers.

    Raises:
        FlexoraError: If it adapts no linear modules by name, chooses layers by itself, waits for certain tokens, or
            needs more of the training than a loss and its gradients.
    """
    kind = type(adapter).__name__
    if not sits_on_modules(adapter):
        raise FlexoraError(f"adapter: {kind} adapts no linear modules by name; take one that does, such as LoraConfig")
    if getattr(adapter, "layers_to_transform", None) is not None or getattr(adapter, "layers_pattern", None):
        raise FlexoraError("adapter: layers_to_transform and layers_pattern are set by the selection; remove them")
    if getattr(adapter, "alora_invocation_tokens", None) is not None:  # PEFT looks for them where nothing passes here
        raise FlexoraError(
            "adapter.alora_invocation_tokens: an activated LoRA would stay switched off, for its tokens are not looked "
            "for; remove it"
        )
    for name, lacks in _UNASKED.items():
        if getattr(adapter, name, None):
            raise FlexoraError(f"adapter.{name}: {lacks}, which is not made here; remove it")


def build_config(class_type: type[Config], *_: Any, **settings: Any) -> Config:
    """Make a configuration of PEFT from the settings of a recipe, where every default is filled in.

    Raises:
        FlexoraError: If PEFT refuses the settings, or they fix AdaLoRA's number of steps, which the trainer knows.
    """
    if settings.get("init_lora_weights") != "loftq":
        settings.pop("loftq_config", None)  # its default, once filled in, is refused by AdaLoRA
    if issubclass(class_type, AdaLoraConfig):
        if settings.get("total_step") is not None:
            raise FlexoraError("adapter.total_step: AdaLoRA's steps are those of the trainer; remove it")
        settings["total_step"] = UNKNOWN_STEPS
    try:
        return class_type(**settings)
    except (TypeError, ValueError) as error:
        raise FlexoraError(
            f"adapter: {class_type.__name__}: {' '.join(str(error).split())}; change that setting"
        ) from error
