"""Rows that are left out, always with a count: unusable ones, and those that stand on both sides of a split."""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from collections.abc import Mapping

from datasets import Dataset
from lightning.pytorch.utilities import rank_zero_only

from flexora.errors import FlexoraError

#: Rows that a message names.
SHOWN = 3


def usable_rows(encoded: Dataset, place: str, unit: str, *, skip: bool) -> Dataset:
    """The encoded rows without a problem.

    Args:
        encoded: Rows with the columns ``problem`` and ``line``.
        place: Benchmark, source and split, for the message.
        unit: What ``line`` counts: lines of a file, or rows.
        skip: Leave rows with a problem out instead of refusing them all.

    Raises:
        FlexoraError: If there is such a row and ``skip`` is off, or no row is left.
    """
    problems = encoded["problem"]
    bad = [index for index, problem in enumerate(problems) if problem]
    rows = encoded.remove_columns("problem")
    if not bad:
        return rows
    lines = encoded["line"]
    shown = "; ".join(f"{unit} {lines[index]}: {' '.join(problems[index].split())}" for index in bad[:SHOWN])
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    found = f"{place}: {len(bad)} of {len(encoded)} rows cannot be used ({shown}{more})"
    if not skip:
        raise FlexoraError(f"data: {found}; mend or remove them, or set data.bad_rows to skip")
    if len(bad) == len(encoded):
        raise FlexoraError(f"data: {found}; mend them, or name the right fields")
    say(f"data: {found}; skipped")
    return rows.select([index for index, problem in enumerate(problems) if not problem])


def without_reported(
    train: Dataset, reported: Mapping[str, Dataset], benchmark: str, unit: str, split: str = "train"
) -> Dataset:
    """The train rows whose question and right answer occur in no reported split, and word of the others.

    Args:
        train: Encoded rows with the columns ``asked``, ``said`` and ``line``.
        reported: By its name for the message, encoded rows of each reported split.
        benchmark: The benchmark's name, for the message.
        unit: What ``line`` counts: lines of a file, or rows.
        split: What the train rows are called: a validation split must not share them either.
    """
    said = {key: place for place, rows in reported.items() for key in rows["said"]}
    asked = {key for rows in reported.values() for key in rows["asked"]}
    found = [said.get(key) for key in train["said"]]
    places = " and ".join(place for place in reported if place in found)
    if places:
        lines = [line for line, place in zip(train["line"], found, strict=True) if place is not None]
        names = ", ".join(map(str, lines[:SHOWN])) + (", ..." if len(lines) > SHOWN else "")
        say(f"data: {benchmark}: {len(lines)} {split} rows occur in {places} and are left out: {unit} {names}")
        train = train.select([index for index, place in enumerate(found) if place is None])
    shared = sum(key in asked for key in train["asked"])
    if shared:
        place = " and ".join(reported) if len(reported) == 1 else "the reported splits"
        say(f"data: {benchmark}: {shared} {split} rows ask a question of {place} with another answer; kept")
    return train


def without_trained(held_out: Dataset, trained: Dataset, benchmark: str, repeat: int) -> Dataset:
    """The held-out rows whose question and right answer are not trained on, and word of the others.

    Args:
        held_out: Encoded rows with the column ``said``.
        trained: Likewise.
        benchmark: The benchmark's name, for the message.
        repeat: The repeat of the search whose rows they are, from 0.

    Raises:
        FlexoraError: If no row is left.
    """
    said = set(trained["said"])
    kept = [index for index, key in enumerate(held_out["said"]) if key not in said]
    if len(kept) == len(held_out):
        return held_out
    of_repeat = f" of repeat {repeat + 1}" if repeat else ""
    if not kept:
        raise FlexoraError(
            f"data: {benchmark}: all {len(held_out)} held-out rows{of_repeat} occur among the trained ones; remove "
            "duplicates, raise data.validation_rows, or lower data.train_rows"
        )
    count = len(held_out) - len(kept)
    say(f"data: {benchmark}: {count} of {len(held_out)} held-out rows{of_repeat} are trained on too and are left out")
    return held_out.select(kept)


def tell_cut(rows: Dataset, place: str, max_length: int, room: int) -> None:
    """Say how many prompts have lost their beginning.

    Args:
        rows: Encoded rows with the column ``cut``.
        place: Benchmark, source and split.
        max_length: Longest sequence in tokens.
        room: Tokens of it that are kept free for an answer.
    """
    cut = sum(tokens > 0 for tokens in rows["cut"])
    if cut:
        less = f" less data.max_new_tokens {room}" if room else ""
        say(f"data: {place}: {cut} of {len(rows)} prompts lose their beginning to data.max_length {max_length}{less}")


#: Signs that may stand for a calculation; elsewhere they are punctuation.
OPERATORS = re.compile(r"(?<=\d)\s*[-*/%#]|[-*/%#]\s*(?=\d)")


def text_key(text: str) -> str:
    """Hash of a text without case, punctuation and spacing, and in one way of writing each character (NFKC)."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    signs = {place for found in OPERATORS.finditer(plain) for place in range(*found.span())}
    kept = (_kept(letter, place in signs) for place, letter in enumerate(plain))
    return hashlib.sha256((" ".join("".join(kept).split()) or plain.strip()).encode()).hexdigest()[:16]


def _kept(letter: str, is_sign: bool) -> str:
    category = unicodedata.category(letter)
    if category == "Cf":  # joins or marks what is around it, and is not seen
        return ""
    return letter if category[0] in "LMNS" or is_sign else " "


@rank_zero_only
def say(message: str) -> None:
    """Tell the user, once and not once a process."""
    print(message, file=sys.stderr, flush=True)
