"""Recipes: one YAML per model and benchmark, parsed whole and typed; each verb takes its part from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal, NoReturn

import jsonargparse
import jsonargparse.typing
import lightning as L
import yaml
from peft import PeftConfig

import flexora.data.benchmarks  # noqa: F401 - so that short class names resolve
from flexora.backbone.loading import Backbone
from flexora.backbone.methods import build_config
from flexora.data.datamodule import AnswerDataModule
from flexora.errors import FlexoraError, shown
from flexora.finetune.module import FinetuneModule
from flexora.search.module import SearchModule
from flexora.trust import FLAG, restrict_imports
from flexora.whole_numbers import keep_whole_numbers

# Defaults of Lightning's callbacks are members of string enumerations, which yaml does not know.
yaml.SafeDumper.add_multi_representer(str, yaml.SafeDumper.represent_str)

Seed = jsonargparse.typing.restricted_number_type("Seed", int, [(">=", 0), ("<", 2**32)])

SECTIONS = ("backbone", "adapter", "trainer", "search", "finetune", "evaluate", "report")

#: Arguments of the modules that come from other sections of the recipe.
SHARED = {"backbone", "adapter", "seed"}


@dataclass(frozen=True)
class EvaluateSettings:
    """What is scored.

    Attributes:
        arms: ``base``, ``lora`` (an adapter on all layers, which ``run`` trains on the same rows), ``flexora``, or the
            folder of any PEFT adapter, or one of the zoo or the hub, ``zoo:NAME`` and ``hf:USER/NAME``.
        referee: ``lm-eval`` has lm-evaluation-harness score the same rows, and prints how far its scores are.
        samples: Also write ``evaluate/samples.jsonl``: log-likelihoods, prediction and answer of every row.
        trainer: Overrides of the recipe's trainer section.
    """

    arms: list[str] = field(default_factory=lambda: ["base", "lora", "flexora"])
    referee: Literal["lm-eval"] | None = None
    samples: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportSettings:
    """How the report looks.

    Attributes:
        title: Heading of the page; made of model and benchmark by default.
    """

    title: str | None = None


#: Classes that the search uses unless told otherwise: written out, their settings are flags and show in the recipe.
DEFAULT_CLASSES = {"estimator": "FirstOrder", "inner_optimizer": "AdamW", "rule": "Positive"}

#: The adapter where a recipe names none: its settings are then those of LoRA.
DEFAULT_ADAPTER = "peft.LoraConfig"

jsonargparse.add_instantiator(build_config, PeftConfig)  # LightningCLI's parser of a phase makes the adapter

#: What jsonargparse says of a class that may not be imported.
_DENIED = re.compile(r"Importing '([\w.]+)' is not allowed")

HINT = "; --help lists the settings"

#: What the help of a verb says of its short flags.
SHORT_FLAGS = {
    "finetune": " --selection is short for --finetune.selection, --warm-start for --finetune.warm_start true.",
    "evaluate": " --adapter FOLDER, once or several times, scores the base model beside these PEFT adapters; "
    "--referee lm-eval is short for --evaluate.referee.",
    "estimate": " --length N assumes rows of so many tokens, where rows are not at hand or others are expected.",
}


def _load(text: str) -> Any:
    """Read YAML; a section that is a file's bare name gets a folder, or it would be taken for a class's name."""
    value = jsonargparse.get_loader("yaml")(text)
    if isinstance(value, dict):
        for name in (*SECTIONS, "data"):
            if isinstance(value.get(name), str) and re.fullmatch(r"[\w.]+\.ya?ml", value[name]):
                value[name] = f"./{value[name]}"
        finetune = value.get("finetune")
        if isinstance(finetune, dict) and isinstance(finetune.get("adapter"), dict):
            finetune["adapter"] = _flat(finetune["adapter"])
    return value


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """A class and its settings side by side: on top of nested ones jsonargparse cannot put a flag of another class."""
    inner = settings.get("init_args")
    if "class_path" not in settings or not isinstance(inner, dict | None):
        return settings
    return {name: value for name, value in settings.items() if name != "init_args"} | (inner or {})


jsonargparse.set_loader("recipe", _load, exceptions=(yaml.YAMLError,))


class RecipeParser(jsonargparse.ArgumentParser):
    """A parser that says what is wrong in one line instead of printing its usage."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"parser_mode": "recipe", **options})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the problem.

        Raises:
            FlexoraError: Always, but for the parser of a class's settings, whose problem the whole one names.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        raise FlexoraError(one_line(message)) from ex

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        """Parse a command line.

        Raises:
            FlexoraError: Naming the first thing that is wrong.
        """
        with self._plainly():
            return super().parse_args(*arguments, **options)

    def parse_object(self, *arguments: Any, **options: Any) -> Any:
        """Parse nested settings.

        Raises:
            FlexoraError: Naming the first thing that is wrong.
        """
        with self._plainly():
            return super().parse_object(*arguments, **options)

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Say so too where jsonargparse is not prepared for what it reads: no text, no names, circles."""
        try:
            yield
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError, yaml.YAMLError) as error:
            self.error(str(error) or type(error).__name__, error)

    def get_defaults(self, *arguments: Any, **options: Any) -> jsonargparse.Namespace:
        """Defaults, of the adapter its class alone: jsonargparse would hand LoRA's ``r`` on to any other class."""
        defaults = super().get_defaults(*arguments, **options)
        defaults.pop("adapter.init_args", None)
        return defaults

    def validate(self, namespace: jsonargparse.Namespace, *arguments: Any, **options: Any) -> None:
        """Check types, and that every section holds settings: jsonargparse lets any scalar stand for a section.

        Raises:
            FlexoraError: Naming the section.
        """
        super().validate(namespace, *arguments, **options)
        for name in SECTIONS:
            value = namespace.get(name)
            if name in namespace and not isinstance(value, jsonargparse.Namespace):
                found = "nothing" if value is None else repr(value)
                raise FlexoraError(f"{name}: a section holds settings, but here is {found}; fill it or remove it")


