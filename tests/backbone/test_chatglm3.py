"""``flexora convert``: logits against a reference of the published forward pass, tokens against SentencePiece's own."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer, GlmForCausalLM

from flexora.backbone import chatglm3_weights
from flexora.backbone.chatglm3 import GENERATIONS, glm_config
from flexora.backbone.loading import Backbone
from flexora.cli import main
from flexora.errors import FlexoraError
from tests.backbone.chatglm3_reference import CHATGLM3_6B, TINY, Reference, random_reference, save_checkpoint
from tests.tiny import recipe_text

ODD = {
    "rope_ratio": 50,
    "hidden_size": 44,
    "num_attention_heads": 6,
    "multi_query_group_num": 3,
    "kv_channels": 6,  # 3 channels turn, which makes 2 pairs
    "ffn_hidden_size": 31,
    "padded_vocab_size": 301,
}


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("chatglm3", {}),
        ("chatglm3", {"multi_query_group_num": 1, "add_qkv_bias": False}),
        ("chatglm3", {"multi_query_group_num": 4, "layernorm_epsilon": 0.1}),
        ("chatglm3", ODD),
        ("chatglm2", {"rope_ratio": 4}),
        ("glm-4-9b", {"rope_ratio": 500, "layernorm_epsilon": 1.5625e-07, "eos_token_id": [2, 5], "pad_token_id": 2}),
    ],
    ids=["as published", "one group", "no sharing", "odd sizes", "positions", "glm-4"],
)
def test_logits_are_those_of_the_published_forward_pass(kind: str, changed: dict[str, Any], tmp_path: Path) -> None:
    reference = random_reference(TINY | changed, positions=kind == "chatglm2")
    source, target = save_checkpoint(tmp_path / "source", reference), tmp_path / "target"
    assert main(["convert", kind, str(source), str(target)]) == 0
    # In float64 what is left are GLM's own norms and angles, which are float32 whatever the weights are.
    for dtype, allowed in ((torch.float32, 1e-4), (torch.float64, 1e-5)):
        model = AutoModelForCausalLM.from_pretrained(target, dtype=dtype).eval()
        reference.to(dtype)
        for length in (1, 6, 200):
            ids = torch.randint(reference.settings["padded_vocab_size"], (2, length))
            with torch.no_grad():
                difference = (model(ids).logits - reference(ids)).abs().max()
            assert difference < allowed, (dtype, length)
    assert model.config.eos_token_id == reference.settings["eos_token_id"]
    assert model.config.max_position_embeddings == 256


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_the_checkpoints_own_bits_whatever_the_files(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chatglm3_weights, "SHARD_SIZE", "20KB")
    reference = random_reference(TINY)
    source, target = save_checkpoint(tmp_path / "source", reference, dtype, files=3), tmp_path / "target"
    (source / "MODEL_LICENSE").write_text("terms")
    assert main(["convert", "chatglm3", str(source), str(target)]) == 0
    files = sorted(target.glob("*.safetensors"))
    assert len(files) > 3
    written = {name: tensor for file in files for name, tensor in load_file(file).items()}
    config = glm_config(TINY, GENERATIONS["chatglm3"])
    with torch.device("meta"):
        assert set(written) == set(GlmForCausalLM(config).state_dict())
    weights = {name: tensor.to(dtype) for name, tensor in reference.state_dict().items()}
    fused = torch.cat([written[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"])
    assert torch.equal(fused, weights["transformer.encoder.layers.1.self_attention.query_key_value.weight"])
    assert torch.equal(written["lm_head.weight"], weights["transformer.output_layer.weight"])
    assert sum(tensor.numel() for tensor in written.values()) == sum(tensor.numel() for tensor in weights.values())
    assert {tensor.dtype for tensor in written.values()} == {dtype}
    loaded = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    assert loaded.dtype == dtype
    assert all(torch.equal(tensor, written[name]) for name, tensor in loaded.state_dict().items())
    assert (target / "MODEL_LICENSE").read_text() == "terms"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights without a tokenizer."""
    return save_checkpoint(tmp_path_factory.mktemp("chatglm3") / "source", random_reference(TINY), files=2)


def setting(name: str, value: object) -> Callable[[Path], None]:
    """A change of ``config.json``."""

    def change(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text()) | {name: value}
        (folder / "config.json").write_text(json.dumps(settings))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """A change of the second file of weights."""

    def rewrite(folder: Path) -> None:
        file = folder / "model-00002-of-00002.safetensors"
        weights = load_file(file)
        change(weights)
        save_file(weights, file)

    return rewrite


def truncate(folder: Path) -> None:
    file = folder / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def no_safetensors(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))


