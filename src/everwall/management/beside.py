"""Work that may take long, beside the loop that answers health checks."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from everwall.limits import RELOAD_SWITCH_S

_Found = TypeVar("_Found")


async def beside(work: Callable[[], _Found]) -> _Found:
    """What ``work`` finds, in a thread that nobody waits for: a far server that is slow does not hold up the end."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[_Found] = loop.create_future()

    def tell(how: Callable[[Any], None], what: Any) -> None:
        if not found.done():
            how(what)

    def run() -> None:
        told: tuple[Callable[[Any], None], Any]
        try:
            told = found.set_result, work()
        except Exception as error:
            told = found.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop may have ended meanwhile
            loop.call_soon_threadsafe(tell, *told)

    threading.Thread(target=run, name="source", daemon=True).start()
    return await found


async def politely(work: Callable[..., _Found], *arguments: Any) -> _Found:
    """Read or compile a policy beside threads that have to go on, in short turns of the interpreter."""

    def in_short_turns() -> _Found:
        usual = sys.getswitchinterval()
        sys.setswitchinterval(RELOAD_SWITCH_S)
        try:
            return work(*arguments)
        finally:
            sys.setswitchinterval(usual)

    return await asyncio.to_thread(in_short_turns)
