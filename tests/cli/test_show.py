"""`everwall show`: the answers as tables and as JSON, and the ways to fail."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from typer.testing import CliRunner

from everwall.cli.main import application
from everwall.cli.show import tables
from everwall.management.control import ControlServer

STATUS = {
    "name": "fw1",
    "state": "active",
    "sessions": 12345,
    "resiliency": {"enabled": False, "why": "no cluster secret"},
    "uptime_s": 61.5,
}


def seen(*arguments: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(*tables(*arguments), sep="\n")
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@contextmanager
def serving(path: Path, answers: dict[str, dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """A control socket in a thread of its own; yields the requests that came."""
    asked: list[dict[str, Any]] = []
    ready = threading.Event()
    stop: list[Any] = []

    def answer(name: str) -> Any:
        return lambda request: asked.append({name: request}) or answers[name]

    async def serve() -> None:
        done = asyncio.Event()
        stop.extend([asyncio.get_running_loop(), done])
        server = ControlServer(path, {name: answer(name) for name in answers})
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
        stop[0].call_soon_threadsafe(stop[1].set)
        thread.join(30)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(application("show"), ["show", *arguments])


def test_status_shows_nested_facts_by_their_path() -> None:
    text = seen("status", STATUS)
    assert "resiliency.why" in text
    assert "no cluster secret" in text
    assert "12,345" in text
    assert "61.5" in text


def test_counters_of_each_worker_stand_beside_their_sum() -> None:
    answer = {
        "counters": {"forward": 7, "received": 7},
        "workers": [{"forward": 7, "received": 7}, {"received": 0}],
    }
    text = seen("counters", answer, False, True)
    assert "worker 1" in text
    assert "worker 0" not in seen("counters", answer)
    forward = next(line for line in text.splitlines() if "forward" in line)
    assert [word for word in forward.split() if word.isdigit()] == ["7", "7", "0"]


def test_counters_come_with_their_meaning_and_without_zeros() -> None:
    counters = {"forward": 10, "non-syn-tcp": 3, "table-full": 0, "own-counter": 1}
    text = seen("counters", {"counters": counters})
    assert "first TCP packet of an unknown session is not SYN" in text
    assert "own-counter" in text
    assert "table-full" not in text
    assert "table-full" in seen("counters", {"counters": counters}, True)


def test_rows_become_columns_and_nothing_is_taken_for_markup() -> None:
    rows = [{"client": "[bold]x", "packets": 1}, {"client": "10.0.0.1", "packets": None, "rule": "a"}]
    text = seen("sessions", {"sessions": rows})
    assert "sessions: 2" in text
    assert "[bold]x" in text
    assert "rule" in text
    assert "sessions: none" in seen("sessions", {"sessions": []})


def test_json_is_the_answer_as_it_came(tmp_path: Path) -> None:
    with serving(tmp_path / "control", {"status": STATUS}):
        done = run("status", "--control", str(tmp_path / "control"), "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"ok": True, **STATUS}


def test_a_limit_is_passed_on_where_there_are_rows(tmp_path: Path) -> None:
    with serving(tmp_path / "control", {"flows": {"flows": []}, "store": {}}) as asked:
        assert run("flows", "--control", str(tmp_path / "control"), "--limit", "7").exit_code == 0
        assert run("store", "--control", str(tmp_path / "control")).exit_code == 0
    assert asked == [{"flows": {"limit": 7}}, {"store": {}}]


def test_a_question_that_the_process_does_not_know_ends_with_1(tmp_path: Path) -> None:
    with serving(tmp_path / "control", {"status": STATUS}):
        done = run("targets", "--control", str(tmp_path / "control"))
    assert done.exit_code == 1
    assert "unknown command 'targets'" in done.stderr


def test_nobody_there_ends_with_1(tmp_path: Path) -> None:
    done = run("status", "--control", str(tmp_path / "control"))
    assert done.exit_code == 1
    assert "No such file" in done.stderr
