"""The page about these tests names tests that are there, and all of them."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
PAGE = TESTS.parent / "docs" / "regressions.md"


def names_in(folder: Path) -> set[str]:
    found: set[str] = set()
    for path in folder.rglob("test_*.py"):
        found |= set(re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE))
    return found


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    assert named - names_in(TESTS) == set()


def test_every_test_of_this_folder_is_on_the_page() -> None:
    here = names_in(TESTS / "regressions") - names_in_this_file()
    assert here - set(re.findall(r"`(test_\w+)`", PAGE.read_text())) == set()


def names_in_this_file() -> set[str]:
    return set(re.findall(r"^def (test_\w+)\(", Path(__file__).read_text(), re.MULTILINE))
