"""What ``--selection`` and ``--adapter`` take besides files of this machine: references, told by their prefix."""

from __future__ import annotations

from pathlib import Path

from flexora.zoo.hub import HUB_REFERENCE, hub_adapter, hub_selection


def is_reference(text: str) -> bool:
    """Whether a text names something that lies elsewhere."""
    return text.startswith(HUB_REFERENCE)


def selection_file(text: str) -> Path | None:
    """The file of a selection that a reference names; none where the text is no reference.

    Raises:
        FlexoraError: If there is nothing behind the reference.
    """
    return hub_selection(text) if is_reference(text) else None


def adapter_folder(text: str) -> Path | None:
    """The PEFT folder of an adapter that a reference names; none where the text is no reference.

    Raises:
        FlexoraError: If there is nothing behind the reference.
    """
    return hub_adapter(text) if is_reference(text) else None
