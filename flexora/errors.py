"""What ends a command early: a problem, told in one line with its place and remedy, or a signal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class FlexoraError(Exception):
    """A problem in the user's input, files or machine, worded for one line of terminal.

    The command line prints the message without a traceback.

    Attributes:
        status: Exit status of the command.
    """

    status: ClassVar[int] = 2


class OutOfMemoryError(FlexoraError):
    """The memory of the machine or of a device ran out."""

    status: ClassVar[int] = 3


def require_at_least(least: int, section: str, values: Mapping[str, int | None]) -> None:
    """Refuse numbers that are too small; none stands for a setting that is not used.

    Args:
        least: The smallest number.
        section: Section of the settings.
        values: By their names.

    Raises:
        FlexoraError: Naming the first that is too small.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise FlexoraError(f"{section}.{name}: {value} is too small; give at least {least}")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of the allocators' of the machine or of a device."""
    from lightning.pytorch.utilities.memory import is_oom_error

    return isinstance(error, MemoryError) or is_oom_error(error) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


def shown(text: str, longest: int = 300) -> str:
    """A text that others may have written as a part of one line: no breaks, nothing a terminal obeys, not too long."""
    text = " ".join(text[: 4 * longest].split())
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its kind where it says nothing."""
    return next((shown(line) for line in str(error).splitlines() if line.strip()), type(error).__name__)


def interruption_line(verb: str) -> str:
    """What a command says that a signal has stopped."""
    return f"flexora {verb}: interrupted; the same command goes on from what is done"


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal stopped the work.

    Attributes:
        status: Exit status, 128 plus the signal's number.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"stopped with status {status}")
        self.status = status
