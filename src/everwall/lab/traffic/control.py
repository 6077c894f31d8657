"""How the lab talks to its traffic programs: JSON lines on stdin, one answer on stdout for each."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

Handler = Callable[..., dict[str, Any] | None]


async def serve(handlers: dict[str, Handler]) -> None:
    """Answer commands until stdin ends or ``stop`` was answered.

    A handler that returns None is not answered.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        arguments = json.loads(line)
        command = arguments.pop("command")
        if command == "stay":
            # The lab leaves and its pipes close; the traffic goes on by itself.
            await asyncio.Event().wait()
        answer = handlers[command](**arguments)
        if answer is not None:
            _write(json.dumps(answer).encode() + b"\n")
        if command == "stop":
            return


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
