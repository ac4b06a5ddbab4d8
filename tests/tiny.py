"""Tiny random models of every family, with a byte tokenizer, and tiny benchmarks in ARC's fields."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

#: Configuration, class, and what makes the tiny model one of its kind: windows shorter than any prompt, layers with and
#: without, a window that is not used, and caps that bite.
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {}),
    "glm": (GlmConfig, GlmForCausalLM, {}),
    "glm4": (Glm4Config, Glm4ForCausalLM, {}),
    "qwen2": (
        Qwen2Config,
        Qwen2ForCausalLM,
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"use_sliding_window": False, "sliding_window": 6}),
    "gemma": (GemmaConfig, GemmaForCausalLM, {}),
    "gemma2": (
        Gemma2Config,
        Gemma2ForCausalLM,
        {
            "sliding_window": 6,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 4.0,
        },
    ),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {
            "sliding_window": 6,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 8,
            "final_logit_softcapping": 4.0,
        },
    ),
}

#: The families of the paper, for slow tests of what no other family changes: layers, loops, files.
PAPER = ("llama", "mistral", "glm")


def tiny_model(family: str, layers: int = 4, **overrides: Any) -> PreTrainedModel:
    """A random model of a family, the same at each call."""
    config_class, model_class, special = FAMILIES[family]
    settings = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 257,
        **special,
        **overrides,
    }
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config_class(**settings))
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, with a beginning and an end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)} | {"<bos>": 256, "<eos>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>", model_max_length=256
    )


#: Where tokenizers in SentencePiece's manner put a space of their own: before a text, or behind special tokens, too, as
#: Mistral 7B's first versions do; the last writes a second one where there is one.
SPACED = ("first", "always", "prepend")


def spaced_tokenizer(characters: str, scheme: str, *merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """One token per character, and one per merge, with a space that the tokenizer puts by itself."""
    pieces = ["<s>", "</s>", "\u2581", *characters, *map("".join, merges)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    if scheme == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


#: A chat template of one line: who speaks, what, and an end of text.
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_model(folder: Path, family: str, layers: int = 4, chat_template: str | None = None) -> Path:
    """Write a tiny model and its tokenizer to ``folder``."""
    tiny_model(family, layers).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


def arc_row(number: int, rng: random.Random) -> dict[str, Any]:
    """A question that can be learnt: the answer is the word named in it."""
    words = rng.sample(["oak", "elm", "fir", "ash", "yew", "bay"], 4)
    answer = rng.randrange(4)
    labels = ["A", "B", "C", "D"]
    return {
        "id": f"row-{number}",
        "question": f"{number}: which is {words[answer]}{'?' * rng.randint(1, 5)}",
        "choices": {"text": words, "label": labels},
        "answerKey": labels[answer],
    }


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def save_benchmark(folder: Path, train: int = 48, test: int = 13) -> Path:
    """Write train and test rows in ARC's fields to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    write_jsonl(folder / "train.jsonl", [arc_row(number, rng) for number in range(train)])
    write_jsonl(folder / "test.jsonl", [arc_row(1_000 + number, rng) for number in range(test)])
    return folder


def recipe_text(model: Path, data: Path, output: Path) -> str:
    """A recipe that runs every phase on a tiny model in seconds."""
    return f"""\
seed: 3
output_dir: {output}
backbone: {{model: {model}}}
data:
  class_path: ArcEasy
  init_args: {{source: {data}, batch_size: 4, evaluate_tokens: 400, validation_rows: 8, max_length: 64}}
adapter: {{r: 2, lora_alpha: 4, lora_dropout: 0.1}}
trainer: {{accelerator: cpu, devices: 1, enable_progress_bar: false}}
search:
  outer_steps: 3
  inner_steps: 2
  estimator: Unrolled
  batch_size: 4
  accumulate: 2
  checkpoint_every: 1
  alpha_lr: 0.1
  average_last: 2
finetune:
  learning_rate: 0.01
  trainer: {{max_epochs: 2}}
"""
