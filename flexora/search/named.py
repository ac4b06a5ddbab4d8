"""What a user may give for a selection: itself, a file, layers by number, or a name in the zoo or on the hub."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from flexora.backbone.families import family_of
from flexora.errors import FlexoraError
from flexora.places import own_path
from flexora.search.selection import Selection, SelectionBase
from flexora.zoo.references import referenced_selection

#: What the user typed is layers, whatever files there are.
_LAYERS = re.compile(r"all|[\d\s,-]+")


def parse_layers(text: str, num_layers: int) -> list[int]:
    """Parse ``all`` or a list such as ``0,3,5-9`` into sorted 0-based layer indices.

    Raises:
        FlexoraError: If the text has another form, a range runs backwards, or a layer does not exist.
    """
    if text.strip() == "all":
        return list(range(num_layers))
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None:
            raise FlexoraError(f"selection {text!r}: expected a selection.json, 'all', or layers such as 0,3,5-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise FlexoraError(f"selection {text!r}: the range {part.strip()} runs backwards; write {last}-{first}")
        if last >= num_layers:
            raise FlexoraError(
                f"selection {text!r}: layer {last} is out of range; the model has layers 0 to {num_layers - 1}"
            )
        layers.update(range(first, last + 1))
    return sorted(layers)


def names_file(text: str) -> bool:
    """Whether what the user typed after ``--selection`` is a file, not layers."""
    if _LAYERS.fullmatch(text):  # a long list would be too long for a name
        return False
    return text.endswith(".json") or own_path(text, "selection").is_file()


def resolve_selection(
    given: str | Path | Selection, architecture: str, num_layers: int, target_modules: Collection[str] | str | None
) -> Selection:
    """Turn what the user gave, or typed after ``--selection``, into a :class:`Selection` for this model.

    Args:
        given: A selection, the path of a ``selection.json``, ``zoo:MODEL/BENCHMARK``, ``hf:USER/NAME``, ``all``, or a
            list such as ``0,3,5-9``.
        architecture: Class name of the base model.
        num_layers: Its number of decoder layers.
        target_modules: The projections to adapt in each layer, as the adapter names them; where it names none, those of
            the file, or the paper's when the text is a list.

    Raises:
        FlexoraError: If it cannot be read or does not fit the model.
    """
    text = "selection" if isinstance(given, Selection) else str(given)
    found = given if isinstance(given, Selection) else referenced_selection(text)
    if found is None and names_file(text):
        found = Selection.read(text)
    if found is not None:
        selection = found.require(architecture, num_layers, text)
        for names in selection.targets.values():
            try:
                family_of(architecture).expand(names)
            except FlexoraError as error:
                raise FlexoraError(f"{text}: {error}") from error
        return retargeted(selection, target_modules, text)
    layers = parse_layers(text, num_layers)
    return Selection(
        base=SelectionBase(architecture=architecture, num_layers=num_layers),
        layers=layers,
        targets=dict.fromkeys(layers, family_of(architecture).expand(target_modules)),
    )


def retargeted(selection: Selection, target_modules: Collection[str] | str | None, source: str) -> Selection:
    """The selection with the projections that the adapter names in each of its layers; its own where it names none.

    Args:
        selection: A selection, of a file or of a search.
        target_modules: What the adapter names: short names of projections, ``all-linear``, or nothing.
        source: Where the selection is from, for messages.

    Raises:
        FlexoraError: If the selection is one of single projections, and others are named than it was made among.
    """
    if target_modules is None:
        return selection
    wanted = family_of(selection.base.architecture).expand(target_modules)
    named = {name for names in selection.targets.values() for name in names}
    if set(wanted) == set(selection.projections or named):
        return selection
    if selection.projections is not None or any(set(names) != named for names in selection.targets.values()):
        raise FlexoraError(
            f"{source} chooses single projections among {', '.join(selection.projections or sorted(named))}, but the "
            f"fine-tune's adapter.target_modules are {', '.join(wanted)}; leave them out, or take a selection of layers"
        )
    return selection.model_copy(update={"targets": dict.fromkeys(selection.layers, wanted)})