def one_line(message: str) -> str:
    """Squeeze a message of jsonargparse into one line that names the setting and the first thing wrong with it."""
    if denied := _DENIED.search(message):  # whatever else a union has tried
        found = re.search(r'Parser key "([^"]+)"', message)
        setting = found[1] if found else "class_path"
        if denied[1].endswith((".yaml", ".yml")):
            return f"{setting}: {denied[1]} reads as the name of a class; write ./{denied[1]} for the file"
        return (
            f"{setting}: {denied[1]} is no class of flexora, PEFT or Lightning for "
            f"recipes, and naming one runs its code; if you trust it, add {FLAG} {denied[1]}"
        )
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if "Errors:" in lines:  # a union: an item for each type it tried, then the value
        first, *more = lines[lines.index("Errors:") + 1 :]
        more = list(takewhile(lambda line: not line.startswith(("- ", "Given value")), more))
        lines = [lines[0].split(":")[0] + ":", first, *more]
    text = " ".join(line.removeprefix("- ") for line in lines)
    text = re.sub(r"Problem with given class_path '[^']+': ", "", text)
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", text)
    return f"{shown(text.removesuffix(HINT), 1_000)}{HINT}"


def recipe_parser(verb: str) -> RecipeParser:
    """The typed parser of a whole recipe, for one verb."""
    restrict_imports()
    parser = RecipeParser(
        prog=f"flexora {verb}",
        description="Settings come from --config files (later ones win) and flags such as --search.outer_steps 20. "
        "--data.help ArcEasy lists the settings of a benchmark, --search.rule.help TopK or --adapter.help VeraConfig "
        f"those of a class. {FLAG} PACKAGE lets a recipe name classes of your own." + SHORT_FLAGS.get(verb, ""),
        exit_on_error=True,
    )
    parser.add_argument("--config", action="config", help="A recipe; may be given several times, later ones win.")
    parser.add_argument("--seed", type=Seed, default=0, help="Seed of adapters, order and dropout.")
    parser.add_argument("--output_dir", type=str, default="runs/flexora", help="Folder of all results.")
    parser.add_class_arguments(Backbone, "backbone", help="The base model.")
    parser.add_subclass_arguments(
        AnswerDataModule, "data", skip={"backbone", "seed"}, required=verb != "merge", help="The benchmark."
    )
    scores = verb == "evaluate"  # which takes the flag for itself
    parser.add_subclass_arguments(
        PeftConfig,
        "adapter",
        default={"class_path": DEFAULT_ADAPTER},
        metavar="FOLDER" if scores else "CONFIG | CLASS_PATH_OR_NAME | .INIT_ARG_NAME VALUE",
        help="The folder of a PEFT adapter to score. The recipe's configuration of PEFT is set by --adapter.class_path."
        if scores
        else "A configuration of PEFT; LoRA's by default.",
    )
    keep_whole_numbers()  # for LightningCLI's parser, too
    parser.add_class_arguments(L.Trainer, "trainer", instantiate=False, help="Lightning's Trainer.")
    parser.add_class_arguments(SearchModule, "search", skip=SHARED, help="The search phase.")
    parser.set_defaults({f"search.{name}": {"class_path": default} for name, default in DEFAULT_CLASSES.items()})
    parser.add_argument("--search.trainer", type=dict[str, Any], default={}, help="Overrides of trainer in the search.")
    parser.add_class_arguments(
        FinetuneModule, "finetune", skip=SHARED | {"selection", "initial_adapter"}, help="The fine-tune phase."
    )
    parser.add_argument(
        "--finetune.selection",
        type=str | None,
        help="A selection.json, zoo:MODEL/BENCHMARK, hf:USER/NAME, all, or layers such as 0,3,5-9; what the search "
        "found by default.",
    )
    parser.add_argument(
        "--finetune.warm_start",
        type=bool,
        default=False,
        help="Start from the LoRA that the search trained (the folder adapter beside the selection.json; of the "
        "run's own search for layers given by number) instead of a fresh one.",
    )
    parser.add_argument("--finetune.folder", type=str, default="finetune", help="Folder of the phase below output_dir.")
    parser.add_argument(
        "--finetune.adapter",
        type=dict[str, Any],
        default={},
        help="Overrides of adapter in the fine-tune; with a class_path, another method.",
    )
    parser.add_argument(
        "--finetune.trainer", type=dict[str, Any], default={}, help="Overrides of trainer in the fine-tune."
    )
    parser.add_class_arguments(EvaluateSettings, "evaluate", help="What is scored.")
    parser.add_class_arguments(ReportSettings, "report", help="The report.")
    return parser
