"""What a finished evaluation has, and what it is asked for besides: arms, samples, a referee."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flexora.backbone.adapter_files import same_adapter
from flexora.errors import FlexoraError
from flexora.scoring.results import Results
from flexora.verbs.arms import fingerprints
from flexora.verbs.settings import Recipe


def asked_for(recipe: Recipe) -> dict[str, Any]:
    """The recipe's evaluate section with what the finished evaluation has besides, so that asking for more loses none.

    Arms of :func:`gone_arms` are not kept.
    """
    asked: dict[str, Any] = recipe.sections["evaluate"]
    if not recipe.folder.is_done("evaluate"):
        return asked
    before, gone = recipe.folder.settings("evaluate")["evaluate"], gone_arms(recipe)
    kept = [arm for arm in before["arms"] if arm not in gone]
    return asked | {
        "arms": list(dict.fromkeys([*asked["arms"], *kept])),
        "referee": asked["referee"] or before["referee"],
        "samples": asked["samples"] or before["samples"],
    }


def gone_arms(recipe: Recipe) -> list[str]:
    """Arms of a finished evaluation that are not asked for, and whose adapters are others now, or nowhere."""
    if not recipe.folder.is_done("evaluate"):
        return []
    scored = recipe.folder.settings("evaluate")["adapters"]
    others = [arm for arm in scored if arm not in recipe.sections["evaluate"]["arms"]]
    return [arm for arm in others if not same_adapter(scored[arm], _fingerprint(recipe, arm))]


def _fingerprint(recipe: Recipe, arm: str) -> str | None:
    """Fingerprint of an arm's adapter; none where there are none, or the hub that has them cannot be reached."""
    try:
        return fingerprints(recipe.folder, [arm])[arm]
    except FlexoraError:
        return None


def is_scored(recipe: Recipe) -> bool:
    """Whether the finished evaluation has all that is asked for, with the adapters as they are now."""
    if not recipe.folder.is_done("evaluate"):
        return False
    asked, done = recipe.sections["evaluate"], recipe.folder.settings("evaluate")
    adapters = fingerprints(recipe.folder, asked["arms"])
    return all(asked[name] in (done["evaluate"][name], None, False) for name in ("referee", "samples")) and all(
        arm in done["adapters"] and same_adapter(done["adapters"][arm], found) for arm, found in adapters.items()
    )


def keep_comparisons(results: Results, recipe: Recipe, adapters: Mapping[str, str | None]) -> None:
    """Keep what a referee said of arms that are scored again, until it is asked again.

    Args:
        results: New results, which are completed.
        recipe: The recipe, whose folder holds the results in whose place they come.
        adapters: Fingerprints of the arms' adapters as they are now.
    """
    before, scored = Results.read(recipe.folder.results), recipe.folder.settings("evaluate")["adapters"]
    for new, old in zip(results.parts or [results], before.parts or [before], strict=True):
        said = {arm.name: arm.referee for arm in old.arms if same_adapter(scored[arm.name], adapters.get(arm.name))}
        for arm in new.arms:
            arm.referee = said.get(arm.name)


def require_same_rows(recipe: Recipe) -> None:
    """Make sure that a finished evaluation scored the same rows with the same base model.

    Raises:
        FlexoraError: Naming the first setting that differs.
    """
    settings = recipe.settings("evaluate")
    del settings["evaluate"]  # more of that may be asked for at any time
    recipe.folder.require_same("evaluate", settings)
