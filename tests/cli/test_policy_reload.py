"""`everwall policy reload`: what a firewall answers, waited for to the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from everwall.cli.main import application
from everwall.management.control import ControlServer


@contextmanager
def firewall(path: Path, answers: list[dict[str, Any] | str]) -> Iterator[list[str]]:
    """A control socket that gives these answers one after another, an error for a text; yields what was asked."""
    asked: list[str] = []
    ready, stop = threading.Event(), []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request["do"])
        given = answers[min(len(asked), len(answers)) - 1]
        if isinstance(given, str):
            raise ValueError(given)
        return given

    async def serve() -> None:
        done = asyncio.Event()
        stop.extend([asyncio.get_running_loop(), done])
        server = ControlServer(path, {"policy": answer})
        await server.start()
        ready.set()
        await done.wait()
        await server.stop()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(30)
    try:
        yield asked
    finally:
        loop, done = stop
        loop.call_soon_threadsafe(done.set)
        thread.join()


def policy(percent: int, ruled_out: int) -> dict[str, Any]:
    return {"summary": "policy p.yaml: 3 rules", "rematch_percent": percent, "ruled_out": ruled_out}


def run(control: Path, *arguments: str) -> tuple[int, str]:
    given = ["policy", "reload", "--control", str(control), *arguments]
    result = CliRunner().invoke(application("policy"), given)
    return result.exit_code, result.output


def test_it_waits_until_every_session_was_asked_about_again(tmp_path: Path) -> None:
    reloaded = policy(0, 5) | {
        "read_ms": 1234.5,
        "packets_waited_us": 61.0,
        "warnings": ["p.yaml: any to any"],
    }
    with firewall(tmp_path / "c", [policy(100, 5), reloaded, policy(60, 7), policy(100, 8)]) as asked:
        status, told = run(tmp_path / "c")
    assert (status, asked) == (0, ["status", "reload", "status", "status"])
    assert told.splitlines() == [
        "warning: p.yaml: any to any",
        "policy p.yaml: 3 rules",
        "read in 1,234 ms; packets waited for 61 us",
        "live sessions asked about again: 3 ended, the others go on",
    ]


def test_a_wrong_file_is_told_as_the_firewall_says_it(tmp_path: Path) -> None:
    wrong = "p.yaml:41:19: rules[2].service[2]: 'tcp/99999': expected ports up to 65535"
    with firewall(tmp_path / "c", [policy(100, 0), wrong]):
        status, told = run(tmp_path / "c")
    assert status == 1
    assert wrong in told


def test_a_rematch_that_takes_too_long_is_an_error(tmp_path: Path) -> None:
    reloaded = policy(0, 0) | {"read_ms": 1.0, "packets_waited_us": 61.0, "warnings": []}
    with firewall(tmp_path / "c", [policy(100, 0), reloaded]):
        status, told = run(tmp_path / "c", "--timeout", "0")
    assert (status, "only 0 % of the sessions" in told) == (1, True)


def test_nobody_there(tmp_path: Path) -> None:
    status, told = run(tmp_path / "nobody")
    assert status == 1
    assert "No such file" in told
