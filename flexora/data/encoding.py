"""From text to token ids: where each continuation starts, cut on the left of the prompt, never in the answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
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
        cut: Tokens that the longest sequence has lost at its beginning.
    """

    sequences: list[list[int]]
    starts: list[int]
    chars: list[int]
    answer: int
    unscored: list[int]
    cut: int


#: A text, and whether the tokenizer's special tokens belong around it.
Text = tuple[str, bool]
#: Token ids of texts.
Tokens = Mapping[Text, list[int]]
#: How tokenizers write a space: SentencePiece, and bytes.
SPACES = ("\u2581", "\u0120")
#: Characters that do not merge with what follows them; the second where a text starts with the first.
LEADS = ("\n", ":")


def tokenize(texts: Iterable[Text], tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Tokenise texts in two calls at most, which is several times faster than one by one."""
    wanted = dict.fromkeys(texts)
    tokens: dict[Text, list[int]] = {}
    for special in (True, False):
        keys = [key for key in wanted if key[1] is special]
        if keys:
            # What is too long is cut, and told: transformers would warn of indexing errors before that.
            options = {"add_special_tokens": special, "return_attention_mask": False, "verbose": False}
            ids = tokenizer([text for text, _ in keys], **options)
            tokens.update(zip(keys, ids["input_ids"], strict=True))
    return tokens


def texts_of(row: Pairs, tokenizer: PreTrainedTokenizerBase) -> Iterator[Text]:
    """Every text that :func:`encode` needs in tokens."""
    for pair in row.pairs:
        context, continuation, special = _border(*pair, tokenizer, row)
        if context:
            yield context, special
            yield context + continuation, special
        elif not row.opened:
            yield continuation, False
        if row.opened:
            yield behind_special(continuation, tokenizer)


def behind_special(text: str, tokenizer: PreTrainedTokenizerBase) -> Text:
    """A text as it goes on behind others: many tokenizers put a space before the first word of what they are given."""
    return f"{tokenizer.eos_token}{_lead(text, tokenizer)}{text}", False


def tokens_behind(text: str, tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> list[int]:
    """The tokens of :func:`behind_special` without what stands before the text."""
    ids, lead = tokens[behind_special(text, tokenizer)], _lead(text, tokenizer)
    if lead:
        before = _leads(tokenizer)[lead]
        if ids[: len(before)] == before:
            return ids[len(before) :]
        ids = tokenizer(f"{tokenizer.eos_token}{text}", add_special_tokens=False)["input_ids"]  # the text took it in
    return ids[ids.index(tokenizer.eos_token_id) + 1 :]


def _lead(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What takes the space between the special token and a text; nothing where the tokenizer puts none there."""
    return next((lead for lead in _leads(tokenizer) if not text.startswith(lead)), "")


@lru_cache(maxsize=1)
def _leads(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """What may stand before a text, in tokens; empty where the tokenizer puts no space behind special tokens.

    Some do so, as SentencePiece does at the beginning of a text.
    """
    texts = [f"{tokenizer.eos_token}{text}" for text in ("a", *LEADS)]
    letter, *leads = tokenizer(texts, add_special_tokens=False)["input_ids"]
    behind = tokenizer.convert_ids_to_tokens(letter[letter.index(tokenizer.eos_token_id) + 1 :])
    return dict(zip(LEADS, leads, strict=True)) if behind[0].startswith(SPACES) else {}


def encode(
    row: Pairs, tokenizer: PreTrainedTokenizerBase, max_length: int, tokens: Tokens | None = None, room: int = 0
) -> EncodedQuestion:
    """Tokenise every pair the way lm-evaluation-harness does.

    Context and continuation are tokenised together and the continuation is what follows the context's own tokens, so
    that merges across the border fall to the continuation. Spaces at the end of a context move to the continuation.
    Where the model writes the answer itself, or a chat template has opened its turn, a context keeps its spaces (such
    as the line feed behind ``assistant``) and its own tokens, for that is what the model is then given; the harness
    scores such a line feed with each choice.

    Args:
        row: The pairs.
        tokenizer: The base model's tokenizer.
        max_length: Longest sequence in tokens.
        tokens: The texts of this row in tokens, among others.
        room: See :func:`overhang`.

    Raises:
        ValueError: If a continuation alone does not fit into ``max_length`` tokens beside one token of context.
    """
    tokens = tokenize(texts_of(row, tokenizer), tokenizer) if tokens is None else tokens
    encoded = EncodedQuestion(sequences=[], starts=[], chars=[], answer=row.answer, unscored=[], cut=0)
    for index, (context, continuation) in enumerate(row.pairs):
        before, scored, special = _border(context, continuation, tokenizer, row)
        if before:
            whole, prompt = tokens[before + scored, special], tokens[before, special]
            if row.opened and whole[: len(prompt)] != prompt:
                whole = [*prompt, *tokens_behind(scored, tokenizer, tokens)]
        else:  # something must come before the first scored token
            prompt = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
            whole = [*prompt, *(tokens_behind(scored, tokenizer, tokens) if row.opened else tokens[scored, False])]
        start = len(prompt)
        if start >= len(whole):  # it was merged into the context's last token
            raise ValueError(f"{row.name_of(index)} adds no token to its context")
        if row.closed:
            whole = [*whole, tokenizer.eos_token_id]
        cut = overhang(len(whole), start, max_length, room, row.name_of(index))
        encoded["sequences"].append(whole[cut:])
        encoded["starts"].append(start - cut)
        encoded["chars"].append(len(continuation.removeprefix(" ")))
        encoded["cut"] = max(encoded["cut"], cut)
    return encoded


def overhang(length: int, start: int, max_length: int, room: int, answer: str) -> int:
    """Tokens to cut off the beginning of a sequence.

    Args:
        length: Tokens of the sequence.
        start: Where its answer starts.
        max_length: Tokens that it may have.
        room: Tokens to leave behind the prompt for an answer that the model writes, so that a right one that is shorter
            does not decide how much of the prompt is there. 0 where no answer is written.
        answer: What messages call the answer.

    Raises:
        ValueError: If no token of the prompt would be left.
    """
    cut = max(0, max(length, start + room) - max_length)
    if start - cut < 1:
        raise ValueError(f"{answer} has {length - start} tokens, which max_length {max_length} cannot hold")
    return cut


def _border(context: str, continuation: str, tokenizer: PreTrainedTokenizerBase, row: Pairs) -> tuple[str, str, bool]:
    """Context, continuation with the spaces between them, and whether special tokens belong around both.

    They do not where there is no context, nor where a chat template has written it: with the beginning of text, or on
    purpose without.
    """
    before = context if row.opened else context.rstrip()
    begun = row.templated or before.startswith(tuple(filter(None, (tokenizer.bos_token, _beginning(tokenizer)))))
    return before, context[len(before) :] + continuation, bool(before) and not begun


@lru_cache(maxsize=1)
def _beginning(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer writes before a text by itself: ``<bos>``, ``[gMASK]<sop>``, or nothing."""
    return "".join(tokenizer.convert_ids_to_tokens(tokenizer("")["input_ids"]))
