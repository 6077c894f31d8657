"""A finding is one line, whoever wrote parts of it."""

from __future__ import annotations

from everwall.doctor.findings import Level, count, error, ok, warning


def test_what_a_server_said_cannot_move_the_cursor() -> None:
    assert ok("auth", "a\x1b[2Jb\nc").text == "a [2Jb c"
    assert warning("auth", "", "x\ry").advice == "x y"


def test_a_line_has_an_end() -> None:
    assert error("auth", "x" * 100_000, "").text.endswith("xxx...")
    assert len(error("auth", "x" * 100_000, "").text) < 1000


def test_levels_are_counted_also_where_there_are_none() -> None:
    assert count([ok("a", ""), error("b", "", ""), ok("c", "")]) == {"ok": 2, "warning": 0, "error": 1}
    assert [level.value for level in Level] == ["ok", "warning", "error"]
