"""The four modes as words: read as they were meant, or refused."""

from __future__ import annotations

import pytest

from everwall.limits import MIN_AGE_S_MAX, MS_NS
from everwall.modes import ASYNC, MIN_AGE_UNIT_NS, OFF, STRICT, parse_mode


@pytest.mark.parametrize(
    ("text", "mode"),
    [("async", ASYNC), ("strict", STRICT), ("off", OFF), ("min-age 3s", 30), ("min-age 0.1s", 1)],
)
def test_a_mode_is_read(text: str, mode: int) -> None:
    assert parse_mode(text) == mode


def test_an_age_is_kept_to_a_tenth_of_a_second() -> None:
    assert (parse_mode("min-age 2.5s") or 0) * MIN_AGE_UNIT_NS == 2_500 * MS_NS
    longest = parse_mode(f"min-age {MIN_AGE_S_MAX}s")
    assert longest is not None
    assert longest < OFF


@pytest.mark.parametrize(
    "text",
    [
        "",
        "on",
        "Strict",
        "min-age",
        "min-age 3",
        "min-age 0s",
        "min-age 0.05s",
        "min-age: 3s",
        "min-age 3601s",
    ],
)
def test_anything_else_is_no_mode(text: str) -> None:
    assert parse_mode(text) is None
