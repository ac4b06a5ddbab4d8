"""Tokens and passwords: what they look like, and texts without them, for messages and files."""

from __future__ import annotations

import os
import re

#: How tokens of well-known services look.
TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|gh[oprsu]_\w{30,}|github_pat_\w{30,}|sk-[\w-]{20,}|xox[abp]-[\w-]{10,}|AKIA[0-9A-Z]{16})\b"
)

#: Variables of the environment whose values are secrets.
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)

SHORTEST = 8
#: Plain text in YAML and in JSON.
HIDDEN = "<hidden>"


def secret_values() -> dict[str, str]:
    """The environment's secrets, by the names of their variables; short ones could stand anywhere."""
    return {name: value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= SHORTEST}


def without_secrets(text: str) -> str:
    """A text without any secret of the environment, and what looks like a token."""
    for value in sorted(secret_values().values(), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return TOKEN.sub(HIDDEN, text)
