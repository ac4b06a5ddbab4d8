"""Free answers: greedy generation from prompts of different lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from flexora.data.generative import until

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Settings of generation that are facts of the model.
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


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
    with _likeliest_tokens(model):
        written = cast("Any", model).generate(
            input_ids=ids,
            attention_mask=attended,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=pad,
            **stopping,
        )
    texts = tokenizer.batch_decode(written[:, length:], skip_special_tokens=True)
    return [until(text, stop) for text in texts]


@contextmanager
def _likeliest_tokens(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Leave the model no settings of generation but its special tokens.

    Whatever ``generate`` is not given it takes from the model's own settings, and ``None`` counts as not given: a
    penalty for repetition that a model was published with would decide over tokens.
    """
    from transformers import GenerationConfig

    base: Any = getattr(model, "get_base_model", lambda: model)()
    holders: list[Any] = [model] if base is model else [model, base]  # PEFT hands its own on to the base
    own = [holder.generation_config for holder in holders]
    plain = GenerationConfig(**{name: getattr(own[-1], name) for name in SPECIAL_TOKENS})
    try:
        for holder in holders:
            holder.generation_config = plain
        yield
    finally:
        for holder, config in zip(holders, own, strict=True):
            holder.generation_config = config
