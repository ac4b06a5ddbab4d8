"""``flexora validate``: check recipes before any GPU minute is spent, without loading a model."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from flexora.backbone.gguf import PACKAGED_PREFIX, require_packaged
from flexora.backbone.limits import Phase
from flexora.backbone.loading import Architecture, Backbone, describe
from flexora.errors import FlexoraError
from flexora.finetune.module import FinetuneModule
from flexora.recipe import recipe_parser
from flexora.recipes import find_recipe, load_sections
from flexora.search.module import SearchModule
from flexora.search.selection import resolve_selection
from flexora.verbs.arms import PHASE_OF_ARM
from flexora.verbs.checks import build, checks
from flexora.verbs.settings import Recipe


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
        looks_like_a_file = Path(name).is_file() or Path(name).suffix in (".yaml", ".yml")
        path = Path(name) if looks_like_a_file else find_recipe(name).path
        sections = load_sections(path)
    except FlexoraError as error:
        yield str(error)
        return
    wrong = list(_wrong_settings(sections))
    yield from wrong
    if not wrong:
        yield from _wrong_references(path)


def _wrong_settings(sections: dict[str, Any]) -> Iterator[str]:
    """Parse the settings; if any is wrong, one by one: the parser itself stops at the first."""
    parse = recipe_parser("validate").parse_object
    data = sections.get("data")
    if data is not None and not list(_attempt(parse, sections)):
        return
    if data is None:
        yield "data: the recipe names no benchmark; add for instance data: {class_path: ArcEasy}"
    else:
        yield from _problems_of(parse, {"data": data})
    for name, section in sections.items():
        if name == "data":
            continue
        settings = section.items() if isinstance(section, dict) and "class_path" not in section else ()
        for part in [{name: {key: value}} for key, value in settings] or [{name: section}]:
            # The benchmark is required, and a whole one keeps each setting's problem its own.
            yield from _problems_of(parse, {"data": {"class_path": "ArcEasy"}, **part})


def _problems_of(parse: Callable[..., object], setting: dict[str, Any]) -> Iterator[str]:
    """Parse one setting; what a problem names in ``init_args`` is taken out, and the rest tried again."""
    removed: list[str] = []
    while found := list(_attempt(parse, setting)):
        if not any(_names(found[0], name) for name in removed):  # an argument taken out may be required
            yield found[0]
        smaller = _without_named(setting, found[0], removed)
        if smaller is None:
            return
        setting = smaller


def _without_named(value: dict[str, Any], problem: str, removed: list[str]) -> dict[str, Any] | None:
    """The setting without the class argument that a problem names; none if it names none."""
    for key, inner in value.items():
        if not isinstance(inner, dict):
            continue
        if key == "init_args" and (wrong := next((name for name in inner if _names(problem, name)), None)):
            removed.append(wrong)
            return {**value, key: {name: kept for name, kept in inner.items() if name != wrong}}
        if (smaller := _without_named(inner, problem, removed)) is not None:
            return {**value, key: smaller}
    return None


def _names(problem: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", problem) is not None


def _wrong_references(path: Path) -> Iterator[str]:
    """Check what a well-formed recipe refers to: phases, precisions, files, layers."""
    recipe = Recipe("validate", ["--config", str(path)])
    architectures: list[Architecture] = []
    found = list(_attempt(_find_architecture, Backbone(**recipe.sections["backbone"]), architectures))
    # Without an arm to train, a recipe may be one for flexora evaluate alone.
    trains = not PHASE_OF_ARM.keys().isdisjoint(recipe.sections["evaluate"]["arms"])
    for check in checks(recipe, get_args(Phase), trains=trains):
        found += _attempt(check)
    found += _attempt(_check_search, recipe, architectures)
    found += _attempt(_check_finetune, recipe)
    for architecture in architectures:
        found += _attempt(_check_selection, recipe, architecture)
    yield from dict.fromkeys(found)  # the phases share data and backbone, and so their problems


def _check_search(recipe: Recipe, architectures: list[Architecture]) -> None:
    search = build(recipe, "search", SearchModule, recipe.module("search")).model
    for architecture in architectures:
        projections = architecture.family.expand(recipe.adapter("search")["init_args"].get("target_modules"))
        units = search.units_of(architecture.num_layers, projections)
        search.rule([0.0] * len(units), [1] * len(units))


def _check_finetune(recipe: Recipe) -> None:
    build(recipe, "finetune", FinetuneModule, recipe.module("finetune") | {"selection": "all"})


def _check_selection(recipe: Recipe, architecture: Architecture) -> None:
    projections = architecture.family.expand(recipe.adapter("finetune")["init_args"].get("target_modules"))
    if (text := recipe.sections["finetune"]["selection"]) is not None:
        resolve_selection(text, architecture.name, architecture.num_layers, projections)


def _find_architecture(backbone: Backbone, found: list[Architecture]) -> None:
    """Add the architecture of a model that lies on this machine; the hub is not asked."""
    if backbone.model.startswith(PACKAGED_PREFIX):
        here = require_packaged(backbone.model).is_dir()  # or fetched but not converted yet
    else:
        here = Path(backbone.resolve()).is_dir()
    if here:
        found.append(describe(backbone.load_config()))


def _attempt(check: Callable[..., object], *arguments: object) -> Iterator[str]:
    try:
        check(*arguments)
    except FlexoraError as error:
        yield str(error)
