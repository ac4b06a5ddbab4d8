"""Settings of the shared trainer that a phase's own of the same name makes void: refused, or told."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, get_args

from jsonargparse import get_loader

from flexora.backbone.limits import Phase
from flexora.data.hygiene import say
from flexora.errors import FlexoraError
from flexora.secrets import without_secrets

#: Set for the commands that a command starts: it has told.
TOLD = "FLEXORA_TOLD"
#: Those that the fine-tune alone follows: search and evaluation know their own ends, and the search its own steps.
FINETUNE_TRAINER = {
    *("max_epochs", "max_steps", "min_epochs", "min_steps", "accumulate_grad_batches", "gradient_clip_val"),
    *("gradient_clip_algorithm", "val_check_interval", "check_val_every_n_epoch", "limit_val_batches"),
}


def require_effect(verb: str, arguments: Sequence[str], sections: dict[str, Any]) -> None:
    """Refuse a flag that has no effect: another one of the same name, or a phase's own setting, makes it void.

    Raises:
        FlexoraError: If there is one of the shared trainer that no phase of the command follows, and no flag of a phase
            beside it; or if callbacks are appended to a phase's own more than once, of which the last would count.
    """
    for more in (f"--{phase}.trainer.callbacks+" for phase in get_args(Phase)):
        if [argument.partition("=")[0] for argument in arguments].count(more) > 1:
            raise FlexoraError(f"{more}: the last one alone would count; give it once, with a list: {more}=[A, B]")
    given = _flags(arguments)
    for name, shared in sections["trainer"].items():
        own = {phase: sections[phase]["trainer"].get(name, shared) for phase in _followers(verb, name)}
        flags = {f"--{phase}.trainer{part}" for phase in own for part in ("", f".{name}")}
        if f"--trainer.{name}" in given and own and shared not in own.values() and flags.isdisjoint(given):
            phase, value = next(iter(own.items()))
            raise FlexoraError(
                f"--trainer.{name}: the recipe's {phase}.trainer.{name} {value} stands in its place; give "
                f"--{phase}.trainer.{name}"
            )


def tell_shadowed(
    verb: str, arguments: Sequence[str], sections: dict[str, Any], files: Sequence[dict[str, Any]]
) -> None:
    """Say which settings of the shared trainer have no effect, though their file came after that of a phase's own.

    Args:
        verb: The verb.
        arguments: Its command line; a flag of the phase is meant as it is.
        sections: What results.
        files: The files of settings, as they were given.
    """
    if TOLD in os.environ:
        return
    given = _flags(arguments)
    for name, shared in sections["trainer"].items():
        for phase in _followers(verb, name):
            own = sections[phase]["trainer"].get(name, shared)
            later = _last(files, ("trainer", name)) > _last(files, (phase, "trainer", name)) >= 0
            if own != shared and later and given.isdisjoint((f"--{phase}.trainer", f"--{phase}.trainer.{name}")):
                line = f"trainer.{name} {shared} is not followed: {phase}.trainer.{name} is {own}; set that one"
                say(without_secrets(line))


def read_files(parsed: Any) -> list[dict[str, Any]]:
    """The settings of each ``--config``, of jsonargparse's paths: they have been parsed without a problem."""
    return [get_loader("yaml")(path.get_content()) or {} if path else {} for path in parsed or ()]


def _flags(arguments: Sequence[str]) -> set[str]:
    return {argument.partition("=")[0].rstrip("+") for argument in arguments}


def _followers(verb: str, name: str) -> list[str]:
    """The phases of a command that follow a setting of the trainer."""
    ran = {verb} & set(get_args(Phase)) or set(get_args(Phase))
    return sorted(ran & {"finetune"} if name in FINETUNE_TRAINER else ran)


def _last(files: Sequence[dict[str, Any]], names: Sequence[str]) -> int:
    """The place of the last file that gives a setting, or -1."""
    places = [-1]
    for place, found in enumerate(files):
        value: Any = found
        for name in names:
            value = value.get(name, KeyError) if isinstance(value, dict) else KeyError
        if value is not KeyError:
            places.append(place)
    return places[-1]
