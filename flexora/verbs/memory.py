"""Out of memory: what to say, in place of a traceback that names none of the user's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from flexora.backbone.limits import Phase
from flexora.errors import OutOfMemoryError, ran_out_of_memory

if TYPE_CHECKING:
    from flexora.verbs.settings import Recipe

#: How many settings are named.
NAMED = 3


@contextmanager
def memory_watched(recipe: Recipe, phase: Phase) -> Iterator[None]:
    """Turn the allocators' errors into a line that names the settings that help most.

    Raises:
        OutOfMemoryError: If the memory of the machine or of a device ran out.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        settings = list(islice(_remedies(recipe, phase), NAMED))
        told = "; ".join(text for text, _ in settings)
        others = "for that choose" if settings[0][1] else "the first goes on in this folder, the others need"
        note = "" if phase == "evaluate" else f"{others} another output_dir; "
        raise OutOfMemoryError(
            f"{phase}: the memory of the {_device_of(error)} ran out; {told} ({note}flexora estimate says what a "
            "recipe needs)"
        ) from error


def _device_of(error: BaseException) -> str:
    """Whose memory it was."""
    return "GPU" if any(part in str(error) for part in ("CUDA", "CUBLAS", "cuDNN")) else "machine"


def _remedies(recipe: Recipe, phase: Phase) -> Iterator[tuple[str, bool]]:
    """What lowers a phase's memory, with the present values, and whether it changes the result.

    What leaves the result as it is comes first, then what helps most; what is done already is left out.
    """
    data, backbone = recipe.sections["data"]["init_args"], recipe.sections["backbone"]
    if phase == "evaluate":
        if "evaluate_tokens" in data:  # classes of the user's own have what they have
            yield f"lower data.evaluate_tokens (now {data['evaluate_tokens']})", False
    elif not backbone["gradient_checkpointing"]:
        yield "set backbone.gradient_checkpointing to true (now false)", False
    batch = {
        "search.batch_size": recipe.sections["search"]["batch_size"] if phase == "search" else None,
        "data.max_tokens_per_batch": data.get("max_tokens_per_batch") if phase == "finetune" else None,
        "data.batch_size": data.get("batch_size") if phase == "finetune" else None,
    }
    name, value = next(((name, value) for name, value in batch.items() if value is not None), ("", 1))
    if value > 1:
        yield f"lower {name} (now {value})", True
    if backbone["dtype"] in ("float32", "float64"):
        yield f"set backbone.dtype to bfloat16 (now {backbone['dtype']})", True
    if "max_length" in data:
        yield f"lower data.max_length (now {data['max_length']})", True
    if backbone["quantization"] is None:
        yield "set backbone.quantization to nf4 (now none)", True
    yield "take a smaller base model", True
