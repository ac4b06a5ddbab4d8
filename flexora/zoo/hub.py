"""Selections and adapters that others have published on the hub: ``hf:USER/NAME``, ``hf:USER/NAME@REVISION``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import cast

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from flexora.errors import FlexoraError
from flexora.places import plain_revision

HUB_REFERENCE = "hf:"

#: All that a call of the hub may raise; HfHubHTTPError's bases are the errors of the HTTP client that the library uses.
HUB_ERRORS: tuple[type[Exception], ...] = (
    *cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__),
    OSError,
    RuntimeError,
    ValueError,
)

#: What to do about it, the more special ones first.
_REMEDIES: dict[type[Exception], str] = {
    GatedRepoError: "its terms have to be accepted on its page first, with the account of hf auth login",
    RepositoryNotFoundError: (
        "there is no such repository, or this login cannot see it; check the name, or run hf auth login"
    ),
    RevisionNotFoundError: "there is no such revision; check what follows the @",
    LocalTokenNotFoundError: "the hub wants a login; run hf auth login, or set HF_TOKEN",
}


def hub_selection(reference: str) -> Path:
    """Download ``selection.json`` of a repository into the hub's cache, and return its path.

    Args:
        reference: ``hf:USER/NAME`` or ``hf:USER/NAME@REVISION``.

    Raises:
        FlexoraError: If the reference is malformed, or the hub has no such file or cannot be reached.
    """
    return _download(reference, ("selection.json",)) / "selection.json"


def hub_adapter(reference: str) -> Path:
    """Download a PEFT adapter into the hub's cache, and return its folder.

    Weights come as safetensors alone: other files of weights are pickles, which run code when they are read. The
    recipe (``config.yaml``) comes along where there is one: it says what prompts the adapter was trained with.

    Args:
        reference: ``hf:USER/NAME`` or ``hf:USER/NAME@REVISION``.

    Raises:
        FlexoraError: If the reference is malformed, or the hub has no such adapter or cannot be reached.
    """
    return _download(reference, ("adapter_config.json", "adapter_model.safetensors"), ("config.yaml",))


@cache  # one process asks several times, and must see one commit
def _download(reference: str, needed: tuple[str, ...], wanted: tuple[str, ...] = ()) -> Path:
    name, at, revision = reference.removeprefix(HUB_REFERENCE).partition("@")
    if "/" not in name or (at and not revision):
        raise FlexoraError(f"{reference} names no repository; write hf:USER/NAME or hf:USER/NAME@REVISION")
    plain_revision(revision or None, reference)
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=[*needed, *wanted]))
    except HUB_ERRORS as error:
        raise FlexoraError(f"cannot read {reference}: {hub_reason(error)}") from error
    for file in needed:
        if not (folder / file).is_file():
            raise FlexoraError(
                f"{reference} has no {file}, or it was not fetched before and the hub is out of reach; name a "
                "repository that flexora publish made"
            )
    return folder


def hub_reason(error: BaseException) -> str:
    """Why a call of the hub failed and what to do, without the paragraphs that the library adds."""
    for kind, remedy in _REMEDIES.items():
        if isinstance(error, kind):
            return remedy
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return _REMEDIES[LocalTokenNotFoundError]
        said = " ".join((error.server_message or str(error)).split())[:200]
        return f"the hub answered {status}: {said}; {'use a login that may do that' if status == 403 else 'try again'}"
    if error.__cause__ is not None and isinstance(error, (OSError, RuntimeError)):
        return hub_reason(error.__cause__)
    return f"{' '.join(str(error).split())[:200]}; check the name and the network"
