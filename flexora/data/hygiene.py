"""Rows that are left out, always with a count: those that cannot be used, and train rows of the reported split."""

from __future__ import annotations

import sys

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


def without_reported(train: Dataset, reported: Dataset, benchmark: str, split: str, unit: str) -> Dataset:
    """The train rows whose question and right answer do not occur in the reported split, and word of the others.

    Args:
        train: Encoded rows with the columns ``asked``, ``said`` and ``line``.
        reported: Encoded rows of the reported split.
        benchmark: Its name, for the message.
        split: Name of the reported split, for the message.
        unit: What ``line`` counts: lines of a file, or rows.
    """
    said, asked = set(reported["said"]), set(reported["asked"])
    same = [key in said for key in train["said"]]
    kept = [index for index, is_same in enumerate(same) if not is_same]
    if len(kept) < len(train):
        lines = [line for line, is_same in zip(train["line"], same, strict=True) if is_same]
        names = ", ".join(map(str, lines[:SHOWN])) + (", ..." if len(lines) > SHOWN else "")
        say(f"data: {benchmark}: {len(lines)} train rows occur in the {split} split and are left out: {unit} {names}")
        train = train.select(kept)
    shared = sum(key in asked for key in train["asked"])
    if shared:
        say(f"data: {benchmark}: {shared} train rows ask a question of the {split} split with another answer; kept")
    return train


@rank_zero_only
def say(message: str) -> None:
    """Tell the user, once and not once a process."""
    print(message, file=sys.stderr, flush=True)
