"""Names are asked for beside everything else, and a resolver that hangs or fails holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable

import pytest

from everwall.limits import NAME_LOOKUPS_MAX, NAME_WATCH_S
from everwall.management.names import NameWatcher
from everwall.policy.model import Policy
from everwall.policy.rules import read_policy

TEXT = """\
rules:
- {name: a, source: {fqdn: a.example.com}, destination: any, service: any, action: allow}
- {name: b, source: {fqdn: b.example.com}, destination: any, service: any, action: allow}
"""


class Watched:
    """A watcher, and the policies that it had put in force."""

    def __init__(self, lookup: Callable[[str], list[str]]) -> None:
        self.seen: asyncio.Queue[Policy] = asyncio.Queue()
        self.failures = 0
        """How many attempts to put a policy in force fail from now on."""
        self.watcher = NameWatcher(read_policy("policy.yaml", TEXT), self.use, lookup)

    async def use(self) -> None:
        if self.failures:
            self.failures -= 1
            return
        self.seen.put_nowait(self.watcher.policy())
        self.watcher.in_force(self.watcher.changes)


def watch(lookup: Callable[[str], list[str]], story: Callable[[Watched], Awaitable[None]]) -> None:
    async def run() -> None:
        watched = Watched(lookup)
        task = asyncio.create_task(watched.watcher.run())
        try:
            await asyncio.wait_for(story(watched), 60)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())


def sources(policy: Policy) -> list[list[int]]:
    return [[entry.first for entry in rule.source or ()] for rule in policy.rules]


def known(name: str) -> list[str]:
    return [{"a": "0.0.0.1", "b": "0.0.0.2"}[name[0]]]


async def settled(watcher: NameWatcher) -> None:
    while not watcher.settled:
        await asyncio.sleep(0.01)


def test_answers_become_a_policy() -> None:
    async def story(watched: Watched) -> None:
        assert not watched.watcher.settled, "nobody was asked yet"
        policy = await watched.seen.get()
        while sources(policy) != [[1], [2]]:
            policy = await watched.seen.get()
        assert (len(watched.watcher), watched.watcher.unresolved()) == (2, [])
        await settled(watched.watcher)

    watch(known, story)


def test_a_resolver_that_hangs_or_fails_holds_up_nobody() -> None:
    hang = threading.Event()

    def lookup(name: str) -> list[str]:
        if name == "a.example.com":
            hang.wait(90)
            raise OSError("nobody knows")
        return ["0.0.0.2"]

    async def story(watched: Watched) -> None:
        watcher = watched.watcher
        assert sources(await watched.seen.get()) == [[], [2]]
        assert watcher.unresolved() == ["a.example.com"]
        assert not watcher.settled, "of one nothing was heard"
        # Another policy in the middle begins with what is known; the late failure belongs to the old one.
        watcher.replace(read_policy("policy.yaml", TEXT))
        assert sources(watcher.policy()) == [[], [2]]
        hang.set()
        await settled(watcher)
        assert watcher.unresolved() == ["a.example.com"], "bad news is news too"

    watch(lookup, story)


def test_the_policy_is_put_in_force_for_a_change_only() -> None:
    asked: list[str] = []

    def lookup(name: str) -> list[str]:
        asked.append(name)
        return known(name)

    async def story(watched: Watched) -> None:
        await settled(watched.watcher)
        while not watched.seen.empty():
            watched.seen.get_nowait()
        before = len(asked)
        watched.watcher.replace(read_policy("policy.yaml", TEXT))
        while len(asked) < before + 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(3 * NAME_WATCH_S)
        assert watched.seen.empty(), "the same answers as before"

    watch(lookup, story)


def test_another_policys_new_names_are_waited_for_and_one_that_cannot_run_leaves_all_as_it_was() -> None:
    async def story(watched: Watched) -> None:
        watcher = watched.watcher
        await settled(watcher)
        former = watcher.replace(read_policy("policy.yaml", TEXT.replace("a.example.com", "b2.example.com")))
        assert sources(watcher.policy()) == [[], [2]]
        await watcher.heard(60)
        assert sources(watcher.policy()) == [[2], [2]]
        watcher.restore(former)
        assert sources(watcher.policy()) == [[1], [2]]
        await settled(watcher)

    watch(known, story)


def test_names_are_asked_for_while_a_policy_is_put_in_force() -> None:
    """It takes seconds to compile a large one, and may have to wait for a reload."""
    many = "".join(
        f"- {{name: r{k}, source: {{fqdn: b{k}.example.com}}, destination: any, service: any, action: allow}}\n"
        for k in range(3 * NAME_LOOKUPS_MAX)
    )

    async def story(watched: Watched) -> None:
        done = asyncio.Event()

        async def slowly() -> None:
            await done.wait()
            await Watched.use(watched)

        watched.use = slowly  # type: ignore[method-assign]
        watched.watcher = NameWatcher(read_policy("policy.yaml", f"rules:\n{many}"), watched.use, known)
        task = asyncio.create_task(watched.watcher.run())
        await watched.watcher.heard(60)
        assert (watched.watcher.unresolved(), watched.watcher.settled) == ([], False)
        done.set()
        await settled(watched.watcher)
        task.cancel()

    watch(known, story)


def test_what_could_not_be_put_in_force_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everwall.management.names.NAME_RETRY_NS", 10_000_000)

    async def story(watched: Watched) -> None:
        watched.failures = 2
        while sources(await watched.seen.get()) != [[1], [2]]:
            pass
        assert watched.failures == 0

    watch(known, story)
