"""Names are asked for beside everything else, and a resolver that hangs or fails holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable

import pytest

from everwall.management.names import NameWatcher, system_lookup
from everwall.policy.model import Policy
from everwall.policy.rules import read_policy

TEXT = """\
rules:
- {name: a, source: {fqdn: a.example.com}, destination: any, service: any, action: allow}
- {name: b, source: {fqdn: b.example.com}, destination: any, service: any, action: allow}
"""


def watch(
    lookup: Callable[[str], list[str]], story: Callable[[NameWatcher, asyncio.Queue[Policy]], Awaitable[None]]
) -> None:
    async def run() -> None:
        seen: asyncio.Queue[Policy] = asyncio.Queue()
        watcher = NameWatcher(read_policy("policy.yaml", TEXT), seen.put_nowait, lookup)
        task = asyncio.create_task(watcher.run())
        try:
            await asyncio.wait_for(story(watcher, seen), 20)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())


def sources(policy: Policy) -> list[list[int]]:
    return [[entry.first for entry in rule.source or ()] for rule in policy.rules]


def test_answers_become_a_policy() -> None:
    async def story(watcher: NameWatcher, seen: asyncio.Queue[Policy]) -> None:
        policy = await seen.get()
        while sources(policy) != [[1], [2]]:
            policy = await seen.get()
        assert watcher.unresolved() == []

    watch(lambda name: [{"a": "0.0.0.1", "b": "0.0.0.2"}[name[0]]], story)


def test_a_resolver_that_hangs_or_fails_holds_up_nobody() -> None:
    hang = threading.Event()

    def lookup(name: str) -> list[str]:
        if name == "a.example.com":
            hang.wait(30)
            raise OSError("nobody knows")
        return ["0.0.0.2"]

    async def story(watcher: NameWatcher, seen: asyncio.Queue[Policy]) -> None:
        assert sources(await seen.get()) == [[], [2]]
        assert watcher.unresolved() == ["a.example.com"]
        # Another policy in the middle begins with what is known; the late failure belongs to the old one.
        assert sources(watcher.replace(read_policy("policy.yaml", TEXT))) == [[], [2]]
        hang.set()

    watch(lookup, story)


def test_names_are_asked_for_as_they_are_written_and_in_no_search_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(2, 1, 6, "", ("192.0.2.1", 0)), (10, 1, 6, "", ("2001:db8::1", 0, 0, 0))]

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    assert system_lookup("api.example.com") == ["192.0.2.1", "2001:db8::1"]
    assert asked == ["api.example.com."]
