"""An adapter belongs to one base model: that of its training is compared with the one it is to be used on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexora.backbone.converted import CONVERTED_PREFIX, converted_place
from flexora.backbone.gguf import PACKAGED_ORIGINALS, PACKAGED_PREFIX, require_packaged
from flexora.backbone.loading import Backbone
from flexora.data.hygiene import say
from flexora.errors import FlexoraError, shown
from flexora.places import own_path
from flexora.zoo.models import known_model

#: Characters of the hub's commits; hashes of files have more.
_COMMIT = 40


@dataclass(frozen=True)
class _Trained:
    """What a phase was trained on; the weights' hash, or the hub's commit, where the phase knew it."""

    model: str
    revision: str | None
    weights: str | None


def require_same_base(phase: Path, backbone: Mapping[str, Any], what: str) -> None:
    """Make sure that what a phase has trained is used on the model that it was trained on.

    A folder is the same by another path too, and one with the same weights, such as a copy.

    Args:
        phase: The folder of the phase; one that says nothing of its base model is not asked.
        backbone: The recipe's section.
        what: The option, and what of the phase is to be used, for messages.

    Raises:
        FlexoraError: If it was trained on another model, or another revision of it.
    """
    before = _trained_on(phase)
    if before is None:
        return
    model, revision = backbone["model"], backbone["revision"]
    flags, place = [], _folder(model)
    if before.weights is not None and (place is None) != (len(before.weights) == _COMMIT):
        # Of the hub then, of a folder now, or the other way round: a commit and a hash cannot be compared.
        say(f"{what} was trained on {shown(before.model)}; here it is used on {model}, which should be the same")
        return
    weights = Backbone(**{**backbone, "model": str(place)}).fingerprint() if place and place.is_dir() else None
    if weights and weights == before.weights:
        return
    if weights and before.weights and _same_place(model, before.model):
        raise FlexoraError(f"{what} was trained on {shown(model)}, whose weights have changed since; train it again")
    if model != before.model and not _same_place(model, before.model):
        flags.append(f"--backbone.model {before.model}")
    if place is None and (revision or "main") not in (before.revision or "main", before.weights):
        flags.append(f"--backbone.revision {before.revision or 'null'}")
    if flags:
        was, now = (
            f"{shown(name)}{f' at {shown(at)}' if at else ''}"
            for name, at in ((before.model, before.revision), (model, revision))
        )
        raise FlexoraError(
            f"{what} was trained on {was}, but is to be used on {now}; set {shown(' '.join(flags))}, or name another"
        )


def tell_other_base(adapter: Path | None, backbone: Mapping[str, Any], what: str) -> None:
    """Say where an adapter from elsewhere names another base model: it may be the same one under another name.

    Args:
        adapter: The adapter's folder, if there is one; those of runs are compared by what the run says.
        backbone: The recipe's section.
        what: The option, and what the adapter is called, for the message.
    """
    if adapter is None or _trained_on(adapter.parent) is not None:
        return
    try:  # another's file; whether it is whole is found out when it is loaded
        named = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return
    model = backbone["model"]
    if isinstance(named, str) and named not in ("", model, _original(model)) and not _same_place(model, named):
        say(f"{what} names {shown(named)} as its base model; here it is used on {model}")


def _trained_on(phase: Path) -> _Trained | None:
    """What a finished phase says of its base model; none where it says nothing, or is another's and says nonsense."""
    try:
        settings = json.loads((phase / "done.json").read_text())
        model, revision = settings["backbone"]["model"], settings["backbone"]["revision"]
        weights = settings.get("weights")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    known = isinstance(model, str) and all(isinstance(value, str | None) for value in (revision, weights))
    return _Trained(model, revision, weights) if known else None


def _folder(model: str) -> Path | None:
    """Where a model lies, or will lie; none of the hub's."""
    if model.startswith(PACKAGED_PREFIX):
        return require_packaged(model)
    if model.startswith(CONVERTED_PREFIX):
        return converted_place(model)
    place = own_path(model, "backbone.model")
    return place if place.is_dir() else None


def _same_place(model: str, named: str) -> bool:
    try:
        places = [_folder(model), _folder(named)]
    except FlexoraError:  # a name that means nothing on this machine
        return False
    return None not in places and len({place.resolve() for place in places if place}) == 1


def _original(model: str) -> str | None:
    """The hub's name of a model that is packaged or converted here."""
    if model.startswith(PACKAGED_PREFIX):
        return PACKAGED_ORIGINALS.get(model.removeprefix(PACKAGED_PREFIX))
    facts = known_model(model) if model.startswith(CONVERTED_PREFIX) else None
    return facts.id if facts else None
