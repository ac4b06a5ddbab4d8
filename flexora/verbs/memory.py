"""Out of memory: what to say, in place of a traceback that names none of the user's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from lightning.pytorch.utilities.memory import is_oom_error

from flexora.backbone.limits import Phase
from flexora.errors import OutOfMemoryError

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
        if not isinstance(error, MemoryError) and not is_oom_error(error):
            raise
        settings = "; ".join(islice(_remedies(recipe, phase), NAMED))
        raise OutOfMemoryError(
            f"{phase}: the memory of the {_device(error)} ran out; {settings} (flexora estimate says what a recipe "
            "needs)"
        ) from error


def _device(error: Exception) -> str:
    return "GPU" if "CUDA" in str(error) or "cuDNN" in str(error) else "machine"


def _remedies(recipe: Recipe, phase: Phase) -> Iterator[str]:
    """What lowers a phase's memory, with the present values: what helps most first, and not what is done already."""
    data, backbone = recipe.sections["data"]["init_args"], recipe.sections["backbone"]
    tokens = data["max_tokens_per_batch"] is not None
    name, value = {
        "search": ("search.batch_size", recipe.sections["search"]["batch_size"]),
        "finetune": ("data.max_tokens_per_batch", data["max_tokens_per_batch"])
        if tokens
        else ("data.batch_size", data["batch_size"]),
        "evaluate": ("data.evaluate_tokens", data["evaluate_tokens"]),
    }[phase]
    if value > 1:
        yield f"lower {name} (now {value})"
    if phase != "evaluate" and not backbone["gradient_checkpointing"]:
        yield "set backbone.gradient_checkpointing to true (now false)"
    if backbone["dtype"] in ("float32", "float64"):
        yield f"set backbone.dtype to bfloat16 (now {backbone['dtype']})"
    yield f"lower data.max_length (now {data['max_length']})"
    if backbone["quantization"] is None:
        yield "set backbone.quantization to nf4 (now none)"
    yield "take a smaller base model"
