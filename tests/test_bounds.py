"""The versions that pyproject.toml allows: each bound has its reason, and the tests run with what it says.

``make test-oldest`` sets FLEXORA_OLDEST: there, every library that is named is the oldest that is allowed.
"""

from __future__ import annotations

import os
import re
import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LISTS = (PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values())
#: What pyproject.toml requires, but for its own extras.
REQUIRED = [wanted for text in chain(*LISTS) if (wanted := Requirement(text)).name != "flexora"]
#: What constraints.txt pins.
TESTED = {
    canonicalize_name(pin.name): pin.specifier
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#") and (pin := Requirement(line))
}
each = pytest.mark.parametrize("wanted", REQUIRED, ids=lambda wanted: wanted.name)


def oldest(wanted: Requirement) -> str:
    """The lowest version that a requirement allows."""
    (bound,) = (part.version for part in wanted.specifier if part.operator == ">=")
    return bound


@each
def test_a_bound_has_its_reason_beside_it(wanted: Requirement) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert re.search(rf'^    "{re.escape(wanted.name)}(\[\w+\])?>={re.escape(oldest(wanted))}\b.*", +# \w', text, re.M)


@each
def test_the_pinned_version_is_allowed(wanted: Requirement) -> None:
    (pin,) = TESTED[canonicalize_name(wanted.name)]
    assert pin.operator == "=="
    assert pin.version in wanted.specifier


@each
def test_the_installed_version_is_the_one_to_be_tested(wanted: Requirement) -> None:
    allowed = SpecifierSet(f"=={oldest(wanted)}") if os.environ.get("FLEXORA_OLDEST") else wanted.specifier
    assert version(wanted.name) in allowed


def test_the_wheel_is_built_with_what_is_tested() -> None:
    (builder,) = PROJECT["build-system"]["requires"]
    assert Requirement(builder) in REQUIRED
