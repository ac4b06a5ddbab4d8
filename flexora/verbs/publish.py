"""``flexora publish``: a finished run as a folder for the hub, and onto the hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from flexora.errors import FlexoraError
from flexora.files import sha256_of
from flexora.places import own_path
from flexora.publish.base import find_base, require_name, require_repo_id
from flexora.publish.bundle import files_of, write_bundle
from flexora.publish.run import FinishedRun
from flexora.publish.upload import upload


def main(arguments: Sequence[str]) -> int:
    """Write the folder, say what is in it, and with ``--push`` upload it.

    Raises:
        FlexoraError: If the run, the names, the licence, or what would be published does not allow it.
    """
    options = _parser().parse_args(arguments)
    for option in ("public", "pr"):
        if getattr(options, option) and not options.push:
            raise FlexoraError(f"--{option} is for uploading; add --push")
    require_repo_id(options.repo_id, "--repo-id")
    run = FinishedRun.read(own_path(options.run_dir, "RUN_DIR"))
    base = find_base(
        run.recipe["backbone"], run.selection.base, run.peft, options.base_id, options.base_revision, options.license
    )
    require_name(options.repo_id, base)
    target: Path = own_path(options.to or run.folder.root / "publish", "--to")
    with run.folder.locked():
        folder = write_bundle(run, base, options.repo_id, target)
    for file in files_of(folder):
        print(f"{sha256_of(file)}  {file.stat().st_size:>13,} bytes  {file.relative_to(folder)}")
    console = Console()
    if run.illustrative:
        console.print("the search was illustrative: the card says so", soft_wrap=True)
    does = "open a pull request with" if options.pr else "upload"
    if not options.push:
        console.print(
            f"dry run: {folder} is written, nothing was uploaded; --push would {does} these files as "
            f"{options.repo_id}, private unless --public is given",
            soft_wrap=True,
        )
        return 0
    message = f"{run.results.benchmark}: adapter on {len(run.selection.layers)} of {run.selection.num_layers} layers"
    commit = upload(folder, options.repo_id, message, options.public, options.pr)
    console.print(f"{commit.pr_url or commit.repo_url}, commit {commit.oid}", soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="flexora publish",
        allow_abbrev=False,
        description="Write RUN_DIR/publish: adapter, selection, recipe, results, pictures and a model card, searched "
        "for places and names of this machine. Nothing leaves it without --push; HF_ENDPOINT and HF_TOKEN count.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="output_dir of a finished run")
    parser.add_argument("--repo-id", required=True, metavar="USER/NAME", help="the repository on the hub")
    parser.add_argument("--base-id", metavar="USER/NAME", help="the base model on the hub, where it was a folder")
    parser.add_argument("--base-revision", metavar="REVISION", help="its commit or tag, where the recipe has none")
    parser.add_argument("--license", metavar="ID", help="the base model's licence, where the zoo does not know it")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="another place than RUN_DIR/publish")
    parser.add_argument("--push", action="store_true", help="upload, into a private repository unless there is one")
    parser.add_argument("--public", action="store_true", help="with --push: a new repository may be seen by all")
    parser.add_argument("--pr", action="store_true", help="with --push: open a pull request instead of committing")
    return parser
