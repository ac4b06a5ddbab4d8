"""``flexora convert``: a ChatGLM checkpoint as a model that transformers loads without remote code."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from rich.console import Console

from flexora.backbone.chatglm3 import GENERATIONS, Generation
from flexora.backbone.chatglm3_tokenizer import convert_tokenizer
from flexora.backbone.chatglm3_weights import Checkpoint
from flexora.backbone.converted import converted_place
from flexora.errors import FlexoraError
from flexora.files import new_folder
from flexora.places import own_path, plain_revision
from flexora.verbs.phase import silence
from flexora.verbs.progress import bytes_bar
from flexora.zoo.hub import HUB_ERRORS, hub_reason

LICENCES = ("LICENSE", "MODEL_LICENSE")
DESCRIPTION = """\
Write a checkpoint of ChatGLM3 as transformers' own GLM: its weights, bit by bit, under the names of GlmForCausalLM.
What comes out is a backbone.model like any other, and needs no trust_remote_code.

  flexora convert chatglm3 THUDM/chatglm3-6b --revision COMMIT     # backbone.model is then converted:chatglm3-6b

SOURCE is a folder or a hub id, of which configuration, *.safetensors and tokenizer.model are fetched, and no code.
A configuration that GLM cannot express, and a tensor that is missing or unknown, is refused before a byte is written.

kinds of checkpoints:
  chatglm3   ChatGLM3-6B, -base, -32k, -128k
  chatglm2   ChatGLM2-6B, -32k, CodeGeeX2-6B; their rope_ratio divides positions, which is another thing than later
  glm-4-9b   GLM-4-9B and -chat as first published; their weights alone, for they have no SentencePiece tokenizer

The tokenizer becomes a fast one with [gMASK] sop before every text (needs flexora[chatglm3]), and is written if it
encodes a set of texts exactly as SentencePiece does. Its names for sop and eop are <sop> and <eop>. ChatGLM3's has the
published chat template; ChatGLM2 has no tokens for roles, and gets none.

Checked against an independent reference of the published forward pass and against SentencePiece, on random weights and
small vocabularies; NOT on the real 12 GB checkpoint."""


def main(arguments: Sequence[str]) -> int:
    """Convert a checkpoint.

    Raises:
        FlexoraError: If the source cannot be had or converted, or the target not written.
    """
    parser = argparse.ArgumentParser(
        prog="flexora convert",
        allow_abbrev=False,
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=list(GENERATIONS), metavar="KIND", help="chatglm3, chatglm2 or glm-4-9b")
    parser.add_argument("source", metavar="SOURCE", help="folder of the checkpoint, or its hub id")
    parser.add_argument(
        "target",
        metavar="TARGET",
        type=Path,
        nargs="?",
        help="folder to write, whole or not at all; by default in flexora's cache, as converted:NAME of the source",
    )
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    given = parser.parse_args(arguments)
    target: Path = own_path(given.target or converted_place(Path(given.source).name.lower()), "TARGET")
    silence()
    with new_folder(target) as made:
        folder = _source(given.source, given.revision)
        generation = GENERATIONS[given.kind]
        checkpoint = Checkpoint(folder, generation)
        with bytes_bar("converting", checkpoint.size) as advance:
            checkpoint.write(made, advance)
        tokenizer = _tokenizer(folder, checkpoint, generation, made)
        for name in LICENCES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, made / name)
    Console().print(
        f"{given.source} converted: {target}, {checkpoint.size / 1e6:,.1f} MB in {checkpoint.config.dtype}, "
        f"{checkpoint.config.num_hidden_layers} layers; {tokenizer}",
        soft_wrap=True,
        markup=False,  # [gMASK] and flexora[chatglm3] are none
    )
    return 0


def _source(source: str, revision: str | None) -> Path:
    """The checkpoint's folder, fetched from the hub where it is none."""
    folder = own_path(source, "SOURCE")
    if folder.is_dir():
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise FlexoraError(f"SOURCE: the folder {source} does not exist; name a folder or a hub id")
    plain_revision(revision, "--revision")
    wanted = ["config.json", "*.safetensors", "tokenizer.model", *LICENCES]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=wanted))
    except HUB_ERRORS as error:
        raise FlexoraError(f"SOURCE: cannot fetch {source}: {hub_reason(error)}") from error


def _tokenizer(folder: Path, checkpoint: Checkpoint, generation: Generation, made: Path) -> str:
    """Write the tokenizer, and say so; or why there is none, for the weights are of use without."""
    try:
        tokenizer = convert_tokenizer(folder, checkpoint.config, generation)
    except FlexoraError as error:
        return f"without a tokenizer: {error}"
    tokenizer.save_pretrained(made)
    template = "with" if tokenizer.chat_template else "without"
    return f"its tokenizer has {len(tokenizer):,} tokens, {template} a chat template"
