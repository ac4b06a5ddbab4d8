"""ChatGLM3's forward pass as published, in plain PyTorch and float of any width, and checkpoints of random weights.

Written from the description of the model: its facts, names and order of operations; nothing is shared with the code
under test or with transformers' GLM.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

#: ChatGLM3-6B's own configuration.
CHATGLM3_6B: dict[str, Any] = {
    "_name_or_path": "THUDM/chatglm3-6b",
    "model_type": "chatglm",
    "architectures": ["ChatGLMModel"],
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    },
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "ffn_hidden_size": 13696,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "original_rope": True,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 32768,
    "use_cache": True,
    "torch_dtype": "float16",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TINY = CHATGLM3_6B | {
    "ffn_hidden_size": 48,
    "hidden_size": 32,
    "kv_channels": 8,
    "num_attention_heads": 4,
    "num_layers": 3,
    "padded_vocab_size": 500,
    "seq_length": 256,
}


class Norm(nn.Module):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(settings["hidden_size"]))
        self.epsilon = settings["layernorm_epsilon"]

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt()


class SelfAttention(nn.Module):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.heads, self.groups = settings["num_attention_heads"], settings["multi_query_group_num"]
        self.width = settings["kv_channels"]
        inner, hidden = self.heads * self.width, settings["hidden_size"]
        rows = inner + 2 * self.groups * self.width
        self.query_key_value = nn.Linear(hidden, rows, bias=settings["add_qkv_bias"])
        self.dense = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.query_key_value(x).view(batch, length, -1, self.width)
        query, key, value = heads.split([self.heads, self.groups, self.groups], dim=2)
        query, key = rotated(query, turns), rotated(key, turns)
        shared = self.heads // self.groups
        key, value = (part.repeat_interleave(shared, dim=2) for part in (key, value))
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / self.width**0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        return self.dense(torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2))


def rotated(x: Tensor, turns: Tensor) -> Tensor:
    """Neighbours are real and imaginary part of a number that turns with its position; later channels do not."""
    turning, still = x[..., : 2 * turns.shape[-1]], x[..., 2 * turns.shape[-1] :]
    numbers = torch.view_as_complex(turning.unflatten(-1, (-1, 2)).contiguous())
    return torch.cat([torch.view_as_real(numbers * turns[:, None]).flatten(-2), still], dim=-1)


class MLP(nn.Module):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        hidden, inner = settings["hidden_size"], settings["ffn_hidden_size"]
        self.dense_h_to_4h = nn.Linear(hidden, 2 * inner, bias=False)
        self.dense_4h_to_h = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.dense_h_to_4h(x).chunk(2, dim=-1)
        return self.dense_4h_to_h(gate * gate.sigmoid() * up)


class Block(nn.Module):
    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.input_layernorm = Norm(settings)
        self.self_attention = SelfAttention(settings)
        self.post_attention_layernorm = Norm(settings)
        self.mlp = MLP(settings)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        x = x + self.self_attention(self.input_layernorm(x), turns)
        return x + self.mlp(self.post_attention_layernorm(x))


class Reference(nn.Module):
    """The model, with the published names of its weights.

    Args:
        settings: A configuration.
        positions: ``rope_ratio`` divides positions, as in ChatGLM2, instead of multiplying the rotary base.
    """

    def __init__(self, settings: dict[str, Any], *, positions: bool = False) -> None:
        super().__init__()
        self.settings, self.positions = settings, positions
        vocabulary, hidden = settings["padded_vocab_size"], settings["hidden_size"]
        self.transformer = nn.Module()
        self.transformer.embedding = nn.Module()
        self.transformer.embedding.word_embeddings = nn.Embedding(vocabulary, hidden)
        self.transformer.encoder = nn.Module()
        self.transformer.encoder.layers = nn.ModuleList(Block(settings) for _ in range(settings["num_layers"]))
        self.transformer.encoder.final_layernorm = Norm(settings)
        self.transformer.output_layer = nn.Linear(hidden, vocabulary, bias=False)

    def turns(self, length: int) -> Tensor:
        """Unit complex numbers, (positions, pairs); half the channels of a head turn."""
        ratio, half = self.settings.get("rope_ratio", 1), self.settings["kv_channels"] // 2
        base, slower = (10_000.0, ratio) if self.positions else (10_000.0 * ratio, 1)
        frequencies = base ** -(torch.arange(0, half, 2, dtype=torch.float64) / half)
        angles = torch.outer(torch.arange(length, dtype=torch.float64) / slower, frequencies)
        turns = torch.polar(torch.ones_like(angles), angles)
        narrow = self.transformer.output_layer.weight.dtype == torch.float32
        return turns.to(torch.complex64) if narrow else turns

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        """Logits, (batch, length, vocabulary), of ids, (batch, length)."""
        x = self.transformer.embedding.word_embeddings(ids)
        turns = self.turns(ids.shape[1])
        for layer in self.transformer.encoder.layers:
            x = layer(x, turns)
        return self.transformer.output_layer(self.transformer.encoder.final_layernorm(x))


def random_reference(settings: dict[str, Any], *, positions: bool = False) -> Reference:
    """Random weights of a size that makes every part of the model matter, norms and biases among them."""
    torch.manual_seed(0)
    model = Reference(settings, positions=positions)
    for parameter in model.parameters():
        with torch.no_grad():
            if parameter.dim() == 1:
                parameter.uniform_(-1.5, 1.5)
            else:
                parameter.normal_(std=1.5 * parameter.shape[1] ** -0.5)
    return model


def save_checkpoint(folder: Path, model: Reference, dtype: torch.dtype = torch.float32, files: int = 1) -> Path:
    """Write the configuration and, spread over so many files, the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.settings))
    tensors = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    tensors["transformer.rotary_pos_emb.inv_freq"] = torch.ones(model.settings["kv_channels"] // 4)
    names = sorted(tensors)
    for number in range(files):
        part = {name: tensors[name] for name in names[number::files]}
        save_file(part, folder / f"model-{number + 1:05}-of-{files:05}.safetensors", metadata={"format": "pt"})
    return folder