NORM = "transformer.encoder.final_layernorm.weight"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        *(
            (setting(name, value), f"config.json: {name} is ")
            for name, value in {
                "model_type": "llama",
                "multi_query_attention": False,
                "rmsnorm": False,
                "post_layer_norm": False,
                "apply_residual_connection_post_layernorm": True,
                "add_bias_linear": True,
                "interleaved_qkv": True,
                "original_rope": False,
                "fp32_residual_connection": True,
                "hidden_dropout": 0.1,
                "tie_word_embeddings": True,
                "quantization_bit": 4,
                "pre_seq_len": 128,
                "ffn_hidden_size": None,
                "num_layers": 0,
                "layernorm_epsilon": "small",
                "rope_ratio": 0,
                "eos_token_id": None,
            }.items()
        ),
        (setting("multi_query_group_num", 3), "multi_query_group_num 3 does not divide num_attention_heads 4"),
        (setting("num_layers", 4), "layers.3.self_attention.query_key_value.weight is missing"),
        (setting("num_layers", 2), "7 tensors are not of this model, transformer.encoder.layers.2.input_layernorm"),
        (setting("ffn_hidden_size", 47), r"dense_h_to_4h.weight has shape \[96, 32\], and config.json says \[94, 32\]"),
        (tensors(lambda weights: weights.popitem()), "is missing; fetch the checkpoint again"),
        (tensors(lambda weights: weights.update(vision=torch.ones(2))), "1 tensors are not of this model, vision"),
        (tensors(lambda weights: weights.update({NORM: torch.ones(32).to(torch.int8)})), "stored as I8"),
        (
            lambda folder: shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "b.safetensors"),
            "more than",
        ),
        (truncate, r"cannot read .*00001.*; fetch it again"),
        (no_safetensors, r"no \*.safetensors; .*weights_only=True"),
        (lambda folder: (folder / "config.json").unlink(), "cannot read .*config.json"),
    ],
)
def test_what_cannot_be_converted_is_refused_before_a_byte_is_written(
    damage: Callable[[Path], object],
    expected: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = shutil.copytree(checkpoint, tmp_path / "source")
    damage(source)
    assert main(["convert", "chatglm3", str(source), str(tmp_path / "out" / "target")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flexora convert: error: ")
    assert re.search(expected, line)
    assert list((tmp_path / "out").iterdir()) == []


def test_places(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "chatglm3", str(tmp_path / "none"), str(tmp_path / "target")]) == 2
    assert "none does not exist; name a folder or a hub id" in capsys.readouterr().err
    assert main(["convert", "chatglm3", str(checkpoint), str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", "--help"]) == 0
    assert "NOT on the real 12 GB checkpoint" in capsys.readouterr().out


def test_a_converted_model_has_a_name(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXORA_CACHE", str(tmp_path / "cache"))
    backbone = Backbone("converted:mine")
    with pytest.raises(FlexoraError, match="flexora convert --help says how"):
        backbone.resolve()
    source = shutil.copytree(checkpoint, tmp_path / "Mine")
    assert main(["convert", "chatglm3", str(source)]) == 0
    assert Path(backbone.resolve()) == tmp_path / "cache" / "converted" / "mine"
    assert backbone.load_config().architectures == ["GlmForCausalLM"]
    for name in ("converted:../mine", "converted:", "converted:.hidden"):
        with pytest.raises(FlexoraError, match="names no converted model"):
            Backbone(name).resolve()


def test_no_code_is_fetched_from_the_hub(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(checkpoint)

    monkeypatch.setattr("flexora.verbs.convert.snapshot_download", snapshot)
    arguments = ["convert", "chatglm3", "THUDM/chatglm3-6b", str(tmp_path / "target"), "--revision", "abc"]
    assert main(arguments) == 0
    assert (asked["name"], asked["revision"]) == ("THUDM/chatglm3-6b", "abc")
    wanted = ["config.json", "model-00001-of-00007.safetensors", "tokenizer.model", "MODEL_LICENSE"]
    code = ["modeling_chatglm.py", "tokenization_chatglm.py", "quantization.py", "pytorch_model-00001-of-00007.bin"]
    assert list(filter_repo_objects(wanted + code, allow_patterns=asked["patterns"])) == wanted


@pytest.mark.parametrize(
    ("model", "targets", "a_layer"),
    [
        ("reference", ["query_key_value"], 69_632),
        ("glm", ["q_proj", "v_proj"], 100_352),
        ("glm", ["q_proj", "k_proj", "v_proj"], 135_168),
    ],
)
def test_lora_parameters_of_chatglm3_6b(model: str, targets: list[str], a_layer: int) -> None:
    with torch.device("meta"):
        if model == "reference":
            base: torch.nn.Module = Reference(CHATGLM3_6B)
        else:
            base = GlmForCausalLM(glm_config(CHATGLM3_6B, GENERATIONS["chatglm3"]))
    adapted = get_peft_model(base, LoraConfig(r=8, target_modules=targets))
    assert sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad) == 28 * a_layer
    assert sum(parameter.numel() for parameter in base.parameters()) - 28 * a_layer == 6_243_584_000


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
