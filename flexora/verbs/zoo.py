"""``flexora zoo``: ls [KIND], show NAME, record PLACE."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.padding import Padding

from flexora.errors import FlexoraError
from flexora.zoo.adapters import record_of
from flexora.zoo.entries import PREFIX, entry_names, find_entry, zoo_root
from flexora.zoo.listing import MARKS, adapters, models, selections, strip
from flexora.zoo.models import model_facts
from flexora.zoo.selections import layer_list

KINDS = ("models", "selections", "adapters")


def main(arguments: Sequence[str]) -> int:
    """List the zoo, show an entry, or make one of an adapter.

    Raises:
        FlexoraError: If there is no entry of that name.
    """
    parser = argparse.ArgumentParser(
        prog="flexora zoo",
        allow_abbrev=False,
        description="Facts of base models, selections and adapters to reuse: --selection zoo:MODEL/BENCHMARK in a "
        "fine-tune, --adapter zoo:NAME in an evaluation.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ls|show|record")
    listed = actions.add_parser("ls", help="list models, selections and adapters, or one kind of them")
    listed.add_argument("kind", nargs="?", choices=KINDS)
    show = actions.add_parser("show", help="print an entry: a model, MODEL/BENCHMARK[/LIST], or an adapter")
    show.add_argument("name")
    record = actions.add_parser("record", help="print the entry of an adapter that flexora publish wrote")
    record.add_argument("folder", type=Path)
    record.add_argument("--recipe", required=True, help="the recipe that made it")
    record.add_argument("--location", help="hf:USER/NAME@REVISION; default: the folder's name, beside the entry")
    options = parser.parse_args(arguments)
    console = Console()
    marks = ("#", ".") if console.options.ascii_only else MARKS
    if options.action == "ls":
        _list([options.kind] if options.kind else KINDS, console, marks)
    elif options.action == "record":
        _record(options.folder, options.recipe, options.location or options.folder.resolve().name)
    elif "/" in options.name:
        _show_layers(options.name.removeprefix(PREFIX), console, marks)
    else:
        _show_entries(options.name.removeprefix(PREFIX))
    return 0


def _record(folder: Path, recipe: str, location: str) -> None:
    entry = record_of(folder, recipe, location).model_dump(mode="json", exclude_none=True)
    print(yaml.safe_dump(entry, sort_keys=False, default_flow_style=None, width=120), end="")


def _list(kinds: Sequence[str], console: Console, marks: tuple[str, str]) -> None:
    """Print each table with its last column below the others: next to them it would not fit a terminal."""
    listings = {"models": models, "selections": lambda: selections(marks), "adapters": adapters}
    for kind in kinds:
        listing = listings[kind]()
        widths = [max(map(len, column)) for column in zip(listing.header, *listing.rows, strict=True)]
        console.print(listing.name, style="bold")
        for *cells, last in listing.rows:
            line = "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False))
            console.print(f"  {line.rstrip()}", soft_wrap=True, highlight=False)
            if last:
                console.print(Padding(f"{listing.header[-1]}: {last}", (0, 0, 0, 6)), style="dim", highlight=False)


def _show_layers(name: str, console: Console, marks: tuple[str, str]) -> None:
    lists, found = layer_list(name)
    if lists.model:
        console.print(strip(found.layers, model_facts(lists.model).shape.num_hidden_layers, marks))
    console.print(f"layers: {','.join(map(str, found.layers))}", soft_wrap=True)
    for key, value in found.model_dump(exclude_defaults=True, exclude={"layers"}).items():
        console.print(f"{key}: {value}", soft_wrap=True, highlight=False)
    where = f"{lists.source.repository}@{lists.source.commit} {lists.source.file}" if lists.source else "measured here"
    console.print(f"model: {lists.title}\nfrom: {where}", soft_wrap=True, highlight=False)


def _show_entries(name: str) -> None:
    """Print every entry of that name: a model may have both facts and selections."""
    files: list[Path] = []
    for kind in KINDS:
        try:
            files.append(zoo_root() / kind / f"{find_entry(kind, name)}.yaml")
        except FlexoraError:
            continue
    if not files:
        known = ", ".join(known for kind in KINDS for known in entry_names(kind))
        raise FlexoraError(f"the zoo has no entry {name!r}; there are {', '.join(dict.fromkeys(known.split(', ')))}")
    for file in files:
        print(f"# {file.parent.name}/{file.name}\n{file.read_text()}", end="")
