"""Arms of an evaluation: the base model, the adapters that a run trains, and any other PEFT folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from flexora.backbone.adapters import WEIGHT_FILES
from flexora.errors import FlexoraError
from flexora.runfolder import RunFolder

#: Phase that trains the adapter of an arm; any other arm but the base is a PEFT folder.
PHASE_OF_ARM = {"flexora": "finetune", "lora": "lora"}


def require_arms(arms: Sequence[str]) -> None:
    """Make sure that every arm is known or a folder, before anything is trained for it.

    Raises:
        FlexoraError: Naming the first that is neither.
    """
    for arm in arms:
        if arm != "base" and arm not in PHASE_OF_ARM and not Path(arm).expanduser().is_dir():
            known = ", ".join(["base", *PHASE_OF_ARM])
            raise FlexoraError(f"evaluate.arms: {arm} is neither one of {known} nor the folder of an adapter; mend it")


def fingerprints(folder: RunFolder, arms: Iterable[str]) -> dict[str, str | None]:
    """Hash of every arm's adapter weights, none for the base model or where there are none."""
    hashes: dict[str, str | None] = {}
    for arm in arms:
        place = place_of(folder, arm)
        file = place and next((place / name for name in WEIGHT_FILES if (place / name).is_file()), None)
        hashes[arm] = hashlib.sha256(file.read_bytes()).hexdigest() if file else None
    return hashes


def place_of(folder: RunFolder, arm: str) -> Path | None:
    """Folder of an arm's adapter, whether or not there is one; none for the base model."""
    if arm == "base":
        return None
    return folder.adapter(PHASE_OF_ARM[arm]) if arm in PHASE_OF_ARM else Path(arm).expanduser()


def adapter_of(folder: RunFolder, arm: str) -> Path | None:
    """Folder of an arm's adapter; none for the base model.

    Raises:
        FlexoraError: If there is no adapter in it.
    """
    path = place_of(folder, arm)
    if path is not None and not (path / "adapter_config.json").is_file():
        raise FlexoraError(
            f"evaluate.arms: {arm} has no adapter in {path}; run flexora run, or set --evaluate.arms or --adapter"
        )
    return path


def require_same_prompts(arm: str, adapter: Path | None, data: dict[str, Any]) -> None:
    """Make sure that an adapter is evaluated with prompts of the style it was trained with, where that is known.

    Raises:
        FlexoraError: If it is another one.
    """
    done = None if adapter is None else adapter.parent / "done.json"
    if done is None or not done.is_file():
        return
    trained = json.loads(done.read_text()).get("data", {})
    now = {"class_path": data["class_path"], **data["init_args"]}
    before, after = _style(trained), _style(now)
    for name in before.keys() & after.keys():
        if None not in (before[name], after[name]) and before[name] != after[name]:
            raise FlexoraError(
                f"evaluate.arms: {arm} was trained with data.{name} {before[name]}, but is to be scored with "
                f"{after[name]}; give --data.{name} {before[name]}"
            )


def _style(data: dict[str, Any]) -> dict[str, Any]:
    """What decides the text of a prompt, in a data section."""
    path = str(data.get("class_path"))
    module, _, name = path.rpartition(".")
    try:
        referee = getattr(getattr(import_module(module), name, None), "referee_style", None)
    except (ImportError, ValueError):  # a class of the user's own, which is not here
        referee = None
    style = {"prompt_style": data.get("prompt_style") or referee, "messages": data.get("messages")}
    style["chat_template"] = None if data.get("messages") else data.get("chat_template")
    templates = {key: data[key] for key in ("separator", "template", "letters_template") if key in data}
    return style | templates
