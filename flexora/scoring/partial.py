"""``predictions.jsonl.part``: answers as they come, so that none is lost when ``flexora predict`` ends early."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback
from torch import distributed

from flexora.agreement import written_by_first
from flexora.errors import FlexoraError
from flexora.files import append, write_atomically
from flexora.runfolder import first_difference

if TYPE_CHECKING:
    import lightning as L

#: An answer: its row's ``line``, and what the model says to it.
Answer = dict[str, Any]

#: What the first line of the file names.
MADE_WITH = "made_with"


class PartialAnswers(Callback):
    """Keeps the answers of each batch in a file beside the output. Its first line says what they depend on.

    Args:
        output: Where all answers go in the end.

    Attributes:
        file: The file.
        answers: Those that it holds, by their lines. A line that was cut short is not among them.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.file = output.with_name(f"{output.name}.part")
        self.answers: dict[int, Answer] = {}
        self._made_with: dict[str, Any] = {}
        self._answer: Callable[[int], Answer] | None = None

    def go_on(self, made_with: dict[str, Any]) -> None:
        """Take over the answers of a command that ended early.

        Args:
            made_with: What answers depend on, in JSON's types.

        Raises:
            FlexoraError: If those in the file depend on something else.
        """
        self._made_with = made_with
        if self.file.exists():
            self._read()

    def expect(self, answer: Callable[[int], Answer]) -> None:
        """Say what gives the answer to a row that has been scored, by its index."""
        self._answer = answer

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write what is there anew: all processes have read it, and a line may have been cut short."""
        written_by_first(trainer, lambda: self._write(self.file, [{MADE_WITH: self._made_with}]))

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Add the answers of a batch, of all processes."""
        assert self._answer is not None, "nothing says what an answer is"
        new = [self._answer(row) for row in batch["rows"].tolist()]
        if trainer.world_size > 1:
            everyone: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(everyone, new)
            new = [answer for one in everyone for answer in one]
        self.answers |= {answer["line"]: answer for answer in new}
        written_by_first(trainer, lambda: append(self.file, _lines(new)))

    def finish(self) -> None:
        """Put all answers, in the order of their lines, into the output."""
        self._write(self.output, [])
        self.file.unlink(missing_ok=True)

    def _write(self, file: Path, head: list[dict[str, Any]]) -> None:
        write_atomically(file, _lines([*head, *(self.answers[line] for line in sorted(self.answers))]))

    def _read(self) -> None:
        try:
            *lines, _ = self.file.read_bytes().split(b"\n")  # what has no line feed was cut short
            head, *answers = map(json.loads, lines)
            change = first_difference(head[MADE_WITH], self._made_with)
            self.answers = {answer["line"]: answer for answer in answers}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FlexoraError(f"--output: {self.file} holds no answers of flexora's; delete it") from error
        if change:
            raise FlexoraError(
                f"--output: {self.file} was begun with other rows or settings ({change}); give those again, name "
                "another file, or delete it"
            )


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
