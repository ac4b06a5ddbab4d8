"""``flexora recipes``: ls, show NAME, cp NAME FILE."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

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
    actions.add_parser("ls", help="list all recipes")
    show = actions.add_parser("show", help="print a recipe")
    show.add_argument("name")
    copy = actions.add_parser("cp", help="write a recipe as one file to edit, with its shared sections filled in")
    copy.add_argument("name")
    copy.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    if options.action == "ls":
        table = Table("recipe", "what it is", box=None, pad_edge=False)
        for recipe in all_recipes():
            table.add_row(recipe.name, recipe.headline)
        Console().print(table)
    elif options.action == "show":
        print(find_recipe(options.name).path.read_text(), end="")
    else:
        _copy(find_recipe(options.name), options.file)
    return 0


def _copy(recipe: RecipeFile, file: Path) -> None:
    if file.exists():
        raise FlexoraError(f"{file} exists already; choose another name")
    write_atomically(file, flattened(recipe, file))
    print(f"{file}: edit it, then flexora run --config {file}")


def flattened(recipe: RecipeFile, file: Path) -> str:
    """The recipe as one file: its head comment with the new name, and every shared section in place of its path."""
    lines = recipe.path.read_text().splitlines(keepends=True)
    head = takewhile(lambda line: line.startswith("#"), lines)
    start = f"# Start: flexora run --config {file}\n"
    comment = "".join(start if line.startswith("# Start:") else line for line in head)
    return comment + yaml.safe_dump(load_sections(recipe.path), sort_keys=False, allow_unicode=True)
