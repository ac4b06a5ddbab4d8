"""ChatGLM3's weights under the names of ``GlmForCausalLM``: read lazily, checked by their headers, written in parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import GlmConfig

from flexora.backbone.chatglm3 import Generation, glm_config, read_settings
from flexora.errors import FlexoraError

#: Size of a file of weights, and at most about the memory that a conversion needs: they are made one after another.
SHARD_SIZE = "2GB"
#: A buffer that some checkpoints hold, and that the model computes by itself.
BUFFER = "transformer.rotary_pos_emb.inv_freq"
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class Rows:
    """The rows of a tensor of the checkpoint that become a tensor of the model."""

    source: str
    start: int
    stop: int


def layout(config: GlmConfig) -> Iterator[tuple[str, dict[str, int], tuple[int, ...]]]:
    """Every tensor of a checkpoint: its name, the model's tensors in its rows with their number, and its columns."""
    hidden, queries = config.hidden_size, config.num_attention_heads * config.head_dim
    groups = config.num_key_value_heads * config.head_dim
    yield "transformer.embedding.word_embeddings.weight", {"model.embed_tokens.weight": config.vocab_size}, (hidden,)
    for index in range(config.num_hidden_layers):
        old, new = f"transformer.encoder.layers.{index}.", f"model.layers.{index}."
        fused = {"q_proj": queries, "k_proj": groups, "v_proj": groups}
        for kind, columns in (("weight", (hidden,)), ("bias", ())):
            if kind == "weight" or config.attention_bias:
                parts = {f"{new}self_attn.{name}.{kind}": rows for name, rows in fused.items()}
                yield f"{old}self_attention.query_key_value.{kind}", parts, columns
        yield f"{old}self_attention.dense.weight", {f"{new}self_attn.o_proj.weight": hidden}, (queries,)
        inner = config.intermediate_size
        yield f"{old}mlp.dense_h_to_4h.weight", {f"{new}mlp.gate_up_proj.weight": 2 * inner}, (hidden,)
        yield f"{old}mlp.dense_4h_to_h.weight", {f"{new}mlp.down_proj.weight": hidden}, (inner,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{old}{norm}.weight", {f"{new}{norm}.weight": hidden}, ()
    yield "transformer.encoder.final_layernorm.weight", {"model.norm.weight": hidden}, ()
    yield "transformer.output_layer.weight", {"lm_head.weight": config.vocab_size}, (hidden,)


class Checkpoint:
    """A checkpoint on disk, of which configuration and headers are read and found to be whole.

    Args:
        folder: Its folder: ``config.json`` and any number of ``*.safetensors``.
        generation: Which generation it is of.

    Attributes:
        config: The model's configuration.
        size: Bytes of the model's weights.

    Raises:
        FlexoraError: If a file cannot be read, the configuration cannot be expressed, or a tensor is missing, of
            another shape, quantised, there twice, or unknown.
    """

    def __init__(self, folder: Path, generation: Generation) -> None:
        self.config = glm_config(read_settings(folder), generation)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise FlexoraError(
                f"{folder} holds no *.safetensors; name a revision that has them, or write each pytorch_model*.bin of "
                "yours as one: safetensors.torch.save_file(torch.load(FILE, weights_only=True), NAME.safetensors)"
            )
        found = [(name, file, shape, dtype) for file in files for name, shape, dtype in _header(file)]
        self._files = {name: file for name, file, _, _ in found}
        twice = [name for name, times in Counter(name for name, *_ in found).items() if times > 1]
        if twice:
            raise FlexoraError(
                f"{folder}: {twice[0]} is in more than one file; leave the files of one checkpoint there"
            )
        self._sources: dict[str, Rows] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        headers = {name: (shape, dtype) for name, _, shape, dtype in found if name != BUFFER}
        for name, parts, columns in layout(self.config):
            dtype = _checked(folder, name, (sum(parts.values()), *columns), headers.pop(name, None))
            start = 0
            for target, rows in parts.items():
                self._sources[target] = Rows(name, start, start + rows)
                self._tensors[target] = torch.empty(rows, *columns, dtype=dtype, device="meta")
                start += rows
        if headers:
            raise FlexoraError(
                f"{folder}: {len(headers)} tensors are not of this model, {min(headers)} among them; name a checkpoint "
                "of the language model alone"
            )
        self.config.dtype = self._tensors["model.embed_tokens.weight"].dtype
        self.size = sum(prod(tensor.shape) * tensor.itemsize for tensor in self._tensors.values())

    def write(self, folder: Path, advance: Callable[[int], object] = int) -> None:
        """Write configuration and weights, a file of at most :data:`SHARD_SIZE` at a time.

        Args:
            folder: An empty folder.
            advance: Is told the bytes of each file that is written.

        Raises:
            FlexoraError: If a file of the checkpoint has become unreadable, or the disk is full.
        """
        split = split_torch_state_dict_into_shards(
            self._tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD_SIZE
        )
        try:
            for name, targets in split.filename_to_tensors.items():
                tensors = self._read(targets)
                save_file(tensors, folder / name, metadata={"format": "pt"})
                advance(sum(tensor.nbytes for tensor in tensors.values()))
        except SafetensorError as error:
            reason = " ".join(str(error).split())
            raise FlexoraError(f"cannot convert the weights: {reason[:200]}; make room, or fetch them again") from error
        if split.is_sharded:
            index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        self.config.save_pretrained(folder)

    def _read(self, targets: list[str]) -> dict[str, torch.Tensor]:
        """Read the rows of some of the model's tensors, in the dtype they have."""
        tensors = {}
        with ExitStack() as opened:
            sources = {target: self._sources[target] for target in targets}
            paths = {self._files[rows.source] for rows in sources.values()}
            files = {path: opened.enter_context(safe_open(path, framework="pt")) for path in paths}
            for target, rows in sources.items():
                tensors[target] = files[self._files[rows.source]].get_slice(rows.source)[rows.start : rows.stop]
        return tensors


def _header(file: Path) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of every tensor in a file."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = ((name, opened.get_slice(name)) for name in opened.keys())  # noqa: SIM118  (no mapping)
            return [(name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices]
    except (OSError, SafetensorError) as error:
        raise FlexoraError(f"cannot read {file}: {' '.join(str(error).split())[:200]}; fetch it again") from error


def _checked(
    folder: Path, name: str, expected: tuple[int, ...], header: tuple[tuple[int, ...], str] | None
) -> torch.dtype:
    if header is None:
        raise FlexoraError(f"{folder}: the tensor {name} is missing; fetch the checkpoint again, all its files")
    shape, dtype = header
    if shape != expected:
        raise FlexoraError(f"{folder}: {name} has shape {list(shape)}, and config.json says {list(expected)}")
    if dtype not in DTYPES:
        raise FlexoraError(f"{folder}: {name} is stored as {dtype}; name the unquantised checkpoint")
    return DTYPES[dtype]
