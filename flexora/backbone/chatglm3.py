"""ChatGLM3 as transformers' own GLM, without the checkpoint's remote code: which settings become which.

ChatGLM2, ChatGLM3 and the first GLM-4-9B share one decoder, of which ``GlmForCausalLM`` is the native form: RMSNorm
before attention and MLP, multi-query groups, a rotary embedding of interleaved pairs on the first half of each head,
SwiGLU. The weights only change their names, and ``query_key_value`` is cut into query, key and value by rows; nothing
is computed, so that the converted weights are the checkpoint's own bits.

LoRA counts differ from published ones. On ChatGLM3-6B (hidden size 4096, 32 heads of 128, 2 groups) LoRA of rank 8 on
the fused ``query_key_value`` has 69,632 parameters a layer, 1,949,696 in all 28: one A of 8 x 4096, shared by query,
key and value, and one B of 4608 x 8. On the separate projections each has an A of its own: 100,352 a layer on query
and value (the default here), 135,168 on query, key and value. The latter contains the former.

Checked in the tests against a reference of the published forward pass on random weights; not on the real checkpoint.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import GlmConfig

from flexora.errors import FlexoraError

#: The settings of which ``GlmForCausalLM`` knows one value alone: that value, and what a missing one stands for.
FIXED: dict[str, tuple[Any, Any]] = {
    "multi_query_attention": (True, False),
    "rmsnorm": (True, True),
    "post_layer_norm": (True, True),
    "apply_residual_connection_post_layernorm": (False, False),
    "add_bias_linear": (False, False),
    "interleaved_qkv": (False, False),
    "original_rope": (True, True),
    "fp32_residual_connection": (False, False),
    "hidden_dropout": (0.0, 0.0),
    "tie_word_embeddings": (False, False),
    "quantization_bit": (0, 0),
    "pre_seq_len": (None, None),
}


@dataclass(frozen=True)
class Generation:
    """What one generation of checkpoints does in its own way.

    Attributes:
        name: Its name on the command line.
        rope_ratio: What the setting of this name does: multiply the rotary ``base``, or divide the ``positions``.
        special_tokens: The tokens that its tokenizer adds behind the SentencePiece vocabulary, in order; none if its
            vocabulary is none of SentencePiece.
        chat_template: Its format of a conversation, where special tokens write it.
    """

    name: str
    rope_ratio: Literal["base", "positions"]
    special_tokens: tuple[str, ...] = ()
    chat_template: str | None = None


# The published names are "sop" and "eop", without brackets. A fast tokenizer finds special tokens anywhere in a text:
# it would find those in "sophisticated" and "people". GLM-4 calls the same tokens <sop> and <eop>.
_MASKS = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_CHAT_TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}<|{{ message['role'] }}|>\n{{ ' ' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation("chatglm2", "positions", _MASKS),
        Generation("chatglm3", "base", _MASKS + _ROLES, _CHAT_TEMPLATE),
        Generation("glm-4-9b", "base"),
    )
}


def read_settings(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's ``config.json``.

    Raises:
        FlexoraError: If it is missing or no such file.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlexoraError(f"cannot read {folder / 'config.json'}: {error}; name a checkpoint's folder") from error
    if not isinstance(settings, dict):
        raise FlexoraError(f"{folder / 'config.json'} holds no settings; name a checkpoint's folder")
    return settings


def glm_config(settings: dict[str, Any], generation: Generation) -> GlmConfig:
    """Express a ChatGLM configuration as one of ``GlmForCausalLM``.

    Args:
        settings: What the checkpoint's ``config.json`` says. A missing setting has the published code's default.
        generation: Which generation it is of.

    Raises:
        FlexoraError: If a setting is missing that has no default here, or has a value that cannot be expressed.
    """
    if settings.get("model_type") != "chatglm":
        raise FlexoraError(f"config.json: model_type is {settings.get('model_type')!r}; name a checkpoint of chatglm")
    for name, (only, default) in FIXED.items():
        value = settings.get(name, default)
        if value != only:
            raise FlexoraError(
                f"config.json: {name} is {value!r}, and GlmForCausalLM can express {only!r} alone; take another "
                "checkpoint"
            )
    hidden, heads = _size(settings, "hidden_size"), _size(settings, "num_attention_heads")
    groups = _size(settings, "multi_query_group_num", 1)
    if heads % groups:
        raise FlexoraError(f"config.json: multi_query_group_num {groups} does not divide num_attention_heads {heads}")
    if settings.get("eos_token_id") is None:  # GlmConfig would put GLM-4's there
        raise FlexoraError("config.json: eos_token_id is missing; add it (ChatGLM2 and ChatGLM3 have 2)")
    return GlmConfig(
        architectures=["GlmForCausalLM"],
        vocab_size=_size(settings, "padded_vocab_size"),
        hidden_size=hidden,
        intermediate_size=_size(settings, "ffn_hidden_size"),
        num_hidden_layers=_size(settings, "num_layers"),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=_size(settings, "kv_channels", hidden // heads),
        max_position_embeddings=_size(settings, "seq_length", 2048),
        rms_norm_eps=_number(settings, "layernorm_epsilon", 1e-5),
        attention_dropout=_number(settings, "attention_dropout", 0.0, least=0.0),
        attention_bias=bool(settings.get("add_qkv_bias", False)),
        rope_parameters=_rope(_number(settings, "rope_ratio", 1.0), generation),
        eos_token_id=settings["eos_token_id"],
        pad_token_id=settings.get("pad_token_id"),
        bos_token_id=None,
        tie_word_embeddings=False,
    )


def _rope(ratio: float, generation: Generation) -> dict[str, Any]:
    parameters = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    if generation.rope_ratio == "base":
        return parameters | {"rope_theta": 10_000.0 * ratio}
    return parameters if ratio == 1 else parameters | {"rope_type": "linear", "factor": ratio}


def _size(settings: dict[str, Any], name: str, default: int | None = None) -> int:
    value = settings.get(name)
    value = default if value is None else value
    if value is None:
        raise FlexoraError(f"config.json: {name} is missing; ChatGLM2, ChatGLM3 and the first GLM-4-9B have it")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise FlexoraError(f"config.json: {name} is {value!r}, not a number of at least 1")
    return value


def _number(settings: dict[str, Any], name: str, default: float, least: float = 1e-12) -> float:
    value = settings.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < float("inf"):
        raise FlexoraError(f"config.json: {name} is {value!r}, not a number of at least {least}")
    return float(value)
