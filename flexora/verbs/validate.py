"""``flexora validate``: check recipes before any GPU minute is spent, without loading a model."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from flexora.backbone.limits import Phase
from flexora.compare.checks import study_of, study_problems
from flexora.errors import FlexoraError
from flexora.recipe import recipe_parser
from flexora.recipes import find_recipe, load_sections
from flexora.runfolder import PHASE_OF_ARM
from flexora.verbs.checks import checks
from flexora.verbs.settings import Recipe, run_arguments

NO_DATA = "data: the recipe names no benchmark; add for instance data: {class_path: ArcEasy}"


def main(arguments: Sequence[str]) -> int:
    """Print every problem of every recipe, one line each.

    Returns:
        0 if there is none, else 2.
    """
    parser = argparse.ArgumentParser(
        prog="flexora validate",
        description="Check recipes without loading a model: all problems at once.",
        usage="flexora validate RECIPE [RECIPE ...] [--config FILE ...] [FLAG ...]",
        epilog="What follows the recipes is put on top of each of them, as flexora run would: files with --config, "
        "later ones win, and flags such as --trainer.devices 4, which flexora run --help lists.",
    )
    parser.add_argument("recipes", nargs="+", help="recipe files, or names that flexora recipes ls shows")
    end = next((place for place, argument in enumerate(arguments) if argument.startswith("--")), len(arguments))
    if "--help" in arguments[end:]:
        end = len(arguments)
    flags = list(arguments[end:])
    status = 0
    for name in parser.parse_args(arguments[:end]).recipes:
        found = list(problems(name, flags))
        for problem in found:
            print(f"{name}: {problem}", file=sys.stderr)
        if not found:
            print(f"{name}: ok")
        status = 2 if found else status
    return status


def problems(name: str, flags: Sequence[str] = ()) -> Iterator[str]:
    """Yield what is wrong with a recipe: first its form, and if that is right, what it refers to.

    Args:
        name: Its file, or its name in the collection.
        flags: What is put on top of it, as a command line of ``flexora run`` has it.
    """
    try:
        looks_like_a_file = Path(name).is_file() or Path(name).suffix in (".yaml", ".yml")
        path = Path(name) if looks_like_a_file else find_recipe(name).path
        sections = load_sections(path)
    except FlexoraError as error:
        yield str(error)
        return
    if "arms" in sections:
        yield from _wrong_study(path) if not flags else ["a study takes nothing on top; write it into the file"]
        return
    stack = ["--config", str(path), *flags]
    wrong = list(_wrong_stack(stack, sections) if flags else _wrong_settings(sections))
    yield from wrong
    if not wrong:
        yield from _wrong_references(stack)


def _wrong_study(path: Path) -> Iterator[str]:
    try:
        study = study_of(path)
        yield from study_problems(study, study.trials)
    except FlexoraError as error:
        yield str(error)


def _wrong_stack(stack: Sequence[str], sections: dict[str, Any]) -> Iterator[str]:
    """Parse a recipe with what is put on top; if that is wrong, say all of the recipe and the first of the others."""
    found = list(_attempt(lambda: Recipe("validate", run_arguments(stack))))
    # What a recipe lacks, a file on top may bring.
    own = list(_wrong_settings(sections)) if found and "data" in sections else []
    lacks = any("arguments are required: data" in problem for problem in found)
    yield from dict.fromkeys([*own, *([NO_DATA] if lacks else found)])


def _wrong_settings(sections: dict[str, Any]) -> Iterator[str]:
    """Parse the settings; if any is wrong, one by one: the parser itself stops at the first."""
    parse = recipe_parser("validate").parse_object
    data = sections.get("data")
    if data is not None and not list(_attempt(parse, sections)):
        return
    if data is None:
        yield NO_DATA
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


def _wrong_references(stack: Sequence[str]) -> Iterator[str]:
    """Check what a well-formed recipe refers to: phases, precisions, files, layers."""
    recipe = Recipe("validate", run_arguments(stack))
    # Without an arm to train, a recipe may be one for flexora evaluate alone.
    trains = not PHASE_OF_ARM.keys().isdisjoint(recipe.sections["evaluate"]["arms"])
    found = [problem for check in checks(recipe, get_args(Phase), trains=trains) for problem in _attempt(check)]
    yield from dict.fromkeys(found)  # the phases share data and backbone, and so their problems


def _attempt(check: Callable[..., object], *arguments: object) -> Iterator[str]:
    try:
        check(*arguments)
    except FlexoraError as error:
        yield str(error)
