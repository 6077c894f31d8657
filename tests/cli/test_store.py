"""`everwall store`: what it asks, what it says, and when it ends with 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from everwall.cli.main import application
from tests.cli.test_show import serving

CHANGE = {"state": "settled", "percent": 100, "moved": 1234, "error": ""}
FACTS = {"connected": True, "layout": "v1 epoch 1 buckets 64", "resync_percent": 100, "change": CHANGE}


def run(path: Path, *arguments: str) -> Any:
    return CliRunner().invoke(application("store"), ["store", *arguments, "--control", str(path)])


def test_a_change_is_asked_for_once_and_ends_when_the_old_buckets_are_gone(tmp_path: Path) -> None:
    with serving(tmp_path / "control", {"buckets": FACTS}) as asked:
        done = run(tmp_path / "control", "buckets", "64")
    assert (done.exit_code, asked) == (0, [{"buckets": {"buckets": 64}}])
    assert done.stdout.splitlines() == [
        "layout: v1 epoch 1 buckets 64; this node's sessions 100 %; settled, looked through 100 %, moved 1,234"
    ]


def test_without_a_number_it_only_tells(tmp_path: Path) -> None:
    with serving(tmp_path / "control", {"buckets": {**FACTS, "change": None}}) as asked:
        done = run(tmp_path / "control", "buckets")
    assert (done.exit_code, asked) == (0, [{"buckets": {}}])
    assert done.stdout.splitlines() == ["layout: v1 epoch 1 buckets 64; this node's sessions 100 %"]


def test_it_does_not_wait_for_ever_and_says_that_the_change_goes_on(tmp_path: Path) -> None:
    moving = {**CHANGE, "state": "moving", "percent": 7, "error": "Connection refused"}
    with serving(tmp_path / "control", {"buckets": {**FACTS, "change": moving}}):
        done = run(tmp_path / "control", "buckets", "64", "--timeout", "0")
    assert done.exit_code == 1
    assert "moving, looked through 7 %, moved 1,234; Connection refused" in done.stdout
    assert "it goes on" in done.stderr


def test_a_change_that_nobody_ends_is_said_to_end_by_itself(tmp_path: Path) -> None:
    left = {**CHANGE, "state": "left to its time-out"}
    with serving(tmp_path / "control", {"buckets": {**FACTS, "change": left}}):
        done = run(tmp_path / "control", "buckets", "64")
    assert done.exit_code == 1
    assert "until everything in them has expired" in done.stderr


def test_secrets_are_named_by_their_fingerprints(tmp_path: Path) -> None:
    with serving(tmp_path / "control", {"secrets": {"secrets": ["aa", "bb"]}}) as asked:
        done = run(tmp_path / "control", "secrets")
    assert (done.exit_code, asked) == (0, [{"secrets": {}}])
    assert done.stdout == "written with aa, read with bb as well\n"
    with serving(tmp_path / "control", {"secrets": {"secrets": ["aa"]}}):
        assert run(tmp_path / "control", "secrets").stdout == "written with aa\n"
    assert run(tmp_path / "control", "secrets", "5").exit_code == 1


def test_nobody_there_ends_with_1(tmp_path: Path) -> None:
    assert run(tmp_path / "control", "buckets").exit_code == 1
