"""The warm start: the chosen modules take over the LoRA weights that the search trained on all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import LoraConfig, PeftConfig, PeftType, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from flexora.backbone.adapter_files import read_config, require_weights
from flexora.errors import FlexoraError

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel
    from torch import Tensor

#: What the same A and B mean depends on these; how they are trained, by dropout for instance, may change.
DECISIVE = (
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "init_lora_weights",  # some of them change the base model
)


def require_lora(config: PeftConfig, subject: str = "adapter") -> None:
    """Refuse a warm start from, or of, anything but LoRA.

    Raises:
        FlexoraError: If the configuration is of another type; the message names its subject.
    """
    if config.peft_type != PeftType.LORA:
        raise FlexoraError(
            f"finetune.warm_start: LoRA takes over LoRA, but {subject} is of type {PeftType(config.peft_type).value}; "
            "set warm_start to false"
        )


def require_same_meaning(found: PeftConfig, adapter: PeftConfig, source: str) -> None:
    """Make sure that the weights of one LoRA mean the same in another.

    Args:
        found: The LoRA whose weights are the start.
        adapter: The LoRA that takes them over.
        source: Where the first one is from, for messages.

    Raises:
        FlexoraError: Naming the first setting of :data:`DECISIVE` in which they differ.
    """
    for name in DECISIVE:
        before, now = getattr(found, name), getattr(adapter, name)
        if before != now:
            raise FlexoraError(
                f"finetune.warm_start: {source} has {name} {before}, but the fine-tune has {now}; give both the same "
                f"adapter.{name}, or set warm_start to false"
            )


def require_start(folder: Path) -> PeftConfig:
    """Make sure that there is a LoRA to start from, and return its configuration.

    Raises:
        FlexoraError: If there is none.
    """
    if not (folder / CONFIG_NAME).is_file() or not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise FlexoraError(
            f"finetune.warm_start: there is no adapter of a search in {folder}; run flexora search for this selection "
            "first, or set warm_start to false"
        )
    try:
        found = read_config(folder)
    except FlexoraError as error:
        raise _unreadable(folder, error) from error
    require_lora(found, str(folder))
    return found


def read_start(folder: Path, adapter: LoraConfig) -> dict[str, Tensor]:
    """Read the weights of a PEFT folder, which must mean the same under the settings of another adapter.

    Returns:
        Tensors by PEFT's names of them, on the CPU.

    Raises:
        FlexoraError: If the folder holds no whole LoRA, or one with another setting of :data:`DECISIVE`.
    """
    require_same_meaning(require_start(folder), adapter, str(folder))
    try:
        weights: dict[str, Tensor] = load_file(require_weights(folder))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    return weights


def _unreadable(folder: Path, error: Exception) -> FlexoraError:
    reason = " ".join(str(error).split())
    return FlexoraError(f"finetune.warm_start: cannot read {folder}: {reason[:200]}; search again")


def fill(model: PeftModel, weights: dict[str, Tensor], source: str) -> None:
    """Copy weights into the modules that the model adapts; those of other modules are left aside.

    Args:
        model: The model with its adapter.
        weights: Tensors by PEFT's names of them.
        source: Where they are from, for messages.

    Raises:
        FlexoraError: If a module's weights are not among them, or of another shape.
    """
    own = get_peft_model_state_dict(model)
    for name, tensor in own.items():
        if name not in weights or weights[name].shape != tensor.shape:
            module = name.removeprefix("base_model.model.").split(".lora_")[0]
            raise FlexoraError(
                f"finetune.warm_start: {source} has no weights that fit {module}; search with the same base model and "
                "adapter.target_modules, or set warm_start to false"
            )
    set_peft_model_state_dict(model, {name: weights[name] for name in own})
