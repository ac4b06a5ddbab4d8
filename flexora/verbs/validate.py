"""``flexora validate``: check recipes before any GPU minute is spent, without loading a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningCLI

from flexora.backbone.gguf import PACKAGED_PREFIX, require_packaged
from flexora.backbone.loading import Architecture, Backbone, describe
from flexora.backbone.precision import Phase, require_precision
from flexora.errors import FlexoraError
from flexora.finetune.module import FinetuneModule
from flexora.recipe import recipe_parser
from flexora.recipes import find_recipe, load_sections
from flexora.scoring.module import ScoreModule
from flexora.search.module import SearchModule
from flexora.search.selection import resolve_selection
from flexora.verbs.phase import Recipe, lightning_cli


def main(arguments: Sequence[str]) -> int:
    """Print every problem of every recipe, one line each.

    Returns:
        0 if there is none, else 2.
    """
    parser = argparse.ArgumentParser(prog="flexora validate", description=__doc__)
    parser.add_argument("recipes", nargs="+", help="recipe files, or names that flexora recipes ls shows")
    status = 0
    for name in parser.parse_args(arguments).recipes:
        found = list(problems(name))
        for problem in found:
            print(f"{name}: {problem}", file=sys.stderr)
        if not found:
            print(f"{name}: ok")
        status = 2 if found else status
    return status


def problems(name: str) -> Iterator[str]:
    """Yield what is wrong with a recipe: first its form, and if that is right, what it refers to."""
    try:
        path = Path(name) if Path(name).suffix == ".yaml" else find_recipe(name).path
        sections = load_sections(path)
    except FlexoraError as error:
        yield str(error)
        return
    wrong = list(_wrong_settings(sections))
    yield from wrong
    if not wrong:
        yield from _wrong_references(path)


def _wrong_settings(sections: dict[str, Any]) -> Iterator[str]:
    """Parse the settings one by one: the parser itself stops at the first that is wrong."""
    data = sections.get("data")
    if data is None:
        yield "data: the recipe names no benchmark; add for instance data: {class_path: ArcEasy}"
    else:
        yield from _attempt(lambda: recipe_parser("validate").parse_object({"data": data}))
    for name, section in sections.items():
        if name == "data":
            continue
        single = isinstance(section, dict) and section
        parts = [{name: {key: value}} for key, value in section.items()] if single else [{name: section}]
        for part in parts:
            # The benchmark is required, and a whole one keeps each setting's problem its own.
            whole = {"data": {"class_path": "ArcEasy"}, **part}
            yield from _attempt(lambda whole=whole: recipe_parser("validate").parse_object(whole))


def _wrong_references(path: Path) -> Iterator[str]:
    """Check what a well-formed recipe refers to: phases, precisions, files, layers."""
    recipe = Recipe("validate", ["--config", str(path)])
    backbone = Backbone(**recipe.sections["backbone"])
    found: list[Architecture | None] = []
    yield from _attempt(lambda: found.append(_architecture(backbone)))
    architectures = [architecture for architecture in found if architecture is not None]
    phases: tuple[tuple[Phase, type[Any], dict[str, Any]], ...] = (
        ("search", SearchModule, recipe.module("search")),
        ("finetune", FinetuneModule, recipe.module("finetune") | {"selection": "all"}),
        ("evaluate", ScoreModule, {"backbone": recipe.sections["backbone"]}),
    )
    seen: set[str] = set()
    for phase, module_class, module in phases:
        checks: list[Callable[[], object]] = [
            lambda phase=phase: require_precision(recipe.trainer(phase).get("precision"), phase),
            lambda phase=phase, module_class=module_class, module=module: _parse_phase(
                recipe, phase, module_class, module, architectures
            ),
        ]
        for check in checks:
            for problem in _attempt(check):
                if problem not in seen:  # the phases share data and backbone
                    seen.add(problem)
                    yield problem
    for architecture in architectures:
        yield from _attempt(lambda: _check_selection(recipe, architecture))


def _parse_phase(
    recipe: Recipe, phase: Phase, module_class: type[Any], module: dict[str, Any], architectures: list[Architecture]
) -> None:
    cli = lightning_cli(recipe, phase, module_class, module, {}, [], recipe.folder.root / phase, cli_class=_NoTrainer)
    cli.config_init["data"].check_source()
    if phase == "search":
        for architecture in architectures:
            cli.config_init["model"].rule([0.0] * architecture.num_layers, 1)


def _check_selection(recipe: Recipe, architecture: Architecture) -> None:
    projections = architecture.family.expand(recipe.sections["adapter"].get("target_modules"))
    if (text := recipe.sections["finetune"]["selection"]) is not None:
        resolve_selection(text, architecture.name, architecture.num_layers, projections)


class _NoTrainer(LightningCLI):
    """Builds module and data, which load nothing yet, but no trainer: its device may be elsewhere."""

    def instantiate_classes(self) -> None:
        self.config_init = self.parser.instantiate_classes(self.config)


def _architecture(backbone: Backbone) -> Architecture | None:
    """Architecture of a model that lies on this machine; the hub is not asked."""
    if backbone.model.startswith(PACKAGED_PREFIX):
        if not require_packaged(backbone.model).is_dir():
            return None  # fetched but not converted yet
    elif not Path(backbone.resolve()).is_dir():
        return None
    return describe(backbone.load_config())


def _attempt(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except FlexoraError as error:
        yield str(error)
