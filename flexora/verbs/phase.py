"""From a recipe to a LightningCLI run of one phase."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import lightning as L
import yaml
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import is_torchelastic_launched

from flexora.backbone.limits import Phase, require_callback, require_trainer
from flexora.data.datamodule import AnswerDataModule
from flexora.errors import FlexoraError, Interrupted
from flexora.interruption import StopOnSignal, follow, leaving
from flexora.recipe import one_line
from flexora.secrets import without_secrets
from flexora.trust import known_class, restrict_imports
from flexora.verbs.memory import memory_watched
from flexora.verbs.progress import progress_bar
from flexora.verbs.settings import Recipe, callbacks_of

if TYPE_CHECKING:
    from collections.abc import Iterator

#: What jsonargparse says where a class of Lightning's refuses to be made, among what else it has tried.
REFUSED_CLASS = re.compile(
    r"Problem with given class_path 'lightning\.[\w.]*?(\w+)':\s+(.+?)(?=\n\s*- |\nGiven value|\Z)", re.S
)


class LoggedSettings(Callback):
    """Gives the loggers the recipe, once something is trained; without secrets, which a recipe may hold.

    Args:
        recipe: The recipe.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.text = recipe.text

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log all sections."""
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(without_secrets(self.text)))


class PhaseParser(LightningArgumentParser):
    """LightningCLI's parser with errors in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the problem.

        Raises:
            FlexoraError: Always.
        """
        raise FlexoraError(one_line(message)) from ex


class PhaseCLI(LightningCLI):
    """LightningCLI that says in one line what is wrong with the trainer section."""

    def instantiate_trainer(self, **options: Any) -> L.Trainer:
        """Build the Trainer.

        Raises:
            FlexoraError: If a setting does not fit this machine or the other settings.
        """
        try:
            return super().instantiate_trainer(**options)
        except (MisconfigurationException, ImportError, RuntimeError, ValueError) as error:
            raise _trainer_error(error) from error


def lightning_cli(
    recipe: Recipe,
    phase: Phase,
    module_class: type[L.LightningModule],
    module: dict[str, Any],
    trainer: dict[str, Any],
    callbacks: Sequence[Callback],
    folder: Path,
    cli_class: type[LightningCLI] = PhaseCLI,
) -> LightningCLI:
    """Instantiate module, data and trainer of a phase through LightningCLI.

    Args:
        recipe: The recipe.
        phase: Its name, for the trainer's overrides.
        module_class: The phase's LightningModule.
        module: Arguments of the module.
        trainer: Trainer settings that the phase fixes.
        callbacks: Callbacks that the phase adds.
        folder: Folder of the phase's logs.
        cli_class: PhaseCLI, or a class that stops before it builds the trainer.
    """
    settings = recipe.trainer(phase)
    if settings.get("logger") is None:
        # Each start gets a version of its own: Lightning deletes the metrics of one that exists.
        settings["logger"] = [
            {"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": {"save_dir": str(folder), "name": name}}
            for kind, name in (("CSVLogger", "logs/csv"), ("TensorBoardLogger", "logs/tensorboard"))
        ]
    settings["callbacks"] = _callbacks(recipe, phase)
    barred = settings.get("enable_progress_bar") is False or any(map(_is_bar, settings["callbacks"]))
    bars = [] if barred else [progress_bar()]
    restrict_imports()
    # LightningCLI must never see the verb's own command line: it would parse it once more.
    silence()
    with _arguments_hidden(), _own_errors():
        cli = cli_class(
            module_class,
            AnswerDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            parser_class=PhaseParser,
            seed_everything_default=recipe.sections["seed"],
            trainer_defaults={"callbacks": [*bars, *callbacks, LoggedSettings(recipe), StopOnSignal()]},
            args={
                "seed_everything": recipe.sections["seed"],
                "model": module,
                "data": recipe.data(),
                # The data deals its batches to the processes by itself.
                "trainer": {
                    **settings,
                    **trainer,
                    "default_root_dir": str(folder),
                    "use_distributed_sampler": False,
                },
            },
            run=False,
            auto_configure_optimizers=False,
        )
    if hasattr(cli, "trainer"):
        _require_processes(cli.trainer, phase)
        require_trainer(cli.trainer, phase)  # before Lightning starts a process for each device
        follow(cli.trainer)
    return cli


def _callbacks(recipe: Recipe, phase: Phase) -> list[dict[str, Any]]:
    """The user's callbacks of a phase; what ends a training early has nothing to say of a search.

    Raises:
        FlexoraError: If one would keep checkpoints beside the phase's own, or change what is trained or saved.
    """
    own = {"callbacks", "callbacks+"} & recipe.sections[phase]["trainer"].keys()
    section = f"{phase}.trainer" if own else "trainer"
    kept = []
    for callback in callbacks_of(recipe.trainer(phase).get("callbacks")):
        name = str(callback.get("class_path")).rpartition(".")[2]
        if name in ("ModelCheckpoint", "OnExceptionCheckpoint"):
            raise FlexoraError(
                f"{section}.callbacks: {name}: every phase keeps its own checkpoints, and the fine-tune its best "
                "epoch; remove it, and set checkpoint_every and keep_checkpoints of search and finetune"
            )
        require_callback(name, f"{section}.callbacks")
        if phase == "finetune" or name != "EarlyStopping":
            kept.append(callback)
    return kept


def _is_bar(callback: dict[str, Any]) -> bool:
    """Whether a callback shows the progress: Lightning takes one that does."""
    path = str(callback.get("class_path"))
    kind = known_class(path) or getattr(lightning_callbacks, path, None)
    return isinstance(kind, type) and issubclass(kind, ProgressBar)


def _require_processes(trainer: L.Trainer, phase: Phase) -> None:
    """Refuse to go on alone where several devices are asked for: on a cluster Lightning starts no process itself.

    Raises:
        FlexoraError: If a launcher has started another number of processes.
    """
    wanted, started = trainer.num_devices * trainer.num_nodes, trainer.world_size
    if is_torchelastic_launched():  # Lightning takes one device for a process alone, whatever torchrun has started
        started = int(os.environ.get("WORLD_SIZE", started))
        if started != wanted:
            each = int(os.environ.get("LOCAL_WORLD_SIZE", started))
            nodes = f" and trainer.num_nodes to {started // each}" if started > each else ""
            raise FlexoraError(
                f"{phase}: trainer.devices times num_nodes is {wanted}, but torchrun started {started} processes; set "
                f"trainer.devices to {each}{nodes}"
            )
    if wanted > 1 and isinstance(getattr(trainer.strategy, "cluster_environment", None), SLURMEnvironment):
        # The job may have tasks enough, and only srun starts them; without it this one would wait for the others.
        started = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if started != wanted:
        raise FlexoraError(
            f"{phase}: trainer.devices and num_nodes ask for {wanted} processes, but the launcher started "
            f"{started}; under SLURM call srun --ntasks-per-node={trainer.num_devices} flexora {phase}"
        )


def read_from(cli: LightningCLI) -> dict[str, str | None]:
    """What a phase reads that its settings only name: it must be the same when an unfinished phase is gone on with."""
    return {"weights": cli.model.backbone.fingerprint(), "rows": cli.datamodule.fingerprint}


@contextmanager
def plain_errors(recipe: Recipe, phase: Phase, verb: str | None = None) -> Iterator[None]:
    """Run a Trainer so that a signal is told from success, and a setting it cannot follow from a bug.

    By itself it leaves with 0 after SIGTERM and 1 after Ctrl-C.

    Args:
        recipe: The recipe.
        phase: The phase.
        verb: What the user called, if it is called otherwise.

    Raises:
        FlexoraError: If a setting of the Trainer does not fit this machine or the other settings, or memory ran out.
        Interrupted: If a signal stopped the Trainer.
    """
    try:
        with leaving(verb or phase), memory_watched(recipe, phase):
            yield
    except MisconfigurationException as error:
        raise _trainer_error(error) from error
    except SIGTERMException:
        raise Interrupted(128 + signal.SIGTERM) from None
    except SystemExit as leave:
        if isinstance(leave.__context__, KeyboardInterrupt):
            raise Interrupted(128 + signal.SIGINT) from None
        raise


def _trainer_error(error: Exception | str) -> FlexoraError:
    return FlexoraError(f"trainer: {' '.join(str(error).split()).rstrip('.')}; change that setting of trainer")


@contextmanager
def _arguments_hidden() -> Iterator[None]:
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = arguments


@contextmanager
def _own_errors() -> Iterator[None]:
    """Let what a class says of its settings through: jsonargparse wraps it where the setting may also be empty."""
    try:
        yield
    except ValueError as error:
        if isinstance(error.__cause__, FlexoraError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, MisconfigurationException):
            raise _trainer_error(error.__cause__) from None
        if refused := REFUSED_CLASS.search(str(error)):  # a logger whose package is missing, for instance
            raise _trainer_error(f"{refused[1]}: {refused[2]}") from None
        raise


def silence() -> None:
    """Silence what Lightning and PEFT tell every user on every start."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    noise = (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*LeafSpec.*",
        ".*across ranks is zero.*",  # a search whose steps are all done
        ".*is 'eva' but `eva_config` is not specified.*",
        ".*lora with eva initialization.*",
        ".*changes the base weights of the model.*",  # what is written is converted
        ".*rank_pattern keys did not match.*",  # PEFT's AdaLoRA writes them so itself
        ".*gradient_checkpointing.*deprecated.*",
        ".*ended before the epoch ended and your dataloader is not resumable.*",  # its batches are: FinetuneFiles
    )
    for message in noise:
        warnings.filterwarnings("ignore", message=message)
