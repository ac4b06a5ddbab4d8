"""What a gate can scale: plain LoRA, one size in every layer, that adds nothing at the start."""

from __future__ import annotations

from peft import LoraConfig, PeftConfig, PeftType

from flexora.backbone.methods import require_modules
from flexora.errors import FlexoraError

#: Starts at which LoRA adds nothing, whatever its gate.
PLAIN_STARTS = (True, "gaussian", "orthogonal")

#: Those that repeats draw anew.
DRAWN_STARTS = (True, "gaussian")


def plain_lora(adapter: PeftConfig, repeats: int) -> LoraConfig:
    """The configuration, which the search can take.

    Args:
        adapter: A configuration of PEFT.
        repeats: Repeats of the search; each draws LoRA's start anew.

    Raises:
        FlexoraError: If it is not plain LoRA, or does not start or repeat as the search needs it.
    """
    if not isinstance(adapter, LoraConfig) or adapter.peft_type != PeftType.LORA:
        raise FlexoraError(
            f"adapter: the search takes plain LoRA, not {type(adapter).__name__}; leave LoRA here and name the "
            "other in finetune.adapter, or fine-tune with --selection"
        )
    if adapter.init_lora_weights not in PLAIN_STARTS:
        raise FlexoraError(
            f"adapter.init_lora_weights: the search takes {' or '.join(map(str, PLAIN_STARTS))}, not "
            f"{adapter.init_lora_weights}, which a gate would scale as well; set it in finetune.adapter alone"
        )
    if repeats > 1 and adapter.init_lora_weights not in DRAWN_STARTS:
        raise FlexoraError(
            f"search.repeats: each draws LoRA's start anew, which is not done for adapter.init_lora_weights "
            f"{adapter.init_lora_weights}; leave it at true, or repeats at 1"
        )
    if adapter.rank_pattern:
        raise FlexoraError(
            "adapter.rank_pattern: the search compares layers of one size; remove it, or fine-tune with --selection"
        )
    require_modules(adapter)
    return adapter
