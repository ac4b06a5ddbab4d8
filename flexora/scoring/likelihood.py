"""Log-likelihoods of answer tokens, with the language-model head run on the positions that predict them alone."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from flexora.data.batch import Batch, branch_mask

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
    ids = batch["input_ids"]
    if batch["branched"]:
        layout = {"attention_mask": _attention_mask(base, batch), "position_ids": batch["position_ids"]}
    else:
        # Plain causal attention is right: padding stands on the right, where no token looks. Without a mask torch takes
        # its flash kernels, and shares the keys of grouped queries instead of copying them. Padding is counted on, or
        # transformers would take its zeros for the beginnings of packed sequences.
        layout = {"position_ids": torch.arange(ids.shape[1], device=ids.device)[None]}
    hidden = base.get_decoder()(input_ids=ids, use_cache=False, **layout).last_hidden_state
    logits = base.get_output_embeddings()(hidden.flatten(0, 1)[batch["source"]])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bf16 log-softmax would round the loss
    return -F.cross_entropy(_capped(base.config, logits), batch["target"], reduction="none")


def choice_log_likelihoods(model: PreTrainedModel | PeftModel, batch: Batch) -> Tensor:
    """Summed log-likelihood of each choice, ``[total choices]``, in nats."""
    tokens = token_log_likelihoods(model, batch)
    sums = tokens.new_zeros(int(batch["choices"].sum()))
    return sums.index_add(0, batch["choice"], tokens)


def answer_loss(model: PreTrainedModel | PeftModel, batch: Batch) -> Tensor:
    """The loss of a batch, summed over its :func:`~flexora.data.batch.terms`: a scalar in nats.

    That is the negative log-likelihood of the answer tokens; or, where the batch contrasts choices, the cross-entropy
    of the right choice under a softmax over the summed log-likelihoods of all choices of its question.
    """
    if not batch["contrast"]:
        return -token_log_likelihoods(model, batch).sum()
    scores = torch.split(choice_log_likelihoods(model, batch), batch["choices"].tolist())
    padded = pad_sequence(list(scores), batch_first=True, padding_value=-math.inf)
    return F.cross_entropy(padded, batch["answers"], reduction="sum")


def _capped(config: Any, logits: Tensor) -> Tensor:
    """The logits soft-capped, as the forward of Gemma 2 does it."""
    cap = _setting(config, "final_logit_softcapping")
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _attention_mask(base: Any, batch: Batch) -> Tensor | dict[str, Tensor]:
    """Who sees whom: one mask for all layers, or one for each kind of layer where the model has several."""
    window, kinds = _setting(base.config, "sliding_window"), _setting(base.config, "layer_types")
    if kinds is None:
        return _for_attention(base, branch_mask(batch, window))
    windows = {"full_attention": None, "sliding_attention": window}
    return {kind: _for_attention(base, branch_mask(batch, windows[kind])) for kind in dict.fromkeys(kinds)}


def _setting(config: Any, name: str) -> Any:
    """A setting that the model follows, or nothing: files may hold those of other architectures, which do nothing."""
    return getattr(config, name) if name in _known(config.__class__) else None


@cache
def _known(config_class: Any) -> frozenset[str]:
    return frozenset(config_class().to_dict())


def _for_attention(base: Any, mask: Tensor) -> Tensor:
    """A mask as the attention implementation takes it."""
    if base.config._attn_implementation == "sdpa":
        return mask
    dtype = base.get_input_embeddings().weight.dtype  # eager attention adds its mask to the scores
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
