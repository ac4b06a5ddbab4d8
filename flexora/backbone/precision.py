"""Which of Lightning's precisions keep LoRA and alpha in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flexora.errors import FlexoraError

if TYPE_CHECKING:
    import lightning as L


def require_precision(trainer: L.Trainer, allowed: Sequence[str], phase: str) -> None:
    """Refuse a precision that would round the adapter.

    Lightning's half ``*-true`` modes cast the adapter with the model, and an AdamW step in bfloat16 is mostly rounded
    away; a half-precision base is chosen with ``backbone.dtype`` instead.

    Raises:
        FlexoraError: If the trainer's precision is not among ``allowed``.
    """
    if trainer.precision not in allowed:
        raise FlexoraError(
            f"{phase}: trainer.precision {trainer.precision} would cast the adapter or is not supported here; use "
            f"{' or '.join(allowed[:2])}, and backbone.dtype for the precision of the frozen weights"
        )
