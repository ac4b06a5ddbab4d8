"""ChatGLM2's and ChatGLM3's tokenizer without remote code: their SentencePiece model as a fast tokenizer.

The published tokenizer encodes text by SentencePiece, puts ``[gMASK]`` and ``sop`` before it, and knows special tokens
behind the SentencePiece vocabulary. The fast one gives the same ids, which is tried on :data:`PROBES` before it is
written. Two things differ. ``sop`` and ``eop`` are called ``<sop>`` and ``<eop>``. And special tokens are found in
texts: ``<|user|>`` in a prompt is the token, where the published one reads eight characters.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

from flexora.backbone.chatglm3 import Generation
from flexora.errors import FlexoraError

if TYPE_CHECKING:
    from transformers import GlmConfig

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
BPE = 2
#: The kinds of pieces that are no words, by their number in SentencePiece's format.
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
#: What the fast tokenizer must encode as SentencePiece does.
PROBES = (
    "Question: Which layers deserve an adapter?\nAnswer: Those where it lowers the loss.",
    "  two spaces before,  two between, one behind ",
    "\n\nlines\r\n\tand tabs\t\n",
    "你好，世界！今天的天气怎么样？ 2023年10月27日",  # noqa: RUF001
    "混合 mixed 文本 text，标点。（括号）",  # noqa: RUF001
    "3.14159 1,000,000 0x7f 12345678901234567890",
    "emoji 🙂👩‍🔬🇨🇳 café naïve Ωmega ﬁ ① ½ \u00a0nbsp \u3000wide",
    "def f(x):\n    return x ** 2  # aaaa bbbbbb \\n {}[]<>",
    "people soppy [MASK sop eop",
    "aaaaaaaaaaaaa hahahahaha -------- ======== ........",
    " ",
    "",
)


def convert_tokenizer(folder: Path, config: GlmConfig, generation: Generation) -> PreTrainedTokenizerFast:
    """Make a fast tokenizer of a checkpoint's ``tokenizer.model``.

    Args:
        folder: The checkpoint's folder.
        config: The model's configuration.
        generation: Which generation it is of.

    Raises:
        FlexoraError: If sentencepiece is not installed, the file is missing or none of SentencePiece's BPE models, or
            a probe is encoded in another way. The model is of use without: it then needs a tokenizer from elsewhere.
    """
    file = folder / "tokenizer.model"
    if not generation.special_tokens:
        raise FlexoraError(
            f"{generation.name} has none of SentencePiece; copy that of zai-org/glm-4-9b-hf (or -chat-hf)"
        )
    if find_spec("sentencepiece") is None:
        raise FlexoraError("it needs sentencepiece; run pip install 'flexora[chatglm3]' and convert again")
    if not file.is_file():
        raise FlexoraError(f"there is no {file}")
    from sentencepiece import SentencePieceProcessor

    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
        reference = SentencePieceProcessor(model_proto=proto.SerializeToString())
    except Exception as error:  # protobuf and SentencePiece have their own, without a common base
        raise FlexoraError(f"{file} is no model of SentencePiece") from error
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    added = [token for token in generation.special_tokens if token not in vocabulary]
    if proto.trainer_spec.model_type != BPE or len(added) < len(generation.special_tokens):
        raise FlexoraError(f"{file} is none of {generation.name}: a BPE model without the special tokens")
    if len(vocabulary) + len(added) > config.vocab_size:
        raise FlexoraError(f"{file} has {len(vocabulary)} pieces, too many for padded_vocab_size {config.vocab_size}")
    tokenizer = _fast(proto, vocabulary, added, config.max_position_embeddings)
    tokenizer.chat_template = generation.chat_template
    symbols = [f"a{piece.piece}b" for piece in proto.pieces if piece.type == USER_DEFINED]
    for text in (*PROBES, *symbols):
        if tokenizer(text, add_special_tokens=False)["input_ids"] != reference.encode(text):
            raise FlexoraError(f"as a fast tokenizer, {file} would encode {text!r} in another way")
    return tokenizer


def _fast(proto: Any, vocabulary: dict[str, int], added: list[str], max_length: int) -> PreTrainedTokenizerFast:
    scores = {piece.piece: piece.score for piece in proto.pieces}
    no_words = {piece.piece for piece in proto.pieces if piece.type in (UNKNOWN, CONTROL, BYTE)}
    symbols = sorted((piece.piece for piece in proto.pieces if piece.type == USER_DEFINED), key=len, reverse=True)
    unknown, end = (proto.pieces[index].piece for index in (proto.trainer_spec.unk_id, proto.trainer_spec.eos_id))
    model = models.BPE(
        vocab=vocabulary,
        merges=generate_merges(vocabulary, scores, no_words),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
        ignore_merges=bool(symbols),  # a symbol is a token by itself
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = _normalizer(proto.normalizer_spec)
    if symbols:  # found before anything is merged, the longest first
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, symbols))), "isolated")
    decoding = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        decoding.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(decoding)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in added])
    prefix = [(token, tokenizer.token_to_id(token)) for token in ("[gMASK]", "<sop>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A",
        pair=f"[gMASK] <sop> $A $B:1 {end}:1",
        special_tokens=[*prefix, (end, vocabulary[end])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="[gMASK]",  # what a text begins with: a prompt that has it already does not get the prefix again
        eos_token=end,
        unk_token=unknown,
        pad_token=unknown,
        padding_side="left",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" +"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
