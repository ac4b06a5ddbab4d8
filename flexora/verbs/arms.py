"""Arms of an evaluation: the base model, the adapters that a run trains, any other PEFT folder, the hub's too."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from flexora.backbone.adapter_files import fingerprint, refuse_pickle
from flexora.errors import FlexoraError
from flexora.places import own_path
from flexora.runfolder import PHASE_OF_ARM, RunFolder
from flexora.trust import known_class, same_class
from flexora.verbs.bases import require_same_base
from flexora.zoo.references import adapter_folder


def fingerprints(folder: RunFolder, arms: Iterable[str]) -> dict[str, str | None]:
    """Fingerprint of every arm's adapter, none for the base model or where there is none."""
    places = {arm: place_of(folder, arm) for arm in arms}
    return {arm: None if place is None else fingerprint(place) for arm, place in places.items()}


def place_of(folder: RunFolder, arm: str) -> Path | None:
    """Folder of an arm's adapter, whether or not there is one; none for the base model.

    Raises:
        FlexoraError: If it is a reference with nothing behind it.
    """
    if arm == "base":
        return None
    if arm in PHASE_OF_ARM:
        return folder.adapter(PHASE_OF_ARM[arm])
    return adapter_folder(arm) or own_path(arm, "the adapter")


def existing_adapter(folder: RunFolder, arm: str, backbone: dict[str, Any], option: str) -> Path | None:
    """Folder of an arm's adapter; none for the base model.

    Args:
        folder: The run's folder.
        arm: The arm.
        backbone: The backbone section of the recipe.
        option: The option that names the arm, for messages.

    Raises:
        FlexoraError: If there is no adapter in it, or a run has trained it on another base model.
    """
    path = place_of(folder, arm)
    if path is not None and not (path / "adapter_config.json").is_file():
        known = ", ".join(["base", *PHASE_OF_ARM])
        remedy = "run flexora run first" if arm in PHASE_OF_ARM else f"name one of {known} or the folder of an adapter"
        raise FlexoraError(f"{option}: {arm} has no adapter in {path}; {remedy}")
    if path is not None:
        refuse_pickle(path)
        require_same_base(path.parent, backbone, f"{option}: {arm}")
    return path


def adapter_of(folder: RunFolder, arm: str, sections: dict[str, Any], option: str = "evaluate.arms") -> Path | None:
    """Folder of an arm's adapter, trained with the prompts that it is to be scored with; none for the base model.

    Args:
        folder: The run's folder.
        arm: The arm.
        sections: The sections of the recipe, of which ``data`` and ``backbone`` are read.
        option: The option that names the arm, for messages.

    Raises:
        FlexoraError: If there is no adapter in it, or it was trained on another base model or with prompts of another
            style.
    """
    path = existing_adapter(folder, arm, sections["backbone"], option)
    if path is None:
        return None
    data = sections["data"]
    _require_same_prompts(arm, _trained_with(path), {"class_path": data["class_path"], **data["init_args"]}, option)
    return path


def _trained_with(path: Path) -> dict[str, Any]:
    """The data settings that an adapter was trained with, where a run or its published folder says it."""
    try:  # what another's file may say is not known
        if (path.parent / "done.json").is_file():  # a run's own adapter
            return dict(json.loads((path.parent / "done.json").read_text())["data"])
        data = yaml.safe_load((path / "config.yaml").read_text())["data"]  # a published one
        return {"class_path": data["class_path"], **data["init_args"]}
    except (OSError, TypeError, KeyError, ValueError, RecursionError, yaml.YAMLError):
        return {}


def _require_same_prompts(arm: str, trained: dict[str, Any], now: dict[str, Any], option: str) -> None:
    before, after = _style(trained), _style(now)
    if not same_class(trained.get("class_path"), now.get("class_path")) or trained.get("source") != now.get("source"):
        del before["columns"]  # other rows have columns of their own
    for name, value in before.items():
        if None not in (value, after.get(name)) and value != after[name]:
            raise FlexoraError(
                f"{option}: {arm} was trained with data.{name} {value}, but is to be scored with {after[name]}; set "
                f"data.{name} to {value}, or take another adapter"
            )


def _style(data: dict[str, Any]) -> dict[str, Any]:
    """What decides the text of a prompt, as far as a data section says it; None where it does not."""
    referee = getattr(known_class(data.get("class_path")), "referee_style", None)
    prompt_style = data.get("prompt_style") or referee
    template = "letters_template" if prompt_style == "letters" else "template"
    chat = data.get("messages") or data.get("chat_template")  # rows with messages are chats whatever the setting says
    return {
        "prompt_style": prompt_style,
        "chat_template": chat,
        "separator": None if chat else data.get("separator"),  # the chat template stands in its place
        template: data.get(template),
        "columns": data.get("columns") or {},
    }
