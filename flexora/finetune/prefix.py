"""The frozen prefix: the layers below the lowest adapted one, whose hidden states are the same in every epoch."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from flexora.backbone.families import family_of
from flexora.data.batch import PADDING
from flexora.errors import FlexoraError

if TYPE_CHECKING:
    from peft import PeftModel

    from flexora.data.batch import Batch


def frozen_layers(model: PeftModel) -> list[nn.Module]:
    """The decoder layers that come before everything that is trained, from the first one on."""
    base = cast("Any", model.get_base_model())
    layers = base.get_submodule(family_of(type(base).__name__).layers)
    if any(parameter.requires_grad for parameter in base.get_input_embeddings().parameters()):
        return []
    depth = next((i for i, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())), len(layers))
    return list(layers[:depth])


def require_one_device(devices: int) -> None:
    """Refuse a cache on several devices, which would find hardly any row again.

    Raises:
        FlexoraError: If there are several.
    """
    if devices > 1:
        raise FlexoraError(
            "finetune.prefix_cache: on several devices each epoch deals the rows anew, so that no device finds its "
            "own again; set it to 0"
        )


class PrefixCache:
    """Keeps what the frozen prefix makes of each row, and hands it out in later epochs instead of computing it again.

    A batch is served where all its rows are kept; as every epoch groups the rows anew, a room for a part of them serves
    hardly a batch. The states stay in the memory of the machine, in the precision in which the model passes them on.

    Args:
        model: The model with its adapter.
        room: Bytes that may be kept; with none nothing is.

    Raises:
        FlexoraError: If dropout makes the prefix's output another one each time.
    """

    def __init__(self, model: PeftModel, room: int) -> None:
        dropout = float(getattr(model.config, "attention_dropout", 0.0) or 0.0)
        if room and dropout:
            raise FlexoraError(
                f"finetune.prefix_cache: the base model has attention dropout {dropout}, which differs in every pass; "
                "set finetune.prefix_cache to 0"
            )
        self.layers = frozen_layers(model) if room else []
        self.room = room
        self.used = 0
        self._kept: dict[Hashable, Tensor] = {}

    def forget(self) -> None:
        """Give everything up: other rows may come under the same numbers."""
        self.used = 0
        self._kept.clear()

    @contextmanager
    def serving(self, batch: Batch, split: str) -> Iterator[None]:
        """Run the model on a batch within this: its prefix is served if it is known, and kept if there is room.

        Args:
            batch: The batch.
            split: Which dataset its rows are numbered in.
        """
        if not self.layers:
            yield
            return
        rows = [(split, row) for row in batch["rows"].tolist()]
        if all(row in self._kept for row in rows):
            with self._served(rows, batch["input_ids"].device):
                yield
            return
        handle = self.layers[-1].register_forward_hook(lambda *call: self._keep(rows, batch, call[-1]))
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _served(self, rows: Sequence[Hashable], device: torch.device) -> Iterator[None]:
        """Let the first layer give out the kept states, and the others of the prefix pass them on."""
        hidden = pad_sequence([self._kept[row] for row in rows], batch_first=True).to(device)
        for layer in self.layers:
            # On the instance, so that the layer keeps whatever else the model asks it for.
            layer.forward = lambda *args, **kwargs: hidden
        try:
            yield
        finally:
            for layer in self.layers:
                del layer.forward

    def _keep(self, rows: Sequence[Hashable], batch: Batch, hidden: Tensor) -> None:
        lengths = (batch["segments"] != PADDING).sum(dim=1).tolist()
        for row, length, states in zip(rows, lengths, hidden.detach().cpu(), strict=True):
            size = length * states.shape[1] * states.element_size()
            if row in self._kept:
                continue
            if self.used + size > self.room:
                warnings.warn(  # Python shows it once
                    f"finetune.prefix_cache: {self.room / 2**30:.3g} GiB do not hold all rows, so that most batches "
                    "are computed all the same; raise it, or set it to 0",
                    stacklevel=2,
                )
                return
            self._kept[row] = states[:length].clone()
            self.used += size
