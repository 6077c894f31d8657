"""The control socket: what it answers, whom it lets in, and that bad input ends nothing."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from everwall.limits import CONTROL_REQUEST_BYTES_MAX
from everwall.management.control import ControlError, ControlServer, request


async def _later(asked: dict[str, Any]) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"limit": asked["limit"]}


def _broken(asked: dict[str, Any]) -> dict[str, Any]:
    raise RuntimeError("secret detail")


def _number(asked: dict[str, Any]) -> dict[str, Any]:
    return {"number": int(asked["text"])}


HANDLERS = {
    "status": lambda asked: {"state": "active"},
    "sessions": _later,
    "broken": _broken,
    "number": _number,
}


def serve(path: Path, talk: Callable[[], Any]) -> Any:
    """Run ``talk`` in a thread against a server at ``path``."""

    async def run() -> Any:
        server = ControlServer(path, HANDLERS)
        await server.start()
        try:
            return await asyncio.to_thread(talk)
        finally:
            await server.stop()

    return asyncio.run(run())


def say(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    """Send raw lines over one connection and read an answer to each until the end."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        answers = []
        stream = connection.makefile("rb")
        for line in lines:
            connection.sendall(line)
            answers.append(json.loads(stream.readline()))
        return answers


def test_a_command_is_answered_at_once_or_later(tmp_path: Path) -> None:
    path = tmp_path / "control"
    assert serve(path, lambda: request(path, "status")) == {"ok": True, "state": "active"}
    assert serve(path, lambda: request(path, "sessions", limit=7)) == {"ok": True, "limit": 7}


def test_only_the_owner_may_connect_and_the_file_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "control"
    assert serve(path, lambda: stat.S_IMODE(path.stat().st_mode)) == 0o600
    assert not path.exists()


def test_bad_input_is_answered_and_the_connection_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "control"
    bad = [
        b"\n",
        b"{\n",
        b"[]\n",
        b"\xff\xfe\n",
        b"{}\n",
        b'{"command": []}\n',
        b'{"command": "nope"}\n',
        b"[" * 5000 + b"\n",
    ]
    answers = serve(path, lambda: say(path, *bad, b'{"command": "status"}\n'))
    assert [answer["ok"] for answer in answers] == [False] * len(bad) + [True]
    assert "known: broken, number, sessions, status" in answers[6]["error"]


def test_the_clients_mistake_is_explained_and_ours_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "control"
    assert "limit" in serve(path, lambda: request(path, "sessions"))["error"]
    assert "invalid literal" in serve(path, lambda: request(path, "number", text="x"))["error"]
    answer = serve(path, lambda: request(path, "broken"))
    assert answer["ok"] is False
    assert "secret" not in answer["error"]


def test_a_request_without_end_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "control"
    [answer] = serve(path, lambda: say(path, b"x" * (CONTROL_REQUEST_BYTES_MAX + 10)))
    assert answer == {"ok": False, "error": f"a request is at most {CONTROL_REQUEST_BYTES_MAX} bytes"}


def test_a_dead_process_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert serve(path, lambda: request(path, "status"))["ok"]

    def second() -> None:
        with pytest.raises(ControlError, match="another process"):
            asyncio.run(ControlServer(path, {}).start())

    serve(path, second)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control"
    path.write_text("mine")
    with pytest.raises(ControlError, match="not a socket"):
        asyncio.run(ControlServer(path, {}).start())
    assert path.read_text() == "mine"


def test_nobody_there_is_an_oserror_and_a_long_path_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        request(tmp_path / "control", "status")
    with pytest.raises(ControlError, match="at most 107 bytes"):
        request(tmp_path / ("x" * 120), "status")


def _answering(reply: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(reply)
        writer.close()

    return answer


@pytest.mark.parametrize("reply", [b"", b"hello\n", b"[]\n", b'{"ok": 1}\n', b'{"ok": tr'])
def test_an_answer_that_is_none_is_refused(tmp_path: Path, reply: bytes) -> None:
    path = tmp_path / "control"

    async def run() -> None:
        server = await asyncio.start_unix_server(_answering(reply), path)
        async with server:
            with pytest.raises(ControlError):
                await asyncio.to_thread(request, path, "status")

    asyncio.run(run())
