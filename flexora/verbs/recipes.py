"""``flexora recipes``: ls [TEXT], show NAME, cp NAME FILE."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import yaml
from rich.console import Console
from rich.padding import Padding

from flexora.errors import FlexoraError
from flexora.files import write_atomically
from flexora.recipes import RecipeFile, all_recipes, find_recipe, load_sections


def main(arguments: Sequence[str]) -> int:
    """List, print or copy recipes.

    Raises:
        FlexoraError: If a recipe does not exist, or the copy would replace a file.
    """
    parser = argparse.ArgumentParser(prog="flexora recipes", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ls|show|cp")
    listed = actions.add_parser("ls", help="list all recipes, or those with TEXT in their name, benchmark or needs")
    listed.add_argument("text", nargs="?", default="")
    show = actions.add_parser("show", help="print a recipe")
    show.add_argument("name")
    copy = actions.add_parser("cp", help="write a recipe as one file to edit, with its shared sections filled in")
    copy.add_argument("name")
    copy.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    if options.action == "ls":
        _list(options.text)
    elif options.action == "show":
        print(find_recipe(options.name).path.read_text(), end="")
    else:
        _copy(find_recipe(options.name), options.file)
    return 0


def _list(text: str) -> None:
    """Print a heading for each family, and two lines for each recipe: a table would not fit a terminal."""
    console = Console(highlight=False)
    rows = [(recipe.family, recipe.name, recipe.benchmark, recipe.needs) for recipe in all_recipes()]
    found = [row for row in rows if text.lower() in " ".join(row).lower()]
    if not found:
        raise FlexoraError(f"no recipe has {text!r} in its name, benchmark or needs; flexora recipes ls shows all")
    width = max(len(name) for _, name, _, _ in found)
    for family, recipes in groupby(found, key=itemgetter(0)):
        console.print(family, style="bold")
        for _, name, benchmark, needs in recipes:
            console.print(f"  {name:<{width}}  {benchmark}", soft_wrap=True)
            console.print(Padding(f"needs {needs}", (0, 0, 0, 6)), style="dim")


def _copy(recipe: RecipeFile, file: Path) -> None:
    if file.exists():
        raise FlexoraError(f"{file} exists already; choose another name")
    write_atomically(file, flattened(recipe, file))
    print(f"{file}: edit it, then {_start(recipe, file)}")


def _start(recipe: RecipeFile, file: Path) -> str:
    return f"flexora {'compare' if recipe.is_study else 'run'} --config {file}"


def flattened(recipe: RecipeFile, file: Path) -> str:
    """The recipe as one file: its head comment with the new name, and every shared section in place of its path.

    Its results have a folder of its own name: two copies of a recipe must not meet in one.
    """
    start = f"Start: {_start(recipe, file)}"
    comment = "".join(f"# {start if line.startswith('Start:') else line}\n" for line in recipe.head)
    sections = load_sections(recipe.path) | {"output_dir": f"runs/{file.stem}"}
    return comment + yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)
