"""A store on a Redis or Valkey Cluster: a link to each primary, and requests go to whoever has their bucket's slot.

The map of slots is asked for at the start, when a link is lost and after every ``-MOVED`` (``clients.find_slots``). One
slot has been moved: its requests follow at once, the others when the new map is there. A slot is being moved: what
the old owner has not any more is asked of the new one, request by request (``-ASK``).

The primary that has the slot of the meta key leads: there the number of buckets is agreed on, and all nodes go by its
clock, so that the order of two records never depends on which servers wrote them.

While a record may lie in several places, these are on several servers: a request goes to one after the other. All links
move to other places together, once nothing is under way on any. What is known of the layout is good for as long as
nobody can have begun to write elsewhere since. After that, while the primary that leads cannot be asked, nothing is
confirmed and nothing is said to be missing: what is found is found all the same.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from everwall.limits import (
    LAYOUT_LEASE_NS,
    LAYOUT_TRUST_NS,
    MOVED_TRUST_NS,
    SECOND_NS,
    SHARD_LEAVING_NS,
    STORE_QUEUE_ROWS,
    STORE_SHARDS_MAX,
    STORE_SURVEY_MAX_S,
)
from everwall.session import image
from everwall.store.backlog import Backlog, walking
from everwall.store.clients import SLOTS, find_slots
from everwall.store.connection import Address, Login, StoreConfig, require_private
from everwall.store.conversation import Conversation, Trade, compared, describe
from everwall.store.dialer import Dialer
from everwall.store.link import Arrival, connect
from everwall.store.protocol import Command, ErrorReply, Protocol, Rows
from everwall.store.router import Distributor, Shard, hold, is_idle
from everwall.store.slots import homes_of, slot_of_key, slots_of_buckets

_NOBODY = -1

Ranges = list[tuple[int, int, Address]]


class ClusterRouter:
    """As ``Router``, for a cluster. ``protocol`` is that of the links; each gets one of its own."""

    def __init__(
        self,
        trade: Trade,
        protocol: Protocol,
        config: StoreConfig,
        context: ssl.SSLContext | None,
        login: Login,
    ) -> None:
        self.lobby = Backlog(trade.keys)
        self.links: list[Conversation] = []
        self._trade, self.protocol = trade, protocol
        self._config, self._context, self._login = config, context, login
        self._distributor = Distributor(self.lobby)
        self._shards: dict[Address, Shard] = {}
        self._numbered: list[Shard | None] = []
        self._ended: list[Conversation] = []
        self._owners: npt.NDArray[np.int64] = np.full(SLOTS, _NOBODY, np.int64)
        """Number of the shard that has each slot."""
        self._learnt_ns = np.full(SLOTS, -MOVED_TRUST_NS, np.int64)
        """When a server said so."""
        self._meta_slot = slot_of_key(protocol.meta_key)
        self._bucket_slots: list[Rows] = []
        """Of each bucket, for each epoch."""
        self._bucket_owners: list[Rows] = []
        self._is_agreed = False
        self._confirmed_ns = 0
        """When the layout was asked for that is known now."""
        self._new_keys: Rows | None = None
        self._moves = False
        """Records have other places than those that are spoken of; what is under way is waited for."""
        self._held = False
        """Somebody was not allowed to send since the last step."""
        self._leaving: dict[Address, int] = {}
        """Servers without slots, and since when."""
        self._later: deque[Rows] = deque()
        """Changes that were sent to and fro, until the next map."""
        self._later_rows = 0
        self._survey: Dialer[Ranges] = Dialer(
            "everwall-store-survey", trade.wake_fd, lambda _: None, STORE_SURVEY_MAX_S
        )
        self._survey_wanted = True
        self._surveyed_ns = 0
        """When the last map was asked for."""

    # What its owner does ------------------------------------------------------------------------------

    def wait_ns(self, now: int) -> int:
        """Until the next map may be asked for, or what is held up may go on."""
        if self._held and self._may_send():
            return 0
        if self._moves and not any(link.pipelines for link in self.links):
            return 0
        return max(self._survey.wait_ns(now), 0) if self._survey_wanted else SECOND_NS

    def step(self) -> None:
        """Learn who has which slots, and hand what came in to them."""
        self._look_around()
        self._held = False
        self._change_places()
        self._trade.doubt = self._is_agreed and time.monotonic_ns() - self._confirmed_ns > LAYOUT_TRUST_NS
        self._distribute()

    def use_keys(self, keys: Rows) -> None:
        """Have all links name and seal records by other keys, as soon as nothing is under way."""
        self._new_keys = keys

    @property
    def connected(self) -> bool:
        """Whether all of the store can be spoken to."""
        owners = np.unique(self._owners)
        return self._is_agreed and all(map(self._has_link, owners.tolist()))

    def _has_link(self, number: int) -> bool:
        """May be asked by any thread."""
        shard = self._numbered[number] if number != _NOBODY else None
        return shard is not None and shard.ordinary.link is not None

    @property
    def is_idle(self) -> bool:
        """Nothing waits or is under way that could be sent or answered now."""
        return not (self._is_agreed and len(self.lobby)) and is_idle(self.links)

    @property
    def waiting(self) -> int:
        """Requests that were not sent yet."""
        return len(self.lobby) + sum(len(link.backlog) for link in self.links)

    def status(self) -> dict[str, Any]:
        """What an operator sees beside sums."""
        owners = [number for number in np.unique(self._owners).tolist() if number != _NOBODY]
        linked = sum(map(self._has_link, owners))
        leader = next((link for link in list(self.links) if link.leads), None)
        return {"primary": leader and leader.peer, "shards": f"{linked} of {len(owners)}"}

    def end(self) -> None:
        """Hang up for good."""
        self._survey.close()
        for link in self.links:
            link.end()
        self._trade.answers.fail(self.lobby.take_lookups())

    def join(self, until: float) -> bool:
        """Wait for helper threads, until that time by CLOCK_MONOTONIC; whether all have ended."""
        ended = [link.join(until) for link in (*self.links, *self._ended)]
        return all(ended) and self._survey.join(until)

    # The map ------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        found = self._survey.result()
        if isinstance(found, Exception):
            self._trade.note_error(describe(found))
            self._survey_wanted = True
            self._survey.pause()
        elif found is not None:
            self._learn(found)
            # Who has wanted a map since this one was asked for wants a later one.
            if self.connected:
                self._survey.succeeded()
            else:
                self._survey_wanted = True
            self._survey.pause()
        if self._survey_wanted and self._survey.is_due:
            self._survey_wanted, self._surveyed_ns = False, time.monotonic_ns()
            known = tuple(self._shards)
            self._survey.begin(partial(find_slots, self._config, self._context, self._login, known))
        for address in list(self._leaving):
            self._retire(address)

    def _learn(self, ranges: Ranges) -> None:
        primaries = len({address for *_, address in ranges})
        if primaries > STORE_SHARDS_MAX:
            self._trade.note_error(
                f"the cluster has {primaries} primaries, a node speaks to {STORE_SHARDS_MAX} at most"
            )
            return
        owners = np.full(SLOTS, _NOBODY, np.int64)
        for first, last, address in ranges:
            owners[first : last + 1] = self._number(address)
        told_since = self._learnt_ns > self._surveyed_ns
        owners[told_since] = self._owners[told_since]
        if ((self._owners == _NOBODY) & (owners != _NOBODY)).any() and self._is_agreed:
            self._trade.clock.offer_again()  # what was not written meanwhile is offered again
        self._owners[:] = owners
        self._settle_in()
        later, self._later, self._later_rows = self._later, deque(), 0
        for rows in later:
            self._take_back(rows)

    def _settle_in(self) -> None:
        """The map has changed."""
        self._bucket_owners = [self._owners[slots] for slots in self._bucket_slots]
        leader, now = self._owners[self._meta_slot], time.monotonic_ns()
        present = set(np.unique(self._owners).tolist())
        for address, shard in self._shards.items():
            number = self._numbered.index(shard)
            if number in present:
                self._leaving.pop(address, None)
            else:
                self._leaving.setdefault(address, now)
            shard.ordinary.leads = bool(number == leader)
            if not self._is_agreed and shard.ordinary.leads and shard.ordinary.link is not None:
                shard.ordinary.hang_up("it leads now: the number of buckets is agreed on there")

    def _number(self, address: Address) -> int:
        """The number of a shard, which is made if it is new."""
        shard = self._shards.get(address)
        if shard is not None:
            return self._numbered.index(shard)
        protocol = self.protocol.another()
        shard = Shard(
            self._trade,
            protocol,
            partial(self._reach, address),
            leads=False,
            replicas=self._config.wait_replicas,
        )
        for link in shard.links:
            if self._is_agreed:
                link.protocol.follow(self.protocol)
            link.on_greeted, link.on_lost, link.on_redirect = self._greeted, self._lost, self._redirect
            link.on_told, link.on_walk, link.may_send = self._told, self._walk, self._may_send
        self._shards[address] = shard
        self._leaving[address] = time.monotonic_ns()
        self.links += shard.links
        if None in self._numbered:
            number = self._numbered.index(None)
            self._numbered[number] = shard
        else:
            number = len(self._numbered)
            self._numbered.append(shard)
        return number

    def _shard(self, number: int) -> Shard:
        shard = self._numbered[number]
        assert shard is not None
        return shard

    def _reach(self, address: Address, greeting: list[Command]) -> Arrival:
        """In a helper thread."""
        require_private(self._config, address)
        return connect(self._config, self._context, greeting, address, self._login)

    def _retire(self, address: Address) -> None:
        """A server without slots is let go once it is gone, or has got none for long."""
        shard = self._shards[address]
        silent_ns = time.monotonic_ns() - self._leaving[address]
        linked = any(link.link is not None for link in shard.links)
        if silent_ns < (SHARD_LEAVING_NS if linked else SECOND_NS) or not is_idle(shard.links):
            return
        del self._leaving[address]
        for link in shard.links:
            self._take_back(link.end())
            self.links.remove(link)
            self._ended = [ended for ended in self._ended if ended.is_dialling] + [link]
        self._numbered[self._numbered.index(shard)] = None
        del self._shards[address]

    # What the links tell ------------------------------------------------------------------------------

    def _greeted(self, link: Conversation) -> None:
        if not link.leads:
            return
        self._told(link)
        if self._is_agreed:
            return
        self.protocol.move(self._now_s())
        for other in self.links:
            other.protocol.follow(self.protocol)
        self._is_agreed = True
        self._find_buckets()

    def _told(self, link: Conversation) -> None:
        if not link.leads:
            return  # not any more
        self._confirmed_ns = link.confirmed_ns
        for protocol in (self.protocol, *(other.protocol for other in self.links)):
            protocol.layout = link.protocol.layout  # whoever greets an empty server next says it there
        self._moves = self._moves or self._is_due()

    def _walk(self, rows: Rows) -> None:
        self._deliver(rows, np.zeros(len(rows), np.int64))

    def _lost(self, link: Conversation) -> None:
        self._survey_wanted = True

    def _redirect(self, link: Conversation, redirects: list[tuple[ErrorReply, Rows]], asked: bool) -> None:
        self._survey_wanted = True
        for error, rows in redirects:
            try:
                kind, slot, address = self._read_redirect(link, error)
            except ValueError:
                self._postpone(rows)  # sent to nowhere; the error is noted
                continue
            if address not in self._shards and len(self._shards) >= STORE_SHARDS_MAX:
                self._trade.note_error(
                    f"{address} is one server more than the {STORE_SHARDS_MAX} of a cluster: {error}"
                )
                self._postpone(rows)
                continue
            if kind == "ASK" and not asked:
                shard = self._shard(self._number(address))
                for row in rows:
                    strict = shard.awaited is not None and row[image.CONFIRM] == image.REPLICATED
                    (shard.awaited if strict and shard.awaited else shard.ordinary).ask(row)
            elif kind == "MOVED" and self._believe(link, slot, address):
                self._take_back(compared(rows))
            else:
                self._postpone(rows)

    def _read_redirect(self, link: Conversation, error: ErrorReply) -> tuple[str, int, Address]:
        """(MOVED or ASK, slot, where to). Raises ValueError."""
        kind, slot, where, *_ = str(error).split(" ")
        host, _, port = where.rpartition(":")
        if not 0 <= int(slot) < SLOTS:
            raise ValueError(slot)
        return kind, int(slot), Address(host or self._address_of(link).host, int(port))

    def _believe(self, link: Conversation, slot: int, address: Address) -> bool:
        """Follow a server that says who has a slot, but not two that send each other's requests back."""
        owner = self._owners[slot]
        if owner != _NOBODY and link not in self._shard(owner).links:
            return True  # it is known already
        now = time.monotonic_ns()
        if now - self._learnt_ns[slot] < MOVED_TRUST_NS or address == self._address_of(link):
            return False
        self._learnt_ns[slot] = now
        self._owners[slot] = self._number(address)
        self._settle_in()
        return True

    def _address_of(self, link: Conversation) -> Address:
        return next(address for address, shard in self._shards.items() if link in shard.links)

    def _postpone(self, rows: Rows) -> None:
        """Requests that nobody takes: changes wait for the next map."""
        self._trade.answers.fail(rows[rows[:, image.OP] == image.LOOKUP])
        changes = compared(rows[rows[:, image.OP] != image.LOOKUP])
        if len(changes):
            self._later.append(changes)
            self._later_rows += len(changes)
        while self._later_rows > STORE_QUEUE_ROWS:
            dropped = len(self._later.popleft())
            self._later_rows -= dropped
            self._trade.dropped += dropped

    def _take_back(self, rows: Rows) -> None:
        """At most STORE_QUEUE_ROWS requests that a link had: several may bring theirs before the next turn."""
        if len(self.lobby) >= STORE_QUEUE_ROWS:
            self._distribute()
        self.lobby.put_back(rows)

    # Places -------------------------------------------------------------------------------------------

    def _now_s(self) -> int:
        return self._trade.clock.seconds(time.monotonic_ns())

    def _is_due(self) -> bool:
        """Whether the layout has other places now than those that are spoken of."""
        return self._is_agreed and self.protocol.is_due(self._now_s())

    def _may_send(self) -> bool:
        """Whether it is known where records lie, or nobody can be asked."""
        allowed = not self._moves and not self._asks_first()
        self._held = self._held or not allowed
        return allowed

    def _asks_first(self) -> bool:
        if time.monotonic_ns() - self._confirmed_ns <= LAYOUT_LEASE_NS:
            return False
        return any(link.leads and link.is_asking for link in self.links)

    def _change_places(self) -> None:
        """Move on all links to the places that hold now, once nothing is under way on any of them.

        A server that is silent is not waited for: it is left to itself, as after a longer silence.
        """
        self._moves = self._is_due() or self._new_keys is not None
        if not self._moves:
            return
        for link in self.links:
            if link.is_silent:
                link.hang_up("it is silent, and records have other places from now on")
        if any(link.pipelines for link in self.links):
            return
        self._move()
        self._moves = False

    def _move(self) -> None:
        keys, self._new_keys = self._new_keys, None
        waiting = [self.lobby.take(len(self.lobby)), *(link.take_back() for link in self.links), *self._later]
        self._later.clear()
        self._later_rows = 0
        if keys is not None:
            for backlog in (self.lobby, *(link.backlog for link in self.links)):
                backlog.use_keys(keys)
        now_s = self._now_s() if self._is_agreed else 0
        if self.protocol.move(now_s, keys):
            self._trade.clock.count_move()
        if keys is not None:
            self._trade.keys = keys
        for link in self.links:
            link.protocol.move(now_s, keys)
        if self._is_agreed:
            self._find_buckets()
        rows = np.concatenate(waiting)
        further = walking(rows)
        # Of two changes of a session the one that goes on from an earlier one is the older.
        for some in (rows[~further], _begun_again(rows[further])):
            for first in range(0, len(some), STORE_QUEUE_ROWS // 2):
                self._take_back(some[first : first + STORE_QUEUE_ROWS // 2])

    def _find_buckets(self) -> None:
        """The epochs are others."""
        self._bucket_slots = [slots_of_buckets(self.protocol, epoch) for epoch in self.protocol.epochs]
        self._settle_in()

    # Requests -----------------------------------------------------------------------------------------

    def _distribute(self) -> None:
        if not self._is_agreed:
            hold(self.lobby, self._trade)
            return
        while self._distributor.take():
            self._deliver(self._distributor.rows, self._distributor.fields)

    def _deliver(self, rows: Rows, fields: Rows) -> None:
        owners = homes_of(rows, fields, self.protocol, self._bucket_owners)
        further = walking(rows)
        for number in np.unique(owners).tolist():
            mine = owners == number
            if number == _NOBODY:
                self._trade.answers.fail(rows[mine & (rows[:, image.OP] == image.LOOKUP)])
                self._trade.dropped += int((mine & (rows[:, image.OP] != image.LOOKUP)).sum())
                continue
            shard, fresh = self._shard(number), mine & ~further
            shard.put(rows[fresh], fields[fresh])
            if (mine & further).any():
                shard.put_back(rows[mine & further])


def _begun_again(rows: Rows) -> Rows:
    """Requests that were on their way from place to place, before the first one."""
    rows[rows[:, image.OP] == image.CLEAR, image.OP] = image.WRITE
    rows[:, image.WALK] = 0
    return rows
