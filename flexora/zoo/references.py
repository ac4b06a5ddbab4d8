"""What ``--selection`` and ``--adapter`` take besides files of this machine: names in the zoo, and on the hub."""

from __future__ import annotations

from pathlib import Path

from flexora.search.selection import Selection
from flexora.zoo.adapters import require_recorded, zoo_adapter
from flexora.zoo.entries import PREFIX
from flexora.zoo.hub import HUB_REFERENCE, hub_adapter, hub_selection
from flexora.zoo.selections import zoo_selection


def is_reference(text: str) -> bool:
    """Whether a text names something that lies elsewhere."""
    return text.startswith((PREFIX, HUB_REFERENCE))


def referenced_selection(text: str) -> Selection | None:
    """The selection that a reference names; none where the text is no reference.

    Raises:
        FlexoraError: If there is nothing behind the reference.
    """
    if text.startswith(PREFIX):
        return zoo_selection(text)
    return Selection.read(hub_selection(text)) if text.startswith(HUB_REFERENCE) else None


def adapter_folder(text: str) -> Path | None:
    """The PEFT folder of an adapter that a reference names; none where the text is no reference.

    Raises:
        FlexoraError: If there is nothing behind the reference, or not the weights that the zoo has recorded.
    """
    if text.startswith(PREFIX):
        record, place = zoo_adapter(text)
        folder = hub_adapter(place) if place.startswith(HUB_REFERENCE) else Path(place)
        return require_recorded(record, folder, text)
    return hub_adapter(text) if text.startswith(HUB_REFERENCE) else None
