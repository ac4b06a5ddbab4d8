"""What a phase asks of the Trainer: a precision that keeps LoRA and alpha in float32, and devices it can use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

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
#: Classes of strategies that a phase can follow, beside a single device. Their subclasses are others: they shard.
STRATEGIES: dict[Phase, tuple[str, ...]] = {
    "search": ("DDPStrategy",),
    "finetune": ("DDPStrategy", "FullyShard"),
    "evaluate": ("DDPStrategy",),
}
_AVERAGES = "what is saved would not be what was validated; remove it, and have the fine-tune keep its best epoch"
#: Callbacks of Lightning that no phase can follow, and why.
REFUSED_CALLBACKS = {
    "WeightAveraging": _AVERAGES,
    "EMAWeightAveraging": _AVERAGES,
    "StochasticWeightAveraging": "it copies the model before it is loaded, and would only change the learning rate; "
    "remove it, and have the fine-tune keep its best epoch",
    "GradientAccumulationScheduler": "the batches of a step are put together before the training; remove it, and set "
    "accumulate_grad_batches of finetune.trainer",
}
_LONG = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed", "None": "32-true"}


def require_precision(precision: str | int | None, phase: Phase, dtype: str = "float32") -> None:
    """Refuse a precision that would round the adapter, or what reaches it.

    Lightning's half ``*-true`` modes cast the adapter with the model, and an AdamW step in bfloat16 is mostly rounded
    away; a half-precision base is chosen with ``backbone.dtype`` instead.

    Args:
        precision: The trainer's precision, as Lightning spells it.
        phase: The phase that is to run.
        dtype: The precision of the frozen weights.

    Raises:
        FlexoraError: If the phase cannot run in it.
    """
    allowed = ALLOWED[phase]
    if _LONG.get(str(precision), str(precision)) not in allowed:
        raise FlexoraError(
            f"{phase}: trainer.precision {precision} is refused: the adapter must stay in float32 and the search takes "
            f"no float16; use {' or '.join(allowed[:-1])}, and backbone.dtype for the frozen weights"
        )
    if dtype == "float16" and phase != "evaluate" and _LONG.get(str(precision), str(precision)) != "16-mixed":
        scaled = ", or trainer.precision 16-mixed, which scales it" if phase == "finetune" else ""
        raise FlexoraError(
            f"{phase}: backbone.dtype float16 is refused: gradients would be lost on their way through it, for the "
            f"loss is not scaled; use bfloat16 or float32{scaled}"
        )


def require_strategy(setting: str | dict[str, Any] | None, precision: str | int | None, phase: Phase) -> None:
    """Refuse a strategy as a recipe names it, before hours of another phase; the Trainer refuses unknown names.

    Args:
        setting: Lightning's name of a strategy, or ``class_path`` and ``init_args``.
        precision: The trainer's precision, as Lightning spells it.
        phase: The phase that is to run.

    Raises:
        FlexoraError: If the phase cannot follow it.
    """
    from lightning.pytorch.strategies import StrategyRegistry

    if isinstance(setting, dict):
        name, options = str(setting.get("class_path")).rpartition(".")[2], setting.get("init_args") or {}
    elif isinstance(setting, str) and setting in StrategyRegistry:
        name, options = StrategyRegistry[setting]["strategy"].__name__, StrategyRegistry[setting]["init_params"]
    else:
        return
    if name != "SingleDeviceStrategy":
        _require_strategy(name, precision, phase, spawns=options.get("start_method", "popen") != "popen")


def require_callback(name: str, setting: str) -> None:
    """Refuse a callback that changes what is trained or saved behind a phase's back.

    Args:
        name: Its class.
        setting: Where it is asked for.

    Raises:
        FlexoraError: If it is one of Lightning's that do.
    """
    if name in REFUSED_CALLBACKS:
        raise FlexoraError(f"{setting}: {name}: {REFUSED_CALLBACKS[name]}")


def require_trainer(trainer: L.Trainer, phase: Phase, dtype: str = "float32") -> None:
    """Refuse a Trainer that would round the adapter, deal the rows twice, or whose strategy or callbacks do not suit.

    Raises:
        FlexoraError: If the phase cannot run on it.
    """
    from lightning.pytorch.strategies import SingleDeviceStrategy
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    require_precision(trainer.precision, phase, dtype)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind in type(callback).__mro__:
            require_callback(kind.__name__, "callbacks")
    strategy = trainer.strategy
    if isinstance(strategy, SingleDeviceStrategy):
        return
    # Lightning tells how processes are started by the launcher's class alone; a cluster starts them without one.
    spawns = not isinstance(strategy.launcher, _SubprocessScriptLauncher | None)
    _require_strategy(type(strategy).__name__, trainer.precision, phase, spawns=spawns)
    if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise FlexoraError(
            f"{phase}: the rows are dealt to the devices already; give the Trainer use_distributed_sampler=False"
        )


def _require_strategy(name: str, precision: str | int | None, phase: Phase, *, spawns: bool) -> None:
    """Refuse a class that shards what the phase needs whole; spawned processes could not hand their result back."""
    if name not in STRATEGIES[phase] or spawns:
        shards = "; fsdp2 shards the base over the devices" if phase == "finetune" else ""
        raise FlexoraError(
            f"{phase}: trainer.strategy {name} is not supported{' with spawned processes' if spawns else ''}; use one "
            f"device, or strategy ddp, where each process holds the whole model{shards}"
        )
    if name == "FullyShard" and _LONG.get(str(precision), str(precision)) not in ("32-true", "bf16-mixed"):
        raise FlexoraError(
            f"{phase}: trainer.precision {precision} does not go with strategy fsdp2; use 32-true or bf16-mixed"
        )
