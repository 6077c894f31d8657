"""One link to one server: what waits to be sent there, the pipelines under way, and what comes back.

Nothing that the server does or fails to do holds anybody up:

* every look-up is answered: FAILED at once while there is no link, and FAILED after the look-up deadline while
  the server is silent; what could not be sent within once or twice that time, because it is slow, is FAILED too;
* writes wait, bounded and one for each session; across a lost link they are kept (compared when they are sent at
  last), deletes are dropped, for somebody else may own the session by then.

While only changes are under way whose answers nobody waits for, these are read when there is something else to do.

Once a second the server is asked for store time (``clock.py``) and for the layout (``layout.py``). Where records have
other places from now on, or other secrets, what is under way is waited for and what follows goes there. A link that did
not hear of the layout for LAYOUT_LEASE_NS, because its process stood still, asks again before it sends anything else.
On a Redis Cluster one link asks, and whoever has all of them says when records have other places (``cluster.py``).
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from everwall.kernels import bound
from everwall.limits import (
    LAYOUT_LEASE_NS,
    LOOKUP_DEADLINE_NS,
    LOOP_GAP_NS_MAX,
    MS_NS,
    SECOND_NS,
    STORE_ASKED_ROWS,
    STORE_QUEUE_ROWS,
    STORE_STEADY_S,
    STORE_TIMEOUT_S,
    WAIT_REPLICAS_MS,
)
from everwall.session import image
from everwall.store.answers import Answers
from everwall.store.backlog import Backlog, take, walking
from everwall.store.clock import StoreClock
from everwall.store.dialer import Dialer
from everwall.store.link import Arrival, Link
from everwall.store.occasions import Refusals
from everwall.store.protocol import Command, ErrorReply, Protocol, ProtocolError, Rows, StoreBatch
from everwall.store.replies import AGAIN, DONE, FULL, MORE, UNWRITTEN, settle

_TIMEOUT_NS = int(STORE_TIMEOUT_S * SECOND_NS)
_PROBE_NS = SECOND_NS
_PIPELINES_MAX = 4
"""Pipelines under way at once: the server works on one while the next is being encoded."""
_UNHURRIED_NS = 20 * MS_NS
"""Answers that nobody waits for are read after so long, if nothing else gives occasion to."""


@dataclass
class _Pipeline:
    """A batch, and its way to the server and back."""

    batch: StoreBatch
    sent_ns: int = 0
    probe: bool = False
    hurried: bool = False
    """Somebody waits for an answer."""
    late: int = 0
    """Its look-ups were answered FAILED already."""
    asking: bool = False
    """Its one row was sent here by another server (``-ASK``)."""
    layout: bool = False
    """It asks for the layout."""
    least_ns: int | None = None
    """It asks for store time, and names this one."""


@dataclass
class Trade:
    """What all links of a store have in common."""

    keys: Rows
    """By which records are named and sealed; shown last: who sees others sees that all sessions are to be offered."""
    answers: Answers
    clock: StoreClock
    poll: select.poll
    by_descriptor: dict[int, Conversation]
    wake_fd: int
    errors: int = 0
    last_error: str | None = None
    dropped: int = 0
    crowded_out: int = 0
    """Of these, what a link had no room for: no new connection will have it offered again."""
    doubt: bool = False
    """Others may have agreed on other places for records since the layout was last heard of."""
    refusals: Refusals = field(default_factory=Refusals)
    passed_ns: int = field(default_factory=time.monotonic_ns)
    """When the thread last began a pass of its loop."""
    resumed_ns: int = 0
    """When it last noticed that it had stood still."""

    def stood_still(self) -> bool:
        """Whether it was stopped, or starved, since then: what it has in its hands is of a time before."""
        return time.monotonic_ns() - self.passed_ns > LOOP_GAP_NS_MAX

    def offer_what_was_refused(self, now_ns: int) -> None:
        """Once a pause has passed; called now and then."""
        self.refusals.note(int(self.answers.tally[UNWRITTEN]) + self.crowded_out, now_ns)
        if self.refusals.is_due(now_ns):
            self.clock.offer_again()

    def note_error(self, text: str) -> None:
        self.errors += 1
        self.last_error = text


class Conversation:
    """``reach`` connects and sends the greeting it is given; it runs in a helper thread."""

    def __init__(
        self,
        trade: Trade,
        protocol: Protocol,
        reach: Callable[[list[Command]], Arrival],
        *,
        leads: bool,
        replicas: int = 0,
    ) -> None:
        """``leads``: this link agrees on the layout and tells the time.

        ``replicas``: so many must have what is written before anybody hears of it; one pipeline at a time then, since
        WAIT keeps the server from all that is behind it.
        """
        self.protocol, self.leads = protocol, leads
        self.backlog = Backlog(trade.keys)
        self.link: Link | None = None
        self.server: str | None = None
        self.peer: str | None = None
        self.rtt_ns = 0
        self.readable = False
        """The socket has something; set by whoever polls."""
        self.on_greeted: Callable[[Conversation], None] | None = None
        self.on_lost: Callable[[Conversation], None] | None = None
        self.on_redirect: Callable[[Conversation, list[tuple[ErrorReply, Rows]], bool], None] | None = None
        """The server has sent rows elsewhere, as the errors say; True when they had been sent here by another."""
        self.on_told: Callable[[Conversation], None] | None = None
        """The server has said what the layout is."""
        self.on_walk: Callable[[Rows], None] | None = None
        """Rows go on to other places, on other servers."""
        self.may_send: Callable[[], bool] | None = None
        """Whether it is known where records lie, if another than this link finds that out."""
        self.confirmed_ns = 0
        """When the layout was asked for that is known now."""

        self._trade, self._reach, self._replicas = trade, reach, replicas
        self._dialer: Dialer[Arrival] = Dialer(
            "everwall-store-connect", trade.wake_fd, lambda arrival: arrival.link.close()
        )
        self._listening: int | None = None
        """For what the link is polled."""
        count = 1 if replicas else _PIPELINES_MAX
        self._idle = [_Pipeline(protocol.room()) for _ in range(count)]
        self._pipelines: deque[_Pipeline] = deque()
        self._is_full = False
        """The worker has not taken all answers of the first pipeline yet."""
        self._hurried = 0
        """Pipelines under way for which somebody waits."""
        self._asked: deque[Rows] = deque()
        """Rows that another server sent here, each by itself."""
        self._credentials: tuple[str, ...] | None = None
        """To be said on this link."""
        self._heard_ns = 0
        """When the last whole reply came: bytes that dribble in are no answer."""
        self._received_ns = 0
        """When the last bytes came."""
        self._since_ns = 0
        """When the link was made."""
        self._probed_ns = 0
        self._least_ns = 0
        """The store time that the greeting named."""
        self._is_due = False
        """Records have other places than those that are spoken of."""
        self._new_keys: Rows | None = None
        self._held = False
        """Nothing but probes may be sent."""
        self._waiting: tuple[tuple[int, int], int] | None = None
        """Look-ups that were not sent yet, and when that was seen."""

        pipeline, buffer = self._idle[0].batch.pipeline, np.zeros(1, np.uint8)
        answers = trade.answers
        self._take = bound(take, self.backlog.queue, pipeline.rows, pipeline.fields, 0)
        self._settle: Any = bound(
            settle,
            pipeline,
            0,
            0,
            0,
            buffer,
            0,
            0,
            trade.keys,
            0,
            answers.ring,
            answers.scratch,
            answers.tally,
        )

    @property
    def pipelines(self) -> int:
        """Under way."""
        return len(self._pipelines)

    @property
    def fields_under_way(self) -> Rows:
        """Of the sessions that these are about."""
        each = [pipeline.batch.pipeline.fields[: pipeline.batch.count] for pipeline in self._pipelines]
        return np.concatenate(each) if each else np.zeros(0, np.int64)

    @property
    def is_silent(self) -> bool:
        """What is under way was not answered in time."""
        return bool(self._pipelines and self._pipelines[0].late)

    @property
    def is_asking(self) -> bool:
        """Whether the server is asked for the layout now, or will be next of all."""
        if self.link is None or self.is_silent:
            return False
        due = time.monotonic_ns() - self._probed_ns >= _PROBE_NS
        return due or any(pipeline.layout for pipeline in self._pipelines)

    @property
    def is_idle(self) -> bool:
        """Nothing waits or is under way."""
        return not self._pipelines and not self._asked and not len(self.backlog)

    # What its owner does ------------------------------------------------------------------------------

    def prepare(self, now: int) -> int:
        """Have the link polled for what it waits for; returns how long it has time, ns."""
        link = self.link
        if link is None:
            return self._dialer.wait_ns(now)
        listening = 0
        if self._idle and ((len(self.backlog) and not self._held) or self._asked or self._credentials):
            wait_ns = 0
        else:
            wait_ns = self._probed_ns + _PROBE_NS - now
            if self._pipelines:
                patience_ns = _TIMEOUT_NS if self._pipelines[0].late else LOOKUP_DEADLINE_NS
                wait_ns = min(wait_ns, patience_ns - self._silence_ns(now))
            if self._pipelines and self._idle and not self._hurried and not self._held:
                # Only changes are under way of which nobody waits to hear, and the next can be sent all the same.
                wait_ns = min(wait_ns, _UNHURRIED_NS)
            else:
                listening = select.POLLIN
            if link.wants_to_send:
                listening |= select.POLLOUT
        if self._is_full:
            wait_ns = min(wait_ns, MS_NS)
        if listening != self._listening:
            self._listening = listening
            self._trade.by_descriptor[link.fileno()] = self
            self._trade.poll.register(link, listening)
        return wait_ns

    def step(self) -> None:
        """Do what there is to do; never blocks."""
        readable, self.readable = self.readable, False
        if self.link is None:
            self._without_link()
        else:
            self._with_link(self.link, readable)

    def make_room(self) -> None:
        """Let the oldest changes go when there is no room for more."""
        if self.backlog.lookups >= STORE_QUEUE_ROWS or self.backlog.is_full:
            self._trade.answers.fail(self.backlog.take_lookups())
        if self.backlog.is_full:
            dropped = self.backlog.keep_writes(STORE_QUEUE_ROWS // 2)
            self._trade.dropped += dropped
            self._trade.crowded_out += dropped if self.link is not None else 0

    def ask(self, row: Rows) -> None:
        """Send one row after ASKING: the server is about to get its bucket from another.

        One goes in each pipeline; where more come than are sent, the oldest are let go.
        """
        if len(self._asked) >= STORE_ASKED_ROWS:
            oldest = self._asked.popleft().reshape(1, -1)
            is_lookup = bool(oldest[0, image.OP] == image.LOOKUP)
            self._trade.answers.fail(oldest[:is_lookup])
            self._trade.dropped += not is_lookup
        self._asked.append(row)

    def authenticate(self, credentials: tuple[str, ...]) -> None:
        """Say another password on the link there is."""
        self._credentials = credentials

    def compare(self) -> None:
        """Time has passed unnoticed: whatever waits is compared when it is sent.

        First writes that are encoded are compared no more. Where some of those may not have left yet the link is given
        up: what the server has not received then never arrives, and all of it is sent once more, compared.
        """
        self.backlog.compare()
        self._asked = deque(compared(row[None])[0] for row in self._asked)
        if (
            self.link is not None
            and self.link.wants_to_send
            and any(each.batch.has_first_writes for each in self._pipelines)
        ):
            self._disconnect("this node stood still with requests half sent")

    def take_back(self) -> Rows:
        """All that waits, to be sent another way."""
        rows = self.backlog.take(len(self.backlog))
        if self._asked:
            rows = np.concatenate([rows, np.array(self._asked)])
            self._asked.clear()
        return rows

    def use_keys(self, keys: Rows) -> None:
        """Name and seal records by other keys, once nothing is under way."""
        self._new_keys = keys

    def hang_up(self, reason: str) -> None:
        """Give the link up; another follows."""
        self._disconnect(reason)

    def end(self) -> Rows:
        """Hang up for good; returns the changes that were not made and may be made elsewhere."""
        self._dialer.close()
        self._hang_up()
        self._trade.dropped += self.backlog.keep_writes(STORE_QUEUE_ROWS)
        return self.backlog.take(len(self.backlog))

    @property
    def is_dialling(self) -> bool:
        """Whether a helper thread is still at work."""
        return self._dialer.is_busy

    def join(self, until: float) -> bool:
        """Wait for the helper thread of an ended one, until that time by CLOCK_MONOTONIC; whether it has ended."""
        return self._dialer.join(until)

    # Without a link -----------------------------------------------------------------------------------

    def _without_link(self) -> None:
        self._fail_waiting()
        self.make_room()
        arrival = self._dialer.result()
        if arrival is None:
            if self._dialer.is_due:
                self._least_ns = self._trade.clock.least_ns(time.monotonic_ns())
                leads, protocol = self.leads, self.protocol
                greeting = protocol.greeting(self._least_ns) if leads else protocol.following()
                self._dialer.begin(lambda: self._reach(greeting))
        elif isinstance(arrival, Exception):
            self._disconnect(describe(arrival))
        else:
            self._welcome(arrival)

    def _welcome(self, arrival: Arrival) -> None:
        try:
            greeting = self.protocol.greet(arrival.replies) if self.leads else None
            self.server = self.protocol.followed(arrival.replies) if greeting is None else greeting.server
        except Exception as error:
            arrival.link.close()
            self._disconnect(describe(error))
            return
        self.rtt_ns = arrival.rtt_ns
        self._since_ns = self._heard_ns = self._received_ns = self._probed_ns = time.monotonic_ns()
        if greeting is None:
            self.confirmed_ns = self._probed_ns = 0  # a link that follows asks for the layout first of all
        else:
            self.confirmed_ns = arrival.monotonic_ns
            half_ns = arrival.rtt_ns // 2
            self._trade.clock.tell(
                greeting.time_ns,
                self._least_ns if greeting.is_agreed else 0,
                arrival.monotonic_ns - half_ns,
                arrival.monotonic_ns + half_ns,
            )
        if not self._replicas:
            self._trade.clock.count_connection()
        self._trade.dropped += self.backlog.keep_writes(STORE_QUEUE_ROWS)
        # Last: who sees the link sees all that it brought.
        self.link, self.peer = arrival.link, arrival.link.peer
        if self.on_greeted is not None:
            self.on_greeted(self)
        self._with_link(arrival.link, False)

    # With a link --------------------------------------------------------------------------------------

    def _with_link(self, link: Link, readable: bool) -> None:
        try:
            if not self._listen(link, readable):
                self._judge_silence()
            if self._credentials is not None or self._asked:
                self._send_rare(link)
                if self.link is None:
                    return
            if time.monotonic_ns() - self._probed_ns >= _PROBE_NS and self._idle:
                pipeline = self._idle.pop()
                pipeline.layout = self.leads or not self.protocol.clustered
                pipeline.least_ns = self._trade.clock.least_ns(time.monotonic_ns()) if self.leads else None
                self.protocol.probe(pipeline.batch, least_ns=pipeline.least_ns, layout=pipeline.layout)
                self._send(link, pipeline, probe=True)
                self._trade.offer_what_was_refused(self._probed_ns)
            self._held = not self._may_send()
            while self._idle and len(self.backlog) and not self._held:
                pipeline = self._idle.pop()
                batch = pipeline.batch
                rows, fields = batch.pipeline.rows, batch.pipeline.fields
                batch.count = self._take(self.backlog.queue, rows, fields, len(rows))
                self.protocol.encode(batch, self._trade.clock.seconds(time.monotonic_ns()))
                if self._replicas:
                    self.protocol.wait_for_replicas(batch, self._replicas, WAIT_REPLICAS_MS)
                if batch.has_first_writes and self._trade.stood_still():
                    self.protocol.take_back()
                    self.backlog.put_back(compared(batch.rows))
                    self._idle.append(pipeline)
                    break
                self._send(link, pipeline)
            self._fail_stale(time.monotonic_ns())
            if link.wants_to_send:
                if self._trade.stood_still():
                    self.compare()
                if self.link is not None:
                    link.flush()
        except Exception as error:
            # Whatever a server says or does not say, this thread goes on.
            self._disconnect(describe(error))

    def _listen(self, link: Link, readable: bool) -> bool:
        """Take all replies that have come; whether there was a whole one.

        All, so that their pipelines are used again next, while they are in the cache.
        """
        heard = False
        while self._is_full or ((readable or self._pipelines) and link.receive()):
            readable = False
            self._received_ns = time.monotonic_ns()
            was_full = self._is_full
            if self._take_replies(link) or was_full:
                heard, self._heard_ns = True, self._received_ns
            if self._is_full:
                break
        return heard

    def _may_send(self) -> bool:
        """Whether it is known where records lie; moves to their new places once nothing is under way."""
        if self.may_send is not None:
            return self.may_send()
        if time.monotonic_ns() - self.confirmed_ns > LAYOUT_LEASE_NS:
            return False
        if self._is_due or self._new_keys is not None:
            if self._pipelines:
                return False
            self._move()
        return True

    def _move(self) -> None:
        keys, self._new_keys = self._new_keys, None
        if keys is not None:
            self.backlog.use_keys(keys)
        moved = self.protocol.move(self._trade.clock.seconds(time.monotonic_ns()), keys)
        if moved and self.leads:
            self._trade.clock.count_move()
        if keys is not None and self.leads:
            self._trade.keys = keys
        self._is_due = False

    def _send(self, link: Link, pipeline: _Pipeline, *, probe: bool = False, asking: bool = False) -> None:
        pipeline.sent_ns, pipeline.probe, pipeline.late = time.monotonic_ns(), probe, 0
        pipeline.asking = asking
        pipeline.hurried = probe or asking or pipeline.batch.is_awaited
        self._hurried += pipeline.hurried
        if probe:
            self._probed_ns = pipeline.sent_ns
        self._pipelines.append(pipeline)
        link.send(pipeline.batch.data)

    def _send_rare(self, link: Link) -> None:
        """What is sent by itself: a new password, a row that another server sent here."""
        if self._credentials is not None and self._idle:
            pipeline = self._idle.pop()
            self.protocol.authenticate(pipeline.batch, self._credentials)
            self._credentials = None
            self._send(link, pipeline)
        if self._asked and self._trade.stood_still():
            self.compare()
        while self._asked and self._idle and self.link is not None:
            pipeline = self._idle.pop()
            batch = pipeline.batch
            batch.count = 1
            batch.rows[0] = self._asked.popleft()
            self.protocol.encode_asking(batch, self._trade.clock.seconds(time.monotonic_ns()))
            self._send(link, pipeline, asking=True)

    def _take_replies(self, link: Link) -> bool:
        """Take the replies in the buffer; whether there was a whole one."""
        pipelines, trade, began = self._pipelines, self._trade, link.start
        answers, now_s = trade.answers, trade.clock.seconds(self._received_ns)
        while pipelines:
            pipeline = pipelines[0]
            batch = pipeline.batch
            link.start, found, again = self._settle(
                batch.pipeline,
                batch.count,
                pipeline.late,
                int(trade.doubt),
                link.buffer,
                link.start,
                link.end,
                self.protocol.keys,
                now_s,
                answers.ring,
                answers.scratch,
                answers.tally,
            )
            if again:
                rows = batch.rows[batch.outcomes == AGAIN]
                self._go_on(rows[rows[:, image.OP] != image.LOOKUP] if pipeline.late else rows)
            if found == DONE:
                if pipeline.hurried:
                    self._take_time(pipeline)
                if batch.redirects:
                    self._redirect(pipeline)
                pipeline.layout = False
                self._idle.append(pipelines.popleft())
            elif found == MORE or found == FULL:
                self._is_full = found == FULL
                return link.start > began
            else:
                self.protocol.wonder(batch, link.buffer, link.start, link.end, found)
                trade.note_error(str(batch.errors[-1]))
        self._is_full = False
        if link.start < link.end:
            data = bytes(link.buffer[link.start : min(link.end, link.start + 80)])
            raise ConnectionError(f"the server answered what nobody asked: {data!r}")
        return True

    def _go_on(self, rows: Rows) -> None:
        """Send rows once more, those that are for another server now by the way that they go."""
        if self.on_walk is not None:
            further = walking(rows)
            if further.any():
                self.on_walk(rows[further])
                rows = rows[~further]
        self.backlog.put_back(rows)

    def _take_time(self, pipeline: _Pipeline) -> None:
        """The answers of a pipeline for which somebody waited were read at once: they tell how far the server is."""
        self._hurried -= 1
        self.rtt_ns += (self._received_ns - pipeline.sent_ns - self.rtt_ns) // 8
        if pipeline.probe:
            told_ns, errors = pipeline.batch.told_ns, pipeline.batch.errors
            if not told_ns and not errors:
                raise ProtocolError("a question for the time was answered by something else")
            if told_ns and pipeline.least_ns is not None and self.leads:
                clock = self._trade.clock
                clock.tell(told_ns, pipeline.least_ns, pipeline.sent_ns, self._received_ns)
            if pipeline.layout:
                self._take_layout(pipeline)

    def _take_layout(self, pipeline: _Pipeline) -> None:
        """The answer to the question for the layout; who has not its key any more says so by an error."""
        if self.on_told is not None and any(each.code in ("MOVED", "ASK") for each in pipeline.batch.errors):
            if self.on_lost is not None:
                self.on_lost(self)
            return
        self.protocol.hear(pipeline.batch.said)
        self.confirmed_ns = pipeline.sent_ns
        if self.on_told is not None:
            self.on_told(self)
        else:
            self._is_due = self.protocol.is_due(self._trade.clock.seconds(self._received_ns))

    def _redirect(self, pipeline: _Pipeline) -> None:
        redirects, pipeline.batch.redirects = pipeline.batch.redirects, []
        if pipeline.late:
            redirects = [(error, rows[rows[:, image.OP] != image.LOOKUP]) for error, rows in redirects]
        if self.on_redirect is not None:
            self.on_redirect(self, redirects, pipeline.asking)
            return
        for _, rows in redirects:  # one server was expected to have it all
            lookups = rows[:, image.OP] == image.LOOKUP
            self._trade.answers.fail(rows[lookups])
            self._trade.dropped += int((~lookups).sum())

    def _judge_silence(self) -> None:
        """While the server is silent beyond the look-up deadline nobody waits for it any longer.

        Only asked when the socket had no whole reply to read: time this thread was kept from the processor, or
        took to read an answer, is no silence of the server. Nor is what passed while it stood still, as with the
        machine that it runs on: the answer may be on its way.
        """
        if not self._pipelines:
            return
        silent_ns = self._silence_ns(time.monotonic_ns())
        if silent_ns >= _TIMEOUT_NS:
            raise ConnectionError(f"the server did not answer within {STORE_TIMEOUT_S:g} s")
        if silent_ns < LOOKUP_DEADLINE_NS:
            return
        for pipeline in self._pipelines:
            if not pipeline.late:
                pipeline.late = 1
                self._trade.answers.fail(pipeline.batch.lookups)
        self._fail_waiting()

    def _silence_ns(self, now: int) -> int:
        since_ns, resumed_ns = max(self._heard_ns, self._pipelines[0].sent_ns), self._trade.resumed_ns
        # A first write that may be on its way still is none by now: it goes with its link.
        if resumed_ns > since_ns and not any(each.batch.has_first_writes for each in self._pipelines):
            since_ns = resumed_ns
        return now - since_ns

    def _fail_stale(self, now: int) -> None:
        """Answer look-ups that the server is too slow for: they are not sent any more once nobody waits for them.

        Otherwise a server that gets more questions than it answers in time would answer none in time: each would stand
        behind those that came too late.
        """
        backlog = self.backlog
        if self._waiting is None or not backlog.lookups_before(self._waiting[0]):
            self._waiting = (backlog.lookup_mark, now) if backlog.lookups else None
        elif now - self._waiting[1] >= LOOKUP_DEADLINE_NS:
            self._trade.answers.fail(backlog.take_lookups(backlog.lookups_before(self._waiting[0])))
            self._waiting = None

    def _fail_waiting(self) -> None:
        """Answer look-ups that were not sent yet."""
        self._trade.answers.fail(self.backlog.take_lookups())
        if self._asked:
            asked = np.array(self._asked)
            self._asked.clear()
            self._trade.answers.fail(asked[asked[:, image.OP] == image.LOOKUP])
            self.backlog.put_back(asked[asked[:, image.OP] != image.LOOKUP])

    def _disconnect(self, reason: str) -> None:
        """Give the link up, or an attempt at one; the next follows after a pause that grows.

        A link that held for a while is no failed attempt; one that is lost as soon as it is made is.
        """
        held_ns = time.monotonic_ns() - self._since_ns
        if self.link is not None and held_ns >= STORE_STEADY_S * SECOND_NS:
            self._dialer.succeeded()
        self._trade.note_error(reason)  # first: who sees that there is no link sees why
        self._hang_up()
        self._dialer.pause()
        if self.on_lost is not None:
            self.on_lost(self)

    def _hang_up(self) -> None:
        """Close the link; nobody knows what became of the pipelines under way."""
        if self.link is not None:
            if self._listening is not None:
                self._trade.poll.unregister(self.link)
                del self._trade.by_descriptor[self.link.fileno()]
                self._listening = None
            self.link.close()
            self.link = None
        for pipeline in reversed(self._pipelines):  # of two changes of a session the later one is kept
            if not pipeline.late:
                self._trade.answers.fail(pipeline.batch.lookups)
            self.backlog.put_back(pipeline.batch.changes)
            pipeline.batch.redirects, pipeline.layout = [], False
        self._idle += self._pipelines
        self._pipelines.clear()
        self._is_full, self._hurried, self._credentials = False, 0, None
        self._fail_waiting()


def compared(rows: Rows) -> Rows:
    """The same requests for whenever they are made: a first write may not be the first any more by then."""
    rows = rows.copy()
    rows[rows[:, image.OP] == image.WRITE_FIRST, image.OP] = image.WRITE
    return rows


def describe(error: Exception) -> str:
    """An error as an operator reads it."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
