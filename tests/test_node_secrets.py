"""A node whose workers do not run: secrets that come later or are read again, and how it reaches the store then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from pydantic import SecretBytes

from everwall.bootstrap.init_cfg import InitCfg, RedisEndpoint, Resiliency
from everwall.bootstrap.load import Bootstrap, LateSecret
from everwall.management.control import ControlServer
from everwall.node import Node
from everwall.node.commands import Commands
from everwall.store.connection import StoreConfig

SECRET = "5f" * 32
ANSWER_S = 30.0


@pytest.fixture
def secretless() -> Iterator[Callable[..., Node]]:
    """A node that holds resiliency back until there is a secret; its workers do not run."""
    made: list[Node] = []

    def make(again: Callable[[], Bootstrap] | None = None, late_secret: LateSecret | None = None) -> Node:
        config = InitCfg(
            data_address=IPv4Address("127.0.82.14"),
            port="udp",
            max_sessions=64,
            session_resiliency=True,
            redis_endpoint=RedisEndpoint("127.0.0.1", 1),
            redis_tls=False,
            cluster_secret_awaited="secret:everwall",
        )
        made.append(Node(config, None, 0.0, late_secret, again))
        return made[-1]

    yield make
    for node in made:
        node._close()


FRESH = Bootstrap(InitCfg(cluster_secret=SecretBytes(bytes.fromhex(SECRET))), "init-cfg.txt", ())


def test_a_source_that_is_slow_to_read_again_holds_nothing_up(secretless: Callable[..., Node]) -> None:
    """Health checks are answered by the same loop."""
    answered = threading.Event()

    def again() -> Bootstrap:
        assert answered.wait(ANSWER_S), "the loop goes on"
        return FRESH

    async def ask() -> Any:
        answer = server._answer(b'{"command": "secrets"}')
        asking = asyncio.ensure_future(answer)
        await asyncio.sleep(0)
        answered.set()
        return await asking

    server = ControlServer("unused", Commands(secretless(again)).handlers)
    assert asyncio.run(ask())["ok"]


def test_a_secret_that_somebody_still_waits_for_does_not_hold_up_the_end(
    secretless: Callable[..., Node],
) -> None:
    asked, over = threading.Event(), threading.Event()

    def read(_: object) -> None:
        asked.set()
        over.wait(ANSWER_S)

    async def look() -> None:
        waiting = asyncio.create_task(node._await_secret())
        while not asked.is_set():
            await asyncio.sleep(0.001)
        waiting.cancel()

    node = secretless(late_secret=LateSecret("secret:everwall", 0.0, read))
    asyncio.run(look())
    assert not over.is_set()
    assert [thread.name for thread in threading.enumerate() if thread.daemon and thread.name == "source"]
    over.set()


def test_a_node_that_is_told_to_go_while_it_joins_does_not_wait_for_the_store(
    secretless: Callable[..., Node],
) -> None:
    node = secretless(lambda: FRESH)
    asyncio.run(Commands(node).secrets({}))
    node.config = replace(node.config, join_grace_s=3600.0)
    node.drain()
    asyncio.run(asyncio.wait_for(node._join(), ANSWER_S))
    assert node._state == "draining"


def test_a_first_secret_that_is_read_again_switches_on_what_waited_for_it(
    secretless: Callable[..., Node],
) -> None:
    node = secretless(lambda: FRESH)
    assert (node.resiliency.enabled, node.config.standing) == (False, "held back")
    asyncio.run(Commands(node).secrets({}))
    assert node.resiliency.enabled
    assert node.workers.connected


def test_a_first_secret_leaves_off_what_was_switched_off(secretless: Callable[..., Node]) -> None:
    node = secretless(lambda: FRESH)
    node.resiliency = Resiliency(False, "it was switched off")
    asyncio.run(Commands(node).secrets({}))
    assert not node.resiliency.enabled


def test_a_change_of_buckets_takes_the_way_of_management(
    secretless: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, taken = secretless(), []

    class Change:
        running = False

        def __init__(self, store: StoreConfig) -> None:
            taken.append(store.outward)

        def begin(self, _: int) -> str:
            return "announced"

        def begin_stop(self) -> None:
            pass

        def stop(self, timeout: float = 0.0) -> bool:
            return True

    monkeypatch.setattr("everwall.node.Relayout", Change)
    node.resiliency = Resiliency(True, "it was switched on")
    node.change_buckets(128)
    assert [outward is node._outward for outward in taken] == [True]
