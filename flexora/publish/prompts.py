"""The prompts that an adapter was trained with, for those who use it without flexora."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from flexora.data.chat import DATE
from flexora.data.datamodule import AnswerDataModule
from flexora.report.terminal import escaped_markdown
from flexora.trust import known_class

#: How the answer is found behind a prompt.
_ASKED = {
    "choices": "The model says which choice makes `{answer}` likeliest behind the rest.",
    "letters": "The model says which letter is likeliest as `{answer}` behind the rest; every choice has its line.",
    "text": "The model writes `{answer}` behind the rest, and ends it.",
}
_CHAT = (
    "The tokenizer's chat template writes the turns: `apply_chat_template`, with `add_generation_prompt=True` for the "
    f"rest; a template that names the day was given {DATE}."
)
_CHATS = (
    "Rows are chats, written by the tokenizer's chat template; the assistant's turns are the answers. A template that "
    f"names the day was given {DATE}."
)


def prompt_lines(data: dict[str, Any]) -> list[str]:
    """Markdown that shows the prompts of the rows which a data section trains on; braces stand for what a row says.

    Args:
        data: ``class_path`` and ``init_args``.
    """
    data_class = known_class(data["class_path"])
    try:
        module = data_class(**data["init_args"])
    except (TypeError, ValueError):  # a class of the user's own that is not here, or of another version
        module = None
    if not isinstance(module, AnswerDataModule):
        return [f"What prompts look like, {escaped_markdown(str(data['class_path']))} alone knows."]
    weights = data["init_args"].get("weights")
    parts = [part for part in module.parts if weights is None or weights.get(part.benchmark_name)]
    return [line for part in parts for line in _lines(part, named=len(module.parts) > 1)]


def _lines(part: AnswerDataModule, *, named: bool) -> Iterator[str]:
    if getattr(part, "messages", False):
        yield _CHATS
        return
    form = part.prompt_form()
    if form is None:
        yield f"What prompts look like, {escaped_markdown(part.benchmark_name)} alone knows."
        return
    yield f"Prompts of {part.benchmark_name}:" if named else "Prompts, where braces stand for what a row says:"
    answer = form.answer.removeprefix(" ") if part.chat_template else form.answer
    text = f"user: {form.context}\nassistant: {answer}" if part.chat_template else form.context + answer
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    yield f"{fence}text\n{text}\n{fence}"
    asked = _ASKED[form.asked].replace("{answer}", json.dumps(answer, ensure_ascii=False))
    yield f"{asked} {_CHAT}" if part.chat_template else asked
