"""`everwall resiliency`: what it asks, what it says, and when it ends with 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from everwall.cli.main import application
from tests.cli.test_show import serving

ON = {
    "enabled": True,
    "why": "sessions are kept",
    "connected": True,
    "resync_percent": 100,
    "unsynced_sessions": 0,
}


def run(path: Path, *arguments: str) -> Any:
    return CliRunner().invoke(application("resiliency"), ["resiliency", *arguments, "--control", str(path)])


def test_on_ends_when_the_store_has_every_session(tmp_path: Path) -> None:
    with serving(tmp_path / "control", {"resiliency": ON}) as asked:
        done = run(tmp_path / "control", "on")
    assert done.exit_code == 0
    assert asked == [{"resiliency": {"switch": "on"}}]
    assert done.stdout.splitlines() == [
        "session resiliency is on: sessions are kept",
        "resync 100 %, unsynced sessions 0",
    ]


def test_on_does_not_wait_for_ever(tmp_path: Path) -> None:
    with serving(
        tmp_path / "control", {"resiliency": {**ON, "resync_percent": 62, "unsynced_sessions": 1234}}
    ):
        done = run(tmp_path / "control", "on", "--timeout", "0")
    assert done.exit_code == 1
    assert "resync 62 %, unsynced sessions 1,234" in done.stdout
    assert "has not every session" in done.stderr


def test_status_only_tells(tmp_path: Path) -> None:
    with serving(tmp_path / "control", {"resiliency": {**ON, "connected": False}}) as asked:
        done = run(tmp_path / "control", "status")
    assert (done.exit_code, asked) == (0, [{"resiliency": {"switch": "status"}}])
    assert done.stdout.splitlines()[-1] == "the store does not answer"


def test_nobody_there_ends_with_1(tmp_path: Path) -> None:
    assert run(tmp_path / "control", "off").exit_code == 1
