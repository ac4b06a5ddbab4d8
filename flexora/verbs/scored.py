"""What a finished evaluation has, and what it is asked for besides: arms, samples, a referee."""

from __future__ import annotations

from typing import Any

from flexora.verbs.arms import fingerprints
from flexora.verbs.settings import Recipe


def asked_for(recipe: Recipe) -> dict[str, Any]:
    """The recipe's evaluate section with what the finished evaluation has besides, so that asking for more loses none.

    Arms whose adapters are others now are not kept: their scores are those of adapters that are gone.
    """
    asked: dict[str, Any] = recipe.sections["evaluate"]
    if not recipe.folder.is_done("evaluate"):
        return asked
    done = recipe.folder.settings("evaluate")
    before, adapters = done["evaluate"], fingerprints(recipe.folder, done["evaluate"]["arms"])
    kept = [arm for arm, adapter in adapters.items() if adapter == done["adapters"][arm]]
    return asked | {
        "arms": list(dict.fromkeys([*asked["arms"], *kept])),
        "referee": asked["referee"] or before["referee"],
        "samples": asked["samples"] or before["samples"],
    }


def is_scored(recipe: Recipe) -> bool:
    """Whether the finished evaluation has all that is asked for, with the adapters as they are now."""
    if not recipe.folder.is_done("evaluate"):
        return False
    asked, done = asked_for(recipe), recipe.folder.settings("evaluate")
    same = all(asked[name] == done["evaluate"][name] for name in ("referee", "samples"))
    return same and fingerprints(recipe.folder, asked["arms"]) == done["adapters"]


def require_same_rows(recipe: Recipe) -> None:
    """Make sure that a finished evaluation scored the same rows with the same base model.

    Raises:
        FlexoraError: Naming the first setting that differs.
    """
    settings = recipe.settings("evaluate")
    del settings["evaluate"]  # more of that may be asked for at any time
    recipe.folder.require_same("evaluate", settings)
