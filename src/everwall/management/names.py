"""Asks for the host names of a policy, far from the packets: in threads that nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable

import structlog

from everwall.limits import NAME_LOOKUPS_MAX, NAME_WATCH_S
from everwall.policy.model import Policy
from everwall.policy.names import NameBook

log = structlog.get_logger()

Lookup = Callable[[str], list[str]]


def system_lookup(name: str) -> list[str]:
    """The addresses of both families that the system's resolver knows; raises OSError."""
    # The dot at the end keeps search lists out: the name is a full one.
    found = socket.getaddrinfo(f"{name}.", None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class NameWatcher:
    """Keeps a policy's host names resolved; ``changed`` gets the policy whenever an address is another."""

    def __init__(
        self, policy: Policy, changed: Callable[[Policy], None], lookup: Lookup = system_lookup
    ) -> None:
        self._changed = changed
        self._lookup = lookup
        self._book = NameBook(policy, time.monotonic_ns())
        self._under_way = 0
        self._dirty = False
        self._said: set[str] = set()

    def replace(self, policy: Policy) -> Policy:
        """Another policy from now on; gives it with the answers that are known already."""
        self._book = NameBook(policy, time.monotonic_ns(), self._book)
        return self._book.policy()

    def unresolved(self) -> list[str]:
        """Names that have never been answered."""
        return self._book.unresolved()

    async def run(self) -> None:
        """Ask whenever a name is due, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            for name in self._book.due(time.monotonic_ns(), NAME_LOOKUPS_MAX - self._under_way):
                self._under_way += 1
                # A thread of its own: a resolver that hangs holds up neither the loop nor the node's end.
                threading.Thread(target=self._ask, args=(loop, self._book, name), daemon=True).start()
            await asyncio.sleep(NAME_WATCH_S)
            # All at once: a policy is compiled again for every change.
            if self._dirty:
                self._dirty = False
                self._changed(self._book.policy())

    def _ask(self, loop: asyncio.AbstractEventLoop, book: NameBook, name: str) -> None:
        try:
            found, why = self._lookup(name), "it has no addresses"
        except (OSError, UnicodeError) as error:
            found, why = [], str(error)
        # The loop may have ended meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._answer, book, name, found, why)

    def _answer(self, book: NameBook, name: str, found: list[str], why: str) -> None:
        self._under_way -= 1
        if book is not self._book:
            return
        if found:
            self._dirty |= book.answered(name, found, time.monotonic_ns())
            self._said.discard(name)
            return
        book.failed(name, time.monotonic_ns())
        if name not in self._said:
            self._said.add(name)
            nothing = name in book.unresolved()
            log.warning(
                "a host name of the policy is not resolved: "
                + ("it matches nothing" if nothing else "its last addresses stay"),
                name=name,
                why=why,
            )
