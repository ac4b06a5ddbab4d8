"""To the hub: a private repository by default, the folder as one commit or one pull request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, ModelCard

from flexora.errors import FlexoraError
from flexora.publish.bundle import EVAL_RESULTS, NOTICE, PICTURES
from flexora.zoo.hub import HUB_ERRORS, hub_reason

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


def upload(folder: Path, repo_id: str, message: str, public: bool = False, pull_request: bool = False) -> CommitInfo:
    """Upload a published folder; the repository is made where there is none.

    What an earlier upload put there and this one has no more (a picture, evaluation results, a notice) is deleted.

    Args:
        folder: The folder.
        repo_id: ``USER/NAME``.
        message: Message of the commit.
        public: Whether all may see it. A repository that is there keeps its visibility.
        pull_request: Whether to open a pull request instead of committing.

    Raises:
        FlexoraError: If the hub refuses the card or the upload, cannot be reached, or would show to all what is not to
            be public.
    """
    api = HfApi()
    try:
        _require_valid_card(folder / "README.md")
        api.create_repo(repo_id, private=not public, exist_ok=True)
        if not public and api.model_info(repo_id).private is False:
            raise FlexoraError(f"--repo-id: {repo_id} is public already; add --public if all may see this, too")
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=message,
            create_pr=pull_request,
            delete_patterns=[EVAL_RESULTS, NOTICE, *PICTURES],
        )
    except HUB_ERRORS as error:
        raise FlexoraError(f"cannot upload to {repo_id}: {hub_reason(error)}") from error


def _require_valid_card(card: Path) -> None:
    """Ask the hub what it thinks of a card, before anything is made there."""
    try:
        ModelCard.load(card).validate()
    except ValueError as error:
        raise FlexoraError(f"the hub refuses the card: {' '.join(str(error).split())[:300]}; mend {card}") from error
