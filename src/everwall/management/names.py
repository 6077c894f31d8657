"""Asks for the host names of a policy, far from the packets: in threads that nobody waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from everwall.limits import NAME_LOOKUPS_MAX, NAME_RETRY_NS, NAME_WATCH_S, SECOND_NS
from everwall.management.beside import beside
from everwall.policy.model import Policy
from everwall.policy.names import NameBook

log = structlog.get_logger()

Lookup = Callable[[str], list[str]]
"""The addresses of both families that a name has; raises OSError."""


class NameWatcher:
    """Keeps a policy's host names resolved.

    ``changed`` is awaited whenever an address is another, and again later, until it has said ``in_force``. Names are
    asked for meanwhile.
    """

    def __init__(self, policy: Policy, changed: Callable[[], Awaitable[None]], lookup: Lookup) -> None:
        self._changed = changed
        self._lookup = lookup
        self._book = NameBook(policy, time.monotonic_ns())
        self._asking: set[asyncio.Task[None]] = set()
        self.changes = 0
        """Of addresses so far."""
        self._in_force = 0
        self._said: set[str] = set()

    def policy(self) -> Policy:
        """The policy with the answers that are known."""
        return self._book.policy()

    def in_force(self, changes: int) -> None:
        """The policy runs with the answers that there were after so many ``changes``."""
        self._in_force = changes

    def replace(self, policy: Policy) -> NameBook:
        """Watch the names of another policy from now on; what is known stays known. Gives the former book."""
        former, self._book = self._book, NameBook(policy, time.monotonic_ns(), self._book)
        return former

    def restore(self, former: NameBook) -> None:
        """Go back to what ``replace`` gave."""
        self._book = former.again(time.monotonic_ns())

    def __len__(self) -> int:
        return len(self._book)

    def unresolved(self) -> list[str]:
        """Names that have never been answered."""
        return self._book.unresolved()

    @property
    def behind(self) -> bool:
        """Whether there are answers that are not in force."""
        return self.changes != self._in_force

    @property
    def settled(self) -> bool:
        """Whether each name was asked for, and every answer is in force."""
        return not self._book.waiting() and not self.behind

    async def heard(self, patience_s: float) -> None:
        """Wait until each name was asked for, for so long at most."""
        deadline = time.monotonic() + patience_s
        while self._book.waiting() and time.monotonic() < deadline:
            await asyncio.sleep(NAME_WATCH_S)

    async def run(self) -> None:
        """Ask whenever a name is due, until cancelled."""
        telling: asyncio.Future[None] | None = None
        try:
            while True:
                for name in self._book.due(time.monotonic_ns(), NAME_LOOKUPS_MAX - len(self._asking)):
                    self._asking.add(asyncio.create_task(self._ask(self._book, name)))
                await asyncio.sleep(NAME_WATCH_S)
                for asked in [task for task in self._asking if task.done()]:
                    self._asking.remove(asked)
                    asked.result()  # raises what it raised
                if telling is not None and telling.done():
                    telling.result()  # raises what it raised
                    telling = None
                # All at once: a policy is compiled again for every change.
                if telling is None and self.behind:
                    telling = asyncio.ensure_future(self._tell())
        finally:
            for task in (*self._asking, telling):
                if task is not None:
                    task.cancel()

    async def _tell(self) -> None:
        before = self._in_force
        await self._changed()
        if self.behind and self._in_force == before:  # it could not be done
            await asyncio.sleep(NAME_RETRY_NS / SECOND_NS)

    async def _ask(self, book: NameBook, name: str) -> None:
        try:
            found, why = await beside(lambda: self._lookup(name)), "it has no addresses"
        except (OSError, UnicodeError) as error:
            found, why = [], str(error)
        if book is not self._book:
            return
        if found:
            self.changes += book.answered(name, found, time.monotonic_ns())
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
