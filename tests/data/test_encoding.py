"""Token borders against lm-evaluation-harness, cuts on the left, and the questions that cannot be encoded."""

from __future__ import annotations

import logging
import random
import re
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from flexora.data.encoding import encode
from flexora.data.question import Pairs
from tests.tiny import SPACED, byte_tokenizer, spaced_tokenizer

#: What tokenizers write before a text: nothing (Qwen), their beginning of text (Llama, Gemma), or two tokens that the
#: tokenizer does not call its beginning of text (GLM).
BEGINNINGS = {"plain": (), "bos": ("<s>",), "two": ("[gMASK]", "<sop>")}


def merging_tokenizer(*merges: str, begin: tuple[str, ...] = ("<s>",)) -> PreTrainedTokenizerFast:
    """Merges reach across spaces, and so across the border of context and continuation; ``begin`` is put before."""
    pieces = ["<s>", "</s>", "[gMASK]", "<sop>", *"abcĠ:", *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if begin:
        specials = [(piece, vocabulary[piece]) for piece in begin]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{' '.join(begin)} $A", special_tokens=specials
        )
    tokenizer.add_special_tokens(["[gMASK]", "<sop>"])
    bos = {"bos_token": "<s>"} if begin == ("<s>",) else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **bos)


def harness_pair(context: str, continuation: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What lm-evaluation-harness 0.4 does: ``TemplateLM.loglikelihood`` and ``_encode_pair`` for causal models."""
    if context == "":
        prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return [prefix], tokenizer.encode(continuation, add_special_tokens=False)
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces > 0:
        continuation = context[-n_spaces:] + continuation
        context = context[:-n_spaces]
    whole_enc = tokenizer.encode(context + continuation)
    context_enc_len = len(tokenizer.encode(context))
    return whole_enc[:context_enc_len], whole_enc[context_enc_len:]


def pair_of(context: str, *continuations: str) -> Pairs:
    return Pairs(tuple((context, continuation) for continuation in continuations), answer=0)


@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize("merges", [(), ("a b", "c Ġ"), ("Ġ a", "Ġa b", "b c", ": Ġ", "c c")], ids=len)
def test_borders_equal_the_harness(merges: tuple[str, ...], begin: tuple[str, ...]) -> None:
    tokenizer = merging_tokenizer(*merges, begin=begin)
    rng = random.Random(0)
    compared = 0
    for _ in range(400):
        context = rng.choice(["", "".join(rng.choices("abc :", k=rng.randint(1, 7)))])
        if context and not context.strip():
            continue  # the harness then scores a first token that nothing precedes
        continuations = ["".join(rng.choices("abc ", k=rng.randint(0, 3))) + rng.choice("abc") for _ in range(2)]
        expected = [harness_pair(context, continuation, tokenizer) for continuation in continuations]
        question = pair_of(context, *continuations)
        if not all(scored for _, scored in expected):
            with pytest.raises(ValueError, match=r"choice \d "):
                encode(question, tokenizer, 64)
            continue
        encoded = encode(question, tokenizer, 64)
        found = [(ids[:s], ids[s:]) for ids, s in zip(encoded["sequences"], encoded["starts"], strict=True)]
        assert found == expected, question
        compared += 1
    assert compared > 200


@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize("templated", [False, True])
def test_a_beginning_that_a_chat_template_has_written_is_not_written_again(
    begin: tuple[str, ...], templated: bool
) -> None:
    """Nor is it written where the template leaves it out, as Zephyr's does: servers do not write it either."""
    tokenizer = merging_tokenizer("a b", begin=begin)
    rows = [Pairs(((text, "c"),), 0, templated=templated) for text in ("ab", f"{''.join(begin)}ab")]
    bare, begun = (tokenizer.convert_ids_to_tokens(encode(row, tokenizer, 64)["sequences"][0]) for row in rows)
    assert begun == [*begin, "ab", "c"]
    assert bare == (["ab", "c"] if templated else begun)


@pytest.mark.parametrize(
    ("merges", "context"),
    [(("b c",), "ab"), (("b c", "a bc"), "ab")],
    ids=["as long as its context", "shorter than its context"],
)
def test_a_continuation_that_is_merged_away_is_refused(merges: tuple[str, ...], context: str) -> None:
    with pytest.raises(ValueError, match="choice 1 adds no token"):
        encode(pair_of(context, "a", "c"), merging_tokenizer(*merges), 64)


def test_spaces_at_the_end_of_a_context_move_to_the_continuation() -> None:
    tokenizer = byte_tokenizer()
    encoded = encode(pair_of("Answer:  ", "yes", " no"), tokenizer, 64)
    scored = [tokenizer.decode(ids[s:]) for ids, s in zip(encoded["sequences"], encoded["starts"], strict=True)]
    assert scored == ["  yes", "   no"]
    assert encoded["chars"] == [3, 2]


@pytest.mark.parametrize(("context", "answer"), [("a:  ", "bc"), ("ab", "ca"), ("ab ", " c")])
def test_an_answer_to_be_written_follows_the_tokens_of_its_prompt_alone(context: str, answer: str) -> None:
    """Merges across the border are left out: a model that is to write the answer is given the prompt alone."""
    tokenizer = merging_tokenizer("b c", "Ġ b", "Ġ Ġ")
    encoded = encode(Pairs(((context, answer),), 0, closed=True), tokenizer, 64)
    (ids,), (start,) = encoded["sequences"], encoded["starts"]
    assert ids[:start] == tokenizer.encode(context)
    assert ids[start:] == [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]


@pytest.mark.parametrize(("context", "choice"), [("a:  ", "bc"), ("ab", "ca"), ("ab ", "cb")])
def test_a_choice_follows_the_tokens_of_its_chat_alone(context: str, choice: str) -> None:
    """As an answer that is to be written, but for its end: a choice is only compared."""
    tokenizer = merging_tokenizer("b c", "Ġ b", "Ġ Ġ")
    encoded = encode(Pairs(((context, choice), (context, "a")), 0, templated=True), tokenizer, 64)
    assert [ids[:start] for ids, start in zip(encoded["sequences"], encoded["starts"], strict=True)] == [
        tokenizer.encode(context, add_special_tokens=False)  # the chat template writes a beginning of text, or none
    ] * 2
    scored = [ids[start:] for ids, start in zip(encoded["sequences"], encoded["starts"], strict=True)]
    assert scored == [tokenizer.encode(text, add_special_tokens=False) for text in (choice, "a")]


@pytest.mark.parametrize("scheme", SPACED)
@pytest.mark.parametrize("answer", ["bc", " bc", "\nbc", ":b"])
def test_no_space_is_put_before_an_answer_to_be_written(scheme: str, answer: str) -> None:
    """Tokenizers in SentencePiece's manner put one before the first word of whatever they are given."""
    spaced = spaced_tokenizer("abc:\n", scheme, ("\u2581", "a"), ("\u2581", "b"))
    encoded = encode(Pairs((("a: ", answer),), 0, closed=True), spaced, 64)
    pieces = ["\u2581a", ":", "\u2581", *({" bc": ["\u2581b", "c"]}.get(answer, answer)), "</s>"]
    assert spaced.convert_ids_to_tokens(encoded["sequences"][0]) == pieces


def test_a_longer_answer_than_may_be_written_is_cut_like_any_other() -> None:
    row = Pairs((("x" * 20, "y" * 9),), 0, closed=True)
    assert len(encode(row, byte_tokenizer(), 16, room=4)["sequences"][0]) == 16
    with pytest.raises(ValueError, match="the answer has 10 tokens, which max_length 10 cannot hold"):
        encode(row, byte_tokenizer(), 10, room=4)


@pytest.mark.parametrize("context", ["", "  "])
@pytest.mark.parametrize(("bos", "first"), [("<bos>", 256), (None, 257)], ids=["bos", "eos alone"])
def test_one_token_stands_before_an_answer_without_context(context: str, bos: str | None, first: int) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = bos
    encoded = encode(pair_of(context, "yes", "no"), tokenizer, 64)
    assert encoded["starts"] == [1, 1]
    assert [ids[0] for ids in encoded["sequences"]] == [first, first]
    assert [tokenizer.decode(ids[1:]) for ids in encoded["sequences"]] == [f"{context}yes", f"{context}no"]


def test_prompts_are_cut_on_the_left_and_answers_never() -> None:
    tokenizer = byte_tokenizer()
    question = pair_of("0123456789", " four", " eleven more")
    whole = encode(question, tokenizer, 64)
    longest = len(" eleven more")
    for max_length in range(longest + 1, 24):
        cut = encode(question, tokenizer, max_length)
        for ids, start, full, border in zip(
            cut["sequences"], cut["starts"], whole["sequences"], whole["starts"], strict=True
        ):
            assert ids == full[-max_length:]
            assert ids[start:] == full[border:]
            assert start >= 1
        assert cut["chars"] == whole["chars"]
    with pytest.raises(ValueError, match=re.escape(f"choice 1 has {longest} tokens, which max_length {longest} ")):
        encode(question, tokenizer, longest)


def test_transformers_does_not_warn_of_what_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer()
    logger = "transformers.tokenization_utils_base"
    with caplog.at_level("WARNING", logger), pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("transformers"), "propagate", True)
        encoded = encode(Pairs((("a" * 2 * tokenizer.model_max_length, " b"),), 0), tokenizer, max_length=64)
    assert encoded["cut"] > 0
    assert caplog.messages == []


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_an_empty_continuation_is_refused(empty: str) -> None:
    with pytest.raises(ValueError, match="choice 2 is empty"):
        pair_of("context", " a", " b", empty)


@pytest.mark.parametrize(
    ("pairs", "answer", "expected"),
    [
        (tuple(pairwise("cab")), 2, "answer 2 is out of range for 2 choices"),
        (tuple(pairwise("cab")), -1, "answer -1 is out of range"),
    ],
)
def test_questions_that_are_none(pairs: tuple[tuple[str, str], ...], answer: int, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Pairs(pairs, answer)
