"""``flexora convert``: weights and logits against a reference of the published forward pass."""

from __future__ import annotations

import json
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
from transformers import AutoModelForCausalLM, GlmForCausalLM

from flexora.backbone import chatglm3_weights
from flexora.backbone.chatglm3 import GENERATIONS, glm_config
from flexora.backbone.loading import Backbone
from flexora.cli import main
from flexora.errors import FlexoraError
from tests.backbone.chatglm3_reference import CHATGLM3_6B, TINY, Reference, random_reference, save_checkpoint

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
        with pytest.raises(FlexoraError, match="is no plain name"):
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
