"""From a recipe to a LightningCLI run of one phase."""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import lightning as L
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from flexora.backbone.limits import Phase, require_precision, require_trainer
from flexora.data.datamodule import AnswerDataModule
from flexora.errors import FlexoraError, Interrupted
from flexora.recipe import RecipeParser, one_line, recipe_parser
from flexora.runfolder import RunFolder
from flexora.verbs.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jsonargparse import Namespace


#: Settings of the data that leave a phase's result as it is; evaluation batches only decide speed.
UNDECISIVE_DATA: dict[Phase, set[str]] = {
    "search": {"batch_size", "evaluate_rows", "evaluate_tokens", "num_fewshot", "max_new_tokens", "exact_match"},
    "finetune": {"evaluate_rows", "evaluate_tokens", "num_fewshot", "max_new_tokens", "exact_match"},
    "evaluate": {
        "batch_size",
        "train_rows",
        "validation_rows",
        "evaluate_tokens",
        "objective",
        "validation_objective",
        "weights",
    },
}
#: Settings of the trainer that change a phase's result. The search has its own clock, accumulation and clipping.
DECISIVE_TRAINER: dict[Phase, tuple[str, ...]] = {
    "search": ("precision",),
    "finetune": (
        "precision",
        "max_epochs",
        "max_steps",
        "max_time",
        "limit_train_batches",
        "accumulate_grad_batches",
        "gradient_clip_val",
        "gradient_clip_algorithm",
    ),
    "evaluate": ("precision",),
}


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
        except (MisconfigurationException, ImportError, ValueError) as error:
            raise _trainer_error(error) from error


class Recipe:
    """A parsed recipe: its sections as plain values, and the folder it writes to.

    Args:
        verb: The verb it was given to.
        arguments: Command line of the verb.
    """

    def __init__(self, verb: str, arguments: Sequence[str]) -> None:
        self.parser: RecipeParser = recipe_parser(verb)
        self.namespace: Namespace = self.parser.parse_args(list(arguments))
        self.sections: dict[str, Any] = yaml.safe_load(self.parser.dump(self.namespace, skip_none=False))
        self.folder = RunFolder(Path(self.sections["output_dir"]).expanduser())

    @property
    def text(self) -> str:
        """All settings as YAML."""
        return yaml.safe_dump(self.sections, sort_keys=False, allow_unicode=True)

    def data(self) -> dict[str, Any]:
        """The data section, completed by backbone and seed, as LightningCLI takes it."""
        data = self.sections["data"]
        shared = {"backbone": self.sections["backbone"], "seed": self.sections["seed"]}
        return {"class_path": data["class_path"], "init_args": {**data["init_args"], **shared}}

    def module(self, phase: str) -> dict[str, Any]:
        """The settings of a phase's LightningModule, completed from the shared sections."""
        own = {key: value for key, value in self.sections[phase].items() if key not in ("trainer", "folder")}
        return own | {name: self.sections[name] for name in ("backbone", "adapter", "seed")}

    def trainer(self, phase: str) -> dict[str, Any]:
        """The trainer section with the phase's overrides."""
        return {**self.sections["trainer"], **self.sections[phase]["trainer"]}

    def require_precision(self, phase: Phase) -> None:
        """Refuse a precision before the Trainer sees it: on a CPU it quietly takes another.

        Raises:
            FlexoraError: If the phase cannot run in it.
        """
        require_precision(self.trainer(phase).get("precision"), phase)

    def require_one_device(self, phase: Phase) -> None:
        """Refuse several devices before hours of search; a count that only the machine knows is left to the Trainer.

        Raises:
            FlexoraError: If the phase cannot use them yet.
        """
        trainer = self.trainer(phase)
        devices, nodes = trainer.get("devices"), trainer.get("num_nodes") or 1
        if isinstance(devices, str) and "," in devices:  # device numbers, as Lightning takes them
            devices = [number for number in devices.split(",") if number]
        count = len(devices) if isinstance(devices, list) else int(str(devices)) if str(devices).isdigit() else 1
        if max(count, nodes) > 1:
            raise FlexoraError(
                f"{phase}: runs on one device so far; give devices to the search alone (search.trainer.devices)"
            )

    def require_end(self) -> None:
        """Make sure that the fine-tune ends: Lightning's own default is 1,000 epochs.

        Raises:
            FlexoraError: If neither epochs, steps nor time are limited.
        """
        trainer = self.trainer("finetune")
        if trainer.get("max_epochs") is None and trainer.get("max_steps") in (None, -1) and not trainer.get("max_time"):
            raise FlexoraError("finetune: nothing says when training ends; set finetune.trainer.max_epochs, e.g. to 3")

    def settings(self, phase: Phase) -> dict[str, Any]:
        """The settings that decide a phase's result: what may not change between two runs into one folder."""
        sections, trainer = self.sections, self.trainer(phase)
        data = sections["data"]["init_args"]
        settings: dict[str, Any] = {
            "backbone": sections["backbone"],
            "data": {
                "class_path": sections["data"]["class_path"],
                **{name: value for name, value in data.items() if name not in UNDECISIVE_DATA[phase]},
            },
            "trainer": {name: trainer[name] for name in DECISIVE_TRAINER[phase]},
            phase: {name: value for name, value in sections[phase].items() if name != "trainer"},
        }
        if phase != "evaluate":  # it scores adapters whatever they were made with
            settings |= {"seed": sections["seed"], "adapter": sections["adapter"]}
        return settings


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
    bars = [] if settings.get("enable_progress_bar") is False else [progress_bar()]
    # LightningCLI must never see the verb's own command line: it would parse it once more.
    _silence()
    with _arguments_hidden(), _own_errors():
        cli = cli_class(
            module_class,
            AnswerDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            parser_class=PhaseParser,
            seed_everything_default=recipe.sections["seed"],
            trainer_defaults={"callbacks": [*bars, *callbacks]},
            args={
                "seed_everything": recipe.sections["seed"],
                "model": module,
                "data": recipe.data(),
                "trainer": {**settings, **trainer, "default_root_dir": str(folder)},
            },
            run=False,
            auto_configure_optimizers=False,
        )
    if hasattr(cli, "trainer"):
        require_trainer(cli.trainer, phase)  # before Lightning starts a process for each device
    return cli


@contextmanager
def plain_errors() -> Iterator[None]:
    """Run a Trainer so that a signal is told from success, and a setting it cannot follow from a bug.

    By itself it leaves with 0 after SIGTERM and 1 after Ctrl-C.

    Raises:
        FlexoraError: If a setting of the Trainer does not fit this machine or the other settings.
        Interrupted: If a signal stopped the Trainer.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except MisconfigurationException as error:
        raise _trainer_error(error) from error
    except SIGTERMException:
        raise Interrupted(128 + signal.SIGTERM) from None
    except SystemExit as leave:
        if isinstance(leave.__context__, KeyboardInterrupt):
            raise Interrupted(128 + signal.SIGINT) from None
        raise
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores Ctrl-C from the first one on


def _trainer_error(error: Exception) -> FlexoraError:
    return FlexoraError(f"trainer: {' '.join(str(error).split())}; change that setting of trainer")


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
        raise


def _silence() -> None:
    """Silence what Lightning and PEFT tell every user on every start."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    noise = (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*LeafSpec.*",
        ".*across ranks is zero.*",  # a search whose steps are all done
        ".*loftq_config.*",
        ".*is_gradient_checkpointing.*",
    )
    for message in noise:
        warnings.filterwarnings("ignore", message=message)
