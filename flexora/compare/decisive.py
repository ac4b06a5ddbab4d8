"""Which settings decide a trial's result, and how they are kept: without loggers, and without tokens or passwords."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from flexora.secrets import HIDDEN, without_secrets

#: Settings of the trainer that leave a trial's result as it is.
UNDECISIVE_TRAINER = ("accelerator", "logger", "log_every_n_steps", "enable_progress_bar")


def without_trainer(
    sections: Mapping[str, Any], left_out: Collection[str] = UNDECISIVE_TRAINER, above: str = ""
) -> dict[str, Any]:
    """Sections of a recipe without some settings of ``trainer``, ``search.trainer`` and ``finetune.trainer``.

    Sections that are empty are left out, too: one that holds nothing else is as good as none.

    Args:
        sections: The sections, or what lies in one; names may be dotted, as recipes allow.
        left_out: Names of the settings.
        above: Where they lie, with a dot at its end.
    """
    kept: dict[str, Any] = {}
    for name, value in sections.items():
        path = f"{above}{name}"
        if re.fullmatch(rf"(\w+\.)?trainer\.({'|'.join(left_out)})(\..*)?", path):
            continue
        inner = without_trainer(value, left_out, f"{path}.") if isinstance(value, dict) else value
        if inner != {}:
            kept[name] = inner
    return kept


def without_secrets_inside(value: Any) -> Any:
    """Nested settings with every text as :func:`without_secrets` leaves it.

    Text by text: in JSON a password may be spelt with escapes, and a number must stay one.
    """
    if isinstance(value, dict):
        return {name: without_secrets_inside(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_secrets_inside(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) else value


def shareable(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial was made with, fit to be given to others."""
    sections = {name: made_with.get(name) for name in ("recipe", "settings")}
    parts = {name: without_trainer(part) for name, part in sections.items() if isinstance(part, dict)}
    return {name: without_secrets_inside(value) for name, value in (dict(made_with) | parts).items()}


def filled_in(kept: Any, now: Any) -> Any:
    """What was kept, with the present text wherever that fits around what was hidden.

    Not every call knows the same secrets: a variable of the environment may be set, or not.
    """
    if isinstance(kept, dict) and isinstance(now, dict):
        return {name: filled_in(value, now.get(name)) for name, value in kept.items()}
    if isinstance(kept, list) and isinstance(now, list) and len(kept) == len(now):
        return [filled_in(one, other) for one, other in zip(kept, now, strict=True)]
    if isinstance(kept, str) and HIDDEN in kept and isinstance(now, str):
        pattern = ".*".join(map(re.escape, kept.split(HIDDEN)))
        return now if re.fullmatch(pattern, now, re.DOTALL) else kept
    return kept
