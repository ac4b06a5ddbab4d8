"""LoRA's other starts: EVA, made from rows; PiSSA and OLoRA, which move a part of the base's weights into LoRA."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, initialize_lora_eva_weights
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from flexora.data.batch import PADDING, Batch
from flexora.errors import FlexoraError
from flexora.scoring.likelihood import answer_loss

if TYPE_CHECKING:
    from flexora.backbone.loading import Backbone

#: Why a start cannot be made here.
_UNSUPPORTED = {
    "corda": "PEFT's takes one sequence at a time",
    "loftq": "PEFT's computes on CUDA alone, and replaces the base's weights by rounded ones, which no adapter holds",
    "lora_ga": "it needs gradients of the base",
}


def needs_rows(adapter: PeftConfig) -> bool:
    """Whether the start is made from training rows."""
    return getattr(adapter, "init_lora_weights", None) == "eva"


def moves_base(adapter: PeftConfig) -> bool:
    """Whether the start takes a part of the base's weights away, so that adapter and untouched base do not fit."""
    return str(getattr(adapter, "init_lora_weights", None)).startswith(("pissa", "olora"))


def require_initialization(adapter: PeftConfig, backbone: Backbone) -> None:
    """Refuse a start that cannot be made, or after which no plain adapter could be written.

    Raises:
        FlexoraError: Naming the setting.
    """
    start = getattr(adapter, "init_lora_weights", None)
    if start in _UNSUPPORTED:
        raise FlexoraError(
            f"adapter.init_lora_weights: {start} is not supported: {_UNSUPPORTED[start]}; "
            "take true, pissa, olora or eva"
        )
    if not moves_base(adapter):
        return
    assert isinstance(adapter, LoraConfig)
    if backbone.quantization is not None or backbone.dtype not in ("float32", "float64"):
        raise FlexoraError(
            f"adapter.init_lora_weights: {start} changes the base's weights, which rounds them here; set "
            "backbone.dtype to float32 without quantization, or take another start"
        )
    # PEFT would write A and B alone.
    for name in ("use_dora", "modules_to_save", "bias", "trainable_token_indices"):
        if getattr(adapter, name) and getattr(adapter, name) != "none":
            raise FlexoraError(f"adapter.{name}: lost when an adapter that began as {start} is saved; remove one")
    if adapter.use_rslora and (adapter.rank_pattern or adapter.alpha_pattern):
        raise FlexoraError(f"adapter.use_rslora: no rank_pattern or alpha_pattern with {start}; remove one of them")


def start_from_rows(model: PeftModel, rows: DataLoader[Batch]) -> None:
    """EVA (Paischer et al. 2024, arXiv:2410.07170): A are the directions in which the modules' inputs vary most.

    Ranks are moved to the modules that have more to explain; one that is left with none is not adapted.

    Args:
        model: LoRA with ``init_lora_weights="eva"``.
        rows: Training batches; they are read until the directions are steady.

    Raises:
        FlexoraError: If no batch holds enough tokens, or PEFT cannot find the directions.
    """
    config = model.peft_config["default"]
    assert isinstance(config, LoraConfig)
    assert config.eva_config is not None
    wanted = round(config.r * config.eva_config.rho)
    tokens = max((int(_real(batch).sum()) for batch in rows), default=0)
    if tokens < wanted:  # PEFT would skip them all, for ever
        raise FlexoraError(
            f"adapter.init_lora_weights: eva needs batches of {wanted} tokens (r times rho), but the largest holds "
            f"{tokens}; raise data.batch_size or lower adapter.r"
        )
    try:
        initialize_lora_eva_weights(
            model,
            _Rows(rows),
            forward_fn=lambda module, batch: answer_loss(module, batch.batch),
            prepare_model_inputs_fn=lambda batch, _: _real(batch.batch),
            prepare_layer_inputs_fn=lambda inputs, real, _: inputs[0][real],
            show_progress_bar=False,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise FlexoraError(f"adapter.init_lora_weights: eva: {reason[:300]}; take another start") from error


def save_converted(model: PeftModel, start: dict[str, Tensor], folder: Path) -> None:
    """Write what training changed since the start as plain LoRA of twice the rank, for the untouched base.

    With ``W = W_left + B_0 A_0`` at the start, ``W_left + B A = W + [B | -B_0] [A ; A_0]``, which PEFT writes.

    Args:
        model: LoRA that began as PiSSA or OLoRA.
        start: Its weights before training, as ``get_peft_model_state_dict`` gave them.
        folder: Where to write.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "start"
        place.mkdir()
        save_file(start, place / SAFETENSORS_WEIGHTS_NAME)
        model.save_pretrained(str(folder), path_initial_model_for_weight_conversion=str(place))


def _real(batch: Batch) -> Tensor:
    """Where a batch holds tokens and no padding, ``[rows, length]``."""
    return batch["segments"] != PADDING


@dataclass
class _OnDevice:
    """A batch that PEFT can move: by itself it warns of every entry that is no tensor."""

    batch: Batch

    def to(self, device: torch.device) -> _OnDevice:
        moved: Any = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.batch.items()}
        return _OnDevice(moved)


@dataclass
class _Rows:
    """A loader's batches, each movable."""

    loader: DataLoader[Batch]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[_OnDevice]:
        return map(_OnDevice, self.loader)
