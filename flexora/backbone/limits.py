"""What a phase asks of the Trainer: a precision that keeps LoRA and alpha in float32, and devices it can use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flexora.errors import FlexoraError

if TYPE_CHECKING:
    import lightning as L

Phase = Literal["search", "finetune", "evaluate"]

#: float64 is for tests; 16-mixed needs loss scaling, which the search's gradients do not have.
ALLOWED: dict[Phase, tuple[str, ...]] = {
    "search": ("32-true", "bf16-mixed", "64-true"),
    "finetune": ("32-true", "bf16-mixed", "16-mixed", "64-true"),
    "evaluate": ("32-true", "bf16-mixed", "16-mixed", "64-true"),
}
_LONG = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed", "None": "32-true"}


def require_precision(precision: str | int | None, phase: Phase) -> None:
    """Refuse a precision that would round the adapter.

    Lightning's half ``*-true`` modes cast the adapter with the model, and an AdamW step in bfloat16 is mostly rounded
    away; a half-precision base is chosen with ``backbone.dtype`` instead.

    Args:
        precision: The trainer's precision, as Lightning spells it.
        phase: The phase that is to run.

    Raises:
        FlexoraError: If the phase cannot run in it.
    """
    allowed = ALLOWED[phase]
    if _LONG.get(str(precision), str(precision)) not in allowed:
        raise FlexoraError(
            f"{phase}: trainer.precision {precision} is refused: the adapter must stay in float32 and the search takes "
            f"no float16; use {' or '.join(allowed[:-1])}, and backbone.dtype for the frozen weights"
        )


def require_trainer(trainer: L.Trainer, phase: Phase) -> None:
    """Refuse a Trainer that would round the adapter, or whose strategy the phase cannot follow.

    The search runs under DDP, with a process for each device, as it reduces its gradients itself; the other phases run
    on one device so far.

    Raises:
        FlexoraError: If the phase cannot run on it.
    """
    require_precision(trainer.precision, phase)
    if phase == "search":
        _require_ddp(trainer)
    elif trainer.world_size > 1:
        raise FlexoraError(
            f"{phase}: runs on one device so far, but the trainer has {trainer.world_size}; "
            f"set {phase}.trainer.devices to 1"
        )


def _require_ddp(trainer: L.Trainer) -> None:
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy):
        return
    # Strategies that inherit from DDP shard parameters; spawned processes could not hand their result back. Lightning
    # tells how processes are started by the launcher's class alone.
    if type(strategy) is not DDPStrategy or not isinstance(strategy.launcher, _SubprocessScriptLauncher):
        raise FlexoraError(
            f"search: trainer.strategy {type(strategy).__name__} is not supported; the search runs on one device, or "
            "with strategy ddp, where each process holds the whole model"
        )
