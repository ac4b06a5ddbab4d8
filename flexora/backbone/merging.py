"""Merge an adapter into its base model: a folder that transformers loads by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError

from flexora.backbone.adapters import load_adapter
from flexora.errors import FlexoraError
from flexora.files import new_folder

if TYPE_CHECKING:
    from pathlib import Path

    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from flexora.backbone.loading import Backbone

#: What the merged model is compared on. Tokens at random would give larger logits, and larger rounding in them.
TEXT = "Question: Which layers deserve an adapter?\nAnswer: Those where it lowers the loss on rows that are held out."


def merge(backbone: Backbone, adapter: Path, target: Path) -> float:
    """Write base model and adapter as one model: weights as safetensors, configuration, tokenizer.

    The sum is PEFT's. It is made in ``backbone.dtype``, and with the unquantised weights.

    Args:
        backbone: The base model.
        adapter: A PEFT folder made for it.
        target: The folder to write, whole or not at all.

    Returns:
        The largest difference between the logits of the merged model and those of base and adapter on :data:`TEXT`.

    Raises:
        FlexoraError: If the target exists or cannot be written, the base model is stored quantised, or the adapter does
            not fit, cannot be merged, or gives weights that are not finite.
    """
    with new_folder(target) as made:
        base = replace(backbone, quantization=None, gradient_checkpointing=False).load_model()
        if getattr(base, "is_quantized", False):
            raise FlexoraError(
                f"backbone.model: {backbone.model} is stored quantised, which a sum would round; name its full weights"
            )
        tokenizer = backbone.load_tokenizer()
        ids = tokenizer(TEXT, return_tensors="pt").input_ids
        adapted = load_adapter(base, adapter).eval()
        expected = _logits(adapted, ids)
        merged = _merged(adapted, adapter)
        difference = float((_logits(merged, ids) - expected).abs().max())
        merged.config.use_cache = backbone.load_config().use_cache  # training alone has no use for it
        try:
            merged.save_pretrained(made)
            tokenizer.save_pretrained(made)
        except (ValueError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise FlexoraError(f"cannot write {target}: {reason[:200]}; make room or choose another place") from error
    return difference


def _merged(model: PeftModel, folder: Path) -> PreTrainedModel:
    kind = model.peft_config["default"].peft_type.value
    if not isinstance(model.base_model, BaseTuner):  # prompts are no change of weights
        raise FlexoraError(f"the adapter {folder} is of type {kind}, which cannot be merged; use it as an adapter")
    base = model.get_base_model()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    shared = [name for name, module in base.named_modules() if module in ends and isinstance(module, kinds)]
    if shared and base.config.tie_word_embeddings:
        raise FlexoraError(
            f"the adapter {folder} changes {shared[0]}, whose weights the model has in a second place too; use it as "
            "an adapter, or untie the model's embeddings first"
        )
    try:
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FlexoraError(
            f"the adapter {folder} ({kind}) cannot be merged: {reason[:200]}; take another adapter"
        ) from error
    return merged


@torch.no_grad()
def _logits(model: PeftModel | PreTrainedModel, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids).logits
    return logits
