"""From text to token ids: where each continuation starts, cut on the left of the prompt, never in the answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypedDict

from flexora.data.question import Pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncodedQuestion(TypedDict):
    """One question in tokens.

    Attributes:
        sequences: Token ids of context and continuation, one list per choice.
        starts: For each sequence the position of the continuation's first token (at least 1).
        chars: For each choice its number of characters, without the space before it: the divisor of ``acc_norm``.
        answer: Index of the right choice.
        unscored: Positions behind the start of the only sequence that are not scored: the user's turns of a chat.
    """

    sequences: list[list[int]]
    starts: list[int]
    chars: list[int]
    answer: int
    unscored: list[int]


#: Token ids of a text, with or without the tokenizer's special tokens around it.
Tokens = Mapping[tuple[str, bool], list[int]]


def tokenize(rows: Iterable[Pairs], tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Tokenise every text that :func:`encode` needs for these rows in two calls, which is several times faster."""
    wanted: dict[tuple[str, bool], None] = {}
    for row in rows:
        for pair in row.pairs:
            context, continuation, special = _border(*pair, tokenizer)
            texts = [context + continuation, context] if context else [continuation]
            wanted.update(((text, special), None) for text in texts)
    tokens: dict[tuple[str, bool], list[int]] = {}
    for special in (True, False):
        keys = [key for key in wanted if key[1] is special]
        if keys:
            texts = [text for text, _ in keys]
            ids = tokenizer(texts, add_special_tokens=special, return_attention_mask=False)["input_ids"]
            tokens.update(zip(keys, ids, strict=True))
    return tokens


def encode(
    row: Pairs, tokenizer: PreTrainedTokenizerBase, max_length: int, tokens: Tokens | None = None
) -> EncodedQuestion:
    """Tokenise every pair the way lm-evaluation-harness does.

    Context and continuation are tokenised together and the continuation is what follows the context's own tokens, so
    that merges across the border fall to the continuation. Spaces at the end of a context move to the continuation.

    Args:
        row: The pairs.
        tokenizer: The base model's tokenizer.
        max_length: Longest sequence in tokens.
        tokens: What :func:`tokenize` gave for this row among others.

    Raises:
        ValueError: If a continuation alone does not fit into ``max_length`` tokens beside one token of context.
    """
    tokens = tokenize([row], tokenizer) if tokens is None else tokens
    encoded = EncodedQuestion(sequences=[], starts=[], chars=[], answer=row.answer, unscored=[])
    for index, (context, continuation) in enumerate(row.pairs):
        before, scored, special = _border(context, continuation, tokenizer)
        if before:
            whole, start = tokens[before + scored, special], len(tokens[before, special])
        else:  # something must come before the first scored token
            first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            whole, start = [first, *tokens[scored, special]], 1
        if start >= len(whole):  # it was merged into the context's last token
            raise ValueError(f"choice {index} adds no token to its context")
        if row.closed:
            whole = [*whole, tokenizer.eos_token_id]
        overhang = max(0, len(whole) - max_length)
        if start - overhang < 1:
            answer_length = len(whole) - start
            raise ValueError(f"choice {index} has {answer_length} tokens, which max_length {max_length} cannot hold")
        encoded["sequences"].append(whole[overhang:])
        encoded["starts"].append(start - overhang)
        encoded["chars"].append(len(continuation.removeprefix(" ")))
    return encoded


def _border(context: str, continuation: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, bool]:
    """Context without the spaces at its end, continuation with them, and whether special tokens belong around them.

    They do not where there is no context, or where a chat template has written the beginning of text already.
    """
    before = context.rstrip()
    begun = bool(tokenizer.bos_token) and before.startswith(str(tokenizer.bos_token))
    return before, context[len(before) :] + continuation, bool(before) and not begun
