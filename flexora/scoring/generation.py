"""Free answers: greedy generation from prompts of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from flexora.data.generative import until

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop: Sequence[str] = (),
) -> list[str]:
    """What the model writes after each prompt, taking the likeliest token each time.

    Args:
        model: A causal language model, with or without an adapter.
        tokenizer: Its tokenizer.
        prompts: Token ids; they are padded on the left.
        max_new_tokens: Longest answer.
        stop: Texts that end an answer; they are cut off, and so is the end-of-text token.
    """
    device = next(model.parameters()).device
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    length = max(map(len, prompts))
    ids = torch.tensor([[pad] * (length - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    attended = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    stopping = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
    written = cast("Any", model).generate(
        input_ids=ids,
        attention_mask=attended,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        use_cache=True,
        pad_token_id=pad,
        **stopping,
    )
    texts = tokenizer.batch_decode(written[:, length:], skip_special_tokens=True)
    return [until(text, stop) for text in texts]
