"""Which link a request takes: to a single server, or to that and another for what waits for its replicas.

Where Sentinels name the server they are asked once a second, for a failover that was ordered leaves the former primary
as it is for some ten seconds: it answers, and takes writes that are lost when it becomes a replica.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from everwall.limits import MS_NS, SENTINEL_WATCH_S, STORE_BATCH_RECORDS, STORE_QUEUE_ROWS
from everwall.session import image
from everwall.store.backlog import Backlog, take, waits_behind
from everwall.store.conversation import Conversation, Trade, describe
from everwall.store.dialer import Dialer
from everwall.store.link import Arrival
from everwall.store.protocol import Command, Protocol, Rows
from everwall.store.sentinels import Named

Reach = Callable[[list[Command]], Arrival]
"""Connects to a server and sends it a greeting; blocks."""


class Shard:
    """The links to one server. What has to wait for replicas has its own: WAIT holds up all that is behind it."""

    def __init__(self, trade: Trade, protocol: Protocol, reach: Reach, *, leads: bool, replicas: int) -> None:
        self.ordinary = Conversation(trade, protocol, reach, leads=leads)
        self.awaited: Conversation | None = None
        self.links = [self.ordinary]
        if replicas:
            self.awaited = Conversation(trade, protocol.another(), reach, leads=False, replicas=replicas)
            self.links.append(self.awaited)
        self._behind = np.zeros(STORE_BATCH_RECORDS, np.bool_)

    def put(self, rows: Rows, fields: Rows) -> None:
        """Queue requests, at most STORE_BATCH_RECORDS of them."""
        awaited = self.awaited
        if awaited is None:
            _put(self.ordinary, rows)
            return
        # What follows a change that waits or is under way there must not overtake it.
        behind = self._behind[: len(rows)]
        found = waits_behind(awaited.backlog.queue, rows, fields, behind)
        if awaited.pipelines:
            behind |= (rows[:, image.OP] != image.LOOKUP) & np.isin(fields, awaited.fields_under_way)
            found = int(behind.sum())
        if found:
            _put(awaited, rows[behind])
            rows = rows[~behind]
        _put(self.ordinary, rows)

    def put_back(self, rows: Rows) -> None:
        """Queue requests that have been at another server, so many at most; what came since for a session stays."""
        self.ordinary.make_room()
        self.ordinary.backlog.put_back(rows)


def _put(conversation: Conversation, rows: Rows) -> None:
    if len(rows):
        conversation.make_room()
        conversation.backlog.put(rows)


class Router:
    """A store of one server, which may be another after each connection (a name, or what Sentinels say)."""

    def __init__(
        self,
        trade: Trade,
        protocol: Protocol,
        reach: Reach,
        replicas: int,
        find: Callable[[], Named] | None = None,
    ) -> None:
        """``find`` asks the Sentinels, where there are some; blocks."""
        self._find = find
        self._watch: Dialer[Named] = Dialer(
            "everwall-store-sentinels", trade.wake_fd, lambda _: None, SENTINEL_WATCH_S
        )
        self._epoch = -1
        """Of the failover that made the server a primary, as far as was heard."""
        self.shard = Shard(trade, protocol, reach, leads=True, replicas=replicas)
        self.links = self.shard.links
        self.lobby = Backlog(trade.keys) if replicas else self.shard.ordinary.backlog
        """Where the worker's requests come in; where there is but one link they wait for it here."""
        self._trade = trade
        self._distributor = Distributor(self.lobby) if replicas else None
        self._is_agreed = False
        self.shard.ordinary.on_greeted = self._agree

    def _agree(self, leader: Conversation) -> None:
        self._is_agreed = True
        for link in self.links[1:]:
            link.protocol.follow(leader.protocol)

    def wait_ns(self, now: int) -> int:
        """How long there is time beside what the links wait for."""
        return max(self._watch.wait_ns(now), 0) if self._is_watched else MS_NS * 1000

    def step(self) -> None:
        """See whether the server is still the primary, and hand what came in to its link."""
        self._look_around()
        if self._distributor is None:
            return
        if not self._is_agreed:
            hold(self.lobby, self._trade)
            return
        while self._distributor.take():
            self.shard.put(self._distributor.rows, self._distributor.fields)

    @property
    def _is_watched(self) -> bool:
        return self._find is not None and any(link.link is not None for link in self.links)

    def _look_around(self) -> None:
        found = self._watch.result()
        if isinstance(found, Exception):
            self._trade.note_error(describe(found))
            self._watch.pause()
        elif found is not None:
            self._watch.pause()
            # A Sentinel that was cut off from the others names a former primary.
            for link in self.links if found.epoch >= self._epoch else ():
                if link.link is not None and link.peer != str(found.primary):
                    link.hang_up(f"the Sentinels name {found.primary} now, and no longer {link.peer}")
            self._epoch = max(self._epoch, found.epoch)
        if self._find is not None and self._is_watched and self._watch.is_due:
            self._watch.begin(self._find)

    @property
    def protocol(self) -> Protocol:
        """Of the link that leads."""
        return self.shard.ordinary.protocol

    def use_keys(self, keys: Rows) -> None:
        """Have all links name and seal records by other keys, each as soon as nothing is under way there."""
        if self._distributor is not None:
            self.lobby.use_keys(keys)
        for link in self.links:
            link.use_keys(keys)

    @property
    def connected(self) -> bool:
        """Whether all of the store can be spoken to."""
        return self.shard.ordinary.link is not None

    @property
    def is_idle(self) -> bool:
        """Nothing waits or is under way that could be sent or answered now."""
        waits = self._distributor is not None and self._is_agreed and len(self.lobby) > 0
        return not waits and is_idle(self.links)

    @property
    def waiting(self) -> int:
        """Requests that were not sent yet."""
        here = len(self.lobby) if self._distributor is not None else 0
        return here + sum(len(link.backlog) for link in self.links)

    def status(self) -> dict[str, Any]:
        """What an operator sees beside sums."""
        return {"primary": self.shard.ordinary.peer}

    def end(self) -> None:
        """Hang up for good."""
        self._watch.close()
        for link in self.links:
            link.end()
        self._trade.answers.fail(self.lobby.take_lookups())

    def join(self, until: float) -> bool:
        """Wait for helper threads, until that time by CLOCK_MONOTONIC; whether all have ended."""
        return all(link.join(until) for link in self.links) and self._watch.join(until)


def is_idle(links: list[Conversation]) -> bool:
    """Whether the links there are have nothing to do."""
    return all(link.link is None or link.is_idle for link in links)


class Distributor:
    """Requests out of the lobby, a batch at a time."""

    def __init__(self, lobby: Backlog) -> None:
        self._lobby = lobby
        self._rows = np.zeros((STORE_BATCH_RECORDS, image.COLUMNS), np.int64)
        self._fields = np.zeros(STORE_BATCH_RECORDS, np.int64)
        self._count = 0

    def take(self) -> bool:
        """The next batch, if there is one."""
        self._count = int(take(self._lobby.queue, self._rows, self._fields, STORE_BATCH_RECORDS))
        return self._count > 0

    @property
    def rows(self) -> Rows:
        return self._rows[: self._count]

    @property
    def fields(self) -> Rows:
        return self._fields[: self._count]


def hold(lobby: Backlog, trade: Trade) -> None:
    """Nobody knows yet where requests go: writes wait."""
    trade.answers.fail(lobby.take_lookups())
    if lobby.is_full:
        trade.dropped += lobby.keep_writes(STORE_QUEUE_ROWS // 2)
