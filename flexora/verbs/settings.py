"""A parsed recipe: its sections, and which of their settings decide a phase's result."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import yaml

from flexora.backbone.adapter_files import fingerprint, weights_of
from flexora.backbone.limits import Phase, require_precision, require_strategy
from flexora.data.local_files import local_files
from flexora.errors import FlexoraError
from flexora.places import own_path, plain_name
from flexora.recipe import RecipeParser, recipe_parser
from flexora.runfolder import FILES, RunFolder
from flexora.search.named import names_file
from flexora.trust import require_remote_code
from flexora.verbs.effect import read_files, require_effect, tell_shadowed

if TYPE_CHECKING:
    from jsonargparse import Namespace


#: Settings of the data that leave a phase's result as it is; evaluation batches only decide speed.
UNDECISIVE_DATA: dict[Phase, set[str]] = {
    "search": {
        "batch_size",
        "max_tokens_per_batch",
        "evaluate_rows",
        "evaluate_tokens",
        "num_fewshot",
        "max_new_tokens",
        "exact_match",
    },
    "finetune": {"evaluate_rows", "evaluate_tokens", "num_fewshot", "max_new_tokens", "exact_match"},
    "evaluate": {
        "batch_size",
        "max_tokens_per_batch",
        "train_rows",
        "train_seed",
        "validation_rows",
        "evaluate_tokens",
        "every_turn",
        "objective",
        "validation_objective",
        "weights",
    },
}
#: Settings of the backbone that decide speed and memory alone: recomputed activations have the same bits.
UNDECISIVE_BACKBONE = {"gradient_checkpointing"}
#: Settings of a phase's own section that decide speed, memory and files alone.
UNDECISIVE_OWN: dict[Phase, set[str]] = {
    "search": {"checkpoint_every", "keep_checkpoints", "skip_non_finite"},
    "finetune": {"checkpoint_every", "keep_checkpoints", "skip_non_finite", "prefix_cache", "compile"},
    "evaluate": set(),
}
#: Settings of the trainer that change the result of search or evaluation, which have clocks of their own.
DECISIVE_TRAINER = ("precision",)
#: Those that leave a fine-tune's result as it is; how many devices there are it compares by itself.
UNDECISIVE_TRAINER = {
    *("accelerator", "devices", "num_nodes", "default_root_dir", "logger", "log_every_n_steps", "profiler"),
    *("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "num_sanity_val_steps"),
    *("use_distributed_sampler", "detect_anomaly", "inference_mode", "barebones", "benchmark", "deterministic"),
    *("limit_test_batches", "limit_predict_batches", "enable_autolog_hparams", "model_registry"),
}
#: Lightning's callbacks that only look on.
ONLOOKERS = {
    *("DeviceStatsMonitor", "LearningRateMonitor", "ModelSummary", "RichModelSummary"),
    *("ProgressBar", "RichProgressBar", "TQDMProgressBar"),
}
#: Folders of ``output_dir`` that other verbs fill.
TAKEN_FOLDERS = {"search", "evaluate", "report", "predict", "merge", "publish", "compare", "choice"}


class Recipe:
    """A parsed recipe: its sections as plain values, and the folder it writes to.

    Args:
        verb: The verb it was given to.
        arguments: Command line of the verb.

    Raises:
        FlexoraError: If a setting is unknown, of another type, or a path where a name belongs, or if the recipe wants
            code of a repository to be run and the user has not allowed it.
    """

    def __init__(self, verb: str, arguments: Sequence[str]) -> None:
        self.parser: RecipeParser = recipe_parser(verb)
        self.namespace: Namespace = self.parser.parse_args(list(arguments))
        self.sections: dict[str, Any] = yaml.safe_load(self.parser.dump(self.namespace, skip_none=False))
        self.sections["finetune"]["adapter"] = _nested(self.sections["finetune"]["adapter"] or {})
        require_effect(verb, arguments, self.sections)
        tell_shadowed(verb, arguments, self.sections, read_files(self.namespace.config))
        if plain_name(self.sections["finetune"]["folder"], "finetune.folder") in TAKEN_FOLDERS:
            raise FlexoraError(
                f"finetune.folder: {self.sections['finetune']['folder']} is for other results; name another folder"
            )
        if self.sections["backbone"]["trust_remote_code"]:
            require_remote_code()
        self.folder = RunFolder(own_path(self.sections["output_dir"], "output_dir"))

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
        elsewhere = ("adapter", "folder", "trainer", "warm_start")
        own = {name: value for name, value in self.sections[phase].items() if name not in elsewhere}
        if phase == "finetune":
            own["initial_adapter"] = self.initial_adapter and str(self.initial_adapter)
        shared = {name: self.sections[name] for name in ("backbone", "seed")}
        return own | shared | {"adapter": self.adapter(phase)}

    def adapter(self, phase: str) -> dict[str, Any]:
        """The adapter section with the phase's overrides: ``class_path`` and all ``init_args``.

        Overrides of single settings go on top of the section, as those of another recipe would. One that names a
        class stands in the section's place, and keeps only its ``target_modules``.

        Raises:
            FlexoraError: If the overrides are no settings of the adapter.
        """
        section: dict[str, Any] = self.sections["adapter"]
        override = self.sections[phase].get("adapter")
        if not override:
            return section
        base, targets = self.namespace, section["init_args"].get("target_modules")
        if "class_path" in override:
            base = base.clone()
            del base["adapter"]
            kept = {} if targets is None else {"target_modules": targets}
            override = {**override, "init_args": {**kept, **(override.get("init_args") or {})}}
        try:
            parsed = self.parser.parse_object({"adapter": override}, cfg_base=base)
        except FlexoraError as error:
            raise FlexoraError(f"{phase}.adapter: {str(error).removeprefix('adapter: ')}") from error
        adapter: dict[str, Any] = yaml.safe_load(self.parser.dump(parsed, skip_none=False))["adapter"]
        return adapter

    def target_modules(self, phase: str) -> list[str] | str | None:
        """The projections that a phase's adapter names; nothing where it leaves them to the selection."""
        named: list[str] | str | None = self.adapter(phase)["init_args"].get("target_modules")
        return named

    def trainer(self, phase: str) -> dict[str, Any]:
        """The trainer section with the phase's overrides; a copy, for Lightning's parser changes what it is given."""
        own: dict[str, Any] = copy.deepcopy({**self.sections["trainer"], **self.sections[phase]["trainer"]})
        if more := callbacks_of(own.pop("callbacks+", None)):  # of a phase's own section jsonargparse appends nothing
            own["callbacks"] = callbacks_of(own.get("callbacks")) + more
        return own

    @property
    def initial_adapter(self) -> Path | None:
        """The folder whose LoRA a warm start takes over: beside the selection's file; none for a fresh start."""
        if not self.sections["finetune"]["warm_start"]:
            return None
        text = self.sections["finetune"]["selection"]
        if text is not None and names_file(text):
            return own_path(text, "finetune.selection").parent / "adapter"
        return self.folder.adapter("search")

    def require_precision(self, phase: Phase) -> None:
        """Refuse a precision before the Trainer sees it: on a CPU it quietly takes another.

        Raises:
            FlexoraError: If the phase cannot run in it.
        """
        require_precision(self.trainer(phase).get("precision"), phase, self.sections["backbone"]["dtype"])

    def require_strategy(self, phase: Phase) -> None:
        """Refuse a strategy before hours of another phase.

        Raises:
            FlexoraError: If the phase cannot follow it.
        """
        trainer = self.trainer(phase)
        require_strategy(trainer.get("strategy"), trainer.get("precision"), phase)

    def devices(self, phase: Phase) -> int:
        """Devices that a phase asks for; all GPUs of this machine where it leaves their number open."""
        trainer = self.trainer(phase)
        devices, nodes = trainer.get("devices"), trainer.get("num_nodes") or 1
        if str(devices) in ("auto", "-1"):
            on_gpus = trainer.get("accelerator") in (None, "auto", "gpu", "cuda")
            devices = max(1, torch.cuda.device_count()) if on_gpus else 1
        if isinstance(devices, str) and "," in devices:  # device numbers, as Lightning takes them
            devices = [number for number in devices.split(",") if number]
        count = len(devices) if isinstance(devices, list) else int(str(devices)) if str(devices).isdigit() else 1
        return int(count * nodes)

    def require_end(self) -> None:
        """Make sure that the fine-tune's number of steps is known: Lightning's own default is 1,000 epochs.

        Raises:
            FlexoraError: If neither epochs nor steps are limited: a time does not say how long the schedule is.
        """
        trainer = self.trainer("finetune")
        if trainer.get("max_epochs") in (None, -1) and trainer.get("max_steps") in (None, -1):
            what = "nothing says when training ends"
            if trainer.get("max_time"):
                what = "max_time alone leaves the schedule of the learning rate without a length"
            raise FlexoraError(f"finetune: {what}; set finetune.trainer.max_epochs, e.g. to 3")

    def settings(self, phase: Phase) -> dict[str, Any]:
        """The settings that decide a phase's result: what may not change between two runs into one folder."""
        sections, trainer = self.sections, self.trainer(phase)
        data = sections["data"]["init_args"]
        elsewhere = {"adapter", "trainer"} | UNDECISIVE_OWN[phase]
        settings: dict[str, Any] = {
            "backbone": {k: v for k, v in sections["backbone"].items() if k not in UNDECISIVE_BACKBONE},
            "data": {
                "class_path": sections["data"]["class_path"],
                **{name: value for name, value in data.items() if name not in UNDECISIVE_DATA[phase]},
            },
            "trainer": _decisive_trainer(trainer, phase),
            phase: {name: value for name, value in sections[phase].items() if name not in elsewhere},
        }
        if files := local_files(sections["data"], trains=phase != "evaluate"):
            settings[FILES] = files
        if phase != "evaluate":  # it scores adapters whatever they were made with
            settings |= {"seed": sections["seed"], "adapter": self.adapter(phase)}
        if phase == "finetune" and self.initial_adapter is not None and self.initial_adapter.is_dir():
            start = fingerprint(self.initial_adapter)  # what is taken over is weights
            settings["initial_adapter"] = start and weights_of(start)
        return settings


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a class that is named in their midst, as flags give them, in its ``init_args``."""
    if "class_path" not in settings:
        return settings
    parts = {name: value for name, value in settings.items() if name in ("class_path", "dict_kwargs")}
    own = {name: value for name, value in settings.items() if name not in (*parts, "init_args")}
    return {**parts, "init_args": {**(settings.get("init_args") or {}), **own}}


def long_form(argument: str) -> str:
    """``--selection`` and ``--warm-start`` are short for settings of the fine-tune."""
    name, equals, value = argument.partition("=")
    if name == "--warm-start":
        return f"--finetune.warm_start={value if equals else 'true'}"
    return f"--finetune.selection{equals}{value}" if name == "--selection" else argument


def run_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line of ``flexora run``, with short flags written out: it goes to every phase.

    Raises:
        FlexoraError: If a flag has another meaning for one of the phases.
    """
    if any(argument.partition("=")[0] == "--adapter" for argument in arguments):
        raise FlexoraError("--adapter: flexora evaluate takes a folder here; write --adapter.class_path, or a recipe")
    return [long_form(argument) for argument in arguments]


def _decisive_trainer(trainer: dict[str, Any], phase: Phase) -> dict[str, Any]:
    """The trainer's settings that decide a phase's result, but for Lightning's defaults: another version has more."""
    if phase != "finetune":
        return {name: trainer[name] for name in DECISIVE_TRAINER}
    usual = {name: parameter.default for name, parameter in signature(L.Trainer).parameters.items()}
    kept = {
        name: value
        for name, value in trainer.items()
        if name not in UNDECISIVE_TRAINER and (name not in usual or value != usual[name])
    }
    deciding = [one for one in callbacks_of(kept.pop("callbacks", None)) if not _looks_on(str(one.get("class_path")))]
    return kept | ({"callbacks": deciding} if deciding else {})


def callbacks_of(given: Any) -> list[dict[str, Any]]:
    """The callbacks of a trainer section, one or several; a phase's own section may name one by its class alone."""
    listed = given if isinstance(given, list) else [given] if given else []
    return [one if isinstance(one, dict) else {"class_path": str(one)} for one in listed]


def _looks_on(class_path: str) -> bool:
    package, _, name = class_path.rpartition(".")
    return name in ONLOOKERS and (not package or package.startswith("lightning.pytorch.callbacks"))
