"""From a question to token ids: where each continuation starts, cut on the left of the prompt, never in the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from flexora.data.question import Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncodedQuestion(TypedDict):
    """One question in tokens.

    Attributes:
        sequences: Token ids of context and continuation, one list per choice.
        starts: For each sequence the position of the continuation's first token (at least 1).
        chars: For each choice its number of characters, without the space before it: the divisor of ``acc_norm``.
        answer: Index of the right choice.
    """

    sequences: list[list[int]]
    starts: list[int]
    chars: list[int]
    answer: int


def encode(question: Question, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedQuestion:
    """Tokenise every pair the way lm-evaluation-harness does.

    Context and continuation are tokenised together and the continuation is what follows the context's own tokens, so
    that merges across the border fall to the continuation. Spaces at the end of a context move to the continuation.

    Raises:
        ValueError: If a continuation alone does not fit into ``max_length`` tokens beside one token of context.
    """
    encoded = EncodedQuestion(sequences=[], starts=[], chars=[], answer=question.answer)
    for index, (context, continuation) in enumerate(question.pairs):
        stripped = context.rstrip()
        spaced = context[len(stripped) :] + continuation
        if stripped:
            whole = list(tokenizer(stripped + spaced)["input_ids"])
            start = len(tokenizer(stripped)["input_ids"])
        else:  # something must come before the first scored token
            first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            whole = [first, *tokenizer(spaced, add_special_tokens=False)["input_ids"]]
            start = 1
        if start >= len(whole):  # it was merged into the context's last token
            raise ValueError(f"choice {index} adds no token to its context")
        overhang = max(0, len(whole) - max_length)
        if start - overhang < 1:
            answer_length = len(whole) - start
            raise ValueError(f"choice {index} has {answer_length} tokens, which max_length {max_length} cannot hold")
        encoded["sequences"].append(whole[overhang:])
        encoded["starts"].append(start - overhang)
        encoded["chars"].append(len(continuation.removeprefix(" ")))
    return encoded
