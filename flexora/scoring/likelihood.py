"""Log-likelihoods of answer tokens, with the language-model head run on the positions that predict them alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from flexora.data.batch import PADDING, Batch, branch_mask

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def token_log_likelihoods(model: PreTrainedModel | PeftModel, batch: Batch) -> Tensor:
    """Log-probability of each answer token given what comes before it.

    The decoder runs on all tokens, the head only on ``batch["source"]``: with a large vocabulary the logits of the
    prompt would cost more memory than the adapter, its gradients and its optimiser together.

    Args:
        model: A causal language model, with or without an adapter.
        batch: Packed rows.

    Returns:
        ``[m]`` in nats, float32 (float64 for a float64 model), in the order of ``batch["target"]``.
    """
    base = cast("Any", model.get_base_model() if hasattr(model, "get_base_model") else model)
    hidden = base.get_decoder()(
        input_ids=batch["input_ids"],
        attention_mask=_attention_mask(base, batch),
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state
    logits = base.get_output_embeddings()(hidden.flatten(0, 1)[batch["source"]])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bf16 log-softmax would round the loss
    return -F.cross_entropy(logits, batch["target"], reduction="none")


def choice_log_likelihoods(model: PreTrainedModel | PeftModel, batch: Batch) -> Tensor:
    """Summed log-likelihood of each choice, ``[total choices]``, in nats."""
    tokens = token_log_likelihoods(model, batch)
    sums = tokens.new_zeros(int(batch["choices"].sum()))
    return sums.index_add(0, batch["choice"], tokens)


def answer_loss(model: PreTrainedModel | PeftModel, batch: Batch) -> Tensor:
    """Summed negative log-likelihood of the answer tokens, a scalar in nats; divide by a token count for the mean."""
    return -token_log_likelihoods(model, batch).sum()


def _attention_mask(base: Any, batch: Batch) -> Tensor | None:
    if not batch["branched"]:
        return batch["segments"] != PADDING
    mask = branch_mask(batch, window=getattr(base.config, "sliding_window", None))
    if base.config._attn_implementation == "sdpa":
        return mask
    dtype = base.get_input_embeddings().weight.dtype  # eager attention adds its mask to the scores
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
