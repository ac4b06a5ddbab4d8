"""``flexora convert``: tokens against SentencePiece's own, and what a converted model is good for."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import AutoTokenizer

from flexora.backbone.chatglm3 import GENERATIONS
from flexora.backbone.loading import Backbone
from flexora.cli import main
from tests.tiny import recipe_text

TEXTS = [
    "The cat sat on the mat, and the people were soppy about sophisticated peoples.",
    "Question: which layers deserve an adapter? Answer: those where it lowers the loss.",
    "今天的天气很好，我们去公园散步吧。你好，世界！",  # noqa: RUF001
    "def f(x):\n    return x ** 2  # aaaa bbbb hahaha\n",
    "2023年10月27日 3.14159 1,000,000",
]


def sentencepiece_model(**options: Any) -> bytes:
    """A small BPE model with bytes for what it does not know."""
    written = io.BytesIO()
    settings = {"model_type": "bpe", "vocab_size": 480, "byte_fallback": True, "minloglevel": 2, **options}
    SentencePieceTrainer.train(sentence_iterator=iter(TEXTS * 3), model_writer=written, **settings)
    return written.getvalue()


#: As Llama's kind is trained: text as it is, every space counts.
VERBATIM = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@pytest.mark.parametrize(
    "options",
    [
        VERBATIM,
        {},
        VERBATIM | {"split_digits": True, "allow_whitespace_only_pieces": True},
        VERBATIM | {"user_defined_symbols": ["<n>", "a.", "a.b", "  "]},
    ],
    ids=["verbatim", "normalised", "digits and spaces", "symbols"],
)
def test_tokens_are_those_of_sentencepiece(options: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    source, target = shutil.copytree(checkpoint, tmp_path / "source"), tmp_path / "target"
    model = sentencepiece_model(**options)
    (source / "tokenizer.model").write_bytes(model)
    assert main(["convert", "chatglm3", str(source), str(target)]) == 0
    tokenizer, reference = AutoTokenizer.from_pretrained(target), SentencePieceProcessor(model_proto=model)
    rng = random.Random(0)
    alphabet = [*"ab<n> \nh天气的1.é\t🙂👩‍🔬", "the ", "people", "  ", "[MASK", "eop"]
    texts = ["".join(rng.choices(alphabet, k=rng.randint(0, 30))) for _ in range(1_000)] + TEXTS
    before = [480 + 1, 480 + 3]  # [gMASK] and sop lie second and fourth behind the vocabulary
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert ids == before + reference.encode(text), text
        assert tokenizer.decode(ids, skip_special_tokens=True) == reference.decode(reference.encode(text))
    names = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert tokenizer.convert_tokens_to_ids([*names, "<|observation|>"]) == list(range(480, 489))
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (2, 0, 0)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 256)
    # The published procedure: every message is its role's token, then "\n", then its words, each encoded by itself.
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "你好 people"},
        {"role": "assistant", "content": "hahaha"},
        {"role": "user", "content": "def f(x):\n    return"},
    ]
    expected = list(before)
    for message in messages:
        expected += [tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>")]
        expected += reference.encode("\n") + reference.encode(message["content"])
    chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat == [*expected, 480 + 7]


@pytest.mark.parametrize(
    ("kind", "model", "expected"),
    [
        ("chatglm3", None, "without a tokenizer: there is no "),
        ("chatglm3", b"dGhl IDA=\n", "is no model of SentencePiece"),
        ("chatglm3", {"model_type": "unigram", "hard_vocab_limit": False}, "is none of chatglm3"),
        ("chatglm3", {"user_defined_symbols": ["[gMASK]"]}, "is none of chatglm3"),
        ("chatglm3", {"vocab_size": 495}, "495 pieces, too many for padded_vocab_size 500"),
        ("chatglm3", {"treat_whitespace_as_suffix": True}, "as a fast tokenizer, .* would encode 'Question"),
        ("glm-4-9b", VERBATIM, "glm-4-9b has none of SentencePiece"),
        ("chatglm2", VERBATIM, "its tokenizer has 485 tokens, without a chat template"),
        ("without sentencepiece", VERBATIM, r"needs sentencepiece; run pip install 'flexora\[chatglm3\]'"),
    ],
)
def test_weights_are_converted_whatever_the_tokenizer_is(
    kind: str,
    model: dict[str, Any] | bytes | None,
    expected: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = shutil.copytree(checkpoint, tmp_path / "source"), tmp_path / "target"
    if model is not None:
        content = model if isinstance(model, bytes) else sentencepiece_model(**model)
        (source / "tokenizer.model").write_bytes(content)
    if kind not in GENERATIONS:
        kind = "chatglm3"
        monkeypatch.setattr("flexora.backbone.chatglm3_tokenizer.find_spec", lambda _name: None)
    assert main(["convert", kind, str(source), str(target)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.search(expected, line)
    assert (target / "tokenizer.json").exists() == ("its tokenizer has" in expected)
    assert Backbone(str(target)).load_model().config.num_hidden_layers == 3


def test_a_converted_model_is_searched_and_fine_tuned(checkpoint: Path, benchmark_folder: Path, tmp_path: Path) -> None:
    source, target = shutil.copytree(checkpoint, tmp_path / "source"), tmp_path / "target"
    (source / "tokenizer.model").write_bytes(sentencepiece_model(**VERBATIM))
    assert main(["convert", "chatglm3", str(source), str(target)]) == 0
    recipe = tmp_path / "recipe.yaml"
    text = recipe_text(target, benchmark_folder, tmp_path / "out").replace("max_length: 64", "max_length: 128")
    recipe.write_text(text)
    for phase in ("search", "finetune"):
        assert main([phase, "--config", str(recipe)]) == 0
    chosen = json.loads((tmp_path / "out" / "search" / "selection.json").read_text())
    assert 0 < len(chosen["layers"]) <= 3
    adapter = load_file(tmp_path / "out" / "finetune" / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapter} == {"q_proj", "v_proj"}
