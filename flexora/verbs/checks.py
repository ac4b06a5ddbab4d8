"""What can be known of a whole run before anything is loaded or trained: ``run`` and ``validate`` ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningCLI

from flexora.backbone.converted import CONVERTED_PREFIX, converted_place
from flexora.backbone.gguf import PACKAGED_PREFIX, require_packaged
from flexora.backbone.limits import Phase
from flexora.backbone.loading import Architecture, Backbone, describe
from flexora.data.datamodule import AnswerDataModule
from flexora.data.prompts import require_chat_template
from flexora.errors import FlexoraError
from flexora.finetune.module import FinetuneModule
from flexora.finetune.prefix import require_one_device
from flexora.finetune.warm_start import require_same_meaning, require_start
from flexora.runfolder import PHASE_OF_ARM
from flexora.scoring.module import ScoreModule
from flexora.scoring.referee import require_referee
from flexora.search.module import SearchModule
from flexora.search.named import resolve_selection, retargeted
from flexora.search.selection import Selection, SelectionBase
from flexora.verbs.arms import adapter_of
from flexora.verbs.phase import lightning_cli
from flexora.verbs.settings import Recipe
from flexora.zoo.models import known_model
from flexora.zoo.references import referenced_selection


def checks(recipe: Recipe, phases: Sequence[Phase], *, trains: bool) -> Iterator[Callable[[], object]]:
    """Yield checks, each of which raises what is wrong; the next may need what the last one found.

    Args:
        recipe: The recipe.
        phases: The phases that are to run.
        trains: Whether there must be rows to train on.
    """
    architectures: list[Architecture] = []
    built: dict[Phase, Namespace] = {}
    yield partial(_find_architecture, recipe, architectures)
    yield partial(_build, recipe, "evaluate", built)
    trained = True
    if "evaluate" in built:
        data = built["evaluate"].data
        trained = data.trained
        if trains:
            yield partial(_require_trained, data)
        yield data.check_source
        yield partial(_require_reported, data)
        if recipe.sections["evaluate"]["referee"]:
            yield partial(require_referee, data, data.backbone, recipe.devices("evaluate"))
        yield partial(_check_template, data)
    if "search" in phases:
        yield partial(_build, recipe, "search", built)
        if "search" in built:
            yield partial(_check_rule, recipe, built["search"].model, architectures)
    if "finetune" in phases:
        yield partial(_build, recipe, "finetune", built)
        yield partial(_check_selection, recipe, architectures, searches="search" in phases)
        if trained:
            yield recipe.require_end
        if recipe.sections["finetune"]["prefix_cache"]:
            yield partial(require_one_device, recipe.devices("finetune"))
        if recipe.initial_adapter is not None:
            searches = "search" in phases and recipe.sections["finetune"]["selection"] is None
            yield partial(_check_start, None if searches else recipe.initial_adapter, built)
    for phase in phases:
        yield partial(recipe.require_precision, phase)
        yield partial(recipe.require_strategy, phase)
    for arm in recipe.sections["evaluate"]["arms"]:
        if arm not in PHASE_OF_ARM:  # those a run trains by itself
            yield partial(adapter_of, recipe.folder, arm, recipe.sections)


def build(recipe: Recipe, phase: Phase, module_class: type[L.LightningModule], module: dict[str, Any]) -> Namespace:
    """Module (``model``) and ``data`` of a phase, which load nothing yet.

    Raises:
        FlexoraError: If a setting does not suit them.
    """
    folder = recipe.folder.root / phase
    cli = lightning_cli(recipe, phase, module_class, module, {}, [], folder, cli_class=_NoTrainer)
    built: Namespace = cli.config_init
    return built


def _require_reported(data: AnswerDataModule) -> None:
    for part in data.parts:
        if part.development_rows is None and not part.has_reported_rows():
            part.raw(part.reported_split)  # says which file is missing


def _find_architecture(recipe: Recipe, found: list[Architecture]) -> None:
    """Add the architecture of a model that lies on this machine, or that the zoo knows; the hub is not asked."""
    backbone = Backbone(**recipe.sections["backbone"])
    if _lies_here(backbone):
        found.append(describe(backbone.load_config()))
    elif (facts := known_model(backbone.model)) is not None:
        found.append(describe(facts.config()))


def _lies_here(backbone: Backbone) -> bool:
    if backbone.model.startswith(PACKAGED_PREFIX):
        return require_packaged(backbone.model).is_dir()  # or fetched but not converted yet
    if backbone.model.startswith(CONVERTED_PREFIX):
        return converted_place(backbone.model).is_dir()  # like one on the hub that is not downloaded yet
    return Path(backbone.resolve()).is_dir()


def _check_template(data: AnswerDataModule) -> None:
    """Check that there is a chat template where one is asked for and the tokenizer lies on this machine.

    What the hub's cache holds of a tokenizer may be some of its files.
    """
    if data.chat_template and _lies_here(data.backbone):
        require_chat_template(data.backbone.load_tokenizer())


def _build(recipe: Recipe, phase: Phase, built: dict[Phase, Namespace]) -> None:
    """Add module and data of a phase; which layers are chosen, a fine-tune may not know yet."""
    if phase == "search":
        built[phase] = build(recipe, phase, SearchModule, recipe.module(phase))
    elif phase == "finetune":
        built[phase] = build(recipe, phase, FinetuneModule, recipe.module(phase) | {"selection": "all"})
    else:
        built[phase] = build(recipe, phase, ScoreModule, {"backbone": recipe.sections["backbone"]})


def _check_rule(recipe: Recipe, search: SearchModule, architectures: Sequence[Architecture]) -> None:
    for architecture in architectures:
        projections = architecture.family.expand(recipe.target_modules("search"))
        units = search.units_of(architecture.num_layers, projections)
        search.rule([0.0] * len(units), [1] * len(units))


def _check_selection(recipe: Recipe, architectures: Sequence[Architecture], *, searches: bool) -> None:
    text = recipe.sections["finetune"]["selection"]
    if text is not None and not architectures:
        referenced_selection(text)  # whether it suits, only the model can say
    wanted = recipe.target_modules("finetune")
    for architecture in architectures:
        architecture.family.expand(wanted)
        if text is not None:
            resolve_selection(text, architecture.name, architecture.num_layers, wanted)
        elif searches:
            _check_targets(recipe, architecture)


def _check_targets(recipe: Recipe, architecture: Architecture) -> None:
    """Check that the fine-tune can adapt what it names where the search will choose: it would say so hours later.

    Raises:
        FlexoraError: If the search chooses single projections and the fine-tune names others, or if its warm start
            names some that the search does not train.
    """
    wanted, searched = recipe.target_modules("finetune"), architecture.family.expand(recipe.target_modules("search"))
    base = SelectionBase(architecture=architecture.name, num_layers=architecture.num_layers)
    modulewise = recipe.sections["search"]["gates"] == "module"
    chosen = Selection(base=base, layers=[0], targets={0: searched}, projections=searched if modulewise else None)
    untrained = [name for name in retargeted(chosen, wanted, "search.gates module").targets[0] if name not in searched]
    if untrained and recipe.sections["finetune"]["warm_start"]:
        raise FlexoraError(
            f"finetune.warm_start: the search trains no {untrained[0]}, which the fine-tune's adapter.target_modules "
            "name; give both the same, or set warm_start to false"
        )


def _check_start(folder: Path | None, built: Mapping[Phase, Namespace]) -> None:
    """Check what a warm start takes over: the folder that is there, or, without one, what the search will leave."""
    if folder is not None:
        found, source = require_start(folder), str(folder)
    else:
        found, source = built["search"].model.adapter if "search" in built else None, "the search"
    if found is not None and "finetune" in built:
        require_same_meaning(found, built["finetune"].model.adapter, source)


class _NoTrainer(LightningCLI):
    """Builds no trainer: its device may be on another machine."""

    def instantiate_classes(self) -> None:
        """Build module and data alone."""
        self.config_init = self.parser.instantiate_classes(self.config)


def _require_trained(data: AnswerDataModule) -> None:
    if not data.trained:
        raise FlexoraError(
            f"data: {data.benchmark_name} is for evaluation only, but a run trains; train on another benchmark, or "
            "leave base and PEFT folders alone in evaluate.arms and call flexora evaluate"
        )
